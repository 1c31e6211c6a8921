"""Use a trained model on images of one's own, with the result keys of mmpretrain."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmblip2.errors import ConfigError, DataError

from .trust import config_inside

ImageLike = str | Path | Image.Image


def get_model(model, pretrained: str | None = None, device: str | None = None):
    """Build a model for inference.

    Args:
        model (str | Path | Config): A checkpoint of ours (its config is inside), a work directory (its newest
            checkpoint), a Hugging Face folder (see ``mmblip2.checkpoints.huggingface_config``), or a config: a file,
            or the name of one that comes with the package.
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
    from mmblip2.checkpoints.huggingface_config import config_from_folder, is_huggingface_folder
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
        cfg = config_from_folder(model) if is_huggingface_folder(model) else config_inside(checkpoint['meta'], model)
    else:
        cfg = model if isinstance(model, Config) else load_config(model)
        if pretrained is None:
            raise ConfigError(f'{model} is a config: give pretrained=CHECKPOINT, or no weights would be loaded')
    with DefaultScope.overwrite_default_scope('mmblip2'):
        built = MODELS.build(cfg.model)
    io.load_strict(built, checkpoint or io.read_checkpoint(pretrained), pretrained).log_notes()
    built._config = cfg
    return built.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')).eval()


@torch.no_grad()
def inference_model(model, inputs: ImageLike | Sequence[ImageLike], question: str | None = None,
                    prototype: Sequence | None = None, topk: int = 1, **kwargs):
    """Caption an image, answer a question about it, or retrieve.

    Args:
        model (str | Path | Config | nn.Module): What :func:`get_model` takes or gives.
        inputs: An image (path or ``PIL.Image``), or a list of images; for retrieval also a text.
        question (str, optional): About the image; makes it visual question answering.
        prototype (Sequence, optional): The gallery of a retrieval model: texts, when ``inputs`` is an image, or
            images, when it is a text.
        topk (int): Retrieval results that are returned.
        **kwargs: For :func:`get_model` (``pretrained``, ``device``).

    Returns:
        dict | list: ``{'pred_caption'}``, ``{'question', 'pred_answer'}``, or the ``topk`` best as a list of
        ``{'match_score', 'sample_idx', 'text'}`` (of images: ``'img_path'``). A list of images gives a list.

    Raises:
        ConfigError: The arguments do not fit the model.
        DataError: An image cannot be read.

    Example:
        >>> inference_model('work_dirs/quickstart/stage2', 'data/shapes/test/000000004501.jpg')
        {'pred_caption': 'a small red circle and a large blue star'}
    """
    from mmblip2.models import Blip2Representation
    if not isinstance(model, torch.nn.Module):
        model = get_model(model, **kwargs)
    elif kwargs:
        raise ConfigError(f'{", ".join(kwargs)}: only with the name of a model, this one is built already')
    from mmblip2.engine.autocast import autocast_context
    wrapper = model._config.get('optim_wrapper') or {}
    with autocast_context(wrapper.get('dtype')):
        if isinstance(model, Blip2Representation):
            if prototype is None:
                raise ConfigError('this is a retrieval model: give prototype=[texts] to search texts for an image, or '
                                  'prototype=[images] to search images for a text')
            return _retrieve(model, inputs, list(prototype), topk)
        images = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        results = _generate(model, images, question)
    return results if isinstance(inputs, (list, tuple)) else results[0]


def _prepare(model, images: Sequence[ImageLike], **fields) -> dict:
    """Images through the test pipeline of the model's config, as one preprocessed batch."""
    from mmengine.dataset import Compose, pseudo_collate
    from mmengine.registry import DefaultScope

    from mmblip2 import datasets  # noqa: F401 (registers the transforms)
    dataset = (model._config.get('test_dataloader') or model._config.get('val_dataloader') or {}).get('dataset')
    if not dataset:
        raise ConfigError('the config of this model has no test_dataloader, whose pipeline would prepare the images')
    with DefaultScope.overwrite_default_scope('mmblip2'):
        pipeline = Compose(dataset['pipeline'])
    rows = []
    for index, image in enumerate(images):
        if isinstance(image, Image.Image):
            source: dict[str, Any] = dict(image=image)
        elif isinstance(image, (str, Path)):
            source = dict(img_path=str(image))
        else:
            raise DataError(f'image {index} is a {type(image).__name__}: expected a path or a PIL.Image')
        rows.append(pipeline(dict(sample_idx=index, **source, **fields)))
    return model.data_preprocessor(pseudo_collate(rows), False)


def _generate(model, images, question) -> list[dict]:
    transforms = [step['type'] for step in model._config.test_dataloader.dataset.pipeline]
    answers = any(name.split('.')[-1] == 'VQAPrompt' for name in transforms)
    if answers != (question is not None):
        raise ConfigError('this model answers questions: give question="..."' if answers else
                          'this model writes captions: leave question out, or take a model trained for VQA')
    fields = dict(question=question) if answers else {}
    samples = model(**_prepare(model, images, **fields), mode='predict')
    if answers:
        return [dict(question=question, pred_answer=sample.pred_text) for sample in samples]
    return [dict(pred_caption=sample.pred_text) for sample in samples]


def _is_image(value) -> bool:
    return isinstance(value, (Image.Image, Path)) or (isinstance(value, str) and Path(value).suffix.lower() in
                                                      Image.registered_extensions())


def _retrieve(model, query, prototype, topk) -> list[dict]:
    """Rank the gallery by ITM logit + ITC cosine."""
    from mmblip2.models.losses import query_text_similarity
    if not prototype or isinstance(query, (list, tuple)):
        raise ConfigError('retrieval takes one image or one text, and a prototype with at least one entry')
    Image.init()
    if _is_image(query) and not any(map(_is_image, prototype)):
        images, texts = [query], prototype
    elif not _is_image(query) and all(map(_is_image, prototype)):
        images, texts = prototype, [query]
    else:
        raise ConfigError('retrieval takes an image and texts, or a text and images; the query is '
                          f'{"an image" if _is_image(query) else "a text"} and so is some of the prototype')
    encoded = model.encode_image(_prepare(model, images)['images'])
    text = model.tokenize(list(texts), encoded.patches.device)
    scores = query_text_similarity(model.image_features(encoded), model.text_features(text))  # (I, N)
    for i in range(len(images)):
        scores[i] += model.score_pairs(model.qformer.project_image(encoded.patches[i:i + 1]), text)
    best = scores.flatten().float().topk(min(topk, scores.numel()))
    name, gallery = ('text', texts) if images == [query] else ('img_path', images)
    return [{'match_score': score, 'sample_idx': index, name: gallery[index]}
            for score, index in zip(best.values.tolist(), best.indices.tolist())]
