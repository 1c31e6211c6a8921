"""Models by name: which there are, and a built one with its weights, ready for use."""
import copy
import difflib
import functools
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmblip2.errors import CheckpointError, ConfigError, first_lines

from .trust import config_inside

_DTYPES = ('float16', 'bfloat16', 'float32')
_FILES = ('.pth', '.pt', '.safetensors', '.bin')
_MAPS = ('auto', 'balanced', 'balanced_low_0', 'sequential')


@functools.cache
def model_index() -> Mapping[str, dict]:
    """The entries of the metafiles that ``model-index.yml`` imports, by name in lower case."""
    from mmengine.fileio import load

    from mmblip2.utils.paths import resource_root
    root, index = resource_root(), {}
    for file in load(str(root / 'model-index.yml'))['Import']:
        for entry in load(str(root / file))['Models']:
            index[entry['Name'].lower()] = entry
    return index


def tasks_of(entry: Mapping) -> list[str]:
    """The tasks of an entry of the index, in the order of its results, each once."""
    return list(dict.fromkeys(result['Task'] for result in entry.get('Results') or ()))


def list_models(pattern: str | None = None, exclude_patterns: Sequence[str] | str | None = None,
                task: str | None = None) -> list[str]:
    """Names of models, as mmpretrain's ``list_models``.

    Args:
        pattern: With wildcards; what follows it does not matter: 'blip2-opt' is 'blip2-opt*'. None: all.
        exclude_patterns: Of names to leave out, in the same way.
        task: Only models with a published result of this task, 'Image Caption', 'Visual Question Answering',
            'Image-To-Text Retrieval', 'Text-To-Image Retrieval' or 'NLVR'; 'null': only models without any.

    Returns:
        list[str]: Sorted, in lower case.

    Example:
        >>> list_models('blip2*', task='Image-To-Text Retrieval')[:2]
        ['blip2-itm-vit-g-coco', 'blip2_3rdparty_retrieval']
    """
    excluded = [exclude_patterns] if isinstance(exclude_patterns, str) else exclude_patterns or ()
    names = []
    for name, entry in model_index().items():
        tasks = tasks_of(entry)
        if (fnmatch(name, f'{pattern or ""}*'.lower())
                and not any(fnmatch(name, f'{excluding}*'.lower()) for excluding in excluded)
                and (task is None or (task in tasks if task != 'null' else not tasks))):
            names.append(name)
    return sorted(names)


def get_model(model, pretrained: bool | str | Path | None = True, device: str | torch.device | None = None,
              dtype: str | torch.dtype | None = None, device_map: str | dict | None = None, **settings) -> nn.Module:
    """Build a model for inference, with its weights.

    ``dtype`` is the type of computation, by autocast in the inferencers and in the vision encoder, and of what is
    large: the weights of the language model and of the vision encoder's linear layers and convolutions. Norms,
    Q-Former or MED, projections and heads stay in float32, which is what makes half precision safe; so do vision
    encoders of other packages. A T5 is refused in float16, in which it overflows.

    Args:
        model (str | Path | Config): A name of :func:`list_models`; a config, its file, or the name of one that comes
            with the package; a checkpoint of ours (its config is inside) or a work directory (its newest one); the
            folder of a Hugging Face BLIP, BLIP-2 or InstructBLIP, or its name on the hub. Checkpoints may be URLs.
        pretrained: True: the weights that belong to the name, looked for as
            :func:`mmblip2.checkpoints.sources.locate` says. A path, URL or name on the hub: these. False: random
            weights; of a language model only the tokenizer is read. A config has no weights of its own.
        device: Default: the GPU if there is one, otherwise the CPU.
        dtype: 'float16', 'bfloat16', 'float32' or one of torch's; 'auto': bfloat16 where the hardware multiplies it.
            Default: what the config says.
        device_map: Where the parts of the language model go: 'auto', 'balanced', 'balanced_low_0', 'sequential', or
            {name of a part: device}, with the names of the transformers model. Needs accelerate. Everything else
            goes to ``device``.
        **settings: Of the config's ``model``; they replace its own, nested ones one by one:
            ``generation=dict(num_beams=1)``.

    Returns:
        nn.Module: In eval mode, with the config it was built from as ``_config`` and the entry of the index, or None,
        as ``_metainfo``.

    Raises:
        ConfigError: No such model (says which names are close), a config without ``pretrained``, a setting that the
            model does not have, a type or device that does not work.
        CheckpointError: The weights are not found (says where they were looked for and where to put them) or do not
            fit, a frozen part is missing or another one, or the config inside names what is not registered (a file
            may not choose what is run).

    Example:
        >>> model = get_model('blip2-opt2.7b_3rdparty-zeroshot_caption', dtype='float16', device='cuda')
    """
    from mmblip2.checkpoints import io
    name = _dtype_name(dtype)
    if isinstance(device_map, str) and device_map not in _MAPS:
        raise ConfigError(f'device_map {device_map!r} is none of {", ".join(_MAPS)}: for one device use device=')
    if device_map is not None and importlib.util.find_spec('accelerate') is None:
        raise ConfigError('device_map needs the package accelerate: pip install accelerate')
    cfg, source, entry = _find(model, True if pretrained is None else pretrained)
    checkpoint = None if source is None else io.read_checkpoint(source)
    if cfg is None:
        cfg = _config_of(checkpoint, source)
    cfg = copy.deepcopy(cfg)
    _replace(cfg, settings)
    _set_dtype(cfg, name, checkpoint)
    built = _build(cfg, settings, checkpoint, source)
    if name is not None:
        _cast(built, getattr(torch, name))
    built._config, built._metainfo = cfg, entry
    return _place(built, device or ('cuda' if torch.cuda.is_available() else 'cpu'), device_map).eval()


