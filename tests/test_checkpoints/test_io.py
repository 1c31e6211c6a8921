"""Files: atomic, safe, and matched key by key."""
import errno
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from mmblip2.checkpoints import io
from mmblip2.errors import CheckpointError


class Model(nn.Module):
    droppable = ('itm_head.*', )

    def __init__(self):
        super().__init__()
        self.vision = nn.Linear(2, 2).requires_grad_(False)
        self.qformer = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2, bias=False)

    def frozen_parts(self):
        return dict(vision=self.vision)


def save(path, state, **meta):
    io.write_checkpoint(dict(format=io.FORMAT, meta=meta, state_dict=state), path)
    return str(path)


class Evil:

    def __reduce__(self):
        return os.mkdir, ('evil_ran', )


def test_pickle_that_would_run_code_is_refused_and_did_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=Evil()), 'zip.pth')
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ('zip.pth', 'plain.pth'):
        with pytest.raises(CheckpointError, match=f'{name} would run code .*it calls (posix|nt).mkdir.*was not run'):
            io.read_checkpoint(name)
    assert not (tmp_path / 'evil_ran').exists()


@pytest.mark.parametrize('content', [b'', b'no checkpoint at all', b'PK\x03\x04' + b'0' * 100],
                         ids=['empty', 'text', 'torn'])
def test_broken_file_is_named(tmp_path, content):
    path = tmp_path / 'bad.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='bad.pth is (no checkpoint, or it is broken|broken or '
                                              'incomplete)'):
        io.read_checkpoint(path)


def test_torn_safetensors_is_named(tmp_path):
    path = tmp_path / 'bad.safetensors'
    path.write_bytes(b'12345')
    with pytest.raises(CheckpointError, match='bad.safetensors is broken or incomplete'):
        io.read_checkpoint(path)


def test_missing_file_and_file_without_tensors(tmp_path):
    with pytest.raises(CheckpointError, match='none.pth not found'):
        io.read_checkpoint(tmp_path / 'none.pth')
    torch.save(dict(a=1), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='holds no tensors .its keys: a.'):
        io.read_checkpoint(tmp_path / 'a.pth')
    torch.save(dict(format='mmblip2/9', state_dict={}), tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match="format 'mmblip2/9', this version of mmblip2 reads"):
        io.read_checkpoint(tmp_path / 'b.pth')


def test_failed_write_leaves_the_last_good_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / 'iter_1.pth'
    save(path, dict(a=torch.ones(1)))
    before = path.read_bytes()

    def full(checkpoint, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(CheckpointError, match='cannot write checkpoint .*No space left on device.*untouched'):
        save(path, dict(a=torch.zeros(1)))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_called_that(tmp_path, monkeypatch):
    """torch closes its file when a write has failed, and fails at that again, with a message of its own."""
    def save(*_):
        try:
            raise OSError(errno.ENOSPC, 'No space left on device')
        finally:
            raise RuntimeError('unexpected pos 64 vs 0')

    monkeypatch.setattr(io.torch, 'save', save)
    with pytest.raises(CheckpointError, match='a.pth: .*No space left on device; earlier checkpoints are untouched'):
        io.write_checkpoint(dict(state_dict=dict(w=torch.zeros(100_000))), tmp_path / 'a.pth')


def test_every_changed_byte_of_a_tensor_is_found(tmp_path):
    path = tmp_path / 'a.pth'
    io.write_checkpoint(dict(format=io.FORMAT, meta={}, state_dict=dict(w=torch.full((1000,), 2.))), path)
    whole = path.read_bytes()
    place = whole.index(torch.full((1000,), 2.).numpy().tobytes()) + 2000
    path.write_bytes(whole[:place] + b'\xaa' + whole[place + 1:])
    with pytest.raises(CheckpointError, match='a.pth is broken .*use an earlier checkpoint'):
        io.read_checkpoint(path)


def test_no_bad_byte_makes_another_error(tmp_path):
    path = tmp_path / 'a.pth'
    io.write_checkpoint(dict(format=io.FORMAT, meta=dict(iter=3), state_dict=dict(w=torch.ones(3))), path)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in content if name.endswith('data.pkl'))
    refused = 0
    for place in range(len(content[name])):
        with zipfile.ZipFile(path, 'w') as file:
            for other, data in content.items():
                file.writestr(other, data[:place] + b'h' + data[place + 1:] if other == name else data)
        try:
            io.read_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 20


