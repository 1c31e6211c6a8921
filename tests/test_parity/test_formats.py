"""One model of transformers, written in the layout of each project: what is read from each gives transformers' outputs,
with nothing missing and nothing left over."""
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmblip2.apis import get_model
from mmblip2.checkpoints import io
from mmblip2.checkpoints.layouts import recognise, to_write
from mmblip2.checkpoints.parts import build_filled, parts_from
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.models.losses import query_text_similarity
from mmblip2.registry import MODELS

sys.path.insert(0, str(Path(__file__).parent))
import test_huggingface_blip2
from test_huggingface_blip2 import (
    LANGUAGE,
    NUM_QUERY,
    QFORMER,
    TEXTS,
    VISION,
    Pair,
    assert_close,
    bert_vocab,
    draw_images,
    parts,
    redraw,
)

transformers = pytest.importorskip('transformers')
folders = test_huggingface_blip2.folders  # the fixture
FORMATS = ('LAVIS', 'mmpretrain', 'transformers', 'shards', 'torch shards', 'safetensors')


def save_folder(model, folder, tokenizer=None, **how):
    """A folder as transformers writes it, with the tokenizer."""
    model.save_pretrained(folder, **how)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def to_torch_shards(folder):
    """Turn safetensors shards into those of torch.save, which transformers 5 cannot write any more."""
    from safetensors.torch import load_file
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    names = {name: name.replace('model-', 'pytorch_model-').replace('safetensors', 'bin')
             for name in set(index['weight_map'].values())}
    for old, new in names.items():
        torch.save(load_file(folder / old), folder / new)
        (folder / old).unlink()
    index['weight_map'] = {key: names[name] for key, name in index['weight_map'].items()}
    (folder / 'model.safetensors.index.json').unlink()
    (folder / 'pytorch_model.bin.index.json').write_text(json.dumps(index))


def write_all(theirs, state, root, tokenizer=None, **what):
    """``state`` (ours) in the layouts of LAVIS and mmpretrain, ``theirs`` as folders; {format: path}."""
    paths = {}
    for name in ('LAVIS', 'mmpretrain'):
        converted, left = to_write(name, state, **(what if name == 'LAVIS' else {})).from_ours(state)
        assert not left
        paths[name] = str(root / f'{name}.pth')
        torch.save({'model' if name == 'LAVIS' else 'state_dict': converted, 'epoch': 1}, paths[name])
    paths['transformers'] = save_folder(theirs, root / 'whole', tokenizer)
    paths['safetensors'] = str(root / 'whole' / 'model.safetensors')
    paths['shards'] = save_folder(theirs, root / 'shards', tokenizer, max_shard_size='40KB')
    paths['torch shards'] = save_folder(theirs, root / 'torch', tokenizer, max_shard_size='40KB')
    to_torch_shards(root / 'torch')
    assert len(list((root / 'shards').glob('*.safetensors'))) > 3
    return paths


# ------------------------------------------------------------------------------------------ retrieval

class Retrieval:
    """Blip2ForImageTextRetrieval, the files made from it, and the config of ours.

    Attributes:
        state (dict): Its weights by our names, with a temperature and an ITG head, which transformers has not.
    """

    def __init__(self, folders, root):
        self.vocab, self.folders = bert_vocab(folders), folders
        torch.manual_seed(0)
        self.theirs = redraw(transformers.Blip2ForImageTextRetrieval(transformers.Blip2Config(
            vision_config=VISION, qformer_config=dict(QFORMER, vocab_size=self.vocab, use_qformer_text_input=True),
            num_query_tokens=NUM_QUERY, image_text_hidden_size=8)), seed=0)
        found = self.theirs.state_dict()
        self.state = dict(recognise(found).to_ours(found).state)
        self.state.update({
            'itc_head.temperature': torch.tensor(0.05), 'itg_head.bias': torch.randn(self.vocab),
            'itg_head.norm.weight': torch.ones(40), 'itg_head.norm.bias': torch.zeros(40),
            'itg_head.transform.weight': torch.randn(40, 40), 'itg_head.transform.bias': torch.zeros(40)})
        self.cfg = dict(type='Blip2Representation', embed_dim=8, frozen=(), **parts(folders, self.vocab))
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folders['bert'])
        self.paths = write_all(self.theirs, self.state, root, self.tokenizer)


