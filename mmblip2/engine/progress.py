"""One short progress line."""
from datetime import timedelta
from numbers import Real

from mmengine.runner import LogProcessor

from ..registry import LOG_PROCESSORS
from ..utils.env import peak_memory

_TIMES = ('time', 'data_time')


def _number(value):
    return f'{value:.4g}' if isinstance(value, float) else str(value)


@LOG_PROCESSORS.register_module()
class ProgressLogProcessor(LogProcessor):
    """Lines such as ``train 120/2000  loss 2.31 (itc 0.71, itm 0.62, itg 0.98)  lr 1e-04  312 img/s
    1834 MiB  left 0:03:12``; the memory is the peak, of the GPU where there is one, else of the process.

    The values given to the visualizer backends are mmengine's. Arguments: mmengine's ``LogProcessor``.
    """

    def get_log_after_iter(self, runner, batch_idx, mode):
        tag, _ = super().get_log_after_iter(runner, batch_idx, mode)
        parts = [self._position(runner, batch_idx, mode)]
        batch_size = getattr(self._loader(runner, mode), 'batch_size', None)
        if mode == 'train':
            parts += self._losses(tag)
            if 'lr' in tag:
                parts.append(f'lr {tag["lr"]:.2e}')
        if batch_size and tag.get('time'):
            speed = batch_size * runner.world_size / tag['time']
            tag['samples_per_second'] = speed
            parts.append(f'{speed:.0f} img/s' if speed >= 10 else f'{speed:.1f} img/s')
        parts.append(f'{peak_memory():.0f} MiB')
        eta = runner.message_hub.get_info('eta')
        if eta is not None:
            parts.append(f'left {timedelta(seconds=int(eta))}')
        return tag, '  '.join(parts)

    def get_log_after_epoch(self, runner, batch_idx, mode, with_non_scalar=False):
        tag, _ = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        values = [f'{key} {_number(value)}' for key, value in tag.items()
                  if isinstance(value, Real) and key.split('/')[-1] not in _TIMES]
        return tag, f'{mode}: {", ".join(values) or "no metrics"}'

    @staticmethod
    def _loader(runner, mode):
        return getattr(runner, f'{mode}_dataloader')

    def _position(self, runner, batch_idx, mode):
        if mode != 'train':
            return f'{mode} {batch_idx + 1}/{len(self._loader(runner, mode))}'
        text = f'train {runner.iter + 1}/{runner.max_iters}'
        return f'{text} (epoch {runner.epoch + 1}/{runner.max_epochs})' if runner.max_epochs > 1 else text

    @staticmethod
    def _losses(tag):
        """'loss 2.31 (itc 0.71, ...)' and the statistics that are no losses, such as acc_itm."""
        known = {'lr', 'base_lr', 'loss', 'iter', 'epoch', 'memory', 'grad_norm', *_TIMES}
        terms = {key: value for key, value in tag.items() if 'loss' in key and key != 'loss'}
        parts = []
        if 'loss' in tag:
            detail = ', '.join(f'{key.replace("loss_", "")} {_number(value)}' for key, value in terms.items())
            parts.append(f'loss {_number(tag["loss"])}' + (f' ({detail})' if len(terms) > 1 else ''))
        parts += [f'{key} {_number(value)}' for key, value in tag.items()
                  if key not in known and key not in terms and isinstance(value, Real)]
        return parts
