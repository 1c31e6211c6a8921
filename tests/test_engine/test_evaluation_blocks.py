"""Parts of an evaluation on disk, and tensors within a bound of memory."""
import errno

import pytest
import torch

from mmblip2.engine.evaluation_blocks import Blocks, Shelf, digest_of, file_facts
from mmblip2.errors import CheckpointError, ConfigError


def test_parts_are_found_again_and_removed(tmp_path):
    blocks = Blocks(tmp_path / 'parts' / 'abc')
    assert blocks.names('') == [] and blocks.read('a-1') is None
    blocks.write('a-1', dict(x=torch.arange(3)))
    assert blocks.names('a') == ['a-1'] and blocks.names('b') == []
    assert torch.equal(Blocks(blocks.folder).read('a-1')['x'], torch.arange(3))
    blocks.remove()
    assert not (tmp_path / 'parts').exists() and tmp_path.exists()


def test_a_failed_write_leaves_no_part(tmp_path, monkeypatch):
    blocks = Blocks(tmp_path / 'parts')

    def full(content, file):
        file.write(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('mmblip2.checkpoints.io.torch.save', full)
    with pytest.raises(CheckpointError, match='No space left'):
        blocks.write('a', dict(x=1))
    assert blocks.names('') == [] and not list((tmp_path / 'parts').iterdir())


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = Blocks(None)
    blocks.write('a', dict(x=1))
    blocks.remove()
    assert blocks.read('a') is None and blocks.names('') == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_exceeds_the_memory_lies_in_nameless_files(tmp_path, dtype):
    tensors = [torch.randn(2, 3, 4).to(dtype) for _ in range(3)]
    size = tensors[0].numel() * tensors[0].element_size()
    shelf = Shelf(2 * size, tmp_path / 'work')
    kept = [shelf.put(tensor) for tensor in tensors]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(kept, tensors))
    assert (shelf.in_memory, shelf.in_files) == (2 * size, size)
    assert kept[1] is tensors[1] and kept[2] is not tensors[2]
    empty = shelf.empty((2, 5), dtype)
    empty[1] = 3
    assert empty.sum() >= 15 and empty.dtype == dtype and shelf.in_files > size
    assert not list((tmp_path / 'work').iterdir()), 'nothing stays behind, even after a kill'


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(**kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('mmblip2.engine.evaluation_blocks.tempfile.NamedTemporaryFile', full)
    with pytest.raises(ConfigError, match=r'no room in .* for what an evaluation keeps beyond memory_gib \(0\): free'):
        Shelf(0, tmp_path).put(torch.zeros(1))
    monkeypatch.undo()
    monkeypatch.setattr('mmblip2.engine.evaluation_blocks.os.posix_fallocate', lambda *args: full())
    with pytest.raises(ConfigError, match='no room in'):
        Shelf(0, tmp_path).empty((1, ), torch.float32)


def test_digests_tell_facts_apart(tmp_path):
    facts = ['a', 1, torch.zeros(2)]
    assert digest_of(facts) == digest_of(list(facts))
    others = [['a', 2, torch.zeros(2)], ['a', 1, torch.zeros(3)], ['a', 1, torch.zeros(2).int()],
              ['a', 1, torch.tensor([0., 1.])], ['a1', torch.zeros(2)]]
    assert len({digest_of(other) for other in [facts, *others]}) == 6
    (tmp_path / 'x').write_text('1')
    before = file_facts([tmp_path / 'x', 'nowhere'])
    (tmp_path / 'x').write_text('12')
    assert file_facts([tmp_path / 'x', 'nowhere']) != before and before[1] == ('nowhere', )


def test_a_file_in_a_tar_is_another_one_when_the_tar_is(tmp_path):
    (tmp_path / 'x.tar').write_text('a')
    before = file_facts([tmp_path / 'x.tar' / '1.jpg'])
    (tmp_path / 'x.tar').write_text('ab')
    assert len(before[0]) == 3 and file_facts([tmp_path / 'x.tar' / '1.jpg']) != before
