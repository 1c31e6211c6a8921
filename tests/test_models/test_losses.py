import math

import torch
import torch.nn.functional as F

from mmblip2.models.losses import (
    NO_ID,
    contrastive_loss,
    momentum_targets,
    query_text_similarity,
    same_image,
    sample_hard_negatives,
    soft_cross_entropy,
    token_loss,
    uniforms,
)


def test_similarity_takes_the_best_query():
    queries = F.normalize(torch.randn(3, 4, 8), dim=-1)
    texts = F.normalize(torch.randn(5, 8), dim=-1)
    expected = torch.stack([torch.stack([max(q @ t for q in image) for t in texts]) for image in queries])
    torch.testing.assert_close(query_text_similarity(queries, texts), expected)


def test_contrastive_loss_with_one_positive_is_smoothed_cross_entropy():
    logits = torch.randn(4, 6)
    positives = torch.eye(4, 6, dtype=torch.bool)
    expected = F.cross_entropy(logits, torch.arange(4), label_smoothing=0.1)
    torch.testing.assert_close(contrastive_loss(logits, positives, 0.1), expected)


def test_contrastive_loss_shares_the_target_between_positives():
    logits = torch.tensor([[1., 2., 3.]])
    log_prob = logits.log_softmax(1)[0]
    loss = contrastive_loss(logits, torch.tensor([[True, False, True]]), 0.)
    torch.testing.assert_close(loss, -(log_prob[0] + log_prob[2]) / 2)


def test_negatives_are_never_positives_and_follow_the_softmax():
    similarity = torch.tensor([[5., 1., 2., 0.]]).expand(20000, 4)
    allowed = torch.tensor([[False, True, True, True]]).expand(20000, 4)
    index, valid = sample_hard_negatives(similarity, allowed, uniforms(0, 0, 0, 20000))
    assert valid.all()
    share = torch.bincount(index, minlength=4) / 20000
    expected = torch.tensor([0., *torch.tensor([1., 2., 0.]).softmax(0)])
    assert share[0] == 0
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_a_draw_at_the_edge_stays_on_an_allowed_column():
    allowed = torch.tensor([[True, True, False], [False, True, False]])
    index, _ = sample_hard_negatives(torch.zeros(2, 3), allowed, torch.tensor([1. - 1e-16, 0.], dtype=torch.float64))
    assert index.tolist() == [1, 1]


def test_a_row_without_negatives_is_marked():
    allowed = torch.tensor([[False, False], [True, False]])
    index, valid = sample_hard_negatives(torch.randn(2, 2), allowed, torch.tensor([0.3, 0.3]))
    assert valid.tolist() == [False, True] and index.tolist() == [0, 0]


def test_draws_depend_on_seed_step_and_global_row_only():
    whole = uniforms(3, 7, 0, 8)
    assert torch.equal(torch.cat([uniforms(3, 7, 0, 4), uniforms(3, 7, 4, 4)]), whole)
    assert not torch.equal(uniforms(3, 8, 0, 8), whole) and not torch.equal(uniforms(4, 7, 0, 8), whole)


def test_token_loss_shifts_and_ignores():
    logits = torch.randn(2, 4, 9)
    labels = torch.tensor([[5, 1, 2, -100], [5, 3, -100, -100]])
    total, count = token_loss(logits, labels)
    expected = sum(F.cross_entropy(logits[b, t], torch.tensor(label), reduction='sum')
                   for b, t, label in ((0, 0, 1), (0, 1, 2), (1, 0, 3)))
    assert count == 3
    torch.testing.assert_close(total, expected)


def test_momentum_targets_are_a_mixture_that_is_learned_by_cross_entropy():
    """Written out with plain numbers, row by row."""
    logits, momentum_logits = torch.randn(2, 5), torch.randn(2, 5)
    positives = torch.tensor([[True, False, True, False, False], [False, True, False, False, False]])
    targets = momentum_targets(momentum_logits, positives, 0.4)
    total = 0.
    for row in range(2):
        momentum = [math.exp(x) for x in momentum_logits[row].tolist()]
        scores = [math.exp(x) for x in logits[row].tolist()]
        for column in range(5):
            known = bool(positives[row, column]) / int(positives[row].sum())
            target = 0.4 * momentum[column] / sum(momentum) + 0.6 * known
            assert abs(float(targets[row, column]) - target) < 1e-6
            total -= target * math.log(scores[column] / sum(scores)) / 2
    torch.testing.assert_close(soft_cross_entropy(logits, targets), torch.tensor(total), atol=1e-5, rtol=0)
    assert torch.equal(momentum_targets(momentum_logits, positives, 0.)[0], torch.tensor([0.5, 0, 0.5, 0, 0]))


def test_images_without_an_id_equal_only_themselves():
    ids, others = torch.tensor([7, NO_ID]), torch.tensor([3, 7, NO_ID, 7, NO_ID])
    assert same_image(ids, others, torch.tensor([1, 2])).tolist() == [
        [False, True, False, True, False], [False, False, True, False, False]]


def test_a_floor_gives_every_candidate_a_chance_beside_its_softmax():
    """The positive takes the weight it has, and is not drawn."""
    similarity = torch.tensor([[9., 1., 2., 0.]]).expand(20000, 4)
    allowed = torch.tensor([[False, True, True, True]]).expand(20000, 4)
    index, valid = sample_hard_negatives(similarity, allowed, uniforms(0, 0, 0, 20000), floor=1e-3)
    weights = torch.tensor([9., 1., 2., 0.]).softmax(0)[1:] + 1e-3
    share = torch.bincount(index, minlength=4) / 20000
    assert valid.all() and share[0] == 0
    torch.testing.assert_close(share[1:], weights / weights.sum(), atol=0.015, rtol=0)
