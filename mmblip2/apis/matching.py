"""Whether a text belongs to an image."""
import torch

from mmblip2.models.losses import query_text_similarity

from .base import BaseInferencer
from .retrieval import pair_logits
from .texts import distinct_images, image_steps, needs_representation, pair_up, tokenize


class ImageTextMatchingInferencer(BaseInferencer):
    """ITM probability and ITC cosine of pairs of an image and a text (BLIP-2, section 3.2).

    Args:
        model (str | Path | Config | nn.Module): See ``BaseInferencer``.
        pretrained, device, **kwargs: See ``BaseInferencer``.

    Raises:
        ConfigError: A model without ITC and ITM heads.

    Example:
        >>> ImageTextMatchingInferencer(model)('circle.png', ['a red circle', 'two stars'])
        [{'itm_score': 0.98, 'itc_score': 0.44}, {'itm_score': 0.01, 'itc_score': 0.21}]
    """

    def __init__(self, model, pretrained: bool | str | None = True, device: str | None = None, **kwargs):
        super().__init__(model, pretrained, device, **kwargs)
        needs_representation(self)

    def __call__(self, images, texts, batch_size: int = 32, **kwargs) -> list[dict[str, float]]:
        """Compare.

        Args:
            images: An image, or several: see ``mmblip2.apis.images.iterate_images``.
            texts (str | Iterable[str]): As many texts as images; or one text, for all images; or one image and any
                number of texts. Texts longer than ``model.max_text_len`` tokens are cut there, as in training, with a
                warning.
            batch_size: Pairs that are scored together.
            **kwargs: ``show``, ``show_dir``, ``wait_time``, ``resize``, ``progress``: see ``BaseInferencer``.

        Returns:
            list: For each pair ``itm_score``, the probability (0 to 1) that they match, by the matching head, and
            ``itc_score``, the cosine (-1 to 1) of the text and the query of the image that fits it best; the names
            that LAVIS gives them. Retrieval's ``match_score`` is the logit of class 'matches' + ``itc_score``.

        Raises:
            DataError: An image cannot be read, a text is empty, or their numbers differ.
        """
        found, rows, total = pair_up(self, images, texts)
        tokens = tokenize(self, found)
        last: list = []  # the image that was encoded last, and its encoding

        def predict(batch):
            pixels, image_index = distinct_images(batch)
            if not (last and len(pixels) == 1 and last[0] is pixels[0]['image']):
                encoded = self.model.encode_image(self.prepare(pixels, image_steps(self))['images'])
                last[:] = pixels[-1]['image'], encoded, self.model.image_features(encoded)
            _, encoded, image_feats = last
            text_index = torch.tensor([row['text_index'] for row in batch])
            wanted, text_place = text_index.unique(return_inverse=True)
            text_feats = self.model.text_features(tokens.rows(wanted).trimmed(self.device))
            with torch.autocast(self.device.type, enabled=False):
                itc = query_text_similarity(image_feats, text_feats).cpu()[image_index, text_place]
            logits = pair_logits(self.model, lambda index: encoded.rows(index.to(self.device)).image_kv, tokens,
                                 image_index, text_index, batch_size)
            return [dict(itm_score=itm, itc_score=cosine)
                    for itm, cosine in zip(logits.softmax(dim=1)[:, 1].tolist(), itc.tolist())]

        return self.run(rows, predict, total, batch_size, **kwargs)

    def picture(self, row, result, resize=None, **drawing):
        """The image, and below it the text and the scores."""
        return super().picture(row, dict(text=row['text'], **{key: f'{value:.3f}' for key, value in result.items()}),
                               resize)
