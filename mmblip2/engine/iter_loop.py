"""Training by iterations that resumes by position."""
from mmengine.runner import BaseLoop

from ..datasets.web_stream import StreamLoader
from ..errors import ConfigError
from ..registry import LOOPS
from ..utils.dist import gather_objects

STREAM = 'stream_position'  # in the message hub


@LOOPS.register_module()
class SeekIterLoop(BaseLoop):
    """Train for a number of iterations; a resume seeks in the data instead of reading it again.

    Args:
        runner (Runner): Ours.
        dataloader (dict | DataLoader): With an endless sampler that has ``seek(consumed)``, consumed counting
            the samples of all processes (``SeekableInfiniteSampler``); or of a stream, which begins with whole shards.
        max_iters (int): Iterations in all.
        val_interval (int): Iterations between validations; there is always one at the end.
        val_begin (int): First iteration that may validate.

    Raises:
        ConfigError: The sampler cannot seek, or ends.
    """

    def __init__(self, runner, dataloader, max_iters, val_interval=1000, val_begin=1):
        super().__init__(runner, dataloader)
        for name, value in dict(max_iters=max_iters, val_interval=val_interval).items():
            if int(value) != value or value < 1:
                raise ConfigError(f'train_cfg.{name} is {value}: expected a whole number from 1 on')
        sampler = self.dataloader.sampler
        if not hasattr(sampler, 'seek') and not isinstance(self.dataloader, StreamLoader):
            raise ConfigError(f'train_dataloader.sampler {type(sampler).__name__} cannot seek, so the run '
                              'could not be resumed exactly: use '
                              "sampler=dict(type='SeekableInfiniteSampler')")
        self._max_iters = int(max_iters)
        self._max_epochs = 1  # mmengine's hooks ask for it
        self._epoch = 0
        self._iter = 0
        self.val_interval = val_interval
        self.val_begin = val_begin
        self.stop_training = False
        if hasattr(self.dataloader.dataset, 'metainfo'):
            runner.visualizer.dataset_meta = self.dataloader.dataset.metainfo

    @property
    def max_epochs(self):
        return self._max_epochs

    @property
    def max_iters(self):
        return self._max_iters

    @property
    def epoch(self):
        return self._epoch

    @property
    def iter(self):
        return self._iter

    def run(self):
        """Train from the current iteration to the last one."""
        runner = self.runner
        runner.call_hook('before_train')
        if isinstance(self.dataloader, StreamLoader):
            position = runner.message_hub.runtime_info.get(STREAM) if self._iter else None
            runner.logger.info(self.dataloader.dataset.seek(self.dataloader.slots, position))
        else:
            self.dataloader.sampler.seek(self._iter * self.dataloader.batch_size * runner.world_size)
        batches = iter(self.dataloader)  # draws a random number, so before the state is put back
        runner.call_hook('before_train_epoch')
        runner.restore_random_state()
        if runner.resumed_from:
            self._validate_if_due()  # the checkpoint was written before that validation
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(self._next(batches))
            self._validate_if_due()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _validate_if_due(self):
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is not None and self._iter >= max(self.val_begin, 1) and due:
            self.runner.val_loop.run()

    def _next(self, batches):
        try:
            return next(batches)
        except StopIteration:
            raise ConfigError(f'train_dataloader ended at iteration {self._iter} of {self._max_iters}: '
                              'SeekIterLoop needs an endless sampler, '
                              "sampler=dict(type='SeekableInfiniteSampler')") from None

    def run_iter(self, data_batch):
        """One forward, backward and (with accumulation: maybe) update."""
        runner = self.runner
        if isinstance(self.dataloader, StreamLoader):
            self.dataloader.dataset.note(data_batch['data_samples'])
        runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=data_batch)
        outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        runner.call_hook('after_train_iter', batch_idx=self._iter, data_batch=data_batch, outputs=outputs)
        self._iter += 1
        runner.between_iterations()

    def gather_position(self):
        """Put where a stream is into the message hub, for a checkpoint; every process has to call this."""
        if isinstance(self.dataloader, StreamLoader):
            turns = [turns for part in gather_objects(self.dataloader.dataset.turns) for turns in part.items()]
            position = self.dataloader.dataset.position(self.dataloader.slots, dict(turns))
            self.runner.message_hub.update_info(STREAM, position)
