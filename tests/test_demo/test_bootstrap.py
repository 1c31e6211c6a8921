import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'demo' / 'bootstrap.py'


def load():
    spec = importlib.util.spec_from_file_location('demo_bootstrap', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load()


class FakeEnvironment(bootstrap.Environment):
    """Makes a real environment without pip; pip itself is only recorded and "installs" an empty cv2."""

    def __init__(self, home, checkout):
        super().__init__(home, checkout, os.environ)
        self.calls = []
        self.fail_in_pip = None
        self.brings_cv2 = True

    def call(self, command, advice):
        self.calls.append(command[1:])
        if command[1:3] == ['-m', 'venv']:
            return super().call([*command[:3], '--without-pip', command[-1]], advice)
        if self.fail_in_pip:
            raise self.fail_in_pip
        if self.brings_cv2 or 'opencv-python-headless' in command:
            (self.probe(()) / 'cv2.py').touch()

    @property
    def pip_calls(self):
        return [call[2:] for call in self.calls if call[:2] == ['-m', 'pip']]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout in a path with spaces."""
    monkeypatch.setattr(bootstrap, 'CHECK_IMPORTS', ('json', 'cv2'))
    folder = tmp_path / 'my check out'
    (folder / 'requirements').mkdir(parents=True)
    (folder / 'requirements' / 'runtime.txt').write_text('torch\n')
    (folder / 'requirements' / 'tests.txt').write_text('pytest\n')
    (folder / 'checked_out.py').write_text('VALUE = 7\n')
    return folder


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / 'my home'
    folder.mkdir()
    return folder


def test_named_home_wins_over_checkout(tmp_path):
    wanted = tmp_path / 'new' / 'place'
    assert bootstrap.find_home(tmp_path, {'MMBLIP2_HOME': str(wanted)}) == wanted
    assert wanted.is_dir()


def test_writable_checkout_is_home(tmp_path):
    assert bootstrap.find_home(tmp_path, {}) == tmp_path


def test_read_only_checkout_asks_for_home(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, 'is_writable', lambda folder: False)
    with pytest.raises(bootstrap.BootstrapError, match='cannot be written, and MMBLIP2_HOME is not set'):
        bootstrap.find_home(tmp_path, {})


def test_read_only_checkout_uses_named_home(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, 'is_writable', lambda folder: folder != ROOT)
    assert bootstrap.find_home(ROOT, {'MMBLIP2_HOME': str(tmp_path)}) == tmp_path


def test_unusable_home_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(bootstrap.BootstrapError, match='MMBLIP2_HOME=.*file.inside cannot be created'):
        bootstrap.find_home(tmp_path, {'MMBLIP2_HOME': str(tmp_path / 'file' / 'inside')})


def test_writability_is_tried(tmp_path):
    assert bootstrap.is_writable(tmp_path)
    assert not bootstrap.is_writable(tmp_path / 'absent')


def test_second_call_installs_nothing(home, checkout, capsys):
    first = FakeEnvironment(home, checkout)
    seconds = first.ensure()
    assert [call[0] for call in first.pip_calls] == ['install']
    assert str(checkout / 'requirements' / 'runtime.txt') in first.pip_calls[0]
    second = FakeEnvironment(home, checkout)
    assert second.ensure() == seconds  # the seconds of the real installation
    assert second.calls == []
    assert 'nothing to install' in capsys.readouterr().out


def test_checkout_becomes_importable_and_follows_a_move(home, checkout):
    FakeEnvironment(home, checkout).ensure()
    moved = checkout.rename(checkout.parent / 'moved check out')
    environment = FakeEnvironment(home, moved)
    environment.ensure()
    result = subprocess.run([environment.python, '-c', 'import checked_out; print(checked_out.__file__)'],
                            cwd=home, capture_output=True, text=True, env=environment.env)
    assert result.stdout.strip() == str(moved / 'checked_out.py'), result.stderr


def test_changed_requirements_are_installed_into_the_same_environment(home, checkout):
    FakeEnvironment(home, checkout).ensure()
    (checkout / 'requirements' / 'runtime.txt').write_text('torch\nnumpy\n')
    environment = FakeEnvironment(home, checkout)
    environment.ensure()
    assert [call[1] for call in environment.calls] == ['pip']


@pytest.mark.parametrize('failure', [KeyboardInterrupt(), bootstrap.BootstrapError('no network')])
def test_interrupted_installation_begins_anew(home, checkout, failure):
    environment = FakeEnvironment(home, checkout)
    environment.fail_in_pip = failure
    with pytest.raises(type(failure)):
        environment.ensure()
    assert environment.read_stamp() == {}
    leftover = environment.probe(()) / 'half_a_package'
    leftover.mkdir()
    environment.fail_in_pip = None
    environment.ensure()
    assert not leftover.exists()
    assert environment.read_stamp()['hash'] == bootstrap.requirements_hash(checkout)


def test_broken_environment_is_made_anew(home, checkout):
    environment = FakeEnvironment(home, checkout)
    environment.ensure()
    for link in environment.python.parent.glob('python*'):
        link.unlink()
    environment.python.symlink_to('/no/such/python')
    environment.calls.clear()
    environment.ensure()
    assert [call[1] for call in environment.calls] == ['venv', 'pip']
    assert environment.probe(('cv2',))


def test_missing_package_is_installed_again(home, checkout):
    environment = FakeEnvironment(home, checkout)
    environment.ensure()
    (environment.probe(()) / 'cv2.py').unlink()
    environment.calls.clear()
    environment.ensure()
    assert [call[0] for call in environment.pip_calls] == ['install']


def test_opencv_without_a_desktop_is_replaced(home, checkout):
    environment = FakeEnvironment(home, checkout)
    environment.brings_cv2 = False
    environment.ensure()
    assert [call[0] for call in environment.pip_calls] == ['install', 'uninstall', 'install']
    assert environment.pip_calls[-1] == ['install', 'opencv-python-headless']


def test_package_that_cannot_be_imported_is_named(home, checkout, monkeypatch):
    monkeypatch.setattr(bootstrap, 'CHECK_IMPORTS', ('json', 'no_such_package', 'cv2'))
    environment = FakeEnvironment(home, checkout)
    with pytest.raises(bootstrap.BootstrapError, match='"import no_such_package" fails'):
        environment.ensure()
    assert environment.read_stamp() == {}


def test_python_without_venv_and_pip_says_what_to_install(home, checkout, monkeypatch):
    monkeypatch.setattr(bootstrap, 'has_module', lambda name: name == 'venv')
    with pytest.raises(bootstrap.BootstrapError, match='apt install python3-venv'):
        FakeEnvironment(home, checkout).ensure()


def test_python_without_ensurepip_uses_its_own_pip(home, checkout, monkeypatch):
    real = bootstrap.has_module
    monkeypatch.setattr(bootstrap, 'has_module', lambda name: name != 'ensurepip' and real(name))
    environment = FakeEnvironment(home, checkout)
    environment.ensure()
    site = str(environment.probe(()))
    assert environment.pip_calls[0] == ['install', '--target', site, 'pip']


def test_question_for_pip_leaves_setuptools_usable():
    code = f'''
import runpy
has_module = runpy.run_path({str(SCRIPT)!r})['has_module']
assert has_module('venv') and not has_module('no_such_module')
has_module('pip')
if has_module('setuptools'):
    import setuptools
'''
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


def test_failed_command_is_an_error(home, checkout):
    environment = bootstrap.Environment(home, checkout, os.environ)
    with pytest.raises(bootstrap.BootstrapError, match='failed with exit status 3. do this'):
        environment.call([sys.executable, '-c', 'raise SystemExit(3)'], 'do this')


def test_child_environment_leads_nowhere_else():
    env = bootstrap.child_environ({'PYTHONPATH': 'a', 'PIP_TARGET': 'b', 'HOME': 'c', 'PIP_INDEX_URL': 'd'})
    assert 'PYTHONPATH' not in env and 'PIP_TARGET' not in env
    assert env['HOME'] == 'c' and env['PIP_INDEX_URL'] == 'd'


def test_targets_run_where_they_may_write(home, checkout):
    python = home / '.venv' / 'bin' / 'python'
    command, _, extra = bootstrap.target_command('test', ['-k', 'a or b'], python, home, checkout)
    assert command[1:4] == ['-m', 'pytest', str(checkout / 'tests')] and command[-2:] == ['-k', 'a or b']
    assert f'cache_dir={home}/.pytest_cache' in command and extra == {'OMP_NUM_THREADS': '1'}
    command, cwd, _ = bootstrap.target_command('demo-short', [], python, home, checkout)
    assert command[1:] == [str(checkout / 'demo' / 'quickstart.py'), '--short'] and cwd == home
    for target, options in (('demo', []), ('demo-blip', ['--blip']), ('demo-blip-short', ['--blip', '--short'])):
        assert bootstrap.target_command(target, ['-x'], python, home, checkout)[0][2:] == [*options, '-x']


def test_development_tools_are_installed_once_and_for_lint_alone(home, checkout, monkeypatch):
    FakeEnvironment(home, checkout).ensure()
    environment = FakeEnvironment(home, checkout)
    environment.add(('-r', 'requirements/dev.txt'), ('no_such_linter', ))
    assert environment.pip_calls == [['install', '-r', str(checkout / 'requirements' / 'dev.txt')]]
    environment.add(('-r', 'requirements/dev.txt'), ('cv2', ))
    assert len(environment.pip_calls) == 1
    added = []
    monkeypatch.setattr(bootstrap.Environment, 'ensure', lambda self: 0.)
    monkeypatch.setattr(bootstrap.Environment, 'add', lambda self, *what: added.append(what))
    monkeypatch.setattr(bootstrap, 'target_command', lambda *_: ([sys.executable, '-c', ''], home, {}))
    for target in ('test', 'lint'):
        assert bootstrap.main([target], {**os.environ, 'MMBLIP2_HOME': str(home)}) == 0
    assert added == [(('-r', 'requirements/dev.txt'), ('ruff', 'mypy'))] and (ROOT / added[0][0][1]).is_file()


def test_real_parts_are_installed_for_flickr8k_without_what_they_ask_for(home, checkout, monkeypatch):
    added = []
    monkeypatch.setattr(bootstrap.Environment, 'ensure', lambda self: 0.)
    monkeypatch.setattr(bootstrap.Environment, 'add', lambda self, *what: added.append(what))
    monkeypatch.setattr(bootstrap, 'target_command', lambda *_: ([sys.executable, '-c', ''], home, {}))
    assert bootstrap.main(['flickr8k-short'], {**os.environ, 'MMBLIP2_HOME': str(home)}) == 0
    assert [arguments for arguments, _ in added] == [
        ('gguf', 'accelerate', 'peft'), ('--no-deps', '-r', 'requirements/real.txt')]
    listed = [line.split('==')[0].replace('-', '_') for line in (ROOT / 'requirements/real.txt').read_text().split()
              if '==' in line]
    assert sorted(listed) == sorted(added[1][1])


def test_folder_of_the_photos_is_handed_on(home, checkout, monkeypatch):
    monkeypatch.chdir(home)
    for target, options in (('flickr8k', ['--flickr8k']), ('flickr8k-short', ['--flickr8k', '--short'])):
        command, cwd, _ = bootstrap.target_command(target, ['-x'], 'python', home, checkout, {'DATA': 'my photos'})
        assert command[2:] == [*options, '--source', str(home / 'my photos'), '-x'] and cwd == home
        assert bootstrap.target_command(target, [], 'python', home, checkout, {})[0][2:] == options


@pytest.mark.parametrize('ruff, mypy, status', [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_lint_runs_both_tools_and_fails_with_either(home, checkout, monkeypatch, capfd, ruff, mypy, status):
    for name, code in (('ruff', ruff), ('mypy', mypy)):
        (checkout / f'{name}.py').write_text(f'import sys; print("{name}", *sys.argv[1:]); sys.exit({code})')
    command, cwd, extra = bootstrap.target_command('lint', ['--fix'], sys.executable, home, checkout)
    assert bootstrap.run_target(command, cwd, {**os.environ, **extra}) == status
    assert capfd.readouterr().out.splitlines() == [f'ruff check --cache-dir={home}/.ruff_cache --fix',
                                                   f'mypy --cache-dir={home}/.mypy_cache']


def test_unknown_target_prints_usage():
    result = subprocess.run([sys.executable, SCRIPT, 'dmeo'], capture_output=True, text=True)
    assert result.returncode == 2
    assert f'usage: python3 demo/bootstrap.py {{{",".join(bootstrap.TARGETS)}}}' in result.stderr


def test_old_python_is_told_what_is_needed():
    code = f'import sys; sys.version_info = (3, 9, 2); exec(open({str(SCRIPT)!r}).read())'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 1 and 'mmblip2 needs Python >= 3.10' in result.stderr
    assert 'is Python 3.9' in result.stderr and 'Traceback' not in result.stderr


def test_main_prints_home_and_both_times(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(bootstrap.Environment, 'ensure', lambda self: 12.0)
    monkeypatch.setattr(bootstrap, 'target_command', lambda target, arguments, python, home, checkout, environ: (
        [sys.executable, '-c', 'import os; print(os.environ["MMBLIP2_INSTALL_SECONDS"]); exit(5)'], home, {}))
    assert bootstrap.main(['demo'], {**os.environ, 'MMBLIP2_HOME': str(tmp_path)}) == 5
    out = capfd.readouterr().out
    assert f'environment and results: {tmp_path}' in out and '\n12.0\n' in out
    assert 'installation: 0 s; demo: 0 s; exit status 5' in out


@pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
def test_make_passes_target_and_arguments_in_a_path_with_spaces(tmp_path):
    folder = tmp_path / 'a  path'
    (folder / 'demo').mkdir(parents=True)
    (folder / 'tests').mkdir()
    shutil.copy(ROOT / 'Makefile', folder)
    (folder / 'demo' / 'bootstrap.py').write_text('import json, sys; print(json.dumps(sys.argv[1:]))')
    result = subprocess.run(['make', '-s', 'test', f'PYTHON={sys.executable}', 'ARGS=-k "a or b"'],
                            cwd=folder, capture_output=True, text=True)
    assert json.loads(result.stdout) == ['test', '-k', 'a or b'], result.stderr
    (folder / 'demo' / 'bootstrap.py').write_text('import os, sys; print(sys.argv[1], os.environ["DATA"])')
    result = subprocess.run(['make', '-s', 'flickr8k', f'PYTHON={sys.executable}', 'DATA=my  photos'], cwd=folder,
                            capture_output=True, text=True)
    assert result.stdout == 'flickr8k my  photos\n', result.stderr
