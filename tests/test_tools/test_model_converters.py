"""The converters from the command line."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmblip2.checkpoints import io
from mmblip2.errors import CheckpointError

pytest.importorskip('transformers')
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'test_checkpoints'))
from test_export import folders, make  # noqa: E402

__all__ = ['folders']  # the fixture
TOOLS = ROOT / 'tools' / 'model_converters'


def main(name, *args):
    """The tool's main in this process."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, TOOLS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(arg) for arg in args])


@pytest.fixture(scope='module')
def work(folders, tmp_path_factory):
    """Folder with a config and a checkpoint."""
    where = tmp_path_factory.mktemp('work')
    make('opt', folders, where)[0].dump(where / 'config.py')
    return where


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def test_export_and_back_from_the_command_line(work, tmp_path, capsys):
    main('mmblip2_to_huggingface.py', work / 'config.py', work / 'trained.pth', tmp_path / 'folder',
         '--shard-size', '0.02MB')
    assert 'folder: Blip2ForConditionalGeneration, ' in capsys.readouterr().out
    assert len(list((tmp_path / 'folder').glob('model-*.safetensors'))) > 5
    main('convert.py', tmp_path / 'folder', tmp_path / 'back.pth', '--to', 'mmblip2', '--split')
    assert 'back_language_model.pth: mmblip2, ' in capsys.readouterr().out
    one, other = (io.read_checkpoint(path)['state_dict'] for path in (work / 'trained.pth', tmp_path / 'back.pth'))
    assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
    with pytest.raises(CheckpointError, match='back.pth exists already: give another name, or --force'):
        main('convert.py', tmp_path / 'folder', tmp_path / 'back.pth', '--to', 'mmblip2')
    main('convert.py', tmp_path / 'folder', tmp_path / 'back.pth', '--to', 'mmblip2', '--force')


@pytest.mark.parametrize('to', ['lavis', 'mmpretrain'])
def test_file_of_another_project_is_made_from_ours(work, tmp_path, capsys, to):
    main('convert.py', work / 'trained.pth', tmp_path / 'out.pth', '--to', to, '--config', work / 'config.py')
    assert dict(lavis='LAVIS', mmpretrain='mmpretrain')[to] in capsys.readouterr().out
    content = torch.load(tmp_path / 'out.pth', weights_only=True)
    state = content['model' if to == 'lavis' else 'state_dict']
    assert 'query_tokens' in state and ('opt_proj.weight' if to == 'lavis' else 'vision_neck.fc.weight') in state


@pytest.mark.parametrize(('name', 'args'), [('convert.py', ['a', 'b', '--to', 'lavis']),
                                            ('mmblip2_to_huggingface.py', ['a', 'b', 'c'])])
@pytest.mark.parametrize('size', ['5TB', '0', 'much', '-1GB'])
def test_size_that_is_none_is_refused(name, args, size, capsys):
    with pytest.raises(SystemExit):
        main(name, *args, f'--shard-size={size}')
    assert f"'{size}' is no size above 0 such as 5GB" in capsys.readouterr().err


@pytest.mark.parametrize('name', ['convert.py', 'mmblip2_to_huggingface.py'])
def test_help_answers_without_torch(name):
    done = subprocess.run([sys.executable, '-X', 'importtime', TOOLS / name, '--help'], capture_output=True, text=True,
                          check=True)
    assert '--shard-size' in done.stdout and '| torch\n' not in done.stderr
