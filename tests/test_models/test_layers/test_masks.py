import pytest
import torch

from mmblip2.models.layers import self_attention_mask


def test_masks_are_the_ones_drawn():
    text_mask = torch.tensor([[1, 1, 0]])
    drawn = dict(
        bidirectional=['11110', '11110', '11110', '11110', '11110'],
        causal=['11000', '11000', '11100', '11110', '11110'],
        unimodal=['11000', '11000', '00110', '00110', '00110'])
    for kind, rows in drawn.items():
        expected = torch.tensor([[int(c) for c in row] for row in rows]).bool()
        assert torch.equal(self_attention_mask(kind, 2, text_mask)[0, 0], expected), kind
    with pytest.raises(ValueError, match="mask kind 'full' is not one of"):
        self_attention_mask('full', 2, text_mask)
