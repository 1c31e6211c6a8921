"""Mixed precision for CPU and GPU, and parameter groups without frozen weights."""
import re
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS

from ..errors import ConfigError
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from .autocast import autocast_context, device_type, resolve_dtype


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Runs forward and loss under autocast, on CPU and GPU; the loss is scaled for float16 only.

    Args:
        dtype (str): See :func:`resolve_dtype`.
        kwargs: mmengine's ``OptimWrapper`` (optimizer, accumulative_counts, clip_grad).
    """

    def __init__(self, dtype='auto', **kwargs):
        super().__init__(**kwargs)
        self.dtype = dtype
        self.loss_scaler = torch.amp.GradScaler(device_type(), enabled=resolve_dtype(dtype) is torch.float16)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self):
        return {**super().state_dict(), 'loss_scaler': self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict):
        state_dict = dict(state_dict)
        scaler = state_dict.pop('loss_scaler', None)
        if scaler:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), autocast_context(self.dtype):
            yield


def vision_layer_scale(model, decay):
    """Learning-rate factor of every trainable parameter of the vision encoder.

    Blocks are what has a number in its name (``vision.blocks.3.``, ``vision.module.encoder.layers.3.``); parameters
    that are defined before the first of them belong to the embeddings, later ones to the output.

    Args:
        model (nn.Module): With its encoder in ``model.vision``.
        decay (float): Factor from one block to the one before it.

    Returns:
        dict[str, float]: By parameter name, ``decay ** (L + 1)`` to 1 for L blocks.

    Raises:
        ConfigError: The encoder is frozen, or none of its parameters has a numbered block in its name.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and
             name.startswith('vision.')]
    if not names:
        raise ConfigError('optim_wrapper.paramwise_cfg.layer_decay is for the vision encoder, which this model does '
                          "not train: take 'vision' out of model.frozen, or leave layer_decay out")
    numbers = {name: int(found.group(1)) for name in names if (found := re.search(r'\.(\d+)\.', name))}
    if not numbers:
        raise ConfigError(f'optim_wrapper.paramwise_cfg.layer_decay: no numbered blocks in the vision encoder '
                          f'{type(model.vision).__name__} (its parameters: {", ".join(names[:3])} ...)')
    depth = max(numbers.values()) + 1
    scale, layer = {}, 0
    for name in names:
        layer = numbers[name] + 1 if name in numbers else (0 if layer == 0 else depth + 1)
        scale[name] = decay ** (depth + 1 - layer)
    return scale


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableOptimWrapperConstructor:
    """Groups the trainable parameters by (learning rate, weight decay); frozen ones stay outside.

    Biases and every parameter with fewer than two dimensions (norms, temperature) have no weight decay; all others
    have it, the learned queries and the class and position embeddings of a trained ViT too, as in LAVIS.
    ``custom_keys=dict(queries=dict(decay_mult=0.))`` spares the queries.

    Args:
        optim_wrapper_cfg (dict): Optimizer wrapper with its 'optimizer'.
        paramwise_cfg (dict | None): ``custom_keys={part of a name: dict(lr_mult=1., decay_mult=1.)}``; the
            longest matching part of a parameter's name counts. ``layer_decay=0.95``: the learning rate of the vision
            encoder falls by this factor for every block towards the image: block ``i`` of ``L`` (from 0) has
            ``layer_decay ** (L - i)``, what is before the blocks ``layer_decay ** (L + 1)``, everything behind them 1.
            It multiplies ``lr_mult``.

    Differs from LAVIS: the temperature, which has no dimension, decays there (its test is for exactly one), towards 0,
    while similarities are divided by it; and its factors of the layer decay are written down and read by nobody.

    Raises:
        ConfigError: Unknown keys, a custom key that matches no trainable parameter, nothing to train, or a layer decay
            for a vision encoder that is frozen or has no numbered blocks.
    """

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer'))
        paramwise_cfg = dict(paramwise_cfg or {})
        self.custom_keys = dict(paramwise_cfg.pop('custom_keys', {}))
        self.layer_decay = paramwise_cfg.pop('layer_decay', None)
        self._layer_scale = {}
        if paramwise_cfg:
            raise ConfigError(f'optim_wrapper.paramwise_cfg: unknown {", ".join(paramwise_cfg)}; '
                              'TrainableOptimWrapper'
                              'Constructor knows custom_keys and layer_decay (biases and 1-D parameters never decay)')
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f'optim_wrapper.paramwise_cfg.layer_decay is {self.layer_decay}, expected a factor above '
                              '0 and up to 1 (the paper has 0.95 and 0.9)')
        for key, value in self.custom_keys.items():
            unknown = set(value) - {'lr_mult', 'decay_mult'}
            if unknown:
                raise ConfigError(f'optim_wrapper.paramwise_cfg.custom_keys.{key}: unknown '
                                  f'{", ".join(sorted(unknown))}'
                                  '; known are lr_mult and decay_mult')

    def lr_mult(self, name):
        """Factor of the learning rate of parameter ``name``."""
        return self._custom(name).get('lr_mult', 1.) * self._layer_scale.get(name, 1.)

    def _custom(self, name):
        keys = [key for key in self.custom_keys if key in name]
        self._unused.difference_update(keys)
        return self.custom_keys[max(keys, key=len)] if keys else {}

    def groups(self, model):
        """Parameter groups of ``model``, in order of first appearance."""
        self._unused = set(self.custom_keys)
        self._layer_scale = {} if self.layer_decay is None else vision_layer_scale(model, self.layer_decay)
        lr, decay = self.optimizer_cfg.get('lr'), self.optimizer_cfg.get('weight_decay', 0.)
        merged: dict[tuple, list] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            options = {}
            if lr is not None:
                options['lr'] = lr * self.lr_mult(name)
            plain = parameter.ndim < 2 or name.endswith('.bias')
            options['weight_decay'] = 0. if plain else decay * self._custom(name).get('decay_mult', 1.)
            merged.setdefault(tuple(options.items()), []).append(parameter)
        if self._unused:
            raise ConfigError(f'optim_wrapper.paramwise_cfg.custom_keys: no trainable parameter has '
                              f'{", ".join(map(repr, sorted(self._unused)))} in its name')
        if not merged:
            raise ConfigError('the model has no trainable parameter: unfreeze a part of it')
        groups = [dict(params=parameters, **dict(options)) for options, parameters in merged.items()]
        if self._layer_scale:  # the log shows the first group's learning rate: the full one
            groups.sort(key=lambda group: -group.get('lr', 0.))
        return groups

    def __call__(self, model):
        """Build the optimizer wrapper of ``model``."""
        model = getattr(model, 'module', model)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, 'params': self.groups(model)})
        self.wrapper_cfg.setdefault('type', 'OptimWrapper')
        return ROOT_OPTIM_WRAPPERS.build(self.wrapper_cfg, default_args=dict(optimizer=optimizer))
