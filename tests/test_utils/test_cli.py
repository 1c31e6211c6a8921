"""Parsing of --cfg-options and the end of a tool."""
import errno
import os
import select
import subprocess
import sys

import pytest
from mmengine.config import Config

from mmblip2.errors import ConfigError, DataError
from mmblip2.utils import cli


@pytest.fixture
def cfg():
    return Config(dict(
        prompt='a photo of', load_from=None, flag=True, resume=False,
        model=dict(depth=2, vision=dict(width=8, betas=(0.9, 0.98)), scales=((1, 2), (3, 4))),
        pipeline=[dict(type='Resize', scale=224), dict(type='PackInputs')]))


@pytest.mark.parametrize('option, path, value', [
    ('prompt=a picture of a', ['prompt'], 'a picture of a'),
    ('prompt=red, green, blue', ['prompt'], 'red, green, blue'),
    ('prompt=1, 2', ['prompt'], '1, 2'),
    ('prompt=Question: {} Answer:', ['prompt'], 'Question: {} Answer:'),
    ('prompt=a=b', ['prompt'], 'a=b'),
    ('prompt=None', ['prompt'], None),
    ('load_from=work dirs/a,b.pth', ['load_from'], 'work dirs/a,b.pth'),
    ('flag=false', ['flag'], False),
    ('resume=true', ['resume'], True),
    ('resume=work dirs/iter_4.pth', ['resume'], 'work dirs/iter_4.pth'),
    ('model.vision.width=16', ['model', 'vision', 'width'], 16),
    ('model.vision.betas.1=0.999', ['model', 'vision', 'betas'], (0.9, 0.999)),
    ('pipeline.0.scale=384', ['pipeline', 0, 'scale'], 384),
    ('pipeline.1=dict(type="Pack", keys=[1, dict(a=2)])', ['pipeline', 1],
     dict(type='Pack', keys=[1, dict(a=2)])),
    ('+model.new.name=text here', ['model', 'new', 'name'], 'text here'),
    ('+pipeline.2=dict(type="New")', ['pipeline', 2], dict(type='New')),
    ('model.scales.1.0=7', ['model', 'scales'], ((1, 2), (7, 4))),
    ('model.depth="two"', ['model', 'depth'], 'two'),
    ('prompt=Ünïcode, 图片 = "x"', ['prompt'], 'Ünïcode, 图片 = "x"'),
    ('model.depth=-3', ['model', 'depth'], -3),
])
def test_option_sets_the_value_as_written(cfg, option, path, value):
    cli.apply_cfg_options(cfg, [option])
    node = cfg
    for key in path:
        node = node[key]
    assert node == value and isinstance(node, type(value))


@pytest.mark.parametrize('option, message', [
    ('prompt', '--cfg-options prompt: expected key=value'),
    ('promt=x', "'promt' is not in the config; did you mean 'prompt'? +promt=... adds it"),
    ('model.visoin.width=1', "'visoin' is not in model; did you mean 'vision'? +model.visoin.width=... adds "
                             "it"),
    ('model.depth.x=1', 'model.depth is 2, it has no keys'),
    ('pipeline.5.scale=1', 'pipeline has 2 items, there is no item 5'),
    ('pipeline.first=1', "pipeline is a list of 2: expected a number, got 'first'"),
    ('model.depth=two', "it is 2 now: expected a number, got the text 'two'; put text into quotes if it is meant"),
    ('model.vision.betas=[a,b]', "expected ('a', 'b'), got the text '[a,b]'"),
    ('model.vision=dict(width=1', "expected dict(a=1), got the text 'dict(width=1'"),
    ('+pipeline.3=dict()', 'pipeline has 2 items, there is no item 3'),
    ('flag=maybe', "expected True or False, got 'maybe'"),
])
def test_bad_option_is_named_with_a_remedy(cfg, option, message):
    with pytest.raises(ConfigError) as error:
        cli.apply_cfg_options(cfg, [option])
    assert message in str(error.value)


def test_all_bad_options_are_reported_at_once(cfg):
    with pytest.raises(ConfigError, match=r'promt(.|\n)*flga'):
        cli.apply_cfg_options(cfg, ['promt=1', 'flga=True'])


def test_runner_keys_may_be_set_though_absent(cfg):
    cli.apply_cfg_options(cfg, ['work_dir=a b'], known=('work_dir', ))
    assert cfg.work_dir == 'a b'


def test_value_never_runs_code():
    assert cli.parse_value('__import__("os").getcwd()') == '__import__("os").getcwd()'


def test_error_of_the_user_is_one_message_and_exit_code_two(capsys):
    def main():
        raise DataError('image 3 not found')

    with pytest.raises(SystemExit) as error:
        cli.run(main)
    assert error.value.code == 2
    assert capsys.readouterr().err == 'DataError: image 3 not found\n'


def test_the_end_of_another_process_is_one_message(capsys):
    def main():
        raise RuntimeError('[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:9: Connection reset by peer. ...')

    with pytest.raises(SystemExit) as error:
        cli.run(main)
    assert error.value.code == 1
    assert capsys.readouterr().err.startswith('stopped: another process of this run has ended, and says why')


def test_a_full_disk_is_one_message(capsys):
    def main():
        raise OSError(errno.ENOSPC, 'No space left on device', 'scalars.json')

    with pytest.raises(SystemExit) as error:
        cli.run(main)
    message = capsys.readouterr().err
    assert error.value.code == 1 and 'stopped:' in message and "No space left on device: 'scalars.json'" in message


@pytest.mark.skipif(not hasattr(select, 'poll'), reason='pipes are another thing on this system')
@pytest.mark.parametrize('work, status', [
    ('print("line", flush=True)', 141), ('print("line")', 0), ('print("line"); sys.exit(3)', 3),
    ('print("line"); raise errors.DataError("bad")', 2),
    ('raise BrokenPipeError(32, "of another program")', 1)])
def test_a_reader_that_has_left_ends_a_tool_in_silence(work, status):
    code = f'import sys\nfrom mmblip2 import errors\nfrom mmblip2.utils import cli\ndef main(): {work}\ncli.run(main)'
    read, write = os.pipe()
    if 'another' not in work:
        os.close(read)
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=write, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'PYTHONUNBUFFERED': ''})
    os.close(write)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == status
    if 'another' in work:  # not of the standard output: the traceback stays
        os.close(read)
        assert 'BrokenPipeError: [Errno 32] of another program' in message
    else:
        assert message == ('DataError: bad\n' if status == 2 else '')


def test_importing_cli_imports_no_torch():
    import subprocess
    code = 'import sys, mmblip2.utils.cli; sys.exit("torch" in sys.modules or "mmengine" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
