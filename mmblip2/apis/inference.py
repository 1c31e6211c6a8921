"""One call for a caption, an answer, a search or a comparison, with the result keys of mmpretrain."""
import inspect
import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from mmblip2.errors import ConfigError

from .base import build_model
from .caption import ImageCaptionInferencer
from .images import is_image, is_several
from .matching import ImageTextMatchingInferencer
from .models import get_model
from .nlvr import NLVRInferencer
from .retrieval import ImageToTextRetrievalInferencer, TextToImageRetrievalInferencer
from .texts import compares
from .vqa import VisualQuestionAnsweringInferencer


def inference_model(model, inputs, question: str | Sequence[str] | None = None, prototype: Any = None, topk: int = 1,
                    **kwargs):
    """Caption an image, answer a question about it, search, or compare it with a text.

    What is done follows from the model and the arguments, of a retrieval model from the kind of ``prototype``:

    ==================== ============================== =====================================
    model writes text    no ``question``                ``ImageCaptionInferencer``
    model writes text    ``question``                   ``VisualQuestionAnsweringInferencer``
    retrieval model      ``prototype`` of texts         ``ImageToTextRetrievalInferencer``
    retrieval model      ``prototype`` of images        ``TextToImageRetrievalInferencer``
    retrieval model      ``texts``, no ``prototype``    ``ImageTextMatchingInferencer``
    model of two images  two images and a text          ``NLVRInferencer``
    ==================== ============================== =====================================

    Args:
        model (str | Path | Config | nn.Module): What :func:`get_model` takes or gives.
        inputs: An image (path, URL, ``PIL.Image``, array in BGR), or several of them as a list, generator or
            directory; to search images a text, or a list of texts. For a model of two images a tuple (image, image,
            text) or a list of such tuples; or these three, one after the other.
        question: About the image; makes it visual question answering. One for all images, or a list.
        prototype: The gallery of a retrieval model: texts (a list, or a file with one a line) to search with an image;
            images (a list, directory, config of a data set, data set or loader) to search with a text.
        topk: Retrieval results that are returned.
        **kwargs: Arguments of :func:`get_model` (``pretrained``, ``device``, ``dtype`` ...) go there, those of the
            inferencer's constructor (``prototype_cache``, ``fast_match`` ...) there, all others to its call
            (``prompt``, ``num_captions``, ``template``, ``texts``, ``show_dir``, ``num_beams`` ...).

    Returns:
        dict | list: ``{'pred_caption'}``, ``{'question', 'pred_answer'}``, ``{'itm_score', 'itc_score'}``, or the
        ``topk`` best as a list of ``{'match_score', 'sample_idx', 'text'}`` (of images: ``'sample'`` and
        ``'img_path'``), or ``{'pred_scores', 'pred_label', 'pred_score'}``. Several images, questions or texts give a
        list of these.

    Raises:
        ConfigError: The arguments do not fit the model.
        DataError: An image cannot be read.

    Example:
        >>> inference_model('work_dirs/quickstart/stage2', 'data/shapes/test/000000004501.jpg')
        {'pred_caption': 'a small red circle and a large blue star'}
    """
    from mmblip2.models import BlipNLVR
    from mmblip2.models.algorithms.text_generation import TextGeneration
    model = build_model(model, **_take(kwargs, get_model, ('model', )))
    if compares(model):
        return _represent(model, inputs, question, prototype, topk, kwargs)
    if isinstance(model, BlipNLVR):
        return _judge(model, inputs, question, prototype, topk, kwargs)
    if not isinstance(model, TextGeneration):
        raise ConfigError(f'inference_model does nothing with a {type(model).__name__}: for its features take '
                          'FeatureExtractor')
    if prototype is not None or topk != 1:
        raise ConfigError(f'{"prototype" if prototype is not None else "topk"} is for retrieval, and this '
                          f'{type(model).__name__} writes text: leave it out, or take a retrieval model')
    if question is None:
        captions = ImageCaptionInferencer(model)
        if captions.prompt_step('VQAPrompt') is not None and kwargs.get('prompt') is None:
            raise ConfigError('this model answers questions: give question="...", or prompt="..." for a caption')
        return _like(captions(inputs, **kwargs), is_several(inputs))
    several = is_several(inputs) or not isinstance(question, str)
    return _like(VisualQuestionAnsweringInferencer(model)(inputs, question, **kwargs), several)


