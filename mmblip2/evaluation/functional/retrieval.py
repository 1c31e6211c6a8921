"""Recall at k of a score matrix. Q queries, G gallery items, p positives of a query."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mmblip2.errors import ConfigError, DataError

_CHUNK_ELEMENTS = 1 << 24


class Ranks(NamedTuple):
    """Where the best positive of each query stands; three lists of Q ints.

    Attributes:
        higher: Gallery items with a higher score.
        tied: Gallery items with the same score, itself included.
        tied_right: Those of ``tied`` that are positives.
    """
    higher: list[int]
    tied: list[int]
    tied_right: list[int]


def retrieval_recall(scores, positives: Sequence, topk: Sequence = (1, 5, 10)) -> dict[int, float]:
    """Share of the queries with a positive among the k best gallery items.

    The rank of a query is that of its best positive, so this is image-to-text recall with all captions of the
    image as positives, and text-to-image recall with its one image.

    Ties: a query whose best positive is tied with other items counts with the share of the possible orders
    that put a positive among the first k, i.e. the value that random tie breaking has on average. It depends
    neither on the order of the gallery nor on a sorting routine, equal scores everywhere give exactly chance,
    and without ties it is plain recall.

    Args:
        scores: (Q, G) tensor or array, higher is better.
        positives: For each query the list of the gallery indices that are right, at least one.
        topk: The values of k; a k above G counts every query.

    Returns:
        dict[int, float]: k -> recall in percent.

    Raises:
        ConfigError: ``topk`` is empty or has a value below 1.
        DataError: Scores are not a finite (Q, G) matrix, or ``positives`` does not fit it.
    """
    _check_topk(topk)
    return recall_from_ranks(retrieval_ranks(scores, positives), topk)


def recall_from_ranks(ranks: Ranks, topk: Sequence = (1, 5, 10)) -> dict[int, float]:
    """Recall of ranks that were computed, or written to a file, before; see :func:`retrieval_recall`.

    Raises:
        ConfigError: ``topk`` is empty or has a value below 1.
    """
    topk, queries = _check_topk(topk), list(zip(*ranks))
    return {k: 100. * sum(_hit(k - higher, tied, right) for higher, tied, right in queries) / len(queries)
            for k in topk}


def retrieval_ranks(scores, positives: Sequence) -> Ranks:
    """Where the best positive of every query stands, by counting: no sort.

    Args:
        scores: (Q, G) tensor or array, higher is better.
        positives: For each query the list of the gallery indices that are right, at least one.

    Raises:
        DataError: Scores are not a finite (Q, G) matrix, or ``positives`` does not fit it.
    """
    if isinstance(scores, np.ndarray):  # torch takes no negative strides and no other byte order
        scores = np.ascontiguousarray(scores, scores.dtype.newbyteorder('='))
    scores = torch.as_tensor(scores)
    if scores.dim() != 2 or scores.numel() == 0:
        raise DataError(f'retrieval scores must be a matrix (queries, gallery), got shape {tuple(scores.shape)}')
    num_query, num_gallery = scores.shape
    positives = _check_positives(positives, num_query, num_gallery)

    ranks = Ranks([], [], [])
    step = max(1, _CHUNK_ELEMENTS // num_gallery)
    for start in range(0, num_query, step):
        rows = scores[start:start + step]
        _check_finite(rows, start)
        chunk = positives[start:start + step]
        counts = torch.tensor([len(indices) for indices in chunk], device=rows.device)
        query = torch.arange(len(chunk), device=rows.device).repeat_interleave(counts)
        column = torch.tensor([index for indices in chunk for index in indices], device=rows.device)
        right = rows[query, column]  # scores of all positives of the chunk, (sum of p,)
        best = torch.stack([part.max() for part in right.split(counts.tolist())])  # (rows,)
        ranks.higher.extend((rows > best[:, None]).sum(dim=1).tolist())
        ranks.tied.extend((rows == best[:, None]).sum(dim=1).tolist())
        ranks.tied_right.extend(torch.zeros_like(counts).index_add_(0, query, (right == best[query]).long()).tolist())
    return ranks


def _check_topk(topk) -> tuple:
    topk = tuple(topk)
    if not topk or any(isinstance(k, bool) or int(k) != k or k < 1 for k in topk):
        raise ConfigError(f'topk must hold whole numbers from 1 up, got {topk}')
    return topk


def _hit(places: int, tied: int, tied_right: int) -> float:
    """Probability that one of ``tied_right`` out of ``tied`` equal items gets one of the first ``places`` of
    them."""
    if places <= 0:
        return 0.
    if places > tied - tied_right:
        return 1.
    return 1. - math.comb(tied - places, tied_right) / math.comb(tied, tied_right)


def _check_finite(rows: torch.Tensor, start: int):
    bad = ~torch.isfinite(rows)
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise DataError(f'retrieval scores hold {int(bad.sum())} or more values that are not finite, the first '
                        f'{rows[row, column].item()} for query {start + row} and gallery item {column}: such a model '
                        'cannot be ranked')


def _check_positives(positives, num_query: int, num_gallery: int) -> list:
    """The positives as lists of distinct ints."""
    if len(positives) != num_query:
        raise DataError(f'retrieval scores have {num_query} queries (rows) but positives are given for '
                        f'{len(positives)}: pass one list of gallery indices a query')
    result = []
    for query, indices in enumerate(positives):
        try:
            indices = sorted({int(index) for index in indices})
        except (TypeError, ValueError):
            raise DataError(f'positives of query {query} must be a list of gallery indices, got '
                            f'{indices!r}') from None
        if not indices:
            raise DataError(f'query {query} has no positive: recall is not defined, leave such queries out')
        if indices[0] < 0 or indices[-1] >= num_gallery:
            raise DataError(f'positives of query {query} are {indices}, the gallery has the indices 0 to '
                            f'{num_gallery - 1}: scores transposed?')
        result.append(indices)
    return result
