"""Mixed precision for CPU and GPU, and parameter groups without frozen weights."""
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


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableOptimWrapperConstructor:
    """Groups the trainable parameters by (learning rate, weight decay); frozen ones stay outside.

    Biases and every parameter with fewer than two dimensions (norms, temperature) have no weight decay.

    Args:
        optim_wrapper_cfg (dict): Optimizer wrapper with its 'optimizer'.
        paramwise_cfg (dict | None): ``custom_keys={part of a name: dict(lr_mult=1., decay_mult=1.)}``; the
            longest matching part of a parameter's name counts.

    Raises:
        ConfigError: Unknown keys, a custom key that matches no trainable parameter, or nothing to train.
    """

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer'))
        paramwise_cfg = dict(paramwise_cfg or {})
        self.custom_keys = dict(paramwise_cfg.pop('custom_keys', {}))
        if paramwise_cfg:
            raise ConfigError(f'optim_wrapper.paramwise_cfg: unknown {", ".join(paramwise_cfg)}; '
                              'TrainableOptimWrapper'
                              'Constructor knows custom_keys (biases and 1-D parameters never decay)')
        for key, value in self.custom_keys.items():
            unknown = set(value) - {'lr_mult', 'decay_mult'}
            if unknown:
                raise ConfigError(f'optim_wrapper.paramwise_cfg.custom_keys.{key}: unknown '
                                  f'{", ".join(sorted(unknown))}'
                                  '; known are lr_mult and decay_mult')

    def lr_mult(self, name):
        """Factor of the learning rate of parameter ``name``; subclasses add layer decay here."""
        return self._custom(name).get('lr_mult', 1.)

    def _custom(self, name):
        keys = [key for key in self.custom_keys if key in name]
        self._unused.difference_update(keys)
        return self.custom_keys[max(keys, key=len)] if keys else {}

    def groups(self, model):
        """Parameter groups of ``model``, in order of first appearance."""
        self._unused = set(self.custom_keys)
        lr, decay = self.optimizer_cfg.get('lr'), self.optimizer_cfg.get('weight_decay', 0.)
        merged = {}
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
        return [dict(params=parameters, **dict(options)) for options, parameters in merged.items()]

    def __call__(self, model):
        """Build the optimizer wrapper of ``model``."""
        model = getattr(model, 'module', model)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, 'params': self.groups(model)})
        self.wrapper_cfg.setdefault('type', 'OptimWrapper')
        return ROOT_OPTIM_WRAPPERS.build(self.wrapper_cfg, default_args=dict(optimizer=optimizer))
