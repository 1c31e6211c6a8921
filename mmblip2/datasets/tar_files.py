"""Files inside tar files, read where they lie: an index of each tar, made once, says where its members are.

The index of ``00000.tar`` is ``00000.tar.index`` beside it; where that folder cannot be written, a file in
``~/.cache/mmblip2/tar_index`` (``XDG_CACHE_HOME`` is respected); with ``MMBLIP2_TAR_INDEX=FOLDER`` all are there. It
is made again when size or time of change of the tar are others. Layout: a line of JSON, then int64 arrays (offsets,
sizes, starts of names, first members of samples), then the names; it is mapped, so that processes share its memory.

A sample is what stands together and has the same name up to the first dot of the last part, as in WebDataset:
``a/01.jpg``, ``a/01.json``. A path ``FOLDER/00000.tar/a/01.jpg`` names a member.
"""
import errno
import functools
import hashlib
import json
import logging
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from mmblip2.errors import DataError
from mmblip2.utils.dist import world

_FORMAT = 'mmblip2 tar index 1'
_BLOCK = 512
_SHOWN = 5
_COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_INDEX_ENDING = '.index'


class TarSummary(NamedTuple):
    """What an index says of its tar.

    Attributes:
        samples: Number of samples.
        cut: Byte at which the tar is cut off or damaged, None if it is whole.
    """
    samples: int
    cut: int | None


# ------------------------------------------------------------------------------------------------- reading

def split_path(path):
    """``('FOLDER/00000.tar', 'a/01.jpg')`` of a path that leads into a tar file, else None; looks at no file."""
    folder, ending, member = str(path).partition('.tar/')
    return (f'{folder}.tar', member) if ending and member else None


def read_member(path):
    """Content of a member of a tar file.

    Args:
        path (str): ``FOLDER/00000.tar/a/01.jpg``.

    Returns:
        bytes: The member.

    Raises:
        DataError: There is no such tar, or no such member.
    """
    tar, name = split_path(path)
    file = open_tar(tar)
    member = file.find(name)
    if member is None:
        raise DataError(f'{tar} has no member {name!r}')
    return file.read(member)


def open_tar(path):
    """A tar with its index, which is made where there is none; the last ones that were used stay open.

    Raises:
        DataError: See :func:`index_tars`.
    """
    stat = _stat(path)
    return _opened(str(path), stat.st_size, stat.st_mtime_ns)


def _most_open():
    """Tars that stay open: enough for some sources of 64 shards each, where the system allows as many files."""
    try:
        import resource
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except ImportError:
        return 100
    return 400 if allowed < 0 else min(400, allowed // 2)


@functools.lru_cache(maxsize=_most_open())
def _opened(path, size, mtime):  # size and time: a tar that was changed is opened again
    return TarFile(path)


class TarFile:
    """Members of a tar, by number. Threads and forks may share it.

    Args:
        path (str): The tar.

    Raises:
        DataError: See :func:`index_tars`.
    """

    def __init__(self, path):
        self.path = path
        self._fd = -1
        head, index = _find_index(path) or _make_index(path)
        with open(index, 'rb') as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._fd = os.open(path, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))
        members, samples = head['members'], head['samples']
        numbers = np.frombuffer(content, '<i8', 3 * members + samples + 2, head['head'])
        self._offsets, self._sizes, self._starts, self._firsts = np.split(
            numbers, np.cumsum([members, members, members + 1]))
        self._content = content
        self._names = head['head'] + numbers.nbytes
        self.summary = TarSummary(samples, head['cut'])

    def __del__(self):
        if self._fd >= 0:
            os.close(self._fd)

    def name(self, member):
        """str: The name of a member."""
        start, end = self._starts[member:member + 2].tolist()
        return self._content[self._names + start:self._names + end - 1].decode('utf-8', 'surrogateescape')

    def sample(self, number):
        """Members of a sample.

        Args:
            number (int): From 0 on.

        Returns:
            tuple[str, dict[str, int]]: Its key, and its members by their ending in lower case, without a dot.
        """
        key, members = '', {}
        for member in range(*self._firsts[number:number + 2].tolist()):
            key, ending = _split_name(self.name(member))
            members[ending] = member
        return key, members

    def find(self, name):
        """Number of the member of this name, or None."""
        place = self._content.find(b'\n%s\n' % name.encode('utf-8', 'surrogateescape'), self._names - 1)
        if place < 0:
            return None
        return int(np.searchsorted(self._starts, place + 1 - self._names))

    def read(self, member):
        """bytes: The content of a member.

        Raises:
            DataError: It cannot be read.
        """
        size, offset = int(self._sizes[member]), int(self._offsets[member])
        parts = []
        try:
            while size:
                parts.append(os.pread(self._fd, size, offset))
                if not parts[-1]:
                    raise OSError(errno.EIO, 'the tar file ends too early')
                size, offset = size - len(parts[-1]), offset + len(parts[-1])
        except OSError as error:
            raise DataError(f'{self.path}/{self.name(member)} cannot be read: {error}') from None
        return b''.join(parts)


