"""Use a trained model on images of one's own, with the result keys of mmpretrain."""
import inspect
from collections.abc import Sequence

import torch

from mmblip2.errors import ConfigError

from .base import BaseInferencer, build_model
from .caption import ImageCaptionInferencer
from .images import is_image, is_several
from .models import get_model
from .vqa import VisualQuestionAnsweringInferencer


def inference_model(model, inputs, question: str | Sequence[str] | None = None, prototype: Sequence | None = None,
                    topk: int = 1, **kwargs):
    """Caption an image, answer a question about it, or retrieve.

    What is done follows from the model and the arguments: a model that writes text answers if there is a question and
    captions otherwise; a retrieval model searches ``prototype``.

    Args:
        model (str | Path | Config | nn.Module): What :func:`get_model` takes or gives.
        inputs: An image (path, URL, ``PIL.Image``, array in BGR), or several of them as a list, generator or
            directory; for retrieval also a text.
        question: About the image; makes it visual question answering. One for all images, or a list.
        prototype (Sequence, optional): The gallery of a retrieval model: texts, when ``inputs`` is an image, or
            images, when it is a text.
        topk (int): Retrieval results that are returned.
        **kwargs: Arguments of :func:`get_model` (``pretrained``, ``device``) go there, all others to the call of the
            inferencer (``prompt``, ``num_captions``, ``show_dir``, ``num_beams`` ...).

    Returns:
        dict | list: ``{'pred_caption'}``, ``{'question', 'pred_answer'}``, or the ``topk`` best as a list of
        ``{'match_score', 'sample_idx', 'text'}`` (of images: ``'img_path'``). Several images give a list.

    Raises:
        ConfigError: The arguments do not fit the model.
        DataError: An image cannot be read.

    Example:
        >>> inference_model('work_dirs/quickstart/stage2', 'data/shapes/test/000000004501.jpg')
        {'pred_caption': 'a small red circle and a large blue star'}
    """
    from mmblip2.models import Blip2Representation
    taken = {name for name, item in inspect.signature(get_model).parameters.items()
             if name != 'model' and item.kind is not item.VAR_KEYWORD}
    model = build_model(model, **{name: kwargs.pop(name) for name in list(kwargs) if name in taken})
    if isinstance(model, Blip2Representation):
        return _search(model, inputs, question, prototype, topk, kwargs)
    if prototype is not None or topk != 1:
        raise ConfigError(f'{"prototype" if prototype is not None else "topk"} is for retrieval, and this '
                          f'{type(model).__name__} writes text: leave it out, or take a retrieval model')
    if question is None:
        captions = ImageCaptionInferencer(model)
        if captions.prompt_step('VQAPrompt') is not None and kwargs.get('prompt') is None:
            raise ConfigError('this model answers questions: give question="...", or prompt="..." for a caption')
        results = captions(inputs, **kwargs)
    else:
        results = VisualQuestionAnsweringInferencer(model)(inputs, question, **kwargs)
    several = is_several(inputs) or not (question is None or isinstance(question, str))
    return results if several else results[0]


@torch.no_grad()
def _search(model, inputs, question, prototype, topk, kwargs):
    """Retrieval."""
    if question is not None:
        raise ConfigError('this is a retrieval model, which answers no question: leave question out, or take a model '
                          'that writes text')
    if prototype is None:
        raise ConfigError('this is a retrieval model: give prototype=[texts] to search texts for an image, or '
                          'prototype=[images] to search images for a text')
    if kwargs:
        raise ConfigError(f'{", ".join(kwargs)}: retrieval has no such argument')
    from mmblip2.engine.autocast import autocast_context
    wrapper = model._config.get('optim_wrapper') or {}
    with autocast_context(wrapper.get('dtype'), model.data_preprocessor.mean.device.type):
        return _retrieve(model, inputs, list(prototype), topk)


def _retrieve(model, query, prototype, topk) -> list[dict]:
    """Rank the gallery by ITM logit + ITC cosine."""
    from mmblip2.models.losses import query_text_similarity
    base = BaseInferencer(model)
    if not prototype or isinstance(query, (list, tuple)):
        raise ConfigError('retrieval takes one image or one text, and a prototype with at least one entry')
    if is_image(query) and not any(map(is_image, prototype)):
        images, texts = [query], prototype
    elif not is_image(query) and all(map(is_image, prototype)):
        images, texts = prototype, [query]
    else:
        raise ConfigError('retrieval takes an image and texts, or a text and images; the query is '
                          f'{"an image" if is_image(query) else "a text"} and so is some of the prototype')
    encoded = model.encode_image(base.prepare(base.image_rows(images))['images'])
    text = model.tokenize(list(texts), encoded.patches.device)
    scores = query_text_similarity(model.image_features(encoded), model.text_features(text))  # (I, N)
    for i in range(len(images)):
        scores[i] += model.score_pairs(model.qformer.project_image(encoded.patches[i:i + 1]), text)
    best = scores.flatten().float().topk(min(topk, scores.numel()))
    name, gallery = ('text', texts) if images == [query] else ('img_path', images)
    return [{'match_score': score, 'sample_idx': index, name: gallery[index]}
            for score, index in zip(best.values.tolist(), best.indices.tolist())]
