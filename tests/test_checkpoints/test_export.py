"""What is exported is loaded by the installed transformers and says the same as the model here."""
import copy
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from safetensors.torch import load_file

from mmblip2.apis import get_model
from mmblip2.checkpoints import io
from mmblip2.checkpoints.export import _config, export_to_huggingface
from mmblip2.checkpoints.huggingface_config import config_from_folder
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.models.losses import query_text_similarity
from mmblip2.registry import MODELS
from mmblip2.utils.meta import build_on_meta
from mmblip2.utils.run_config import load_config

transformers = pytest.importorskip('transformers')
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test_parity'))
from test_huggingface_blip2 import (  # noqa: E402
    LANGUAGE,
    PROMPTS,
    TEXTS,
    Pair,
    assert_close,
    bert_vocab,
    draw_images,
    folders,
    parts,
    redraw,
)

__all__ = ['folders']  # the fixture
# Seeds with which what is generated is decided by more than rounding
SEEDS = {'opt': 5, 't5': 17, 'llama': 0, 'instruct-llama': 0}


def tiny_config(kind, folders, where):
    """Config of a tiny model, frozen parts in files below ``where``."""
    instruct = kind.startswith('instruct')
    vocab = bert_vocab(folders) if kind == 'retrieval' or instruct else None
    model = dict(**parts(folders, vocab), vision_norm_eps=1e-6)
    model['vision']['weights'] = f'{where}/vision.pth'
    if kind == 'retrieval':
        return Config(dict(model=dict(model, type='Blip2Representation', embed_dim=8)))
    family = kind.split('-')[-1]
    language = dict(type='Seq2SeqLM' if family == 't5' else 'CausalLM', model=f'{where}/language_model',
                    tokenizer=folders[family], max_text_len=96)
    return Config(dict(model=dict(model, type='Blip2Generation', language_model=language,
                                  generation=dict(num_beams=5, max_new_tokens=10))))


def make(kind, folders, where, **language):
    """Write a redrawn model: frozen parts, checkpoint; and return its config and the model."""
    cfg = tiny_config(kind, folders, where)
    model = copy.deepcopy(cfg.model)
    model.update(allow_random=True)
    model.vision.weights = None
    if kind != 'retrieval':
        family = kind.split('-')[-1]
        tokens = len(transformers.AutoTokenizer.from_pretrained(folders[family]))
        # Llama's table has no row to spare for the placeholder
        model.language_model.update(model=None, config={
            **LANGUAGE[family], 'vocab_size': tokens + (family != 'llama'), **language})
    built = MODELS.build(model)
    redraw(built, SEEDS.get(kind, 0))
    io.write_checkpoint({f'vision.{key}': value for key, value in built.vision.state_dict().items()},
                        cfg.model.vision.weights)
    if kind != 'retrieval':
        built.language_model.model.save_pretrained(f'{where}/language_model', max_shard_size='20KB')
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        state = built.state_dict()
        for key, value in model.state_dict().items():
            value.copy_(state[key])
    io.write_checkpoint(dict(format=io.FORMAT, meta=dict(frozen=io.frozen_record(model), config=cfg.to_dict()),
                             state_dict=io.saved_state(model)), f'{where}/trained.pth')
    return cfg, model.eval()


@pytest.fixture(scope='module')
def exported(folders, tmp_path_factory):
    """Made on first use: config, our model, the exported folder and the remarks."""
    made = {}

    def get(kind):
        if kind not in made:
            where = tmp_path_factory.mktemp(kind)
            cfg, model = make(kind, folders, where)
            notes = export_to_huggingface(cfg, where / 'trained.pth', where / 'folder', shard_size=20_000)
            made[kind] = cfg, model, where / 'folder', notes
        return made[kind]

    return get


class Exported(Pair):
    """Our model and what transformers makes of the folder."""

    def __init__(self, kind, cfg, model, folder):
        self.instruct, self.is_t5 = kind.startswith('instruct'), kind.endswith('t5')
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer
        self.theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.image_id = self.theirs.config.image_token_index
        self.ours, self.lm, self.folder = model, model.language_model, folder


@pytest.fixture(scope='module')
def pairs(exported):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = Exported(kind, *exported(kind)[:3])
        return made[kind]

    return get


