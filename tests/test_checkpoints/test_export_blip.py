"""BLIP's checkpoints between the projects, bit for bit; and what is exported says the same in transformers."""
import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmblip2.apis import get_model
from mmblip2.checkpoints import io
from mmblip2.checkpoints.convert import convert
from mmblip2.checkpoints.export import export_to_huggingface
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

transformers = pytest.importorskip('transformers')
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from key_lists import assert_same  # noqa: E402
from tiny_huggingface import TEXTS, redraw, write_tokenizers  # noqa: E402

KINDS = ['caption', 'VQA', 'retrieval', 'pre-training', 'NLVR2']
QUESTIONS = ['what color is the star?', 'two green stars?']
TRAINING = ('num_steps', 'momentum.', 'image_queue', 'text_queue', 'image_id_queue', 'queue_ptr')


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    return write_tokenizers(tmp_path_factory.mktemp('tokenizers'))['bert']


def tiny(kind, bert, image_size=32, **changed):
    """Config of a tiny model."""
    words = len(transformers.AutoTokenizer.from_pretrained(bert)) + 2
    text = dict(type='MED', vision_width=16, num_layers=2, width=16, num_heads=2, mlp_width=20, vocab_size=words,
                max_positions=40, dropout=0.)
    model = dict(
        data_preprocessor=dict(type='mmblip2.ImageTextPreprocessor'),
        vision=dict(type='VisionTransformer', image_size=image_size, patch_size=16, width=16, depth=2, num_heads=2,
                    mlp_width=24, qkv_bias='full', final_norm=True),
        tokenizer=dict(type='BertTokenizer', path=bert, enc_token=True))
    model.update({
        'caption': dict(type='BlipGeneration', text_decoder=text, max_text_len=20, generation=dict(num_beams=3)),
        'VQA': dict(type='BlipGeneration', text_decoder=text, text_encoder=dict(text), max_text_len=20,
                    generation=dict(num_beams=3, max_new_tokens=6)),
        'retrieval': dict(type='BlipRepresentation', text_encoder=text, embed_dim=6, queue_size=8),
        'pre-training': dict(type='BlipRepresentation', text_encoder=text, text_decoder=dict(text), embed_dim=6,
                             queue_size=8),
        'NLVR2': dict(type='BlipNLVR', text_encoder=dict(text, type='TwinMED'))}[kind])
    model.update(changed)
    return Config(dict(model=model))


def build(cfg, seed=0):
    """A redrawn model, its buffers too."""
    model = redraw(MODELS.build(copy.deepcopy(cfg.model)), seed)
    for name, value in model.named_buffers():
        if name == 'image_id_queue':
            value[:8] = torch.tensor([7, 7, -100, 12, 3, -100, -100, 9])
        elif name in ('num_steps', 'queue_ptr'):
            value.fill_(4)
    return model


@pytest.fixture(scope='module')
def trained(bert, tmp_path_factory):
    """Made on first use: config, model, file."""
    made = {}

    def get(kind):
        if kind not in made:
            cfg, path = tiny(kind, bert), tmp_path_factory.mktemp('trained') / 'trained.pth'
            model = build(cfg)
            io.write_checkpoint(dict(format=io.FORMAT, meta=dict(config=cfg.to_dict()),
                                     state_dict=io.saved_state(model)), path)
            made[kind] = cfg, model, path
        return made[kind]

    return get


