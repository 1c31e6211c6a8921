"""Writing tensors that lie on the disk, one after the other: what is copied may be larger than the memory.

``io.read_checkpoint`` maps files: a tensor's bytes come into memory when they are read, and stay until they are given
back. The writers here give them back as they go.
"""
import contextlib
import ctypes
import json
import mmap
import os
import shutil
from pathlib import Path

import torch

from ..errors import CheckpointError
from . import io

_STEP = 16 * 2**20  # bytes between two times of giving back
_DTYPES = {torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16',
           torch.int64: 'I64', torch.int32: 'I32', torch.int16: 'I16', torch.int8: 'I8', torch.uint8: 'U8',
           torch.bool: 'BOOL'}


class GiveBack:
    """Takes the bytes of mapped files out of this process's memory; they are read again when they are used again.

    Where the system does not tell what is mapped (other than Linux), nothing is done.

    Args:
        sources (Iterable[str | Path]): Files, and folders with files. Their tensors must not have been changed.
    """

    def __init__(self, sources):
        self._files = {os.path.realpath(file) for source in map(Path, sources)
                       for file in (source.iterdir() if source.is_dir() else [source])}
        self._since = 0

    def used(self, size):
        """Tell that ``size`` bytes more have been read or written; once there are enough, memory is given back."""
        self._since += size
        if self._since < _STEP:
            return
        self._since = 0
        try:
            lines = Path('/proc/self/maps').read_text().splitlines()
        except OSError:
            return
        libc = ctypes.CDLL(None)
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] in self._files:
                start, end = (int(address, 16) for address in fields[0].split('-'))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


class _Through:
    """A file that gives the sources' memory back while it is written."""

    def __init__(self, file, sources):
        self._file, self._memory = file, GiveBack(sources)

    def write(self, data):
        written = self._file.write(data)
        self._memory.used(written)
        return written

    def flush(self):
        self._file.flush()


@contextlib.contextmanager
def whole_file(path, sources=()):
    """As :func:`mmblip2.checkpoints.io.whole_file`, and gives back the memory of what was read.

    Args:
        path (str | Path): Final name.
        sources (Iterable): For :class:`GiveBack`.

    Raises:
        CheckpointError: The disk is full or not writable; a file that was there before is untouched.
    """
    with io.whole_file(path, path, 'what was there before is untouched') as file:
        yield _Through(file, sources)


def write_torch(content, path, sources=()):
    """``torch.save`` of tensors that may be mapped.

    Args:
        content (dict): Plain values and tensors. A part of a larger tensor is copied, so that only the part is written.
        path, sources: See :func:`whole_file`.
    """
    with whole_file(path, sources) as file:
        torch.save(_alone(content), file)


def _alone(value):
    if isinstance(value, dict):
        return {key: _alone(item) for key, item in value.items()}
    # a mapped file is one memory; what lies before and behind a small part of it would be written too
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() != value.numel() * value.element_size():
        return value.clone()
    return value


def nbytes(tensor, dtype=None):
    """Bytes of a tensor, or of its copy in another type."""
    return tensor.numel() * torch.empty(0, dtype=dtype or tensor.dtype).element_size()


def write_safetensors(tensors, path, sources=(), metadata=None):
    """Write a ``.safetensors`` file, in memory one tensor at a time.

    Args:
        tensors (dict[str, tuple[Tensor, dtype]]): Tensors and the type they are written in.
        path, sources: See :func:`whole_file`.
        metadata (dict[str, str], optional): For the head of the file.
    """
    head, place = {'__metadata__': dict(metadata or {}, format='pt')}, 0
    # as the reference writer: wide types first, so that every tensor starts at a multiple of its type's size
    order = sorted(tensors, key=lambda name: -torch.empty(0, dtype=tensors[name][1]).element_size())
    for name in order:
        tensor, dtype = tensors[name]
        size = nbytes(tensor, dtype)
        head[name] = dict(dtype=_DTYPES[dtype], shape=list(tensor.shape), data_offsets=[place, place + size])
        place += size
    text = json.dumps(head, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with whole_file(path, sources) as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for name in order:
            tensor, dtype = tensors[name]
            if tensor.numel():
                raw = tensor.detach().to('cpu', dtype).contiguous().flatten().view(torch.uint8).numpy()
                file.write(raw.data)


def check_target(path, size, force=False, folder=False, sources=()):
    """Refuse to write where something else is, or where there is no room.

    Args:
        path (str | Path): File or folder to be written.
        size (int): Bytes.
        force (bool): Whether what is there may be replaced: a file by a file, a model's folder by one.
        folder (bool): Whether a folder is to be written.
        sources (Iterable[Path]): What is read for it, and is not replaced, whatever ``force`` is.

    Raises:
        CheckpointError: With the numbers.
    """
    path = Path(path)
    if path.exists() and not force:
        raise CheckpointError(f'{path} exists already: give another name, or --force to replace it')
    if path.exists() and path.is_dir() != folder:
        raise CheckpointError(f'{path} is a {"file, and a folder" if folder else "folder, and a file"} is to be '
                              'written: give another name')
    if path.is_dir() and any(path.iterdir()) and not (path / 'config.json').is_file():
        raise CheckpointError(f'{path} is a folder with other things than a model (it has no config.json), which '
                              '--force does not remove: give another name')
    read = next((source for source in sources if Path(source).resolve().is_relative_to(path.resolve())), None)
    if read is not None:
        raise CheckpointError(f'{read} is read for {path}, which would replace it: give another name')
    place = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < size:
        raise CheckpointError(f'{path} needs {size / 2**30:.2f} GiB, and {place} has {free / 2**30:.2f} GiB left: make '
                              'room, or write to another disk')
