"""Unpack Flickr8k and write its annotations.

    python tools/dataset_converters/prepare_flickr8k.py --source DIR [--out data/flickr8k] [--first 48 12]

DIR holds, for the splits train and val, flickr8k_SPLIT.json (a list of {"image", "caption", "image_id"}: one
row a caption in train, a list of captions in val) and flickr8k_SPLIT_images.tar. OUT gets

    images/*.jpg
    annotations/karpathy_train.json, karpathy_val.json   the lists, for COCOCaption and COCORetrieval
    annotations/captions_val.json                        COCO layout, the ground truth of the caption metrics

``--first`` takes so many images of train and of val only, for a check. Nothing is deleted; a second run skips what is
there. Paths in the annotations are relative to OUT.
"""
import argparse
import json
import os
import re
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.errors import DataError, MMBlip2Error

OFFICIAL_IMAGES = {'train': 6000, 'val': 1000}
CAPTIONS_PER_IMAGE = 5
_IMAGE = re.compile(r'images/[\w.-]+\.jpg', re.ASCII)


def prepare(source, out, expected=None, first=None):
    """Write images and annotations.

    Args:
        source (Path): Folder with the lists and the tar files.
        out (Path): Folder to write to.
        expected (dict[str, int], optional): Images of each split; default: the official numbers.
        first (dict[str, int], optional): Images of each split that are taken; the number in the lists is not checked.

    Returns:
        dict[str, tuple[int, int]]: Images and captions of each split.

    Raises:
        DataError: A file is missing, broken, or its content is not what was expected.
    """
    expected = expected or OFFICIAL_IMAGES
    lists = {split: _read_list(source / f'flickr8k_{split}.json') for split in expected}
    captions = {split: _captions_by_image(rows, source / f'flickr8k_{split}.json')
                for split, rows in lists.items()}
    for split, number in expected.items():
        _check(source / f'flickr8k_{split}.json', captions[split], len(captions[split]) if first else number)
    shared = set.intersection(*map(set, captions.values()))
    if shared:
        raise DataError(f'{len(shared)} images are in every split, first {min(shared)}: the lists in '
                        f'{source} are not the official splits')
    chosen = {split: list(images)[:first[split] if first else None] for split, images in captions.items()}
    for split in expected:
        _unpack(source / f'flickr8k_{split}_images.tar', out, set(captions[split]), set(chosen[split]))
    captions = {split: {image: captions[split][image] for image in images} for split, images in chosen.items()}
    lists = {split: [row for row in rows if row['image'] in captions[split]] for split, rows in lists.items()}
    for split, rows in lists.items():
        _write_json(out / 'annotations' / f'karpathy_{split}.json', rows)
    _write_json(out / 'annotations' / 'captions_val.json', _coco_layout(lists['val'], captions['val']))
    return {split: (len(images), sum(map(len, images.values()))) for split, images in captions.items()}


def _read_list(path):
    try:
        rows = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise DataError(f'{path} not found: --source must name the folder with flickr8k_train.json, '
                        'flickr8k_val.json and their *_images.tar') from None
    except ValueError as error:
        raise DataError(f'{path} is not a JSON file ({error}): copy it again') from error
    keys = {'image', 'caption', 'image_id'}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
        raise DataError(f'{path}: expected a list of objects with image, caption and image_id')
    return rows


def _captions_by_image(rows, path):
    images = {}
    for number, row in enumerate(rows):
        captions = row['caption'] if isinstance(row['caption'], list) else [row['caption']]
        if not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise DataError(f'{path}, row {number} ({row["image"]}): empty caption')
        images.setdefault(row['image'], []).extend(captions)
    return images


def _check(path, captions, number):
    if len(captions) != number:
        raise DataError(f'{path} lists {len(captions)} images, the official split has {number}: copy it '
                        'again')
    for image, texts in captions.items():
        if not _IMAGE.fullmatch(image):
            raise DataError(f'{path}: image {image!r} is not of the form images/NAME.jpg')
        if len(texts) != CAPTIONS_PER_IMAGE:
            raise DataError(f'{path}: image {image} has {len(texts)} captions, expected {CAPTIONS_PER_IMAGE}')


def _unpack(path, out, listed, wanted):
    """Write the images of a tar file that are not there yet; its names decide nothing but the file name."""
    (out / 'images').mkdir(parents=True, exist_ok=True)
    found, new = set(), 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isfile() or member.name not in listed:
                    raise DataError(f'{path} holds {member.name!r}, which is no image of its list: expected '
                                    'images/NAME.jpg only')
                found.add(member.name)
                target = out / member.name
                if member.name not in wanted:
                    continue
                if target.is_file() and target.stat().st_size == member.size:
                    continue
                data = archive.extractfile(member).read()
                if data[:2] != b'\xff\xd8':
                    raise DataError(f'{path}: {member.name} is no JPEG file')
                _write(target, data)
                new += 1
    except FileNotFoundError:
        raise DataError(f'{path} not found: --source must hold the tar file of each split') from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f'{path} could not be unpacked ({error}): copy it again') from error
    if found != listed:
        raise DataError(f'{path} lacks {len(listed - found)} images of its list, first '
                        f'{min(listed - found)}: copy it again')
    print(f'{path.name}: {len(wanted)} images, {new} written')


def _coco_layout(rows, captions):
    """The official COCO caption layout; image ids stay the strings of the list."""
    ids = {row['image']: row['image_id'] for row in rows}
    pairs = [(ids[image], caption) for image, texts in captions.items() for caption in texts]
    return {
        'info': {'description': 'Flickr8k val'}, 'type': 'captions', 'licenses': [],
        'images': [{'id': ids[image], 'file_name': image} for image in captions],
        'annotations': [{'id': number, 'image_id': image_id, 'caption': caption}
                        for number, (image_id, caption) in enumerate(pairs, 1)],
    }


def _write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(content, ensure_ascii=False).encode('utf-8'))


def _write(path, data):
    """Write to a side file and rename, so that a stopped run leaves no half file under the final name."""
    side = path.with_name(path.name + '.part')
    side.write_bytes(data)
    os.replace(side, path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', type=Path, required=True, help='folder with the lists and the tar files')
    parser.add_argument('--out', type=Path, default=Path('data/flickr8k'), help='default: %(default)s')
    parser.add_argument('--first', type=int, nargs=2, metavar=('TRAIN', 'VAL'),
                        help='take only so many images of each split, for a check')
    args = parser.parse_args(argv)
    try:
        counts = prepare(args.source, args.out, first=args.first and dict(zip(OFFICIAL_IMAGES, args.first)))
    except MMBlip2Error as error:
        print(error, file=sys.stderr)
        return 2
    for split, (images, captions) in counts.items():
        print(f'{split}: {images} images, {captions} captions')
    print(f'Flickr8k is ready in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
