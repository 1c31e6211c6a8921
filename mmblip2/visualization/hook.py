"""Hook behind ``tools/test.py --show-dir``."""
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from PIL import Image

from mmblip2.errors import ConfigError
from mmblip2.registry import HOOKS

from .visualizer import draw_caption, side_by_side


@HOOKS.register_module()
class PredictionVisualizationHook(Hook):
    """Writes a PNG a tested sample: its image or images, the question or prompt, the prediction and the ground truth.

    Files are named ``<sample_idx>_<name of the (first) image>.png``: unique, and the same for any number of processes.
    After a retrieval test: every image with its five best texts, those that belong to it marked.

    Args:
        show_dir (str): Folder of the pictures, created when needed.
        interval (int): Write every n-th sample of the data set.

    Raises:
        ConfigError: ``interval`` is below 1.
    """

    def __init__(self, show_dir: str, interval: int = 1):
        if interval < 1:
            raise ConfigError(f'PredictionVisualizationHook: interval must be 1 or more, got {interval}')
        self.show_dir = Path(show_dir)
        self.interval = interval

    def after_test_iter(self, runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence | None = None) -> None:
        """Write the pictures of one batch.

        Args:
            data_batch: ``inputs`` has the uint8 images (3, H, W), or several (N, 3, H, W), drawn where a sample has no
                image file.
            outputs: Predicted data samples, in the order of ``inputs``.
        """
        for position, sample in enumerate(outputs or ()):
            index = sample.get('sample_idx')
            if not {'pred_text', 'pred_label'} & set(sample.keys()) or index % self.interval:
                continue
            path = sample.get('img_path')
            paths = path if isinstance(path, (list, tuple)) else [path]
            if all(one and Path(one).is_file() for one in paths):
                images = [_open(one) for one in paths]
            else:
                seen = data_batch['inputs'][position]
                images = [_to_pil(one) for one in (seen if seen.dim() == 4 else [seen])]
            self._save(index, paths[0], side_by_side(images), _describe(sample))

    def after_test(self, runner) -> None:
        """Write the pictures of a retrieval test; its loop has the ``ranking`` on the main process."""
        ranking = getattr(runner.test_loop, 'ranking', None)
        if ranking is None:
            return
        for query in ranking['i2t']:
            index = query['image']
            if index % self.interval == 0:
                lines = [f'{number}. {ranking["texts"][text]} ({score:.2f})'
                         + (' [right]' if ranking['text_to_image'][text] == index else '')
                         for number, (text, score) in enumerate(query['top'], 1)]
                path = ranking['images'][index]
                self._save(index, path, _open(path), lines)

    def _save(self, index, path, image, lines):
        name = re.sub(r'[^\w.-]', '_', Path(path).stem) if path else 'image'
        self.show_dir.mkdir(parents=True, exist_ok=True)
        draw_caption(image, lines).save(self.show_dir / f'{index:06d}_{name}.png')


def _open(path) -> Image.Image:
    from mmblip2.datasets.transforms.image import read_image
    return read_image(path)


def _to_pil(image: torch.Tensor) -> Image.Image:
    """(3, H, W) uint8, RGB."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def _describe(sample) -> list[str]:
    if 'pred_label' in sample:
        return [sample.get('text', ''), f'prediction: {bool(sample.pred_label)}'.lower(),
                *([f'label: {bool(sample.gt_label)}'.lower()] if 'gt_label' in sample else [])]
    lines = []
    if sample.get('question'):
        lines.append(f'question: {sample.get("question")}')
    elif sample.get('prompt'):
        lines.append(f'prompt: {sample.get("prompt")}')
    lines.append(f'prediction: {sample.get("pred_text")}')
    if sample.get('gt_answer'):
        lines.append('answers: ' + ', '.join(sample.get('gt_answer')))
    lines.extend(f'reference: {caption}' for caption in sample.get('gt_caption') or ())
    return lines
