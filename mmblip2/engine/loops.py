"""mmengine's loops with exact resume, and with the precision of the training."""
import torch
from mmengine.runner import EpochBasedTrainLoop as _EpochBasedTrainLoop
from mmengine.runner import TestLoop as _TestLoop
from mmengine.runner import ValLoop as _ValLoop

from ..registry import LOOPS
from .autocast import autocast_context


@LOOPS.register_module()
class EpochBasedTrainLoop(_EpochBasedTrainLoop):
    """mmengine's loop; after a resume the random numbers go on where the checkpoint was written."""

    def run_epoch(self):
        self.runner.restore_random_state()
        super().run_epoch()


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
