"""Whether a sentence about two images is true."""
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

from PIL import Image

from mmblip2.datasets.transforms.text import is_empty
from mmblip2.errors import ConfigError, DataError
from mmblip2.visualization.visualizer import draw_caption, side_by_side

from .base import BaseInferencer, shrink
from .images import image_stem, load_image

_WANTED = 'expected a tuple (image, image, text): NLVR2 is about two images, a left and a right one'


class NLVRInferencer(BaseInferencer):
    """Judge sentences about two images (BLIP, section 5.5). See :class:`BaseInferencer` for the arguments.

    Raises:
        ConfigError: The model judges no sentences about two images.

    Example:
        >>> NLVRInferencer('blip-base_3rdparty_nlvr')([('left.jpg', 'right.jpg', 'there are two dogs')])
        [{'pred_scores': array([0.02, 0.98], dtype=float32), 'pred_label': 1, 'pred_score': 0.98}]
    """

    def __init__(self, model, pretrained: Any = True, device: str | None = None, **kwargs):
        super().__init__(model, pretrained, device, **kwargs)
        from mmblip2.models import BlipNLVR
        if not isinstance(self.model, BlipNLVR):
            raise ConfigError(f'NLVRInferencer needs a BlipNLVR, this is a {type(self.model).__name__}, which reads '
                              'one image: take VisualQuestionAnsweringInferencer or ImageTextMatchingInferencer')

    def __call__(self, inputs: Any, return_datasamples: bool = False, batch_size: int = 1, show: bool = False,
                 wait_time: float = 0, show_dir: str | Path | None = None, resize: int | None = None,
                 draw_score: bool = True, progress: bool = True) -> list:
        """Judge each sentence.

        Args:
            inputs: A tuple (left image, right image, text), or an iterable of such tuples. Images are paths, URLs,
                ``PIL.Image`` or arrays (BGR), see ``mmblip2.apis.images.load_image``.
            return_datasamples: Return data samples with ``pred_score`` and ``pred_label`` in the place of dicts.
            batch_size: Sentences that the model sees at once.
            show, wait_time, show_dir, resize: See :meth:`BaseInferencer.visualize`; a picture has both images.
            draw_score: Write the probability into the picture, too.
            progress: Show a progress bar where there is more than one batch.

        Returns:
            list[dict]: For each sentence ``pred_scores``, the probabilities of false and true, float32 array (2,),
            ``pred_label`` (1: true, 0: false) and its probability ``pred_score``.

        Raises:
            DataError: An input is not two images and a text, an image cannot be read, or the text is empty; the message
                names its place.
        """
        entries = [inputs] if isinstance(inputs, tuple) else inputs
        if isinstance(entries, str) or not isinstance(entries, Iterable):
            raise DataError(f'got a {type(inputs).__name__}; {_WANTED}, or a list of such tuples')
        total = len(entries) if isinstance(entries, Sized) else None
        samples = self.run(self._rows(entries), self._judge, total, batch_size, show, show_dir, wait_time, resize,
                           progress, draw_score=draw_score)
        if return_datasamples:
            return samples
        return [dict(pred_scores=sample.pred_score.cpu().numpy(), pred_label=sample.pred_label,
                     pred_score=float(sample.pred_score.max())) for sample in samples]

    def lines(self, result, draw_score: bool = True) -> list[str]:
        """What is written below the images."""
        score = f' ({float(result.pred_score.max()):.2f})' if draw_score else ''
        return [result.text, ('true' if result.pred_label else 'false') + score]

    def picture(self, row: dict, result, resize: int | None = None, draw_score: bool = True, **drawing) -> Image.Image:
        """Both images, and below them :meth:`lines`.

        Args:
            row: Of this inferencer.
            result: Of this row.
            resize: Length of the shorter side to which each image is resized first, pixels.
            draw_score: Write the probability, too.
        """
        return draw_caption(side_by_side([shrink(image, resize) for image in row['image']]),
                            self.lines(result, draw_score))

    def name_of(self, row: dict) -> str:
        """Name, without ending, of the picture of a row: that of its images."""
        return '_'.join(dict.fromkeys(image_stem(source, row['sample_idx']) for source in row['source']))

    def _judge(self, rows: list[dict]) -> list:
        samples = list(self.model.predict(**self.prepare(rows)))
        for row, sample in zip(rows, samples):
            sample.text = row['text']  # as it was given, the pipeline cleans it
        return samples

    def _rows(self, entries: Iterable) -> Iterator[dict]:
        for index, entry in enumerate(entries):
            if not isinstance(entry, (tuple, list)) or len(entry) != 3:
                what = f'has {len(entry)} entries' if isinstance(entry, (tuple, list)) else (
                    f'is a {type(entry).__name__}')
                raise DataError(f'input {index} {what}, {_WANTED}')
            *source, text = entry
            if not isinstance(text, str) or is_empty(text):
                raise DataError(f'the text of input {index} is {text!r:.60}, expected a text with at least one word, '
                                'after the two images')
            row = dict(sample_idx=index, image=[load_image(one, index) for one in source], text=text, source=source)
            if all(isinstance(one, (str, Path)) for one in source):
                row['img_path'] = tuple(map(str, source))
            yield row
