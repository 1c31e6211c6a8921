import copy

import pytest
import torch

from mmblip2.checkpoints import io
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample


def build(parts, reads_text=False, **kwargs):
    torch.manual_seed(0)
    parts = copy.deepcopy(parts)
    if not reads_text:
        parts.pop('tokenizer')
        parts['qformer'].pop('vocab_size')
    return MODELS.build(dict(type='Blip2Generation', allow_random=True, **parts, **kwargs))


def batch(prompt='', **fields):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    targets = ('a small red circle', 'two green stars above')
    return images, [DataSample(prompt=prompt, target=target, **fields) for target in targets]


@pytest.mark.parametrize('reads_text', [False, True])
def test_gradient_reaches_every_trainable_and_no_frozen_parameter(tiny_parts, reads_text):
    model = build(tiny_parts, reads_text)
    images, samples = batch(**(dict(qformer_text='what color is the star?') if reads_text else {}))
    model.loss(images, samples)['loss_lm'].backward()
    named = dict(model.named_parameters())
    missing = [n for n, p in named.items() if p.requires_grad and p.grad is None]
    leaked = [n for n, p in named.items() if not p.requires_grad and p.grad is not None]
    assert not missing and not leaked
    unread = ('qformer.layers.1.text_mlp', 'qformer.layers.1.text_norm')  # only queries leave the Q-Former
    assert {n.split('.')[0] for n, p in named.items()
            if not p.requires_grad and not n.startswith(unread)} == {'vision', 'language_model'}


def test_frozen_parts_are_byte_equal_after_training(tiny_parts):
    model = build(tiny_parts)
    before = {name: copy.deepcopy(part.state_dict()) for name, part in model.frozen_parts().items()}
    record = model.frozen_record()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model.train().loss(*batch())['loss_lm'].backward()
        optimizer.step()
    for name, part in model.frozen_parts().items():
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items())
    model._record = None
    assert model.frozen_record() == record


def test_loss_depends_on_the_image(tiny_parts):
    tiny_parts['qformer']['init_std'] = tiny_parts['language_model']['config']['init_std'] = 0.5
    model = build(tiny_parts).eval()
    images, samples = batch()
    assert not torch.isclose(model.loss(images, samples)['loss_lm'], model.loss(images.flip(0), samples)['loss_lm'])


def test_predict_writes_pred_text(tiny_parts):
    model = build(tiny_parts, generation=dict(max_new_tokens=4)).eval()
    images, samples = batch('a')
    assert [type(sample.pred_text) for sample in model.predict(images, samples)] == [str, str]


def test_a_wrong_setting_of_the_generation_is_refused_before_any_training(tiny_parts):
    with pytest.raises(ConfigError, match="generation of the model: generate has no setting 'num_beems'; did you mean "
                                          "'num_beams'.; generate has no setting 'prompts'"):
        build(tiny_parts, generation=dict(num_beems=5, max_new_tokens=4, prompts=['a']))
    with pytest.raises(ConfigError, match="generate of the language model: .* did you mean 'top_k'"):
        build(tiny_parts).language_model.generate(None, ['a'], topk=2)
    model = build(tiny_parts, generation=dict(num_beams=2, max_new_tokens=4, repetition_penalty=1.5)).eval()
    images, samples = batch('a')
    assert len(model.predict(images, samples)) == 2


def questions(count=6, images=2):
    pixels = torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    asked = ['a red', 'two', 'what color is the star above', 'there are', 'green', 'a blue square is']
    samples = [DataSample(prompt=asked[i], qformer_text=asked[i], img_path=f'{i % images}.jpg') for i in range(count)]
    return pixels[torch.arange(count) % images], samples


@pytest.mark.parametrize('reads_text', [False, True])
def test_an_image_that_samples_share_is_encoded_once(tiny_parts, reads_text, monkeypatch):
    tiny_parts['qformer']['init_std'] = 0.5
    model = build(tiny_parts, reads_text, generation=dict(max_new_tokens=4)).eval()
    images, samples = questions()
    seen = []
    forward = type(model.vision).forward
    monkeypatch.setattr(type(model.vision), 'forward', lambda self, x: seen.append(len(x)) or forward(self, x))
    shared = model.visual_prefix(images, samples)
    assert seen == [2]
    alone = torch.cat([model.visual_prefix(images[i:i + 1], samples[i:i + 1]) for i in range(6)])
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=0)
    assert (shared[0] - shared[1]).abs().max() > 1e-2, 'another image, the same prefix'
    model.train()
    assert len(model.visual_prefix(images, samples)) == 6 and seen[-1] == 6, 'in training images are augmented'


