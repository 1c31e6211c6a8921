"""Rows of short trainings: what is run, what is skipped, what the table says; and the rows that are shipped."""
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from recipe_files import load_tool

from mmblip2.errors import ConfigError
from mmblip2.utils import run_config

ROOT = Path(__file__).parents[2]
FILE = '''
first:
  config: stage1
  metrics: [i2t/itc/Recall@1]
  options: [train_cfg.max_iters=3]
  rows:
    base: []
    wide: [a.b=2]
second:
  config: stage2
  metrics: [caption/CIDEr]
  options: []
  rows:
    on-top: ['load_from={work}/base']
'''
TRAIN = '''
import os, pathlib, sys
with open('calls.txt', 'a') as file:
    file.write(' '.join(sys.argv[1:]) + chr(10))
work = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
work.mkdir(parents=True, exist_ok=True)
(work / 'iter_5.pth').touch()
(work / 'last_checkpoint').write_text(str(work / 'iter_5.pth'))
sys.exit(3 if os.environ.get('FAIL_IN') == work.name else 0)
'''
TEST = '''
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(json.dumps({'i2t/itc/Recall@1': 12.5 if 'a.b=2' in sys.argv else 10.0, 'caption/CIDEr': 7.0}))
'''


@pytest.fixture(scope='module')
def ablate():
    return load_tool('../../demo/ablate')


@pytest.fixture
def run(ablate, tmp_path, monkeypatch):
    """Function ``(*arguments) -> (status, training calls)`` with stand-ins for the tools."""
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAIN)
    (tmp_path / 'tools' / 'test.py').write_text(TEST)
    for name in ('stage1', 'stage2'):
        (tmp_path / f'{name}.py').write_text('lr = 1\n')
    (tmp_path / 'rows.yml').write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablate, 'CHECKOUT', tmp_path)

    def call(*arguments):
        calls = tmp_path / 'calls.txt'
        calls.unlink(missing_ok=True)
        status = ablate.main(['rows.yml', '--out', 'out', *arguments])
        return status, calls.read_text().splitlines() if calls.exists() else []

    return call


def test_every_row_is_run_once_and_compared_with_the_base(run):
    status, lines = run()
    assert status == 0
    assert [line.split('--cfg-options')[1:] for line in lines] == [
        [' train_cfg.max_iters=3'], [' train_cfg.max_iters=3 a.b=2'], [' load_from=out/base']]
    assert all('--no-validate' in line for line in lines)
    table = json.loads(Path('out/table.json').read_text())
    assert [row['row'] for row in table['first']] == ['base', 'wide'] and table['second'][0]['caption/CIDEr'] == 7.0
    text = Path('out/table.md').read_text()
    assert '| base | 10.0 | ' in text and '| wide | 12.5 (+2.5) | ' in text and '`a.b=2`' in text
    assert run() == (0, [])


def test_a_row_that_fails_leaves_the_others_in_the_table(run, monkeypatch, capsys):
    monkeypatch.setenv('FAIL_IN', 'wide')
    assert run()[0] == 1
    assert 'wide failed with exit status 3' in capsys.readouterr().err
    assert '| base | 10.0' in Path('out/table.md').read_text()
    monkeypatch.delenv('FAIL_IN')
    status, lines = run()
    assert status == 0 and len(lines) == 2 and '--resume' in lines[0]


def test_wanted_rows_bring_what_they_need(run):
    for row, trained in (('on-top', ['out/base', 'out/on-top']), ('wide', ['out/wide'])):
        assert [line.split('--work-dir ')[1].split()[0] for line in run('--rows', row)[1]] == trained


def test_rows_side_by_side(ablate, tmp_path):
    groups = dict(one=dict(config='stage1', metrics=[], options=[], rows={name: [] for name in 'abc'}))
    waves = ablate.make_waves(groups, [], 'out', 2)
    assert [[step.name for step in wave] for wave in waves] == [['a', 'b'], ['a_test', 'b_test'], ['c'], ['c_test']]
    (tmp_path / 'a_test').mkdir()
    (tmp_path / 'a_test' / 'metrics.json').touch()  # it is skipped: the others run together
    waves = ablate.make_waves(groups, [], str(tmp_path), 2)
    assert [[step.name for step in wave] for wave in waves] == [['a'], ['a_test'], ['b', 'c'], ['b_test', 'c_test']]


@pytest.mark.parametrize('change, message', [
    (('metrics: [caption/CIDEr]', ''), "group 'second': expected groups with config, metrics, options"),
    (('{work}/base', '{work}/bse'), r"needed rows that are not there: \['bse'\]"),
    (('on-top:', 'wide:'), r"rows that are there twice: \['wide'\]"),
    (('rows:', 'rows: ['), 'cannot be read'),
])
def test_bad_file_is_explained(ablate, tmp_path, change, message):
    path = tmp_path / 'rows.yml'
    path.write_text(FILE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        ablate.read_groups(path)


def test_unknown_row_is_an_error(run, capsys):
    assert run('--rows', 'bsae') == (2, [])
    assert "no rows ['bsae']: there are ['base', 'wide', 'on-top']" in capsys.readouterr().err


def test_options_of_the_shipped_rows_fit_their_configs(ablate):
    path = ROOT / 'configs' / 'flickr8k' / 'ablations.yml'
    for group in ablate.read_groups(path).values():
        for name, row in group['rows'].items():
            options = [str(option).format(work='out') for option in (*group['options'], *row)]
            cfg = run_config.load_config(str(path.parent / f'{group["config"]}.py'), options)
            texts = cfg.train_dataloader.dataset.get('captions_per_image') or 1
            assert cfg.train_cfg.max_iters * cfg.train_dataloader.batch_size * texts in (6400, 3200), name
            assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == cfg.train_cfg.max_iters / 5, name
