"""Momentum encoders and queues of image-text contrastive learning (BLIP, section 3.2, after MoCo and ALBEF).

Shapes: G rows of all processes, K rows of a queue, C contrastive width.
"""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError

#: names of what a model keeps of earlier batches
QUEUES = ('image_queue', 'text_queue', 'image_id_queue', 'queue_ptr')


class MomentumCopies(nn.Module):
    """Copies of trained modules that follow them slowly: never trained, but part of the state.

    Args:
        momentum (float): Share of the copy that an update keeps.
        parts (dict): Name to module.

    Raises:
        ConfigError: If ``momentum`` is not between 0 and 1.
    """

    def __init__(self, momentum: float, parts: dict[str, nn.Module]):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ConfigError(f'momentum is {momentum}, expected a number from 0 to below 1 (0.995 in the paper)')
        self.momentum = momentum
        for name, part in parts.items():
            self.add_module(name, copy.deepcopy(part).requires_grad_(False))

    def follow(self, parts: dict[str, nn.Module]):
        """Move to where the modules of these names are now, by the share ``1 - momentum``."""
        self._move(parts, 1 - self.momentum)

    def restart(self, parts: dict[str, nn.Module]):
        """Become copies of the modules of these names."""
        self._move(parts, 1.)

    @torch.no_grad()
    def _move(self, parts, share):
        for name, copied in self.named_children():
            followed = [p.detach() for p in parts[name].parameters()]
            torch._foreach_lerp_(list(copied.parameters()), followed, share)


def random_queue(width: int, size: int, seed: int) -> torch.Tensor:
    """What a queue holds before the first batch: float32 (C, K) random directions, the same ones on every process."""
    generator = torch.Generator('cpu').manual_seed(seed)
    return F.normalize(torch.randn(width, size, generator=generator, device='cpu'), dim=0)


@torch.no_grad()
def advance(queues: list[torch.Tensor], pointer: torch.Tensor, rows: list[torch.Tensor]):
    """Replace the oldest entries of queues, in place.

    Args:
        queues: Tensors with K columns.
        pointer: int64 (1,), the column of the oldest entry; moves on.
        rows: For every queue, G columns in its shape.
    """
    count, size = rows[0].size(-1), queues[0].size(-1)
    # from the last column on to the first: a training may take over a queue that batches of another size have filled
    places = (pointer + torch.arange(count, device=pointer.device)) % size
    for queue, new in zip(queues, rows):
        queue[..., places] = new
    pointer.copy_((pointer + count) % size)


def check_queue(size: int, rows: int, processes: int):
    """Refuse a queue that batches do not fill evenly.

    Args:
        size: Columns K of the queue.
        rows: Batch size of a process.
        processes: Their number.

    Raises:
        ConfigError: With the numbers, and sizes that fit.
    """
    batch = rows * processes
    if size % batch:
        below, above = size // batch * batch, -(-size // batch) * batch
        raise ConfigError(
            f'queue_size {size} is not a multiple of the batch of all processes, {batch} ({rows} of {processes} '
            f'process{"es" if processes > 1 else ""}): set queue_size to '
            + (f'{below} or {above}' if below else f'{above}')
            + ', or change the batch size; if this was the smaller last batch of an epoch, set drop_last=True in '
            'train_dataloader')
