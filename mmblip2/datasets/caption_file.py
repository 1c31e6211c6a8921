"""Caption annotations: two file layouts, one result."""
import os
from typing import NamedTuple

from mmblip2.errors import ConfigError, DataError

from .files import are_objects, check_ids, parse_image_id, read_json, wrong_layout

LAYOUTS = ('the COCO layout {"images": [{"id", "file_name"}, ...], '
           '"annotations": [{"image_id", "caption"}, ...]}',
           'the list of LAVIS [{"image", "caption" (a text or a list of texts), "image_id" (optional)}, ...]',
           'the layout of Karpathy {"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}')


class CaptionedImage(NamedTuple):
    """One image of a caption file: its id, its path below ``data_prefix``, its captions in file order."""
    image_id: int | str
    image: str
    captions: list


def draw_caption(results, rng, key='caption', count=None):
    """Replace the ``captions`` of a training row, if it has any, by one of them, or by several different ones.

    Args:
        results (dict): The row; it is changed.
        rng (numpy.random.Generator): The random numbers of this draw.
        key (str): What the one caption, or the list of several, is called.
        count (int, optional): So many, as a list; all of them, in random order, where a row has fewer.

    Returns:
        dict: ``results``.
    """
    if 'captions' in results:
        captions = results.pop('captions')
        if count is None:
            results[key] = captions[int(rng.integers(len(captions)))]
        else:
            results[key] = [captions[i] for i in rng.permutation(len(captions))[:count].tolist()]
    return results


def check_captions_per_image(count, owner):
    """Refuse a ``captions_per_image`` that is neither None nor a whole number from 1 on.

    Raises:
        ConfigError: It is something else.
    """
    if count is not None and (type(count) is not int or count < 1):
        raise ConfigError(f'captions_per_image of {owner} is {count!r}: expected a whole number from 1 on, or None for '
                          'samples of one caption each')


def training_rows(images, image_path, draw, key='caption'):
    """Rows of a training: one a caption, or one an image that has any, for :func:`draw_caption`.

    Args:
        images (list[CaptionedImage]): What :func:`read_captions` gives.
        image_path (callable): Path of an annotated image.
        draw (bool): One row an image, with all its ``captions``.
        key (str): What the one caption of a row is called.

    Returns:
        list[dict]: ``image_id``, ``img_path`` and ``key`` or ``captions``.
    """
    if draw:
        return [dict(image_id=image.image_id, img_path=image_path(image.image), captions=image.captions)
                for image in images if image.captions]
    return [dict({key: caption}, image_id=image.image_id, img_path=image_path(image.image))
            for image in images for caption in image.captions]


def read_captions(path, image_folder, captions_required=True, split=None):
    """Read a caption file; the layout is recognised from the content.

    Args:
        path (str): JSON in one of ``LAYOUTS``.
        image_folder (str): Where the images are; decides between the names a COCO file offers.
        captions_required (bool): False accepts files that list images only (a test split).
        split (str, optional): Of a file in the layout of Karpathy, which has all splits: 'train' (with 'restval', as
            usual), 'val' or 'test'.

    Returns:
        list[CaptionedImage]: One item an image, in file order.

    Raises:
        ConfigError: ``split`` is missing, or the file has one split only.
        DataError: Missing file, not JSON, another layout, a split that it does not have, or an annotation of an
            unlisted image.
    """
    content = read_json(path)
    images = content.get('images') if isinstance(content, dict) else None
    if images and are_objects(images, 'filename', 'split', 'sentences'):
        return _read_karpathy(path, images, split)
    if split is not None:
        raise ConfigError(f'{path} has one split only: leave split={split!r} out')
    if isinstance(content, list) and are_objects(content, 'image'):
        return _read_list(path, content, captions_required)
    if isinstance(content, dict) and are_objects(content.get('images'), 'id'):
        return _read_coco(path, content, image_folder, captions_required)
    raise wrong_layout(path, content, LAYOUTS)


def _read_karpathy(path, images, split):
    for image in images:
        if not all(isinstance(image.get(key, ''), str) for key in ('filename', 'split', 'filepath')):
            raise wrong_layout(path, image, LAYOUTS)
    found = sorted({image['split'] for image in images})
    if split is None:
        raise ConfigError(f'{path} has the splits {", ".join(found)}: set split to one of them')
    wanted = (split, 'restval') if split == 'train' else (split, )
    if split not in found:
        raise DataError(f'{path} has no split {split!r}, only {", ".join(found)}')
    result = []
    for image in images:
        if image['split'] not in wanted:
            continue
        if not are_objects(image['sentences'], 'raw'):
            raise wrong_layout(path, image, LAYOUTS)
        name = os.path.join(image.get('filepath', ''), image['filename'])
        result.append(CaptionedImage(parse_image_id(image.get('cocoid'), name, path), name,
                                     [sentence['raw'] for sentence in image['sentences']]))
    return result


def _read_list(path, items, captions_required):
    if any('question' in item and 'caption' not in item for item in items):  # of a VQA task, not a list of images alone
        raise wrong_layout(path, items, LAYOUTS)
    images: dict[tuple, list[str]] = {}
    for item in items:
        captions = item.get('caption', None if captions_required else [])
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise wrong_layout(path, item, LAYOUTS)
        image_id = parse_image_id(item.get('image_id'), item['image'], path)
        # The image is part of the key so that an id used twice reaches the check of the data set.
        images.setdefault((image_id, item['image']), []).extend(captions)
    return [CaptionedImage(image_id, image, captions) for (image_id, image), captions in images.items()]


def _read_coco(path, content, image_folder, captions_required):
    if captions_required and 'annotations' not in content:
        raise wrong_layout(path, content, LAYOUTS)
    annotations = content.get('annotations', [])
    if not are_objects(annotations, 'image_id', 'caption') or not all(
            isinstance(annotation['caption'], str) for annotation in annotations):
        raise wrong_layout(path, annotations, LAYOUTS)
    check_ids(path, content['images'], 'id')
    check_ids(path, annotations, 'image_id')
    captions: dict[int | str, list[str]] = {image['id']: [] for image in content['images']}
    unknown = [annotation for annotation in annotations if annotation['image_id'] not in captions]
    if unknown:
        first = unknown[0]
        raise DataError(f'{len(unknown)} of {len(annotations)} annotations in {path} refer to an image id '
                        f'that is not among its {len(captions)} images; the first is annotation id '
                        f'{first.get("id")} with image_id {first["image_id"]!r}: use matching "images" and '
                        '"annotations"')
    for annotation in annotations:
        captions[annotation['image_id']].append(annotation['caption'])
    name = _coco_naming(path, content['images'], image_folder)
    return [CaptionedImage(image['id'], name(image), captions[image['id']])
            for image in content['images']]


def _coco_naming(path, images, image_folder):
    """``file_name``, or the end of ``coco_url`` ("val2014/COCO_val2014_1.jpg") where that is a file."""
    def from_name(image):
        return image['file_name']

    def from_url(image):
        return '/'.join(image['coco_url'].split('/')[-2:])

    named, linked = are_objects(images, 'file_name'), are_objects(images, 'coco_url') and all(
        isinstance(image['coco_url'], str) for image in images)
    if not named and not linked:
        raise wrong_layout(path, images, LAYOUTS)
    below_split = images and linked and os.path.isfile(os.path.join(image_folder, from_url(images[0])))
    return from_name if named and not below_split else from_url