@pytest.fixture(scope='module')
def retrieval(folders, tmp_path_factory):
    return Retrieval(folders, tmp_path_factory.mktemp('retrieval'))


@torch.no_grad()
def assert_equal_scores(ours, theirs):
    """ITC similarities and ITM logits."""
    images, text = draw_images(), ours.tokenize(TEXTS)
    output = theirs(images, text.input_ids, text.mask)
    encoded = ours.encode_image(images)
    similarities = query_text_similarity(ours.image_features(encoded), ours.text_features(text))
    assert_close(similarities, output.logits_per_image)
    expected = theirs(images, text.input_ids, text.mask, use_image_text_matching_head=True).logits_per_image
    assert_close(ours.itm_head(ours.qformer.forward_joint(encoded.image_kv, *text)), expected)


@pytest.mark.parametrize('frozen', [(), ('vision',)], ids=['all trained', 'frozen vision'])
@pytest.mark.parametrize('name', FORMATS)
def test_retrieval_from_every_format_equals_transformers(retrieval, name, frozen):
    cfg = dict(retrieval.cfg, vision_norm_eps=1e-6, frozen=frozen)
    model, report, _ = build_filled(cfg, retrieval.paths[name])
    assert_equal_scores(model.eval(), retrieval.theirs)
    foreign = name not in ('LAVIS', 'mmpretrain')
    heads = {'itc_head.temperature', *(key for key in retrieval.state if key.startswith('itg_head.'))}
    assert set(report.new) == {'num_steps'} | (heads if foreign else set())
    assert report.missing == report.unexpected == report.interpolated == []
    trained = {key for key in model.state_dict() if not frozen or not key.startswith('vision.')}
    assert set(report.matched) == trained - set(report.new)
    assert f'taken for {"transformers" if foreign else name} (' in str(report)
    if not foreign:
        for key in heads:
            assert torch.equal(model.state_dict()[key], retrieval.state[key])


def test_epsilon_of_the_norm_belongs_to_the_format(retrieval):
    eps = {name: build_filled(retrieval.cfg, retrieval.paths[name])[0].vision_norm.eps
           for name in ('LAVIS', 'mmpretrain', 'transformers')}
    assert eps == {'LAVIS': 1e-5, 'mmpretrain': 1e-5, 'transformers': 1e-6}
    said = build_filled(dict(retrieval.cfg, vision_norm_eps=1e-4), retrieval.paths['transformers'])[0]
    assert said.vision_norm.eps == 1e-4


def test_get_model_takes_every_format(retrieval):
    for name in ('LAVIS', 'mmpretrain', 'shards'):
        cfg = Config(dict(model=dict(retrieval.cfg, vision_norm_eps=1e-6)))
        assert_equal_scores(get_model(cfg, pretrained=retrieval.paths[name], device='cpu'), retrieval.theirs)


def test_separate_vision_file_is_not_looked_for_where_the_checkpoint_has_it(retrieval):
    vision = dict(retrieval.cfg['vision'], weights='nowhere/eva_vit_gone.pth')
    for frozen in ((), ('vision',)):
        cfg = dict(retrieval.cfg, vision=vision, frozen=frozen, vision_norm_eps=1e-6)
        model, report, built = build_filled(cfg, retrieval.paths['mmpretrain'])
        assert_equal_scores(model.eval(), retrieval.theirs)
        assert built['vision']['weights'] == (retrieval.paths['mmpretrain'] if frozen else None)
        assert cfg['vision']['weights'] == 'nowhere/eva_vit_gone.pth' and 'eva_vit_gone.pth' in str(report)
        if frozen:
            assert model.frozen_record()['vision']['source'] == retrieval.paths['mmpretrain']


