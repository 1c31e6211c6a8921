"""Wheel, editable installation and plain checkout: each finds the configs, the tools and the model index."""
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = 'import sys; from setuptools import build_meta; print(build_meta.{}(sys.argv[1]))'
NO_CACHE = shutil.ignore_patterns('__pycache__', '*.egg-info')


def run(*args, cwd, env=None):
    """stdout of a Python process."""
    result = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env={**os.environ, **(env or {})}, text=True,
                            capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(source, out, what):
    out.mkdir(exist_ok=True)
    return out / run('-c', BUILD.format(what), out, cwd=source).splitlines()[-1]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith('/')}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the checkout, with what an earlier build and Python itself leave behind."""
    folder = tmp_path_factory.mktemp('source').resolve()
    for path in ROOT.iterdir():
        if path.name in ('configs', 'demo', 'mmblip2', 'requirements', 'tests', 'tools'):
            shutil.copytree(path, folder / path.name, ignore=NO_CACHE)
        elif path.is_file() and path.name != '.git':
            shutil.copy(path, folder)
    for left in ('build/lib/mmblip2/.mim/configs/gone.py', 'build/lib/mmblip2/gone.py', 'configs/__pycache__/x.pyc',
                 'mmblip2/__pycache__/x.pyc', 'tools/misc/notes~'):
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).write_text('')
    return folder


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    before = files(source)
    wheel = build(source, tmp_path_factory.mktemp('wheel'), 'build_wheel')
    assert files(source) == before, 'a build leaves the checkout as it is'
    return wheel


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """The wheel unpacked into a folder, as pip installs a wheel of pure Python."""
    folder = tmp_path_factory.mktemp('site').resolve()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_the_package_and_what_comes_with_it(wheel):
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'mmblip2').rglob('*')
                if path.is_file() and '__pycache__' not in path.parts}
    expected |= {f'mmblip2/.mim/{folder}/{name}' for folder in ('configs', 'tools') for name in files(ROOT / folder)
                 if '__pycache__' not in name}
    expected |= {'mmblip2/.mim/model-index.yml', 'mmblip2/.mim/requirements/real.txt'}
    assert {name for name in contents(wheel) if '.dist-info/' not in name} == expected
    assert 'mmblip2/.mim/configs/blip2/blip2_vit-g_stage1.py' in expected
    assert 'mmblip2/.mim/tools/dist_train.sh' in expected


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name, = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        lines = archive.read(name).decode().partition('\n\n')[0].splitlines()
        assert name.replace('METADATA', 'licenses/LICENSE') in archive.namelist()
    assert {'License-Expression: Apache-2.0', 'Requires-Python: >=3.10'} <= set(lines)
    for minor in range(10, 14):
        assert f'Classifier: Programming Language :: Python :: 3.{minor}' in lines
    assert {line.partition(': ')[2] for line in lines if line.startswith('Provides-Extra')} == {
        'all', 'dev', 'optional', 'tests'}
    assert any(re.match(r'Requires-Dist: ruff\b.*; extra == "dev"', line) for line in lines)
    assert not any(line.startswith('Requires-Dist: ruff') and '"dev"' not in line for line in lines)


def test_wheel_of_the_sdist_is_the_same(source, wheel, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(source, copy)
    with tarfile.open(build(copy, tmp_path / 'sdist', 'build_sdist')) as archive:
        archive.extractall(tmp_path / 'unpacked', **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    folder, = (tmp_path / 'unpacked').iterdir()
    assert contents(build(folder, tmp_path / 'wheel', 'build_wheel')) == contents(wheel)


def test_tools_run_from_the_wheel(installed, tmp_path):
    """From another folder, with names of shipped configs; the numbers are those of the paper."""
    env = {'PYTHONPATH': str(installed)}
    config = installed / 'mmblip2' / '.mim' / 'configs' / 'quickstart' / 'stage1.py'
    config.write_text(config.read_text() + 'from_the_wheel = 1\n')
    listed = run('-m', 'mmblip2', cwd=tmp_path, env=env)
    assert '  analysis_tools/count_parameters ' in listed and '  blip2/blip2_vit-g_stage1.py' in listed
    counts = json.loads(run('-m', 'mmblip2', 'count_parameters', 'blip2-opt2.7b_stage2', cwd=tmp_path, env=env))
    assert counts['trainable'] / 1e6 == pytest.approx(107.13, abs=0.01)
    printed = run('-m', 'mmblip2', 'print_config', 'configs/quickstart/stage1.py', '--cfg-options',
                  'train_cfg.max_iters=3', cwd=tmp_path, env=env)
    assert 'from_the_wheel = 1' in printed and 'max_iters=3' in printed and 'Blip2Representation' in printed
    run('-m', 'mmblip2', 'make_shapes', '--out', 'shapes', '--train', 24, '--val', 2, '--test', 2, cwd=tmp_path,
        env=env)
    assert (tmp_path / 'shapes' / 'ceilings.json').is_file()
    assert os.listdir(tmp_path) == ['shapes'], 'nothing else is written into the current folder'


@pytest.mark.skipif(shutil.which('bash') is None, reason='needs bash')
def test_scripts_run_from_the_wheel_with_the_same_python(installed, tmp_path):
    environ = {key: value for key, value in os.environ.items() if key != 'PYTHON'}
    environ['PYTHONPATH'] = str(installed)
    (installed / 'mmblip2' / '.mim' / 'tools' / 'show.sh').write_text('echo "$PYTHON" "$@"\n')

    def call(*args, **env):
        result = subprocess.run([sys.executable, '-m', 'mmblip2', *args], cwd=tmp_path, env={**environ, **env},
                                text=True, capture_output=True)
        return result.returncode, result.stdout + result.stderr

    assert call('show', 'a b', '--c') == (0, f'{sys.executable} a b --c\n')
    assert call('tools/show.sh', 'x', PYTHON='another') == (0, 'another x\n')
    status, text = call('dist_train')
    assert status == 2 and 'dist_train.sh CONFIG PROCESSES' in text


def where(prepare, cwd):
    """The folder found, and one config in it; without site-packages, so that nothing else can be found."""
    code = (f'import sys, site; {prepare}\nfrom mmblip2.utils import paths\n'
            'print(paths.resource_root()); print(paths.find_config("blip2_vit-g_stage1"))')
    return run('-I', '-S', '-c', code, cwd=cwd).splitlines()


def test_each_installation_finds_its_own_folders(source, installed, tmp_path):
    with zipfile.ZipFile(build(source, tmp_path / 'editable', 'build_editable')) as archive:
        archive.extractall(tmp_path / 'site')
    for prepare, root in ((f'sys.path.insert(0, {str(source)!r})', source),
                          (f'site.addsitedir({str(tmp_path / "site")!r})', source),
                          (f'sys.path.insert(0, {str(installed)!r})', installed / 'mmblip2' / '.mim')):
        assert where(prepare, tmp_path) == [str(root), str(root / 'configs' / 'blip2' / 'blip2_vit-g_stage1.py')]