def test_newest_file_comes_first_and_the_pointer_may_lead_elsewhere(tmp_path):
    for number in (9, 10, 100):
        (tmp_path / f'iter_{number}.pth').touch()
    (tmp_path / 'best_x_iter_500.pth').touch()
    (tmp_path / 'iter_900.pth.77.part').touch()
    other = tmp_path / 'other' / 'iter_200.pth'
    other.parent.mkdir()
    other.touch()
    (tmp_path / 'last_checkpoint').write_text(str(other))
    assert [path.name for path in io.find_checkpoints(tmp_path)] == [
        'iter_200.pth', 'iter_100.pth', 'iter_10.pth', 'iter_9.pth']
    (tmp_path / 'last_checkpoint').write_text('/nowhere/iter_999.pth')
    assert io.find_checkpoints(tmp_path)[0].name == 'iter_100.pth'


def test_tied_weights_are_saved_once_and_may_be_named_once(tmp_path):
    model = nn.ModuleDict(dict(a=nn.Linear(50, 50, bias=False), b=nn.Linear(50, 50, bias=False)))
    model['b'].weight = model['a'].weight
    state = io.saved_state(model)
    assert state['a.weight'].data_ptr() == state['b.weight'].data_ptr()
    torch.save({'a.weight': torch.ones(50, 50)}, tmp_path / 'one.pth')
    io.load_weights(model, tmp_path / 'one.pth')
    assert model['b'].weight.sum().item() == 2500


@pytest.mark.parametrize('kind', ['own', 'plain', 'prefixed', 'safetensors'])
def test_part_loads_its_weights_from_any_kind_of_file(tmp_path, kind):
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    state = source.state_dict()
    prefixed = {f'vision.{key}': value for key, value in state.items()} | {'head.weight': torch.ones(9)}
    path = tmp_path / ('part.safetensors' if kind == 'safetensors' else 'part.pth')
    if kind == 'own':
        save(path, prefixed)
    elif kind == 'safetensors':
        from safetensors.torch import save_file
        save_file(state, path)
    else:
        torch.save(state if kind == 'plain' else prefixed, path)
    report = io.load_weights(target, path, 'vision')
    assert torch.equal(source.weight, target.weight) and sorted(report.matched) == ['bias', 'weight']


def test_part_refuses_another_architecture_and_a_file_without_it(tmp_path):
    path = save(tmp_path / 'a.pth', {'vision.weight': torch.ones(3, 2), 'vision.extra': torch.ones(1)})
    with pytest.raises(CheckpointError, match=r'weight: \(3, 2\) in the file, \(2, 2\) in the model.*1 '
                                              r'missing in the file \(bias\); 1 unknown to the model '):
        io.load_weights(nn.Linear(2, 2), path, 'vision')
    path = save(tmp_path / 'b.pth', {'head.weight': torch.ones(3, 2)},
                frozen=dict(vision=dict(source='vit.pth', sha256='0' * 64)))
    with pytest.raises(CheckpointError, match="no weights of 'vision' .it has: head.; it was frozen there, "
                                              'its weights are in vit.pth'):
        io.load_weights(nn.Linear(2, 2), path, 'vision')


def test_two_files_are_combined_and_both_reported(tmp_path):
    one, two = ({'qformer.weight': torch.full((2, 2), value), 'qformer.bias': torch.full((2, ), value)}
                for value in (1., 2.))
    one = save(tmp_path / 'one.pth', {**one, 'itm_head.weight': torch.ones(1)})
    two = save(tmp_path / 'two.pth', two)
    model = Model()
    report = io.load_partial(model, [dict(checkpoint=one), dict(checkpoint=two, include=['qformer.*'],
                                                                exclude=['*.bias'])])
    assert model.qformer.weight[0, 0].item() == 2 and model.qformer.bias[0].item() == 1
    assert report.new == ['head.weight'] and report.dropped == ['itm_head.weight']
    text = str(report)
    assert '2 matched, 0 interpolated, 1 new, 0 missing, 0 unexpected, 1 dropped' in text
    assert f'from {two}: qformer.weight' in text