def test_frozen_part_that_the_checkpoint_lacks_comes_from_the_config_or_is_missed(retrieval, tmp_path, monkeypatch):
    monkeypatch.setenv('MMBLIP2_WEIGHTS', '/of my own')
    state = {key: value for key, value in torch.load(retrieval.paths['LAVIS'])['model'].items()
             if not key.startswith('visual_encoder.')}
    torch.save(dict(model=state), tmp_path / 'stage1.pth')
    vision = {key: value for key, value in retrieval.state.items() if key.startswith('vision.')}
    torch.save(vision, tmp_path / 'vit.pth')
    cfg = dict(retrieval.cfg, vision_norm_eps=1e-6)
    for frozen in (('vision',), ()):
        cfg.update(frozen=frozen, vision=dict(retrieval.cfg['vision'], weights=str(tmp_path / 'vit.pth')))
        model, report, _ = build_filled(cfg, tmp_path / 'stage1.pth')
        assert_equal_scores(model.eval(), retrieval.theirs)
        assert report.new == ['num_steps']
        assert frozen or f'vision: not in the file, from {tmp_path / "vit.pth"}' in report.notes
    cfg['vision'] = dict(retrieval.cfg['vision'], weights='nowhere/vit_gone.pth')
    with pytest.raises(CheckpointError, match=r'vit_gone.pth not found: .*Looked in: .*nowhere.*/of my own'):
        build_filled(cfg, tmp_path / 'stage1.pth')
    with pytest.raises(ConfigError, match=r'opt_gone could not be loaded: there is no such folder.*; looked in .*'
                                          r'opt_gone, /of my own'):
        MODELS.build(dict(type='CausalLM', model='./nowhere/opt_gone', tokenizer=retrieval.folders['opt']))
    cfg['vision'] = retrieval.cfg['vision']  # trained and random: the file has to have it
    with pytest.raises(CheckpointError, match=r'missing in the file \(vision\.cls_token.* taken for LAVIS'):
        build_filled(cfg, tmp_path / 'stage1.pth')


@pytest.mark.parametrize('name', ['LAVIS', 'mmpretrain', 'shards'])
@pytest.mark.parametrize('frozen', [(), ('vision',)], ids=['trained', 'frozen'])
def test_positions_are_interpolated_in_every_format(retrieval, name, frozen):
    large = dict(retrieval.cfg, vision=dict(retrieval.cfg['vision'], image_size=42), frozen=frozen)
    model, report, _ = build_filled(large, retrieval.paths[name])
    assert report.interpolated == ([] if frozen else ['vision.pos_embed'])
    if not frozen:
        assert 'vision: positions interpolated from 4 x 4 to 6 x 6 patches' in str(report)
    else:
        assert model.frozen_record()['vision']['resized'] == 'pos_embed from (1, 17, 32) to (1, 37, 32)'
    table = retrieval.state['vision.pos_embed']
    assert torch.equal(model.vision.pos_embed[:, :1], table[:, :1]), 'the class token keeps its position'
    theirs = retrieval.theirs.vision_model.embeddings.interpolate_pos_encoding(torch.zeros(1, 37, 32), 42, 42)
    torch.testing.assert_close(model.vision.pos_embed.detach(), theirs.detach(), atol=1e-5, rtol=0)


