"""Small shards in the layout of WebDataset; tests put this folder on sys.path and import it."""
import io
import json
import tarfile

import numpy as np
from PIL import Image


def picture(number, ending='png'):
    """An image file whose first pixel says its number."""
    pixels = np.full((20, 24, 3), 100, np.uint8)
    pixels[0, 0] = number % 256, number // 256, 7
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, dict(jpg='JPEG').get(ending, ending))
    return buffer.getvalue()


def sample(number, captions=None, ending='png'):
    """Members of a sample: an image, and JSON with captions."""
    captions = [f'number {number}'] if captions is None else captions
    return {ending: picture(number, ending), 'json': json.dumps(dict(caption=captions)).encode()}


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    """A tar of ``members``: name to content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', format=format) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def write_shards(folder, sizes, change=None, start=0, template='{:03d}.tar'):
    """Tars of so many samples each, numbered through from ``start``; ``change`` replaces members by sample number.

    Returns:
        list[str]: Their paths.
    """
    number, paths = start, []
    for shard, size in enumerate(sizes):
        members = {}
        for _ in range(size):
            for ending, content in {**sample(number), **(change or {}).get(number, {})}.items():
                if content is not None:
                    members[f'{number:05d}.{ending}'] = content
            number += 1
        paths.append(str(folder / template.format(shard)))
        write_tar(folder / template.format(shard), members)
    return paths
