"""From the archives of a data set, as downloaded, to the folders that the configs expect.

A set is a list of parts, each a folder of images or an annotation file, with what its publisher says of it. Nothing is
fetched and nothing is deleted; what is there already is checked and left, so that a stopped run goes on.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from mmblip2.errors import DataError

_IMAGE = re.compile(r'[\w.-]+\.(jpg|jpeg|png|gif)', re.ASCII | re.IGNORECASE)


class Images(NamedTuple):
    """A folder of images.

    Attributes:
        archive: Name of the ``.zip``, ``.tar`` or ``.tar.gz`` that has them; an unpacked folder ``inside`` is taken, too.
        inside: Folder in the archive; '' for the images of all its folders.
        target: Folder below the output.
        count: Number of images as published; None where it is not.
        needed: False: its absence is said, but is no failure.
    """
    archive: str
    inside: str
    target: str
    count: int | None = None
    needed: bool = True


class Annotations(NamedTuple):
    """An annotation file.

    Attributes:
        file: Its name, in the source folder or in ``archive``.
        target: File below the output.
        archive: Name of a ``.zip``, ``.tar`` or ``.tar.gz`` that has it; None: published as a file.
        rows: Key of the list (None: the file is a list, or an object of rows) and its length as published.
        md5: As published.
        needed: False: its absence is said, but is no failure.
    """
    file: str
    target: str
    archive: str | None = None
    rows: tuple[str | None, int] | None = None
    md5: str | None = None
    needed: bool = True


class Outcome(NamedTuple):
    """What became of a part: 'ok', 'missing' or 'wrong', and why."""
    part: Images | Annotations
    state: str
    text: str


def prepare(parts: Sequence[Images | Annotations], source: Path, out: Path, subset: bool = False) -> list[Outcome]:
    """Prepare what is there.

    Args:
        parts: Of the set.
        source: Folder with the downloads, searched with its subfolders.
        out: Folder to write to.
        subset: Accept other numbers than the published ones (a part of the set).

    Returns:
        list[Outcome]: One a part, in order; a part that fails stops no other.

    Raises:
        DataError: There is no source folder.
    """
    if not source.is_dir():
        raise DataError(f'source folder {source} not found: give the folder with the downloaded files')
    outcomes = []
    for part in parts:
        work = _images if isinstance(part, Images) else _annotations
        try:
            outcome = Outcome(part, *work(part, source, out, subset))
        except DataError as error:
            outcome = Outcome(part, 'wrong', str(error))
        print(f'{outcome.state:8}{part.target}: {outcome.text}', flush=True)
        outcomes.append(outcome)
    return outcomes


# ------------------------------------------------------------------------------------------------ images

def _images(part, source, out, subset):
    target = out / part.target
    archive, folder = _find(source, part.archive), _find(source, part.inside, folder=True) if part.inside else None
    new = 0
    if archive is not None:
        new = sum(_write_member(target, name, size, read) for name, size, read in _members(archive, part.inside))
    elif folder is not None and folder.resolve() != target.resolve() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(folder.resolve())
    elif not target.is_dir():
        return 'missing', f'{part.archive}{f" (or a folder {part.inside})" if part.inside else ""} is not in {source}'
    found = sum(1 for entry in os.scandir(target) if _IMAGE.fullmatch(entry.name)) if target.is_dir() else 0
    if not found or (part.count is not None and found != part.count and not subset):
        return 'wrong', f'{found} images, published are {part.count}: is {part.archive} whole?'
    linked = f', a link to {target.resolve()}' if target.is_symlink() else ''
    return 'ok', f'{found} images, {new} of them new{linked}'


def _write_member(target, name, size, read):
    """Whether an image had to be written."""
    path = target / name
    if path.is_file() and path.stat().st_size == size:
        return False
    target.mkdir(parents=True, exist_ok=True)
    _write(path, read())
    return True


def _members(archive, inside) -> Iterator[tuple]:
    """(name, size, reader) of the images in an archive; its folders decide nothing but which images are taken.

    Raises:
        DataError: The archive is broken, or two images have one name.
    """
    seen = set()
    for name, size, read in _entries(archive):
        folder, base = os.path.split(name)
        if not _IMAGE.fullmatch(base) or (inside and f'/{inside}/' not in f'/{folder}/'):
            continue
        if base in seen:
            raise DataError(f'{archive} has {base} twice: it is not the published archive')
        seen.add(base)
        yield base, size, read


def _entries(archive) -> Iterator[tuple]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as content:
                for member in content.infolist():
                    if not member.is_dir():
                        yield member.filename, member.file_size, lambda member=member: content.read(member)
        else:
            with tarfile.open(archive) as content:
                for entry in content:
                    if entry.isfile():
                        yield entry.name, entry.size, lambda entry=entry: _file(content, entry).read()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f'{archive} cannot be unpacked ({error}): download it again') from error


def _file(content, entry) -> IO[bytes]:
    file = content.extractfile(entry)
    assert file is not None  # it is a file
    return file


# ------------------------------------------------------------------------------------------- annotations

def _annotations(part, source, out, subset):
    target = out / part.target
    if not target.is_file():
        found = _find(source, part.file)
        if found is not None:
            with open(found, 'rb') as file, _whole(target) as side:
                shutil.copyfileobj(file, side)
        else:
            archive = _find(source, part.archive) if part.archive else None
            if archive is None:
                return 'missing', f'{part.file}{f" (or {part.archive})" if part.archive else ""} is not in {source}'
            data = next((read() for name, _, read in _entries(archive) if os.path.basename(name) == part.file), None)
            if data is None:
                return 'wrong', f'{archive} has no {part.file}: it is not the published archive'
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, data)
    return _checked(part, target, subset)


def _checked(part, target, subset):
    if part.md5 is not None and not subset:
        digest = hashlib.md5(target.read_bytes()).hexdigest()
        if digest != part.md5:
            return 'wrong', f'md5 is {digest}, published is {part.md5}: download it again and remove {target}'
    try:
        content = json.loads(target.read_text(encoding='utf-8'))
    except ValueError as error:
        return 'wrong', f'it is not JSON ({error}): download it again and remove {target}'
    if part.rows is None:
        return 'ok', 'read'
    key, expected = part.rows
    rows = content if key is None else content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, (list, dict)):
        return 'wrong', f'it has no {key!r}: is it the file of another task? Remove {target} then'
    if len(rows) != expected and not subset:
        return 'wrong', f'{len(rows)} {key or "rows"}, published are {expected}: is it another version of the file?'
    return 'ok', f'{len(rows)} {key or "rows"}' + (', md5 as published' if part.md5 and not subset else '')


# ------------------------------------------------------------------------------------------------- files

def _find(source, name, folder=False) -> Path | None:
    """A file, or folder, of that name in ``source`` or up to two folders below it."""
    for pattern in ('', '*/', '*/*/'):
        for path in sorted(source.glob(pattern + name)):
            if path.is_dir() if folder else path.is_file():
                return path
    return None


@contextmanager
def _whole(path):
    """A side file that gets the name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(path.name + '.part')
    with open(side, 'wb') as file:
        yield file
    os.replace(side, path)


