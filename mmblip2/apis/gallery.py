"""What a retrieval model says of a gallery, prepared once and kept in memory or in a file.

Shapes: N rows (images or texts), Q queries, C contrastive width, P patches, E vision width.

A file is safetensors and nothing in it is run. Its tensors, all in the order of the gallery::

    features  float32 (N, Q, C) of images, (N, C) of texts: contrastive, normalised
    patches   (N, P, E) of images that can be re-ranked: normalised patches, in the type the model computes in
    rows      uint8: UTF-8 JSON, a list of N dicts (img_path ...), or of N texts

and its metadata: ``format``, ``kind`` ('images' or 'texts'), and sha256 of the ``model``, of its ``preprocessing`` and
of the ``gallery``. Tensors of an opened file are mapped, not read: only the rows that are asked for come into memory.
"""
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmblip2.checkpoints.io import sync_dir
from mmblip2.errors import CheckpointError, DataError
from mmblip2.models.algorithms.base import fingerprint

FORMAT = 'mmblip2-gallery/1'
_TYPES = {torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16', torch.uint8: 'U8'}
_CHECKED = {
    'kind': 'the file holds {found}, not {expected}: give prototype_cache of this inferencer',
    'model': 'it was prepared by another model (its weights, their type, tokenizer or max_text_len differ): give the '
             'model that prepared it, or another prototype_cache',
    'preprocessing': 'its images were prepared in another way (size, transforms, mean or std differ): give the config '
                     'that prepared it, or another prototype_cache',
    'gallery': 'it holds another gallery (paths, files, texts or their order differ): give the prototype that it was '
               'prepared from, or another prototype_cache',
}


def digest(value: Any) -> str:
    """sha256 (hex) of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def model_digest(model, kind: str) -> str:
    """sha256 (hex) over all parts of a retrieval model that a prepared gallery depends on.

    Args:
        model (nn.Module): The model, of BLIP or BLIP-2.
        kind (str): 'images' or 'texts'.
    """
    if kind == 'images':
        norm = getattr(model, 'vision_norm', None)  # BLIP's is inside the encoder
        parts = [model.vision, *([] if norm is None else [norm]), model.reader, model.itc_head.vision_proj]
        eps = getattr(norm if norm is not None else getattr(model.vision, 'norm', None), 'eps', None)
        return digest([fingerprint(part) for part in parts] + [eps])
    parts = [model.reader, model.itc_head.text_proj]
    return digest([fingerprint(part) for part in parts] +
                  [model.max_text_len, model.tokenizer.tokenizer.get_vocab()])


def description(value: Any) -> Any:
    """Settings of transforms, for :func:`digest`: names of types and what their instances hold."""
    if isinstance(value, dict):
        return {str(key): description(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [description(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if callable(value) and hasattr(value, '__qualname__'):
        return value.__qualname__
    return [type(value).__name__, description(vars(value)) if hasattr(value, '__dict__') else str(value)]


@dataclass
class Gallery:
    """A prepared gallery.

    Attributes:
        features: float32 (N, Q, C) of images, (N, C) of texts; on the CPU.
        patches: (N, P, E) of images, None of texts or where nothing is re-ranked; on the CPU.
        rows: N dicts (images) or N texts.
        meta: ``kind``, ``model``, ``preprocessing``, ``gallery``: see the module.
    """
    features: torch.Tensor
    patches: torch.Tensor | None
    rows: list
    meta: dict[str, str]

    def save(self, path: str | Path):
        """Write it to a file, atomically.

        Raises:
            CheckpointError: The disk is full or not writable.
        """
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in self._tensors().items()}

        def fill(put):
            for name, tensor in self._tensors().items():
                for start in range(0, len(tensor), 64):
                    put(name, start, tensor[start:start + 64])

        write_gallery(path, shapes, self.rows, self.meta, fill)

    def _tensors(self):
        return dict(features=self.features) | ({} if self.patches is None else dict(patches=self.patches))


def write_gallery(path: str | Path, shapes: dict, rows: list, meta: dict[str, str], fill: Callable):
    """Write a file piece by piece: a side file of the full size at first, renamed when it is whole.

    Args:
        path: Final name; its folder is created.
        shapes: Name to (dtype, shape).
        rows: N dicts or texts.
        meta: See :class:`Gallery`.
        fill: Called with ``put(name, start, tensor)``, which writes rows of a tensor; any order.

    Raises:
        CheckpointError: The disk is full or not writable; told before ``fill`` is called where the system can.
    """
    path = Path(path)
    side = path.with_name(f'{path.name}.{os.getpid()}.part')
    packed = torch.frombuffer(bytearray(json.dumps(rows, default=str).encode()), dtype=torch.uint8)
    header: dict[str, Any] = {'__metadata__': dict(meta, format=FORMAT)}
    places, end = {}, 0
    for name, (dtype, shape) in {**shapes, 'rows': (packed.dtype, packed.shape)}.items():
        size = dtype.itemsize
        for side_length in shape:
            size *= side_length
        header[name] = dict(dtype=_TYPES[dtype], shape=list(shape), data_offsets=[end, end + size])
        places[name] = (end, size // max(1, shape[0]))
        end += size
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)

    @contextmanager
    def told():
        try:
            yield
        except OSError as error:
            size = (8 + len(text) + end) / 2**20
            raise CheckpointError(f'cannot write the gallery {path} ({size:.1f} MiB): {error}; a file that was there '
                                  'before is untouched') from error

    try:
        with told():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(side, 'wb')  # noqa: SIM115
        with file:
            begin = 8 + len(text)

            def put(name, start, tensor):
                first, width = places[name]
                with told():
                    file.seek(begin + first + start * width)
                    file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

            with told():
                if hasattr(os, 'posix_fallocate'):
                    os.posix_fallocate(file.fileno(), 0, begin + end)
                file.write(len(text).to_bytes(8, 'little') + text)
            put('rows', 0, packed)
            fill(put)
            with told():
                file.flush()
                os.fsync(file.fileno())
        with told():
            os.replace(side, path)
            sync_dir(path.parent)
    finally:
        with suppress(OSError):
            side.unlink()


def read_gallery(path: str | Path, expected: dict[str, str], patches: bool) -> Gallery:
    """Open a file and check what it holds.

    Args:
        path: From :func:`write_gallery`.
        expected: What its metadata should be; entries that are absent here are not checked.
        patches: Whether the patches of images are needed.

    Returns:
        Gallery: Its tensors are mapped from the file.

    Raises:
        CheckpointError: It is no gallery, broken, of another version, or of another model; the message says which.
        DataError: It is another gallery, or has no patches.
    """
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), 'pt') as file:
            meta = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f'{path} is no gallery, or broken ({error}): delete it, or give another '
                              'prototype_cache') from None
    if meta.pop('format', None) != FORMAT or not {'features', 'rows'} <= tensors.keys():
        raise CheckpointError(f'{path} is no gallery of the format {FORMAT!r}: delete it, or give another '
                              'prototype_cache')
    for key, message in _CHECKED.items():
        if key in expected and meta.get(key) != expected[key]:
            text = message.format(found=meta.get(key), expected=expected[key])
            raise (DataError if key == 'gallery' else CheckpointError)(
                f'the gallery {path} does not fit: {text}. To prepare it anew, delete the file')
    if patches and 'patches' not in tensors:
        raise DataError(f'the gallery {path} does not fit: it was prepared with fast_match=True, without the patches '
                        'that re-ranking needs: set fast_match=True, or give another prototype_cache')
    try:
        rows = json.loads(tensors['rows'].numpy().tobytes())
    except ValueError as error:
        raise CheckpointError(f'the gallery {path} is broken ({error}): delete it, or give another '
                              'prototype_cache') from None
    return Gallery(tensors['features'], tensors.get('patches') if patches else None, rows, meta)
