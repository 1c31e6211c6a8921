"""Counting the bad samples that a data set replaced, over all workers and processes."""
import json
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..errors import ConfigError, DataError
from ..registry import HOOKS
from ..utils.dist import gather_objects

_INFO = 'bad_samples'
_SHOWN = 10
_FEWEST = 10000  # draws that a share is taken of, at least: one bad sample among the first ten is no tenth of all


@HOOKS.register_module()
class BadSamplesHook(Hook):
    """List bad samples that were replaced (``replaced`` of the data samples), and stop when there are too many.

    They are listed in ``bad_samples.jsonl`` of the work directory, the first ten in the log, too. The number is part of
    a checkpoint, so a run that is resumed goes on counting.

    Args:
        max_bad (int | float): A whole number of bad samples that is allowed, or a share (below 1) of the samples drawn,
            10,000 at least.
        interval (int): Several processes add up their numbers every n-th iteration, and when a checkpoint is saved.

    Raises:
        ConfigError: ``max_bad`` is neither.
        DataError: There are more; on all processes at once.
    """

    priority = 'NORMAL'

    def __init__(self, max_bad=0.001, interval=50):
        share = isinstance(max_bad, float) and 0 <= max_bad < 1
        if not share and (not isinstance(max_bad, int) or isinstance(max_bad, bool) or max_bad < 0):
            raise ConfigError(f'max_bad of BadSamplesHook is {max_bad!r}: expected a whole number, or a share of all '
                              'samples below 1 (0.001)')
        self.max_bad = max_bad
        self.interval = interval
        self._new: list[dict] = []
        self._latest: list[dict] = []
        self._path = Path()

    def before_train(self, runner):
        self._path = Path(runner.work_dir, 'bad_samples.jsonl')
        if is_main_process() and self._path.is_file():  # a resume draws the later ones again
            lines = self._path.read_text(encoding='utf-8').splitlines()
            kept = [line for line in lines if line.endswith('}') and json.loads(line)['iter'] <= runner.iter]
            self._path.write_text(''.join(f'{line}\n' for line in kept), encoding='utf-8')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
        self._new += [dict(iter=runner.iter + 1, sample=text) for sample in samples or ()
                      for text in getattr(sample, 'replaced', ())]
        if runner.world_size == 1 or self.every_n_train_iters(runner, self.interval):
            self.gather(runner)
            self._check(runner)

    def after_train(self, runner):
        self.gather(runner)

    def gather(self, runner):
        """Add up what all processes have; every process has to call this."""
        new = [found for part in gather_objects(self._new) for found in part]
        self._new = []
        if not new:
            return
        before = self._count(runner)
        runner.message_hub.update_info(_INFO, before + len(new))
        self._latest = (self._latest + new)[-_SHOWN:]
        if not is_main_process():
            return
        with open(self._path, 'a', encoding='utf-8') as file:
            file.writelines(json.dumps(found, ensure_ascii=False) + '\n' for found in new)
        for found in new[:max(_SHOWN - before, 0)]:
            runner.logger.warning(f'bad sample, replaced by another one: {found["sample"]}')
        if before < _SHOWN <= before + len(new):
            runner.logger.warning(f'{before + len(new)} bad samples so far; the others are listed in {self._path} only')

    def _count(self, runner):
        return runner.message_hub.runtime_info.get(_INFO, 0)

    def _check(self, runner):
        count = self._count(runner)
        drawn = (runner.iter + 1) * (getattr(runner.train_dataloader, 'batch_size', None) or 1) * runner.world_size
        share = isinstance(self.max_bad, float)
        if count > (self.max_bad * max(drawn, _FEWEST) if share else self.max_bad):
            limit = f'a share of {self.max_bad} of {max(drawn, _FEWEST)}' if share else str(self.max_bad)
            latest = '\n  '.join(found['sample'] for found in self._latest)
            raise DataError(f'{count} bad samples among {drawn} drawn, allowed is {limit}: the training stops at '
                            f'iteration {runner.iter + 1}. All are listed in {self._path}, the latest are\n  {latest}\n'
                            'Mend the data (tools/analysis_tools/verify_dataset.py finds all), or raise '
                            'default_hooks.bad_samples.max_bad, and go on with --resume')
