import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

TEXTS = ['a small red circle', 'two green stars', 'one yellow cross above a star', 'a large blue square']


def build(parts, **kwargs):
    torch.manual_seed(0)
    args = dict(type='Blip2Representation', embed_dim=8, allow_random=True,
                **{k: parts[k] for k in ('vision', 'qformer', 'tokenizer')})
    return MODELS.build({**args, **kwargs})


def batch(size=4, ids=None):
    images = torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    samples = [DataSample(text=TEXTS[i % 4], image_id=(ids or range(size))[i]) for i in range(size)]
    return images, samples


def test_losses_and_statistics(tiny_parts):
    losses = build(tiny_parts).loss(*batch())
    assert set(losses) == {'loss_itc', 'loss_itm', 'loss_itg', 'acc_itm', 'temperature', 'itm_dropped'}
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses['itm_dropped'] == 0 and losses['temperature'] == pytest.approx(0.07)


def test_batch_of_one_has_no_negatives_and_says_so(tiny_parts):
    losses = build(tiny_parts).loss(*batch(1))
    assert losses['itm_dropped'] == 2 and torch.isfinite(losses['loss_itm'])


def test_several_captions_of_an_image_are_refused(tiny_parts):
    images, samples = batch()
    samples[1].text = ['two', 'green stars']
    with pytest.raises(DataError, match='text of a training sample is 2 texts, and this model reads one: several capt'):
        build(tiny_parts).loss(images, samples)


def test_same_image_is_never_a_negative(tiny_parts):
    """Two rows, one image: nothing is left to mismatch, and the contrastive target is shared."""
    model = build(tiny_parts).eval()
    losses = model.loss(*batch(2, ids=['a', 'a']))
    assert losses['itm_dropped'] == 4
    assert model._positives(batch(3, ids=['a', 'b', 'a'])[1], 'cpu').tolist() == [
        [True, False, True], [False, True, False], [True, False, True]]


def test_gradient_reaches_every_trainable_and_no_frozen_parameter(tiny_parts):
    model = build(tiny_parts)
    losses = model.loss(*batch())
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    # position 0..T-1 are used; unused rows of the tables have zero gradient, not none
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    leaked = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is not None and not p.grad.any()
              and not n.endswith('key.bias')]  # a key bias cannot change a softmax
    assert not missing and not leaked and not silent
    assert all(n.startswith('vision.') for n, p in model.named_parameters() if not p.requires_grad)


def test_trainable_vision_gets_gradients(tiny_parts):
    model = build(tiny_parts, frozen=())
    losses = model.loss(*batch())
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(p.grad is not None for p in model.vision.parameters())


def test_loss_itm_is_the_mean_over_valid_rows(tiny_parts):
    """Against a direct computation with the images repeated and every pair scored alone."""
    model = build(tiny_parts).eval()
    images, samples = batch(3)
    encoded = model.encode_image(images)
    text = model.tokenize([sample.text for sample in samples])
    eye = torch.eye(3, dtype=torch.bool)
    sims = torch.randn(3, 3), torch.randn(3, 3)
    result = model._loss_itm(encoded, text, *sims, eye)
    from mmblip2.models.losses import sample_hard_negatives, uniforms
    draws = uniforms(0, 0, 0, 6)
    wrong_image, _ = sample_hard_negatives(sims[1], ~eye, draws[0::2])
    wrong_text, _ = sample_hard_negatives(sims[0], ~eye, draws[1::2])
    pairs = [(i, i, 1) for i in range(3)] + [(int(wrong_image[i]), i, 0) for i in range(3)] + [
        (i, int(wrong_text[i]), 0) for i in range(3)]
    total = 0.
    for image, row, label in pairs:
        kv = model.qformer.project_image(encoded.patches[image:image + 1])
        feats = model.qformer.forward_joint(kv, text.input_ids[row:row + 1], text.mask[row:row + 1])
        logits = model.itm_head.classifier(feats[0]).mean(0)
        total += torch.nn.functional.cross_entropy(logits[None], torch.tensor([label]))
    torch.testing.assert_close(result['loss_itm'], total / 9)


def test_frozen_part_stays_in_eval_mode(tiny_parts):
    model = build(tiny_parts).train()
    assert not model.vision.training and model.qformer.training


def test_random_frozen_part_needs_consent(tiny_parts):
    with pytest.raises(ConfigError, match="frozen part 'vision' .* has random weights.*allow_random=True"):
        build(tiny_parts, allow_random=False)


def test_unknown_frozen_part_is_named(tiny_parts):
    with pytest.raises(ConfigError, match=r"names \['visual'\], but the parts .* \['vision', 'qformer'\]"):
        build(tiny_parts, frozen=('visual', ))


def test_vocabulary_must_hold_the_tokenizer(tiny_parts):
    tiny_parts['qformer']['vocab_size'] = 20
    with pytest.raises(ConfigError, match='set it to at least'):
        build(tiny_parts)


