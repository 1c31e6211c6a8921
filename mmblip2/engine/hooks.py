"""Checkpoints that outlive a crash or a preemption, averaged weights, progress lines, a stop at a loss that is no
number."""
import atexit
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.hooks import Hook
from mmengine.hooks import LoggerHook as _LoggerHook

from ..checkpoints.io import sync_dir, write_checkpoint
from ..errors import ConfigError
from ..registry import HOOKS
from ..utils.dist import gather_objects


def _plain_fields(sample):
    """The fields of a data sample that a checkpoint file can hold."""
    plain = (str, int, float, bool, list, tuple, torch.Tensor)
    return {key: value for key, value in sample.items() if isinstance(value, plain)}


def _write_text(path, text):
    side = Path(f'{path}.part')
    side.write_text(text)
    os.replace(side, path)


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """Saves checkpoints; the new file is whole on the disk before an old one goes.

    The best checkpoint is a hard link to the newest one, and its score stands in ``best.json`` beside it.

    Args:
        interval (int): Iterations (epochs when ``by_epoch``) between checkpoints, -1 for none but the last.
        by_epoch (bool): Count epochs.
        max_keep_ckpts (int): Newest checkpoints that are kept, -1 for all.
        save_last (bool): Save at the end of the training.
        save_best (str | list[str] | None): Metrics whose best checkpoint is kept, 'auto' for the first.
        rule (str | list[str] | None): 'greater' or 'less' for each of them; None: told from the name.
        save_optimizer (bool): Without, a checkpoint cannot be resumed.
        save_param_scheduler (bool): As above.
        save_begin (int): First iteration (epoch) to save.
        out_dir (str | None): Parent folder, if not the work directory.

    Raises:
        ConfigError: ``interval`` is no multiple of the accumulation window, or ``save_best`` is not produced.
    """
    _default_greater_keys = (*_CheckpointHook._default_greater_keys, 'accuracy', 'Recall', 'CIDEr', 'Bleu',
                             'METEOR', 'ROUGE')
    _default_less_keys = ('loss', 'perplexity')

    def __init__(self, interval=-1, by_epoch=True, max_keep_ckpts=-1, save_last=True, save_best=None,
                 rule=None, save_optimizer=True, save_param_scheduler=True, save_begin=0, out_dir=None):
        super().__init__(interval, by_epoch, save_optimizer, save_param_scheduler, out_dir, max_keep_ckpts,
                         save_last, save_best, rule, save_begin=save_begin)

    def before_train(self, runner):
        super().before_train(runner)
        wrapper = runner.optim_wrapper
        window = getattr(wrapper, '_accumulative_counts', 1)
        if not self.by_epoch and self.interval > 0 and self.interval % window:
            raise ConfigError(f'default_hooks.checkpoint.interval ({self.interval}) is no multiple of '
                              f'optim_wrapper.accumulative_counts ({window}): a checkpoint inside the window '
                              f'would lose gradients; use {-(-self.interval // window) * window}')
        # the file of a preemption goes with the next checkpoint
        resumed = runner.resumed_from
        self._preempted = [resumed] if self.by_epoch and resumed and resumed.name.startswith('iter_') else []
        if self.by_epoch and self.interval > 0 and len(runner.train_dataloader) * self.interval % window:
            raise ConfigError(f'an epoch has {len(runner.train_dataloader)} iterations, which is no multiple of '
                              f'optim_wrapper.accumulative_counts ({window}): a checkpoint at its end would lose '
                              'gradients; change one of them or default_hooks.checkpoint.interval')
        if is_main_process():
            for part in Path(self.out_dir).glob('*.pth.*.part'):  # saves that were cut off
                part.unlink(missing_ok=True)
        self._best = {}
        record = Path(self.out_dir, 'best.json')
        if self.save_best and runner.iter > 0 and record.is_file():
            self._best = {key: best for key, best in json.loads(record.read_text()).items()
                          if best['iter'] <= runner.iter}

    def _save_checkpoint_with_step(self, runner, step, meta):
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir, name))
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        old = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            old = list(self.keep_ckpt_ids)[:len(self.keep_ckpt_ids) + 1 - self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)  # a deque of limited length
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        runner.save_checkpoint(self.out_dir, name, save_optimizer=self.save_optimizer,
                               save_param_scheduler=self.save_param_scheduler, meta=meta,
                               by_epoch=self.by_epoch)
        if is_main_process():
            _write_text(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
            for path in [Path(self.out_dir, self.filename_tmpl.format(past)) for past in old] + self._preempted:
                path.unlink(missing_ok=True)
            self._preempted = []

    def save_now(self, runner):
        """Save between two iterations, outside of the interval, so that a resume goes on there.

        Returns:
            bool: Whether there is such a file; not inside an epoch whose sampler cannot seek.
        """
        position = dict(epoch=runner.epoch, iter=runner.iter)
        self.save_optimizer = self.save_param_scheduler = True
        if not self.by_epoch:
            if self.last_ckpt != str(Path(self.out_dir, self.filename_tmpl.format(runner.iter))):
                self._save_checkpoint_with_step(runner, runner.iter, position)
            return True
        loader = runner.train_dataloader
        if not hasattr(loader.sampler, 'seek') and runner.iter % len(loader):
            return False
        path = Path(self.out_dir, f'iter_{runner.iter}.pth')
        runner.save_checkpoint(self.out_dir, path.name, meta=position)
        if is_main_process():
            _write_text(Path(runner.work_dir, 'last_checkpoint'), str(path))
        return True

    def _save_best_checkpoint(self, runner, metrics):
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        for key, rule in zip(self.key_indicators, self.rules):
            if key not in metrics:
                raise ConfigError(f'default_hooks.checkpoint.save_best is {key!r}, which val_evaluator does '
                                  f'not produce; it gives {", ".join(metrics)}')
            score, before = metrics[key], self._best.get(key)
            if score is None or not math.isfinite(score):
                continue
            if before is not None and not self.rule_map[rule](score, before['score']):
                continue
            step = runner.epoch if self.by_epoch else runner.iter
            path = Path(self.out_dir, f'best_{key}_{self.filename_tmpl.format(step)}'.replace('/', '_'))
            self._link_or_save(runner, path, step)
            self._best[key] = dict(score=float(score), path=str(path), iter=runner.iter)
            if is_main_process():
                _write_text(Path(self.out_dir, 'best.json'), json.dumps(self._best, indent=2))
                if before is not None and before['path'] != str(path):
                    Path(before['path']).unlink(missing_ok=True)
            if len(self.key_indicators) == 1:
                self.best_ckpt_path = str(path)
            runner.logger.info(f'best {key} so far: {score:.4f}, saved as {path.name}')

    def _link_or_save(self, runner, path, step):
        newest = Path(self.out_dir, self.filename_tmpl.format(step))
        if self.last_ckpt != str(newest) or not newest.is_file():
            position = dict(epoch=runner.epoch, iter=runner.iter)
            runner.save_checkpoint(str(path.parent), path.name, meta=position)
        elif is_main_process():
            side = path.with_name(path.name + '.part')
            side.unlink(missing_ok=True)
            try:
                os.link(newest, side)
            except OSError:  # a file system without hard links
                shutil.copyfile(newest, side)
            os.replace(side, path)
            sync_dir(path.parent)


@HOOKS.register_module()
class LoggerHook(_LoggerHook):
    """mmengine's hook; a slow validation or test also says where it is every ``patience`` seconds.

    Args:
        patience (float): Seconds after which a batch of a validation or test gets a line of its own.
        kwargs: mmengine's ``LoggerHook``.
    """

    def __init__(self, *args, patience=15., **kwargs):
        super().__init__(*args, **kwargs)
        self.patience = patience
        self._said = 0.

    def before_val_epoch(self, runner):
        self._said = time.monotonic()

    before_test_epoch = before_val_epoch

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._tell(runner, batch_idx, 'val')

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._tell(runner, batch_idx, 'test')

    def _tell(self, runner, batch_idx, mode):
        if self.every_n_inner_iters(batch_idx, self.interval) or time.monotonic() - self._said >= self.patience:
            self._said = time.monotonic()
            _, line = runner.log_processor.get_log_after_iter(runner, batch_idx, mode)
            runner.logger.info(line)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop before the next checkpoint when a loss is NaN or infinite, and save the batch.

    ``nonfinite_batch_rank<r>.json`` lists losses and samples; the ``.pth`` beside it has what the model was given
    (``inputs`` and ``samples``, plain values), so that the batch can be tried again.

    Args:
        interval (int): Look at every n-th iteration.

    Raises:
        FloatingPointError: With the iteration, the losses and the file that lists the batch.
    """

    priority = 'NORMAL'

    def __init__(self, interval=1):
        self.interval = interval

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.every_n_train_iters(runner, self.interval) or not outputs:
            return
        losses = {key: float(value.detach()) for key, value in outputs.items() if 'loss' in key}
        if all(map(math.isfinite, losses.values())):
            return
        text = ', '.join(f'{key} {value}' for key, value in losses.items())
        path = Path(runner.work_dir, f'nonfinite_batch_rank{runner.rank}.json')
        try:
            self._write(path, runner.iter + 1, losses, data_batch if isinstance(data_batch, dict) else {})
            where = f'its samples are listed in {path}, the batch is in {path.stem}.pth'
        except Exception as error:  # the loss matters more than the report
            where = f'its samples could not be written ({error})'
        raise FloatingPointError(f'the loss is not finite at iteration {runner.iter + 1} ({text}); {where}. Lower '
                                 'optim_wrapper.optimizer.lr, set optim_wrapper.clip_grad, or look at these samples; '
                                 'the last checkpoint is from before')

    @staticmethod
    def _write(path, iteration, losses, batch):
        samples = batch.get('data_samples', [])
        names = [{key: getattr(sample, key, None) for key in ('sample_idx', 'img_path')} for sample in samples]
        path.write_text(json.dumps(dict(iter=iteration, losses={k: str(v) for k, v in losses.items()}, samples=names),
                                   indent=2, default=str))
        write_checkpoint(dict(inputs=[image.cpu() for image in batch.get('inputs', [])],
                              samples=[_plain_fields(sample) for sample in samples]), path.with_suffix('.pth'))


@HOOKS.register_module()
class ShortHistoryHook(Hook):
    """Keep the last values of every logged scalar only; mmengine's default is a million of each.

    Args:
        length (int): Values kept.
    """

    priority = 'LOWEST'

    def __init__(self, length=1000):
        self.length = length

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.every_n_train_iters(runner, 100) or batch_idx == 0:
            for buffer in runner.message_hub.log_scalars.values():
                buffer.max_length = self.length


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
        interval (int): Several processes ask one another every n-th iteration.
    """

    priority = 'LOWEST'

    def __init__(self, interval=10):
        self.interval = interval
        self.told = False
        self._told_at = 0.
        self._before = None

    def before_train(self, runner):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._tell)

    def after_train(self, runner):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _tell(self, number, frame):
        if self.told and time.monotonic() - self._told_at > 10:  # the cluster and torchrun both tell within seconds
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self._told_at = self._told_at if self.told else time.monotonic()
        self.told = True

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.told and runner.world_size == 1:  # with several processes, after the validation
            raise ValidationLeft(self)

    def between_iterations(self, runner):
        """Called by the training loops, when the iteration is counted."""
        window = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if runner.iter % window:
            return
        told = self.told
        if runner.world_size > 1:
            told = runner.iter // window % self.interval == 0 and any(gather_objects(self.told))
        if told:
            self.stop(runner)

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


