"""Image captions, for training a caption model or either stage, and for evaluating captions."""
from mmblip2.errors import ConfigError
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .caption_file import check_captions_per_image, draw_caption, read_captions, training_rows
from .files import are_objects, check_ids, read_json, wrong_layout
from .question_lists import GenomeImages

_DOMAINS = ('in-domain', 'near-domain', 'out-domain')


@DATASETS.register_module()
class COCOCaption(ImageTextDataset):
    """Captions in the official COCO layout, in LAVIS's lists or in Karpathy's files, recognised from the content.

    Training rows: one a caption, with ``caption`` (str). Test mode: one row an image with ``gt_caption``
    (list[str], empty when the file lists images only). LAVIS's ids ``"coco_391895"`` become 391895, and ids
    absent from a list come from the file name, so that they match COCO's official ground truth; any other id
    stays as written.

    Args:
        ann_file (str): ``{"images": [...], "annotations": [...]}``, ``[{"image", "caption", "image_id"}]``, or
            Karpathy's ``dataset_coco.json``, ``dataset_flickr30k.json``.
        split (str, optional): 'train', 'val' or 'test' of a file of Karpathy.
        draw_caption (bool): Training rows are one an image instead, and each draw takes one of its captions: an epoch
            shows every image once.
        captions_per_image (int, optional): The same with so many different captions of the image (all that it has, if
            they are fewer) as a list: stage 2 then reads the image once for all of them.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        ConfigError: ``captions_per_image`` is no number from 1 on.
        DataError: See ``ImageTextDataset`` and ``read_captions``.
    """

    def __init__(self, ann_file, split=None, draw_caption=False, captions_per_image=None, **kwargs):
        check_captions_per_image(captions_per_image, type(self).__name__)
        self.split = split
        self.draw_caption = draw_caption or captions_per_image is not None
        self.captions_per_image = captions_per_image
        super().__init__(ann_file=ann_file, **kwargs)

    def draw(self, results, rng):
        """Draw one of the captions, or ``captions_per_image`` of them, of a training row that has them all."""
        return draw_caption(results, rng, count=self.captions_per_image)

    def read_images(self):
        """list[CaptionedImage]: What ``ann_file`` has."""
        return read_captions(self.ann_file, self.data_prefix['img_path'], captions_required=not self.test_mode,
                             split=self.split)

    def load_data_list(self):
        """Returns:
            list[dict]: ``image_id``, ``img_path`` and ``caption`` (``captions`` to draw from), or ``gt_caption``.
        """
        images = self.read_images()
        if not self.test_mode:
            return training_rows(images, self.image_path, self.draw_caption)
        return [dict(image_id=image.image_id, img_path=self.image_path(image.image),
                     gt_caption=image.captions) for image in self._with_captions(images)]

    def _with_captions(self, images):
        """Leave out images without references where others have some: they cannot be scored."""
        captioned = [image for image in images if image.captions]
        if not captioned or len(captioned) == len(images):
            return images
        self._warn(f'{len(images) - len(captioned)} of {len(images)} images have no caption: left out')
        return captioned


@DATASETS.register_module()
class Flickr30kCaption(COCOCaption):
    """Flickr30k's captions (Young et al. 2014): Karpathy's ``dataset_flickr30k.json`` with ``split``, or
    LAVIS's lists."""


@DATASETS.register_module()
class VisualGenomeCaption(ImageTextDataset):
    """Region descriptions of Visual Genome (Krishna et al. 2017) as captions of whole images, as BLIP-2 trains on them.

    Rows as those of ``COCOCaption``: one a phrase; in test mode one an image.

    Args:
        ann_file (str): ``region_descriptions.json``, or LAVIS's ``vg_caption.json``. Images are ``<image_id>.jpg`` in
            the folders VG_100K and VG_100K_2 below ``data_prefix``, or there directly; those of LAVIS's list are found
            in the two folders by their name, else where the list says.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        DataError: See ``ImageTextDataset``; another layout.
    """

    def load_data_list(self):
        """Returns:
            list[dict]: ``image_id``, ``img_path`` and ``caption``, or ``gt_caption``.
        """
        content, images = read_json(self.ann_file), GenomeImages(self.data_prefix['img_path'])
        if are_objects(content, 'image'):
            named = [(image.image_id, images.find(image.image), image.captions)
                     for image in read_captions(self.ann_file, self.data_prefix['img_path'])]
        elif are_objects(content, 'regions') and all(
                are_objects(item['regions'], 'image_id', 'phrase') for item in content):
            named = []
            for item in content:
                check_ids(self.ann_file, item['regions'], 'image_id')
                if item['regions']:
                    image_id = item['regions'][0]['image_id']
                    named.append((image_id, images.path(image_id), [region['phrase'] for region in item['regions']]))
        else:
            raise wrong_layout(self.ann_file, content, [
                'the official layout [{"id", "regions": [{"image_id", "phrase"}, ...]}, ...]',
                'the list of LAVIS [{"image", "caption"}, ...]'])
        if self.test_mode:
            return [dict(image_id=image_id, img_path=path, gt_caption=phrases) for image_id, path, phrases in named]
        return [dict(image_id=image_id, img_path=path, caption=phrase) for image_id, path, phrases in named
                for phrase in phrases]


@DATASETS.register_module()
class NoCaps(COCOCaption):
    """NoCaps (Agrawal et al. 2019): novel objects, ten captions an image; val and, without captions, test.

    Args:
        ann_file (str): ``nocaps_val_4500_captions.json`` or ``nocaps_test_image_info.json``, in the COCO layout.
        domain (str, optional): Only the images of one domain, 'in-domain', 'near-domain' or 'out-domain'. Its CIDEr
            weights words by the captions of that domain alone; the published numbers come from the server.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        ConfigError: ``domain`` is another one, or the file has none.
        DataError: See ``COCOCaption``.
    """

    def __init__(self, ann_file, domain=None, **kwargs):
        if domain not in (None, *_DOMAINS):
            raise ConfigError(f'domain of NoCaps is {domain!r}, expected one of {", ".join(_DOMAINS)}')
        self.domain = domain
        super().__init__(ann_file, **kwargs)

    def read_images(self):
        images = super().read_images()
        if self.domain is None:
            return images
        content = read_json(self.ann_file)
        domains = {image['id']: image.get('domain') for image in content['images']} if isinstance(content, dict) else {}
        if not any(domains.values()):
            raise ConfigError(f'{self.ann_file} says nothing of domains: leave domain={self.domain!r} out')
        return [image for image in images if domains[image.image_id] == self.domain]
