"""What a long evaluation keeps while it runs: finished parts on disk, and large tensors within a bound of memory."""
import errno
import hashlib
import math
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ..checkpoints.io import write_checkpoint
from ..datasets.tar_files import split_path
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
    """Path, size and time of change of files (what is in a tar: of the tar); the path alone of what is not local."""
    facts: list[tuple] = []
    for path in paths:
        inside = split_path(path)
        try:
            stat = os.stat(inside[0] if inside and not os.path.isfile(path) else path)
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

    def _takes(self, size):
        fits = self.in_memory + size <= self.room
        self.in_memory += size * fits
        self.in_files += size * (not fits)
        return fits

    def _file(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.NamedTemporaryFile(dir=self.folder)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """A CPU tensor with the same content, for reading.

        Raises:
            ConfigError: The disk is full.
        """
        if self._takes(tensor.numel() * tensor.element_size()):
            return tensor
        with self._disk_full_named(), self._file() as file:
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            file.flush()
            kept = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        return kept.view(tensor.shape)

    def empty(self, shape, dtype: torch.dtype) -> torch.Tensor:
        """A CPU tensor to be filled.

        Raises:
            ConfigError: The disk is full.
        """
        size = math.prod(shape) * dtype.itemsize
        if self._takes(size):
            return torch.empty(shape, dtype=dtype)
        with self._disk_full_named(), self._file() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, a crash later
            return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)

    @contextmanager
    def _disk_full_named(self):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(f'no room in {self.folder} for what an evaluation keeps beyond memory_gib '
                              f'({self.room / 2**30:g}): free some, or raise memory_gib') from error
