"""Features of images and texts.

Shapes: B rows, P patches, E vision width, Q queries, T text tokens, D width of Q-Former or MED, C contrastive width, H
width of the language model.
"""
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from mmblip2.errors import ConfigError, DataError

from .base import BaseInferencer
from .images import count_images
from .texts import distinct_images, image_steps, pair_up, read_texts, tokenize

_MODES = ('image', 'text', 'multimodal')


class FeatureExtractor(BaseInferencer):
    """Features before and behind the Q-Former or BLIP's text encoder, equal to transformers' and, by LAVIS's names, to
    its feature extractor.

    Where BLIP-2 has queries, BLIP has what they stand for: an image's patches, (B, P, E), and beside a text the text's
    tokens, (B, T, D), the first of which, [ENC], stands for both.

    All results are float32 on the CPU. What a model cannot give is an error: texts need a Q-Former with a text half
    (``Blip2Representation``, a ``Blip2Generation`` whose Q-Former reads text, as InstructBLIP's, or ``Blip2Features``
    of a ``Blip2TextModelWithProjection``), or a text encoder.

    Args:
        model (str | Path | Config | nn.Module): See ``BaseInferencer``.
        pretrained, device, **kwargs: See ``BaseInferencer``.

    Raises:
        ConfigError: Another kind of model.
    """

    def __init__(self, model, pretrained: bool | str | None = True, device: str | None = None, **kwargs):
        super().__init__(model, pretrained, device, **kwargs)
        from mmblip2.models.algorithms.base import VisionLanguageModel
        if not isinstance(self.model, VisionLanguageModel):
            raise ConfigError(f'FeatureExtractor needs a model of BLIP-2 or BLIP, this model is a '
                              f'{type(self.model).__name__}: give another one')

    def get_image_features(self, images, batch_size: int = 8, out_file: str | Path | None = None,
                           progress: bool = True) -> torch.Tensor:
        """What the vision encoder and the norm behind it say of images: ``get_image_features`` of transformers'
        ``Blip2Model``, its ``last_hidden_state``.

        Args:
            images: See ``mmblip2.apis.images.iterate_images``.
            batch_size: Images that are encoded together.
            out_file: Also written there: ``.npy``, ``.npz`` or ``.safetensors``.
            progress: Whether to show a progress bar where there is more than one batch.

        Returns:
            torch.Tensor: (B, P, E).

        Raises:
            DataError: An image cannot be read.
            ConfigError: ``out_file`` has another ending, or cannot be written.
        """
        _check_ending(out_file, 1)

        def predict(batch):
            return _rows(image_features=self._encode(batch).patches)

        found = self.run(self.image_rows(images), predict, count_images(images), batch_size, progress=progress)
        return _written(_stack(found), out_file)['image_features']

    def get_qformer_features(self, images, texts=None, batch_size: int = 8, out_file: str | Path | None = None,
                             progress: bool = True) -> torch.Tensor:
        """What the queries read from images, and from texts beside them where there are some; of BLIP see above.

        Args:
            images, batch_size, out_file, progress: See :meth:`get_image_features`.
            texts (str | Iterable[str], optional): As many as images, or one for all, or any number for one image.

        Returns:
            torch.Tensor: (B, Q, D).

        Raises:
            DataError, ConfigError: See :meth:`extract_features`.
        """
        _check_ending(out_file, 1)
        mode = 'image' if texts is None else 'multimodal'
        found = self.extract_features(images, texts, mode, batch_size, progress=progress)
        name = 'image_embeds' if texts is None else 'multimodal_embeds'
        return _written({name: found[name]}, out_file)[name]

    def get_text_features(self, texts, project: bool = False, batch_size: int = 256,
                          out_file: str | Path | None = None, progress: bool = True) -> torch.Tensor:
        """What the text half of the Q-Former, or the text encoder, says of texts; place 0 ([CLS]) stands for the text.

        Args:
            texts (str | Iterable[str]): Texts; longer ones than ``model.max_text_len`` are cut, with a warning.
            project: Whether to project to the contrastive width and normalise.
            batch_size, out_file, progress: See :meth:`get_image_features`.

        Returns:
            torch.Tensor: (B, T, D), or projected (B, T, C). Behind the end of a text its places mean nothing.

        Raises:
            DataError, ConfigError: See :meth:`extract_features`.
        """
        _check_ending(out_file, 1)
        found = self.extract_features(texts=texts, mode='text', batch_size=batch_size, progress=progress)
        name = 'text_embeds_proj' if project else 'text_embeds'
        if name not in found:
            raise ConfigError(f'a {type(self.model).__name__} has no contrastive projection: leave project out')
        return _written({name: found[name]}, out_file)[name]

    def extract_features(self, images=None, texts=None, mode: str = 'multimodal', batch_size: int = 8,
                         out_file: str | Path | None = None, progress: bool = True) -> dict[str, torch.Tensor]:
        """LAVIS's ``extract_features``: the same modes and names.

        Args:
            images: For the modes 'image' and 'multimodal': see ``mmblip2.apis.images.iterate_images``.
            texts (str | Iterable[str]): For the modes 'text' and 'multimodal': as many as images, or one for all, or
                any number for one image. Texts longer than ``model.max_text_len`` are cut, with a warning.
            mode: 'image', 'text' or 'multimodal'.
            batch_size: Rows that are encoded together.
            out_file: Also written there: ``.npz`` or ``.safetensors``.
            progress: Whether to show a progress bar where there is more than one batch.

        Returns:
            dict: 'image': ``image_embeds`` (B, Q, D), of BLIP (B, P, E), and ``image_embeds_proj``, of a model with a
            contrastive head (B, Q or P, C), normalised, and of a ``Blip2Generation`` (B, Q, H), what its language
            model reads.
            'text': ``text_embeds`` (B, T, D), ``text_embeds_proj`` (B, T, C), normalised, of a model with a
            contrastive head, and ``text_mask`` (B, T), 1 at tokens.
            'multimodal': ``multimodal_embeds`` (B, Q, D), of BLIP (B, T, D) and ``text_mask``.

        Raises:
            ConfigError: Another mode, images or texts are missing or not wanted, or the model has no text half.
            DataError: An image cannot be read, a text is empty, or there are not as many of both.
        """
        if mode not in _MODES:
            raise ConfigError(f'mode {mode!r} is not one of {", ".join(map(repr, _MODES))}')
        for name, value, modes in (('images', images, ('image', 'multimodal')),
                                   ('texts', texts, ('text', 'multimodal'))):
            if (value is not None) != (mode in modes):
                raise ConfigError(f'mode={mode!r} needs {"" if value is None else "no "}{name}: '
                                  + (f'give {name}=' if value is None else f'leave {name} out, or take another mode'))
        name, reader = type(self.model).__name__, self.model.reader
        if reader is None:
            raise ConfigError(f'this {name} is a vision encoder without a Q-Former or text encoder: get_image_features '
                              'is all that it has')
        if texts is not None and self.model.text_reader is None:
            name = f'this {name}'
            if not reader.has_text:
                name = f'the {reader.title} of {name} was built without a text half and'
            raise ConfigError(f'{name} reads no texts: leave texts out, or take a stage 1, retrieval or InstructBLIP '
                              'model, or one of BLIP with a text encoder')
        _check_ending(out_file, 1 if mode == 'multimodal' else 2)
        return _written(getattr(self, f'_{mode}')(images, texts, batch_size, progress), out_file)

    def __call__(self, images=None, texts=None, mode: str | None = None, batch_size: int = 8,
                 out_file: str | Path | None = None, progress: bool = True) -> list[dict[str, torch.Tensor]]:
        """Features row by row.

        Args:
            images, texts, batch_size, out_file, progress: See :meth:`extract_features`.
            mode: Default: 'image' without texts, 'text' without images, else 'multimodal'.

        Returns:
            list: For each row a dict as of :meth:`extract_features`, without the dimension B; of texts their own
            tokens only, (T_i, D), and no mask.
        """
        if mode is None:
            mode = 'image' if texts is None else 'text' if images is None else 'multimodal'
        found = self.extract_features(images, texts, mode, batch_size, out_file, progress)
        mask = found.pop('text_mask', None)
        rows = _rows(**found)
        if mask is not None:
            rows = [{key: value[:int(length)] for key, value in row.items()}
                    for row, length in zip(rows, mask.sum(dim=1))]
        return rows

    def _encode(self, rows):
        return self.model.encode_image(self.prepare(rows, image_steps(self))['images'])

    def _image(self, images, texts, batch_size, progress):
        head = getattr(self.model, 'itc_head', None)

        def predict(batch):
            embeds = self.model.image_states(self._encode(batch))
            project = head.image_features if head is not None else getattr(self.model, 'language_projection', None)
            return _rows(image_embeds=embeds, **({} if project is None else dict(image_embeds_proj=project(embeds))))

        return _stack(self.run(self.image_rows(images), predict, count_images(images), batch_size, progress=progress))

    def _text(self, images, texts, batch_size, progress):
        head = getattr(self.model, 'itc_head', None)
        found = read_texts(texts, 'texts')
        tokens = tokenize(self, found)

        def predict(batch):
            text = type(tokens)(*(part.to(self.device) for part in tokens.rows([row['index'] for row in batch])))
            embeds = self.model.text_reader.forward_text_tokens(*text)
            features = dict(text_embeds=embeds)
            if head is not None:
                features['text_embeds_proj'] = head.text_features(embeds)
            return _rows(**features)

        rows = (dict(index=index) for index in range(len(found)))
        return dict(_stack(self.run(rows, predict, len(found), batch_size, progress=progress)), text_mask=tokens.mask)

    def _multimodal(self, images, texts, batch_size, progress):
        found, rows, total = pair_up(self, images, texts)
        tokens = tokenize(self, found)

        def predict(batch):
            encoded = self._encode(distinct_images(batch)[0])  # one of all, or one for all texts
            text = tokens.rows([row['text_index'] for row in batch])
            if self.model.reader.has_queries:
                return _rows(multimodal_embeds=self.model.joint_states(encoded, text.trimmed(self.device)))
            text = type(text)(*(part.to(self.device) for part in text))
            return _rows(multimodal_embeds=self.model.joint_states(encoded, text), text_mask=text.mask)

        features = _stack(self.run(rows, predict, total, batch_size, progress=progress))
        return {key: value.long() if key == 'text_mask' else value for key, value in features.items()}