def test_half_precision_is_read_as_what_it_is(retrieval, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        half = transformers.Blip2ForImageTextRetrieval(retrieval.theirs.config)
        half.load_state_dict(retrieval.theirs.state_dict())
        folder = save_folder(half.to(dtype), tmp_path / str(dtype))
        model, _, _ = build_filled(retrieval.cfg, folder)
        for key, value in model.state_dict().items():
            if key.startswith(('qformer.', 'vision.')):
                assert value.dtype == torch.float32 and torch.equal(value, retrieval.state[key].to(dtype).float()), key


def test_words_that_the_file_lacks_are_new_rows(retrieval, tmp_path):
    """[DEC] is behind BERT's words; what lacks more is of another vocabulary."""
    table = retrieval.state['qformer.word_embeddings.weight']
    for cut in (1, 3):
        torch.save({**retrieval.state, 'num_steps': torch.tensor(0), 'qformer.word_embeddings.weight': table[:-cut]},
                   tmp_path / 'short.pth')
        if cut == 1:
            model, report, _ = build_filled(retrieval.cfg, tmp_path / 'short.pth')
            assert f'the file has {len(table) - 1} words and the model {len(table)}: the last 1 row' in str(report)
            assert torch.equal(model.qformer.word_embeddings.weight[:-1], table[:-1])
    with pytest.raises(CheckpointError, match=r'1 of other shape \(qformer.word_embeddings.weight: \(\d+, 40\) in'):
        build_filled(retrieval.cfg, tmp_path / 'short.pth')


# ----------------------------------------------------------------------------------------- generation

class Written(Pair):
    """A pair of generation models and the files made from theirs.

    Attributes:
        cfg (dict): Config of ours; its language model has a folder of its own.
    """

    def __init__(self, kind, folders, root):
        super().__init__(kind, folders)
        self.path = str(root / 'language')
        self.theirs.language_model.save_pretrained(self.path)
        found = self.theirs.state_dict()
        state = recognise(found).to_ours(found).state
        trained = {key: value for key, value in state.items() if not key.startswith('language_model.')}
        if self.instruct:
            self.paths = {'LAVIS': str(root / 'lavis.pth')}
            torch.save(dict(model=to_write('LAVIS', trained, language='llm').from_ours(trained)[0]),
                       self.paths['LAVIS'])
            self.paths['shards'] = save_folder(self.theirs, root / 'shards', self.tokenizer, max_shard_size='40KB')
            self.ours.tokenizer.tokenizer.save_pretrained(root / 'shards' / 'qformer_tokenizer')
        else:
            language = 't5' if self.is_t5 else 'opt'
            self.paths = write_all(self.theirs, trained, root, self.tokenizer, language=language)
        vocab = bert_vocab(folders) if self.instruct else None
        self.cfg = dict(
            type='Blip2Generation', vision_norm_eps=1e-6, **parts(folders, vocab),
            language_model=dict(type='Seq2SeqLM' if self.is_t5 else 'CausalLM', model=self.path, max_text_len=96,
                                tokenizer=folders[kind.split('-')[-1]], config=dict(model_type=LANGUAGE[
                                    kind.split('-')[-1]]['model_type'])))

    @torch.no_grad()
    def assert_equal(self, model):
        """Logits and loss of captions."""
        images = draw_images()
        loss, logits, predicts = self.their_loss(images)
        found = []
        handle = model.language_model.model.register_forward_hook(lambda module, args, output: found.append(
            output.logits))
        ours = model.eval().loss(images, self.samples())['loss_lm']
        handle.remove()
        assert_close(found[0], logits[predicts])  # of targets alone
        torch.testing.assert_close(ours, loss, atol=1e-5, rtol=0)


@pytest.fixture(scope='module')
def written(folders, tmp_path_factory):
    """Built on first use."""
    built = {}

    def get(kind):
        if kind not in built:
            built[kind] = Written(kind, folders, tmp_path_factory.mktemp(kind))
        return built[kind]

    return get


@pytest.mark.parametrize('kind, name', [
    ('opt', 'LAVIS'), ('opt', 'mmpretrain'), ('opt', 'transformers'), ('opt', 'shards'), ('opt', 'torch shards'),
    ('opt', 'safetensors'), ('t5', 'LAVIS'), ('t5', 'shards'), ('t5', 'safetensors'), ('instruct-llama', 'LAVIS'),
    ('instruct-llama', 'shards')])
def test_generation_from_every_format_equals_transformers(written, kind, name):
    pair = written(kind)
    cfg = pair.cfg
    if name in ('transformers', 'shards', 'torch shards', 'safetensors'):  # everything is in the checkpoint
        language = dict(cfg['language_model'], model='nowhere/language', tokenizer='nowhere/tokenizer')
        if name == 'safetensors':  # but for the tokenizer and the architecture
            language = dict(cfg['language_model'], config=dict(LANGUAGE[kind], vocab_size=pair.image_id))
            language['model'] = 'nowhere/language'
        cfg = dict(cfg, language_model=language, vision=dict(cfg['vision'], weights='nowhere/vit.pth'))
        if pair.instruct:
            cfg['tokenizer'] = dict(type='BertTokenizer', path='nowhere/bert')
    model, report, built = build_filled(cfg, pair.paths[name])
    pair.assert_equal(model)
    assert report.missing == report.unexpected == report.new == []
    assert {key.split('.')[0] for key in report.matched} == {'qformer', 'vision_norm', 'language_projection'}
    rows = model.language_model.model.get_input_embeddings().num_embeddings
    assert rows == pair.image_id + 1  # of the file, which has <image>
    sources = model.frozen_record()
    assert sources['vision']['source'] == pair.paths[name]
    own = name in ('LAVIS', 'mmpretrain')
    assert sources['language_model']['source'] == (pair.path if own else pair.paths[name])
    if not own:
        assert 'language_model: that of the checkpoint instead of nowhere/language' in str(report)


def mapped_from(path, tensors):
    """How many of the tensors are the memory-mapped file itself."""
    ranges = [[int(end, 16) for end in line.split()[0].split('-')]
              for line in Path('/proc/self/maps').read_text().splitlines() if line.endswith(str(path))]
    return sum(any(start <= tensor.data_ptr() < end for start, end in ranges) for tensor in tensors)


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='needs Linux')
def test_files_are_mapped_while_they_are_read_and_nothing_of_the_model_stays_mapped(written):
    """What stayed mapped would change, or be gone, with the file."""
    pair = written('opt')
    for name, file in (('LAVIS', pair.paths['LAVIS']), ('transformers', pair.paths['safetensors'])):
        model, _, _ = build_filled(pair.cfg, pair.paths[name])
        assert mapped_from(file, model.parameters()) == 0
        read = io.read_checkpoint(pair.paths[name])['state_dict']
        assert mapped_from(file, read.values()) == len(read)
    assert mapped_from(pair.paths['LAVIS'], io.read_checkpoint(pair.paths['LAVIS'], mapped=False)[
        'state_dict'].values()) == 0