# ------------------------------------------------------------------------------------------ what was meant

def _find(model, pretrained) -> tuple[Any, Any, dict | None]:
    """(config or None, path of the weights or None, entry of the index or None)."""
    from mmengine.config import Config

    from mmblip2.checkpoints.huggingface_config import config_from_folder, is_huggingface_folder
    from mmblip2.checkpoints.sources import is_hub_name, locate
    from mmblip2.utils.paths import resource_root, shipped_config
    from mmblip2.utils.run_config import load_config
    if not isinstance(model, (str, Path, Config)):
        raise ConfigError(f'model is a {type(model).__name__}: expected a name, a path or a Config')
    if isinstance(model, Config):
        return model, _weights_of_config('this', model, pretrained), None
    text, path = str(model), Path(model).expanduser()
    entry = None if path.exists() else _entry(text)
    if entry is not None:
        source = _weights_of_entry(entry, pretrained)
        folder = source if pretrained is True and source is not None and is_huggingface_folder(source) else None
        cfg = config_from_folder(folder) if folder else load_config(resource_root() / entry['Config'])
        return cfg, source, entry
    weights = None
    if path.exists():
        weights = None if path.suffix == '.py' else path
    elif path.suffix != '.py' and shipped_config(text) is None:
        if '://' in text or path.suffix in _FILES or (is_hub_name(text) and not _is_config_folder(text)):
            weights = locate(text)
        else:
            _refuse_unknown(text)
    if weights is None:
        cfg = load_config(text)
        return cfg, _weights_of_config(text, cfg, pretrained), None
    if pretrained is not True:
        raise ConfigError(f'{text} is a checkpoint already: leave pretrained out, or give a config file first')
    return config_from_folder(weights) if is_huggingface_folder(weights) else None, weights, None


def _entry(text: str) -> dict | None:
    """The entry of the index with this name; or, for a model on the hub, with these weights."""
    index = model_index()
    return index.get(text.lower()) or next(
        (entry for entry in index.values()
         if (entry.get('Weights') or '').lower() == f'https://huggingface.co/{text}'.lower()), None)


def _weights_of_entry(entry, pretrained):
    from mmblip2.checkpoints.sources import locate
    if pretrained is False:
        return None
    name = entry['Name']
    if pretrained is not True:
        return locate(pretrained, f'weights for {name}')
    if not entry.get('Weights'):
        raise ConfigError(f'{name} has no published weights: give pretrained=CHECKPOINT, what the training of '
                          f'{entry["Config"]} wrote for example, or pretrained=False for random weights')
    return locate(entry['Weights'], f'weights of {name}')


def _weights_of_config(text, cfg, pretrained):
    from mmblip2.checkpoints.sources import locate
    if pretrained is False:
        return None
    if pretrained is not True:
        return locate(pretrained)
    file = Path(cfg.filename or '').as_posix()
    names = [entry['Name'] for entry in model_index().values()
             if entry.get('Weights') and file.endswith(entry['Config'])]
    known = f', one of the names whose weights are known ({", ".join(names)})' if names else ''
    raise ConfigError(f'{text} is a config: give pretrained=CHECKPOINT{known}, or no weights would be loaded; '
                      'pretrained=False if that is what you want')


def _config_of(checkpoint, path):
    """The config inside; of a file without one, the names it is known by or its folder are said."""
    from mmblip2.checkpoints.huggingface_config import is_huggingface_folder
    if not checkpoint['meta'].get('config'):
        names = [entry['Name'] for entry in model_index().values()
                 if (entry.get('Weights') or '').rpartition('/')[2] == Path(path).name]
        if names:
            raise CheckpointError(f'{path} has no config inside, and its name is that of the weights of '
                                  f'{" and ".join(names)}: call get_model({names[0]!r}, pretrained={str(path)!r})')
        if is_huggingface_folder(folder := Path(path).parent):
            raise CheckpointError(f'{path} has no config inside, but its folder has: call get_model({str(folder)!r})')
    return config_inside(checkpoint['meta'], path)


def _refuse_unknown(text):
    """Say that nothing is called so, and what is close."""
    from mmblip2.utils.paths import find_config
    try:
        find_config(text, 'model, checkpoint, work directory or config')
    except ConfigError as error:
        near = difflib.get_close_matches(text.lower(), model_index(), 3, 0.6)
        hint = f'close names of models: {", ".join(near)}' if near else 'list_models() has the names of models'
        raise ConfigError(f'{error}; {hint}') from None