def outlasts_term(loader):
    """Let the workers of a data loader live on after a SIGTERM, until their training is through.

    Clusters send the signal to all processes; without its workers the training could not reach the iteration after
    which it saves. What Python does at its own end, a SIGTERM to each worker and waiting, would wait for ever then, so
    they are killed before. Workers of a process that was killed itself end by torch's watchdog, within seconds.

    Args:
        loader (DataLoader): With workers; changed in place.
    """
    loader.worker_init_fn = _IgnoresTerm(loader.worker_init_fn)
    atexit.unregister(_kill_workers)
    atexit.register(_kill_workers)


def _kill_workers():
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if children and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report a worker that died
    for child in children:
        child.kill()


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
                p.copy_(raw[name])

    def before_train(self, runner):
        if not self._average:
            self._average = {name: p.detach().clone() for name, p in self._trained(runner).items()}

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (runner.iter + 1) % getattr(runner.optim_wrapper, '_accumulative_counts', 1) and (
                runner.iter + 1 < runner.max_iters):
            return
        trained = self._trained(runner)
        weight = 1. if runner.iter < self.begin_iter else self.momentum
        torch._foreach_lerp_([self._average[name] for name in trained], [p.data for p in trained.values()], weight)

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
        inside, outside = {name: p.detach().cpu() for name, p in trained.items()}, {
            name: value.cpu() for name, value in self._average.items()}
        raw, average = (outside, inside) if self._swapped else (inside, outside)
        names = {id(p): name for name, p in trained.items()}
        checkpoint['raw'] = {name: value.clone() for name, value in raw.items()}
        for key, value in runner.bare_model.state_dict(keep_vars=True).items():
            if id(value) in names:
                checkpoint['state_dict'][key] = average[names[id(value)]]
