"""Collectives that also work with one process and without a process group."""
import re
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


def world() -> tuple:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _GatherWithGradient(torch.autograd.Function):
    """Concatenate over ranks; the backward adds up every rank's gradient and returns the own slice."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: torch.Tensor, with_gradient: bool = False) -> torch.Tensor:
    """Concatenate ``x`` (B, ...) of all processes to (W*B, ...), in rank order; B must be the same everywhere.

    Args:
        x: The own rows.
        with_gradient: Whether a loss on any process sends a gradient to the rows' owner. Without, the rows of other
            processes are constants and the own rows are, too.
    """
    if world()[1] == 1:
        return x
    return _GatherWithGradient.apply(x) if with_gradient else _GatherWithGradient.apply(x.detach())


_LOST = re.compile('closed by peer|reset by peer|broken pipe|timed out|timeout', re.IGNORECASE)


@contextmanager
def naming_lost_processes():
    """Say in plain words what torch reports when another process has ended or does not answer.

    One that ends is noticed at the next exchange; one that hangs after ``env_cfg.dist_cfg.timeout`` seconds (30 minutes
    with gloo, 10 with NCCL, where torch ends the process).

    Raises:
        RuntimeError: In place of torch's.
    """
    try:
        yield
    except RuntimeError as error:
        rank, size = world()
        if size == 1 or not _LOST.search(str(error)):
            raise
        raise RuntimeError(f'process {rank} of {size} has lost another one, which ended or does not answer: the reason '
                           'is in the output of that process (killed without a word: often the memory of its host). '
                           'Checkpoints are whole; --resume goes on from the newest, and torchrun --max-restarts=N '
                           'does so by itself') from error


def whole(tensor: Any) -> torch.Tensor:
    """All of a tensor that is divided among processes (every one has to call this); others as they are."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


def local(tensor: Any) -> torch.Tensor:
    """What this process holds of a divided tensor, the same memory; others as they are."""
    return tensor.detach().to_local() if hasattr(tensor, 'to_local') else tensor


def shard_like(value: torch.Tensor, target: Any) -> torch.Tensor:
    """``value``, which every process has, divided as ``target`` is; as it is where ``target`` is not divided."""
    if not hasattr(target, 'to_local'):
        return value
    from torch.distributed.tensor import distribute_tensor
    value = value.reshape(target.shape).to(target.device)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def gather_objects(obj) -> list:
    """One picklable object of every process, in rank order."""
    if world()[1] == 1:
        return [obj]
    objects = [None] * world()[1]
    dist.all_gather_object(objects, obj)
    return objects


def share_of_global(local_sum: torch.Tensor, local_count: torch.Tensor) -> torch.Tensor:
    """A local sum divided so that the mean over processes (as DDP takes it) is the sum over the global count.

    Returns:
        torch.Tensor: ``local_sum * W / sum of counts``; 0 where no process has anything to count.
    """
    count = local_count.clone()
    if world()[1] > 1:
        dist.all_reduce(count)
    return local_sum * world()[1] / count.clamp(min=1)
