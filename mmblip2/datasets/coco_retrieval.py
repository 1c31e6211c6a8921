"""Images and all their captions, for contrastive training and for retrieval in both directions."""
from mmengine.dataset import force_full_init

from mmblip2.errors import DataError
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .caption_file import draw_caption, read_captions, training_rows
from .transforms.text import CleanCaption


class TextGallery(ImageTextDataset):
    """Base of data sets whose rows in test mode have ``texts``: all texts together. Arguments: its base's."""

    _gallery_cache: tuple[list[str], list[int]] | None = None

    @property
    def texts(self):
        """list[str]: All captions, image by image, cleaned as the pipeline cleans them; (T,)."""
        return self._gallery()[0]

    @property
    def text_to_image(self):
        """list[int]: For each of ``texts`` the index of the row of its image; (T,)."""
        return self._gallery()[1]

    @force_full_init
    def _gallery(self):
        if not self.test_mode:
            raise DataError(f'{type(self).__name__} has a gallery of texts in test mode only: set test_mode=True')
        if self._gallery_cache is None:
            cleaners = [step for step in self.pipeline.transforms if isinstance(step, CleanCaption)]
            texts: list[str] = []
            owners: list[int] = []
            for index in range(len(self)):
                row = dict(texts=self.get_data_info(index)['texts'])
                for clean in cleaners:
                    row = clean(row)
                texts += row['texts']
                owners += [index] * len(row['texts'])
            self._gallery_cache = texts, owners
        return self._gallery_cache

    def get_subset_(self, indices):
        """Keep only ``indices`` (mmengine's method; the gallery follows)."""
        self._gallery_cache = None
        super().get_subset_(indices)

    def get_subset(self, indices):
        """A data set of ``indices`` only (mmengine's method; the gallery follows)."""
        subset = super().get_subset(indices)
        subset._gallery_cache = None
        return subset


@DATASETS.register_module()
class COCORetrieval(TextGallery):
    """Images and their captions, any number for each image; file layouts and ids as in ``COCOCaption``.

    Training rows: one a caption, with ``text`` (str). Test mode: one row an image with ``texts`` (list[str]).

    Args:
        ann_file (str): Caption file, see ``COCOCaption``.
        split (str, optional): 'train', 'val' or 'test' of a file of Karpathy.
        draw_caption (bool): Training rows are one an image instead, and each draw takes one of its captions: an epoch
            shows every image once.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        DataError: See ``ImageTextDataset`` and ``read_captions``.
    """

    def __init__(self, ann_file, split=None, draw_caption=False, **kwargs):
        self.split = split
        self.draw_caption = draw_caption
        super().__init__(ann_file=ann_file, **kwargs)

    def draw(self, results, rng):
        """Draw one of the captions of a training row that has them all."""
        return draw_caption(results, rng, 'text')

    def load_data_list(self):
        """Returns:
            list[dict]: ``image_id``, ``img_path`` and ``text`` (``captions`` to draw from), or ``texts``.
        """
        images = read_captions(self.ann_file, self.data_prefix['img_path'], split=self.split)
        if not self.test_mode:
            return training_rows(images, self.image_path, self.draw_caption, 'text')
        without = sum(not image.captions for image in images)
        if without:
            self._warn(f'{without} of {len(images)} images have no caption: left out of the gallery')
        return [dict(image_id=image.image_id, img_path=self.image_path(image.image), texts=image.captions)
                for image in images if image.captions]


@DATASETS.register_module()
class Flickr30kRetrieval(COCORetrieval):
    """Flickr30k's images and captions (Young et al. 2014): Karpathy's ``dataset_flickr30k.json`` with ``split``, or
    LAVIS's lists."""