def test_texts_must_fit_the_positions(tiny_parts):
    with pytest.raises(ConfigError, match='max_text_len is 40, qformer.max_positions is 32'):
        build(tiny_parts, max_text_len=40)


def test_wrong_image_size_names_both(tiny_parts):
    with pytest.raises(ConfigError, match=r'image size of the model \(16\) and of the pipeline \(\(24, 24\)\) differ'):
        build(tiny_parts).encode_image(torch.randn(1, 3, 24, 24))


def test_what_a_cache_has_is_not_asked_of_the_encoder(tiny_parts):
    model = build(tiny_parts).eval()
    images, samples = batch()
    tokens = model.vision(images)
    expected = model.loss(images, samples)
    model.vision.forward = None
    losses = model.loss(tokens, samples)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)


def test_tokens_of_another_width_than_the_qformer_expects_are_refused(tiny_parts):
    tiny_parts['qformer']['vision_width'] = 24
    with pytest.raises(ConfigError, match=r'encoder \(VisionTransformer\) are 16 wide, qformer.vision_width is 24: set '
                                          'it to 16'):
        build(tiny_parts)


def test_loss_weights_scale_and_zero_leaves_out(tiny_parts):
    full = build(tiny_parts).eval().loss(*batch())
    scaled = build(tiny_parts, loss_weights=dict(itc=2, itm=0.5)).eval().loss(*batch())
    for name, factor in (('itc', 2), ('itm', 0.5), ('itg', 1)):
        torch.testing.assert_close(scaled[f'loss_{name}'], factor * full[f'loss_{name}'])
    alone = build(tiny_parts, loss_weights=dict(itm=0, itg=0)).eval().loss(*batch())
    assert set(alone) == {'loss_itc', 'temperature'} and alone['loss_itc'] == full['loss_itc']
    assert set(build(tiny_parts, loss_weights=dict(itc=0)).loss(*batch())) == set(full) - {'loss_itc'}


@pytest.mark.parametrize('weights', [dict(itx=1), dict(itm=-1), dict(itc='1'), dict(itc=0, itm=0, itg=0)])
def test_wrong_loss_weights_are_named(tiny_parts, weights):
    with pytest.raises(ConfigError, match='loss_weights is .* expected numbers from 0 on for itc, itm and itg, not'):
        build(tiny_parts, loss_weights=weights)


def test_part_of_the_batch_is_matched_against_all_of_it(tiny_parts):
    """ITC is that of the batch, ITG that of the first rows alone; the ITM negatives may come from the others."""
    images, samples = batch(4)
    full, part = build(tiny_parts).eval(), build(tiny_parts, match_rows=2).eval()
    losses = part.loss(images, samples)
    assert losses['loss_itc'] == full.loss(images, samples)['loss_itc']
    torch.testing.assert_close(losses['loss_itg'], full.loss(images[:2], samples[:2])['loss_itg'])
    encoded, text = part.encode_image(images), part.tokenize([sample.text for sample in samples])
    likes = torch.zeros(4, 4)
    likes[:, 3] = 50.  # the negative of everything is row 3
    eye = torch.eye(4, dtype=torch.bool)
    pairs = [(0, 0, 1), (1, 1, 1), (3, 0, 0), (3, 1, 0), (0, 3, 0), (1, 3, 0)]
    total = 0.
    for image, row, label in pairs:
        logits = part.match_logits(part.qformer.project_image(encoded.patches[image:image + 1]), text.rows([row]))
        total += torch.nn.functional.cross_entropy(logits, torch.tensor([label]))
    result = part._loss_itm(encoded, text, likes, likes, eye, match_rows=2)
    torch.testing.assert_close(result['loss_itm'], total / 6)
    more = build(tiny_parts, match_rows=9).eval().loss(images, samples)
    assert all(more[name] == value for name, value in full.loss(images, samples).items())


def test_itc_dropout_changes_itc_in_training_alone(tiny_parts):
    model = build(tiny_parts, itc_dropout=0.5, loss_weights=dict(itm=0, itg=0))
    images, samples = batch()
    model.eval()
    whole = model.loss(images, samples)['loss_itc']
    assert model.loss(images, samples)['loss_itc'] == whole
    model.itc_head.train()  # the other dropouts stay off
    assert model.loss(images, samples)['loss_itc'] != whole


@pytest.mark.parametrize('rows', [0, 2.5])
def test_wrong_match_rows_is_named(tiny_parts, rows):
    with pytest.raises(ConfigError, match=f'match_rows is {rows}, expected a positive whole number'):
        build(tiny_parts, match_rows=rows)


class Waits(TorchDispatchMode):
    """Counts the operations for whose result Python waits: on a GPU the queue runs empty there."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero,
                                                  torch.ops.aten.is_nonzero)
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_as_often_for_many_images_as_for_few(tiny_parts):
    model = build(tiny_parts).train()
    counts = []
    for size in (2, 4):
        with Waits() as waits:
            losses = model.loss(*batch(size))
            sum(value for key, value in losses.items() if key.startswith('loss')).backward()
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 2
