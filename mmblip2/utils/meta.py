"""Build a model for its shapes alone: no memory (but for what ``FeatureMapEncoder`` and ``MMPretrainBackbone`` build on
the CPU first), no weights, no tokenizer files, no network."""
import inspect
import json
from pathlib import Path
from typing import Any

from ..compat import read_tokenizer
from ..errors import ConfigError

_BUILT_WITHOUT = ('weights', 'bert')  # arguments that name files; None does without
_NO_SETTINGS = ('architectures', 'dtype', 'torch_dtype', 'transformers_version')


def build_on_meta(model_cfg):
    """Build a model whose parameters are on torch's meta device: they have shapes and no values.

    Frozen parts load no weights, a tokenizer is replaced by one of the declared size (``vocab_size`` of the part that
    reads text, and ``config.vocab_size`` of the language model), and a language model is built from its ``config``
    alone. A local folder with a ``config.json`` is used where the config does not give the architecture.

    Args:
        model_cfg (dict): The ``model`` of a config; it is not changed.

    Returns:
        nn.Module: What can be counted and listed, not run.

    Raises:
        ConfigError: The architecture or the vocabulary size of a language model is said nowhere.
    """
    import torch

    from ..registry import MODELS, our_scope
    cfg = _without_files(model_cfg)
    if 'allow_random' in inspect.signature(MODELS.get(cfg['type'])).parameters:
        cfg['allow_random'] = True
    with torch.device('meta'), our_scope():
        return MODELS.build(cfg)


def _without_files(node):
    """Copy of a model config in which nothing points to a file."""
    if isinstance(node, (list, tuple)):
        return [_without_files(item) for item in node]
    if not isinstance(node, dict):
        return node
    words = next((size for _, tower in towers(node) if (size := argument(tower, 'vocab_size')) is not None), None)
    copy: dict[str, Any] = {}
    for key, value in node.items():
        if key == 'tokenizer' and isinstance(value, dict) and words is not None:
            copy[key] = dict(type='SizeOnlyTokenizer', size=words)
        elif key == 'config':  # another package's: kept as it is
            copy[key] = dict(value)
        elif key in _BUILT_WITHOUT:
            copy[key] = None
        else:
            copy[key] = _without_files(value)
    if isinstance(copy.get('model'), str) or 'config' in copy:
        copy['config'] = architecture(copy)
        copy.pop('model', None)
        if 'tokenizer' in copy or _is_language_model(copy):
            copy['tokenizer'] = dict(type='SizeOnlyTokenizer', size=_vocabulary(copy, node))
    return copy


def towers(node):
    """The parts of a model's config that grow out of a BERT: a Q-Former, a MED.

    Args:
        node (dict): The ``model`` of a config.

    Returns:
        list[tuple[str, dict]]: Name and config of each.
    """
    from ..models.layers import BertTower
    from ..registry import MODELS
    found = []
    for name, part in node.items():
        kind = MODELS.get(part['type']) if isinstance(part, dict) and isinstance(part.get('type'), str) else None
        if inspect.isclass(kind) and issubclass(kind, BertTower):
            found.append((name, part))
    return found


def argument(node, name):
    """What the part that a config builds gets for an argument: the config's value, or the default.

    Args:
        node (dict): With ``type``.
        name (str): Of the argument.

    Returns:
        Any: None where there is no such argument.
    """
    from ..registry import MODELS
    from .config_kinds import parameters_of
    known = parameters_of(MODELS.get(node['type'])).get(name)
    return node.get(name, known.default if known is not None else None)


def _is_language_model(cfg):
    from ..models.language.base import LanguageModel
    from ..registry import MODELS
    kind = MODELS.get(cfg['type'])
    return isinstance(kind, type) and issubclass(kind, LanguageModel)


def architecture(cfg):
    """Settings of a language model with their ``model_type``, as its config and the ``config.json`` of a local folder
    say them.

    Args:
        cfg (dict): With ``type``, and ``config``, ``model`` or both.

    Returns:
        dict: A new one.

    Raises:
        ConfigError: Neither says the ``model_type``.
    """
    config = dict(cfg.get('config') or {})
    folder = cfg.get('model')
    path = Path(folder or '', 'config.json')
    if folder and path.is_file():
        from transformers import AutoConfig
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
        known = AutoConfig.for_model(found['model_type']).to_dict()
        # what the file has besides the architecture, and what its type was saved in, is no setting of it
        found = {key: value for key, value in found.items() if key in known and key not in _NO_SETTINGS}
        said = json.loads(path.read_text(encoding='utf-8'))
        if 'tie_word_embeddings' in said:  # transformers 5 forgets what a T5 says of it
            found['tie_word_embeddings'] = said['tie_word_embeddings']
        config = {**found, **config}
    if 'model_type' not in config:
        raise ConfigError(f'the architecture of {cfg["type"]} {folder} is unknown without its files: {path} is not '
                          "there, and the config does not say it with config=dict(model_type='opt', ...)")
    return config


def _vocabulary(cfg, node):
    """Number of embeddings of a language model."""
    if 'vocab_size' in cfg['config']:
        return cfg['config']['vocab_size']
    folder = node.get('tokenizer')
    if isinstance(folder, str) and Path(folder, 'tokenizer.json').is_file():
        return len(read_tokenizer(folder))
    raise ConfigError(f'the vocabulary size of {cfg["type"]} is unknown: config has no vocab_size, and there is no '
                      f'tokenizer in {folder}')


def count_parameters(model):
    """Numbers of parameters, tied ones once.

    Args:
        model (nn.Module): Any.

    Returns:
        dict: ``trainable``, ``frozen``, ``total``, and ``parts``: for each direct child with parameters (and '' for the
        model's own) ``trainable`` and ``frozen``.
    """
    parts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = name.split('.')[0] if '.' in name else ''
        counts = parts.setdefault(part, dict(trainable=0, frozen=0))
        counts['trainable' if parameter.requires_grad else 'frozen'] += parameter.numel()
    trainable = sum(part['trainable'] for part in parts.values())
    frozen = sum(part['frozen'] for part in parts.values())
    return dict(trainable=trainable, frozen=frozen, total=trainable + frozen, parts=parts)
