"""Training with torch's ``fully_shard`` (FSDP2): weights, gradients and optimizer state divided among the processes.

Trained weights are always divided: those of the modules that ``fsdp.wrap`` names are gathered where they run, all
others once an iteration. Frozen weights are divided where ``wrap`` names their module; of the others every process has
all.
"""
import inspect
from fnmatch import fnmatchcase

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.hooks import Hook
from torch import nn

from ..errors import ConfigError
from ..utils.dist import gather_objects, local, shard_like, whole

_KEYS = ('wrap', )
_PARTS = ('vision', 'language_model')  # run by the forward of their modules; others are used in pieces
_EXAMPLE = "fsdp=dict(wrap=['vision.blocks.*', 'language_model.model.model.decoder.layers.*'])"


def problems(cfg):
    """What is wrong with ``fsdp`` of a config, and with what stands beside it.

    Args:
        cfg (Config): The whole one.

    Returns:
        list[tuple[str, str]]: Place, problem.
    """
    given = cfg.get('fsdp')
    if given is None:
        return []
    if not isinstance(given, dict):
        return [('fsdp', f'expected a dict, got {given!r}: {_EXAMPLE}')]
    found = [(f'fsdp.{key}', f'unknown key; known are {", ".join(_KEYS)}') for key in given if key not in _KEYS]
    wrap = given.get('wrap', [])
    if not isinstance(wrap, (list, tuple)) or not all(isinstance(name, str) for name in wrap):
        return [*found, ('fsdp.wrap', f'expected a list of names of modules, got {wrap!r}: {_EXAMPLE}')]
    found += [('fsdp.wrap', f'{name!r} is not inside {" or ".join(_PARTS)}: the layers of other parts are used in '
               'pieces, and are divided without being named; leave it out')
              for name in wrap if name.split('.')[0] not in _PARTS]
    for key in ('model_wrapper_cfg', 'find_unused_parameters', 'compile'):
        if cfg.get(key):
            found.append((key, f'does not go with fsdp: leave one of {key} and fsdp out'))
    wrapper = cfg.get('optim_wrapper')
    wrapper = wrapper if isinstance(wrapper, dict) else {}
    dtype = wrapper.get('dtype')
    if wrapper.get('type') == 'AmpOptimWrapper' or (isinstance(dtype, str) and dtype == 'float16'):
        found.append(('optim_wrapper.dtype', 'float16 scales its loss by what one process sees, which does not go with '
                      "fsdp: use type='AutocastOptimWrapper' and dtype='bfloat16' or 'float32'"))
    return found


def check(cfg):
    """Refuse a config with :func:`problems`.

    Raises:
        ConfigError: With all of them.
    """
    found = problems(cfg)
    if found:
        raise ConfigError('; '.join(f'{place}: {problem}' for place, problem in found))


def is_sharded(model):
    """bool: Whether :func:`shard` divided this model."""
    return hasattr(model, 'sharded_scalars')


