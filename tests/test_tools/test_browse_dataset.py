"""tools/visualizations/browse_dataset.py: the page shows what the training sees."""
import base64
import importlib.util
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmblip2.errors import ConfigError, DataError

PATH = Path(__file__).resolve().parents[2] / 'tools' / 'visualizations' / 'browse_dataset.py'
spec = importlib.util.spec_from_file_location('browse_dataset', PATH)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

STEPS = ("[dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=16, crop_ratio_range=(0.5, 1.)), "
         "dict(type='CleanCaption'), dict(type='CaptionPrompt', prompt='a photo of'), dict(type='PackInputs')]")


class Page(HTMLParser):
    """Tags without an end and their nesting are checked; collects what is shown of each sample."""

    def __init__(self, text):
        super().__init__()
        self.open, self.samples, self.cell = [], [], None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ('meta', 'img'):
            self.open.append(tag)
        if ('class', 'row') in attrs:
            self.samples.append(dict(images=[], rows=[]))
        if tag == 'img':
            kind, data = dict(attrs)['src'].split(',')
            assert kind == 'data:image/jpeg;base64'
            self.samples[-1]['images'].append(Image.open(io.BytesIO(base64.b64decode(data))))
        if tag == 'tr':
            self.samples[-1]['rows'].append([])
        if tag == 'td':
            self.cell = ''

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == 'td':
            self.samples[-1]['rows'][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def fields(self, number):
        """{field: (before, after)} of a sample."""
        return {row[0]: tuple(row[1:]) for row in self.samples[number]['rows'] if row}


@pytest.fixture
def config(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((20, 900 if i == 5 else 24, 3), 40 * i, np.uint8)).save(tmp_path / f'{i}.png')
    (tmp_path / 'list.json').write_text(json.dumps(
        [dict(image=f'{i}.png', caption=f'A <b>Star</b> & {i}.') for i in range(6)]))
    (tmp_path / 'lines.txt').write_text('say\tyes\n')
    path = tmp_path / 'config.py'
    path.write_text(
        "train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[\n"
        f"    dict(type='COCOCaption', data_root={str(tmp_path)!r}, ann_file='list.json', pipeline={STEPS}),\n"
        f"    dict(type='TextCorpus', ann_file={str(tmp_path / 'lines.txt')!r}, "
        "pipeline=[dict(type='PackInputs')])]))\n")
    return path


def pages(config, *options):
    """The parsed page and its text."""
    out = config.parent / 'pages' / 'page.html'
    tool.main([str(config), '--out', str(out), *options])
    text = out.read_text(encoding='utf-8')
    return Page(text), text


def test_samples_are_shown_before_and_after(config, capsys):
    page, text = pages(config, '--first')
    assert capsys.readouterr().out.splitlines() == [
        'train_dataloader.dataset.datasets[0]: 6 of 6 samples', 'train_dataloader.dataset.datasets[1]: 1 of 1 samples',
        f'written to {config.parent / "pages" / "page.html"}']
    assert len(page.samples) == 7
    assert 'LoadImage &rarr; RandomResizedCrop &rarr; CleanCaption &rarr; CaptionPrompt &rarr; PackInputs' in text
    for i in range(6):
        before, after = page.samples[i]['images']
        assert before.size == ((720, 16) if i == 5 else (24, 20)) and after.size == (16, 16)
        assert all(abs(int(np.asarray(image).mean()) - 40 * i) <= 2 for image in (before, after)), 'its own picture'
        fields = page.fields(i)
        assert fields['pixels'] == ('900 x 20' if i == 5 else '24 x 20', '16 x 16')
        assert fields['caption'] == (f'A <b>Star</b> & {i}.', ''), 'escaped, not made bold'
        assert fields['target'] == ('', f'a <b>star</b> & {i}') and fields['prompt'] == ('', 'a photo of')
    assert page.samples[6]['images'] == [] and page.fields(6)['target'] == ('yes', 'yes')


def test_the_seed_decides_the_choice_and_the_crops(config):
    rng = np.random.default_rng(0)
    for path in config.parent.glob('*.png'):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)

    def shown(*options):
        page, text = pages(config, '-n', '3', *options)
        return [page.fields(i)['image_id'] for i in range(3)], re.sub('<style>.*</style>', '', text)

    (ids, text), (other, _) = shown('--seed', '1'), shown('--seed', '2')
    assert (ids, text) == shown('--seed', '1') and ids != other and len(set(ids)) == 3


def test_what_cannot_be_shown_is_said(config, capsys):
    with pytest.raises(ConfigError, match='config.py has no val_dataloader: choose another --split'):
        pages(config, '--split', 'val')
    (config.parent / '3.png').write_bytes(b'x')
    with pytest.raises(DataError, match=r'3.png'):
        pages(config)
    for option, message in (('--number', 'expected at least 1'), ('--seed', 'expected 0 or more')):
        with pytest.raises(SystemExit):
            pages(config, option, '-1')
        assert f'{option} is -1, {message}' in capsys.readouterr().err


def test_both_images_of_a_pair_are_shown(config):
    folder = config.parent
    for side, level in ((0, 0), (1, 200)):
        Image.fromarray(np.full((20, 24, 3), level, np.uint8)).save(folder / f'dev-1-0-img{side}.png')
    (folder / 'pairs.json').write_text(json.dumps(dict(identifier='dev-1-0-0', sentence='A dog.', label='True')))
    config.write_text(
        f"test_dataloader = dict(dataset=dict(type='NLVR2', data_root={str(folder)!r}, ann_file='pairs.json', "
        "pipeline=[dict(type='EachImage', transforms=[dict(type='LoadImage'), dict(type='Resize', scale=16)]), "
        "dict(type='PackInputs')]))\n")
    page, text = pages(config, '--split', 'test')
    assert 'EachImage (LoadImage, Resize) &rarr; PackInputs' in text
    images = page.samples[0]['images']
    assert [image.size for image in images] == [(24, 20)] * 2 + [(16, 16)] * 2
    assert [round(np.asarray(image).mean(), -1) for image in images] == [0, 200, 0, 200]
    assert page.fields(0)['pixels'] == ('24 x 20, 24 x 20', '16 x 16, 16 x 16')
    assert page.fields(0)['gt_label'] == ('1', '1')
