"""How a training begins with the weights of another: a pre-training of BLIP, ours or the authors', in every model."""
import sys
from pathlib import Path

import pytest
import torch

from mmblip2.checkpoints import io
from mmblip2.checkpoints.parts import build_filled, parts_from
from mmblip2.errors import CheckpointError
from mmblip2.registry import MODELS

pytest.importorskip('transformers')
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from blip_key_lists import salesforce
from key_lists import drawn
from test_export_blip import bert, build, tiny

__all__ = ['bert']  # the fixture
OUTPUT, INPUT = 'text_decoder.cls.predictions.decoder.weight', 'text_decoder.bert.embeddings.word_embeddings.weight'
WORDS = 'text_encoder.embeddings.word_embeddings.weight'
STARTS = ['caption', 'VQA', 'retrieval', 'NLVR2']


def sizes(bert):
    """Of ``tiny``, as the key lists call them."""
    text = tiny('caption', bert).model.text_decoder
    return dict(vision=16, depth=2, vision_mlp=24, image=32, patch=16, width=16, layers=2, mlp=20, contrast=6, queue=8,
                vocab=text.vocab_size, positions=40)


@pytest.fixture(scope='module')
def authors(bert, tmp_path_factory):
    """A pre-training of the original repository: what encoder and decoder share, and an output layer of its own."""
    state = drawn(salesforce('pre-training', **sizes(bert)))
    for key in state:
        if key.startswith('text_decoder.bert.') and '.attention.' not in key:
            state[key] = state[key.replace('text_decoder.bert', 'text_encoder')]
    state[OUTPUT] = torch.randn(state[OUTPUT].shape, generator=torch.Generator().manual_seed(5))
    state['queue_ptr'] = torch.tensor([4])
    path = tmp_path_factory.mktemp('authors') / 'model_base.pth'
    torch.save(dict(model=state, optimizer={}, epoch=19, config=dict(vit='base')), path)
    return path, state


@pytest.fixture(scope='module')
def own(bert, tmp_path_factory):
    """A pre-training of ours."""
    model, path = build(tiny('pre-training', bert), seed=3), tmp_path_factory.mktemp('own') / 'iter_9.pth'
    io.write_checkpoint(dict(format=io.FORMAT, meta={}, state_dict=io.saved_state(model)), path)
    return path, model.state_dict()


def start(kind, bert, path, **changed):
    """A model of another seed that takes the file, and the report."""
    model = build(tiny(kind, bert, **changed), seed=1)
    return model, io.load_partial(model, str(path))


@pytest.mark.parametrize('kind', STARTS)
def test_our_pretraining_fills_every_model(bert, own, kind):
    path, state = own
    model, report = start(kind, bert, path)
    filled = model.state_dict()
    new = {key for key in filled if key.startswith('head.') or '.merge.' in key}
    assert set(report.new) == new and (kind == 'NLVR2') == bool(new)
    if kind == 'retrieval':
        assert int(filled.pop('num_steps')) == 0 != int(state['num_steps']), 'a training counts its own steps'
    for key in filled.keys() - new:
        assert torch.equal(filled[key], state[key.replace('cross_attention.0', 'cross_attention').replace(
            'cross_attention.1', 'cross_attention')]), key
    assert f'{len(report.new)} new' in str(report) and not report.missing and not report.unexpected
    if kind == 'NLVR2':
        assert any(key.startswith('text_encoder.layers.1.cross_attention.1.') for key in report.matched)
    if kind in STARTS[:2]:
        assert {key.split('.')[0] for key in report.dropped} >= {'momentum', 'itc_head', 'itm_head', 'image_queue'}


@pytest.mark.parametrize('kind', STARTS)
def test_the_authors_pretraining_fills_every_model(bert, authors, kind):
    path, state = authors
    model, report = start(kind, bert, path)
    assert report.format == 'LAVIS (BLIP, pre-training)'
    assert all(key.startswith('head.') or '.merge.' in key or key in ('num_steps', 'image_id_queue')
               for key in report.new), report.new
    if hasattr(model, 'text_decoder') and model.text_decoder is not None:  # as a captioner of the authors loads it
        assert torch.equal(model.text_decoder.word_embeddings.weight, state[OUTPUT])
        assert torch.equal(model.text_decoder.layers[1].attention.query.weight,
                           state['text_decoder.bert.encoder.layer.1.attention.self.query.weight'])
        assert torch.equal(model.text_decoder.layers[1].mlp.fc1.weight,
                           state['text_encoder.encoder.layer.1.intermediate.dense.weight'])
        assert torch.equal(model.lm_head.bias, state['text_decoder.cls.predictions.bias'])
    if getattr(model, 'text_encoder', None) is not None:
        assert torch.equal(model.text_encoder.word_embeddings.weight, state[WORDS])
        assert torch.equal(model.text_encoder.layers[1].attention.query.weight,
                           state['text_encoder.encoder.layer.1.attention.self.query.weight'])
    if kind == 'NLVR2':
        cross = model.text_encoder.layers[1].cross_attention
        for part in cross:
            assert torch.equal(part.key.weight, state['text_encoder.encoder.layer.1.crossattention.self.key.weight'])
            assert torch.equal(part.output.bias, state['text_encoder.encoder.layer.1.crossattention.output.dense.bias'])
    if kind == 'retrieval':
        assert torch.equal(model.image_queue, state['image_queue']) and int(model.queue_ptr) == 4
        assert torch.equal(model.momentum.text_proj.weight, state['text_proj_m.weight'])
        assert torch.equal(model.momentum.vision.norm.bias, state['visual_encoder_m.norm.bias'])