def test_unknown_keys_and_frozen_keys_are_errors_when_initialising(tmp_path):
    path = save(tmp_path / 'a.pth', {'qfromer.weight': torch.ones(2, 2), 'head.weight': torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=r'1 unknown to the model \(qfromer.weight\)'):
        io.load_partial(Model(), path)
    path = save(tmp_path / 'b.pth', {'vision.weight': torch.ones(2, 2), 'head.weight': torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="trained weights of 'vision'.*model.vision.weights.*exclude "
                                              "'vision"):
        io.load_partial(Model(), path)
    with pytest.raises(CheckpointError, match='leave no key'):
        io.load_partial(Model(), [dict(checkpoint=path, include=['nothing*'])])


def test_files_from_before_torch_1_6_are_read_too(tmp_path):
    torch.save({'a': torch.ones(2)}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert (tmp_path / 'old.pth').read_bytes()[:2] != b'PK'
    assert io.read_checkpoint(tmp_path / 'old.pth')['state_dict']['a'].sum() == 2


def test_folder_of_transformers_is_read_safetensors_first(tmp_path):
    from safetensors.torch import save_file
    with pytest.raises(CheckpointError, match=r'is a folder without a checkpoint \(iter_\*.pth, epoch_\*.pth; model'):
        io.read_checkpoint(tmp_path)
    torch.save({'a': torch.ones(2)}, tmp_path / 'pytorch_model.bin')
    read = io.read_checkpoint(tmp_path)
    assert read['state_dict']['a'].sum() == 2 and read['path'] == str(tmp_path) and read['format'] == ''
    save_file({'a': torch.ones(3)}, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text('{"image_token_index": 7}')
    read = io.read_checkpoint(tmp_path)
    assert read['state_dict']['a'].sum() == 3 and read['meta'] == dict(image_token_index=7)
    (tmp_path / 'config.json').write_text('{"image_to')
    with pytest.raises(CheckpointError, match='config.json is broken .*copy or download it again'):
        io.read_checkpoint(tmp_path)
    save(tmp_path / 'iter_4.pth', dict(b=torch.ones(1)))  # a work directory
    assert list(io.read_checkpoint(tmp_path)['state_dict']) == ['b']


def test_renamed_files_are_read_or_named(tmp_path):
    from safetensors.torch import save_file
    save_file(dict(a=torch.ones(2)), tmp_path / 'renamed.pth')
    assert torch.equal(io.read_checkpoint(tmp_path / 'renamed.pth')['state_dict']['a'], torch.ones(2))
    torch.save(dict(a=torch.ones(2)), tmp_path / 'renamed.safetensors')
    with pytest.raises(CheckpointError, match='renamed.safetensors is a file of torch, .* rename it to .pth'):
        io.read_checkpoint(tmp_path / 'renamed.safetensors')


def test_file_url_is_read(tmp_path):
    save(tmp_path / 'a b.pth', dict(a=torch.ones(1)))
    assert list(io.read_checkpoint((tmp_path / 'a b.pth').as_uri())['state_dict']) == ['a']


def test_code_in_a_shard_is_refused_and_did_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'a': torch.ones(1), 'b': Evil()}, 'pytorch_model-00001-of-00001.bin')
    (tmp_path / 'pytorch_model.bin.index.json').write_text(
        '{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}')
    with pytest.raises(CheckpointError, match='00001.bin would run code .*was not run'):
        io.read_checkpoint(tmp_path)
    assert not (tmp_path / 'evil_ran').exists()


@pytest.mark.parametrize('size', [100, 4000, -20])
def test_truncated_files_of_every_kind_are_named(tmp_path, size):
    from safetensors.torch import save_file
    state = {f'{name}.weight': torch.ones(40, 40) for name in 'abc'}
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(state, tmp_path / 'a.pth')
    for name in ('a.safetensors', 'a.pth'):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(CheckpointError, match=f'{name} is (broken or incomplete|no checkpoint)'):
            io.read_checkpoint(path)
