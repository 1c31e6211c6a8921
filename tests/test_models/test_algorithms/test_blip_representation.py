"""BLIP's pre-training and retrieval on a model that builds in milliseconds."""
import json

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from PIL import Image

from mmblip2.checkpoints import io
from mmblip2.errors import ConfigError
from mmblip2.models.losses import NO_ID, sample_hard_negatives, uniforms
from mmblip2.registry import MODELS, our_scope
from mmblip2.structures import DataSample

TEXTS = ['a small red circle', 'two green stars', 'one yellow cross above a star', 'a large blue square']


def build(parts, decoder=True, **kwargs):
    torch.manual_seed(0)
    args = dict(type='BlipRepresentation', embed_dim=8, queue_size=12, **parts)
    if not decoder:
        args.pop('text_decoder')
    with our_scope():
        model = MODELS.build({**args, **kwargs})
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith('momentum.'):
            parameter.data.normal_(0, 0.3, generator=generator)
    if model.momentum is not None:
        model.init_weights()
    return model


def batch(size=4, ids=None, seed=1):
    images = torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    samples = [DataSample(text=TEXTS[i % 4]) for i in range(size)]
    for sample, image_id in zip(samples, ids or []):
        sample.image_id = image_id
    return images, samples


def total(losses):
    return sum(value for key, value in losses.items() if 'loss' in key)


