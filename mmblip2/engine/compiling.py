"""``torch.compile`` by module name: the layers that repeat, each alike, so that few graphs are compiled."""
import contextlib
import inspect
import os
import shutil

import torch
from torch import nn

from ..errors import ConfigError
from .activation_checkpointing import named_modules

_GRAPHS = 64  # of one forward: a Q-Former layer has four uses, each with and without cross-attention


def compile_modules(model, compile):
    """Compile modules of a model in place; names of parameters stay.

    Without names: the layers of vision encoder, Q-Former or MED, and language model, that is what the outermost
    ``nn.ModuleList``s hold. Tokens, losses and masks around them stay as they are. The first text lengths are compiled
    as they come; when another one comes, the length becomes a variable of the graph, so that a training compiles in its
    first few iterations only.

    Args:
        model (nn.Module): Of the training.
        compile (bool | dict): True, or ``dict(modules=[...], **options)`` with names as of ``activation_checkpointing``
            and options of ``torch.compile`` (``backend``, ``mode``, ``dynamic``, ``fullgraph``, ``options``).

    Returns:
        list[str]: Names of the compiled modules.

    Raises:
        ConfigError: A name that no module has, nothing to compile, an option or a backend that torch does not know, or
            no C++ compiler where the graphs are for a CPU.
    """
    settings = {} if compile is True else dict(compile)
    patterns = settings.pop('modules', None)
    _check(settings, next(model.parameters()).device)
    names = _layers(model) if patterns is None else named_modules(model, patterns, 'compile.modules')
    if not names:
        raise ConfigError(f'compile: {type(model).__name__} has no list of layers: name modules in '
                          'compile=dict(modules=[...])')
    config = torch._dynamo.config
    limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'  # before torch 2.7
    setattr(config, limit, max(getattr(config, limit), _GRAPHS))
    for name in names:
        model.get_submodule(name).compile(**settings)
    return names


def _layers(model):
    """Names of what the outermost lists of modules hold."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f'{other}.') for other in lists)]
    return [f'{name}.{i}' for name in outer for i in range(len(model.get_submodule(name)))]


def _check(settings, device):
    import torch._dynamo
    known = set(inspect.signature(torch.compile).parameters) - {'model', 'disable'}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(f'compile has no setting {", ".join(map(repr, unknown))}: expected modules, '
                          f'{", ".join(sorted(known))}')
    backend = settings.get('backend', 'inductor')
    backends = torch._dynamo.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in backends:
        raise ConfigError(f'compile.backend is {backend!r}, expected one of {", ".join(backends)}')
    if device.type == 'cpu' and backend == 'inductor' and not cpp_compiler():
        raise ConfigError('compile needs a C++ compiler on a CPU, and there is none: install g++ (or set CXX to the '
                          'path of one), or take compile out of the config')


def cpp_compiler():
    """str or None: The C++ compiler that graphs for a CPU are compiled with."""
    return next(filter(None, map(shutil.which, (os.environ.get('CXX') or 'g++', 'g++', 'clang++'))), None)


def uncompiled():
    """A context in which compiled modules run as they are written: a validation generates text, whose caches would
    compile a graph for every length."""
    stance = getattr(torch.compiler, 'set_stance', None)  # torch 2.6
    return stance('force_eager') if stance else contextlib.nullcontext()