@pytest.mark.parametrize('kind', SEEDS)
@torch.no_grad()
def test_logits_in_transformers_are_ours(pairs, kind):
    pair, images = pairs(kind), draw_images()
    assert type(pair.theirs).__name__ == f'{"InstructBlip" if pair.instruct else "Blip2"}ForConditionalGeneration'
    loss, logits, predicts = pair.their_loss(images)
    found = []
    handle = pair.lm.model.register_forward_hook(lambda module, args, output: found.append(output.logits))
    ours = pair.ours.loss(images, pair.samples())['loss_lm']
    handle.remove()
    own = found[0]  # of targets alone
    assert_close(own, logits[predicts][:, :own.size(-1)])
    if kind.endswith('llama'):  # a row was added, which takes a little probability from the others
        assert logits.size(-1) == own.size(-1) + 1
        torch.testing.assert_close(logits[..., -1], logits[..., :-1].mean(-1), atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(ours, loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize('kind', SEEDS)
@pytest.mark.parametrize('beams', [1, 5])
def test_texts_in_transformers_are_ours(pairs, kind, beams, monkeypatch):
    pair, images = pairs(kind), draw_images()
    settings = dict(num_beams=beams, max_new_tokens=10)
    expected = []
    # as the guide says: what the processor makes of a batch goes into generate; InstructBLIP's pads on the wrong side
    for rows in ([0], [1], [2]) if pair.instruct else ([0, 1, 2], ):
        inputs = pair.processor(images=[Image.new('RGB', (40, 30)) for _ in rows], text=[PROMPTS[row] for row in rows],
                                padding=True, return_tensors='pt')
        assert inputs['pixel_values'].shape == images[rows].shape
        inputs['pixel_values'] = images[rows]
        ids = pair.theirs.generate(do_sample=False, **inputs, **settings)
        ids = ids[:, 0 if pair.is_t5 else inputs['input_ids'].size(1):]
        expected += pair.tokenizer.batch_decode(ids, skip_special_tokens=True)
    ours = pair.ours
    if kind.endswith('llama') and beams > 1:  # in so flat a model the added row changes the scores of beams
        ours = get_model(config_from_folder(pair.folder), str(pair.folder), 'cpu')
    monkeypatch.setattr(ours, 'generation', settings)
    texts = [sample.pred_text for sample in ours.predict(images, pair.samples())]
    assert len(set(texts)) == 3, 'the same text for all rows'
    assert texts == [text.split('\n')[0].strip() for text in expected]


@torch.no_grad()
def test_matching_and_similarity_in_transformers_are_ours(exported):
    _, ours, folder, notes = exported('retrieval')
    theirs = transformers.Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = dict(processor(text=TEXTS, padding=True, return_tensors='pt'), pixel_values=draw_images())
    text = ours.tokenize(TEXTS)
    assert torch.equal(text.input_ids, inputs['input_ids'])
    encoded = ours.encode_image(draw_images())
    output = theirs(**inputs)
    image_feats, text_feats = ours.image_features(encoded), ours.text_features(text)
    assert_close(image_feats, output.image_embeds)
    similarity = query_text_similarity(image_feats, text_feats)
    torch.testing.assert_close(similarity, output.logits_per_image, atol=1e-5, rtol=0)
    logits = ours.itm_head(ours.qformer.forward_joint(encoded.image_kv, *text))
    assert_close(logits, theirs(**inputs, use_image_text_matching_head=True).logits_per_image)
    assert any('itc_head.temperature' in note and 'mmblip2_extra.safetensors' in note for note in notes)


# ---------------------------------------------------------------------------------- what is in the folder

def test_folder_is_whole_in_files_of_the_size_that_was_asked_for(exported):
    _, model, folder, notes = exported('t5')
    assert {'config.json', 'generation_config.json', 'preprocessor_config.json', 'processor_config.json',
            'tokenizer.json', 'tokenizer_config.json', 'model.safetensors.index.json'} <= set(os.listdir(folder))
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    files = {name: load_file(folder / name) for name in set(index['weight_map'].values())}
    assert {key: name for name, tensors in files.items() for key in tensors} == index['weight_map']
    sizes = [sum(value.nbytes for value in tensors.values()) for tensors in files.values()]
    assert sum(sizes) == index['metadata']['total_size'] and len(files) > 5
    assert all(size <= 20_000 or len(tensors) == 1 for size, tensors in zip(sizes, files.values()))
    assert f'{len(files)} files' in notes[0] and 'Blip2ForConditionalGeneration' in notes[0]
    # a tied embedding is written once, an output layer of its own is
    assert [key for key in index['weight_map'] if 'embed' in key and 'language' in key] == []
    assert {'language_model.shared.weight', 'language_model.lm_head.weight'} <= index['weight_map'].keys()
    assert not (folder / io.EXTRA).exists(), 'nothing is left of this model'
    generation = json.loads((folder / 'generation_config.json').read_text())
    assert generation['num_beams'] == 5 and generation['eos_token_id'] == model.language_model.end_id


@pytest.mark.parametrize('name', ['blip2-opt2.7b', 'blip2-flan-t5xl'])
def test_sizes_of_the_published_models_are_the_defaults_of_transformers(name):
    model = build_on_meta(load_config(f'_base_/models/{name}.py').model)
    config = _config(model, 'Blip2ForConditionalGeneration')
    for part, default in (('vision_config', transformers.Blip2VisionConfig()),
                          ('qformer_config', transformers.Blip2QFormerConfig())):
        said = {key: value for key, value in config[part].items() if key != 'initializer_range'}
        assert said == {key: getattr(default, key) for key in said}


def test_norm_with_another_epsilon_is_said_and_comes_back(folders, tmp_path):
    cfg, _ = make('retrieval', folders, tmp_path)
    cfg.model.vision_norm_eps = 1e-5
    notes = export_to_huggingface(cfg, tmp_path / 'trained.pth', tmp_path / 'folder')
    assert any('1e-06 is written, vision_norm_eps here is 1e-05' in note for note in notes)
    config = json.loads((tmp_path / 'folder' / 'config.json').read_text())
    assert config['vision_config']['layer_norm_eps'] == 1e-6
    back = config_from_folder(tmp_path / 'folder').model
    assert (back.vision.eps, back.vision_norm_eps) == (1e-6, 1e-5)
    # the side file brings what transformers has no place for
    state = io.read_checkpoint(tmp_path / 'trained.pth')['state_dict']
    found = io.read_checkpoint(tmp_path / 'folder')['state_dict']
    for key in ('itc_head.temperature', 'num_steps', 'itg_head.transform.weight'):
        assert torch.equal(found[key], state[key])


@pytest.mark.skipif(not hasattr(transformers.T5Config(), 'scale_decoder_outputs'), reason='transformers 4 scales all')
def test_tied_t5_that_does_not_scale_is_written_untied(folders, tmp_path):
    """transformers 4 scales the outputs of every tied T5, and would make another model of it."""
    cfg, model = make('t5', folders, tmp_path, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert model.language_model.model.lm_head.weight is model.language_model.model.shared.weight
    export_to_huggingface(cfg, tmp_path / 'trained.pth', tmp_path / 'folder')
    text = json.loads((tmp_path / 'folder' / 'config.json').read_text())['text_config']
    assert text['tie_word_embeddings'] is text['scale_decoder_outputs'] is False
    written = load_file(tmp_path / 'folder' / 'model.safetensors')
    assert torch.equal(written['language_model.lm_head.weight'], written['language_model.shared.weight'])
    ours = get_model(tmp_path / 'folder', device='cpu')
    for key, value in ours.language_model.state_dict().items():
        assert torch.equal(value, model.language_model.state_dict()[key]), key
    assert ours.language_model.model.config.scale_decoder_outputs is False


def test_tensors_have_the_types_of_the_model(folders, tmp_path):
    cfg, _ = make('llama', folders, tmp_path)
    cfg.model.language_model.dtype = 'bfloat16'
    state = io.read_checkpoint(tmp_path / 'trained.pth')
    state['meta']['frozen'].pop('language_model')  # it was float32 there
    io.write_checkpoint(state, tmp_path / 'trained.pth')
    export_to_huggingface(cfg, tmp_path / 'trained.pth', tmp_path / 'folder')
    tensors = load_file(tmp_path / 'folder' / 'model.safetensors')
    for key, value in tensors.items():
        assert value.dtype == (torch.bfloat16 if key.startswith('language_model.') else torch.float32), key
    assert json.loads((tmp_path / 'folder' / 'config.json').read_text())['dtype'] == 'float32', 'loses nothing'
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / 'folder', dtype=torch.bfloat16)
    weight = theirs.language_model.lm_head.weight
    assert weight.dtype == torch.bfloat16 and torch.equal(weight, tensors['language_model.lm_head.weight'])


def test_positions_of_another_image_size_are_those_of_the_model(folders, tmp_path):
    cfg, _ = make('retrieval', folders, tmp_path)
    cfg.model.vision.image_size = 35
    notes = export_to_huggingface(cfg, tmp_path / 'trained.pth', tmp_path / 'folder')
    assert any('interpolated from 4 x 4 to 5 x 5' in note for note in notes)
    config = json.loads((tmp_path / 'folder' / 'config.json').read_text())
    processor = json.loads((tmp_path / 'folder' / 'preprocessor_config.json').read_text())
    assert config['vision_config']['image_size'] == 35 and processor['size'] == dict(height=35, width=35)
    table = load_file(tmp_path / 'folder' / 'model.safetensors')['vision_model.embeddings.position_embedding']
    assert torch.equal(table, MODELS.build(cfg.model).vision.pos_embed)


# -------------------------------------------------------------------------------------------- bad input

@pytest.fixture(scope='module')
def trained(folders, tmp_path_factory):
    """Config and checkpoint of a small model, which the tests change."""
    where = tmp_path_factory.mktemp('trained')
    return make('opt', folders, where)[0], where / 'trained.pth'


def test_models_that_transformers_has_no_class_for_are_refused(trained, tmp_path):
    cfg, checkpoint = trained
    cfg = copy.deepcopy(cfg)
    cfg.model.vision = dict(type='FeatureMapEncoder', embed_dim=32, module=dict(
        type='torch.nn.Conv2d', in_channels=3, out_channels=32, kernel_size=7, stride=7))
    cfg.model.language_model.update(model=None, add_special_tokens=False, config=dict(
        LANGUAGE['opt'], vocab_size=300, word_embed_proj_dim=12))
    with pytest.raises(ConfigError, match='no class for this model: model.vision is a FeatureMapEncoder; .*'
                                          'embeds text in 12 and its layers are 24 wide.*add_special_tokens is False'):
        export_to_huggingface(cfg, checkpoint, tmp_path / 'out')
    cfg.model.vision = dict(trained[0].model.vision, pre_norm=True, patch_bias=False)
    with pytest.raises(ConfigError, match='pre_norm is True .*patch_bias is False'):
        export_to_huggingface(cfg, checkpoint, tmp_path / 'out')
    cfg = copy.deepcopy(trained[0])  # as from a folder without a tokenizer
    cfg.model.language_model.tokenizer = dict(type='SizeOnlyTokenizer', size=300)
    with pytest.raises(ConfigError, match='language_model.tokenizer has no files, and its processor needs one'):
        export_to_huggingface(cfg, checkpoint, tmp_path / 'out')
    assert not any(tmp_path.iterdir())


def test_frozen_part_that_is_not_there_or_another_one_is_refused(trained, tmp_path):
    cfg, checkpoint = trained
    cfg = copy.deepcopy(cfg)
    state = io.read_checkpoint(cfg.model.vision.weights)['state_dict']
    io.write_checkpoint({**state, 'vision.cls_token': state['vision.cls_token'] + 1}, tmp_path / 'other.pth')
    cfg.model.vision.weights = str(tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match="frozen part 'vision' in .*other.pth is not the one that .*trained.pth"):
        export_to_huggingface(cfg, checkpoint, tmp_path / 'out')
    cfg.model.vision.weights = None
    with pytest.raises(ConfigError, match="'vision' has no weights in the config: give them in model.vision"):
        export_to_huggingface(cfg, checkpoint, tmp_path / 'out')
    cfg.model.vision.weights = str(tmp_path / 'nowhere.pth')
    with pytest.raises(CheckpointError, match=r"frozen part 'vision' .*nowhere.pth not found"):
        export_to_huggingface(cfg, checkpoint, tmp_path / 'out')
    cfg = copy.deepcopy(trained[0])
    cfg.model.qformer.num_layers = 5
    with pytest.raises(CheckpointError, match=r'tensors of the config.s model are missing \(qformer.layers.4.*'
                                              'is it the config of this checkpoint'):
        export_to_huggingface(cfg, checkpoint, tmp_path / 'out')
    cfg.model.qformer.update(num_layers=4, mlp_width=60)
    with pytest.raises(CheckpointError, match=r'mlp.fc1.weight is \(56, 40\) in .*and \(60, 40\) in the model'):
        export_to_huggingface(cfg, checkpoint, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_folder_appears_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    cfg, checkpoint = trained
    out = tmp_path / 'out'
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(10, 9, 1000))
        with pytest.raises(CheckpointError, match=r'out needs 0\.00 GiB, and .* has 0\.00 GiB left: make room'):
            export_to_huggingface(cfg, checkpoint, out)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', lambda handle: (_ for _ in ()).throw(OSError('No space left on device')))
        with pytest.raises(CheckpointError, match='cannot write .*model.safetensors: No space left on device'):
            export_to_huggingface(cfg, checkpoint, out)
    assert not any(tmp_path.iterdir())
    out.mkdir()
    (out / 'kept').touch()
    with pytest.raises(CheckpointError, match='out exists already: give another name, or --force'):
        export_to_huggingface(cfg, checkpoint, out)
    with pytest.raises(CheckpointError, match='out is a folder with other things than a model .*--force does not'):
        export_to_huggingface(cfg, checkpoint, out, force=True)
    assert os.listdir(out) == ['kept']
    (out / 'config.json').touch()
    export_to_huggingface(cfg, checkpoint, out, force=True)
    assert (out / 'model.safetensors').is_file() and not (out / 'kept').exists()
    assert os.listdir(tmp_path) == ['out']
