"""From the archives of a data set, as downloaded, to the folders that the configs expect.

A set is a list of parts, each a folder of images or an annotation file, with what its publisher says of it. Nothing is
fetched and nothing is deleted; what is there already is checked and left, so that a stopped run goes on. Imports
nothing heavy, so that the tools answer ``--help`` at once.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from mmblip2.errors import DataError, first_lines

# Not the '._name.jpg' that macOS adds to archives.
_IMAGE = re.compile(r'\w[\w.-]*\.(jpg|jpeg|png|gif)', re.ASCII | re.IGNORECASE)
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)
_DEPTH = 2  # folders below the source that are searched
_COMMON = ('images', 'val', 'test')  # names of folders that say little: taken only directly in the source


class Images(NamedTuple):
    """A folder of images.

    Attributes:
        archive: Name of the ``.zip``, ``.tar`` or ``.tar.gz`` that has them; None where none is published.
        inside: Folder in the archive; a folder of this name that is unpacked already is linked.
        target: Folder below the output.
        number: Number of images as published; None where it is not.
        url: Where to get it.
        needed: False: its absence is said, but is no failure.
        nested: Whether a folder that is unpacked already has its images in folders. What is unpacked here has none.
    """
    archive: str | None
    inside: str
    target: str
    number: int | None
    url: str
    needed: bool = True
    nested: bool = False

    @property
    def wanted(self):
        """str: What to put into the source folder."""
        return f'{self.archive} (or its folder {self.inside})' if self.archive else f'a folder {self.inside}'


class Annotations(NamedTuple):
    """An annotation file: JSON with rows that have certain fields.

    Attributes:
        file: Its name, in the source folder or in ``archive``.
        target: File below the output.
        fields: What each row has; none: it is a text.
        number: Number of rows as published; None where it is not.
        url: Where to get it, or its archive.
        key: Of the list of rows; '': the file is that list, or an object with the rows as values.
        archive: Name of a ``.zip``, ``.tar`` or ``.tar.gz`` that has it; None: published as a file.
        md5: As published.
        needed: False: its absence is said, but is no failure.
        lines: Whether each line is a row.
    """
    file: str
    target: str
    fields: tuple[str, ...]
    number: int | None
    url: str
    key: str = ''
    archive: str | None = None
    md5: str | None = None
    needed: bool = True
    lines: bool = False

    @property
    def wanted(self):
        """str: What to put into the source folder."""
        return f'{self.archive} (or {self.file} of it)' if self.archive else self.file


class Outcome(NamedTuple):
    """What became of a part: 'ok', 'missing' or 'wrong', and why."""
    part: Images | Annotations
    state: str
    text: str


def prepare(parts: Sequence[Images | Annotations], source: Path, out: Path, subset: bool = False) -> list[Outcome]:
    """Prepare what is there, and print a line on each part.

    Args:
        parts: Of the set.
        source: Folder with the downloads, searched with two levels of its subfolders.
        out: Folder to write to.
        subset: Accept other numbers than the published ones (a part of the set).

    Returns:
        list[Outcome]: One a part, in order; a part that fails stops no other.

    Raises:
        DataError: There is no source folder, or the output is a file.
    """
    if not source.is_dir():
        raise DataError(f'source folder {source} not found: give the folder with the downloaded files')
    if out.exists() and not out.is_dir():
        raise DataError(f'{out} is a file: give a folder as --out')
    files, folders = _listing(source)
    outcomes = []
    for part in parts:
        try:
            if isinstance(part, Images):
                outcome = Outcome(part, *_images(part, files, folders, out / part.target, subset))
            else:
                outcome = Outcome(part, *_annotations(part, files, out / part.target, subset))
        except DataError as error:
            outcome = Outcome(part, 'wrong', str(error))
        except OSError as error:  # of the output: a full disk, a file where a folder has to be, no permission
            outcome = Outcome(part, 'wrong', f'{out / part.target} cannot be written ({error})')
        if outcome.state == 'missing':
            outcome = outcome._replace(
                text=f'{"" if part.needed else "optional, "}put {part.wanted} into {source}; from {part.url}')
        print(f'{outcome.state:8}{part.target}: {outcome.text}', flush=True)
        outcomes.append(outcome)
    return outcomes


def _listing(source):
    """({name: path} of the files, the same of the folders) in ``source`` and below; the nearest has the name."""
    files: dict[str, Path] = {}
    folders: dict[str, Path] = {}
    level = [source]
    for _ in range(_DEPTH + 1):
        below = []
        for folder in level:
            for entry in sorted(_scan(folder), key=lambda entry: entry.name):
                if entry.is_dir():
                    if folder == source or entry.name not in _COMMON:
                        folders.setdefault(entry.name, Path(entry.path))
                    below.append(Path(entry.path))
                elif entry.is_file():
                    files.setdefault(entry.name, Path(entry.path))
        level = below
    return files, folders


def _scan(folder):
    """Entries of a folder but its images, of which there may be many."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _IMAGE.fullmatch(entry.name)]
    except PermissionError:
        return []


