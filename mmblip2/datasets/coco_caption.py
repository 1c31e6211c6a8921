"""Image captions, for training a caption model or either stage, and for evaluating captions."""
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .caption_file import read_captions


@DATASETS.register_module()
class COCOCaption(ImageTextDataset):
    """Captions in the official COCO layout or in LAVIS's lists, recognised from the content of ``ann_file``.

    Training rows: one a caption, with ``caption`` (str). Test mode: one row an image with ``gt_caption``
    (list[str], empty when the file lists images only). LAVIS's ids ``"coco_391895"`` become 391895, and ids
    absent from a list come from the file name, so that they match COCO's official ground truth; any other id
    stays as written.

    Args:
        ann_file (str): ``{"images": [...], "annotations": [...]}`` or ``[{"image", "caption", "image_id"}]``.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        DataError: See ``ImageTextDataset`` and ``read_captions``.
    """

    def load_data_list(self):
        """Returns:
            list[dict]: ``image_id``, ``img_path`` and ``caption`` or ``gt_caption``.
        """
        images = read_captions(self.ann_file, self.data_prefix['img_path'],
                               captions_required=not self.test_mode)
        if not self.test_mode:
            return [dict(image_id=image.image_id, img_path=self.image_path(image.image), caption=caption)
                    for image in images for caption in image.captions]
        return [dict(image_id=image.image_id, img_path=self.image_path(image.image),
                     gt_caption=image.captions) for image in self._with_captions(images)]

    def _with_captions(self, images):
        """Leave out images without references where others have some: they cannot be scored."""
        captioned = [image for image in images if image.captions]
        if not captioned or len(captioned) == len(images):
            return images
        self._warn(f'{len(images) - len(captioned)} of {len(images)} images have no caption: left out')
        return captioned
