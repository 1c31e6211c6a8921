"""What a long evaluation keeps while it runs: finished parts on disk, and large tensors within a bound of memory."""
import errno
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch

from ..checkpoints.io import write_checkpoint
from ..errors import ConfigError


def digest_of(facts) -> str:
    """sha256 (hex) of the text form of ``facts``, of tensors their bytes."""
    digest = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, torch.Tensor):
            digest.update(f'{fact.dtype} {tuple(fact.shape)}'.encode())
            fact = fact.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        digest.update(fact if isinstance(fact, memoryview) else f'{fact}\n'.encode())
    return digest.hexdigest()


def file_facts(paths) -> list[tuple]:
    """Path, size and time of change of files; the path alone of what is no local file."""
    facts: list[tuple] = []
    for path in paths:
        try:
            stat = os.stat(path)
            facts.append((path, stat.st_size, stat.st_mtime_ns))
        except (OSError, TypeError):
            facts.append((path, ))
    return facts


class Blocks:
    """Finished parts of one evaluation, a file each, written whole or not at all.

    Args:
        folder (Path): Named after everything that the results depend on, so that no other evaluation finds them;
            None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def write(self, name: str, content: dict):
        """Keep tensors and plain values under a name."""
        if self.folder is not None:
            write_checkpoint(content, self.folder / f'{name}.pt')

    def read(self, name: str) -> dict | None:
        """What was kept under a name; None if there is nothing, or nothing readable."""
        if self.folder is None:
            return None
        try:
            return torch.load(self.folder / f'{name}.pt', weights_only=True)
        except Exception:  # torch reports a damaged file in many ways; a missing part is computed again
            return None

    def names(self, prefix: str) -> list[str]:
        """The names that begin with ``prefix``, sorted."""
        return sorted(path.stem for path in self.folder.glob(f'{prefix}*.pt')) if self.folder is not None else []

    def remove(self):
        """Drop all parts; the folder above goes too if it is empty."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):
                self.folder.parent.rmdir()


class Rows:
    """Rows (N, ...) of which the first are in memory and the others in a file without a name.

    The file is read and written, not mapped: the pages of a mapped file count as memory of the process.

    Args:
        memory (Tensor): (M, ...), M <= N.
        file (file, optional): With room for the other rows; None if there are none.
    """

    def __init__(self, memory: torch.Tensor, file: IO[bytes] | None):
        self.memory = memory
        self._file = file
        self.device = memory.device

    def __setitem__(self, index: torch.Tensor, rows: torch.Tensor):
        """Keep rows (*index.shape, ...) under an int64 index."""
        index, rows = index.flatten(), rows.reshape(-1, *self.memory.shape[1:])
        inside = index < len(self.memory)
        self.memory[index[inside]] = rows[inside]
        for count, data, offset in self._runs(index, rows):
            written = os.pwrite(self._descriptor, data, offset)
            if written != len(data):
                raise OSError(errno.EIO, f'{written} of {len(data)} bytes of {count} rows were written')

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Copies (*index.shape, ...) of the rows of an int64 index."""
        flat = index.flatten()
        rows = self.memory.new_empty(len(flat), *self.memory.shape[1:])
        inside = flat < len(self.memory)
        rows[inside] = self.memory[flat[inside]]
        for count, data, offset in self._runs(flat, rows):
            got = os.preadv(self._descriptor, [data], offset)
            if got != len(data):
                raise OSError(errno.EIO, f'{got} of {len(data)} bytes of {count} rows were read')
        return rows.view(*index.shape, *rows.shape[1:])

    @property
    def _descriptor(self) -> int:
        assert self._file is not None
        return self._file.fileno()

    def _runs(self, index, rows):
        """What of an index lies in the file, rows that follow one another together: (count, bytes, offset)."""
        places = (index >= len(self.memory)).nonzero()[:, 0]
        if not len(places):
            return
        together = (places.diff() == 1) & (index[places].diff() == 1)
        for run in places.tensor_split((~together).nonzero()[:, 0] + 1):
            first, count = int(run[0]), len(run)
            data = rows[first:first + count].flatten().view(torch.uint8).numpy().data
            yield count, data, int(index[first] - len(self.memory)) * (len(data) // count)


class Shelf:
    """Tensors in memory up to a bound, the others in files without a name, which end with the process.

    Args:
        room (float): Bytes.
        folder (Path): Where the files are made.

    Attributes:
        in_memory (int): Bytes kept in memory.
        in_files (int): Bytes kept in files.
    """

    def __init__(self, room: float, folder: Path):
        self.room = room
        self.folder = folder
        self.in_memory = self.in_files = 0

    def rows(self, count: int, shape: Sequence[int], dtype: torch.dtype) -> Rows:
        """Room for ``count`` rows of one shape, to be filled.

        Raises:
            ConfigError: The disk is full.
        """
        size = math.prod(shape) * dtype.itemsize
        inside = min(count, int(max(0, self.room - self.in_memory) // max(size, 1)))
        outside = (count - inside) * size
        self.in_memory += inside * size
        self.in_files += outside
        return Rows(torch.empty((inside, *shape), dtype=dtype), self._file(outside) if outside else None)

    def _file(self, size):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115, it is closed with its rows
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not in the middle
            return file
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(f'no room in {self.folder} for what an evaluation keeps beyond memory_gib '
                              f'({self.room / 2**30:g}): free some, or raise memory_gib') from error
