"""Samplers that can start anywhere, and the index that knows which draw of the run it is."""
import math

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from mmblip2.registry import DATA_SAMPLERS


class Draw(int):
    """A sample index that also knows the seed of the run and its position among all draws of the run.

    The data set makes the random numbers of the draw from (seed, pos), so they depend neither on the number
    of workers nor on what was drawn before. ``ConcatDataset`` and ``RepeatDataset`` shift an index by ``-``
    and ``%``: both keep seed and position.

    Args:
        index (int): Index in the data set.
        seed (int): Seed of the run, >= 0.
        pos (int): Number of this draw, counted over all ranks from the start of the run.
    """

    seed: int
    pos: int

    def __new__(cls, index, seed, pos):
        self = super().__new__(cls, index)
        self.seed = seed
        self.pos = pos
        return self

    def __reduce__(self):
        return Draw, (int(self), self.seed, self.pos)

    def __sub__(self, other):
        return Draw(int(self) - other, self.seed, self.pos)

    def __mod__(self, other):
        return Draw(int(self) % other, self.seed, self.pos)


def epoch_order(size, shuffle, seed, epoch):
    """The order of one epoch.

    Returns:
        numpy.ndarray: (size,) int64, a permutation drawn from ``Generator(seed + epoch)``, or 0..size-1.
    """
    if not shuffle:
        return torch.arange(size).numpy()
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed + epoch)).numpy()


class EpochOrders:
    """Endless order of ``size`` samples: element k is element ``k % size`` of the order of epoch ``k // size``."""

    def __init__(self, size, shuffle, seed):
        self.size, self.shuffle, self.seed = size, shuffle, seed
        self._epoch = None

    def __getitem__(self, k):
        epoch, offset = divmod(k, self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.size, self.shuffle, self.seed, epoch)
        return int(self._order[offset])


def endless_order(dataset, shuffle, seed):
    """The order in which a data set is drawn: its own ``endless_order(shuffle, seed)`` if it has one, or else
    permutations.

    Returns:
        Object whose element k is the index of draw k, k = 0, 1, 2, ... without end, wherever one begins.
    """
    own = getattr(dataset, 'endless_order', None)
    return EpochOrders(len(dataset), shuffle, seed) if own is None else own(shuffle, seed)


class _RankSampler(Sampler):
    """What both samplers share: the data set, the seed, the rank."""

    def __init__(self, dataset, shuffle=True, seed=None):
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.size = len(dataset)


@DATA_SAMPLERS.register_module()
class SeekableInfiniteSampler(_RankSampler):
    """Endless permutations for iteration-based loops.

    Global draw ``p`` is element ``p % N`` of the order of epoch ``p // N`` (a data set may have an order of its own,
    see ``endless_order``); rank r of W yields the draws r, r + W, r + 2W, ... So the data of a run do not depend on
    how often it was interrupted, and several ranks together draw what one rank with a batch W times as large would.

    Args:
        dataset (Sized): The data set, N samples.
        shuffle (bool): Draw a new permutation every epoch.
        seed (int, optional): Defaults to a number that all ranks agree on.
    """

    def __init__(self, dataset, shuffle=True, seed=None):
        super().__init__(dataset, shuffle, seed)
        self.start = 0

    def seek(self, consumed):
        """Make the next iterator start after ``consumed`` draws of all ranks; nothing is replayed."""
        self.start = consumed

    def __iter__(self):
        order, pos = endless_order(self.dataset, self.shuffle, self.seed), self.start + self.rank
        while True:
            yield Draw(order[pos], self.seed, pos)
            pos += self.world_size

    def __len__(self):
        """Draws of this rank in one pass over the data."""
        return math.ceil(self.size / self.world_size)

    def set_epoch(self, epoch):
        """Nothing to do: an endless sampler counts draws. mmengine's loops call it."""


@DATA_SAMPLERS.register_module()
class SeekableSampler(_RankSampler):
    """One permutation (or a data set's own order) an epoch, for epoch-based loops; draws are numbered over the epochs.

    Args:
        dataset (Sized): The data set, N samples.
        shuffle (bool): Draw a new permutation every epoch.
        seed (int, optional): Defaults to a number that all ranks agree on.
        round_up (bool): Repeat samples from the start of the order, so that all ranks get equally many.
    """

    def __init__(self, dataset, shuffle=True, seed=None, round_up=True):
        super().__init__(dataset, shuffle, seed)
        self.total = math.ceil(self.size / self.world_size) * self.world_size if round_up else self.size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch):
        """Choose the epoch of the next iterator."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def seek(self, consumed):
        """Make the next iterator start after ``consumed`` draws of the run (counted over all ranks)."""
        self.epoch, self.start = divmod(consumed, self.total)

    def __iter__(self):
        order = endless_order(self.dataset, self.shuffle, self.seed)
        start, self.start = self.start, 0
        for offset in range(start + self.rank, self.total, self.world_size):
            yield Draw(order[self.epoch * self.size + offset % self.size], self.seed, self.epoch * self.total + offset)

    def __len__(self):
        """Draws of this rank in a whole epoch."""
        return len(range(self.rank, self.total, self.world_size))


@DATA_SAMPLERS.register_module()
class BlockSampler(Sampler):
    """Every sample once, for evaluation: blocks of a batch each are dealt out to the processes.

    So the batches, and with them the padding and every rounding, are those of one process, whatever their number. Some
    processes may get fewer batches, or none: for metrics that gather by sample index only.
    The samples come in order, but those of one image together, where the data set can say which they are
    (``rows_by_image``): so that the image is encoded once.

    Args:
        dataset (Sized): The data set, N samples.
        batch_size (int): That of the data loader.
        seed: mmengine gives one to every sampler; nothing is drawn here.
    """

    def __init__(self, dataset, batch_size, seed=None):
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.batch_size = batch_size
        self.order = dataset.rows_by_image() if hasattr(dataset, 'rows_by_image') else range(self.size)

    def __iter__(self):
        for start in range(self.rank * self.batch_size, self.size, self.world_size * self.batch_size):
            yield from self.order[start:start + self.batch_size]

    def __len__(self):
        """Samples of this rank."""
        return sum(1 for _ in self)