def test_image_token_index_is_carried_for_an_export(written):
    pair = written('opt')
    assert io.read_checkpoint(pair.paths['shards'])['meta'] == dict(image_token_index=pair.image_id)


def test_stage_of_the_file_is_said_where_it_is_another(written, retrieval):
    with pytest.raises(CheckpointError, match=r'(?s)taken for LAVIS \(with opt_proj\).*The file is of stage 2 .*, the '
                                              r'model of stage 1 .*give the checkpoint and the config of the same'):
        build_filled(retrieval.cfg, written('opt').paths['LAVIS'])
    with pytest.raises(CheckpointError, match='The file is of stage 1 .*, the model of stage 2'):
        build_filled(written('opt').cfg, retrieval.paths['mmpretrain'])


def test_folder_of_another_language_model_is_refused(written):
    with pytest.raises(ConfigError, match="model_type='t5' does not fit CausalLM"):
        build_filled(written('opt').cfg, written('t5').paths['shards'])


def test_training_starts_from_a_stage_1_file_of_any_format(written, retrieval):
    """load_from in stage 2: vision from the file, text half and heads dropped, projection new."""
    pair = written('opt')
    for name in ('LAVIS', 'mmpretrain', 'shards'):
        cfg, notes = parts_from(dict(pair.cfg, allow_random=True), [dict(checkpoint=retrieval.paths[name])])
        assert cfg['vision']['weights'] == retrieval.paths[name] and notes
        assert cfg['language_model'] == pair.cfg['language_model']
        model = MODELS.build(cfg)
        report = io.load_partial(model, retrieval.paths[name])
        assert set(report.new) == {'language_projection.weight', 'language_projection.bias'}
        assert any(key.startswith('itm_head.') for key in report.dropped)
        assert torch.equal(model.vision.cls_token, retrieval.state['vision.cls_token'])
        assert 'vision: frozen' in str(report) and 'those that it was built with' in str(report)


def test_what_is_left_out_of_the_list_form_brings_no_part(written):
    pair = written('opt')
    entry = dict(checkpoint=pair.paths['shards'], exclude=['vision.*', 'language_model.*'])
    cfg, _ = parts_from(pair.cfg, [entry])
    assert cfg['vision'] == pair.cfg['vision'] and cfg['language_model'] == pair.cfg['language_model']


# ---------------------------------------------------------------------------------------------- bad input

