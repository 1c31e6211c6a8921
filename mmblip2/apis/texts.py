"""Texts that are compared with images, and the pairs that they form."""
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from mmblip2.datasets.transforms.text import is_empty
from mmblip2.errors import ConfigError, DataError
from mmblip2.models.tokenizers import TextBatch
from mmblip2.utils.log import say

from .images import count_images, is_several


def compares(model) -> bool:
    """Whether a model compares images with texts: it has contrastive and matching heads."""
    from mmblip2.models import Representation
    return isinstance(model, Representation)


def needs_representation(inferencer):
    """Refuse a model without contrastive and matching heads.

    Raises:
        ConfigError: With the classes to use instead.
    """
    if not compares(inferencer.model):
        from mmblip2.models import BlipNLVR
        others = 'NLVRInferencer' if isinstance(inferencer.model, BlipNLVR) else (
            'ImageCaptionInferencer or VisualQuestionAnsweringInferencer')
        raise ConfigError(f'{type(inferencer).__name__} needs a Blip2Representation or BlipRepresentation (a retrieval '
                          f'model or its pre-training), this model is a {type(inferencer.model).__name__}, which '
                          f'compares no images with texts: give another one, or use {others}')


def read_texts(texts: Any, what: str) -> list[str]:
    """Texts as a list.

    Args:
        texts: A text, or an iterable of texts.
        what: What they are, for messages.

    Raises:
        DataError: There is none, one is no text, or one has no letter or digit.
    """
    found = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Iterable) else texts
    if not isinstance(found, list):
        raise DataError(f'{what} is a {type(texts).__name__}: expected a text or a list of texts')
    if not found:
        raise DataError(f'{what} is empty: give at least one text')
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise DataError(f'{what}[{index}] is a {type(text).__name__}: expected a text')
        if is_empty(text):
            raise DataError(f'{what}[{index}] is {text!r}, an empty text: nothing can be compared with it')
    return found


def clean_texts(inferencer, texts: list[str]) -> list[str]:
    """Texts as the ``CleanCaption`` steps of the config's test pipeline clean them, none if it has none."""
    from mmblip2.registry import TRANSFORMS
    row = dict(texts=list(texts))
    for step in clean_steps(inferencer):
        row = TRANSFORMS.build(step)(row)
    return row['texts']


def clean_steps(inferencer) -> list[dict]:
    """The ``CleanCaption`` steps of the config's test pipeline."""
    return [step for step in inferencer.pipeline_steps() if str(step['type']).split('.')[-1] == 'CleanCaption']


def image_steps(inferencer) -> list[dict]:
    """The config's test pipeline without our text transforms, which may ask for what an image alone has not."""
    from mmblip2.datasets.transforms import text
    from mmblip2.registry import TRANSFORMS
    return [step for step in inferencer.pipeline_steps()
            if getattr(TRANSFORMS.get(step['type']) if isinstance(step['type'], str) else step['type'], '__module__',
                       None) != text.__name__]


def tokenize(inferencer, texts: list[str]) -> TextBatch:
    """Token ids (n, T) on the CPU; longer texts than in training are cut as there, with one warning."""
    model = inferencer.model
    cleaned = clean_texts(inferencer, texts)
    batch = model.tokenizer(cleaned, model.max_text_len)
    full = [i for i in (batch.mask.sum(dim=1) >= model.max_text_len).nonzero()[:, 0].tolist()
            if model.tokenizer([cleaned[i]], 4 * model.max_text_len).mask.size(1) > model.max_text_len]
    if full:
        say(f'{len(full)} of {len(texts)} texts are longer than max_text_len={model.max_text_len} tokens and are cut '
            f'there, as in training; the first is {texts[full[0]][:60]!r}', logging.WARNING)
    return batch


def pair_up(inferencer, images, texts) -> tuple[list[str], Iterator[dict], int | None]:
    """Images and texts as pairs: as many of both; or one text for all images, or one image for all texts.

    Args:
        inferencer (BaseInferencer): Reads the images.
        images: See ``mmblip2.apis.images.iterate_images``.
        texts (str | Iterable[str]): Texts.

    Returns:
        tuple: The texts; rows of ``image_rows`` with ``text`` and ``text_index``, read one after the other; their
        number, where it is known.

    Raises:
        DataError: Their numbers differ, or see :func:`read_texts`.
    """
    found = read_texts(texts, 'texts')
    count = count_images(images)
    if not is_several(images):
        row = next(inferencer.image_rows(images))
        rows: Any = (dict(row, text=text, text_index=i, sample_idx=i) for i, text in enumerate(found))
        return found, rows, len(found)
    if isinstance(texts, str):
        return found, (dict(row, text=texts, text_index=0) for row in inferencer.image_rows(images)), count

    def pairs():
        number = 0
        for row in inferencer.image_rows(images):
            if number < len(found):
                yield dict(row, text=found[number], text_index=number)
            number += 1
        _same_number(number, len(found))

    if count is not None:
        _same_number(count, len(found))
    return found, pairs(), count


def distinct_images(batch: list[dict]) -> tuple[list[dict], torch.Tensor]:
    """Rows of the different images of a batch, and int64 (B,), which of them each row has."""
    rows = {id(row['image']): row for row in batch}
    place = {key: i for i, key in enumerate(rows)}
    return list(rows.values()), torch.tensor([place[id(row['image'])] for row in batch])


def _same_number(images, texts):
    if images != texts:
        raise DataError(f'there are {images} images and {texts} texts: give as many of both, or one image, or one text '
                        'that is not in a list')
