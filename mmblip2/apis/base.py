"""What all inferencers share: the model, the images through its test pipeline, batches, and pictures of the results."""
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmblip2.errors import ConfigError
from mmblip2.visualization.visualizer import draw_caption

from .images import image_stem, iterate_images, load_image

_LONGEST = 10_000  # pixels to which a picture is enlarged
_CANNOT_SHOW = ('agg', 'cairo', 'pdf', 'pgf', 'ps', 'svg', 'template')  # backends of matplotlib that only write files


def build_model(model, pretrained: Any = True, device: str | None = None, **kwargs):
    """The model of an inferencer, in eval mode, with its config as ``_config``.

    Args:
        model (str | Path | Config | nn.Module): What ``get_model`` takes, or a model that it gave.
        pretrained, device, **kwargs: For ``get_model``.

    Raises:
        ConfigError: One of the others is given with a model that is built already, or that model has no config.
    """
    from .models import get_model
    if isinstance(model, torch.nn.Module):
        given = [*([] if pretrained is True or pretrained is None else ['pretrained']),
                 *([] if device is None else ['device']), *kwargs]
        if given:
            raise ConfigError(f'{", ".join(given)}: only with the name of a model, this one is built already')
        if not hasattr(model, '_config'):
            raise ConfigError(f'this {type(model).__name__} has no _config, whose test pipeline prepares the images: '
                              'build it with get_model, or set model._config = Config.fromfile(...)')
        return model.eval()
    return get_model(model, pretrained=pretrained, device=device, **kwargs)


