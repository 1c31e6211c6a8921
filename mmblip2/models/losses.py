"""Pure functions of the losses of BLIP-2 (section 3.2) and BLIP (section 3.2).

Shapes: B rows of this process, W processes, G = W*B rows of all, K rows of a queue, Q queries, C contrastive width,
T tokens, V vocabulary.
"""

import numpy as np
import torch
import torch.nn.functional as F


def query_text_similarity(query_feats: torch.Tensor, text_feats: torch.Tensor) -> torch.Tensor:
    """Cosine of each text and the query of each image that fits it best.

    Args:
        query_feats: (I, Q, C), normalised.
        text_feats: (N, C), normalised.

    Returns:
        torch.Tensor: (I, N), in [-1, 1].
    """
    return torch.einsum('iqc,nc->inq', query_feats, text_feats).amax(-1)


def contrastive_loss(logits: torch.Tensor, positives: torch.Tensor, label_smoothing: float = 0.1) -> torch.Tensor:
    """Cross entropy against a uniform distribution over the positives, smoothed over all columns.

    Args:
        logits: (B, G), similarities divided by the temperature.
        positives: bool (B, G), at least one True a row.
        label_smoothing: Share of the target that is spread over all G columns.

    Returns:
        torch.Tensor: Scalar, the mean over rows.
    """
    target = positives / positives.sum(dim=1, keepdim=True)
    return soft_cross_entropy(logits, (1 - label_smoothing) * target + label_smoothing / logits.size(1))


def soft_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits (B, G) against a distribution (B, G) a row; scalar, the mean over rows."""
    return -(target * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def momentum_targets(momentum_logits: torch.Tensor, positives: torch.Tensor, alpha: float) -> torch.Tensor:
    """What the momentum encoders say, mixed with what is known.

    Args:
        momentum_logits: (B, G+K), similarities of momentum features divided by the temperature.
        positives: bool (B, G+K), at least one True a row.
        alpha: Share of the momentum encoders.

    Returns:
        torch.Tensor: float (B, G+K), rows sum to 1.
    """
    known = positives / positives.sum(dim=1, keepdim=True)
    return alpha * momentum_logits.softmax(dim=1) + (1 - alpha) * known


#: the id of a row whose image has none: it equals no other
NO_ID = -100


def same_image(ids: torch.Tensor, other_ids: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Which rows show the same image.

    Args:
        ids: int64 (B,), ids of the images, ``NO_ID`` where there is none.
        other_ids: int64 (G,).
        own: int64 (B,), the place of every row among the others: it always shows the same image.

    Returns:
        torch.Tensor: bool (B, G).
    """
    equal = (ids[:, None] == other_ids) & (ids[:, None] != NO_ID)
    return equal | (own[:, None] == torch.arange(len(other_ids), device=ids.device))


def uniforms(seed: int, step: int, first_row: int, num_rows: int) -> torch.Tensor:
    """Random numbers in [0, 1) that depend on (seed, step, global row) and on nothing else.

    Returns:
        torch.Tensor: float64 (num_rows,), on the CPU, for the global rows ``first_row`` onwards.
    """
    stream = np.random.Generator(np.random.Philox(key=[seed, step]))
    return torch.from_numpy(stream.random(first_row + num_rows)[first_row:])


def sample_hard_negatives(similarity: torch.Tensor, allowed: torch.Tensor,
                          draws: torch.Tensor, floor: float = 0.) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one column a row of the allowed ones, in proportion to softmax(similarity) + floor.

    Args:
        similarity: (B, G) logits.
        allowed: bool (B, G); False where the column is a positive.
        draws: (B,) uniform numbers in [0, 1).
        floor: Weight that every allowed column has besides its softmax over all columns.

    Returns:
        tuple: int64 (B,) columns, and bool (B,), False for a row without any allowed column (its column is 0).
    """
    valid = allowed.any(dim=1)
    similarity = similarity.detach().double()
    if floor:
        weights = (similarity.softmax(dim=1) + floor).masked_fill(~allowed, 0.)
    else:  # the positives may have all the weight there is: leave them out first
        weights = similarity.masked_fill(~allowed, -torch.inf).softmax(dim=1)
    cumulative = torch.where(valid[:, None], weights, 1.).cumsum(dim=1)
    threshold = draws.to(cumulative)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=similarity.size(1) - 1)
    # rounding can end on a column of weight zero: step back to the last column that has some
    last_allowed = (allowed * torch.arange(1, allowed.size(1) + 1, device=allowed.device)).amax(dim=1) - 1
    index = torch.minimum(index, last_allowed.clamp(min=0))
    return torch.where(valid, index, 0), valid


def token_loss(logits: torch.Tensor, labels: torch.Tensor,
               label_smoothing: float = 0.) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy of next-token prediction: ``logits[:, t]`` predicts ``labels[:, t + 1]``.

    Args:
        logits: (B, T, V).
        labels: int64 (B, T); -100 is not a target.
        label_smoothing: Share of the target that is spread over the vocabulary.

    Returns:
        tuple: float32 scalar, the sum over targets, and int64 scalar, their number.
    """
    labels = labels[:, 1:]
    total = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), labels, ignore_index=-100, reduction='sum',
                            label_smoothing=label_smoothing)
    return total, (labels != -100).sum()
