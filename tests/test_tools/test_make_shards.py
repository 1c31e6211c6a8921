"""tools/dataset_converters/make_shards.py: shards hold what the data set has, and are whole or not there; the tools
that look at data sets look into shards."""
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmblip2.datasets import COCORetrieval, WebShards
from mmblip2.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'data'))
from tar_shards import write_shards  # noqa: E402


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load(ROOT / 'tools' / 'dataset_converters' / 'make_shards.py')


@pytest.fixture
def config(tmp_path):
    """Captions of 7 images, two each."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(7):
        name = f'{i}.{("jpg", "PNG")[i % 2]}'
        Image.fromarray(rng.integers(0, 255, (8, 9, 3), dtype=np.uint8)).save(tmp_path / name)
        rows += [dict(image=name, caption=text, image_id=f'id{i}') for text in (f'ein Kätzchen {i}', 'x')]
    (tmp_path / 'a.json').write_text(json.dumps(rows))
    return write_config(tmp_path, f"dict(type='COCOCaption', data_root={str(tmp_path)!r}, ann_file='a.json')")


def write_config(folder, dataset, name='config.py'):
    (folder / name).write_text(f"default_scope = 'mmblip2'\ntrain_dataloader = dict(dataset={dataset})\n")
    return folder / name


def call(*args):
    tool.main([str(arg) for arg in args])


def tars(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob('*.tar'))}


def test_shards_hold_the_files_all_captions_and_ids(config, tmp_path, capsys):
    out = tmp_path / 'out'
    call(config, '--out', out, '--samples', 3)
    assert ("7 images with 14 captions in 3 shards, 3 of them new: dict(type='WebShards', "
            f"data_root={str(out)!r}, shards='{{00000..00002}}.tar')") in capsys.readouterr().out
    dataset = WebShards('{00000..00002}.tar', data_root=str(out), test_mode=True)
    assert len(dataset) == 7
    for i in range(7):
        row = dataset.get_data_info(i)
        assert (row['image_id'], row['gt_caption']) == (f'id{i}', [f'ein Kätzchen {i}', 'x'])
        tar, _, member = row['img_path'].partition('.tar/')
        from mmblip2.datasets.tar_files import read_member
        assert read_member(row['img_path']) == (tmp_path / f'{i}.{("jpg", "PNG")[i % 2]}').read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ['shards.json', *(f'0000{i}.tar{end}' for i in range(3) for end in ('', '.index'))])


def test_evaluation_on_shards_is_that_on_files(config, tmp_path):
    call(config, '--out', tmp_path / 'out', '--samples', 3)
    pipeline = [dict(type='LoadImage'), dict(type='CleanCaption'), dict(type='PackInputs')]
    files = COCORetrieval('a.json', data_root=str(tmp_path), test_mode=True, pipeline=pipeline)
    shards = WebShards('*.tar', data_root=str(tmp_path / 'out'), test_mode=True, pipeline=pipeline)
    assert (shards.texts, shards.text_to_image) == (files.texts, files.text_to_image) and len(shards.texts) == 14
    assert all((shards[i]['inputs'] == files[i]['inputs']).all() for i in range(7))


def test_a_second_call_makes_what_is_missing_and_the_same(config, tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / 'out', tmp_path / 'whole'
    call(config, '--out', whole, '--samples', 2, '--seed', 1)
    read_bytes, left = Path.read_bytes, iter(range(3))

    def fail(path):
        if next(left, None) is None:
            raise OSError(5, 'Input/output error')
        return read_bytes(path)

    monkeypatch.setattr(Path, 'read_bytes', fail)
    with pytest.raises(DataError, match='image .* cannot be read: .*Input/output error'):
        call(config, '--out', out, '--samples', 2, '--seed', 1, '--workers', 1)
    monkeypatch.undo()
    assert list(tars(out)) == ['00000.tar'] and not list(out.glob('*.part'))
    call(config, '--out', out, '--samples', 2, '--seed', 1)
    assert '4 shards, 3 of them new' in capsys.readouterr().out
    assert tars(out) == tars(whole)
    order = [json.loads(line)['image_id'] for line in
             (WebShards('*.tar', data_root=str(out), test_mode=True)._sample(i)[0].read(2 * (i % 2) + 1)
              for i in range(7))]
    assert sorted(order) == [f'id{i}' for i in range(7)] != order


def test_shards_of_something_else_are_not_mixed_in(config, tmp_path):
    call(config, '--out', tmp_path / 'out', '--samples', 3)
    with pytest.raises(DataError, match='made from other images, or with another --samples or --seed'):
        call(config, '--out', tmp_path / 'out', '--samples', 2)
    (tmp_path / 'out' / 'shards.json').unlink()
    with pytest.raises(DataError, match='has tar files of something else'):
        call(config, '--out', tmp_path / 'out', '--samples', 3)


def test_shards_can_be_packed_again(config, tmp_path):
    call(config, '--out', tmp_path / 'out', '--samples', 3)
    again = write_config(tmp_path, f"dict(type='WebShards', shards={f'{tmp_path}/out/*.tar'!r})", 'b.py')
    call(again, '--out', tmp_path / 'again', '--samples', 7)
    before, after = (WebShards('*.tar', data_root=str(tmp_path / name), test_mode=True) for name in ('out', 'again'))
    for one, other in zip(map(before.get_data_info, range(7)), map(after.get_data_info, range(7))):
        assert (one['image_id'], one['gt_caption']) == (other['image_id'], other['gt_caption'])


def test_what_cannot_be_packed_is_said(config, tmp_path):
    one = f"dict(type='COCOCaption', data_root={str(tmp_path)!r}, ann_file='a.json')"
    both = write_config(tmp_path, f"dict(type='ConcatDataset', datasets=[{one}, {one}])", 'b.py')
    with pytest.raises(ConfigError, match=r'choose one with --dataset NUMBER:\n  0: train_dataloader.dataset.data'):
        call(both, '--out', tmp_path / 'out')
    call(both, '--out', tmp_path / 'out', '--dataset', 1)
    with pytest.raises(ConfigError, match='there are the data sets 0 to 1'):
        call(both, '--out', tmp_path / 'out', '--dataset', 2)
    (tmp_path / 'lines.txt').write_text('one\ntwo')
    texts = write_config(tmp_path, f"dict(type='TextCorpus', ann_file={str(tmp_path / 'lines.txt')!r})", 'c.py')
    with pytest.raises(DataError, match='row 0 of .* has no image with a caption.*packs image-text sets'):
        call(texts, '--out', tmp_path / 'texts')


def test_indices_alone_are_made(tmp_path, capsys):
    write_shards(tmp_path, (2, 3))
    call('--index', f'{tmp_path}/{{000..001}}.tar')
    assert capsys.readouterr().out.splitlines()[-1] == '2 shards with 5 samples are indexed'
    assert (tmp_path / '001.tar.index').is_file()


def test_wrong_arguments_are_said(capsys, config, tmp_path):
    for args, message in (([], 'give a config, or --index TAR'), ([config], '--out is missing'),
                          ([config, '--out', 'x', '--samples', 0], '--samples is 0')):
        with pytest.raises(SystemExit):
            call(*args)
        assert message in capsys.readouterr().err


def test_verify_and_browse_look_into_shards(tmp_path, capsys):
    write_shards(tmp_path / 'data', (3, 3), {1: dict(png=b'none'), 4: dict(json=None)})
    config = write_config(tmp_path, f"dict(type='WebShards', data_root={str(tmp_path / 'data')!r}, shards='*.tar', "
                          "pipeline=[dict(type='LoadImage'), dict(type='PackInputs')])")
    verify = load(ROOT / 'tools' / 'analysis_tools' / 'verify_dataset.py')
    with pytest.raises(SystemExit) as left:
        verify.main([str(config)])
    lines = capsys.readouterr().out.splitlines()
    assert left.value.code == 1 and lines[-1] == '6 images, 2 of them missing or broken'
    assert 'train_dataloader.dataset (WebShards): 6 samples in 2 shards' in lines
    assert '/000.tar/00001: UnidentifiedImageError' in lines[-3] and '/001.tar/00004: it has no caption' in lines[-2]
    write_shards(tmp_path / 'data', (3, 3))
    browse = load(ROOT / 'tools' / 'visualizations' / 'browse_dataset.py')
    browse.main([str(config), '--out', str(tmp_path / 'x.html'), '-n', '4'])
    page = (tmp_path / 'x.html').read_text()
    assert page.count('<img') == 8 and '.tar/0000' in page and os.path.getsize(tmp_path / 'x.html') > 1000


def test_the_page_says_what_the_defaults_are():
    import inspect

    from mmblip2.datasets import MixedDataset, WebStream
    from mmblip2.engine.bad_samples import BadSamplesHook
    text = (ROOT / 'docs' / 'web_data.md').read_text(encoding='utf-8')

    def default(kind, name):
        return inspect.signature(kind).parameters[name].default

    assert f'`shuffle_shards={default(WebShards, "shuffle_shards")}`' in text
    assert f'| `{default(WebShards, "caption_key")}`, the default |' in text
    assert f'window={default(MixedDataset, "window")})' in text and 'Of every 1,000 draws' in text
    assert f'{default(BadSamplesHook, "max_bad")} by default' in text
    for kind in (WebShards, MixedDataset, WebStream):
        named = re.findall(rf"type='{kind.__name__}',(.*?)\)\)?\n", text, re.DOTALL)
        assert named
        for name in re.findall(r'(\w+)=', ''.join(named)):
            assert name in inspect.signature(kind).parameters or name in ('data_root', 'pipeline'), name