def images(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------ round trips

@pytest.mark.parametrize('to', ['lavis', 'mmpretrain', 'huggingface'])
@pytest.mark.parametrize('kind', KINDS)
def test_there_and_back_is_exact(trained, tmp_path, kind, to):
    cfg, model, path = trained(kind)
    there = tmp_path / ('there' if to == 'huggingface' else 'there.pth')
    if (kind, to) in (('NLVR2', 'huggingface'), ('pre-training', 'mmpretrain')):
        expected = 'a BLIP for two images' if to == 'huggingface' else 'mmpretrain has no BLIP for pre-training'
        with pytest.raises((CheckpointError, ConfigError), match=expected):
            convert(path, there, to)
        return
    lines = convert(path, there, to)
    name = dict(lavis='LAVIS', mmpretrain='mmpretrain', huggingface='transformers')[to]
    content = io.read_checkpoint(there)
    assert content['format'] == name and str(there) in lines[0]
    convert(there, tmp_path / 'back.pth', 'mmblip2', config=cfg)
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert_same(back['state_dict'], torch.load(path, weights_only=True)['state_dict'])
    state = model.state_dict()
    for key, value in get_model(tmp_path / 'back.pth', device='cpu').state_dict().items():
        assert torch.equal(value, state[key]), key
    other = build(cfg, seed=1)  # and without a conversion
    report = io.load_strict(other, content, there)
    assert report.format == str(content['layout']) and not report.missing
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize('kind', KINDS[:4])
def test_folder_to_ours_and_back_is_exact(trained, tmp_path, kind):
    from safetensors.torch import load_file
    _, _, path = trained(kind)
    convert(path, tmp_path / 'folder', 'huggingface')
    convert(tmp_path / 'folder', tmp_path / 'ours.pth', 'mmblip2')  # by the config that the folder says
    convert(tmp_path / 'ours.pth', tmp_path / 'again', 'huggingface')
    assert_same(load_file(tmp_path / 'again' / 'model.safetensors'),
                load_file(tmp_path / 'folder' / 'model.safetensors'))
    for name in ('config.json', 'preprocessor_config.json'):
        assert json.loads((tmp_path / 'again' / name).read_text()) == \
            json.loads((tmp_path / 'folder' / name).read_text())


def test_a_frozen_vision_encoder_comes_from_where_the_config_has_it(bert, trained, tmp_path):
    """It is not in the file of the training, and is in what is exported."""
    _, model, path = trained('pre-training')
    cfg = tiny('caption', bert, frozen=['vision'])
    cfg.model.vision.weights = str(path)  # our pre-training; what it has under vision.
    captioner = MODELS.build(copy.deepcopy(cfg.model))
    assert torch.equal(captioner.vision.norm.weight, model.vision.norm.weight)
    io.write_checkpoint(dict(format=io.FORMAT, meta=dict(config=cfg.to_dict(), frozen=io.frozen_record(captioner)),
                             state_dict=io.saved_state(captioner)), tmp_path / 'trained.pth')
    assert not any(key.startswith('vision.') for key in io.read_checkpoint(tmp_path / 'trained.pth')['state_dict'])
    convert(tmp_path / 'trained.pth', tmp_path / 'folder', 'huggingface')
    whole = get_model(tmp_path / 'folder', device='cpu').state_dict()
    for key, value in captioner.state_dict().items():
        assert torch.equal(value, whole[key]), key
    convert(tmp_path / 'folder', tmp_path / 'again.pth', 'mmblip2', config=cfg)
    again = get_model(tmp_path / 'again.pth', device='cpu').state_dict()
    assert all(torch.equal(value, again[key]) for key, value in captioner.state_dict().items())


def test_the_vision_encoder_of_another_projects_file(trained, tmp_path):
    cfg, model, path = trained('retrieval')
    for to in ('lavis', 'mmpretrain', 'huggingface'):
        there = tmp_path / (to if to == 'huggingface' else f'{to}.pth')
        convert(path, there, to)
        vision = MODELS.build(dict(cfg.model.vision, weights=str(there)))
        assert torch.equal(vision.blocks[1].attn.qkv.bias, model.vision.blocks[1].attn.qkv.bias)


# ------------------------------------------------------------------------------------------ in transformers

@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    """Made on first use: our model, theirs, their processor and the remarks."""
    made = {}

    def get(kind, name):
        if kind not in made:
            cfg, model, path = trained(kind)
            folder = tmp_path_factory.mktemp('exported') / 'folder'
            notes = export_to_huggingface(cfg, path, folder, shard_size=20_000)
            assert (folder / 'model.safetensors.index.json').is_file(), 'one file'
            theirs, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
            assert not any(report[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
            made[kind] = model, theirs.eval(), transformers.AutoProcessor.from_pretrained(folder), notes
        return made[kind]

    return get


def assert_close(ours, theirs):
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def best(found):
    """The best of beams, which it is by more than rounding."""
    assert found.sequences_scores[0] - found.sequences_scores[1] > 1e-3, 'too close to call'
    return found.sequences[0, 1:]


BEAMS = dict(max_new_tokens=6, num_beams=3, num_return_sequences=2, output_scores=True, return_dict_in_generate=True)


@torch.no_grad()
def test_captions_of_an_export(exported):
    ours, theirs, processor, notes = exported('caption', 'BlipForConditionalGeneration')
    assert 'BlipForConditionalGeneration' in notes[0]
    assert notes[1:] == ["generate of transformers' BLIP does not read generation_config.json: call it with "
                         'num_beams=3']
    text = processor.tokenizer(TEXTS[1], return_tensors='pt').input_ids
    text[0, 0] = ours.tokenizer.dec_id
    states, _ = ours.text_decoder.forward_causal(text, torch.ones_like(text), ours.encode_image(images(1)).image_kv)
    assert_close(ours._logits(states), theirs(pixel_values=images(1), input_ids=text).logits)
    new = best(theirs.generate(pixel_values=images(1), **BEAMS))
    sample = DataSample(prompt='')
    context = ours.visual_prefix(images(1), [sample])
    found = ours.generate(context, [''], max_new_tokens=6)
    assert found == [processor.decode(new, skip_special_tokens=True).strip()] != ['']


@torch.no_grad()
def test_answers_of_an_export(exported):
    ours, theirs, processor, _ = exported('VQA', 'BlipForQuestionAnswering')
    for i, question in enumerate(QUESTIONS):
        image = images()[i:i + 1]
        text = processor.tokenizer(question, return_tensors='pt').input_ids
        text[0, 0] = ours.tokenizer.enc_id
        new = best(theirs.generate(pixel_values=image, input_ids=text, **BEAMS))
        found = ours.predict(image, [DataSample(prompt=question)])[0].pred_text
        assert found == processor.decode(new, skip_special_tokens=True).strip() != ''


@pytest.mark.parametrize('kind', ['retrieval', 'pre-training'])
@torch.no_grad()
def test_retrieval_of_an_export(exported, kind):
    ours, theirs, processor, notes = exported(kind, 'BlipForImageTextRetrieval')
    assert 'transformers has no place for itc_head.temperature' in notes[1] or 'num_steps' in notes[1]
    text = ours.tokenize(TEXTS[:2])
    assert processor.tokenizer.convert_ids_to_tokens([ours.tokenizer.dec_id, ours.tokenizer.enc_id]) == [
        '[DEC]', '[ENC]']
    encoded = ours.encode_image(images())
    score = theirs(text.input_ids, images(), attention_mask=text.mask, use_itm_head=False).itm_score
    torch.testing.assert_close(ours.image_features(encoded)[:, 0] @ ours.text_features(text).T, score, atol=1e-5,
                               rtol=0)
    score = theirs(text.begin_with(ours.tokenizer.enc_id).input_ids, images(), attention_mask=text.mask).itm_score
    assert_close(ours.match_logits(encoded.image_kv, text), score)


@pytest.mark.parametrize('changed, message', [
    (dict(vision__final_norm=False), 'model.vision.final_norm is False; its vision encoder has a norm after the last'),
    (dict(text_decoder__vision_width=16, text_decoder__num_layers=3), 'text_encoder and text_decoder have other sizes'),
    (dict(vision__pre_norm=True, vision__patch_bias=False), 'vision.pre_norm is True.*; model.vision.patch_bias is F'),
])
def test_what_transformers_cannot_hold_is_refused(bert, tmp_path, changed, message):
    cfg = tiny('VQA', bert)
    for key, value in changed.items():
        part, _, name = key.partition('__')
        cfg.model[part][name] = value
    with pytest.raises(ConfigError, match=f'transformers has no class for this model: .*{message}'):
        export_to_huggingface(cfg, 'nowhere.pth', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_decoder_that_reads_other_widths_is_refused(bert, tmp_path):
    cfg = tiny('VQA', bert)
    cfg.model.vision.width = cfg.model.text_encoder.vision_width = 24
    with pytest.raises(ConfigError, match='model.text_decoder.vision_width is 16 and the vision encoder 24 wide'):
        export_to_huggingface(cfg, 'nowhere.pth', tmp_path / 'out')