# ------------------------------------------------------------------------------------------------ images

def _images(part, files, folders, target, subset):
    new = 0
    archive, folder = files.get(part.archive), folders.get(part.inside)
    if target.is_symlink() and not target.exists():
        return 'wrong', f'it is a link to {os.readlink(target)}, which is not there: mend or remove the link'
    if not target.exists() and archive is None and folder is not None and _sizes(folder, part.nested):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(folder.resolve())
    sizes = _sizes(target, part.nested)
    # What is linked is somebody else's. An archive is read only where something is missing.
    if archive is not None and not target.is_symlink() and (part.number is None or len(sizes) != part.number):
        new = _unpack(archive, part.inside, target, sizes)
        sizes = _sizes(target, part.nested)
    elif not target.exists():
        return 'missing', ''
    if not sizes:
        whose = f'{archive} has no images in a folder {part.inside}' if archive else f'there are no images in {target}'
        return 'wrong', f'{whose}: is it another data set?'
    if part.number is not None and len(sizes) != part.number and not subset:
        return 'wrong', f'{len(sizes)} images, published are {part.number}: is {part.wanted} whole? --subset accepts it'
    return 'ok', (f'{len(sizes)} images, {new} of them new'
                  + (f', a link to {target.resolve()}' if target.is_symlink() else ''))


def _sizes(folder, nested=False):
    """{name: bytes} of the images in a folder (and in its folders); empty if there is none."""
    if not folder.exists():
        return {}
    with os.scandir(folder) as listing:
        entries = list(listing)
    sizes = {entry.name: entry.stat().st_size for entry in entries if _IMAGE.fullmatch(entry.name)}
    for entry in entries if nested else ():
        if entry.is_dir():
            sizes.update(_sizes(Path(entry.path), True))
    return sizes


def _unpack(archive, inside, target, sizes):
    """Write the images of an archive that are not there in their size; their names alone are taken from it.

    Returns:
        int: How many were written.

    Raises:
        DataError: The archive is broken, or is not what is published.
    """
    seen, new = set(), 0
    for name, size, content in _members(archive):
        folder, base = os.path.split(name)
        if not _IMAGE.fullmatch(base) or f'/{inside}/' not in f'/{folder}/':
            continue
        if base in seen:
            raise DataError(f'{archive} has {base} twice: it is not the published archive')
        seen.add(base)
        if sizes.get(base) != size:
            target.mkdir(parents=True, exist_ok=True)
            with _whole(target / base) as side:
                _copy(content, side, archive)
            new += 1
    return new


def _members(archive) -> Iterator[tuple[str, int, Any]]:
    """(name, bytes, opener) of the files in an archive; nothing is unpacked before an opener is called.

    Raises:
        DataError: The archive is broken, has a link, or a name that leads out of it.
    """
    from rich.console import Console
    from rich.progress import Progress
    with Progress(console=Console(stderr=True), transient=True) as progress, _reading(archive):
        # By its name: a zip whose end is missing should be called a broken zip.
        if archive.suffix == '.zip':
            with zipfile.ZipFile(archive) as zipped:
                bar = progress.add_task(archive.name, total=len(zipped.infolist()))
                for info in zipped.infolist():
                    progress.advance(bar)
                    if not info.is_dir():
                        _check_member(archive, info.filename, stat.S_ISLNK(info.external_attr >> 16))
                        yield info.filename, info.file_size, lambda info=info: zipped.open(info)
            return
        with progress.open(archive, 'rb', description=archive.name) as raw, tarfile.open(fileobj=raw) as content:
            for member in content:
                if not member.isdir():
                    _check_member(archive, member.name, not member.isfile())
                    yield member.name, member.size, lambda member=member: content.extractfile(member)


def _check_member(archive, name, is_link):
    if is_link or name.startswith(('/', '\\')) or '..' in re.split(r'[/\\]', name):
        what = 'a link or device' if is_link else 'a path out of the archive'
        raise DataError(f'{archive} holds {name!r}, {what}: it is not the published archive')


