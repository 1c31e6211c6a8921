"""Parts of a model that a checkpoint brings need no files of their own.

A folder of transformers has the vision encoder, the language model and the tokenizers; a file of mmpretrain, or of a
fine-tuning in LAVIS, the vision encoder. The config of the model is changed accordingly before it is built.
"""
import contextlib
import contextvars
import copy
import inspect
from pathlib import Path

from torch import nn

from .huggingface_config import has_tokenizer
from .io import FORMAT, chosen, folder_config, load_entries, load_strict, read_checkpoint

_DRAWS = ('uniform_', 'normal_', 'trunc_normal_', 'kaiming_uniform_', 'kaiming_normal_', 'xavier_uniform_',
          'xavier_normal_')
_draws = contextvars.ContextVar('draws', default=True)


def build_filled(model_cfg, source):
    """Build a model for inference, fill it from a checkpoint and log the report.

    Args:
        model_cfg (dict): The ``model`` of a config.
        source (str | Path | dict): What :func:`mmblip2.checkpoints.io.read_checkpoint` takes; or with its result as
            'content', dict(checkpoint=..., content=...).

    Returns:
        tuple: The model, the :class:`LoadReport`, and the ``model_cfg`` that it was built from.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
        ConfigError: The model cannot be built.
    """
    from ..registry import MODELS, our_scope
    entry = source if isinstance(source, dict) else dict(checkpoint=source)
    if 'content' not in entry:
        entry = dict(entry, content=read_checkpoint(entry['checkpoint']))
    model_cfg, notes = parts_from(model_cfg, entry)
    with our_scope(), without_drawing(model_cfg):
        model = MODELS.build(model_cfg)
    report = load_strict(model, entry['content'], entry['checkpoint'])
    report.notes = notes + report.notes
    report.log()
    return model, report, model_cfg


def parts_from(model_cfg, load_from):
    """The config of a model whose parts come from the checkpoints that bring them.

    - The vision encoder: frozen, its ``weights`` are the file; trained, it needs none, as the file fills it.
    - The language model of a folder: ``model`` is the folder, with the architecture and vocabulary that it has there;
      of another file: ``weights`` is the file. Its tokenizer, and that of the Q-Former, are those of the folder where
      it has them.
    - ``vision_norm_eps``, which belongs to the weights, is that of the project, unless the config says it.

    Args:
        model_cfg (dict): The ``model`` of a config; not changed.
        load_from (str | dict | list[dict]): See :func:`mmblip2.checkpoints.io.load_partial`; 'content' of an entry
            is used instead of reading 'checkpoint'. Later entries win.

    Returns:
        tuple: The new config, and notes for the reader, one a change.

    Raises:
        CheckpointError: A checkpoint cannot be read.
    """
    from ..models.algorithms.base import VisionLanguageModel
    kind = _kind(model_cfg)
    if kind is None or not issubclass(kind, VisionLanguageModel):
        return model_cfg, []
    cfg = copy.deepcopy(model_cfg)
    frozen = cfg.get('frozen', inspect.signature(kind).parameters['frozen'].default)
    notes: list[str] = []
    for entry in load_entries(load_from):
        checkpoint = entry.get('content') or read_checkpoint(entry['checkpoint'])
        keys = chosen(checkpoint['state_dict'], entry)
        _take_vision(cfg, checkpoint, keys, 'vision' in frozen, 'include' in entry or 'exclude' in entry, notes)
        if checkpoint['format'] in (FORMAT, ''):
            continue
        _take_language_model(cfg, checkpoint, keys, notes)
        _take_tokenizer(cfg, checkpoint, notes)
        eps, setting = norm_eps(checkpoint), inspect.signature(kind).parameters.get('vision_norm_eps')
        if setting is not None and 'vision_norm.weight' in keys and cfg.get('vision_norm_eps') is None:
            if eps != setting.default:
                notes.append(f'vision_norm_eps={eps:g}, as the weights were made with')
            cfg['vision_norm_eps'] = eps
    return cfg, notes


