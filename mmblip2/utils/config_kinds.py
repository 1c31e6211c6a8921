"""What kind of value stands where in a config. ``config_check`` knows names, types and arguments."""
import inspect
from typing import Any

SECTIONS = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg', 'test_cfg',
            'optim_wrapper', 'default_hooks', 'auto_scale_lr', 'custom_imports', 'env_cfg', 'randomness', 'visualizer',
            'log_processor', 'model_wrapper_cfg', 'data_preprocessor')
# Keys of dicts without a type.
KEYS = {
    'randomness': ('seed', 'diff_rank_seed', 'deterministic'),
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    'env_cfg.mp_cfg': ('mp_start_method', 'opencv_num_threads'),
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'custom_imports': ('imports', 'allow_failed_imports'),
}
# Whole numbers, with the smallest of each.
COUNTS = {
    'train_cfg.max_iters': 1, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1,
    'optim_wrapper.accumulative_counts': 1, 'randomness.seed': 0, 'default_hooks.logger.interval': 1,
    **{f'{split}_dataloader.batch_size': 1 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
}
SWITCHES = ('find_unused_parameters', 'randomness.deterministic', 'randomness.diff_rank_seed', 'auto_scale_lr.enable')
LOG_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')
# Top-level keys of mmcv 1, and where these things are now.
OLD = {'optimizer_config': 'optim_wrapper', 'lr_config': 'param_scheduler',
       'checkpoint_config': 'default_hooks.checkpoint', 'log_config': 'default_hooks.logger',
       'evaluation': 'val_evaluator', 'total_epochs': 'train_cfg.max_epochs', 'dist_params': 'env_cfg.dist_cfg',
       'resume_from': 'resume'}
# Keys that belong below another one. Where there is a value, the key may be a variable of the config file.
BELOW = {'seed': 'randomness.seed', 'deterministic': 'randomness.deterministic', 'optimizer': 'optim_wrapper.optimizer',
         'paramwise_cfg': 'optim_wrapper.paramwise_cfg', 'clip_grad': 'optim_wrapper.clip_grad',
         'accumulative_counts': 'optim_wrapper.accumulative_counts', 'save_best': 'default_hooks.checkpoint.save_best',
         'max_keep_ckpts': 'default_hooks.checkpoint.max_keep_ckpts'}


def value_at(cfg, place):
    """The value at a path with dots, None where there is none."""
    for name in place.split('.'):
        cfg = cfg.get(name) if hasattr(cfg, 'get') else None
    return cfg


def wrong_kinds(cfg):
    """Values of another kind than the Runner takes.

    Args:
        cfg (Config): The whole config.

    Returns:
        list[tuple[str, str]]: Path and problem of each.
    """
    found = [(name, f'expected a dict, got {cfg[name]!r}') for name in SECTIONS
             if cfg.get(name) is not None and not isinstance(cfg[name], dict)]
    for place, least in COUNTS.items():
        value = value_at(cfg, place)
        if value is not None and (isinstance(value, (bool, str)) or value != _whole(value) or value < least):
            found.append((place, f'expected a whole number from {least} on, got {value!r}'))
    for place in SWITCHES:
        value = value_at(cfg, place)
        if value is not None and not isinstance(value, (bool, int)):
            found.append((place, f'expected True or False, got {value!r}'))
    level = cfg.get('log_level')
    if level is not None and level not in LOG_LEVELS:
        found.append(('log_level', f'expected one of {", ".join(LOG_LEVELS)}, got {level!r}'))
    for name, place in {**OLD, **BELOW}.items():
        if cfg.get(name) is not None and (name in OLD or value_at(cfg, place) is None):
            found.append((name, f'nothing reads this key; did you mean {place!r}?'))
    return found


def _whole(value):
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def wrong_values(kind, given):
    """Text where a class takes a number, and other values where it takes True or False.

    Args:
        kind (Callable): A class or function of ours, of mmengine or of torch; nothing is said of others.
        given (dict): Arguments.

    Returns:
        dict[str, str]: Problems by argument.
    """
    if getattr(kind, '__module__', '').split('.')[0] not in ('mmblip2', 'mmengine', 'torch'):
        return {}
    problems = {}
    for name, parameter in parameters_of(kind).items():
        value, default = given.get(name), parameter.default
        numeric = type(default) in (int, float) or parameter.annotation in (int, float, 'int', 'float')
        if numeric and isinstance(value, str):
            problems[name] = f'expected a number, got the text {value!r}'
        elif type(default) is bool and not isinstance(value, (bool, int, type(None))):
            problems[name] = f'expected True or False, got {value!r}'
    return problems


def parameters_of(kind):
    """What a class or a function takes, by name; of a class its own arguments before those of its base classes."""
    if not inspect.isclass(kind):
        return dict(inspect.signature(kind).parameters)
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__[:-1]:
        start: Any = vars(base).get('__init__')
        for name, parameter in inspect.signature(start).parameters.items() if start else ():
            found.setdefault(name, parameter)
    return found


def clip_grad_problem(value):
    """What is wrong with ``optim_wrapper.clip_grad``, or None."""
    import torch
    if not isinstance(value, dict) or not value:
        return f'expected dict(max_norm=1.), got {value!r}'
    kinds: dict[str, Any] = dict(norm=torch.nn.utils.clip_grad_norm_, value=torch.nn.utils.clip_grad_value_)
    function = kinds.get(value.get('type', 'norm'))
    if function is None:
        return f"type is {value['type']!r}, expected 'norm' or 'value'"
    known = [name for name in inspect.signature(function).parameters if name != 'parameters']
    unknown = [key for key in value if key not in (*known, 'type')]
    text = [key for key in ('max_norm', 'norm_type', 'clip_value') if isinstance(value.get(key), str)]
    if unknown:
        return f'unknown {", ".join(unknown)}; known are {", ".join(known)}'
    return f'{text[0]}: expected a number, got the text {value[text[0]]!r}' if text else None
