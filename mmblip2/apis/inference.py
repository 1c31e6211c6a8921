"""Use a trained model on images of one's own, with the result keys of mmpretrain."""
import inspect
from collections.abc import Sequence
from pathlib import Path

import torch

from mmblip2.errors import ConfigError

from .base import BaseInferencer, build_model
from .caption import ImageCaptionInferencer
from .images import is_image, is_several
from .trust import config_inside
from .vqa import VisualQuestionAnsweringInferencer


def get_model(model, pretrained: str | None = None, device: str | None = None):
    """Build a model for inference.

    Args:
        model (str | Path | Config): A checkpoint of ours (its config is inside), a work directory (its newest
            checkpoint), or a config: a file, or the name of one that comes with the package.
        pretrained (str, optional): With a config: the checkpoint, or work directory, to load.
        device (str, optional): Default: the GPU if there is one, otherwise the CPU.

    Returns:
        nn.Module: In eval mode, with the config it was built from as ``_config``.

    Raises:
        ConfigError: A config without ``pretrained``, or no such config.
        CheckpointError: The checkpoint does not fit, a frozen part is missing or another one, or the config inside
            names what is not registered (a file may not choose what is run).
    """
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from mmblip2.checkpoints import io
    from mmblip2.registry import MODELS
    from mmblip2.utils.config_check import load_config
    from mmblip2.utils.paths import find_config
    checkpoint = None
    given_path = isinstance(model, (str, Path))
    if given_path and Path(model).suffix not in ('.py', '.pth', '.safetensors') and not Path(model).exists():
        model = find_config(model, 'checkpoint, work directory or config')
    if given_path and Path(model).suffix != '.py':
        if pretrained is not None:
            raise ConfigError(f'{model} is a checkpoint already: leave pretrained out, or give a config file first')
        pretrained = str(model)
        checkpoint = io.read_checkpoint(model)
        cfg = config_inside(checkpoint['meta'], model)
    else:
        cfg = model if isinstance(model, Config) else load_config(model)
        if pretrained is None:
            raise ConfigError(f'{model} is a config: give pretrained=CHECKPOINT, or no weights would be loaded')
    with DefaultScope.overwrite_default_scope('mmblip2'):
        built = MODELS.build(cfg.model)
    io.load_strict(built, checkpoint or io.read_checkpoint(pretrained), pretrained).log_notes()
    built._config = cfg
    return built.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')).eval()


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
