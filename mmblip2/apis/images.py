"""Images of every kind that a user may have, as RGB."""
import http.client
import io
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from mmblip2.datasets.transforms.image import read_image, to_rgb
from mmblip2.errors import DataError, first_lines

ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray

_KINDS = 'a path, an http(s) or file URL, a PIL.Image or a numpy array'
_TIMEOUT = 30  # seconds without an answer
_MOST_BYTES = 200 * 2**20  # of a download


def is_url(value) -> bool:
    """Whether ``value`` is a text that begins with http://, https:// or file://."""
    return isinstance(value, str) and value.lower().startswith(('http://', 'https://', 'file://'))


def is_image(value) -> bool:
    """Whether ``value`` is an image rather than a text: texts that end like an image file or are URLs count as images.
    """
    if isinstance(value, str):
        Image.init()
        path = urllib.parse.urlsplit(value).path if is_url(value) else value
        return is_url(value) or Path(path).suffix.lower() in Image.registered_extensions()
    return isinstance(value, (os.PathLike, Image.Image, np.ndarray))


def load_image(source: ImageLike | Any, index: int = 0) -> Image.Image:
    """One image as RGB, by the same rules as ``LoadImage`` (see ``to_rgb``): the same pixels for the same file.

    Args:
        source: Path, URL (http, https, file), ``PIL.Image``, or a numpy array of uint8: (H, W, 3) in the order BGR,
            as OpenCV and OpenMMLab have it, (H, W, 4) BGRA, whose alpha is dropped, or (H, W) and (H, W, 1) grey.
        index: Of the image among the inputs, for messages.

    Raises:
        DataError: It is none of these, or cannot be read; the message names the input and its index.
    """
    try:
        if isinstance(source, Image.Image):
            return to_rgb(source)
        if isinstance(source, np.ndarray):
            return _from_array(source)
        if is_url(source):
            return _from_bytes(_open_url(str(source)))
        if isinstance(source, (str, os.PathLike)):
            return _from_path(Path(source))
    except DataError as error:
        raise DataError(f'cannot read image {index} ({describe(source)}): {error}') from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # a lazy PIL.Image reads its file only now
        raise DataError(f'cannot read image {index} ({describe(source)}): {type(error).__name__}: {error}') from None
    raise DataError(f'image {index} is a {type(source).__name__}: expected {_KINDS}')


def describe(source) -> str:
    """What an input is, in a few words."""
    if isinstance(source, np.ndarray):
        return f'numpy array of {source.dtype}, shape {source.shape}'
    if isinstance(source, Image.Image):
        return f'PIL.Image {getattr(source, "filename", "") or ""}'.strip()
    return str(source)


def image_stem(source, index: int) -> str:
    """A name for the picture of an input: that of its file, or 'image_' and its index."""
    name = getattr(source, 'filename', '') if isinstance(source, Image.Image) else source
    if is_url(name):
        name = urllib.parse.unquote(urllib.parse.urlsplit(name).path)
    stem = Path(name).stem if isinstance(name, (str, os.PathLike)) else ''
    return stem or f'image_{index:06d}'


def is_several(inputs) -> bool:
    """Whether ``inputs`` are several images: a directory, list, tuple, generator, another iterable, an array (N, ...).
    """
    if isinstance(inputs, (str, os.PathLike)):
        return not is_url(inputs) and os.path.isdir(inputs)
    if isinstance(inputs, np.ndarray):
        return inputs.ndim == 4
    return not isinstance(inputs, Image.Image) and hasattr(inputs, '__iter__')


def iterate_images(inputs) -> Iterator[ImageLike]:
    """The single images of any input, one after the other, none of them read yet.

    Args:
        inputs: One image (see :func:`load_image`), a directory (its image files by name, without its folders), or a
            list, tuple, generator or other iterable of images. A 4-dimensional array is a batch.

    Raises:
        DataError: A directory without images.
    """
    if isinstance(inputs, (str, os.PathLike)) and is_several(inputs):
        Image.init()
        endings = Image.registered_extensions()
        files = sorted(path for path in Path(inputs).iterdir() if path.suffix.lower() in endings and path.is_file())
        if not files:
            raise DataError(f'the directory {inputs} has no images: expected files such as .jpg or .png in it')
        yield from files
    else:
        yield from inputs if is_several(inputs) else [inputs]


def count_images(inputs) -> int | None:
    """How many images ``inputs`` are, None where only reading them tells (generators)."""
    if isinstance(inputs, (str, os.PathLike, np.ndarray)) or not is_several(inputs):
        return sum(1 for _ in iterate_images(inputs))
    return len(inputs) if hasattr(inputs, '__len__') else None


def _from_path(path: Path) -> Image.Image:
    if path.is_dir():
        raise DataError('it is a directory: give it by itself, not in a list, or list its files')
    if not path.exists():
        raise DataError(f'no such file, seen from {Path.cwd()}')
    return read_image(path)


def _from_bytes(data: io.BytesIO) -> Image.Image:
    start = data.getvalue()[:60]
    try:
        return read_image(data)
    except DataError as error:
        raise DataError(f'no image that Pillow reads, it begins with {start!r}' if 'cannot identify' in str(error)
                        else str(error)) from None


def _from_array(array: np.ndarray) -> Image.Image:
    wanted = 'expected uint8 of shape (H, W, 3) in the order BGR, (H, W, 4) BGRA, or (H, W) grey'
    if array.dtype != np.uint8:
        raise DataError(f'{wanted}: pixels 0-255')
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        hint = '; a tensor (C, H, W) needs array.transpose(1, 2, 0)' if array.ndim == 3 and len(array) in (1, 3) else ''
        raise DataError(wanted + hint)
    if 0 in array.shape:
        raise DataError(f'{wanted}: it has no pixels')
    if array.ndim == 3:
        array = array[:, :, 2::-1]  # BGR and BGRA to RGB
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _open_url(url: str) -> io.BytesIO:
    """The bytes behind a URL; spaces and letters beyond ASCII in it are quoted, as browsers do."""
    try:
        parts = urllib.parse.urlsplit(url)
        url = parts._replace(**{name: urllib.parse.quote(getattr(parts, name), safe="%/:=&?~+!$,;'@()*[]|")
                                for name in ('path', 'query')}).geturl()
        with urllib.request.urlopen(urllib.request.Request(url, headers={'User-Agent': 'mmblip2'}),
                                    timeout=_TIMEOUT) as answer:
            data = answer.read(_MOST_BYTES + 1)
            size = int(answer.headers.get('Content-Length') or len(data))
    except urllib.error.HTTPError as error:
        raise DataError(f'the server answers {error.code} {error.reason}') from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, 'reason', None) or first_lines(error)
        raise DataError(f'{reason}: is the address right, and is there a network? Download it by hand and give its '
                        'path') from None
    if len(data) > _MOST_BYTES:
        raise DataError(f'it is larger than {_MOST_BYTES >> 20} MiB: download it by hand and give its path')
    if len(data) < size:
        raise DataError(f'the connection broke off after {len(data)} of {size} bytes: try again, or download it by '
                        'hand and give its path')
    if not data:
        raise DataError('the file is empty (0 bytes)')
    return io.BytesIO(data)
