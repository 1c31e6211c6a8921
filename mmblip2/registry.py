"""The registries of mmblip2: scope ``mmblip2``, children of mmengine's roots.

This is the only file that creates registries. Modules register themselves when the package named in
``locations`` is first needed, so ``import mmblip2`` stays light.
"""
import inspect
import threading
from contextlib import contextmanager

import mmengine.registry as root
from mmengine.registry import DefaultScope, Registry, build_model_from_cfg

_BUILDING = threading.RLock()
_NOT_MODULES = ('init_cfg', 'data_preprocessor', 'module')  # built, if at all, by the constructor


@contextmanager
def our_scope():
    """Context in which types without a scope are ours. One thread at a time is in it, as mmengine has one default scope
    for all threads, and a build that loses it finds no types."""
    with _BUILDING, DefaultScope.overwrite_default_scope('mmblip2'):
        yield


def _build_nested(cfg, registry, default_args=None):
    """Build the dicts with a ``type`` inside ``cfg`` first, so that constructors receive ready modules."""
    if isinstance(cfg, dict):
        own = own_arguments(registry.get(cfg['type']) if isinstance(cfg.get('type'), str) else cfg.get('type'))
        cfg = {key: _build_value(value, registry) if key not in _NOT_MODULES and (own is None or key in own) else value
               for key, value in cfg.items()}
    return build_model_from_cfg(cfg, registry, default_args)


def own_arguments(kind):
    """Names of the arguments that a class takes for itself, where further ones are another package's.

    Args:
        kind (type or Callable): As registered. A class that hands its further arguments on says so with a classmethod
            ``forwards_to(cfg)``: it takes the arguments in a config and returns the callable that they go to (None: it
            takes any) and its name in messages.

    Returns:
        set[str] or None: None for a class without ``forwards_to``.
    """
    if not hasattr(kind, 'forwards_to'):
        return None
    return {p.name for p in inspect.signature(kind).parameters.values() if p.kind is not p.VAR_KEYWORD}


def _build_value(value, registry):
    if isinstance(value, dict) and 'type' in value:
        return registry.build(value)
    return value


def _registry(name, parent, *locations, build_func=None):
    return Registry(name, parent=parent, scope='mmblip2', locations=list(locations), build_func=build_func)


RUNNERS = _registry('runner', root.RUNNERS, 'mmblip2.engine')
LOOPS = _registry('loop', root.LOOPS, 'mmblip2.engine')
HOOKS = _registry('hook', root.HOOKS, 'mmblip2.engine', 'mmblip2.visualization')
LOG_PROCESSORS = _registry('log processor', root.LOG_PROCESSORS, 'mmblip2.engine')
OPTIMIZERS = _registry('optimizer', root.OPTIMIZERS, 'mmblip2.engine')
OPTIM_WRAPPERS = _registry('optimizer wrapper', root.OPTIM_WRAPPERS, 'mmblip2.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _registry(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, 'mmblip2.engine')
PARAM_SCHEDULERS = _registry('parameter scheduler', root.PARAM_SCHEDULERS, 'mmblip2.engine')
VISUALIZERS = _registry('visualizer', root.VISUALIZERS, 'mmblip2.visualization')
VISBACKENDS = _registry('visualizer backend', root.VISBACKENDS, 'mmblip2.visualization')
DATASETS = _registry('dataset', root.DATASETS, 'mmblip2.datasets')
DATA_SAMPLERS = _registry('data sampler', root.DATA_SAMPLERS, 'mmblip2.datasets')
TRANSFORMS = _registry('transform', root.TRANSFORMS, 'mmblip2.datasets')
FUNCTIONS = _registry('function', root.FUNCTIONS, 'mmblip2.datasets')
MODELS = _registry('model', root.MODELS, 'mmblip2.models', build_func=_build_nested)
MODEL_WRAPPERS = _registry('model wrapper', root.MODEL_WRAPPERS, 'mmblip2.engine')
EVALUATOR = _registry('evaluator', root.EVALUATOR, 'mmblip2.evaluation')
METRICS = _registry('metric', root.METRICS, 'mmblip2.evaluation')