def shard(model, wrap=()):
    """Divide a model among all processes, in place; every process has built the same one on its host.

    Trained weights and buffers are those of process 0 afterwards. A scalar parameter becomes one of one element, which
    only files tell apart (``sharded_scalars``).

    Args:
        model (nn.Module): On the CPU or where it is trained.
        wrap (Sequence[str]): Names of modules, ``*`` stands for anything; what is outside of them is gathered at the
            beginning of a forward and divided again after the backward.

    Returns:
        nn.Module: The model, with another class.

    Raises:
        ConfigError: torch is too old; a name that no module has, or of a module without a ``forward``, with weights
            that are also used outside of it, or inside another one; a model that changes its weights in its forward;
            frozen parts that differ between processes.
    """
    try:
        from torch.distributed.fsdp import fully_shard
        old = 'ignored_params' not in inspect.signature(fully_shard).parameters
    except ImportError:
        old = True
    if old:
        raise ConfigError(f'fsdp needs torch>=2.7, this is {torch.__version__}: install it, or leave fsdp out')
    from ..models.algorithms import BlipRepresentation
    if isinstance(model, BlipRepresentation):
        raise ConfigError('fsdp cannot train a BlipRepresentation: its forward changes weights (momentum encoders, '
                          'temperature), which other processes would not see. Leave fsdp out: DDP trains it')
    chosen = _chosen(model, wrap)
    if hasattr(model, 'init_weights'):
        model.init_weights()
    check_frozen(model)  # their sums are made now, before they are divided
    device = torch.device(get_device())
    mesh = dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(), ))
    scalars = _scalars_to_rows(model)
    frozen = tuple(f'{name}.' for name in getattr(model, 'frozen_parts', dict)())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not name.startswith(frozen or '\0'):
            tensor.data = tensor.data.to(device)
            dist.broadcast(tensor.data, 0)
    for module in chosen:
        fully_shard(module, mesh=mesh)
    inside = {id(parameter) for module in chosen for parameter in module.parameters()}
    replicated = {parameter for parameter in model.parameters()
                  if not parameter.requires_grad and id(parameter) not in inside}
    for parameter in replicated:
        parameter.data = parameter.data.to(device)
    fully_shard(model, mesh=mesh, ignored_params=replicated)
    model.to(device)
    model._get_fsdp_state()._lazy_init()  # otherwise a layer that runs first takes itself for the root
    model.sharded_scalars = scalars
    return model


def _chosen(model, wrap):
    """The modules that ``wrap`` names, inner ones first."""
    names = {name: module for name, module in model.named_modules() if name}
    found: dict[str, nn.Module] = {}
    for pattern in wrap:
        here = {name: module for name, module in names.items() if fnmatchcase(name, pattern)
                and type(module).forward is not nn.Module.forward and any(True for _ in module.parameters())}
        if pattern.endswith('*'):  # 'blocks.*' are the blocks, not what is in them
            here = {name: module for name, module in here.items() if name.count('.') == pattern.count('.')}
        if not here:
            raise ConfigError(f'fsdp.wrap: no module that is run by its forward is named {pattern!r}; '
                              f"'*' stands for anything: {_EXAMPLE}")
        found.update(here)
    for name in found:
        outer = next((other for other in found if name.startswith(f'{other}.')), None)
        if outer is not None:
            raise ConfigError(f'fsdp.wrap names {outer} and {name} inside it: name one of them')
    owners: dict[int, set] = {}
    for name, module in names.items():
        unit = next((outer for outer in found if name == outer or name.startswith(f'{outer}.')), '')
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(unit)
    language = getattr(getattr(model, 'language_model', None), 'model', None)
    if language is not None:  # looked up without the forward of the model around it
        owners.setdefault(id(language.get_input_embeddings().weight), set()).add('')
    for name, module in found.items():
        if any(owners[id(parameter)] != {name} for parameter in module.parameters()):
            raise ConfigError(f'fsdp.wrap: {name} holds weights that are used outside of it too (the embeddings of a '
                              'language model, tied to its output layer or not): name its layers instead')
    return list(found.values())


def check_frozen(model):
    """Frozen parts are not sent around, so every process must have read the same ones.

    Raises:
        ConfigError: They differ.
    """
    own = {name: part['sha256'] for name, part in model.frozen_record().items()} if hasattr(
        model, 'frozen_record') else {}
    for rank, other in enumerate(gather_objects(own)):
        names = [name for name in own if other.get(name) != own[name]]
        if names:
            raise ConfigError(f'process {rank} has other weights in the frozen {", ".join(names)} than process '
                              f'{dist.get_rank()}: give every host the same files, and a random part the same seed')


def _scalars_to_rows(model):
    """Give parameters without a dimension one element; returns their names."""
    names = []
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad and parameter.dim() == 0:
            owner, _, key = name.rpartition('.')
            setattr(model.get_submodule(owner), key, nn.Parameter(parameter.data.reshape(1)))
            names.append(name)
    return tuple(names)


