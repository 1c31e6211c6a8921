"""Tensors of a file, or of a folder as transformers writes it. Nothing in them is run, and little is read: tensors are
mapped from the disk and come into memory when they are used."""
import json
import pickle
from pathlib import Path

import torch

from ..errors import CheckpointError
from .inert import RefusedPickle, load_inert, without_stand_ins

_WHOLE = ('model.safetensors', 'pytorch_model.bin')  # the first that is there is taken
_INDEX = tuple(f'{name}.index.json' for name in _WHOLE)
FOLDER_FILES = 'model.safetensors, pytorch_model.bin, or shards with their index.json'


def weights_file(folder):
    """The file in ``folder`` that has its weights, or the index of its shards, as transformers calls them.

    Returns:
        Path | None: None where there is neither.
    """
    names = [name for pair in zip(_WHOLE, _INDEX) for name in pair]
    return next((Path(folder, name) for name in names if Path(folder, name).is_file()), None)


def read_file(path, map_location='cpu', mapped=True):
    """Content of one file.

    Args:
        path (Path): ``.safetensors``, the ``index.json`` of shards, or else a file of ``torch.save``. Safetensors are
            known by their content, too.
        map_location: Where the tensors go.
        mapped (bool): Leave the tensors on the disk until they are used. The file must not be changed meanwhile.

    Returns:
        dict: Tensors by name; a file of ``torch.save`` may have them deeper, and any plain values.

    Raises:
        CheckpointError: It is broken, would run code, or a shard is missing.
    """
    if path.name.endswith('.index.json'):
        return _read_shards(path, map_location, mapped)
    with open(path, 'rb') as file:
        start = file.read(40)
    if start.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path} is a pointer of git-lfs and not the weights themselves: run git lfs pull in its '
                              'folder, or download it')
    is_zip = start.startswith(b'PK\x03\x04')
    if is_zip and path.suffix == '.safetensors':
        raise CheckpointError(f'{path} is a file of torch, or another zip file, and no safetensors: rename it to .pth '
                              'if it is one of torch')
    if path.suffix == '.safetensors' or start[8:9] == b'{':  # that has the size of its head before it
        return _read_safetensors(path, map_location)
    # only the zip files that torch writes since 1.6 can be mapped
    return _read_torch(path, map_location, mapped and is_zip)


def shards_of(index):
    """Where an index says that tensors are.

    Args:
        index (Path): ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``.

    Returns:
        dict[str, str]: Names of tensors to names of files in its folder, which need not be there.

    Raises:
        CheckpointError: It is broken, or names what is not in its folder.
    """
    try:
        places = json.loads(index.read_text(encoding='utf-8'))['weight_map']
        shards = sorted(set(places.values()))
        outside = [name for name in shards if Path(name).name != name or not name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{index} is broken ({type(error).__name__}: {error}): copy or download it '
                              'again') from error
    if outside:
        raise CheckpointError(f'{index} names the shard {outside[0]!r}, which is not a file in its folder: refused')
    return places


def _read_shards(index, map_location, mapped):
    """Tensors of all shards that an index names."""
    places = shards_of(index)
    shards = sorted(set(places.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f'{index.parent} lacks {len(missing)} of the {len(shards)} shards that {index.name} '
                              f'names, first {missing[0]}: copy or download the whole folder again')
    tensors: dict[str, torch.Tensor] = {}
    for name in shards:
        content = read_file(index.parent / name, map_location, mapped)
        absent = [key for key, shard in places.items() if shard == name and key not in content]
        if absent:
            raise CheckpointError(f'{index} says that {absent[0]} is in {name}, and {len(absent)} such tensors are '
                                  'not: the index and the shards are not of one model. Copy or download them again')
        tensors.update((key, content[key]) for key, shard in places.items() if shard == name)
    return tensors


def _read_safetensors(path, map_location):
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        return load_file(str(path), device=str(map_location))  # mapped on the CPU
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path} is broken or incomplete ({error}): copy or download it '
                              'again') from error


def _read_torch(path, map_location, mapped):
    try:
        try:
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            return without_stand_ins(load_inert(path, map_location, mapped))
    except RefusedPickle as error:
        raise CheckpointError(f'{path} would run code when it is loaded as it asks ({error}): it was not run, and the '
                              'file is refused. Do not use it, whatever its source') from error
    except (pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise CheckpointError(f'{path} is no checkpoint, or it is broken: copy it again') from error
    except Exception as error:  # a few bad bytes make the reader raise anything
        text = 'it ends too early' if isinstance(error, EOFError) else str(error) or repr(error)
        raise CheckpointError(f'{path} is broken or incomplete ({text.splitlines()[0][:120]}): use an earlier '
                              'checkpoint or copy it again') from error