def _write(path, data):
    with _whole(path) as side:
        side.write(data)


def run(parts: Sequence[Images | Annotations], name: str, default_out: str, description: str, argv=None) -> int:
    """The command line of a ``prepare_*.py``.

    Returns:
        int: 0, or 1 if something that is needed is missing or wrong.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', type=Path, required=True, help='folder with the downloaded files')
    parser.add_argument('--out', type=Path, default=Path(default_out), help='default: %(default)s')
    parser.add_argument('--only', nargs='+', metavar='WORD', help='only parts whose path has one of these words, '
                        'e.g. --only val2014 annotations')
    parser.add_argument('--subset', action='store_true', help='accept other numbers than the published ones')
    args = parser.parse_args(argv)
    chosen = [part for part in parts if not args.only or any(word in part.target for word in args.only)]
    if not chosen:
        raise DataError(f'--only {" ".join(args.only)} leaves nothing of {", ".join(part.target for part in parts)}')
    outcomes = prepare(chosen, args.source, args.out, args.subset)
    failed = [item for item in outcomes if item.state == 'wrong' or (item.state == 'missing' and item.part.needed)]
    ready = sum(item.state == 'ok' for item in outcomes)
    print(f'{name}: {ready} of {len(outcomes)} parts are ready in {args.out}'
          + (f'; missing or wrong: {", ".join(item.part.target for item in failed)}' if failed else ''))
    return 1 if failed else 0
