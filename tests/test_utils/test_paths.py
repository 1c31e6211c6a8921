"""Which config a name means. Where the folders are: tests/test_packaging.py."""
from pathlib import Path

import pytest

from mmblip2.errors import ConfigError
from mmblip2.utils import paths
from mmblip2.utils.run_config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.mark.parametrize('name', [
    'blip2/blip2-opt2.7b_8xb32_caption.py', 'blip2/blip2-opt2.7b_8xb32_caption', 'blip2-opt2.7b_8xb32_caption.py',
    'blip2-opt2.7b_8xb32_caption', 'configs/blip2/blip2-opt2.7b_8xb32_caption.py',
    'mmblip2::blip2/blip2-opt2.7b_8xb32_caption.py', Path('blip2-opt2.7b_8xb32_caption')])
def test_a_name_means_a_shipped_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.find_config(name) == CONFIGS / 'blip2' / 'blip2-opt2.7b_8xb32_caption.py'


def test_bases_have_no_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.find_config('_base_/default_runtime') == CONFIGS / '_base_' / 'default_runtime.py'
    assert paths.shipped_config('default_runtime') is None
    assert not [name for name in paths.shipped_configs() if '_base_' in name]


def test_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / 'quickstart' / 'stage1.py'
    mine.parent.mkdir()
    mine.write_text('')
    assert paths.find_config('quickstart/stage1.py').resolve() == mine.resolve()
    assert paths.find_config(mine) == mine


def test_a_name_of_several_configs_lists_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='config stage2 is no file here, .* one of .*quickstart/stage2.py'):
        paths.find_config('stage2')


@pytest.mark.parametrize('name, message', [
    ('blip2/blip2-opt2.7b_8xb32_captoin.py', 'did you mean blip2/blip2-opt2.7b_8xb32_caption.py'),
    ('quickstart/stage_1', 'did you mean .*quickstart/stage1.py'),
    ('mine/qqqq.py', 'python -m mmblip2 lists the latter'),
    ('../configs/quickstart/stage1.py', 'config file ../configs/quickstart/stage1.py not found'),
    ('/nowhere/quickstart/stage1.py', 'config file /nowhere/quickstart/stage1.py not found'),
    ('tools/train.py', 'config file tools/train.py not found'),
    ('blip2', 'config file blip2 not found'), ('', 'config file  not found')])
def test_unknown_name_says_where_it_looked_and_what_is_close(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        paths.find_config(name)
    assert str(CONFIGS) in str(error.value) and str(Path.cwd()) in str(error.value)


def test_bases_of_a_config_elsewhere(tmp_path):
    """Next to files of its own; an unknown one is named, with what is close."""
    (tmp_path / 'mine.py').write_text("_base_ = ['mmblip2::_base_/models/blip2_vit-l.py', 'other.py']\nlast = 3\n")
    (tmp_path / 'other.py').write_text("_base_ = 'mmblip2::_base_/default_runtime.py'\nother = 4\n")
    cfg = load_config(tmp_path / 'mine.py')
    assert cfg.model.vision.depth == 23 and cfg.default_scope == 'mmblip2' and (cfg.last, cfg.other) == (3, 4)
    assert '_scope_' not in cfg.pretty_text
    (tmp_path / 'other.py').write_text("_base_ = 'mmblip2::_base_/default_runtme.py'\n")
    with pytest.raises(ConfigError, match='_base_ mmblip2::_base_/default_runtme.py is not among .*did you mean '
                                          '_base_/default_runtime.py'):
        load_config(tmp_path / 'mine.py')


def test_missing_folders_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, 'PACKAGE', tmp_path / 'mmblip2')
    (tmp_path / 'configs').mkdir()  # of somebody else
    with pytest.raises(ConfigError, match=r'neither in .*mmblip2.\.mim \(a wheel\) nor in .*: install the package'):
        paths.resource_root()