def test_the_authors_pretraining_goes_on_with_one_table(bert, authors):
    path, state = authors
    model, report = start('pre-training', bert, path)
    assert torch.equal(model.text_decoder.word_embeddings.weight, state[WORDS])
    assert 'the output layer of the decoder in the file is a table of its own' in str(report)
    assert torch.equal(model.momentum.text_encoder.layers[0].mlp.fc2.bias,
                       state['text_encoder_m.encoder.layer.0.output.dense.bias'])


@pytest.mark.parametrize('kind', STARTS)
def test_positions_of_another_image_size_are_resized_and_said(bert, authors, kind):
    model, report = start(kind, bert, authors[0], image_size=64)
    assert model.vision.pos_embed.shape == (1, 17, 16)
    note = 'positions interpolated from 2 x 2 to 4 x 4 patches'
    assert f'vision: {note}' in report.notes and 'vision.pos_embed' in report.interpolated
    assert (f'momentum.vision: {note}' in report.notes) == (kind == 'retrieval')


def test_queues_of_another_size_start_anew(bert, authors):
    model, report = start('retrieval', bert, authors[0], queue_size=12)
    assert 'queues of 8 columns in the file and 12 in the model' in report.notes
    assert int(model.queue_ptr) == 0 and model.image_queue.shape == (6, 12)


def test_without_a_pretrainings_decoder_a_captioner_says_what_it_lacks(bert, tmp_path):
    state = drawn(salesforce('retrieval', **sizes(bert)))
    torch.save(dict(model=state), tmp_path / 'retrieval.pth')
    model, report = start('caption', bert, tmp_path / 'retrieval.pth')
    assert any(key.startswith('text_decoder.') for key in report.new) and 'new: text_decoder' in str(report)
    with pytest.raises(CheckpointError, match='missing in the file .text_decoder.word_embeddings.weight'):
        io.load_strict(model, io.read_checkpoint(tmp_path / 'retrieval.pth'), 'retrieval.pth')


def test_a_file_for_matching_is_tested_without_momentum_encoders(bert, tmp_path):
    """What the authors' ITM models have is enough for a test."""
    state = {**drawn(salesforce('ITM', **sizes(bert))), 'temp': torch.tensor(0.05)}
    torch.save(dict(model=state), tmp_path / 'itm.pth')
    for queue_size in (None, 8):
        model = build(tiny('retrieval', bert, queue_size=queue_size))
        report = io.load_strict(model, io.read_checkpoint(tmp_path / 'itm.pth'), 'itm.pth')
        assert torch.equal(model.itm_head.classifier.weight, state['itm_head.weight'])
        assert model.itc_head.temperature.item() == pytest.approx(0.05)
        assert not report.missing


@pytest.mark.parametrize('source', ['own', 'authors'])
def test_a_frozen_vision_encoder_is_that_of_the_file(bert, request, source):
    """Its momentum copy is left out: what is frozen is not followed."""
    path, state = request.getfixturevalue(source)
    cfg = tiny('retrieval', bert, frozen=['vision'])
    if source == 'own':
        cfg.model.vision.weights = str(path)
    else:
        cfg.model, notes = parts_from(cfg.model, str(path))
        assert notes == ['vision: frozen, with the weights of the checkpoint']
    model = MODELS.build(cfg.model)
    report = io.load_partial(model, [dict(checkpoint=str(path), exclude=['vision.*'])])
    name = 'vision.norm.weight' if source == 'own' else 'visual_encoder.norm.weight'
    assert torch.equal(model.vision.norm.weight, state[name])
    assert any(key.startswith('momentum.vision.') for key in report.dropped)
    assert not hasattr(model.momentum, 'vision') and 'momentum.text_proj.weight' in report.matched


def test_the_tokenizer_of_a_folder_is_used(bert, own, tmp_path):
    from mmblip2.checkpoints.convert import convert
    cfg = tiny('pre-training', bert)
    convert(own[0], tmp_path / 'folder', 'huggingface', config=cfg)
    cfg.model.tokenizer.path = 'elsewhere'
    model, report, _ = build_filled(cfg.model, tmp_path / 'folder')
    assert f'tokenizer: {tmp_path / "folder"} instead of elsewhere' in report.notes
    for key, value in model.state_dict().items():
        assert torch.equal(value, own[1][key]), key