def no_dropout(model):
    """The model as in training, but for dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.
        elif hasattr(module, 'dropout') and isinstance(module.dropout, float):
            module.dropout = 0.
    return model


def test_losses_and_statistics(tiny_blip):
    losses = build(tiny_blip).loss(*batch())
    assert set(losses) == {'loss_itc', 'loss_itm', 'loss_lm', 'acc_itm', 'temperature', 'itm_dropped'}
    assert all(torch.isfinite(value) for value in losses.values())
    assert set(build(tiny_blip, decoder=False).loss(*batch())) == set(losses) - {'loss_lm'}


@torch.no_grad()
def naive_itc(model, images, samples, alpha):
    """The contrastive loss of the third step, one row and one direction at a time, from the model's state."""
    def feature(vision, layer, image):
        return F.normalize(layer(vision(image[None])[0, 0]), dim=0)

    def text_feature(encoder, layer, text):
        return F.normalize(layer(encoder.forward_text(*model.tokenize([text]))[0]), dim=0)

    m, head = model.momentum, model.itc_head
    image_m = torch.stack([feature(m.vision, m.vision_proj, image) for image in images])
    text_m = torch.stack([text_feature(m.text_encoder, m.text_proj, sample.text) for sample in samples])
    ids = [sample.get('image_id') for sample in samples]
    queue_ids = model.image_id_queue.tolist()
    losses = []
    for row, (image, sample) in enumerate(zip(images, samples)):
        same = [place == row or (ids[row] is not None and ids[place] == ids[row]) for place in range(len(ids))]
        same += [ids[row] is not None and other == ids[row] for other in queue_ids]
        for query, query_m, keys_m, queue in (
                (feature(model.vision, head.vision_proj, image), image_m[row], text_m, model.text_queue),
                (text_feature(model.text_encoder, head.text_proj, sample.text), text_m[row], image_m,
                 model.image_queue)):
            keys = [*keys_m, *queue.T]
            logits = torch.stack([query @ key for key in keys]) / head.temperature
            soft = (torch.stack([query_m @ key for key in keys]) / head.temperature).softmax(0)
            target = alpha * soft + (1 - alpha) * torch.tensor(same) / sum(same)
            losses.append(-(target * logits.log_softmax(0)).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize('ids', [None, [5, 6, 5, 7]])
def test_itc_equals_a_naive_writing_with_queues_momentum_and_ids(tiny_blip, ids):
    model = no_dropout(build(tiny_blip, alpha_warmup_iters=4, momentum=0.5))
    for step in range(2):
        model.loss(*batch(ids=ids, seed=step))
        with torch.no_grad():
            for parameter in model.parameters():  # as a step of the optimizer
                if parameter.requires_grad:
                    parameter.add_(0.02)
    images, samples = batch(ids=ids, seed=2)
    expected_m = {name: 0.5 * p + 0.5 * model.get_parameter(f'itc_head.{name}' if '_proj' in name else name)
                  for name, p in model.momentum.named_parameters()}
    losses = model.eval().loss(images, samples)  # in eval mode nothing moves ...
    torch.testing.assert_close(losses['loss_itc'], naive_itc(model, images, samples, 0.4 * 2 / 4), atol=1e-5, rtol=0)
    no_dropout(model)  # ... and in training the momentum encoders move first
    queue = model.image_queue.clone(), model.text_queue.clone(), model.image_id_queue.clone()
    losses = model.loss(images, samples)
    for name, p in model.momentum.named_parameters():
        torch.testing.assert_close(p, expected_m[name], msg=name)
    after = model.image_queue.clone(), model.text_queue.clone(), model.image_id_queue.clone()
    for name, value in zip(('image_queue', 'text_queue', 'image_id_queue'), queue):
        setattr(model, name, value)
    torch.testing.assert_close(losses['loss_itc'], naive_itc(model, images, samples, 0.4 * 2 / 4), atol=1e-5, rtol=0)
    assert torch.equal(after[0][:, :8], queue[0][:, :8]) and not torch.equal(after[0][:, 8:], queue[0][:, 8:])
    assert after[2].tolist() == (ids or [NO_ID] * 4) * 3
    assert model.queue_ptr.tolist() == [0]


def test_alpha_grows_over_the_first_steps(tiny_blip):
    model = build(tiny_blip, alpha_warmup_iters=4)
    seen = []
    for steps in (0, 1, 4, 9):
        model.num_steps.fill_(steps)
        seen.append(model._alpha())
    assert seen == pytest.approx([0., 0.1, 0.4, 0.4]) and build(tiny_blip)._alpha() == 0.4


def test_in_eval_mode_nothing_moves(tiny_blip):
    model = build(tiny_blip, temperature=0.6).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.vision.norm.weight.mul_(2.)
    before['vision.norm.weight'] *= 2
    model.loss(*batch())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_in_eval_mode_a_last_small_batch_has_losses(tiny_blip):
    losses = build(tiny_blip).eval().loss(*batch(size=5))  # 5 does not divide 12, and nothing is put into the queue
    assert all(torch.isfinite(value) for value in losses.values())


def test_an_id_counts_within_its_folder(tiny_blip):
    """Data sets that are mixed may both have an image 5 (COCO and Visual Genome), or a file 0/1.jpg (web sets)."""
    paths = ['a/5.jpg', 'a/5.jpg', 'b/5.jpg', 'b/6.jpg']
    samples = [DataSample(text=TEXTS[0], image_id=int(path[2]), img_path=path) for path in paths]
    positives = build(tiny_blip)._positives(samples, 'cpu')
    assert positives.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    names = [DataSample(text=TEXTS[0], image_id='0/1.jpg', img_path=f'{name}/0/1.jpg') for name in 'aab']
    assert build(tiny_blip)._positives(names, 'cpu').int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_temperature_stays_in_its_range(tiny_blip):
    for start, expected in ((0.6, 0.5), (0.0001, 0.001), (0.07, 0.07)):
        losses = build(tiny_blip, temperature=start).train().loss(*batch())
        assert losses['temperature'] == pytest.approx(expected)


@pytest.mark.parametrize('floor', [0., 1e-4])
def test_loss_itm_is_the_mean_over_pairs_that_are_scored_alone(tiny_blip, floor):
    """[ENC] first, the first token decides; two rows of one image are no negatives of one another."""
    model = build(tiny_blip, negative_floor=floor).eval()
    images, samples = batch(4, ids=[1, 2, 1, 3])
    losses = model.loss(images, samples)
    with torch.no_grad():
        encoded = model.encode_image(images)
        text = model.tokenize([sample.text for sample in samples])
        i2t = model.image_features(encoded)[:, 0] @ model.text_features(text).T / 0.07  # momentum = trained here
        same = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
        draws = uniforms(0, 0, 0, 8)
        wrong_image, _ = sample_hard_negatives(i2t.T, ~same, draws[0::2], floor)
        wrong_text, _ = sample_hard_negatives(i2t, ~same, draws[1::2], floor)
        pairs = [(i, i, 1) for i in range(4)] + [(int(wrong_image[i]), i, 0) for i in range(4)] + [
            (i, int(wrong_text[i]), 0) for i in range(4)]
        assert all(not same[image, row] for image, row, label in pairs if not label)
        terms = []
        for image, row, label in pairs:
            tokens = model.tokenize([samples[row].text])
            tokens.input_ids[:, 0] = model.tokenizer.enc_id
            kv = model.text_encoder.project_image(model.vision(images[image:image + 1]))
            state = model.text_encoder.forward_joint(kv, *tokens)[0, 0]
            terms.append(F.cross_entropy(model.itm_head.classifier(state)[None], torch.tensor([label])))
    torch.testing.assert_close(losses['loss_itm'], torch.stack(terms).mean(), atol=1e-5, rtol=0)
    assert losses['itm_dropped'] == 0


def test_loss_lm_is_the_mean_over_the_tokens_of_texts_that_are_written_alone(tiny_blip):
    model = build(tiny_blip).eval()
    images, samples = batch(3)
    terms = []
    with torch.no_grad():
        for image, sample in zip(images, samples):
            tokens = model.tokenize([sample.text])
            tokens.input_ids[:, 0] = model.tokenizer.dec_id
            kv = model.text_decoder.project_image(model.vision(image[None]))
            states, _ = model.text_decoder.forward_causal(*tokens, kv)
            logits = model.lm_head(states, model.text_decoder.word_embeddings.weight)[0]
            terms.append(F.cross_entropy(logits[:-1], tokens.input_ids[0, 1:], reduction='none', label_smoothing=0.1))
    torch.testing.assert_close(model.loss(images, samples)['loss_lm'], torch.cat(terms).mean(), atol=1e-5, rtol=0)


def test_padding_changes_no_loss_at_all(tiny_blip, monkeypatch):
    model = build(tiny_blip).eval()
    before = model.loss(*batch())
    tokenize = model.tokenize

    def other_padding(texts, device=None):
        text = tokenize(texts, device)
        return text._replace(input_ids=text.input_ids.where(text.mask.bool(), 77))

    monkeypatch.setattr(model, 'tokenize', other_padding)
    assert not tokenize(TEXTS).mask.all()
    after = model.loss(*batch())
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_decoder_shares_everything_but_self_attention_and_a_checkpoint_has_it_once(tiny_blip, tmp_path):
    model = build(tiny_blip)
    encoder, decoder = (dict(med.named_parameters()) for med in (model.text_encoder, model.text_decoder))
    assert encoder.keys() == decoder.keys()
    for name, parameter in encoder.items():
        own = '.attention.' in name or '.attention_norm.' in name
        assert (parameter is not decoder[name]) == own, name
    state = io.saved_state(model)
    assert state['text_decoder.layers.0.mlp.fc1.weight'] is state['text_encoder.layers.0.mlp.fc1.weight']
    tiny_blip['text_decoder']['width'] = 32
    with pytest.raises(ConfigError, match=r'two MEDs cannot share their weights: .* is \(130, 16\) in the one and '
                                          r'\(130, 32\) in the other'):
        build(tiny_blip)


@pytest.mark.parametrize('decoder', [True, False])
def test_gradient_reaches_every_trainable_and_no_momentum_parameter(tiny_blip, decoder):
    model = build(tiny_blip, decoder=decoder)
    total(model.loss(*batch())).backward()
    named = dict(model.named_parameters())
    assert {name.split('.')[0] for name, p in named.items() if not p.requires_grad} == {'momentum'}
    assert not [name for name, p in named.items() if p.requires_grad and p.grad is None]
    silent = [name for name, p in named.items() if p.requires_grad and not p.grad.any()
              and not name.endswith('key.bias')]  # a key bias cannot change a softmax
    assert not silent and not [name for name, p in named.items() if not p.requires_grad and p.grad is not None]


def test_a_frozen_encoder_is_asked_once_a_step_and_has_no_copy(tiny_blip):
    model = build(tiny_blip, frozen=('vision', ), allow_random=True)
    assert not any(name.startswith('vision.') for name in model.momentum.state_dict())
    calls = []
    model.vision.register_forward_pre_hook(lambda module, args: calls.append(1))
    model.train().loss(*batch())
    assert len(calls) == 1


def test_a_file_without_momentum_encoders_and_queues_gives_copies_and_new_queues(tiny_blip, tmp_path):
    """As other projects publish their fine-tuned models."""
    small = build(tiny_blip, decoder=False, queue_size=None)
    assert small.momentum is None and not any('queue' in key or 'momentum' in key for key in small.state_dict())
    torch.save(small.state_dict(), tmp_path / 'published.pth')
    model = build(tiny_blip, decoder=False).train()
    model.loss(*batch())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    io.load_strict(model, io.read_checkpoint(tmp_path / 'published.pth'), tmp_path / 'published.pth')
    for name, parameter in model._followed().items():
        for one, two in zip(parameter.parameters(), model.momentum.get_submodule(name).parameters()):
            assert torch.equal(one, two)
    assert model.queue_ptr.item() == 0 and (model.image_id_queue == NO_ID).all() and model.num_steps == 0
    fresh = build(tiny_blip, decoder=False)
    assert torch.equal(model.image_queue, fresh.image_queue)
    torch.save(io.saved_state(build(tiny_blip)), tmp_path / 'pretraining.pth')
    for target in (small, model):  # what pre-training has besides is left out
        io.load_strict(target, io.read_checkpoint(tmp_path / 'pretraining.pth'), tmp_path / 'pretraining.pth')
    with pytest.raises(ConfigError, match='built without queues and momentum encoders, and cannot be trained: set '
                                          r'queue_size \(57600 in the paper\)'):
        small.loss(*batch())


def new_loader(folder):
    """Config of a loader, batch by batch through the rows of the file in a folder."""
    return dict(
        num_workers=0, collate_fn=dict(type='pseudo_collate'), sampler=dict(type='SeekableSampler'),
        dataset=dict(type='COCORetrieval', data_root=str(folder), ann_file='ann.json', pipeline=[
            dict(type='LoadImage'), dict(type='CleanCaption'), dict(type='PackInputs')]))


@pytest.fixture
def training(tmp_path, tiny_blip):
    """Function ``(work_dir, **changes) -> Runner`` after a training of six steps with dropout."""
    import mmblip2.datasets  # noqa: F401
    from mmblip2.engine import Runner
    rows = []
    for i, color in enumerate(('red', 'green', 'blue', 'white')):
        Image.new('RGB', (16, 16), color).save(tmp_path / f'{i}.png')
        rows.append(dict(image=f'{i}.png', image_id=i, caption=[f'a {color} square', TEXTS[i]]))
    (tmp_path / 'ann.json').write_text(json.dumps(rows))

    def train(work_dir, batch_size=4, queue_size=12, **changes):
        torch.manual_seed(0)
        runner = Runner.from_cfg(Config({**dict(
            model=dict(type='BlipRepresentation', embed_dim=8, queue_size=queue_size, alpha_warmup_iters=5,
                       **tiny_blip),
            work_dir=str(tmp_path / work_dir), default_scope='mmblip2', randomness=dict(seed=3),
            train_dataloader=dict(new_loader(tmp_path), batch_size=batch_size,
                                  sampler=dict(type='SeekableInfiniteSampler')),
            train_cfg=dict(type='SeekIterLoop', max_iters=5),
            optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float32', optimizer=dict(type='AdamW', lr=1e-2)),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))), **changes}))
        runner.train()
        return runner
    return train


def test_a_resumed_training_has_the_queues_and_momentum_encoders_of_the_uninterrupted_one(training, tmp_path):
    whole = training('whole')
    again = training('again', resume=str(tmp_path / 'whole' / 'iter_2.pth'))
    one, two = whole.bare_model.state_dict(), again.bare_model.state_dict()
    assert one['queue_ptr'].tolist() == [8] and one['num_steps'] == 5
    assert not torch.equal(one['momentum.vision.cls_token'], one['vision.cls_token'])
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    saved = torch.load(tmp_path / 'whole' / 'iter_2.pth', weights_only=True)
    assert not [name for name in saved['optimizer']['state'] if name.startswith('momentum')]
    assert saved['state_dict']['queue_ptr'].tolist() == [8]


def test_a_queue_that_batches_of_another_size_have_filled_goes_on(training, tmp_path):
    """A pre-training ends where its batches are, and the fine-tuning has smaller ones; and the last batch of an epoch
    may be smaller and still divide the queue."""
    old = training('old', train_cfg=dict(type='SeekIterLoop', max_iters=2)).bare_model
    assert old.queue_ptr.tolist() == [8]
    idle = dict(train_cfg=dict(type='SeekIterLoop', max_iters=1), load_from=str(tmp_path / 'old' / 'iter_2.pth'),
                optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float32', optimizer=dict(type='SGD', lr=0.)))
    new = training('new', batch_size=6, **idle).bare_model
    assert new.queue_ptr.tolist() == [2] and torch.equal(new.image_queue[:, 2:8], old.image_queue[:, 2:8])
    assert [place for place, image_id in enumerate(new.image_id_queue.tolist()) if image_id != NO_ID] == [
        0, 1, 8, 9, 10, 11]
    loader = dict(new_loader(tmp_path), batch_size=3)  # 8 rows: 3, 3 and 2
    epochs = training('epochs', train_cfg=dict(by_epoch=True, max_epochs=2), train_dataloader=loader,
                      default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=True))).bare_model
    assert epochs.num_steps == 6 and epochs.queue_ptr.tolist() == [4] and NO_ID not in epochs.image_id_queue


def test_a_new_training_takes_queues_and_momentum_encoders_but_no_counts_and_ids(training, tmp_path):
    """Ids of another data set mean other images, and alpha grows anew; queues of another size are new."""
    old = training('old', train_cfg=dict(type='SeekIterLoop', max_iters=2)).bare_model
    idle = dict(train_cfg=dict(type='SeekIterLoop', max_iters=1), load_from=str(tmp_path / 'old' / 'iter_2.pth'),
                optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float32', optimizer=dict(type='SGD', lr=0.)))
    new = training('new', **idle).bare_model
    assert new.num_steps == 1 and new.queue_ptr.tolist() == [0]
    ids = new.image_id_queue.tolist()
    assert ids[:8] == [NO_ID] * 8 and NO_ID not in ids[8:] and NO_ID not in old.image_id_queue.tolist()[:8]
    assert torch.equal(new.image_queue[:, :8], old.image_queue[:, :8])
    share = 0.995 * old.momentum.vision.cls_token + 0.005 * old.vision.cls_token
    torch.testing.assert_close(new.momentum.vision.cls_token, share)
    other = training('other', queue_size=8, **idle).bare_model
    assert other.image_queue.shape == (8, 8) and other.queue_ptr.tolist() == [4]


def test_the_first_step_says_that_the_batch_does_not_divide_the_queue(training):
    with pytest.raises(ConfigError, match='queue_size 12 is not a multiple of the batch of all processes, 5 '
                                          r'\(5 of 1 process\): set queue_size to 10 or 15'):
        training('wrong', batch_size=5)


@pytest.mark.parametrize('changes, message', [
    (dict(queue_size=0), 'queue_size is 0, expected a positive whole number, or None for a model that is not trained'),
    (dict(momentum=1.), 'momentum is 1.0, expected a number from 0 to below 1'),
    (dict(alpha=1.4), 'alpha is 1.4 and alpha_warmup_iters 0, expected a share from 0 to 1'),
    (dict(max_text_len=41), 'max_text_len is 41, text_encoder.max_positions is 40'),
    (dict(frozen=('qformer', )),
     r"names \['qformer'\], but the parts .* \['vision', 'text_encoder', 'text_decoder'\]"),
    (dict(frozen=('text_decoder', ), allow_random=True),
     "names 'text_decoder' and not 'text_encoder', of which it shares everything but the self-attention: freeze both")])
def test_settings_that_make_no_sense_are_refused(tiny_blip, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny_blip, **changes)


def test_parts_that_do_not_fit_are_refused(tiny_blip):
    def parts(name, **changes):
        return {**tiny_blip, name: {**tiny_blip[name], **changes}}
    with pytest.raises(ConfigError, match=r'a text that text_encoder reads beside an image begins with \[ENC\], which '
                                          'the tokenizer does not have: set enc_token=True in model.tokenizer'):
        build(parts('tokenizer', enc_token=False))
    with pytest.raises(ConfigError, match='text_encoder was built without cross-attention: set '
                                          'text_encoder.vision_width'):
        build(parts('text_encoder', vision_width=None), decoder=False)
    with pytest.raises(ConfigError, match=r'are 16 wide, text_encoder.vision_width is 24: set it to 16'):
        build(parts('text_encoder', vision_width=24), decoder=False)
    with pytest.raises(ConfigError, match='text_encoder.vocab_size is 20: set it to at least'):
        build(parts('text_encoder', vocab_size=20), decoder=False)
    with pytest.raises(ConfigError, match='BlipRepresentation is evaluated by the retrieval loop'):
        build(tiny_blip).predict(None, [])
