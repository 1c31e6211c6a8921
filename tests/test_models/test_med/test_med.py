import pytest
import torch

from mmblip2.errors import ConfigError
from mmblip2.models.layers import self_attention_mask
from mmblip2.models.layers.bert_init import init_from_bert
from mmblip2.models.med import MED


def build(**kwargs):
    torch.manual_seed(0)
    args = dict(vision_width=12, num_layers=3, width=16, num_heads=2, vocab_size=30, max_positions=10, init_std=0.3)
    return MED(**{**args, **kwargs}).eval()


IDS = torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(3))
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


def layer_by_layer(med, image_kv, ids, mask, image_mask=None):
    """All rows through all layers, with nothing left out or kept."""
    x = med._embed_text(ids)
    for layer, kv in zip(med.layers, image_kv):
        x, _ = layer(x, kv, mask, image_mask=image_mask)
    return x


@pytest.mark.parametrize('num_layers', [1, 3])
@torch.no_grad()
def test_the_joint_pass_in_two_steps_equals_one_pass_over_all_tokens(num_layers):
    """The first step knows no image and serves any; where no text is padded, no mask is needed."""
    med = build(num_layers=num_layers)
    started = med.start_joint(IDS, MASK)
    for images in (1, 2):
        image_kv = med.project_image(torch.randn(images, 5, 12))
        full = layer_by_layer(med, image_kv, IDS, self_attention_mask('bidirectional', 0, MASK))
        torch.testing.assert_close(med.finish_joint(image_kv, started, MASK), full, atol=1e-5, rtol=0)
        first = med.forward_joint(image_kv, IDS, MASK, keep=slice(0, 1))
        torch.testing.assert_close(first, full[:, :1], atol=1e-5, rtol=0)
    ones = torch.ones_like(IDS)
    torch.testing.assert_close(med.finish_joint(image_kv, med.start_joint(IDS, ones)),
                               med.forward_joint(image_kv, IDS, ones), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_of_text_and_of_what_is_read_changes_nothing_at_all():
    med = build(vision_width=16)
    other = torch.where(MASK.bool(), IDS, (IDS + 7) % 30)
    states = torch.randn(2, 5, 16)
    states_mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    changed = torch.where(states_mask.bool()[..., None], states, torch.randn(2, 5, 16))
    assert not torch.equal(other, IDS) and not torch.equal(changed, states)
    for forward in (lambda ids, x: med.forward_joint(med.project_image(x), ids, MASK, states_mask),
                    lambda ids, x: med.forward_causal(ids, MASK, med.project_image(x), states_mask)[0],
                    lambda ids, x: med.forward_text_tokens(ids, MASK)):
        before, after = forward(IDS, states), forward(other, changed)
        assert (before - after)[MASK.bool()].abs().max() == 0
        assert before.std() > 0.1
    seen = med.forward_joint(med.project_image(changed), IDS, MASK)  # without the mask the rows count
    assert not torch.allclose(seen[1], med.forward_joint(med.project_image(states), IDS, MASK)[1])


@torch.no_grad()
def test_every_token_reads_the_image_in_every_layer_and_text_alone_reads_none():
    med = build(num_layers=2)
    assert all(layer.cross_attention is not None for layer in med.layers)
    patches = torch.randn(2, 5, 12)
    ones = torch.ones_like(IDS)
    before, after = (med.forward_joint(med.project_image(x), IDS, ones) for x in (patches, patches + 1))
    assert ((before - after).abs().amax(-1) > 1e-3).all()
    alone = build(num_layers=2, vision_width=None)
    alone.load_state_dict({k: v for k, v in med.state_dict().items() if 'cross' not in k})
    assert torch.equal(alone.forward_text(IDS, MASK), med.forward_text(IDS, MASK))
    torch.testing.assert_close(alone.forward_text_tokens(IDS, MASK)[:, 0], med.forward_text(IDS, MASK))


@torch.no_grad()
def test_the_decoder_sees_no_later_token_and_continues_from_its_cache():
    med = build()
    image_kv = med.project_image(torch.randn(2, 5, 12))
    ones = torch.ones_like(IDS)
    changed = IDS.clone()
    changed[:, 4:] = (changed[:, 4:] + 7) % 30
    whole, cache = med.forward_causal(IDS, ones, image_kv)
    assert torch.equal(whole[:, :4], med.forward_causal(changed, ones, image_kv)[0][:, :4])
    past, parts = None, []
    for start, end in ((0, 3), (3, 4), (4, 6)):
        x, past = med.forward_causal(IDS[:, start:end], ones[:, :end], image_kv, past=past)
        parts.append(x)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(past[2].key, cache[2].key, atol=1e-5, rtol=0)
    last, _ = med.forward_causal(IDS, ones, image_kv, keep=slice(-1, None))
    torch.testing.assert_close(last, whole[:, -1:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_beams_share_the_keys_and_values_of_their_image():
    med = build()
    patches, mask = torch.randn(2, 5, 12), torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    ids = torch.randint(0, 30, (6, 4))
    ones = torch.ones_like(ids)
    shared = med.forward_causal(ids, ones, med.project_image(patches), mask)[0]
    copied = med.forward_causal(ids, ones, med.project_image(patches.repeat_interleave(3, 0)),
                                mask.repeat_interleave(3, 0))[0]
    torch.testing.assert_close(shared, copied, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', ['vision_width', 'num_layers', 'width', 'num_heads', 'mlp_width', 'vocab_size',
                                  'max_positions'])
def test_sizes_are_positive_whole_numbers(name):
    expected = 'a positive whole number' + (' or None' if name in ('vision_width', 'mlp_width') else '')
    for wrong in (0, -2, 2.0, '2', True):
        with pytest.raises(ConfigError, match=f'^MED: {name} is {wrong!r}, expected {expected}$'):
            build(**{name: wrong})


def test_heads_divide_the_width():
    with pytest.raises(ConfigError, match='MED: width 10 is not a multiple of num_heads 4: change one of them'):
        build(width=10, num_heads=4)


@torch.no_grad()
def test_started_from_bert_it_is_that_bert_on_text_alone(tmp_path):
    from transformers import BertConfig, BertModel
    torch.manual_seed(1)
    bert = BertModel(BertConfig(vocab_size=28, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                                intermediate_size=64, max_position_embeddings=12)).eval()
    for parameter in bert.parameters():
        parameter.normal_(std=0.3)
    bert.save_pretrained(tmp_path)
    med = build()
    report = init_from_bert(med, str(tmp_path))
    ids = IDS.clamp(max=27)
    expected = bert(input_ids=ids, attention_mask=MASK).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(med.forward_text_tokens(ids, MASK)[MASK.bool()], expected[MASK.bool()], atol=1e-5,
                               rtol=0)
    assert str(report).startswith('MED from') and report.new_words == 2
    assert all('cross_attention' in name for name in report.new)
    with pytest.raises(Exception, match='does not fit the MED: .*layer.3.* is missing'):
        init_from_bert(build(num_layers=4), str(tmp_path))