def test_images_of_unknown_or_changed_files_are_never_shared(tiny_parts):
    tiny_parts['qformer']['init_std'] = 0.5
    model = build(tiny_parts).eval()
    images, samples = questions(2)
    for fields in (dict(), dict(img_path='0.jpg'), dict(img_path='0.jpg', augmented='RandomFlip')):  # pixels differ
        for sample in samples:
            sample.pop('img_path', None)
            for key, value in fields.items():
                setattr(sample, key, value)
        prefix = model.visual_prefix(images, samples)
        assert (prefix[0] - prefix[1]).abs().max() > 1e-2


def test_prompts_of_alike_length_are_generated_together(tiny_parts, monkeypatch):
    model = build(tiny_parts, generation=dict(max_new_tokens=4), generation_batch_size=2).eval()
    images, samples = questions()
    calls = []

    def generate(prefix, prompts, **settings):
        calls.append(prompts)
        return [f'{prompt}|{float(row.sum()):.4f}' for prompt, row in zip(prompts, prefix)]

    monkeypatch.setattr(model.language_model, 'generate', generate)
    prefix = model.visual_prefix(images, samples)
    texts = [sample.pred_text for sample in model.predict(images, samples)]
    assert texts == [f'{sample.prompt}|{float(row.sum()):.4f}' for sample, row in zip(samples, prefix.detach())]
    assert [[len(prompt) for prompt in call] for call in calls] == [[3, 5], [5, 9], [16, 28]]
    with pytest.raises(ConfigError, match='generation_batch_size is 0'):
        build(tiny_parts, generation_batch_size=0)


@pytest.mark.parametrize('wrong, message', [
    (dict(num_return_sequences=3), 'num_return_sequences=3, but a sample gets one text: leave it out'),
    (dict(return_dict_in_generate=True), 'return_dict_in_generate is set, but generate returns texts alone')])
def test_each_image_has_one_text(tiny_parts, wrong, message):
    with pytest.raises(ConfigError, match=f'generation of the model: {message}'):
        build(tiny_parts, generation=dict(num_beams=3, max_new_tokens=4, **wrong))
    model = build(tiny_parts, generation=dict(num_beams=3, max_new_tokens=4, num_return_sequences=1)).eval()
    model.predict(*batch('a'))
    model.generation.update(wrong)
    with pytest.raises(ConfigError, match=f'generation of the model: {message}'):
        model.predict(*batch('a'))
    with pytest.raises(ConfigError, match='generate of the language model: return_dict_in_generate is set'):
        model.language_model.generate(None, ['a'], return_dict_in_generate=True)


def test_a_language_model_with_more_texts_than_images_is_refused(tiny_parts, monkeypatch):
    model = build(tiny_parts, generation=dict(max_new_tokens=4)).eval()
    monkeypatch.setattr(model.language_model, 'generate', lambda prefix, prompts, **kwargs: ['one', 'two', 'three'])
    with pytest.raises(ConfigError, match='CausalLM.generate returned 3 texts for 2 samples, expected one a sample'):
        model.predict(*batch('a'))


def test_question_reaches_the_prefix(tiny_parts):
    model = build(tiny_parts, reads_text=True).eval()
    images, _ = batch()
    one, two = (model.visual_prefix(images, batch(qformer_text=text)[1])
                for text in ('what color is the star?', 'two green stars'))
    assert not torch.allclose(one, two)


def test_missing_question_is_named(tiny_parts):
    with pytest.raises(ConfigError, match='a sample has no qformer_text'):
        build(tiny_parts, reads_text=True).loss(*batch())


def test_text_half_and_tokenizer_go_together(tiny_parts):
    del tiny_parts['tokenizer']
    with pytest.raises(ConfigError, match='set both for a Q-Former that reads text'):
        MODELS.build(dict(type='Blip2Generation', allow_random=True, **tiny_parts))


def test_the_text_must_fit_the_q_former(tiny_parts):
    with pytest.raises(ConfigError, match='max_text_len is 40, qformer.max_positions is 32: lower the first or raise'):
        build(tiny_parts, reads_text=True, max_text_len=40)


@pytest.mark.parametrize('layers, message', [
    (4, 'stage1.pth has fewer layers than the model: it lacks qformer.layers.2, qformer.layers.3, which would be'),
    (1, r'stage1.pth does not fit the model: \d+ unknown to the model \(qformer.layers.1')])
