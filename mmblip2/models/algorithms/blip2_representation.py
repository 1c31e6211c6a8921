"""BLIP-2 stage 1 and image-text retrieval (section 3.2).

Shapes: B images, W processes, G = W*B, Q queries, T text tokens, D Q-Former width, C contrastive width.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.utils.dist import gather, share_of_global, world

from ..heads import ITCHead, ITMHead, LMHead
from ..losses import contrastive_loss, query_text_similarity, sample_hard_negatives, token_loss, uniforms
from ..qformer import QFormer
from ..tokenizers import TextBatch
from .base import EncodedImages, VisionLanguageModel, check_text_fits, concat_kv, select_kv


@MODELS.register_module()
class Blip2Representation(VisionLanguageModel):
    """Vision-language representation learning with ITC, ITM and ITG.

    Differs from LAVIS: contrastive negatives of other processes carry gradients (``gather_grad``), token losses
    divide by the tokens of all processes (``global_token_mean``), text is padded to the longest of the batch, and
    an image's cross-attention keys and values are computed once for its three uses.

    Args:
        vision (nn.Module): Encoder, images to tokens (B, P, E), with ``embed_dim``.
        qformer (nn.Module): A ``QFormer`` with its text half.
        tokenizer (BertTokenizer): Its tokenizer.
        embed_dim (int): Contrastive width C.
        temperature (float): Initial temperature.
        max_text_len (int): Longest text in tokens.
        label_smoothing (float): Of ITC and ITG.
        gather_grad (bool): Whether negatives of other processes carry gradients; False as LAVIS.
        global_token_mean (bool): Divide ITG by the tokens of all processes; False by the own ones, as LAVIS.
        negative_seed (int): Seed of the hard-negative draws.
        vision_norm_eps (float): Epsilon of the norm after the encoder (1e-5 LAVIS, 1e-6 Hugging Face).
        frozen (Sequence[str]): Parts that are not trained, of 'vision', 'qformer'.
        allow_random (bool): Accept frozen parts with random weights.
        vision_cache_gib (float): See ``VisionLanguageModel``.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: If tokenizer and Q-Former do not fit.
    """

    qformer: QFormer

    def __init__(self, vision: nn.Module, qformer: QFormer, tokenizer, embed_dim: int = 256,
                 temperature: float = 0.07, max_text_len: int = 32, label_smoothing: float = 0.1,
                 gather_grad: bool = True, global_token_mean: bool = True, negative_seed: int = 0,
                 vision_norm_eps: float = 1e-5, frozen: Sequence[str] = ('vision', ), allow_random: bool = False,
                 vision_cache_gib: float = 0., data_preprocessor: dict | None = None):
        if qformer.vocab_size is None:
            raise ConfigError('Blip2Representation needs a Q-Former with a text half: set qformer.vocab_size')
        check_text_fits(qformer, tokenizer, max_text_len)
        super().__init__(dict(vision=vision, qformer=qformer), 'qformer', frozen, allow_random, vision_cache_gib,
                         data_preprocessor)
        self.tokenizer = tokenizer
        self.vision_norm = nn.LayerNorm(self.vision.embed_dim, vision_norm_eps)
        self.itc_head = ITCHead(qformer.width, embed_dim, temperature)
        self.itm_head = ITMHead(qformer.width)
        self.itg_head = LMHead(qformer.width, qformer.vocab_size)
        self.max_text_len = max_text_len
        self.label_smoothing = label_smoothing
        self.gather_grad = gather_grad
        self.global_token_mean = global_token_mean
        self.negative_seed = negative_seed
        self.register_buffer('num_steps', torch.zeros((), dtype=torch.int64))

    def tokenize(self, texts: list[str], device=None) -> TextBatch:
        """Token ids of texts, at most ``max_text_len`` long."""
        return self.tokenizer(texts, self.max_text_len, device)

    def loss(self, images: torch.Tensor, data_samples: Sequence) -> dict:
        """Losses of stage 1.

        Args:
            images: float (B, 3, H, W).
            data_samples: With ``text``; where they have ``image_id``, rows of one id are positives of one another.

        Returns:
            dict: loss_itc, loss_itm, loss_itg and the statistics acc_itm, temperature, itm_dropped (rows without
            any valid negative).
        """
        encoded = self.encode_image(images, data_samples)
        text = self.tokenize([sample.text for sample in data_samples], images.device)
        query_feats, query_cache = self.qformer.forward_queries(encoded.image_kv)

        # ITC: every image against every text of all processes
        image_feats = self.itc_head.image_features(query_feats)  # (B, Q, C)
        text_feats = self.itc_head.text_features(self.qformer.forward_text(*text))  # (B, C)
        i2t = query_text_similarity(image_feats, gather(text_feats, self.gather_grad))
        t2i = query_text_similarity(gather(image_feats, self.gather_grad), text_feats).T
        i2t, t2i = i2t / self.itc_head.temperature, t2i / self.itc_head.temperature  # (B, G)
        positives = self._positives(data_samples, images.device)
        loss_itc = (contrastive_loss(i2t, positives, self.label_smoothing)
                    + contrastive_loss(t2i, positives, self.label_smoothing)) / 2

        losses = dict(loss_itc=loss_itc)
        losses.update(self._loss_itm(encoded, text, i2t, t2i, positives))
        losses['loss_itg'] = self._loss_itg(text, query_cache)
        losses['temperature'] = self.itc_head.temperature.detach()
        if self.training:
            self.num_steps += 1
        return losses

    def _positives(self, data_samples, device) -> torch.Tensor:
        """bool (B, G): which rows of all processes show the same image."""
        rank, size = world()
        rows = len(data_samples)
        own = torch.arange(rank * rows, (rank + 1) * rows, device=device)
        diagonal = own[:, None] == torch.arange(size * rows, device=device)
        ids = [sample.get('image_id') for sample in data_samples]
        if any(image_id is None for image_id in ids):
            ids = list(range(rank * rows, (rank + 1) * rows))
        hashes = torch.tensor([_stable_hash(image_id) for image_id in ids], device=device)
        return diagonal | (hashes[:, None] == gather(hashes))

    def _loss_itm(self, encoded: EncodedImages, text: TextBatch, i2t, t2i, positives) -> dict:
        """Match or not: B true pairs, B texts with a wrong image, B images with a wrong text."""
        rank, size = world()
        rows = len(i2t)
        draws = uniforms(self.negative_seed, int(self.num_steps), 2 * rank * rows, 2 * rows)
        image_index, image_valid = sample_hard_negatives(t2i, ~positives, draws[0::2])
        text_index, text_valid = sample_hard_negatives(i2t, ~positives, draws[1::2])
        if size == 1:
            wrong_kv = select_kv(encoded.image_kv, image_index)
            wrong_text = text.rows(text_index)
        else:  # patches travel with their gradient, then only the chosen rows are projected
            wrong_kv = self.qformer.project_image(gather(encoded.patches, with_gradient=True)[image_index])
            text = _pad_to_longest(text, self.tokenizer.pad_id)
            wrong_text = TextBatch(gather(text.input_ids), gather(text.mask)).rows(text_index)
        image_kv = concat_kv([encoded.image_kv, wrong_kv, encoded.image_kv])
        input_ids = torch.cat([text.input_ids, text.input_ids, wrong_text.input_ids])  # (3B, T)
        mask = torch.cat([text.mask, text.mask, wrong_text.mask])
        logits = self.itm_head(self.qformer.forward_joint(image_kv, input_ids, mask)).float()  # (3B, 2)
        labels = torch.zeros(3 * rows, dtype=torch.int64, device=logits.device)
        labels[:rows] = 1
        valid = torch.cat([torch.ones_like(image_valid), image_valid, text_valid])
        per_row = F.cross_entropy(logits, labels, reduction='none') * valid
        correct = (logits.argmax(dim=1) == labels) & valid
        return dict(
            loss_itm=share_of_global(per_row.sum(), valid.sum()),
            acc_itm=correct.sum() / valid.sum(),
            itm_dropped=(~valid).sum().float())

    def _loss_itg(self, text: TextBatch, query_cache) -> torch.Tensor:
        """Write the text from the queries; [DEC] takes the place of [CLS]."""
        input_ids = text.input_ids.clone()
        input_ids[:, 0] = self.tokenizer.dec_id
        labels = input_ids.masked_fill(text.mask == 0, -100)
        feats = self.qformer.forward_causal(input_ids, text.mask, query_cache)
        logits = self.itg_head(feats, self.qformer.word_embeddings.weight)  # (B, T, V)
        total, count = token_loss(logits, labels, self.label_smoothing)
        return share_of_global(total, count) if self.global_token_mean else total / count

    def predict(self, images, data_samples):
        """Not a mode of this model: retrieval is scored by the retrieval loop."""
        raise ConfigError('Blip2Representation is evaluated by the retrieval loop: set val_cfg/test_cfg to '
                          "dict(type='RetrievalValLoop' or 'RetrievalTestLoop')")

    @torch.no_grad()
    def image_features(self, encoded: EncodedImages) -> torch.Tensor:
        """Contrastive features (B, Q, C) of encoded images, float32, normalised."""
        return self.itc_head.image_features(self.qformer.forward_queries(encoded.image_kv)[0])

    @torch.no_grad()
    def text_features(self, text: TextBatch) -> torch.Tensor:
        """Contrastive features (N, C) of texts, float32, normalised."""
        return self.itc_head.text_features(self.qformer.forward_text(*text))

    @torch.no_grad()
    def match_logits(self, image_kv, text: TextBatch) -> torch.Tensor:
        """ITM logits.

        Args:
            image_kv: Keys and values of N images, or of one image for all N texts.
            text: N texts.

        Returns:
            torch.Tensor: float32 (N, 2); class 1 is 'matches'.
        """
        queries, rows = self.start_text(text)
        return self.match_started(image_kv, queries, rows, text.mask)

    def score_pairs(self, image_kv, text: TextBatch) -> torch.Tensor:
        """ITM logit of 'matches', float32 (N,); arguments as of :meth:`match_logits`."""
        return self.match_logits(image_kv, text)[:, 1]

    @torch.no_grad()
    def start_text(self, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """What of :meth:`match_logits` does not depend on the image: queries (N, Q, D) and text (N, T, D)."""
        return self.qformer.start_joint(*text)

    @torch.no_grad()
    def match_started(self, image_kv, queries: torch.Tensor, text: torch.Tensor,
                      text_mask: torch.Tensor | None = None) -> torch.Tensor:
        """ITM logits, from what :meth:`start_text` gave.

        Args:
            image_kv: Keys and values of N images, or of one image for all N texts.
            queries: (N, Q, D).
            text: (N, T, D).
            text_mask: (N, T), nonzero at real tokens; None: all are.

        Returns:
            torch.Tensor: float32 (N, 2); class 1 is 'matches'.
        """
        return self.itm_head(self.qformer.finish_joint(image_kv, queries, text, text_mask)).float()


def _stable_hash(image_id) -> int:
    """An int64 that is the same on every process (Python's ``hash`` of a string is not)."""
    if isinstance(image_id, int):
        return image_id
    import hashlib
    return int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:8], 'little', signed=True)


def _pad_to_longest(text: TextBatch, pad_id: int) -> TextBatch:
    """Pad to the longest text of all processes."""
    longest = int(gather(torch.tensor([text.mask.size(1)], device=text.mask.device)).max())
    extra = longest - text.mask.size(1)
    return TextBatch(F.pad(text.input_ids, (0, extra), value=pad_id), F.pad(text.mask, (0, extra)))
