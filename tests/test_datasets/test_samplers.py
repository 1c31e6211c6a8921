import pickle
from itertools import islice

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset

from mmblip2.datasets import Draw, SeekableInfiniteSampler, SeekableSampler, TextCorpus, samplers
from mmblip2.datasets.samplers import BlockSampler
from mmblip2.registry import DATA_SAMPLERS


def take(sampler, count):
    return list(islice(iter(sampler), count))


def at_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(samplers, 'get_dist_info', lambda: (rank, world_size))


def test_draw_is_an_index_that_survives_pickling():
    draw = pickle.loads(pickle.dumps(Draw(4, seed=7, pos=11)))
    assert draw == 4 and 'abcde'[draw] == 'e' and (draw.seed, draw.pos) == (7, 11)


def test_draw_keeps_seed_and_position_through_wrappers(tmp_path):
    (tmp_path / 'a.txt').write_text('one\ntwo\n')
    sets = [TextCorpus(str(tmp_path / 'a.txt'), pipeline=[lambda results: results]) for _ in range(2)]
    expected = np.random.default_rng((5, 9)).random()
    for wrapped in (ConcatDataset(sets), RepeatDataset(sets[0], 2)):
        results = wrapped[Draw(3, seed=5, pos=9)]
        assert results['target'] == 'two' and results['rng'].random() == expected


def test_every_epoch_is_another_permutation():
    draws = take(SeekableInfiniteSampler(range(10), seed=1), 30)
    epochs = [draws[:10], draws[10:20], draws[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [draw.pos for draw in draws] == list(range(30)) and draws[0].seed == 1


def test_without_shuffling_the_order_is_the_data_sets():
    assert take(SeekableInfiniteSampler(range(3), shuffle=False, seed=0), 7) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize('consumed', [0, 3, 10, 27])
def test_seeking_equals_drawing(consumed):
    whole = take(SeekableInfiniteSampler(range(10), seed=1), 40)
    sampler = SeekableInfiniteSampler(range(10), seed=1)
    sampler.seek(consumed)
    rest = take(sampler, 40 - consumed)
    assert rest == whole[consumed:] and [draw.pos for draw in rest] == [draw.pos for draw in whole[consumed:]]


def test_three_ranks_together_draw_what_one_draws(monkeypatch):
    whole = take(SeekableInfiniteSampler(range(10), seed=1), 36)
    for rank in range(3):
        at_rank(monkeypatch, rank, 3)
        sampler = SeekableInfiniteSampler(range(10), seed=1)
        sampler.seek(6)
        assert take(sampler, 10) == whole[6 + rank::3]
        assert len(sampler) == 4


def test_seed_defaults_to_one_that_the_sampler_keeps():
    sampler = SeekableInfiniteSampler(range(20))
    assert take(sampler, 40) == take(sampler, 40)


def test_samplers_are_built_from_configs():
    sampler = DATA_SAMPLERS.build(dict(type='SeekableInfiniteSampler', dataset=range(4), seed=3))
    assert isinstance(sampler, SeekableInfiniteSampler)


def test_epoch_sampler_pads_so_that_ranks_are_equal(monkeypatch):
    parts = []
    for rank in range(3):
        at_rank(monkeypatch, rank, 3)
        parts.append(list(SeekableSampler(range(10), seed=1)))
        assert len(SeekableSampler(range(10), seed=1)) == 4
    assert [len(part) for part in parts] == [4, 4, 4] and set(sum(parts, [])) == set(range(10))
    lengths = []
    for rank in range(3):
        at_rank(monkeypatch, rank, 3)
        lengths.append(len(list(SeekableSampler(range(10), seed=1, round_up=False))))
    assert lengths == [4, 3, 3]


def test_epoch_sampler_seeks_once_and_numbers_draws_over_epochs():
    sampler = SeekableSampler(range(10), seed=1)
    sampler.set_epoch(2)
    whole = list(sampler)
    assert sorted(whole) == list(range(10)) and [draw.pos for draw in whole] == list(range(20, 30))
    sampler.seek(24)
    sampler.set_epoch(2)
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole


def test_epoch_samplers_orders_are_the_infinite_samplers():
    sampler = SeekableSampler(range(10), seed=1)
    sampler.set_epoch(1)
    assert list(sampler) == take(SeekableInfiniteSampler(range(10), seed=1), 20)[10:]


# ------------------------------------------------------------------------------------------ evaluation by image

class Questions:
    """Rows about the images 0 1 0 2 1 0."""
    images = (0, 1, 0, 2, 1, 0)

    def __len__(self):
        return len(self.images)

    def rows_by_image(self):
        return [0, 2, 5, 1, 4, 3]


def test_blocks_keep_the_rows_of_an_image_together(monkeypatch):
    assert list(BlockSampler(Questions(), batch_size=4)) == [0, 2, 5, 1, 4, 3]
    monkeypatch.setattr(samplers, 'get_dist_info', lambda: (1, 2))
    assert list(BlockSampler(Questions(), batch_size=2)) == [5, 1]
    assert list(BlockSampler(range(5), batch_size=2)) == [2, 3], 'without images: in order'