class BaseInferencer:
    """Base of the inferencers, whose ``__call__`` gives a list with one result an image.

    Args:
        model (str | Path | Config | nn.Module): What ``get_model`` takes, or a model that it gave. It is put into eval
            mode; nothing is run with gradients.
        pretrained (bool | str): Whether to load the weights that belong to a name, or the checkpoint to load.
        device (str, optional): Default: the GPU if there is one, otherwise the CPU.
        **kwargs: More for ``get_model``.

    Raises:
        ConfigError: The model is built already and other arguments are given; it has no config or no weights; it was
            cast as a whole, or has a T5 in float16.
    """

    def __init__(self, model, pretrained: Any = True, device: str | None = None, **kwargs):
        self.model: Any = build_model(model, pretrained, device, **kwargs)
        self.config = self.model._config
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise ConfigError("a model on the device 'meta' has shapes but no weights, and computes nothing: take "
                              "device='cpu' or 'cuda'")
        self._check_dtype()
        self._pipelines: dict[str, Any] = {}

    def _check_dtype(self):
        from mmblip2.models import Seq2SeqLM
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != torch.float32 and not name.startswith(('vision.', 'language_model.')):
                raise ConfigError(f'{name} is {parameter.dtype}, but all outside the vision encoder and the language '
                                  "model is computed in float32: instead of model.half() or alike call get_model(..., "
                                  "dtype='float16')")
        language_model = getattr(self.model, 'language_model', None)
        if isinstance(language_model, Seq2SeqLM) and next(language_model.parameters()).dtype == torch.float16:
            raise ConfigError("the language model is a T5 in float16, in which it overflows: use dtype='bfloat16' or "
                              "'float32'")

    @property
    def device(self) -> torch.device:
        """Where the images go."""
        return self.model.data_preprocessor.mean.device

    @property
    def autocast_dtype(self) -> str | None:
        """Autocast as in the training of the model's config: 'float32' or None means that there is none."""
        return (self.config.get('optim_wrapper') or {}).get('dtype')

    def autocast(self):
        """Context in which the model runs: :attr:`autocast_dtype` on the model's device."""
        from mmblip2.engine.autocast import autocast_context
        return autocast_context(self.autocast_dtype, self.device.type)

    # ---- images
    def pipeline_steps(self) -> list[dict]:
        """The transforms of the config's test pipeline.

        Raises:
            ConfigError: It has none.
        """
        from mmblip2.utils.run_config import innermost_datasets
        dataset = (self.config.get('test_dataloader') or self.config.get('val_dataloader') or {}).get('dataset')
        steps = innermost_datasets(dataset)[0][1].get('pipeline') if dataset else None
        if not steps:
            raise ConfigError('the config of this model has no test_dataloader, whose pipeline would prepare the '
                              'images')
        return list(steps)

    def image_rows(self, images) -> Iterator[dict]:
        """``{'sample_idx', 'image', 'source'}`` (and ``img_path``) of each image, read only when its turn comes.

        Args:
            images: See ``mmblip2.apis.images.iterate_images``.

        Raises:
            DataError: An image cannot be read; the message names it and its index.
        """
        for index, source in enumerate(iterate_images(images)):
            row = dict(sample_idx=index, image=load_image(source, index), source=source)
            if isinstance(source, (str, Path)):
                row['img_path'] = str(source)
            yield row

    def prepare(self, rows: Iterable[dict], steps: list[dict] | None = None) -> dict:
        """Rows through the pipeline, as one preprocessed batch on the model's device.

        Args:
            rows: With ``image`` and what else the pipeline reads.
            steps: Transforms; default: those of the config's test pipeline.

        Returns:
            dict: ``images`` (B, 3, H, W) float32, normalised; ``data_samples``.
        """
        from mmengine.dataset import Compose, pseudo_collate

        from mmblip2 import datasets  # noqa: F401 (registers the transforms)
        from mmblip2.registry import our_scope
        steps = self.pipeline_steps() if steps is None else steps
        if repr(steps) not in self._pipelines:
            with our_scope():
                self._pipelines[repr(steps)] = Compose(steps)
        pipeline = self._pipelines[repr(steps)]
        packed = [pipeline({key: value for key, value in row.items() if key != 'source'}) for row in rows]
        return self.model.data_preprocessor(pseudo_collate(packed), False)

    # ---- batches
    def run(self, rows: Iterable[dict], predict: Callable[[list[dict]], list], total: int | None = None,
            batch_size: int = 1, show: bool = False, show_dir: str | Path | None = None, wait_time: float = 0,
            resize: int | None = None, progress: bool = True, **drawing) -> list:
        """Results of all rows, a batch after the other; of a generator no more than one batch is in memory.

        Args:
            rows: Of :meth:`image_rows` or alike.
            predict: One batch of rows to one result each; called in eval mode, without gradients and under autocast.
            total: Number of rows, if it is known; only for the progress bar.
            batch_size: Rows of a batch.
            show, show_dir, wait_time, resize: See :meth:`visualize`.
            progress: Whether to show a progress bar where there is more than one batch.
            **drawing: For :meth:`picture`; what it does not name is an error.

        Raises:
            ConfigError: ``batch_size`` is not a positive integer; there is no such argument.
        """
        self._check_names(drawing)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f'batch_size is the number of images of a batch, 1 or more, got {batch_size!r}')
        if show:
            _screen()  # no display is said before the work, not after it
        self.model.eval()
        results = []
        shown = progress and (total is None or total > batch_size)
        for batch in _bar(_chunks(rows, batch_size), None if total is None else -(-total // batch_size), shown):
            with torch.no_grad(), self.autocast():
                found = predict(batch)
            for row, result in zip(batch, found, strict=True):
                if show or show_dir is not None:
                    self.visualize(row, result, show, show_dir, wait_time, resize, **drawing)
            results += found
        return results

    def _check_names(self, drawing):
        from mmblip2.models.hub import suggestion
        common = {'batch_size', 'show', 'show_dir', 'wait_time', 'resize', 'progress'}
        known = {name for name, item in inspect.signature(self.picture).parameters.items()
                 if item.kind is not item.VAR_KEYWORD} - {'row', 'result'}
        for name in (name for name in drawing if name not in known):
            called = inspect.signature(type(self).__call__).parameters
            raise ConfigError(f'{type(self).__name__}: a call has no argument {name!r}'
                              + suggestion(name, sorted({*called, *common, *known} - {'self', 'kwargs'})))

    # ---- pictures
    def lines(self, result) -> list[str]:
        """What is written below the image; an inferencer with results of its own says it here."""
        return [f'{key}: {value}' for key, value in result.items()]

    def picture(self, row: dict, result, resize: int | None = None, **drawing) -> Image.Image:
        """The picture of one result: the image, and :meth:`lines` below it.

        Args:
            row: Of :meth:`image_rows`.
            result: Of this row.
            resize: Length of the shorter side to which the image is resized first, pixels.
        """
        return draw_caption(shrink(row['image'], resize), self.lines(result))

    def visualize(self, row: dict, result, show: bool = False, show_dir: str | Path | None = None,
                  wait_time: float = 0, resize: int | None = None, **drawing) -> Path | None:
        """Show and write the picture of one result.

        Args:
            row, result: See :meth:`picture`.
            show: Open a window (needs a display).
            show_dir: Folder, created when needed, for ``<name of the image>.png``. No file is overwritten: where there
                is one of this name, the next is called ``<name>_1.png``.
            wait_time: Seconds for which the window stays; 0: until it is closed.
            resize: See :meth:`picture`.
            **drawing: For :meth:`picture`.

        Returns:
            Path | None: The file that was written.
        """
        picture = self.picture(row, result, resize=resize, **drawing)
        if show:
            display(picture, self.name_of(row), wait_time)
        return save_picture(picture, show_dir, self.name_of(row)) if show_dir is not None else None

    def name_of(self, row: dict) -> str:
        """Name, without ending, of the picture of a row."""
        return image_stem(row['source'], row['sample_idx'])


def shrink(image: Image.Image, side: int | None) -> Image.Image:
    """The image with a shorter side of ``side`` pixels; None leaves it.

    A longer side above 10,000 pixels is not enlarged: pictures of a narrow strip would need gigabytes.

    Raises:
        ConfigError: ``side`` is not a positive number.
    """
    if side is None:
        return image
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise ConfigError(f'resize is the length of the shorter side in pixels, got {side!r}')
    scale = min(side / min(image.size), max(1., _LONGEST / max(image.size)))
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def save_picture(picture: Image.Image, folder: str | Path, name: str) -> Path:
    """Write ``<folder>/<name>.png``, or ``<name>_1.png`` ... where there is one already; make the folder.

    Raises:
        ConfigError: The folder cannot be written.
    """
    folder, name = Path(folder), re.sub(r'[^\w.-]', '_', name)
    name = name.encode()[:200].decode(errors='ignore')  # of the 255 bytes that a file system allows
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            path = folder / (f'{name}_{number}.png' if number else f'{name}.png')
            try:
                with path.open('xb') as file:
                    picture.save(file, 'PNG')
                return path
            except FileExistsError:
                continue
    except OSError as error:
        raise ConfigError(f'cannot write pictures into show_dir {folder}: {error}') from None
    raise AssertionError('unreachable')


def display(picture: Image.Image, title: str, wait_time: float = 0):
    """Show a picture in a window of matplotlib.

    Args:
        picture: Any image.
        title: Of the window.
        wait_time: Seconds for which it stays; 0: until it is closed.

    Raises:
        ConfigError: There is no display.
    """
    pyplot = _screen()
    figure = pyplot.figure(num=title)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture)
    axes.axis('off')
    if wait_time:
        pyplot.show(block=False)
        pyplot.pause(wait_time)
    else:
        pyplot.show()
    pyplot.close(figure)


def _screen():
    """matplotlib.pyplot, if it can open windows."""
    from matplotlib import pyplot
    if pyplot.get_backend().lower() in _CANNOT_SHOW:
        raise ConfigError(f'show=True needs a display, and matplotlib has none here (backend {pyplot.get_backend()}): '
                          'use show_dir=FOLDER')
    return pyplot


def _chunks(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _bar(batches: Iterable, total: int | None, shown: bool, what: str = 'Inference') -> Iterable:
    """The batches, with a progress bar on stderr."""
    if not shown:
        return batches
    from rich.console import Console
    from rich.progress import track
    return track(batches, what, total, console=Console(stderr=True))
