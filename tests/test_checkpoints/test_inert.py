"""Files with Python objects: what is no tensor becomes inert, what would run code is refused, nothing is run."""
import builtins
import io as python_io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from mmblip2.checkpoints import inert, io
from mmblip2.errors import CheckpointError


class Unknown:
    """A class that whoever reads the file may not have."""

    def __init__(self):
        self.secret = 3


class Calls:
    """Pickled as a call of ``function`` with ``args``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def touch(path):
    open(path, 'w').close()


MMENGINE_RUN = '''
import sys
import numpy as np, torch
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.head(torch.ones(3, 2)).square().mean())

    def train_step(self, data, optim_wrapper):
        loss = self(data)['loss']
        optim_wrapper.update_params(loss)
        return dict(loss=loss)

runner = Runner(Toy(), sys.argv[1] + '/work', train_dataloader=DataLoader([0, 1, 2]),
                train_cfg=dict(by_epoch=True, max_epochs=1),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)))
runner.train()
MessageHub.get_current_instance().update_info('array', np.arange(3))
runner.save_checkpoint(sys.argv[1], 'own.pth')
torch.save(runner.model.state_dict(), sys.argv[1] + '/state.pth')
'''


@pytest.fixture
def mmengine_file(tmp_path):
    """A checkpoint as mmengine's own Runner writes it, message hub and all, and the model's state."""
    subprocess.run([sys.executable, '-c', MMENGINE_RUN, str(tmp_path)], check=True, capture_output=True)
    return tmp_path / 'own.pth', torch.load(tmp_path / 'state.pth', weights_only=True)


def test_a_file_of_mmengines_runner_gives_its_weights(mmengine_file):
    path, state = mmengine_file
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # why all this is needed
    read = io.read_checkpoint(path)
    assert set(read['state_dict']) == {'head.weight', 'head.bias'}
    assert all(torch.equal(read['state_dict'][key], value) for key, value in state.items())
    assert read['format'] == '' and read['meta']['iter'] == 3
    other = nn.ModuleDict(dict(head=nn.Linear(2, 1)))
    io.load_weights(other, path)
    assert torch.equal(other['head'].weight, state['head.weight'])


def test_what_is_unknown_is_inert_and_left_out(tmp_path):
    tensors = OrderedDict(w=torch.randn(2), b=torch.ones(3, dtype=torch.bfloat16), p=nn.Parameter(torch.zeros(1)))
    torch.save(dict(state_dict=tensors, extra=Unknown(), table=defaultdict(list, a=[1]), rows=[Unknown(), 5],
                    scalar=np.float64(3.), dtype=torch.float16, empty=np.array([]), part=slice(1, 2), number=1j),
               tmp_path / 'file.pth')  # empty as the history of a value that was never logged
    content = inert.load_inert(tmp_path / 'file.pth')
    assert isinstance(content['extra'], inert.StandIn) and not hasattr(content['extra'], 'secret')
    plain = inert.without_stand_ins(content)
    assert set(plain) == {'state_dict', 'rows', 'dtype'} and plain['rows'] == [5] and plain['dtype'] is torch.float16
    assert all(torch.equal(plain['state_dict'][key], value) for key, value in tensors.items())


@pytest.mark.parametrize('call', [
    Calls(os.system, 'touch ran'), Calls(subprocess.check_call, ['touch', 'ran']), Calls(builtins.eval, 'touch("ran")'),
    Calls(builtins.exec, 'open("ran", "w")'), Calls(touch, 'ran'), Calls(builtins.__import__, 'antigravity'),
    Calls(python_io.open, 'ran', 'w'),
], ids=['system', 'subprocess', 'eval', 'exec', 'own function', 'import', 'open'])
@pytest.mark.parametrize('place', ['value', 'state', 'beside'])
def test_a_call_is_refused_and_not_made(tmp_path, monkeypatch, call, place):
    monkeypatch.chdir(tmp_path)
    content = dict(value=call, state=dict(state_dict=dict(w=torch.ones(1), x=call)),
                   beside=dict(state_dict=dict(w=torch.ones(1)), meta=dict(x=[call])))[place]
    torch.save(content, 'file.pth')
    with pytest.raises(CheckpointError, match=f'would run code .*calls .*{call.call[0].__name__}'):
        io.read_checkpoint('file.pth')
    assert not (tmp_path / 'ran').exists() and 'antigravity' not in sys.modules


def test_getattr_reaches_nothing(tmp_path, monkeypatch):
    """mmengine's files use getattr; here it is a stand-in, so it cannot lead from a module to its functions."""
    monkeypatch.chdir(tmp_path)
    getter = Calls(getattr, torch.Size, '__call__')
    torch.save(dict(state_dict=dict(w=torch.ones(1)), x=getter), 'file.pth')
    assert isinstance(inert.load_inert('file.pth')['x'], inert.StandIn)
    torch.save(dict(state_dict=dict(w=torch.ones(1)), x=Calls(Calls, 1)), 'file.pth')
    with pytest.raises(CheckpointError, match='would run code'):
        io.read_checkpoint('file.pth')


def test_a_function_of_torch_is_not_called(tmp_path):
    """torch has functions that run code (torch.load, torch.hub.load); only what rebuilds tensors is real."""
    torch.save(dict(state_dict=dict(w=torch.ones(1)), x=Calls(torch.hub.load, 'a/b', 'c')), tmp_path / 'file.pth')
    assert isinstance(inert.load_inert(tmp_path / 'file.pth')['x'], inert.StandIn)
    assert set(io.read_checkpoint(tmp_path / 'file.pth')['state_dict']) == {'w'}


def test_the_old_file_format_of_torch_is_read(tmp_path):
    torch.save(dict(state_dict=dict(w=torch.ones(2)), extra=Unknown()), tmp_path / 'old.pth',
               _use_new_zipfile_serialization=False)
    assert torch.equal(io.read_checkpoint(tmp_path / 'old.pth')['state_dict']['w'], torch.ones(2))
    torch.save(dict(state_dict=dict(w=torch.ones(2)), extra=Calls(os.system, 'true')), tmp_path / 'old.pth',
               _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match='would run code'):
        io.read_checkpoint(tmp_path / 'old.pth')


class Builds:
    """Pickled as a global of torch whose state is then set."""

    def __init__(self, name, state):
        self.name, self.state = name, state


class _Pickler(pickle._Pickler):
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Builds):
            self.save_global(getattr(torch._utils, obj.name), obj.name)
            super().save(obj.state)
            self.write(pickle.BUILD)
            return
        super().save(obj, save_persistent_id)


def test_functions_that_rebuild_tensors_cannot_be_changed(tmp_path):
    """BUILD sets attributes: with the real function, every later load of the process would be another."""
    class Module:
        Pickler = _Pickler

    state = (None, dict(__defaults__=(dict(neg=True),)))
    before = torch._utils._rebuild_tensor_v2.__defaults__
    torch.save(dict(x=Builds('_rebuild_tensor_v2', state), state_dict=dict(w=torch.ones(2))), tmp_path / 'evil.pth',
               pickle_module=Module)
    with pytest.raises(CheckpointError, match='would run code .*it changes torch._utils._rebuild_tensor_v2'):
        io.read_checkpoint(tmp_path / 'evil.pth')
    assert torch._utils._rebuild_tensor_v2.__defaults__ is before