def gather_weights(model):
    """Until :func:`release_weights`, let every process have whole weights: what it runs then needs no other one."""
    for name, module in _units(model):
        if name:
            module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def release_weights(model):
    """Divide the weights again."""
    for name, module in _units(model):
        if name:
            module.set_reshard_after_forward(True, recurse=False)
        module.reshard()


def _units(model):
    return [(name, module) for name, module in model.named_modules() if hasattr(module, 'unshard')]


class GatherHook(Hook):
    """Whole weights in an evaluation, in which processes do unequal work: after the hooks that change weights."""

    priority = 'LOWEST'

    def before_val_epoch(self, runner):
        gather_weights(runner.bare_model)

    before_test_epoch = before_val_epoch


class ReleaseHook(Hook):
    """Divided weights after an evaluation, before the hooks that change or save them."""

    priority = 'HIGHEST'

    def after_val_epoch(self, runner, metrics=None):
        release_weights(runner.bare_model)

    after_test_epoch = after_val_epoch


@torch.no_grad()
def clip_norm(parameters, max_norm, norm_type=2.0):
    """``clip_grad_norm_`` for divided gradients: by the norm over all processes, which is returned."""
    grads = [local(parameter.grad) for parameter in parameters]
    each = torch.stack([torch.linalg.vector_norm(grad.float(), norm_type) if grad.numel() else
                        torch.zeros((), device=grad.device) for grad in grads])
    if norm_type == float('inf'):
        norm = each.max()
        dist.all_reduce(norm, dist.ReduceOp.MAX)
    else:
        norm = each.pow(norm_type).sum()
        dist.all_reduce(norm)
        norm = norm.pow(1 / norm_type)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.)  # as torch does
    for grad in grads:
        grad.mul_(scale.to(grad.dtype))
    return norm


@torch.no_grad()
def clip_value(parameters, clip_value):
    """``clip_grad_value_`` for divided gradients."""
    for parameter in parameters:
        local(parameter.grad).clamp_(-clip_value, clip_value)


def adapt_clipping(optim_wrapper):
    """Let a wrapper clip divided gradients.

    Raises:
        ConfigError: Settings of ``clip_grad`` that this cannot do.
    """
    settings = optim_wrapper.clip_grad_kwargs
    if not settings:
        return
    by_norm = optim_wrapper.grad_name == 'grad_norm'
    function = clip_norm if by_norm else clip_value
    unknown = [key for key in settings if key not in inspect.signature(function).parameters]
    if unknown:
        raise ConfigError(f'optim_wrapper.clip_grad: {", ".join(unknown)} does not go with fsdp: leave it out')
    optim_wrapper.clip_func = function


def whole_state(values, scalar):
    """An optimizer's values of one parameter as a file has them; every process has to call this."""
    return {key: _whole_value(value, scalar) for key, value in values.items()}


def _whole_value(value, scalar):
    if not isinstance(value, torch.Tensor):
        return value
    value = whole(value.detach()).cpu()
    return value.reshape(()) if scalar and value.numel() == 1 else value


def divided_state(state, optimizer):
    """The reverse for a whole state dict: what a file has, as this optimizer's parameters are divided."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    return {**state, 'state': {
        number: {key: shard_like(value, parameters[number]) if key != 'step' and isinstance(value, torch.Tensor)
                 and value.numel() == parameters[number].numel() else value for key, value in values.items()}
        for number, values in state['state'].items()}}


def describe(model):
    """One line for the log: what this process holds of the weights."""
    held = sum(local(parameter).numel() for parameter in model.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    return (f'fsdp: {dist.get_world_size()} processes, {len(_units(model))} units; this one holds {held / total:.0%} '
            'of the weights')


__all__ = ['GatherHook', 'ReleaseHook', 'adapt_clipping', 'check', 'check_frozen', 'describe', 'divided_state',
           'gather_weights', 'is_sharded', 'problems', 'release_weights', 'shard', 'whole_state']