# ------------------------------------------------------------------------------------------ making indices

def index_tars(paths, workers=8):
    """Make the indices that are missing, several at a time; processes of one run begin at different places.

    Args:
        paths (Sequence[str]): Tar files.
        workers (int): Tars that are read at a time.

    Returns:
        list[TarSummary]: One a tar.

    Raises:
        DataError: Tars that are missing, compressed, or no WebDataset shards; the first of them, with the reason.
    """
    rank, size = world()
    started = said = time.monotonic()
    made, problems = 0, []
    with ThreadPoolExecutor(workers) as pool:
        heads = list(pool.map(_attempt(_find_index), paths))
        missing = [number for number, head in enumerate(heads) if head is None]
        shift = rank * len(missing) // size
        missing = missing[shift:] + missing[:shift]
        if missing:
            _say(f'{len(missing)} of {len(paths)} tar files have no index yet, the first is {paths[min(missing)]}')
        make = _attempt(lambda path: _find_index(path) or _make_index(path))
        for number, head in zip(missing, pool.map(make, [paths[number] for number in missing])):
            heads[number] = head
            made += 1
            if time.monotonic() - said > 10:
                said = time.monotonic()
                _say(f'indexed {made} of {len(missing)} tar files in {said - started:.0f} s')
    problems = [str(head) for head in heads if isinstance(head, DataError)]
    if problems:
        more = f'; and {len(problems) - _SHOWN} more' if len(problems) > _SHOWN else ''
        raise DataError(f'{len(problems)} of {len(paths)} shards cannot be used: {"; ".join(problems[:_SHOWN])}{more}')
    if made:
        _say(f'indexed {made} tar files in {time.monotonic() - started:.1f} s')
    return [TarSummary(head['samples'], head['cut']) for head, _ in heads]


def _attempt(work):
    """``work`` that returns a DataError instead of raising it."""
    def attempt(path):
        try:
            return work(path)
        except DataError as error:
            return error
    return attempt


def _say(message):
    print_log(message, logger='current', level=logging.INFO)


def _stat(path):
    try:
        return os.stat(path)
    except OSError as error:
        raise DataError(f'shard {path} cannot be opened ({error.strerror}): check shards and data_root') from None


def _index_paths(path):
    """Where the index of a tar may be, best first."""
    digest = hashlib.sha256(os.path.abspath(path).encode('utf-8', 'surrogateescape')).hexdigest()[:16]
    name = f'{digest}_{os.path.basename(path)}{_INDEX_ENDING}'
    chosen = os.environ.get('MMBLIP2_TAR_INDEX')
    if chosen:
        return [os.path.join(chosen, name)]
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return [path + _INDEX_ENDING, os.path.join(cache, 'mmblip2', 'tar_index', name)]


def _find_index(path):
    """(head, path) of the index of a tar as it is now, else None.

    Raises:
        DataError: There is no such tar.
    """
    stat = _stat(path)
    for index in _index_paths(path):
        try:
            with open(index, 'rb') as file:
                line, size = file.readline(4096), os.fstat(file.fileno()).st_size
            head = json.loads(line)
            now = (_FORMAT, stat.st_size, stat.st_mtime_ns, size)
            if (head['format'], head['size'], head['mtime_ns'], head['bytes']) == now:
                return {**head, 'head': len(line)}, index
        except (OSError, ValueError, KeyError, TypeError):  # not there, cut off, or something else
            continue
    return None


