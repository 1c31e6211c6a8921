"""Parts of an evaluation on disk, and tensors within a bound of memory."""
import errno
from pathlib import Path

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


@pytest.mark.parametrize('room', [0, 2, 3, 9])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_exceeds_the_memory_lies_in_nameless_files(tmp_path, dtype, room):
    tensor = torch.randn(9, 3, 4).to(dtype)
    size = tensor[0].numel() * tensor.element_size()
    shelf = Shelf(room * size, tmp_path / 'work')
    rows = shelf.rows(9, (3, 4), dtype)
    order = torch.tensor([8, 1, 2, 3, 0, 7, 6, 5, 4])
    rows[order[:4]] = tensor[order[:4]]
    rows[order[4:]] = tensor[order[4:]]
    for index in (torch.arange(9), order, torch.tensor([[2, 3, 4], [8, 8, 0]]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(rows[index], tensor[index]) and rows[index].dtype == dtype
    assert (shelf.in_memory, shelf.in_files) == (room * size, (9 - room) * size) and len(rows.memory) == room
    assert not (tmp_path / 'work').exists() or not list((tmp_path / 'work').iterdir()), 'nothing stays after a kill'


def test_rows_share_the_memory_of_a_shelf(tmp_path):
    shelf = Shelf(100, tmp_path)
    first, second = shelf.rows(2, (10, ), torch.float32), shelf.rows(2, (10, ), torch.float16)
    assert (len(first.memory), len(second.memory)) == (2, 1) and (shelf.in_memory, shelf.in_files) == (100, 20)


def test_rows_in_a_file_are_no_memory_of_the_process(tmp_path):
    status = Path('/proc/self/status')
    if not status.is_file():
        pytest.skip('needs /proc')

    def resident():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith('VmRSS'))

    rows = Shelf(0, tmp_path).rows(64, (1 << 18, ), torch.float32)  # 64 MiB
    before, one = resident(), torch.ones(1, 1 << 18)
    for i in range(64):
        rows[torch.tensor([i])] = one
    assert all(rows[torch.tensor([i])].sum() == 1 << 18 for i in range(64))
    assert resident() - before < 24 << 10, 'KiB'


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('mmblip2.engine.evaluation_blocks.os.posix_fallocate', full)
    with pytest.raises(ConfigError, match=r'no room in .* for what an evaluation keeps beyond memory_gib \(0\): free'):
        Shelf(0, tmp_path).rows(1, (1, ), torch.float32)


def test_a_short_write_is_an_error(tmp_path, monkeypatch):
    rows = Shelf(0, tmp_path).rows(2, (3, ), torch.float32)
    monkeypatch.setattr('mmblip2.engine.evaluation_blocks.os.pwrite', lambda *args: 5)
    with pytest.raises(OSError, match='5 of 24 bytes of 2 rows were written'):
        rows[torch.arange(2)] = torch.zeros(2, 3)


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