@contextlib.contextmanager
def without_drawing(model_cfg):
    """Fill new parameters with zeros instead of random numbers, where a checkpoint fills all of them afterwards.

    Billions of random numbers take minutes. Frozen parts that are random on purpose (``allow_random``) are drawn.

    Args:
        model_cfg (dict): Of the model that is built.
    """
    from ..models.algorithms.base import VisionLanguageModel
    kind = _kind(model_cfg)
    if kind is None or not issubclass(kind, VisionLanguageModel) or model_cfg.get('allow_random'):
        yield
        return
    kept = {name: getattr(nn.init, name) for name in _DRAWS}
    for name in _DRAWS:
        setattr(nn.init, name, lambda tensor, *args, **kwargs: nn.init.zeros_(tensor))
    token = _draws.set(False)
    try:
        yield
    finally:
        _draws.reset(token)
        for name, function in kept.items():
            setattr(nn.init, name, function)


def draws():
    """False inside :func:`without_drawing`."""
    return _draws.get()


def _kind(model_cfg):
    """The class of a model's config, or None."""
    import mmblip2.models  # noqa: F401

    from ..registry import MODELS
    name = model_cfg.get('type') if isinstance(model_cfg, dict) else None
    kind = MODELS.get(name) if isinstance(name, str) else name
    return kind if isinstance(kind, type) else None


def _take_vision(cfg, checkpoint, keys, frozen, partly, notes):
    """The vision encoder from ``checkpoint``, if it has one."""
    vision = cfg.get('vision')
    if not isinstance(vision, dict) or not any(key.startswith('vision.') for key in keys):
        return
    if str(vision.get('type')).split('.')[-1] != 'VisionTransformer':
        return
    if not frozen:
        if not partly and vision.get('weights') is not None:
            notes.append(f'vision: {vision["weights"]} is not needed, the checkpoint has the vision encoder')
            vision['weights'] = None
    elif checkpoint['format'] != FORMAT and vision.get('weights') != checkpoint['path']:
        was = vision.get('weights')
        vision['weights'] = checkpoint['path']
        notes.append('vision: frozen, with the weights of the checkpoint' + (f' instead of {was}' if was else ''))


def _take_language_model(cfg, checkpoint, keys, notes):
    """The language model from ``checkpoint``, if it has one."""
    language, path = cfg.get('language_model'), checkpoint['path']
    inside = {key: value for key, value in keys.items() if key.startswith('language_model.')}
    if not isinstance(language, dict) or not inside or language.get('weights') == path:
        return
    was = language.get('model')
    tokenizer = language.get('tokenizer') or was
    said = language.get('config') or {}
    if folder_config(path).get('text_config'):
        language['model'] = path
        language['config'] = dict(model_type=said['model_type']) if 'model_type' in said else None
        language.pop('weights', None)
        language['tokenizer'] = path if has_tokenizer(path) else tokenizer
    else:
        from ..utils.meta import architecture
        words = [value.size(0) for key, value in inside.items() if key.endswith(('.embed_tokens.weight',
                                                                                 '.shared.weight'))]
        language['config'] = dict(architecture(language), **(dict(vocab_size=words[0]) if words else {}))
        language['weights'], language['tokenizer'] = path, tokenizer
        language.pop('model', None)
    notes.append('language_model: that of the checkpoint' + (f' instead of {was}' if was else ''))


def _take_tokenizer(cfg, checkpoint, notes):
    """The Q-Former's tokenizer from a folder: that of InstructBLIP, or that of retrieval."""
    tokenizer, path = cfg.get('tokenizer'), Path(checkpoint['path'])
    if not isinstance(tokenizer, dict) or str(tokenizer.get('type')).split('.')[-1] != 'BertTokenizer':
        return
    folders = (path / 'qformer_tokenizer',) if 'language_model' in cfg else (path,)
    for folder in folders:
        if has_tokenizer(folder) and str(folder) != tokenizer.get('path'):
            notes.append(f'tokenizer: {folder} instead of {tokenizer.get("path")}')
            tokenizer['path'] = str(folder)


def norm_eps(checkpoint):
    """Epsilon of the norm after the vision encoder: what the folder says (one that was exported here, of that norm
    alone), or the project's."""
    config = folder_config(checkpoint['path'])
    for settings, key in ((config.get('mmblip2'), 'vision_norm_eps'), (config.get('vision_config'), 'layer_norm_eps')):
        if (settings or {}).get(key) is not None:
            return float(settings[key])
    return checkpoint['layout'].vision_norm_eps
