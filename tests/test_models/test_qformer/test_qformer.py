import pytest
import torch

from mmblip2.errors import ConfigError
from mmblip2.models.layers import self_attention_mask
from mmblip2.models.qformer import QFormer


def build(**kwargs):
    torch.manual_seed(0)
    args = dict(vision_width=12, num_layers=3, width=16, num_heads=2, num_query=4, vocab_size=30, max_positions=10,
                init_std=0.3)
    return QFormer(**{**args, **kwargs}).eval()


@torch.no_grad()
def test_itg_later_text_changes_no_earlier_output():
    qformer = build()
    _, cache = qformer.forward_queries(qformer.project_image(torch.randn(2, 5, 12)))
    ids = torch.randint(0, 30, (2, 8))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 30
    mask = torch.ones_like(ids)
    before, after = (qformer.forward_causal(x, mask, cache) for x in (ids, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@torch.no_grad()
def test_itg_text_sees_all_queries():
    qformer = build()
    image_kv = qformer.project_image(torch.randn(1, 5, 12))
    ids, mask = torch.randint(0, 30, (1, 3)), torch.ones(1, 3)
    before = qformer.forward_causal(ids, mask, qformer.forward_queries(image_kv)[1])
    for query in range(qformer.num_query):
        saved = qformer.queries.clone()
        qformer.queries[0, query] = torch.randn(16)  # a constant shift would vanish in the LayerNorm
        after = qformer.forward_causal(ids, mask, qformer.forward_queries(image_kv)[1])
        qformer.queries.copy_(saved)
        assert not torch.allclose(before[0, 0], after[0, 0]), f'first token does not see query {query}'


@torch.no_grad()
def test_itg_queries_ignore_text():
    """The cached two-step form equals one pass over [queries ; text] under the causal mask."""
    qformer = build()
    image_kv = qformer.project_image(torch.randn(2, 5, 12))
    ids, mask = torch.randint(0, 30, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    queries, cache = qformer.forward_queries(image_kv)
    text = qformer.forward_causal(ids, mask, cache)
    x = torch.cat([qformer._embed_queries(2), qformer._embed_text(ids)], dim=1)
    full, _ = qformer._run(x, image_kv, self_attention_mask('causal', 4, mask), num_query=4)
    torch.testing.assert_close(full[:, :4], queries, atol=1e-5, rtol=0)
    torch.testing.assert_close(full[:, 4:], text, atol=1e-5, rtol=0)


@torch.no_grad()
def test_itc_passes_equal_one_pass_under_the_unimodal_mask():
    qformer = build()
    image_kv = qformer.project_image(torch.randn(2, 5, 12))
    ids, mask = torch.randint(0, 30, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    x = torch.cat([qformer._embed_queries(2), qformer._embed_text(ids)], dim=1)
    full, _ = qformer._run(x, image_kv, self_attention_mask('unimodal', 4, mask), num_query=4)
    torch.testing.assert_close(full[:, :4], qformer.forward_queries(image_kv)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(full[:, 4], qformer.forward_text(ids, mask), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing():
    qformer = build()
    image_kv = qformer.project_image(torch.randn(1, 5, 12))
    ids = torch.randint(0, 30, (1, 4))
    padded, mask = torch.cat([ids, torch.full((1, 3), 9)], dim=1), torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    ones = torch.ones_like(ids)
    torch.testing.assert_close(qformer.forward_text(padded, mask), qformer.forward_text(ids, ones))
    torch.testing.assert_close(qformer.forward_joint(image_kv, padded, mask),
                               qformer.forward_joint(image_kv, ids, ones))


def test_queries_alone_cross_attend_in_every_nth_layer():
    qformer = build(num_layers=5, cross_attention_freq=2)
    assert [layer.cross_attention is not None for layer in qformer.layers] == [True, False, True, False, True]


def test_no_text_half_without_vocabulary():
    qformer = build(vocab_size=None)
    assert not any('text' in name or 'word' in name or 'position' in name for name, _ in qformer.named_parameters())
    with pytest.raises(RuntimeError, match='set vocab_size'):
        qformer.forward_text(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2))


@pytest.mark.parametrize('name', ['vision_width', 'num_layers', 'width', 'num_heads', 'num_query', 'mlp_width',
                                  'cross_attention_freq', 'vocab_size', 'max_positions'])
def test_sizes_are_positive_whole_numbers(name):
    expected = 'a positive whole number' + (' or None' if name in ('num_query', 'mlp_width', 'vocab_size') else '')
    for wrong in (0, -2, 2.0, '2', True):
        with pytest.raises(ConfigError, match=f'^QFormer: {name} is {wrong!r}, expected {expected}$'):
            build(**{name: wrong})


def test_heads_divide_the_width():
    with pytest.raises(ConfigError, match='QFormer: width 10 is not a multiple of num_heads 4: change one of them'):
        build(width=10, num_heads=4)


def test_patch_dropout_leaves_out_its_share_in_training_alone():
    qformer = build(patch_dropout=0.4)
    patches = torch.randn(8, 10, 12)
    whole = qformer.project_image(patches)
    assert whole[0].key.size(2) == 10
    qformer.train()
    some = qformer.project_image(patches)
    assert some[1] is None and some[0].key.shape == (8, 2, 6, 8) and some[2].value.shape == (8, 2, 6, 8)
    places = torch.cdist(some[0].key[:, 0], whole[0].key[:, 0]).argmin(2)  # (8, 6), of kept keys among all of an image
    assert all(len(set(image)) == 6 for image in places.tolist()), 'no patch twice'
    assert len({tuple(sorted(image)) for image in places.tolist()}) > 1, 'other ones of each image'
    for layer in (0, 2):  # all layers see the same ones
        torch.testing.assert_close(some[layer].value, whole[layer].value.gather(
            2, places[:, None, :, None].expand(-1, 2, -1, 8)))


def test_channel_dropout_leaves_out_its_share_in_training_alone(monkeypatch):
    qformer = build(channel_dropout=0.5)
    seen = {}
    for layer in (0, 2):
        monkeypatch.setattr(qformer.layers[layer].cross_attention, 'project_kv',
                            lambda patches, layer=layer: seen.__setitem__(layer, patches))
    patches = torch.rand(64, 10, 12) + 0.5
    qformer.project_image(patches)
    assert torch.equal(seen[0], patches) and torch.equal(seen[2], patches)
    qformer.train()
    qformer.project_image(patches)
    kept = seen[0] / patches  # (64, 10, 12)
    torch.testing.assert_close(kept.unique(), torch.tensor([0., 2.]))  # the rest is scaled up
    assert abs(kept.mean().item() - 1) < 0.2
    torch.testing.assert_close(kept, kept[:, :1].expand_as(kept))  # one choice for all patches of an image
    assert len({tuple(image) for image in kept[:, 0].tolist()}) > 32, 'other ones of each image'
    assert torch.equal(seen[0], seen[2]), 'all layers see the same ones'


@pytest.mark.parametrize('name', ['patch_dropout', 'channel_dropout'])
@pytest.mark.parametrize('share', [-0.1, 1])
def test_dropout_of_images_is_a_share(name, share):
    with pytest.raises(ConfigError, match=f'{name} is {share}, expected a number from 0 to below 1'):
        build(**{name: share})


def test_too_long_text_is_refused():
    qformer = build()
    with pytest.raises(ValueError, match='text of 11 tokens is longer than max_positions=10'):
        qformer.forward_text(torch.zeros(1, 11, dtype=torch.int64), torch.ones(1, 11))


def test_queries_start_from_n_0_002():
    queries = QFormer(vision_width=8, num_layers=1, width=768, num_heads=2, num_query=32, mlp_width=8).queries
    assert abs(queries.std().item() - 0.02) < 1e-3 and abs(queries.mean().item()) < 1e-3


@pytest.mark.parametrize('num_layers', [1, 3])
@torch.no_grad()
def test_the_joint_pass_in_two_steps_equals_one_pass_over_all_rows(num_layers):
    """The first step knows no image and serves any; where no text is padded, no mask is needed."""
    qformer = build(num_layers=num_layers)
    ids, mask = torch.randint(0, 30, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    started = qformer.start_joint(ids, mask)
    for _ in range(2):
        image_kv = qformer.project_image(torch.randn(1, 5, 12))
        x = torch.cat([qformer._embed_queries(2), qformer._embed_text(ids)], dim=1)
        full, _ = qformer._run(x, image_kv, self_attention_mask('bidirectional', 4, mask), num_query=4)
        torch.testing.assert_close(qformer.finish_joint(image_kv, *started, mask), full[:, :4], atol=1e-5, rtol=0)
        ones = torch.ones_like(ids)
        torch.testing.assert_close(qformer.finish_joint(image_kv, *qformer.start_joint(ids, ones)),
                                   qformer.forward_joint(image_kv, ids, ones), atol=1e-5, rtol=0)