def _rows(**features) -> list[dict[str, torch.Tensor]]:
    """A batch as rows, float32 on the CPU."""
    on_cpu = {name: tensor.float().cpu() for name, tensor in features.items()}
    return [dict(zip(on_cpu, row)) for row in zip(*on_cpu.values())]


def _stack(rows: list[dict]) -> dict[str, torch.Tensor]:
    if not rows:
        raise DataError('there is no image: give at least one')
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _check_ending(out_file, count):
    """Before the work: whether so many tensors can be written there."""
    endings = (['.npy'] if count == 1 else []) + ['.npz', '.safetensors']
    if out_file is not None and Path(out_file).suffix not in endings:
        raise ConfigError(f'out_file {out_file} should end with {" or ".join(endings)}')


def _written(features: dict[str, torch.Tensor], out_file) -> dict[str, torch.Tensor]:
    """The features; written to ``out_file`` too, which is always a whole file."""
    if out_file is None:
        return features
    path = Path(out_file)
    side = path.with_name(f'{path.stem}.{os.getpid()}.part{path.suffix}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.safetensors':
            from safetensors.torch import save_file
            save_file({name: tensor.contiguous() for name, tensor in features.items()}, str(side))
        elif path.suffix == '.npy':
            np.save(side, next(iter(features.values())).numpy())
        else:
            np.savez(side, **{name: tensor.numpy() for name, tensor in features.items()})
        os.replace(side, path)
    except Exception as error:
        raise ConfigError(f'cannot write out_file {path}: {error}') from error
    finally:
        with suppress(OSError):
            side.unlink()
    return features
