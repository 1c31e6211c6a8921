import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional import retrieval
from mmblip2.evaluation.functional.retrieval import Ranks, recall_from_ranks, retrieval_ranks, retrieval_recall

GOLDEN = json.loads((Path(__file__).parents[2] / 'data' / 'retrieval_recall.json').read_text())
recipe = {'np': np}
exec(GOLDEN['meta']['recipe'], recipe)  # defines `make`
IDS = [f'{case["kind"]}-{case["seed"]}' for case in GOLDEN['cases']]


def recall_of(case):
    ncap = case.get('ncap')
    i2t, t2i, texts_of, image_of, _ = recipe['make'](
        case['seed'], case['n_img'], ncap, case['signal'], case['kind'], case.get('symmetric', True))
    assert i2t.sum() == pytest.approx(case['checksum']['i2t_sum'])
    txt = retrieval_recall(i2t, [texts_of[i] for i in range(len(texts_of))])
    img = retrieval_recall(t2i, [[image_of[t]] for t in range(len(image_of))])
    return {**{f'txt_r{k}': v for k, v in txt.items()}, **{f'img_r{k}': v for k, v in img.items()}}


@pytest.mark.parametrize('case', GOLDEN['cases'], ids=IDS)
def test_equals_lavis_without_ties_and_stays_inside_the_bounds_with_them(case):
    recall = recall_of(case)
    if 'bounds' in case:
        assert recall == recall_of(case)
        for key, value in recall.items():
            assert case['bounds']['pessimistic'][key] <= value <= case['bounds']['optimistic'][key]
    else:
        assert recall == {key: pytest.approx(case['lavis'][key], abs=1e-9) for key in recall}


def test_hand_calculation():
    scores = torch.tensor([[.9, .1, .5], [.9, .1, .5], [.9, .1, .5]])
    assert retrieval_recall(scores, [[0], [1], [1, 2]], topk=(1, 2, 3)) == {
        1: pytest.approx(100 / 3), 2: pytest.approx(200 / 3), 3: 100}


def test_tie_counts_with_the_share_of_orders_that_hit():
    scores = torch.tensor([[1., 1., 1., 0., 2.]])
    assert retrieval_recall(scores, [[0]], topk=(1, 2, 3, 4)) == {
        1: 0, 2: pytest.approx(100 / 3), 3: pytest.approx(200 / 3), 4: pytest.approx(100)}
    # two of three equal items are right: both orders that lose put the wrong one first
    assert retrieval_recall(scores, [[0, 2]], topk=(2, 3)) == {2: pytest.approx(200 / 3), 3: 100}


def test_equal_scores_give_exactly_chance():
    recall = retrieval_recall(np.zeros((40, 40)), [[i] for i in range(40)])
    assert recall == {1: pytest.approx(2.5), 5: pytest.approx(12.5), 10: pytest.approx(25)}


def test_order_of_gallery_and_queries_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (30, 20), generator=generator).float()
    positives = [torch.randperm(20, generator=generator)[:1 + i % 3].tolist() for i in range(30)]
    columns, rows = torch.randperm(20, generator=generator), torch.randperm(30, generator=generator)
    place = columns.argsort().tolist()
    moved = retrieval_recall(scores[rows][:, columns],
                             [[place[c] for c in positives[r]] for r in rows.tolist()])
    assert moved == {k: pytest.approx(v) for k, v in retrieval_recall(scores, positives).items()}


@pytest.mark.parametrize('view', [
    lambda a: a[::-1, ::-1].copy()[::-1, ::-1], lambda a: np.asfortranarray(a), lambda a: a.repeat(2, 1)[:, ::2],
    lambda a: a.astype('>f8'), lambda a: np.array(a.tolist(), dtype='<f4'), lambda a: a.tolist()],
    ids=['reversed', 'transposed', 'strided', 'big-endian', 'single', 'lists'])
def test_arrays_of_any_layout_are_taken(view):
    scores = np.array([[3., 2, 1, 0], [0, 1, 2, 3], [1, 0, 3, 2]])
    positives = [[1], [0, 3], [2]]
    assert retrieval_recall(view(scores), positives, (1, 2)) == {
        1: pytest.approx(200 / 3), 2: 100.} == retrieval_recall(scores, positives, (1, 2))


def test_chunks_numpy_and_half_precision_agree(monkeypatch):
    scores = torch.randint(-8, 8, (50, 12), generator=torch.Generator().manual_seed(1)).float()
    positives = [[i % 12, (i * 5 + 1) % 12] for i in range(50)]
    whole = retrieval_recall(scores, positives)
    monkeypatch.setattr(retrieval, '_CHUNK_ELEMENTS', 7 * 12)
    for other in (scores, scores.numpy(), scores.bfloat16(), scores.int()):
        assert retrieval_recall(other, positives) == {k: pytest.approx(v) for k, v in whole.items()}


def test_topk_larger_than_gallery_counts_everything():
    assert retrieval_recall(np.eye(3), [[0], [0], [1]], topk=(1, 5)) == {1: pytest.approx(100 / 3), 5: 100}


def test_repeated_positive_counts_once():
    assert retrieval_recall(np.zeros((1, 4)), [[2, 2]], topk=(1,)) == {1: 25}


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_non_finite_scores_are_refused(value):
    scores = np.zeros((3, 3))
    scores[1, 2] = value
    with pytest.raises(DataError, match='query 1 and gallery item 2'):
        retrieval_recall(scores, [[0], [1], [2]])


@pytest.mark.parametrize('scores, positives, message', [
    (np.zeros(3), [[0]], r'matrix \(queries, gallery\), got shape \(3,\)'),
    (np.zeros((0, 3)), [], r'got shape \(0, 3\)'),
    (np.zeros((2, 3)), [[0]], r'2 queries \(rows\) but positives are given for 1'),
    (np.zeros((2, 3)), [[0], []], 'query 1 has no positive'),
    (np.zeros((2, 3)), [[0], [3]], r'query 1 are \[3\], the gallery has the indices 0 to 2'),
    (np.zeros((2, 3)), [[-1], [0]], r'query 0 are \[-1\]'),
    (np.zeros((2, 3)), [0, 1], 'query 0 must be a list'),
])
def test_bad_input_is_refused(scores, positives, message):
    with pytest.raises(DataError, match=message):
        retrieval_recall(scores, positives)


@pytest.mark.parametrize('topk', [(), (0,), (1.5,)])
def test_bad_topk_is_refused(topk):
    with pytest.raises(ConfigError, match='topk must hold whole numbers'):
        retrieval_recall(np.eye(2), [[0], [1]], topk)


def test_recall_of_written_ranks_is_that_of_the_scores():
    torch.manual_seed(0)
    scores = torch.randint(0, 6, (40, 30)).float()  # many ties
    positives = [[i % 30, (i * 7 + 1) % 30] for i in range(40)]
    ranks = retrieval_ranks(scores, positives)
    written = Ranks(*json.loads(json.dumps(ranks)))
    assert recall_from_ranks(written, (1, 3, 10)) == retrieval_recall(scores, positives, (1, 3, 10))
    best = max(scores[5, index] for index in positives[5])
    assert ranks.higher[5] == int((scores[5] > best).sum()) and ranks.tied[5] == int((scores[5] == best).sum())
    with pytest.raises(ConfigError, match='topk'):
        recall_from_ranks(ranks, (0, ))