def test_missing_shard_and_wrong_index_are_named(retrieval, tmp_path):
    folder = tmp_path / 'shards'
    save_folder(retrieval.theirs, folder, max_shard_size='40KB')
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    first = sorted(set(index['weight_map'].values()))[0]
    whole = (folder / first).read_bytes()
    (folder / first).write_bytes(whole[:-40])
    with pytest.raises(CheckpointError, match=f'{first} is broken or incomplete'):
        io.read_checkpoint(folder)
    (folder / first).write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n')
    with pytest.raises(CheckpointError, match=f'{first} is a pointer of git-lfs'):
        io.read_checkpoint(folder)
    (folder / first).unlink()
    with pytest.raises(CheckpointError, match=rf'shards lacks 1 of the \d+ shards that model.safetensors.index.json '
                                              rf'names, first {first}: copy or download'):
        io.read_checkpoint(folder)
    (folder / first).write_bytes(whole)
    key = next(key for key, shard in index['weight_map'].items() if shard != first)
    for place, message in (('../other.safetensors', "names the shard '../other.safetensors'.*refused"),
                           (first, f'says that {key} is in {first}, and 1 such tensors are not')):
        content = dict(index, weight_map={**index['weight_map'], key: place})
        (folder / 'model.safetensors.index.json').write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            io.read_checkpoint(folder)
    (folder / 'model.safetensors.index.json').write_text('{"weight')
    with pytest.raises(CheckpointError, match='index.json is broken .*copy or download it again'):
        io.read_checkpoint(folder)


def test_other_size_and_unknown_keys_name_the_format(retrieval, tmp_path):
    for name in ('LAVIS', 'mmpretrain', 'transformers'):
        cfg = dict(retrieval.cfg, qformer=dict(retrieval.cfg['qformer'], mlp_width=60))
        with pytest.raises(CheckpointError, match=rf'(?s)24 of other shape .*qformer.layers.0.text_mlp.fc1.weight: '
                                                  rf'\(56, 40\) in the file, \(60, 40\).*taken for {name} \('):
            build_filled(cfg, retrieval.paths[name])
    state = dict(torch.load(retrieval.paths['LAVIS'])['model'], extra_head=torch.ones(1))
    torch.save(dict(model=state), tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=r'odd.pth: 1 of \d+ keys are unknown in a file of LAVIS .*extra_head'):
        io.read_checkpoint(tmp_path / 'odd.pth')
    del state['extra_head'], state['itm_head.weight']
    torch.save(dict(model=state), tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=r'1 missing in the file \(itm_head.classifier.weight\).*for LAVIS'):
        build_filled(retrieval.cfg, tmp_path / 'odd.pth')


def test_whole_report_is_logged_by_get_model(retrieval, monkeypatch):
    lines = []
    monkeypatch.setattr('mmblip2.checkpoints.io.say', lambda line, level=None: lines.append(line))
    path = retrieval.paths['mmpretrain']
    get_model(Config(dict(model=dict(retrieval.cfg, vision_norm_eps=1e-6))), pretrained=path, device='cpu')
    matched = len(retrieval.state)
    lines = [line for line in lines if line.startswith(('weights', '  '))]  # mmengine has some, too
    assert lines[:2] == [f'weights from {path}, taken for mmpretrain (retrieval): {matched} matched, 0 interpolated, '
                         '1 new, 0 missing, 0 unexpected, 3 dropped', '  new: num_steps']
    assert len(lines) == 3 and 'multimodal_backbone.cls (2)' in lines[2] and 'multimodal_backbone.bert' in lines[2]


