"""Several data sets as one, each drawn as often as its ratio says."""
import numpy as np
from mmengine.dataset import ConcatDataset
from torch.utils.data import IterableDataset

from mmblip2.errors import ConfigError
from mmblip2.registry import DATASETS

from .samplers import endless_order

OTHER_SEED = 1000003  # so that two sources of one size are not shuffled alike


@DATASETS.register_module()
class MixedDataset(ConcatDataset):
    """Draw from several data sets by ratio; each of them goes through its own epochs.

    Of every ``window`` draws the sources get their shares, rounded to whole draws, in random order. Which sample draw
    p is follows from the seed and p alone, so a resume is exact, and processes and workers change nothing. An epoch,
    where one is counted, is as many draws as the sources have samples together. By index it is a ``ConcatDataset``.

    The sampler asks for this order: it has to be ``SeekableInfiniteSampler`` or ``SeekableSampler``, and this data set
    the outermost one (or a source of another mix).

    Args:
        datasets (Sequence): Data sets, or configs of them.
        ratios (Sequence[float]): How often each is drawn, in any unit: their sizes give every sample the same chance.
        window (int): Draws of which the shares are exact.
        lazy_init, ignore_keys: See mmengine's ``ConcatDataset``.

    Raises:
        ConfigError: Another number of ratios than data sets, a ratio that is not positive or too small for the window,
            or a source that is a stream.
    """

    def __init__(self, datasets, ratios, window=1000, lazy_init=False, ignore_keys=None):
        self.ratios = list(ratios)
        self.window = window
        self.counts = draws_of_window('MixedDataset', 'datasets', datasets, self.ratios, window)
        super().__init__(datasets, lazy_init, ignore_keys)

    def full_init(self):
        """Load the sources."""
        streams = [type(dataset).__name__ for dataset in self.datasets if isinstance(dataset, IterableDataset)]
        if streams:
            raise ConfigError(f'MixedDataset cannot mix {streams[0]}, which has no samples with numbers: use WebShards '
                              'on local or mounted files, or MixedStream, of streams alone')
        super().full_init()

    def endless_order(self, shuffle, seed):
        """See ``samplers.endless_order``."""
        orders = [endless_order(dataset, shuffle, seed + OTHER_SEED * number)
                  for number, dataset in enumerate(self.datasets)]
        return _MixedOrder(self.counts, orders, [0, *self.cumulative_sizes], shuffle, seed)


def draws_of_window(name, what, sources, ratios, window):
    """How many draws of a window each source gets.

    Args:
        name, what (str): Who mixes, and its argument of the sources, for messages.
        sources (Sequence): What is mixed.
        ratios (list[float]): One a source.
        window (int): Draws.

    Returns:
        list[int]: From 1 on, ``window`` in all.

    Raises:
        ConfigError: Another number of ratios, one that is not positive or too small for the window.
    """
    if len(ratios) != len(sources):
        raise ConfigError(f'{name} has {len(sources)} {what} and {len(ratios)} ratios: give each one a ratio')
    wrong = [ratio for ratio in ratios if not isinstance(ratio, (int, float)) or not 0 < ratio < float('inf')]
    if wrong or not ratios:
        raise ConfigError(f'ratios of {name} are {ratios}: expected positive numbers; take out what is not to be drawn')
    counts = _shares(ratios, window)
    if 0 in counts:
        number = counts.index(0)
        need = int(np.ceil(sum(ratios) / min(ratios)))
        raise ConfigError(f'ratio {ratios[number]} of {what}[{number}] is {ratios[number] / sum(ratios):.2g} of '
                          f'all, which gives it no draw of a window of {window}: set window={need} or more')
    return counts


def _shares(ratios, window):
    """``window`` split by ratios into whole numbers, by the largest remainders."""
    exact = [ratio / sum(ratios) * window for ratio in ratios]
    counts = [int(share) for share in exact]
    rest = sorted(range(len(ratios)), key=lambda number: counts[number] - exact[number])
    for number in rest[:window - sum(counts)]:
        counts[number] += 1
    return counts


class _MixedOrder:
    """Endless order of a mix.

    Args:
        counts (list[int]): Draws of each source in a window.
        orders (list): Endless order of each source.
        starts (list[int]): Index of the first sample of each source.
        shuffle (bool): Draw the order of the sources in a window; else they are spread evenly.
        seed (int): From 0 on.
    """

    def __init__(self, counts, orders, starts, shuffle, seed):
        self.counts, self.orders, self.starts, self.shuffle, self.seed = counts, orders, starts, shuffle, seed
        self.window = sum(counts)
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        self._even = np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind='stable')]
        self._number = None

    def __getitem__(self, k):
        number, offset = divmod(k, self.window)
        if number != self._number:
            self._number, self._sources = number, self._even
            if self.shuffle:
                self._sources = np.random.default_rng((self.seed, number)).permutation(self._even)
            self._before = np.empty(self.window, np.int64)  # draws of the same source earlier in the window
            for source, count in enumerate(self.counts):
                self._before[self._sources == source] = np.arange(count)
        source = int(self._sources[offset])
        drawn = number * self.counts[source] + int(self._before[offset])
        return self.starts[source] + self.orders[source][drawn]