def _make_index(path):
    """Read the headers of a tar and write its index; (head, path).

    Raises:
        DataError: It is missing, compressed or no shard, or the index can be written nowhere.
    """
    if path.lower().endswith(_COMPRESSED):
        raise DataError(f'{path} is compressed, so nothing in it can be looked up: unpack it to a .tar')
    stat = _stat(path)
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            scan = _Scan(path, fd, stat.st_size)
        finally:
            os.close(fd)
    except OSError as error:
        raise DataError(f'shard {path} cannot be read: {error}') from None
    names = [name.encode('utf-8', 'surrogateescape') for name in scan.names]
    starts = np.cumsum([1, *(len(name) + 1 for name in names)])
    arrays = np.concatenate([scan.offsets, scan.sizes, starts, scan.firsts]).astype('<i8')
    blob = b'\n' + b''.join(name + b'\n' for name in names)
    head = dict(format=_FORMAT, tar=os.path.basename(path), size=stat.st_size, mtime_ns=stat.st_mtime_ns,
                members=len(names), samples=len(scan.firsts) - 1, cut=scan.cut, bytes=10**15)
    length = -(-(len(json.dumps(head)) + 1) // 8) * 8  # with the widest number of bytes; the arrays are aligned
    head['bytes'] = length + arrays.nbytes + len(blob)
    line = json.dumps(head).ljust(length - 1).encode() + b'\n'
    problems = []
    for index in _index_paths(path):
        try:
            _write(index, line + arrays.tobytes() + blob)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            problems.append(str(error))
            continue
        return {**head, 'head': length}, index
    raise DataError(f'the index of {path} can be written nowhere ({"; ".join(problems)}): set MMBLIP2_TAR_INDEX to a '
                    'folder that can be written')


def _write(path, content):
    """Write a side file, its name being this process's and thread's, and rename it."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    side = f'{path}.{os.getpid()}.{time.monotonic_ns()}.part'
    try:
        with open(side, 'wb') as file:
            file.write(content)
        os.replace(side, path)
    except OSError:
        Path(side).unlink(missing_ok=True)
        raise


def _split_name(name):
    """(key, ending) of a member, as WebDataset has them; ('', '') of one that belongs to no sample."""
    folder, slash, base = name.rpartition('/')
    stem, dot, ending = base.partition('.')
    return (folder + slash + stem, ending.lower()) if stem and dot else ('', '')


class _Scan:
    """Members of the samples of a tar (ustar, pax and GNU), from its headers alone.

    Attributes:
        names, offsets, sizes: Of the members, in their order.
        firsts: First member of each sample, and the number of members.
        cut: Byte at which it is cut off or damaged, None if it is whole.
    """

    def __init__(self, path, fd, size):
        self.names: list[str] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self.firsts: list[int] = []
        self.cut: int | None = None
        self._path, self._fd, self._size = path, fd, size
        self._keys: set[str] = set()
        self._key = ''
        self._run()
        self.firsts.append(len(self.names))

    def _run(self):
        place = 0
        extra: dict[str, Any] = {}
        while True:
            block = os.pread(self._fd, _BLOCK, place)
            if len(block) == _BLOCK and not block.strip(b'\0'):
                return
            if len(block) < _BLOCK or not _sums_up(block):
                if place == 0:
                    raise DataError(f'{self._path} is no tar file' if block else f'{self._path} is empty (0 bytes)')
                self.cut = place
                return
            kind, length = block[156:157], int(extra.get('size', _number(block[124:136])))
            data = place + _BLOCK
            if kind in b'xgLK':
                content = os.pread(self._fd, length, data)
                if len(content) < length:
                    self.cut = place
                    return
                extra.update(_extra(kind, content))
            else:
                name = extra.get('path') or _name(block)
                if kind == b'S' or any(key.startswith('GNU.sparse') for key in extra):
                    raise DataError(f'{self._path} has a sparse member, {name}: pack it again without --sparse')
                if kind not in b'07\0' or name.endswith('/'):
                    length = 0 if kind in b'123456' else length  # links and folders have no data
                elif not self._add(name, data, length):
                    self.cut = place
                    return
                extra = {}
            place = data + -(-length // _BLOCK) * _BLOCK

    def _add(self, name, offset, size):
        """Take a file; False if it is cut off, and with it goes the rest of its sample."""
        key, ending = _split_name(name)
        whole = offset + size <= self._size
        if not ending or key.rpartition('/')[2].startswith('__'):  # __name__: WebDataset's notes on the shard
            return whole
        if not whole:
            if key == self._key and self.firsts:
                del self.names[self.firsts[-1]:], self.offsets[self.firsts[-1]:], self.sizes[self.firsts[-1]:]
                self.firsts.pop()
            return False
        if key != self._key:
            if key in self._keys:
                raise DataError(f'{self._path}: the members of sample {key!r} do not stand together, or it is there '
                                'twice; pack it again, sorted by name (tar --sort=name)')
            self._keys.add(key)
            self._key = key
            self.firsts.append(len(self.names))
        elif name in self.names[self.firsts[-1]:]:
            raise DataError(f'{self._path} has {name!r} twice: pack it again')
        if '\n' in name:
            raise DataError(f'{self._path} has a name with a line break, {name!r}: rename it')
        self.names.append(name)
        self.offsets.append(offset)
        self.sizes.append(size)
        return True


def _sums_up(block):
    """Whether the checksum of a header is right."""
    try:
        return sum(block) - sum(block[148:156]) + 8 * 32 == _number(block[148:156])
    except ValueError:
        return False


def _number(field):
    """An octal number, or one of 256 (GNU)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7f]) + field[1:], 'big')
    return int(field.rstrip(b'\0 ').lstrip(b' ') or b'0', 8)


def _name(block):
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b'ustar\0' else ''
    return f'{prefix}/{name}' if prefix else name


def _text(field):
    return field.partition(b'\0')[0].decode('utf-8', 'surrogateescape')


def _extra(kind, content) -> dict[str, Any]:
    """What an extended header says of the next member."""
    if kind == b'L':
        return dict(path=_text(content))
    found = {}
    while kind == b'x' and content.strip(b'\0'):
        length = int(content.partition(b' ')[0])
        key, _, value = content[:length - 1].partition(b' ')[2].partition(b'=')
        found[key.decode('utf-8', 'replace')] = value.decode('utf-8', 'surrogateescape')
        content = content[length:]
    return found
