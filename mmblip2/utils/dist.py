"""Collectives that also work with one process and without a process group."""
import re
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from mmblip2.errors import DataError, MMBlip2Error


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


class _ExchangeRows(torch.autograd.Function):
    """Rows of all processes, chosen by each; the backward sends every gradient home and adds up those of a row."""

    @staticmethod
    def forward(ctx, x, index):
        rank, size = world()
        rows = len(x)
        asked = gather(index).cpu().view(size, -1)  # (W, N), global rows; one wait for the device
        owner = asked // rows
        sent = [asked[other][owner[other] == rank] - rank * rows for other in range(size)]
        ctx.order = owner[rank].argsort(stable=True).to(x.device)  # rows arrive by owner
        ctx.sent = torch.cat(sent).to(x.device)
        ctx.counts = [len(part) for part in sent], owner[rank].bincount(minlength=size).tolist()
        ctx.rows = rows
        arrived = x.new_empty(len(index), *x.shape[1:])
        dist.all_to_all_single(arrived, x[ctx.sent], ctx.counts[1], ctx.counts[0])
        result = torch.empty_like(arrived)
        result[ctx.order] = arrived
        return result

    @staticmethod
    def backward(ctx, gradient):
        home = gradient.new_empty(len(ctx.sent), *gradient.shape[1:])
        dist.all_to_all_single(home, gradient[ctx.order], *ctx.counts)
        total = gradient.new_zeros(ctx.rows, *gradient.shape[1:])
        return total.index_add_(0, ctx.sent, home), None


def exchange_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``gather(x, with_gradient=True)[index]`` for which only the chosen rows travel.

    Args:
        x: (B, ...), the own rows; B must be the same everywhere.
        index: int64 (N,), places among the rows of all processes; N must be the same everywhere.

    Returns:
        torch.Tensor: (N, ...).
    """
    return x[index] if world()[1] == 1 else _ExchangeRows.apply(x, index)


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


def on_first(work):
    """The result of ``work()`` on rank 0, on every process; the others wait and do not call it.

    Raises:
        Exception: On rank 0 what ``work`` raised; on the others a DataError where that was an error of ours, else a
            RuntimeError, with its text: no process goes on or waits for another.
    """
    result = error = None
    if world()[0] == 0:
        try:
            result = work()
        except Exception as failure:  # raised below, on all processes
            error = failure
    known = isinstance(error, MMBlip2Error)
    result, known, message = gather_objects((result, known, error and f'{type(error).__name__}: {error}'))[0]
    if message:
        raise error or (DataError if known else RuntimeError)(f'rank 0: {message}')
    return result


def share_of_global(local_sum: torch.Tensor, local_count: torch.Tensor) -> torch.Tensor:
    """A local sum divided so that the mean over processes (as DDP takes it) is the sum over the global count.

    Returns:
        torch.Tensor: ``local_sum * W / sum of counts``; 0 where no process has anything to count.
    """
    count = local_count.clone()
    if world()[1] > 1:
        dist.all_reduce(count)
    return local_sum * world()[1] / count.clamp(min=1)
