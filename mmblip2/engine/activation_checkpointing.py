"""Activation checkpointing by module name: less memory, more computing, the same gradients."""
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError


def named_modules(model, modules, key):
    """Names of the modules of a model that patterns choose, none twice and none inside another.

    Args:
        model (nn.Module): With the modules.
        modules (str | list[str]): Names, ``*`` stands for anything.
        key (str): Of the config, for the message.

    Raises:
        ConfigError: A name that no module has.
    """
    names = [name for name, module in model.named_modules()
             if name and type(module).forward is not nn.Module.forward]  # a list of modules is never called
    chosen = []
    for pattern in [modules] if isinstance(modules, str) else modules:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            top = ', '.join(name for name, part in model.named_children() if any(True for _ in part.parameters()))
            raise ConfigError(f'{key}: no module is named {pattern!r}; the parts of the model are '
                              f"{top}, and '*' stands for anything ('qformer.layers.*')")
        chosen += found
    return [name for name in dict.fromkeys(chosen) if not any(name.startswith(f'{other}.') for other in chosen)]


def turn_on_activation_checkpointing(model, modules):
    """Have modules compute their activations again in the backward instead of keeping them.

    Without reentrancy, so that gradients flow although nothing before a module needs one (a frozen encoder in front of
    the Q-Former); mmengine's own way loses them there.

    Args:
        model (nn.Module): Of the training.
        modules (str | list[str]): Names of modules in it, as ``named_modules`` has them; ``*`` stands for anything:
            ``'qformer.layers.*'``, ``'language_model.model.model.decoder.layers.*'``. A module below a named one is
            computed again with it.

    Raises:
        ConfigError: A name that no module has.
    """
    chosen = named_modules(model, modules, 'activation_checkpointing')
    for name in chosen:
        module = model.get_submodule(name)
        module.forward = partial(_computed_again, module.forward)


def _computed_again(forward, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@contextmanager
def instead_of_mmengines():
    """mmengine's Runner takes the function above for ``activation_checkpointing`` of a config."""
    from mmengine.runner import runner
    kept, runner.turn_on_activation_checkpointing = (runner.turn_on_activation_checkpointing,
                                                     turn_on_activation_checkpointing)
    try:
        yield
    finally:
        runner.turn_on_activation_checkpointing = kept
