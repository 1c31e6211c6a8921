"""What happens when a cluster takes its machine back."""
import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from functools import partial

from mmengine.hooks import Hook

from ..registry import HOOKS
from ..utils.dist import gather_objects
from .hooks import CheckpointHook


class ValidationLeft(Exception):
    """A validation that is not finished, because the process has to end; ``hook`` is the one that does it."""

    def __init__(self, hook):
        super().__init__('the validation was left')
        self.hook = hook


@HOOKS.register_module()
class PreemptHook(Hook):
    """On SIGTERM (a cluster takes its machine back) save, and exit with 143; one more, ten seconds later, ends the
    process at once.

    All processes stop after the same iteration, whichever was told; with accumulation, after one that ends a window.
    ``--resume`` goes on there.

    Args:
        interval (int): Several processes ask one another every n-th iteration (accumulation window) at most, and
            earlier where iterations take long.
        seconds (float): About as long a process goes on after it was told, if one window does not take longer; torchrun
            and Slurm kill after 30.
    """

    priority = 'LOWEST'

    def __init__(self, interval=10, seconds=3.):
        self.interval = interval
        self.seconds = seconds
        self._since = 0.  # the time of the last question, its window, and the window of the next one
        self._asked = self._next = 0
        self._told_at: float | None = None
        self._before = None

    @property
    def told(self):
        """bool: Whether there was a SIGTERM."""
        return self._told_at is not None

    def before_train(self, runner):
        self._since = time.monotonic()
        self._asked = runner.iter // runner.accumulation_window
        self._next = self._asked + 1
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._tell)

    def after_train(self, runner):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _tell(self, number, frame):
        now = time.monotonic()
        if self._told_at is None:
            self._told_at = now
        elif now - self._told_at > 10:  # the cluster and torchrun both tell within seconds
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.told and runner.world_size == 1:  # with several processes, after the validation
            raise ValidationLeft(self)

    def between_iterations(self, runner):
        """Called by the training loops, when the iteration is counted."""
        window = runner.accumulation_window
        if runner.iter % window:
            return
        told = self.told
        if runner.world_size > 1:
            told = self._any_told(runner.iter // window)
        if told:
            self.stop(runner)

    def _any_told(self, window):
        """Ask all processes when it is time; they agree on when to ask again, by the slowest."""
        if window < self._next:
            return False
        now = time.monotonic()
        answers = gather_objects((self.told, (now - self._since) / max(window - self._asked, 1)))
        slowest = max(duration for _, duration in answers)
        self._asked, self._since = window, now
        self._next = window + max(1, min(self.interval, int(self.seconds / max(slowest, 1e-9))))
        return any(told for told, _ in answers)

    def stop(self, runner):
        """Save and exit.

        Raises:
            SystemExit: 143.
        """
        saved = [hook.save_now(runner) for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        runner.logger.warning(f'SIGTERM: saved at iteration {runner.iter}, ending with exit status 143; --resume goes '
                              'on from there' if any(saved) else
                              f'SIGTERM: ending with exit status 143; nothing is saved at iteration {runner.iter}, for '
                              'want of a checkpoint hook or of a sampler that can seek (SeekableSampler)')
        self.after_train(runner)
        sys.exit(143)


class _IgnoresTerm:
    """``worker_init_fn`` of a worker that SIGTERM does not end, after the one there was."""

    def __init__(self, init=None):
        self.init = init

    def __call__(self, worker_id):
        if self.init is not None:
            self.init(worker_id)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # one that came while it started is gone


def outlasts_term(loader):
    """Let the workers of a data loader live on after a SIGTERM, until their training is through.

    Clusters send the signal to all processes; without its workers the training could not reach the iteration after
    which it saves. What Python does at its own end, a SIGTERM to each worker and waiting, would wait for ever then, so
    they are killed before. Workers of a process that was killed itself end by torch's watchdog, within seconds.

    Args:
        loader (DataLoader): With workers; changed in place.
    """
    loader.worker_init_fn = _IgnoresTerm(loader.worker_init_fn)
    loader._get_iterator = partial(_start_undisturbed, loader._get_iterator)
    atexit.unregister(_kill_workers)
    atexit.register(_kill_workers)


def _start_undisturbed(start):
    """Workers inherit that SIGTERM waits, so that none dies between its start and its ``worker_init_fn``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers():
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if children and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report a worker that died
    for child in children:
        child.kill()