def _judge(model, inputs, second, text, topk, kwargs):
    """Is the text true of both images? They may come in a tuple, or one after the other."""
    if topk != 1:
        raise ConfigError('topk is for retrieval, and this model judges a sentence about two images: leave it out')
    if (second is None) != (text is None):
        raise ConfigError('this model judges a sentence about two images, and one of the three is missing: call '
                          'inference_model(model, image, image, text)')
    triple = inputs if second is None else (inputs, second, text)
    return _like(NLVRInferencer(model)(triple, **kwargs), not isinstance(triple, tuple))


def _represent(model, inputs, question, prototype, topk, kwargs):
    """Search or compare."""
    if question is not None:
        raise ConfigError('this is a retrieval model, which answers no question: leave question out, or take a model '
                          'that writes text')
    if prototype is None and kwargs.get('texts') is not None:
        if topk != 1:
            raise ConfigError('topk is for a search: give the texts as prototype=, or leave topk out to compare all of '
                              'them')
        several = is_several(inputs) or not isinstance(kwargs['texts'], str)
        return _like(ImageTextMatchingInferencer(model)(inputs, **kwargs), several)
    if prototype is None and kwargs.get('prototype_cache') is None:
        raise ConfigError('this is a retrieval model: give prototype=[texts] to search texts for an image, '
                          'prototype=[images] to search images for a text, or texts=... to compare an image with them')
    if not isinstance(inputs, (str, os.PathLike)) and is_several(inputs):
        inputs = list(inputs)
    if isinstance(prototype, (Iterator, Set)):
        prototype = list(prototype)
    images = _are_images(prototype)
    if images is None:  # a gallery from a file: it has what the query is not
        images = not _is_image_query(inputs)
    if _is_image_query(inputs, directory=not images) == images:
        raise ConfigError('retrieval takes an image and texts, or a text and images; the query is '
                          f'{"an image" if images else "a text"} and so is some of the prototype')
    several = is_several(inputs) and not (images and isinstance(inputs, str))  # a text may name a directory
    kind = TextToImageRetrievalInferencer if images else ImageToTextRetrievalInferencer
    progress = dict(progress=kwargs['progress']) if 'progress' in kwargs else {}
    inferencer = kind(model, prototype, **_take(kwargs, kind.__init__, ('self', 'model', 'prototype')))
    found = inferencer(inputs, topk, **kwargs, **progress)
    if images and not kwargs.get('return_datasamples'):
        for row in (row for rows in found for row in rows):
            row['img_path'] = (prototype[row['sample_idx']] if isinstance(prototype, (list, tuple)) else
                               row['sample'].get('img_path'))
    return _like(found, several)


def _take(kwargs: dict, function, but: Sequence[str]) -> dict:
    """Remove from ``kwargs`` what ``function`` names as its parameters, and return it."""
    names = [name for name, item in inspect.signature(function).parameters.items()
             if item.kind is not item.VAR_KEYWORD and name not in but]
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def _like(results: list, several: bool):
    return results if several else results[0]


def _is_image_query(inputs, directory: bool = True) -> bool:
    """Whether the query is an image (or several), not a text; the name of a directory counts as ``directory`` says."""
    if isinstance(inputs, list):
        return bool(inputs) and all(map(is_image, inputs))
    return is_image(inputs) or (directory and is_several(inputs))


def _are_images(prototype) -> bool | None:
    """Whether a gallery has images or texts; None without a gallery.

    Raises:
        ConfigError: It is empty, or has both.
    """
    if prototype is None:
        return None
    if isinstance(prototype, (str, os.PathLike)):
        return Path(prototype).is_dir() or is_image(str(prototype))
    if not isinstance(prototype, (list, tuple)):
        return True  # a data set, its config, or a loader
    kinds = {is_image(item) for item in prototype}
    if len(kinds) != 1:
        raise ConfigError('retrieval takes one image or one text, and a prototype with at least one entry' if not kinds
                          else 'some entries of the prototype are images and some are texts: give one kind')
    return kinds.pop()
