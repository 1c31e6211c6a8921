"""What tools do with a config before it is built: read it, find its parts, set what the command line says."""
import inspect
import traceback
from pathlib import Path

from ..compat import quiet_config_reader, read_shipped_bases
from ..errors import ConfigError
from .cli import apply_cfg_options
from .paths import find_config

TOP_LEVEL = (
    'model', 'data_preprocessor', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg',
    'val_cfg', 'test_cfg', 'val_evaluator', 'test_evaluator', 'optim_wrapper', 'param_scheduler',
    'auto_scale_lr', 'default_hooks', 'custom_hooks', 'custom_imports', 'default_scope', 'env_cfg',
    'experiment_name', 'launcher', 'load_from', 'log_level', 'log_processor', 'randomness', 'resume',
    'visualizer', 'vis_backends', 'work_dir', 'compile', 'find_unused_parameters', 'model_wrapper_cfg',
    'activation_checkpointing', 'fsdp')


def load_config(path, options=()):
    """Read a config file and apply ``--cfg-options``.

    Args:
        path (str | Path): A file, or the name of a config that comes with the package
            (:func:`mmblip2.utils.paths.find_config`).
        options (Sequence[str]): ``key=value`` each.

    Returns:
        Config: ``filename`` is the file that was found.

    Raises:
        ConfigError: No such file, an error in it, or a bad option.
    """
    from mmengine.config import Config
    quiet_config_reader()
    read_shipped_bases()
    path = find_config(path)
    try:
        cfg = Config.fromfile(str(path))
    except Exception as error:  # a config is a program
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = '' if 'mmengine' in Path(last.filename).parts else f' ({last.filename}, line {last.lineno})'
        raise ConfigError(f'{path} cannot be read: {type(error).__name__}: {error}{where}') from error
    apply_cfg_options(cfg, options, TOP_LEVEL)
    return cfg


def require(cfg, keys):
    """Raise a ConfigError that lists the keys that the config lacks."""
    missing = [key for key in keys if cfg.get(key) is None]
    if missing:
        raise ConfigError(f'{cfg.filename or "the config"} has no {", ".join(missing)}, needed for this tool')


def load_run_config(args):
    """The config that the arguments of a tool name, changed by its ``cfg_options``, ``launcher`` and ``work_dir``."""
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = work_dir(cfg, args.work_dir)
    return cfg


def work_dir(cfg, given):
    """Command line, then config, then ./work_dirs/<config name>."""
    return str(given or cfg.get('work_dir') or Path('work_dirs', Path(cfg.filename).stem))


def use_amp(cfg):
    """Switch to ``AutocastOptimWrapper`` unless the config has one already."""
    require(cfg, ('optim_wrapper',))
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'AutocastOptimWrapper'):
        raise ConfigError(f'--amp replaces OptimWrapper, but optim_wrapper.type is {kind}: leave --amp out')
    cfg.optim_wrapper.type = 'AutocastOptimWrapper'
    cfg.optim_wrapper.setdefault('dtype', 'auto')
    cfg.optim_wrapper.pop('loss_scale', None)


def adjust_dataloaders(cfg, no_pin_memory, no_persistent_workers):
    """Defaults that depend on the machine and on the number of workers; the command line wins."""
    import torch
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if not isinstance(loader, dict):
            continue
        loader.setdefault('collate_fn', dict(type='pseudo_collate'))
        loader.setdefault('pin_memory', torch.cuda.is_available())
        loader.setdefault('persistent_workers', True)
        if no_pin_memory:
            loader['pin_memory'] = False
        if no_persistent_workers or not loader.get('num_workers', 0):
            loader['persistent_workers'] = False


def innermost_datasets(dataset, path='dataset'):
    """(path, config) of the data sets below RepeatDataset, ConcatDataset, MixedStream and the like."""
    if isinstance(dataset.get('dataset'), dict):
        return innermost_datasets(dataset['dataset'], f'{path}.dataset')
    for key in ('datasets', 'streams'):
        if isinstance(dataset.get(key), (list, tuple)):
            return [found for where, item in each(dataset[key], f'{path}.{key}', always_list=True)
                    for found in innermost_datasets(item, where)]
    return [(path, dataset)]


def dump_predictions(cfg, path):
    """Have the predictions of the test written to ``path`` before they are scored.

    Raises:
        ConfigError: The loop writes them itself (retrieval), and not in this format.
    """
    import mmblip2.engine  # noqa: F401
    from mmblip2.registry import LOOPS
    kind = LOOPS.get(cfg.test_cfg.get('type', 'TestLoop'))
    if kind is not None and 'out_file' in inspect.signature(kind).parameters:
        if Path(path).suffix != '.json':
            raise ConfigError(f'{path}: retrieval predictions are written as .json')
        cfg.test_cfg.out_file = str(path)
        return
    evaluators = cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    cfg.test_evaluator = [dict(type='DumpPredictions', out_path=str(path)), *evaluators]


def each(value, path, always_list=False):
    """(path, item) of a dict, or of a list of dicts."""
    if isinstance(value, (list, tuple)):
        return [(f'{path}[{number}]', item) for number, item in enumerate(value)]
    return [(path, value)] if isinstance(value, dict) and not always_list else []