def test_a_q_former_with_another_number_of_layers_is_refused(tiny_parts, tmp_path, layers, message):
    """Stage 2 from stage 1, which has a text half and heads."""
    kept = {name: copy.deepcopy(tiny_parts[name]) for name in ('vision', 'qformer', 'tokenizer')}
    stage1 = MODELS.build(dict(type='Blip2Representation', allow_random=True, **kept))
    path = str(tmp_path / 'stage1.pth')
    io.write_checkpoint(dict(format=io.FORMAT, meta={}, state_dict=io.saved_state(stage1)), path)
    report = io.load_partial(build(tiny_parts), path)
    assert report.new == ['language_projection.weight', 'language_projection.bias']
    tiny_parts['qformer']['num_layers'] = layers
    with pytest.raises(CheckpointError, match=message):
        io.load_partial(build(tiny_parts), path)
    if layers == 4:
        report = io.load_partial(build(tiny_parts), [dict(checkpoint=path, include=['*'])])
        assert 'qformer.layers (' in str(report)


@pytest.fixture
def stage2(tiny_parts, tmp_path):
    """Weights of a vision encoder for 16 pixels, and a checkpoint trained beside it (it was frozen)."""
    weights = str(tmp_path / 'vit.pth')
    torch.manual_seed(1)
    torch.save(MODELS.build(tiny_parts['vision']).state_dict(), weights)
    tiny_parts['vision']['weights'] = weights
    model = build(tiny_parts, frozen=('vision', ))
    path = str(tmp_path / 'stage2.pth')
    io.write_checkpoint(dict(format=io.FORMAT, meta=dict(frozen=model.frozen_record()),
                             state_dict=io.saved_state(model)), path)
    return tiny_parts, path


def test_a_frozen_encoder_at_another_image_size_is_the_same_and_the_report_says_so(stage2, tmp_path):
    parts, path = stage2
    parts['vision']['image_size'] = 24
    model = build(parts, frozen=('vision', ))
    note = ('frozen vision: the weights of the training at another input size; now resized pos_embed from (1, 5, 16) '
            'to (1, 10, 16), then as in the file')
    assert note in str(io.load_strict(model, io.read_checkpoint(path), path))
    assert note in str(io.load_partial(model, path))
    # and back again: what was trained at 24 pixels is tested at 16
    io.write_checkpoint(dict(format=io.FORMAT, meta=dict(frozen=model.frozen_record()),
                             state_dict=io.saved_state(model)), path)
    parts['vision']['image_size'] = 16
    report = io.load_strict(build(parts, frozen=('vision', )), io.read_checkpoint(path), path)
    assert report.notes == ['frozen vision: the weights of the training at another input size; now as in the file, '
                            'then resized pos_embed from (1, 5, 16) to (1, 10, 16)']
    assert io.load_strict(model, io.read_checkpoint(path), path).notes == []


@pytest.mark.parametrize('size', [16, 24])
@pytest.mark.parametrize('changed', ['pos_embed', 'blocks.1.mlp.fc1.weight'])
def test_a_frozen_encoder_with_other_weights_is_refused_at_any_image_size(stage2, changed, size):
    parts, path = stage2
    state = torch.load(parts['vision']['weights'])
    state[changed][..., 0] += 1e-3
    torch.save(state, parts['vision']['weights'])
    parts['vision']['image_size'] = size
    with pytest.raises(CheckpointError, match="the frozen part 'vision' differs from the one that .* trained with"):
        io.load_strict(build(parts, frozen=('vision', )), io.read_checkpoint(path), path)


def test_tokens_of_another_width_than_the_qformer_expects_are_refused(tiny_parts):
    tiny_parts['qformer']['vision_width'] = 24
    with pytest.raises(ConfigError, match=r'encoder \(VisionTransformer\) are 16 wide, qformer.vision_width is 24: set '
                                          'it to 16'):
        build(tiny_parts)


def test_several_captions_of_an_image_are_as_samples_of_one_each(tiny_parts, monkeypatch):
    model = build(tiny_parts).eval()
    images, samples = batch('a')
    several = [DataSample(prompt='a', target=['a small red circle', 'two stars']),
               DataSample(prompt='a', target='green')]
    single = [DataSample(prompt='a', target=text) for text in ('a small red circle', 'two stars', 'green')]
    encoded = []
    monkeypatch.setattr(model.vision, 'forward', lambda pixels, _forward=model.vision.forward: (
        encoded.append(len(pixels)), _forward(pixels))[1])
    torch.testing.assert_close(model.loss(images, several), model.loss(images[[0, 0, 1]], single))
    assert encoded == [2, 3]