# -------------------------------------------------------------------------------------------------- tools

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Three pictures with their captions, and what a config says of a test with them."""
    import numpy as np
    from PIL import Image
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    rows = []
    for i, text in enumerate(TEXTS):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(root / f'{i}.png')
        rows.append(dict(image=f'{i}.png', caption=[text], image_id=i))
    (root / 'test.json').write_text(json.dumps(rows))

    def loader(kind, *steps, **dataset):
        return dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
            type=kind, data_root=str(root), ann_file='test.json', **dataset,
            pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=28), *steps, dict(type='PackInputs')]))

    return loader


def run_tool(name, cfg, root, *args):
    """tools/NAME.py in this process, with a config file."""
    import importlib.util
    path = Path(__file__).parents[2] / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'formats_{name}', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    Config(cfg).dump(root / 'config.py')
    tool.main([str(root / 'config.py'), *args, '--work-dir', str(root / 'work')])
    return '\n'.join(log.read_text() for log in (root / 'work').rglob('*.log'))


@pytest.mark.parametrize('name', ['LAVIS', 'mmpretrain', 'shards'])
def test_tool_tests_retrieval_from_every_format(retrieval, data, tmp_path, name):
    cfg = dict(model=dict(retrieval.cfg, vision=dict(retrieval.cfg['vision'], weights='nowhere/vit.pth')),
               test_dataloader=data('COCORetrieval', dict(type='CleanCaption'), test_mode=True),
               test_cfg=dict(type='RetrievalTestLoop', k_test=3), test_evaluator=dict(type='RetrievalRecall'))
    log = run_tool('test', cfg, tmp_path, retrieval.paths[name], '--out', str(tmp_path / 'metrics.json'))
    assert json.loads((tmp_path / 'metrics.json').read_text())['i2t/retrieval/Recall@5'] == 100
    assert f'weights from {retrieval.paths[name]}, taken for ' in log and '0 missing, 0 unexpected' in log
    assert 'vision: nowhere/vit.pth is not needed' in log


@pytest.mark.parametrize('name', ['LAVIS', 'mmpretrain', 'shards'])
def test_tool_tests_captions_from_every_format(written, data, tmp_path, name):
    pair = written('opt')
    model = dict(pair.cfg, generation=dict(max_new_tokens=5))
    if name == 'shards':
        model['language_model'] = dict(model['language_model'], model='nowhere/opt', tokenizer=None)
    cfg = dict(model=model, test_dataloader=data('COCOCaption', dict(type='CaptionPrompt', prompt=''), test_mode=True),
               test_cfg=dict(type='TestLoop'),
               test_evaluator=dict(type='DumpPredictions', out_path=str(tmp_path / 'texts.json')))
    log = run_tool('test', cfg, tmp_path, pair.paths[name])
    assert len(json.loads((tmp_path / 'texts.json').read_text())) == 3
    assert '0 new, 0 missing, 0 unexpected' in log
    assert ('language_model: that of the checkpoint instead of nowhere/opt' in log) == (name == 'shards')


def test_tool_trains_from_a_folder_and_goes_on(written, data, tmp_path):
    """load_from brings the frozen parts, the checkpoint has only what is trained, and resume finds them again."""
    pair = written('opt')
    model = dict(pair.cfg, language_model=dict(pair.cfg['language_model'], model='nowhere/opt', tokenizer=None))
    loader = dict(data('COCOCaption', dict(type='CaptionPrompt', prompt='a photo of')),
                  sampler=dict(type='SeekableInfiniteSampler'))
    cfg = dict(model=model, train_dataloader=loader, train_cfg=dict(max_iters=1),
               optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4)),
               default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)))
    start = f'load_from={pair.paths["shards"]}'
    log = run_tool('train', cfg, tmp_path, '--cfg-options', start)
    assert '0 new, 0 missing, 0 unexpected' in log
    saved = io.read_checkpoint(tmp_path / 'work')
    assert {key.split('.')[0] for key in saved['state_dict']} == {'qformer', 'vision_norm', 'language_projection'}
    assert saved['meta']['frozen']['language_model']['source'] == pair.paths['shards']
    log = run_tool('train', cfg, tmp_path, '--resume', '--cfg-options', start, 'train_cfg.max_iters=2')
    assert 'at iteration 1' in log and (tmp_path / 'work' / 'iter_2.pth').is_file()
    get_model(tmp_path / 'work', device='cpu')


def test_tool_names_what_is_wrong_with_a_checkpoint(retrieval, data, tmp_path, monkeypatch):
    monkeypatch.setenv('MMBLIP2_WEIGHTS', '/of my own')
    cfg = dict(model=retrieval.cfg, test_cfg=dict(type='RetrievalTestLoop', k_test=3),
               test_dataloader=data('COCORetrieval', dict(type='CleanCaption'), test_mode=True),
               test_evaluator=dict(type='RetrievalRecall'))
    with pytest.raises(ConfigError, match='checkpoint nowhere/blip2.pth not found: check the path. Looked in.*my own'):
        run_tool('test', cfg, tmp_path, 'nowhere/blip2.pth')
    torn = tmp_path / 'torn.pth'
    torn.write_bytes(Path(retrieval.paths['LAVIS']).read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match='torn.pth is broken or incomplete'):
        run_tool('test', cfg, tmp_path, str(torn))
