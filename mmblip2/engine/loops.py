"""mmengine's loops with exact resume, and with the precision of the training."""
import torch
from mmengine.runner import EpochBasedTrainLoop as _EpochBasedTrainLoop
from mmengine.runner import TestLoop as _TestLoop
from mmengine.runner import ValLoop as _ValLoop

from ..errors import ConfigError
from ..registry import LOOPS
from .autocast import autocast_context
from .random_state import random_state_kept


@LOOPS.register_module()
class EpochBasedTrainLoop(_EpochBasedTrainLoop):
    """mmengine's loop; a resume goes on exactly where the checkpoint was written, inside an epoch too.

    Raises:
        ConfigError: A checkpoint from inside an epoch, and a sampler that cannot seek.
    """

    def run(self):
        """Train to the end; after a resume the validation that was due comes first."""
        val_loop = self.runner.val_loop
        if (self.runner.resumed_from and val_loop is not None and self._epoch >= max(self.val_begin, 1)
                and self._iter == self._epoch * len(self.dataloader)
                and (self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs)):
            val_loop.run()
        return super().run()

    def run_epoch(self):
        """Train to the end of the epoch."""
        runner = self.runner
        runner.call_hook('before_train_epoch')
        runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        if 0 < done < len(self.dataloader):
            self._seek(done)
        with random_state_kept():  # the iterator draws a seed, but only when it is made: not in every epoch
            batches = iter(self.dataloader if done < len(self.dataloader) else ())
        runner.restore_random_state()
        for idx, data_batch in enumerate(batches, done):
            self.run_iter(idx, data_batch)
            runner.between_iterations()
        runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _seek(self, done):
        """Let the data begin after ``done`` iterations of this epoch."""
        sampler = self.dataloader.sampler
        if not hasattr(sampler, 'seek'):
            raise ConfigError(f'the checkpoint is from iteration {done} of an epoch, and train_dataloader.sampler '
                              f'{type(sampler).__name__} cannot begin there: use '
                              "sampler=dict(type='SeekableSampler'), or resume from the end of an epoch")
        sampler.seek(self._epoch * sampler.total + done * self.dataloader.batch_size * self.runner.world_size)


@LOOPS.register_module()
class ValLoop(_ValLoop):
    """Validation.

    Args:
        autocast (str | None): 'auto', 'bfloat16', 'float16' or 'float32'; default: as in training.
    """

    def __init__(self, runner, dataloader, evaluator, autocast=None):
        super().__init__(runner, dataloader, evaluator)
        self.autocast = autocast

    def run_iter(self, idx, data_batch):
        with torch.no_grad(), autocast_context(self.autocast):
            super().run_iter(idx, data_batch)


@LOOPS.register_module()
class TestLoop(_TestLoop):
    """Test; see :class:`ValLoop`."""

    def __init__(self, runner, dataloader, evaluator, autocast=None):
        super().__init__(runner, dataloader, evaluator)
        self.autocast = autocast

    def run_iter(self, idx, data_batch):
        with torch.no_grad(), autocast_context(self.autocast):
            super().run_iter(idx, data_batch)