@contextmanager
def _reading(archive):
    try:
        yield
    except _BROKEN as error:
        raise DataError(f'{archive} cannot be unpacked ({first_lines(error)}): download it again') from error


def _copy(opener, side, archive):
    """Copy a member; an error in reading is the archive's, one in writing is not."""
    with _reading(archive):
        source: IO[bytes] = opener()
    with source:
        while True:
            with _reading(archive):
                piece = source.read(1 << 20)
            if not piece:
                return
            side.write(piece)


# ------------------------------------------------------------------------------------------- annotations

def _annotations(part, files, target, subset):
    if target.exists():
        return 'ok', _check(part, target, subset, f'remove {target} and download it again')
    found, archive = files.get(part.file), files.get(part.archive)
    if found is None and archive is None:
        return 'missing', ''
    with _whole(target) as side:
        if found is not None:
            with open(found, 'rb') as file:
                shutil.copyfileobj(file, side)
        else:
            for name, _, content in _members(archive):
                if os.path.basename(name) == part.file:
                    _copy(content, side, archive)
                    break
            else:
                raise DataError(f'{archive} has no {part.file}: it is not the published archive')
        side.flush()
        text = _check(part, Path(side.name), subset, f'download {(found or archive).name} again')
    return 'ok', text


def _check(part, path, subset, remedy):
    """What an annotation file has, in words.

    Raises:
        DataError: It is not what is published.
    """
    if part.md5 is not None and not subset:
        digest = _md5(path)
        if digest != part.md5:
            raise DataError(f'md5 of {part.file} is {digest}, published is {part.md5}: {remedy}')
        return 'md5 as published'
    try:
        text = path.read_text(encoding='utf-8')
        content = [json.loads(line) for line in text.splitlines() if line] if part.lines else json.loads(text)
    except ValueError as error:
        raise DataError(f'{part.file} is not JSON ({error}): {remedy}') from None
    rows = content.get(part.key) if part.key and isinstance(content, dict) else None if part.key else content
    rows = list(rows.values()) if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not rows or not all(
            isinstance(row, dict if part.fields else str) and all(field in row for field in part.fields)
            for row in rows):
        each = f'with {", ".join(part.fields)} each' if part.fields else 'that are texts'
        raise DataError(f'{part.file} has no {part.key or "rows"} {each}: is it the file of another task? If so, '
                        f'{remedy}')
    if part.number is not None and len(rows) != part.number and not subset:
        raise DataError(f'{part.file} has {len(rows)} {part.key or "rows"}, published are {part.number}: is it another '
                        f'version? If so, {remedy}; --subset accepts it')
    return f'{len(rows)} {part.key or "rows"}'


def _md5(path):
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _whole(path):
    """A side file that gets the name ``path`` when it is whole, and goes when it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(path.name + '.part')
    try:
        with open(side, 'wb') as file:
            yield file
        os.replace(side, path)
    finally:
        side.unlink(missing_ok=True)


def run(parts: Sequence[Images | Annotations], name: str, default_out: str, description: str, argv=None) -> int:
    """The command line of a ``prepare_*.py``.

    Args:
        parts: Of the set.
        name: Of the set.
        default_out: Folder to write to.
        description: For ``--help``.
        argv: The arguments; None: those of the process.

    Returns:
        int: 0, or 1 if something that is needed is missing, anything is wrong, or nothing is ready.

    Raises:
        DataError: See ``prepare``; ``--only`` leaves nothing.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', type=Path, required=True, help='folder with the downloaded files')
    parser.add_argument('--out', type=Path, default=Path(default_out), help='default: %(default)s')
    parser.add_argument('--only', nargs='+', metavar='WORD', help='only parts whose path below --out has one of these '
                        'words, e.g. --only 2017')
    parser.add_argument('--subset', action='store_true', help='accept other numbers than the published ones')
    args = parser.parse_args(argv)
    chosen = [part for part in parts if not args.only or any(word in part.target for word in args.only)]
    if not chosen:
        raise DataError(f'--only {" ".join(args.only)} leaves nothing of {", ".join(part.target for part in parts)}')
    outcomes = prepare(chosen, args.source, args.out, args.subset)
    failed = [part.target for part, state, _ in outcomes
              if state == 'wrong' or (state == 'missing' and part.needed)]
    ready = sum(state == 'ok' for _, state, _ in outcomes)
    print(f'{name}: {ready} of {len(outcomes)} parts are ready in {args.out}'
          + (f'; missing or wrong: {", ".join(failed)}' if failed else ''))
    return 1 if failed or not ready else 0
