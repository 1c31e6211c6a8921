"""What BLIP-2's stage 1 and BLIP's pre-training share, and with them retrieval: ITC, ITM, and a text that is written.

Shapes: B images, M of them matched, W processes, G = W*B, T text tokens, N texts or pairs, C contrastive width.
"""
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from mmblip2.errors import ConfigError
from mmblip2.utils.dist import exchange_rows, gather, share_of_global, world

from ..losses import NO_ID, same_image, sample_hard_negatives, token_loss, uniforms
from ..tokenizers import TextBatch
from .base import EncodedImages, VisionLanguageModel, concat_kv, select_kv


class Representation(VisionLanguageModel):
    """Base of the models that compare images and texts.

    A subclass has ``tokenizer``, ``max_text_len``, ``label_smoothing``, ``negative_seed``, ``itc_head``, ``itm_head``
    and a buffer ``num_steps``, and defines ``loss``, :meth:`image_features`, :meth:`_start` and :meth:`_finish`.
    """

    #: whether a token's loss is divided by the tokens of all processes
    global_token_mean = True
    tokenizer: Any
    max_text_len: int
    label_smoothing: float
    negative_seed: int
    num_steps: torch.Tensor

    def tokenize(self, texts: list[str], device=None) -> TextBatch:
        """Token ids of texts, at most ``max_text_len`` long."""
        return self.tokenizer(texts, self.max_text_len, device)

    def predict(self, images, data_samples):
        """Not a mode of these models: retrieval is scored by the retrieval loop."""
        raise ConfigError(f'{type(self).__name__} is evaluated by the retrieval loop: set val_cfg/test_cfg to '
                          "dict(type='RetrievalValLoop' or 'RetrievalTestLoop')")

    def image_features(self, encoded: EncodedImages) -> torch.Tensor:
        """Contrastive features (B, Q, C) of encoded images, float32, normalised; Q is 1 in BLIP."""
        raise NotImplementedError

    @torch.no_grad()
    def text_features(self, text: TextBatch) -> torch.Tensor:
        """Contrastive features (N, C) of texts, float32, normalised."""
        return self.itc_head.text_features(self.reader.forward_text(*text))

    def _start(self, text: TextBatch) -> tuple[torch.Tensor, ...]:
        """:meth:`start_text`, with gradients."""
        raise NotImplementedError

    def _finish(self, image_kv, started: tuple[torch.Tensor, ...],
                text_mask: torch.Tensor | None = None) -> torch.Tensor:
        """:meth:`match_started`, with gradients."""
        raise NotImplementedError

    @torch.no_grad()
    def start_text(self, text: TextBatch) -> tuple[torch.Tensor, ...]:
        """What of :meth:`match_logits` does not depend on the image.

        Args:
            text: N texts.

        Returns:
            tuple: Tensors of N rows; the last one has T rows of each text (N, T, D).
        """
        return self._start(text)

    @torch.no_grad()
    def match_started(self, image_kv, started: tuple[torch.Tensor, ...],
                      text_mask: torch.Tensor | None = None) -> torch.Tensor:
        """ITM logits, from what :meth:`start_text` gave.

        Args:
            image_kv: Keys and values of N images, or of one image for all N texts.
            started: Of :meth:`start_text`.
            text_mask: (N, T), nonzero at real tokens; None: all are.

        Returns:
            torch.Tensor: float32 (N, 2); class 1 is 'matches'.
        """
        return self._finish(image_kv, started, text_mask)

    @torch.no_grad()
    def match_logits(self, image_kv, text: TextBatch) -> torch.Tensor:
        """ITM logits.

        Args:
            image_kv: Keys and values of N images, or of one image for all N texts.
            text: N texts.

        Returns:
            torch.Tensor: float32 (N, 2); class 1 is 'matches'.
        """
        return self._finish(image_kv, self._start(text), text.mask)

    def score_pairs(self, image_kv, text: TextBatch) -> torch.Tensor:
        """ITM logit of 'matches', float32 (N,); arguments as of :meth:`match_logits`."""
        return self.match_logits(image_kv, text)[:, 1]

    @staticmethod
    def _image_ids(data_samples: Sequence, device) -> torch.Tensor:
        """int64 (B,), the same on every process for the same image; ``NO_ID`` where there is no ``image_id``.

        An id counts within its folder of images: of data sets that are mixed each may have an image 17.
        """
        return torch.tensor([_stable_id(sample.get('image_id'), sample.get('img_path')) for sample in data_samples],
                            device=device)

    def _positives(self, data_samples: Sequence, device) -> torch.Tensor:
        """bool (B, G): which rows of all processes show the same image."""
        ids = self._image_ids(data_samples, device)
        return same_image(ids, gather(ids), own_rows(len(ids), device))

    def _loss_itm(self, encoded: EncodedImages, text: TextBatch, i2t, t2i, positives, floor: float = 0.,
                  match_rows: int | None = None) -> dict:
        """Match or not: M true pairs, M texts with a wrong image, M images with a wrong text; M is B or less.

        Args:
            encoded: B images.
            text: B texts.
            i2t, t2i: Logits (B, G), from which wrong ones of all processes are drawn; (B, B): of this process only.
            positives: bool, of this shape.
            floor: See ``sample_hard_negatives``.
            match_rows: The first so many pairs are matched; the wrong ones are drawn from all.
        """
        rank, size = world()
        own_only = positives.size(1) == len(text.mask) or size == 1
        rows = min(match_rows or len(text.mask), len(text.mask))
        i2t, t2i, positives = i2t[:rows], t2i[:rows], positives[:rows]
        draws = uniforms(self.negative_seed, int(self.num_steps), 2 * rank * rows, 2 * rows)
        image_index, image_valid = sample_hard_negatives(t2i, ~positives, draws[0::2], floor)
        text_index, text_valid = sample_hard_negatives(i2t, ~positives, draws[1::2], floor)
        if own_only:
            wrong_kv = select_kv(encoded.image_kv, image_index)
            wrong_text = text.rows(text_index)
        else:  # the chosen patches travel, with their gradient
            wrong_kv = self.project_image(exchange_rows(encoded.patches, image_index))
            text = _pad_to_longest(text, self.tokenizer.pad_id)
            wrong_text = TextBatch(gather(text.input_ids), gather(text.mask)).rows(text_index)
        right, right_kv = text.rows(slice(rows)), select_kv(encoded.image_kv, slice(rows))
        image_kv = concat_kv([right_kv, wrong_kv, right_kv])
        pairs = TextBatch(torch.cat([right.input_ids, right.input_ids, wrong_text.input_ids]),  # (3M, T)
                          torch.cat([right.mask, right.mask, wrong_text.mask]))
        logits = self._finish(image_kv, self._start(pairs), pairs.mask)  # (3M, 2)
        labels = torch.zeros(3 * rows, dtype=torch.int64, device=logits.device)
        labels[:rows] = 1
        valid = torch.cat([torch.ones_like(image_valid), image_valid, text_valid])
        per_row = F.cross_entropy(logits, labels, reduction='none') * valid
        correct = (logits.argmax(dim=1) == labels) & valid
        return dict(
            loss_itm=share_of_global(per_row.sum(), valid.sum()),
            acc_itm=correct.sum() / valid.sum(),
            itm_dropped=(~valid).sum().float())

    def _loss_of_written(self, text: TextBatch, feats: torch.Tensor, head) -> torch.Tensor:
        """Mean loss over the tokens of text that begins with [DEC], from the features (B, T, D) of an ``LMHead``."""
        labels = text.input_ids.masked_fill(text.mask == 0, -100)
        logits = head(feats, self.reader.word_embeddings.weight)  # (B, T, V)
        total, count = token_loss(logits, labels, self.label_smoothing)
        return share_of_global(total, count) if self.global_token_mean else total / count


def own_rows(rows: int, device) -> torch.Tensor:
    """int64 (B,): the places of this process's rows among those of all."""
    return world()[0] * rows + torch.arange(rows, device=device)


def _stable_id(image_id, path) -> int:
    """An int64 that is the same on every process (Python's ``hash`` of a string is not)."""
    if image_id is None:
        return NO_ID
    if path is None and isinstance(image_id, int):
        return image_id
    named = f'{image_id}' if path is None else f'{os.path.dirname(str(path))}\n{image_id}'
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], 'little', signed=True)


def _pad_to_longest(text: TextBatch, pad_id: int) -> TextBatch:
    """Pad to the longest text of all processes."""
    longest = int(gather(torch.tensor([text.mask.size(1)], device=text.mask.device)).max())
    extra = longest - text.mask.size(1)
    return TextBatch(F.pad(text.input_ids, (0, extra), value=pad_id), F.pad(text.mask, (0, extra)))
