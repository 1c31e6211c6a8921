"""tools/analysis_tools/verify_dataset.py: every image is opened, every broken one is said."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmblip2.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / 'tools' / 'analysis_tools' / 'verify_dataset.py'
spec = importlib.util.spec_from_file_location('verify_dataset', PATH)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def config(tmp_path):
    """Captions of 15 images, shown twice in training, and of 2 for the test."""
    rng = np.random.default_rng(0)
    names = [f'{i:02d}.{("jpg", "png")[i % 2]}' for i in range(17)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(tmp_path / name)
    for split, part in (('train', names[:15] * 2), ('test', names[15:])):
        (tmp_path / f'{split}.json').write_text(json.dumps(
            [dict(image=name, caption=f'text {i}') for i, name in enumerate(part)]))
    # a pipeline is not needed to look at files
    common = f"type='COCOCaption', data_root={str(tmp_path)!r}, pipeline=[dict(type='LoadImage')]"
    path = tmp_path / 'config.py'
    path.write_text(
        "default_scope = 'mmblip2'\n"
        f"train_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', "
        f"datasets=[dict({common}, ann_file='train.json'), dict({common}, ann_file='test.json')])))\n"
        f"test_dataloader = dict(dataset=dict({common}, ann_file='test.json', test_mode=True))\n")
    return path


def call(config, *options):
    """Exit status."""
    try:
        tool.main([str(config), *options])
    except SystemExit as left:
        return left.code
    return 0


def test_whole_images_are_counted_once(config, capsys):
    assert call(config, '--workers', '3') == 0
    assert capsys.readouterr().out.splitlines() == [
        'train_dataloader.dataset.dataset.datasets[0] (COCOCaption): 30 rows, 15 images',
        'train_dataloader.dataset.dataset.datasets[1] (COCOCaption): 2 rows, 2 images',
        'test_dataloader.dataset (COCOCaption): 2 rows, 2 images',
        '17 images, 0 of them missing or broken']


def test_missing_and_broken_images_are_listed_and_fail(config, capsys, tmp_path):
    folder = config.parent
    (folder / '00.jpg').unlink()
    for name in ('02.jpg', '03.png'):
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    (folder / '04.jpg').write_bytes(b'')
    (folder / '05.png').write_bytes(b'<html>not found</html>')
    (folder / '06.jpg').unlink()
    (folder / '06.jpg').mkdir()
    assert call(config, '--out', str(tmp_path / 'lists' / 'broken.txt')) == 1
    printed = capsys.readouterr()
    listed = (tmp_path / 'lists' / 'broken.txt').read_text().splitlines()
    assert [os.path.basename(line.partition(':')[0]) for line in listed] == [
        '00.jpg', '02.jpg', '03.png', '04.jpg', '05.png', '06.jpg']
    assert listed[0].endswith('there is no such file') and 'truncated' in listed[1]
    assert 'the file is empty (0 bytes)' in listed[3] and 'cannot identify image file' in listed[4]
    assert printed.out.splitlines()[3:] == [*listed, '17 images, 6 of them missing or broken']


def test_a_long_list_is_cut_on_the_screen_only(config, capsys, tmp_path):
    for path in (*config.parent.glob('*.jpg'), *config.parent.glob('*.png')):
        path.write_bytes(b'x')
    assert call(config) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 10 + 2 and lines[-2] == '... and 7 more: --out FILE lists all'
    assert call(config, '--split', 'test', '--out', str(tmp_path / 'all.txt')) == 1
    assert len((tmp_path / 'all.txt').read_text().splitlines()) == 2


def test_whatever_a_decoder_raises_is_the_image_s(config, capsys, monkeypatch):
    from mmblip2.datasets.transforms import image

    def decode(path, read=image.read_image):
        if path.endswith('01.png'):
            raise KeyError('tag')
        return read(path)

    monkeypatch.setattr(image, 'read_image', decode)
    assert call(config) == 1
    assert "01.png: KeyError: 'tag'" in capsys.readouterr().out


def test_what_cannot_be_verified_is_said(config, capsys):
    with pytest.raises(ConfigError, match='config.py has no val data set: choose another --split'):
        call(config, '--split', 'val')
    with pytest.raises(DataError, match='annotation file .*none.json.* not found'):
        call(config, '--cfg-options', 'test_dataloader.dataset.ann_file=none.json')
    assert call(config, '--workers', '0') == 2
    assert '--workers is 0, expected at least 1' in capsys.readouterr().err


def test_data_sets_without_images_have_none(tmp_path, capsys):
    (tmp_path / 'lines.txt').write_text('a line\n')
    (tmp_path / 'config.py').write_text(
        f"train_dataloader = dict(dataset=dict(type='TextCorpus', ann_file={str(tmp_path / 'lines.txt')!r}))\n")
    assert call(tmp_path / 'config.py') == 0
    assert capsys.readouterr().out.splitlines()[-1] == '0 images, 0 of them missing or broken'


def test_the_command_ends_with_the_status_and_shows_progress_on_stderr(config):
    (config.parent / '00.jpg').write_bytes(b'x')
    run = subprocess.run([sys.executable, str(PATH), str(config)], capture_output=True, text=True, timeout=120,
                         env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert run.returncode == 1 and 'images' in run.stderr and '100%' in run.stderr
    assert run.stdout.endswith('17 images, 1 of them missing or broken\n')


def test_both_images_of_a_pair_are_opened(config, capsys):
    folder = config.parent
    (folder / 'pairs.json').write_text(json.dumps(
        [dict(images=['00.jpg', name], sentence='A dog.', label='True') for name in ('01.png', '02.jpg')]))
    (folder / '02.jpg').write_bytes(b'x')
    config.write_text(f"test_dataloader = dict(dataset=dict(type='NLVR2', data_root={str(folder)!r}, "
                      "ann_file='pairs.json'))\n")
    assert call(config) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'test_dataloader.dataset (NLVR2): 2 rows, 3 images'
    assert '02.jpg' in lines[1] and lines[2] == '3 images, 1 of them missing or broken'
