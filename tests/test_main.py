"""python -m mmblip2: the tools by name. From a wheel: tests/test_packaging.py."""
import sys
from pathlib import Path

import pytest

from mmblip2 import __main__ as entry
from mmblip2.errors import ConfigError

TOOLS = Path(__file__).resolve().parents[1] / 'tools'


@pytest.mark.parametrize('name, path', [
    ('train', 'train.py'), ('tools/test.py', 'test.py'), ('count_parameters', 'analysis_tools/count_parameters.py'),
    ('analysis_tools/count_parameters', 'analysis_tools/count_parameters.py'), ('slurm_train.sh', 'slurm_train.sh')])
def test_a_tool_has_a_long_and_a_short_name(name, path):
    assert entry.find_tool(name) == TOOLS / path


@pytest.mark.parametrize('name, message', [
    ('trian', 'trian is no tool of mmblip2 in .*tools; did you mean .*train'),
    ('count_parameter', 'did you mean analysis_tools/count_parameters'),
    ('qqqq', 'there are .*analysis_tools/analyze_logs, .*train'), ('', 'there are'), ('misc', 'no tool')])
def test_unknown_tool_is_an_error_with_suggestions(name, message):
    with pytest.raises(ConfigError, match=message):
        entry.find_tool(name)


def test_a_short_name_of_two_tools_is_an_error(monkeypatch, tmp_path):
    for path in ('tools/a/same.py', 'tools/b/same.py', 'configs/x.py', 'model-index.yml'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text('')
    monkeypatch.setattr(entry, 'resource_root', lambda: tmp_path)
    with pytest.raises(ConfigError, match='same is several tools of mmblip2 .*; did you mean a/same or b/same'):
        entry.find_tool('same')


def test_list_has_a_line_on_every_tool_and_config(capsys):
    entry.main([])
    lines = capsys.readouterr().out.splitlines()
    described = {words[0]: words[1:] for words in (line.split() for line in lines if line.startswith('  '))}
    for name in entry.tools():
        assert described[name], f'{name} has no description'
    assert lines[lines.index('tools:') + 1:]
    assert ' '.join(described['train']) == 'Train a model'
    assert ' '.join(described['dist_train']).startswith('dist_train.sh CONFIG PROCESSES')
    assert 'quickstart/stage1.py' in described


def test_arguments_reach_the_tool(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['before'])
    with pytest.raises(SystemExit) as stop:
        entry.main(['print_config', '--no-such-option'])
    assert stop.value.code == 2 and 'usage: print_config.py' in capsys.readouterr().err
