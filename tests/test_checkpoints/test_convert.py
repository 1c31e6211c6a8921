"""There and back between the layouts, bit for bit, in the memory of one file."""
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmblip2.apis import get_model
from mmblip2.checkpoints import io
from mmblip2.checkpoints.convert import convert
from mmblip2.checkpoints.export import export_to_huggingface
from mmblip2.checkpoints.stream import write_safetensors
from mmblip2.errors import CheckpointError, ConfigError

pytest.importorskip('transformers')
sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_export import LANGUAGE, Pair, draw_images, exported, folders, make, tiny_config

__all__ = ['exported', 'folders']  # the fixtures
ROOT = Path(__file__).resolve().parents[2]


def assert_same(one, other):
    """Two state dicts, bit for bit."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype and torch.equal(value, other[key]), key


def texts(model, instruct=False):
    pair = object.__new__(Pair)
    pair.instruct = instruct
    return [sample.pred_text for sample in model.predict(draw_images(), pair.samples())]


# ------------------------------------------------------------------------------------------ round trips

@pytest.mark.parametrize('kind', ['opt', 't5', 'instruct-llama', 'retrieval'])
@pytest.mark.parametrize('to', ['lavis', 'mmpretrain', 'huggingface'])
def test_there_and_back_is_exact(exported, tmp_path, kind, to):
    cfg, model, folder, _ = exported(kind)
    if to == 'mmpretrain' and kind == 'instruct-llama':
        with pytest.raises(CheckpointError, match='mmpretrain .* has no place for'):
            convert(folder.parent / 'trained.pth', tmp_path / 'there', to)
        return
    trained = io.read_checkpoint(folder.parent / 'trained.pth')
    if to == 'huggingface':
        there = folder
    else:
        there = tmp_path / 'there.pth'
        convert(folder.parent / 'trained.pth', there, to)
    name = dict(lavis='LAVIS', mmpretrain='mmpretrain', huggingface='transformers')[to]
    assert io.read_checkpoint(there)['format'] == name
    convert(there, tmp_path / 'back.pth', 'mmblip2', config=None if to == 'huggingface' else cfg)
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert_same(trained['state_dict'], back['state_dict'])
    if to == 'huggingface':
        assert {entry['source'] for entry in back['meta']['frozen'].values()} == {str(folder)}
    else:  # the parts are those of the config, and the record says what was hashed when they were built
        assert back['meta']['frozen'] == trained['meta']['frozen']
    if to == 'huggingface' and kind != 'retrieval':
        restored = get_model(tmp_path / 'back.pth', device='cpu')
        restored.generation = model.generation = dict(num_beams=1, max_new_tokens=10)
        assert texts(restored, kind.startswith('instruct')) == texts(model, kind.startswith('instruct'))


@pytest.mark.parametrize('kind', ['opt', 't5', 'instruct-llama', 'retrieval'])
def test_folder_to_ours_and_back_is_exact(exported, tmp_path, kind):
    _, _, folder, _ = exported(kind)
    lines = convert(folder, tmp_path / 'ours.pth', 'mmblip2', split=True)
    assert (tmp_path / 'ours_vision.pth').is_file() and str(tmp_path / 'ours_vision.pth') in lines[1]
    assert (tmp_path / 'ours_language_model.pth').is_file() == (kind != 'retrieval')
    back = tmp_path / 'back'
    convert(tmp_path / 'ours.pth', back, 'huggingface')
    for name in ('model.safetensors', io.EXTRA):
        present = (back / name).is_file()
        assert present == (name == 'model.safetensors' or kind == 'retrieval')
    one, other = raw(folder), raw(back)
    assert_same(one, other)
    get_model(tmp_path / 'ours.pth', device='cpu')  # checks the record of the frozen parts


def raw(folder):
    """All tensors of a folder by their names there."""
    from safetensors.torch import load_file
    state = {}
    for file in sorted(folder.glob('*.safetensors')):
        state.update(load_file(file))
    return state


def test_bias_of_the_keys_is_left_out_and_said(exported, tmp_path):
    _, _, folder, _ = exported('retrieval')
    state = raw(folder)
    key = 'vision_model.encoder.layers.0.self_attn.qkv.bias'
    width = len(state[key]) // 3
    assert not state[key][width:2 * width].any()
    state[key][width:2 * width] = 1
    other = tmp_path / 'other'
    other.mkdir()
    for file in folder.iterdir():
        if file.suffix == '.json' and 'index' not in file.name:
            (other / file.name).write_bytes(file.read_bytes())
    write_safetensors({name: (value, value.dtype) for name, value in state.items()
                       if name not in io.read_checkpoint(folder)['state_dict']}, other / 'model.safetensors')
    lines = convert(other, tmp_path / 'ours.pth', 'mmblip2', split=True)
    assert any('not in' in line and 'itc_head.temperature' in line for line in lines)
    get_model(tmp_path / 'ours.pth', device='cpu')
    assert any("the keys' part of 1 attention biases is not zero; it is left out" in line for line in lines)
    convert(tmp_path / 'ours.pth', tmp_path / 'back', 'huggingface')
    state[key][width:2 * width] = 0
    back = raw(tmp_path / 'back')
    assert torch.equal(back[key], state[key])


# ---------------------------------------------------------------------------------------------- memory

def wide_folder(folders, where, width, layers, per_shard=1):
    """A folder of transformers with a wide language model, ``per_shard`` layers a file; bytes of the largest file."""
    cfg, _ = make('opt', folders, where, hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width,
                  num_hidden_layers=1)
    folder = where / 'folder'
    export_to_huggingface(cfg, where / 'trained.pth', folder)
    state, start = raw(folder), 'language_model.model.decoder.layers.0.'
    one = {key[len(start):]: value for key, value in state.items() if key.startswith(start)}
    shards = {'model-00000.safetensors': {key: value for key, value in state.items() if not key.startswith(start)}}
    for first in range(0, layers, per_shard):
        shards[f'model-{1 + first:05d}.safetensors'] = {
            f'{start[:-2]}{number}.{key}': value for number in range(first, min(first + per_shard, layers))
            for key, value in one.items()}
    for name, tensors in shards.items():
        write_safetensors({key: (value, value.dtype) for key, value in tensors.items()}, folder / name)
    (folder / 'model.safetensors').unlink()
    (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(
        weight_map={key: name for name, tensors in shards.items() for key in tensors})))
    config = json.loads((folder / 'config.json').read_text())
    config['text_config']['num_hidden_layers'] = layers
    (folder / 'config.json').write_text(json.dumps(config))
    return folder, max(file.stat().st_size for file in folder.iterdir())


CHILD = '''
import resource, sys
from mmblip2.checkpoints.convert import convert
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small, folder, out = sys.argv[1:]
steps = [("ours.pth", "mmblip2", dict(split=True)), ("back", "huggingface", {}), ("there.pth", "lavis", {})]
for source, start in ((small, out + "/small_"), (folder, out + "/")):  # the first for what is imported on the way
    before = peak()
    for name, to, how in steps:
        convert(source if name != "back" else start + "ours.pth", start + name, to, **how)
        print(source == folder, to, before, peak() - before)
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='the system does not tell what is mapped')
def test_memory_is_that_of_the_largest_file(folders, exported, tmp_path):
    """Kilobytes of a process that has converted a small model before; the large one is six times its bound."""
    _, _, small, _ = exported('opt')
    folder, largest = wide_folder(folders, tmp_path, width=512, layers=16)
    total = sum(file.stat().st_size for file in folder.iterdir())
    done = subprocess.run([sys.executable, '-c', CHILD, small, folder, tmp_path], capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'), check=False)
    assert done.returncode == 0, done.stderr
    used = {line.split()[1]: int(line.split()[3]) * 1024 for line in done.stdout.splitlines()
            if line.startswith('True')}
    assert used.keys() == {'mmblip2', 'huggingface', 'lavis'}
    bound = largest + 48 * 2**20
    assert total > 3 * bound
    assert max(used.values()) < bound, f'{used}: more than the largest file of {largest} bytes and 48 MiB'
    assert_same(raw(folder), raw(tmp_path / 'back'))


# ------------------------------------------------------------------------------------------- in and out

def test_part_that_is_nowhere_is_said_and_not_recorded(exported, folders, tmp_path):
    """A file of LAVIS has no language model; the record is of what was hashed, and nothing else."""
    _, _, folder, _ = exported('opt')
    convert(folder.parent / 'trained.pth', tmp_path / 'lavis.pth', 'lavis')
    cfg = tiny_config('opt', folders, folder.parent)
    tokens = len(get_model(folder.parent / 'trained.pth', device='cpu').language_model.tokenizer)
    cfg.model.language_model.update(model=str(tmp_path / 'nowhere'),
                                    config=dict(LANGUAGE['opt'], vocab_size=tokens + 1))
    lines = convert(tmp_path / 'lavis.pth', tmp_path / 'ours.pth', 'mmblip2', config=cfg)
    assert any('language_model is frozen and neither in' in line for line in lines)
    assert io.read_checkpoint(tmp_path / 'ours.pth')['meta']['frozen'].keys() == {'vision'}


def test_whole_brings_the_frozen_vision_encoder(exported, tmp_path):
    cfg, model, folder, _ = exported('retrieval')
    convert(folder.parent / 'trained.pth', tmp_path / 'part.pth', 'mmpretrain')
    convert(folder.parent / 'trained.pth', tmp_path / 'whole.pth', 'mmpretrain', whole=True)
    part, whole = (io.read_checkpoint(tmp_path / name)['state_dict'] for name in ('part.pth', 'whole.pth'))
    added = {key: value for key, value in whole.items() if key not in part}
    assert_same(added, {f'vision.{key}': value for key, value in model.vision.state_dict().items()})
    # frozen in the config: the new file refers to the one that it was made from
    convert(tmp_path / 'whole.pth', tmp_path / 'ours.pth', 'mmblip2', config=cfg)
    back = get_model(tmp_path / 'ours.pth', device='cpu')
    assert back._config.model.vision.weights == str(tmp_path / 'whole.pth')
    assert_same(back.vision.state_dict(), model.vision.state_dict())


def test_what_cannot_be_converted_is_refused_with_the_reason(exported, tmp_path):
    cfg, _, folder, _ = exported('opt')
    trained = folder.parent / 'trained.pth'
    with pytest.raises(ConfigError, match="to is 'openai', expected one of mmblip2, lavis, mmpretrain, huggingface"):
        convert(trained, tmp_path / 'out', 'openai')
    with pytest.raises(CheckpointError, match='trained.pth is in the layout of mmblip2 already'):
        convert(trained, tmp_path / 'out', 'mmblip2')
    with pytest.raises(CheckpointError, match='folder is in the layout of transformers already'):
        convert(folder, tmp_path / 'out', 'huggingface')
    torch.save(dict(a=torch.ones(1)), tmp_path / 'any.pth')
    with pytest.raises(CheckpointError, match=r'any.pth is no BLIP-2 or BLIP of mmblip2, LAVIS, .*\(its keys: a\)'):
        convert(tmp_path / 'any.pth', tmp_path / 'out', 'mmblip2')
    convert(trained, tmp_path / 'lavis.pth', 'lavis')
    with pytest.raises(ConfigError, match='says nothing of its config, which huggingface needs: give --config'):
        convert(tmp_path / 'lavis.pth', tmp_path / 'out', 'huggingface')
    with pytest.raises(CheckpointError, match='lavis.pth exists already'):
        convert(trained, tmp_path / 'lavis.pth', 'lavis')
    convert(trained, tmp_path / 'lavis.pth', 'lavis', force=True)
    cfg = copy.deepcopy(cfg)
    cfg.model.frozen = ['vision', 'qformer', 'language_model']
    with pytest.raises(ConfigError, match="freezes 'qformer', whose weights would be in no file"):
        convert(tmp_path / 'lavis.pth', tmp_path / 'out', 'mmblip2', config=cfg)
    assert sorted(os.listdir(tmp_path)) == ['any.pth', 'lavis.pth']


def test_force_replaces_neither_the_source_nor_what_is_no_model(exported, tmp_path):
    file, work = tmp_path / 'trained.pth', tmp_path / 'work'
    work.mkdir()
    shutil.copy(exported('opt')[2].parent / 'trained.pth', file)
    shutil.copy(file, work / 'iter_1.pth')
    (work / 'config.json').touch()
    for source, out, to, message in (
            (file, file, 'lavis', 'trained.pth is read for .*trained.pth, which would replace it'),
            (work / 'iter_1.pth', work, 'huggingface', 'iter_1.pth is read for .*work, which would replace it'),
            (file, work, 'lavis', 'work is a folder, and a file is to be written'),
            (work / 'iter_1.pth', file, 'huggingface', 'trained.pth is a file, and a folder is to be written')):
        with pytest.raises(CheckpointError, match=message):
            convert(source, out, to, force=True)
    assert io.read_checkpoint(file)['format'] == io.read_checkpoint(work / 'iter_1.pth')['format'] == io.FORMAT
    assert sorted(os.listdir(tmp_path)) == ['trained.pth', 'work']


@pytest.mark.parametrize('to', ['mmblip2', 'lavis'])
def test_source_may_be_a_url(exported, tmp_path, to):
    folder = exported('opt')[2]
    convert(folder.as_uri(), tmp_path / 'url.pth', to)
    convert(folder, tmp_path / 'path.pth', to)
    one, other = (io.read_checkpoint(tmp_path / f'{name}.pth') for name in ('url', 'path'))
    assert_same(one['state_dict'], other['state_dict'])
    assert one['meta'] == other['meta']


def test_words_that_a_folder_lacks_are_rows_of_zeros(exported, tmp_path):
    """The folder has a row for each of BERT's words, and ours has [DEC] too."""
    shutil.copytree(exported('instruct-llama')[2], tmp_path / 'folder')
    state, name = {}, 'qformer.embeddings.word_embeddings.weight'
    for file in (tmp_path / 'folder').glob('model-*.safetensors'):
        state.update(load_file(file))
        file.unlink()
    (tmp_path / 'folder' / 'model.safetensors.index.json').unlink()
    words = len(state[name])
    state[name] = state[name][:-1].clone()
    save_file(state, tmp_path / 'folder' / 'model.safetensors')
    config = json.loads((tmp_path / 'folder' / 'config.json').read_text())
    config['qformer_config']['vocab_size'] = words - 1
    (tmp_path / 'folder' / 'config.json').write_text(json.dumps(config))
    for file in (tmp_path / 'folder' / 'qformer_tokenizer').iterdir():
        file.unlink()
    shutil.copytree(exported('instruct-llama')[0].model.tokenizer.path, tmp_path / 'folder' / 'qformer_tokenizer',
                    dirs_exist_ok=True)
    lines = convert(tmp_path / 'folder', tmp_path / 'ours.pth', 'mmblip2')
    assert f'qformer: the file has {words - 1} words and the model {words}: the last 1 row of word_embeddings are ' \
        'zero' in lines
    table = io.read_checkpoint(tmp_path / 'ours.pth')['state_dict']['qformer.word_embeddings.weight']
    assert torch.equal(table[:-1], state[name]) and not table[-1].any()


def test_file_without_config_is_used_with_one(exported, tmp_path):
    cfg, model, folder, _ = exported('opt')
    convert(folder.parent / 'trained.pth', tmp_path / 'lavis.pth', 'lavis')
    lines = convert(tmp_path / 'lavis.pth', tmp_path / 'ours.pth', 'mmblip2')
    assert any('no config inside' in line for line in lines)
    assert_same(io.read_checkpoint(tmp_path / 'ours.pth')['state_dict'], io.saved_state(model))
    get_model(cfg, tmp_path / 'ours.pth', 'cpu')
