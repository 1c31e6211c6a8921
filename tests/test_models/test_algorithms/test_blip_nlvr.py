"""BlipNLVR: what it reads, what it refuses, how it begins, and that it learns."""
import copy
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmblip2.datasets.shapes import COLORS
from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

STEPS = 90  # of six seeds, all have every pair right after 75
TEXTS = ['two green stars', 'a small red circle left of a large blue square']


@pytest.fixture
def parts(tiny_blip):
    twin = dict(tiny_blip['text_encoder'], type='TwinMED', max_positions=64, init_std=0.3, dropout=0.)
    return dict(vision=tiny_blip['vision'], text_encoder=twin, tokenizer=tiny_blip['tokenizer'])


def build(parts, **kwargs):
    torch.manual_seed(0)
    return MODELS.build(dict(type='BlipNLVR', **copy.deepcopy(parts), **kwargs)).eval()


def batch(labels=(1, 0)):
    images = torch.randn(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return images, [DataSample(text=text, gt_label=label, sample_idx=i)
                    for i, (text, label) in enumerate(zip(TEXTS, labels))]


def test_gradient_reaches_every_parameter(parts):
    model = build(parts)
    losses = model.loss(*batch())
    assert set(losses) == {'loss_nlvr', 'acc_nlvr'}
    losses['loss_nlvr'].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_the_score_is_that_of_each_sentence_alone(parts):
    """Whatever else is in the batch, and padding; the first token is [ENC]."""
    model = build(parts)
    images, samples = batch()
    together = [sample.pred_score for sample in model.predict(images, samples)]
    for i in range(2):
        alone, = model.predict(images[i:i + 1], [samples[i]])
        torch.testing.assert_close(alone.pred_score, together[i], atol=1e-5, rtol=0)
        ids, mask = model.tokenizer([TEXTS[i]], 64)
        ids[:, 0] = model.tokenizer.enc_id
        patches = torch.stack([model.vision(images[i, side][None]) for side in (0, 1)], dim=1)
        state = model.text_encoder.forward_joint(model.text_encoder.project_image(patches), ids, mask)[0, 0]
        first, _, second = model.head
        logits = second.weight @ torch.relu(first.weight @ state + first.bias) + second.bias
        torch.testing.assert_close(together[i], logits.softmax(0), atol=1e-5, rtol=0)
        assert samples[i].pred_label == int(logits.argmax()) and isinstance(samples[i].pred_label, int)


@torch.no_grad()
def test_order_of_the_images_counts(parts):
    model = build(parts)
    images, samples = batch()
    swapped = model.logits(images.flip(1), samples)
    assert (model.logits(images, samples) - swapped).abs().max() > 1e-3


@pytest.mark.parametrize('shape', [(2, 3, 16, 16), (2, 1, 3, 16, 16), (2, 3, 3, 16, 16)])
def test_one_image_or_three_are_refused(parts, shape):
    with pytest.raises(DataError, match=r'reads two images a sentence, got images of shape .*expected \(B, 2, 3, H, W\)'
                                        '.*EachImage'):
        build(parts).predict(torch.zeros(shape), batch()[1])


def test_what_does_not_fit_is_refused(parts):
    with pytest.raises(ConfigError, match="text_encoder of BlipNLVR is a MED, .*set text_encoder.type='TwinMED'"):
        build(dict(parts, text_encoder=dict(parts['text_encoder'], type='MED')))
    with pytest.raises(ConfigError, match=r'begins with \[ENC\].*set enc_token=True in model.tokenizer'):
        build(dict(parts, tokenizer=dict(parts['tokenizer'], enc_token=False)))
    with pytest.raises(ConfigError, match='max_text_len is 80, text_encoder.max_positions is 64'):
        build(parts, max_text_len=80)
    with pytest.raises(DataError, match='sample 1 has no gt_label: train on a split with labels'):
        build(parts).loss(*batch((1, None)))


def test_a_frozen_vision_encoder_is_asked_once(parts):
    model = build(parts, frozen=('vision', ), allow_random=True, vision_cache_gib=0.1).train()
    images, samples = batch()
    for sample, path in zip(samples, (('a', 'b'), ('b', 'a'))):
        sample.img_path = path
    first = model.encode_image(images, samples)
    assert first.patches.shape == (2, 2, 5, 16)
    again = model.encode_image(torch.zeros_like(images), samples)
    assert torch.equal(first.patches, again.patches)


def test_a_training_begins_with_a_pre_trained_model(parts, tiny_blip, tmp_path):
    """Both cross-attentions are the file's; its heads, decoder, queues and momentum encoders are left out, merging
    layers and classifier are new."""
    from mmblip2.checkpoints.io import load_partial
    torch.manual_seed(1)
    for part in ('text_encoder', 'text_decoder'):
        tiny_blip[part]['max_positions'] = 64
    pretrained = MODELS.build(dict(type='BlipRepresentation', embed_dim=8, queue_size=12, **tiny_blip))
    torch.save(dict(state_dict=pretrained.state_dict()), tmp_path / 'pretrained.pth')
    model = build(parts)
    report = load_partial(model, str(tmp_path / 'pretrained.pth'))
    assert torch.equal(model.vision.cls_token, pretrained.vision.cls_token)
    for layer, source in zip(model.text_encoder.layers, pretrained.text_encoder.layers):
        for attention in layer.cross_attention:
            assert all(torch.equal(value, source.cross_attention.state_dict()[key])
                       for key, value in attention.state_dict().items())
    assert {key.split('.')[-2] if 'merge' in key else key.split('.')[0] for key in report.new} == {'merge', 'head'}
    assert 'is taken for both' in str(report)
    assert {key.split('.')[0] for key in report.dropped} == {
        'itc_head', 'itm_head', 'lm_head', 'text_decoder', 'momentum', 'image_queue', 'text_queue', 'image_id_queue',
        'queue_ptr'}


def write_pairs(folder, split, count, seed):
    """Pairs of a red and a blue image, of two red or two blue ones; a sentence is about the left or the right one."""
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        colors = [('red', 'blue')[number >> side & 1] for side in (0, 1)]
        names = [f'{split}-{number}-img{side}.png' for side in (0, 1)]
        for name, color in zip(names, colors):
            pixels = np.array(COLORS[color]) + rng.integers(-15, 16, (16, 16, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
        side = number >> 2 & 1
        items.append(dict(images=names, sentence=('left is red', 'two right is red')[side],
                          label=str(colors[side] == 'red')))
    (folder / f'{split}.json').write_text(json.dumps(items))


def test_it_learns_a_rule_about_two_images(parts, tmp_path):
    """Through the Runner. The label needs the sentence and the image it is about, so that chance is 50 %."""
    from mmblip2.engine import Runner
    for split, count, seed in (('train', 64, 0), ('val', 32, 1)):
        write_pairs(tmp_path, split, count, seed)
    parts['text_encoder']['init_std'] = 0.1

    def loader(split, sampler, **dataset):
        image = [dict(type='LoadImage'), dict(type='Resize', scale=16)]
        return dict(batch_size=16, num_workers=0, collate_fn=dict(type='pseudo_collate'), sampler=sampler,
                    dataset=dict(type='NLVR2', data_root=str(tmp_path), ann_file=f'{split}.json', pipeline=[
                        dict(type='EachImage', transforms=image), dict(type='CleanCaption', max_words=40),
                        dict(type='PackInputs')], **dataset))

    evaluation = loader('val', dict(type='DefaultSampler', shuffle=False), test_mode=True)
    runner = Runner.from_cfg(Config(dict(
        default_scope='mmblip2', work_dir=str(tmp_path / 'work'), model=dict(type='BlipNLVR', **parts),
        train_dataloader=loader('train', dict(type='SeekableInfiniteSampler', shuffle=True, seed=1)),
        train_cfg=dict(type='SeekIterLoop', max_iters=STEPS, val_interval=STEPS), val_dataloader=evaluation,
        val_cfg=dict(), val_evaluator=dict(type='NLVRAccuracy'),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-3)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=50),
                           checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=STEPS)),
        randomness=dict(seed=3))))
    runner.train()
    written = json.loads((tmp_path / 'work' / 'predictions' / 'nlvr.json').read_text())
    truth = [item['label'] for item in json.loads((tmp_path / 'val.json').read_text())]
    assert [row['identifier'] for row in written] == list(range(32))
    assert sum(row['prediction'] == label for row, label in zip(written, truth)) >= 30
    shown = runner.val_loop.run()
    assert shown['nlvr/accuracy'] >= 93
