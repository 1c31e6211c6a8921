import pytest
import torch

from mmblip2.errors import ConfigError
from mmblip2.models.layers import self_attention_mask
from mmblip2.models.med import MED, TwinMED

SIZES = dict(vision_width=12, num_layers=3, width=16, num_heads=2, vocab_size=30, max_positions=10, init_std=0.3)
IDS = torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(3))
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


def build(kind=TwinMED, **kwargs):
    torch.manual_seed(0)
    return kind(**{**SIZES, **kwargs}).eval()


def patches(*shape):
    return torch.randn(*shape, 5, 12, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_hand(twin, images, ids, mask):
    """Each layer written out: two attentions, their mean or a linear of both, norm, MLP, norm."""
    x = twin._embed_text(ids)
    for number, layer in enumerate(twin.layers):
        x = layer.attend(x, self_attention_mask('bidirectional', 0, mask))[0]
        read = [attention(x, attention.project_kv(images[:, i])) for i, attention in enumerate(layer.cross_attention)]
        if number >= twin.merge_from:
            both = torch.cat(read, -1) @ layer.merge.weight.T + layer.merge.bias
        else:
            both = sum(read) / 2
        x = layer.cross_attention_norm(x + both)
        x = layer.mlp_norm(x + layer.mlp(x))
    return x


@pytest.mark.parametrize('merge_from', [None, 0, 3])
@torch.no_grad()
def test_a_layer_reads_both_images(merge_from):
    twin = build(merge_from=merge_from)
    assert [layer.merge is not None for layer in twin.layers] == {
        None: [False, True, True], 0: [True] * 3, 3: [False] * 3}[merge_from]
    images = patches(2, 2)
    found = twin.forward_joint(twin.project_image(images), IDS, MASK)
    expected = by_hand(twin, images, IDS, MASK)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    first = twin.forward_joint(twin.project_image(images), IDS, MASK, keep=slice(0, 1))
    torch.testing.assert_close(first, expected[:, :1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_image_counts_and_so_does_their_order():
    twin = build()
    images = patches(2, 2)
    before = twin.forward_joint(twin.project_image(images), IDS, MASK)
    for change in (images * torch.tensor([1., 2.])[:, None, None], images * torch.tensor([2., 1.])[:, None, None],
                   images.flip(1)):
        assert (before - twin.forward_joint(twin.project_image(change), IDS, MASK)).abs().max() > 0.01


@torch.no_grad()
def test_padding_changes_nothing_at_all():
    twin = build()
    image_kv = twin.project_image(patches(2, 2))
    other = torch.where(MASK.bool(), IDS, (IDS + 7) % 30)
    before, after = (twin.forward_joint(image_kv, ids, MASK) for ids in (IDS, other))
    assert not torch.equal(other, IDS) and (before - after)[MASK.bool()].abs().max() == 0


@torch.no_grad()
def test_patches_of_either_image_can_be_masked():
    twin = build()
    images, mask = patches(2, 2), torch.tensor([[1] * 7 + [0] * 3, [1] * 10])
    changed = images.clone()
    changed[0, 1, 2:] += 1  # the last three of the second image
    before, after = (twin.forward_joint(twin.project_image(x), IDS, MASK, mask) for x in (images, changed))
    assert torch.equal(before, after)
    assert not torch.equal(before, twin.forward_joint(twin.project_image(images), IDS, MASK))


@torch.no_grad()
def test_weights_of_a_med_are_taken_for_both_images():
    """With one image twice and nothing that merges, it then is that MED."""
    med, twin = build(MED), build(merge_from=3, init_std=0.1)
    state, notes = twin.adapt_weights(med.state_dict())
    twin.load_state_dict(state)
    assert any('is taken for both' in note for note in notes)
    images = patches(2)
    torch.testing.assert_close(
        twin.forward_joint(twin.project_image(images[:, None].expand(-1, 2, -1, -1)), IDS, MASK),
        med.forward_joint(med.project_image(images), IDS, MASK), atol=1e-5, rtol=0)
    left = build().load_state_dict(state, strict=False)
    assert not left.unexpected_keys and {key.split('.')[2] for key in left.missing_keys} == {'merge'}


def test_own_weights_stay_as_they_are():
    state = build().state_dict()
    adapted, notes = build().adapt_weights(state)
    assert notes == [] and adapted.keys() == state.keys()


def test_what_two_images_cost():
    """BERT-base with twice the cross-attention, and six layers that merge."""
    with torch.device('meta'):
        twin, med = TwinMED(vision_width=768), MED(vision_width=768)
    count = {kind: sum(p.numel() for p in kind.parameters()) for kind in (twin, med)}
    attention = 4 * (768 * 768 + 768)
    assert count[twin] - count[med] == 12 * attention + 6 * (2 * 768 * 768 + 768)


def test_impossible_twins_are_refused():
    with pytest.raises(ConfigError, match='TwinMED reads images: set its vision_width'):
        build(vision_width=None)
    with pytest.raises(ConfigError, match='TwinMED: num_layers is 0'):
        build(num_layers=0)
