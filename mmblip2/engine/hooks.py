"""Checkpoints that outlive a crash, progress lines, and a stop at the first loss that is no number."""
import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.hooks import Hook
from mmengine.hooks import LoggerHook as _LoggerHook
from mmengine.runner import EpochBasedTrainLoop

from ..checkpoints.io import sync_dir, write_checkpoint
from ..errors import ConfigError
from ..registry import HOOKS


def _plain_fields(sample):
    """The fields of a data sample that a checkpoint file can hold."""
    plain = (str, int, float, bool, list, tuple, torch.Tensor)
    return {key: value for key, value in sample.items() if isinstance(value, plain)}


def _write_text(path, text):
    side = Path(f'{path}.part')
    with open(side, 'w') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
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
        window = runner.accumulation_window
        if not self.by_epoch and self.interval > 0 and self.interval % window:
            raise ConfigError(f'default_hooks.checkpoint.interval ({self.interval}) is no multiple of '
                              f'optim_wrapper.accumulative_counts ({window}): a checkpoint inside the window '
                              f'would lose gradients; use {-(-self.interval // window) * window}')
        if self.by_epoch and self.interval > 0 and len(runner.train_dataloader) * self.interval % window:
            raise ConfigError(f'an epoch has {len(runner.train_dataloader)} iterations, which is no multiple of '
                              f'optim_wrapper.accumulative_counts ({window}): a checkpoint at its end would lose '
                              'gradients; change one of them or default_hooks.checkpoint.interval')
        # the file of a preemption goes with the next checkpoint
        resumed = runner.resumed_from
        self._preempted = [resumed] if self.by_epoch and resumed and resumed.name.startswith('iter_') else []
        if is_main_process():
            for part in Path(self.out_dir).glob('*.pth.*.part'):  # saves that were cut off
                part.unlink(missing_ok=True)
        self._best = {}
        record = Path(self.out_dir, 'best.json')
        if self.save_best and runner.iter > 0 and record.is_file():
            try:
                self._best = {key: best for key, best in json.loads(record.read_text()).items()
                              if best['iter'] <= runner.iter}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                runner.logger.warning(f'{record} is broken ({error}): the next validation counts as the best so far')

    def _save_checkpoint_with_step(self, runner, step, meta):
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir, name))
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        old = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            old = list(self.keep_ckpt_ids)[:max(len(self.keep_ckpt_ids) + 1 - self.max_keep_ckpts, 0)]
            self.keep_ckpt_ids.append(step)  # a deque of limited length
            # a resume removes those beyond max_keep_ckpts: the old ones are there still if this run is killed now
            runner.message_hub.update_info('keep_ckpt_ids', old + list(self.keep_ckpt_ids))
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
                if before is not None and Path(before['path']).name != path.name:
                    path.with_name(Path(before['path']).name).unlink(missing_ok=True)  # in this folder, if it moved
                _write_text(Path(self.out_dir, 'best.json'), json.dumps(self._best, indent=2))
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
                with open(side, 'rb+') as file:
                    os.fsync(file.fileno())
            os.replace(side, path)
            sync_dir(path.parent)


@HOOKS.register_module()
class LoggerHook(_LoggerHook):
    """mmengine's hook; a slow validation or test also says where it is every ``patience`` seconds.

    Args:
        patience (float): Seconds after which a batch of a validation or test gets a line of its own.
        log_metric_by_epoch (bool | None): Curves of the validation count epochs, or else iterations; None: as the
            training does.
        kwargs: mmengine's ``LoggerHook``.
    """

    log_metric_by_epoch: bool | None

    def __init__(self, *args, patience=15., log_metric_by_epoch=None, **kwargs):
        super().__init__(*args, log_metric_by_epoch=log_metric_by_epoch, **kwargs)
        self.patience = patience
        self._said = 0.

    def before_train(self, runner):
        super().before_train(runner)
        if self.log_metric_by_epoch is None:
            self.log_metric_by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)

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
            where = (f'its samples are listed in {path}, the batch is in {path.stem}.pth: torch.load("'
                     f'{path.with_suffix(".pth")}", weights_only=True) gives its inputs and samples')
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
