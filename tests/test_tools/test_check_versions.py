"""The script's own parts; no environment is made here."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools' / 'misc' / 'check_versions.py'
spec = importlib.util.spec_from_file_location('check_versions', SCRIPT)
tool = importlib.util.module_from_spec(spec)
sys.modules['check_versions'] = tool  # dataclasses looks its module up
spec.loader.exec_module(tool)

REPORT = '<testsuites><testsuite tests="9" failures="{failures}" errors="{errors}" skipped="2" /></testsuites>'
NEWEST = tool.Combination('newest', '3.11')
PINNED = tool.Combination('pinned', '3.11', ('transformers==4.57.*', 'torch===2.13.0'))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine on which installing makes a folder and testing leaves a report; returns what was called.

    ``seen.failures``, ``seen.errors``, ``seen.crash`` and ``seen.install`` say how they end.
    """
    class Seen(list):
        failures = errors = install = 0
        crash = ''

    seen = Seen()

    def call(command, log, env):
        seen.append((command, env))
        home = Path(log).parent
        if command[1] == '-c':
            (home / '.venv').mkdir(exist_ok=True)
            return seen.install
        if seen.crash != 'before the report':
            (home / 'tests.xml').write_text(REPORT.format(failures=seen.failures, errors=seen.errors))
        return 1 if seen.crash or seen.failures or seen.errors else 0

    def run(command, **kwargs):
        return subprocess.CompletedProcess(command, 0, stdout='{"python": "3.11.7", "torch": "2.13.0"}')

    monkeypatch.setattr(tool, 'call', call)
    monkeypatch.setattr(tool, 'find_python', lambda version: '/some/python' if version == '3.11' else None)
    monkeypatch.setattr(tool.subprocess, 'run', run)
    return seen


def test_default_combinations_are_the_supported_ones():
    assert [c.python for c in tool.COMBINATIONS if not c.pins] == ['3.10', '3.11', '3.12', '3.13']
    old, = (c for c in tool.COMBINATIONS if c.pins)
    assert 'transformers==4.57.*' in old.pins and 'torch===2.13.0' in old.pins
    assert len({c.name for c in tool.COMBINATIONS}) == len(tool.COMBINATIONS)


def test_tests_run_with_the_pins_and_their_counts_are_reported(machine, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', '/elsewhere')
    folder = tmp_path / 'a folder'
    result = tool.check(PINNED, folder, ['tests/test_import.py'])
    assert (result.outcome, result.passed, result.failed, result.skipped) == ('passed', 7, 0, 2)
    (install, env), (test, _) = machine
    pins = folder / 'pinned' / 'constraints.txt'
    assert pins.read_text() == 'transformers==4.57.*\ntorch===2.13.0\n'
    assert env['PIP_CONSTRAINT'] == pins.as_uri() and ' ' not in env['PIP_CONSTRAINT'] and 'PYTHONPATH' not in env
    assert install[0] == '/some/python' and 'tests/test_import.py' in test
    assert test[0] == folder / 'pinned' / '.venv' / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')


@pytest.mark.parametrize('keep, fails, stays', [
    ('failed', False, False), ('failed', True, True), ('all', False, True), ('none', True, False)])
def test_environment_is_removed_after_a_pass_unless_it_is_wanted(machine, tmp_path, keep, fails, stays):
    machine.failures = int(fails)
    tool.check(NEWEST, tmp_path, ['tests'], keep)
    assert (tmp_path / 'newest' / '.venv').exists() == stays


def test_environment_of_other_pins_is_not_used_again(tmp_path):
    tool.write_pins(PINNED, tmp_path)
    (tmp_path / '.venv').mkdir()
    tool.write_pins(PINNED, tmp_path)
    assert (tmp_path / '.venv').exists()
    tool.write_pins(tool.Combination('pinned', '3.11', ('torch===2.14.0',)), tmp_path)
    assert not (tmp_path / '.venv').exists() and (tmp_path / 'constraints.txt').read_text() == 'torch===2.14.0\n'


def test_failures_errors_and_crashes_are_no_pass(machine, tmp_path):
    machine.failures, machine.errors = 2, 1
    result = tool.check(NEWEST, tmp_path, ['tests'])
    assert (result.passed, result.failed, result.skipped) == (4, 3, 2) and tool.exit_status([result]) == 1
    assert result.outcome == f'failed with exit status 1: {tmp_path / "newest" / "tests.log"}'
    machine.failures = machine.errors = 0
    machine.crash = 'after the report'
    assert tool.exit_status([tool.check(NEWEST, tmp_path, ['tests'])]) == 1
    machine.crash = 'before the report'  # that of the run before must not count
    result = tool.check(NEWEST, tmp_path, ['tests'])
    assert (result.passed, result.failed) == (0, 0) and tool.exit_status([result]) == 1
    machine.install = 1
    result = tool.check(NEWEST, tmp_path, ['tests'])
    assert result.outcome.startswith('installation failed: ') and tool.exit_status([result]) == 1


def test_report_that_is_cut_off_is_none(tmp_path):
    (tmp_path / 'tests.xml').write_text(REPORT[:30])
    assert tool.read_report(tmp_path / 'tests.xml') is None


def test_missing_interpreter_fails_unless_allowed(machine, tmp_path, capsys):
    args = ['--work-dir', str(tmp_path), '--only', 'python3.11', 'python3.12']
    assert tool.main(args) == 1
    newest, missing = capsys.readouterr().out.splitlines()[-2:]
    assert newest.split()[:3] == ['python3.11', '3.11.7', '2.13.0'] and newest.split()[-5:-2] == ['7', '0', '2']
    assert missing.startswith('python3.12  ') and missing.endswith(' not checked: no Python 3.12 with venv was found')
    assert tool.main([*args, '--allow-missing']) == 0
    machine.failures = 1
    assert tool.main([*args, '--allow-missing']) == 1


def test_table_is_aligned():
    results = [tool.Result('a-long-name', {'python': '3.13.0', 'torch': '2.15.0'}, 1000, 0, 3, 301.4),
               tool.Result('b', outcome='not checked', missing=True)]
    head, first, second = tool.format_table(results).splitlines()
    for word, a, b in (('python', '3.13.0', '-'), ('numpy', '-', '-'), ('passed', '1000', '-'), ('seconds', '301', '-'),
                       ('outcome', 'passed', 'not checked')):
        column = head.index(word)
        assert first[column:].startswith(a) and second[column:].startswith(b)


def test_interpreter_is_found_and_must_be_of_the_version(tmp_path):
    here = '{}.{}'.format(*sys.version_info[:2])
    nothing = {'PATH': str(tmp_path), 'HOME': str(tmp_path)}
    assert tool.find_python(here, nothing) == sys.executable
    assert tool.find_python('2.99', nothing) is None
    if os.name == 'nt':
        return
    shim = tmp_path / 'python2.99'  # like pyenv's: there, and starts nothing
    shim.write_text('#!/bin/sh\nexit 127\n')
    shim.chmod(0o755)
    assert tool.find_python('2.99', nothing) is None
    real = tmp_path / '.pyenv' / 'versions' / '2.99.1' / 'bin' / 'python'
    real.parent.mkdir(parents=True)
    real.write_text('#!/bin/sh\necho 2.99\n')
    real.chmod(0o755)
    assert tool.find_python('2.99', nothing) == str(real)


def test_help_needs_no_package():
    done = subprocess.run([sys.executable, '-I', '-S', str(SCRIPT), '--help'], check=False, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and 'transformers4.57-torch2.13' in done.stdout