def _is_config_folder(text) -> bool:
    from mmblip2.utils.paths import resource_root
    return (resource_root() / 'configs' / text.split('/')[0]).is_dir()


# ----------------------------------------------------------------------------------------- what is built

def _replace(cfg, settings):
    """Put settings of the caller into the config's model.

    Raises:
        ConfigError: The model has no such setting.
    """
    from mmblip2.models.hub import suggestion
    from mmblip2.registry import MODELS
    kind = MODELS.get(cfg.model.get('type'))
    known = set(inspect.signature(kind).parameters) if kind is not None else set()
    for key in settings:
        if key not in known | {'type'}:
            raise ConfigError(f'get_model: neither an argument nor a setting of {cfg.model.get("type")} is called '
                              f'{key!r}{suggestion(key, [*known, *inspect.signature(get_model).parameters])}')
    cfg.merge_from_dict(dict(model=settings))


def _set_dtype(cfg, name, checkpoint):
    """Say in the config in which type the model computes and its language model is read.

    Raises:
        ConfigError: A T5 in float16.
    """
    from mmblip2.models import Seq2SeqLM
    from mmblip2.registry import MODELS
    language_model = cfg.model.get('language_model')
    if name is None:
        return
    if language_model is not None:
        kind = MODELS.get(language_model.get('type'))
        if name == 'float16' and isinstance(kind, type) and issubclass(kind, Seq2SeqLM):
            raise ConfigError("dtype is 'float16', in which T5, the language model of this one, overflows: use "
                              "dtype='bfloat16' or 'float32'")
        # a checkpoint of ours knows the language model it was trained beside by its bytes: cast afterwards
        if 'language_model' not in ((checkpoint or {}).get('meta') or {}).get('frozen', {}):
            language_model['dtype'] = name
    cfg.optim_wrapper = dict(cfg.get('optim_wrapper') or {}, dtype=name)  # inferencers take their autocast from here


def _build(cfg, settings, checkpoint, source):
    """The model of a config, filled from a checkpoint or, without one, random; ``cfg.model`` is then what was built."""
    from mmblip2.checkpoints.parts import build_filled
    from mmblip2.registry import MODELS, our_scope
    try:
        if checkpoint is not None:
            built, _, cfg.model = build_filled(cfg.model, dict(checkpoint=source, content=checkpoint))
            return built
        _without_weights(cfg.model)
        with our_scope():
            return MODELS.build(cfg.model)
    except TypeError as error:
        if not settings:
            raise
        raise ConfigError(f'get_model: the model cannot be built with {settings}: {first_lines(error)}') from error


def _without_weights(model):
    """Take the files of weights out of a model's config."""
    from mmblip2.registry import MODELS
    from mmblip2.utils.meta import architecture
    for part in filter(lambda part: isinstance(part, dict), model.values()):
        for key in {'weights', 'bert'} & part.keys():
            part[key] = None
        if isinstance(part.get('model'), str):
            folder = part['model']
            part['config'] = architecture(part)
            part['model'] = None
            if 'tokenizer' in inspect.signature(MODELS.get(part['type'])).parameters:
                part.setdefault('tokenizer', folder)
    if 'allow_random' in inspect.signature(MODELS.get(model['type'])).parameters:
        model['allow_random'] = True


def _dtype_name(dtype) -> str | None:
    from mmblip2.engine.autocast import resolve_dtype
    if dtype is None:
        return None
    name = str(dtype).removeprefix('torch.')
    if name == 'auto':
        name = str(resolve_dtype('auto') or torch.float32).removeprefix('torch.')
    if name not in _DTYPES:
        raise ConfigError(f'dtype {dtype!r} is none of {", ".join(_DTYPES)}, auto')
    return name


def _cast(model, dtype):
    """Cast what is large and safe; see :func:`get_model`."""
    from mmblip2.models import VisionTransformer
    if isinstance(model.vision, VisionTransformer):
        for module in model.vision.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(dtype)
        model.vision_dtype = dtype if dtype != torch.float32 else None
    if hasattr(model, 'language_model'):
        model.language_model.to(dtype)


def _place(model, device, device_map):
    try:
        if device_map is None or not hasattr(model, 'language_model'):
            return model.to(device)
        for name, child in model.named_children():
            if name != 'language_model':
                child.to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without it, no such device, out of memory
        raise ConfigError(f'the model cannot go to device {device!r}: {first_lines(error)}') from error
    _dispatch(model.language_model, device_map)
    return model


def _dispatch(language_model, device_map):
    """Spread a language model over devices."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory
    model = language_model.model
    try:
        if isinstance(device_map, str):
            whole = dict(dtype=next(model.parameters()).dtype,
                         no_split_module_classes=sorted(model._no_split_modules or ()))
            memory = None if device_map == 'sequential' else get_balanced_memory(
                model, low_zero=device_map == 'balanced_low_0', **whole)
            device_map = infer_auto_device_map(model, max_memory=memory, **whole)
        dispatch_model(model, device_map=device_map, force_hooks=True)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f'the language model cannot be spread by device_map={device_map!r}: '
                          f'{first_lines(error)}') from error
