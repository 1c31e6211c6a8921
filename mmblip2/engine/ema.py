"""Averaged weights."""
import torch
from mmengine.hooks import Hook

from ..errors import ConfigError
from ..registry import HOOKS
from ..utils.dist import local, shard_like, whole


@HOOKS.register_module()
class EMAHook(Hook):
    """Exponential moving average of the trained weights; nothing frozen is copied.

    Validation runs with the averaged weights. A checkpoint has them as its ``state_dict``, for test and inference,
    and the others under ``raw``, from which a resume goes on.

    Args:
        momentum (float): After every update ``average += momentum * (weights - average)``.
        begin_iter (int): Until this iteration the average is the weights themselves.

    Raises:
        ConfigError: ``momentum`` is not between 0 and 1.
    """

    def __init__(self, momentum=0.0002, begin_iter=0):
        if not 0 < momentum < 1:
            raise ConfigError(f'EMAHook: momentum is {momentum}, expected a number between 0 and 1 (0.0002: the '
                              'average forgets half of the weights in 3,465 updates)')
        self.momentum = momentum
        self.begin_iter = begin_iter
        self._average: dict[str, torch.Tensor] = {}  # empty before the training
        self._swapped = False

    @staticmethod
    def _trained(runner):
        return {name: p for name, p in runner.bare_model.named_parameters() if p.requires_grad}

    def after_load_checkpoint(self, runner, checkpoint):
        trained, raw = self._trained(runner), checkpoint.get('raw')
        if raw is None:
            runner.logger.warning('EMAHook: the checkpoint was written without it; the average starts from its weights')
            return
        with torch.no_grad():
            self._average = {name: p.detach().clone() for name, p in trained.items()}
            for name, p in trained.items():
                p.copy_(shard_like(raw[name], p))

    def before_train(self, runner):
        if not self._average:
            self._average = {name: p.detach().clone() for name, p in self._trained(runner).items()}

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (runner.iter + 1) % runner.accumulation_window and runner.iter + 1 < runner.max_iters:
            return
        trained = self._trained(runner)
        weight = 1. if runner.iter < self.begin_iter else self.momentum
        torch._foreach_lerp_([local(self._average[name]) for name in trained],
                             [local(p.data) for p in trained.values()], weight)

    @torch.no_grad()
    def _swap(self, runner):
        for name, p in self._trained(runner).items():
            kept = p.detach().clone()
            p.copy_(self._average[name])
            self._average[name].copy_(kept)
        self._swapped = not self._swapped

    def before_val_epoch(self, runner):
        if self._average:
            self._swap(runner)

    def after_val_epoch(self, runner, metrics=None):
        if self._swapped:
            self._swap(runner)

    before_test_epoch, after_test_epoch = before_val_epoch, after_val_epoch

    def before_save_checkpoint(self, runner, checkpoint):
        trained = self._trained(runner)
        scalars = getattr(runner.bare_model, 'sharded_scalars', ())

        def in_file(name, value):
            value = whole(value.detach()).cpu()
            return value.reshape(()) if name in scalars else value

        inside, outside = ({name: in_file(name, value) for name, value in values.items()}
                           for values in (trained, self._average))
        raw, average = (outside, inside) if self._swapped else (inside, outside)
        names = {id(p): name for name, p in trained.items()}
        checkpoint['raw'] = {name: value.clone() for name, value in raw.items()}
        for key, value in runner.bare_model.state_dict(keep_vars=True).items():
            if id(value) in names:
                checkpoint['state_dict'][key] = average[names[id(value)]]
