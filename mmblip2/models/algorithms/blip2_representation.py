"""BLIP-2 stage 1 and image-text retrieval (section 3.2).

Shapes: B images, W processes, G = W*B, N texts or pairs, Q queries, T text tokens, D Q-Former width, C contrastive
width.
"""
from collections.abc import Sequence

import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.utils.dist import gather

from ..heads import ITCHead, ITMHead, LMHead
from ..losses import contrastive_loss, query_text_similarity
from ..qformer import QFormer
from ..tokenizers import TextBatch
from .base import EncodedImages, check_text_fits, select_kv, single_text
from .representation import Representation


@MODELS.register_module()
class Blip2Representation(Representation):
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
        loss_weights (dict, optional): Factors of 'itc', 'itm' and 'itg', 1 where not given. With 0 a loss is not
            computed, and what only it trains has no gradient.
        match_rows (int, optional): ITM and ITG take the first so many pairs of each process's batch, with negatives
            from all of it: ITC profits from a large batch, and is the cheap part. Default: all.
        itc_dropout (float): In training, of the features that ITC projects: against overfitting on few images.
        vision_norm_eps (float): Epsilon of the norm after the encoder (1e-5 LAVIS, 1e-6 Hugging Face).
        frozen (Sequence[str]): Parts that are not trained, of 'vision', 'qformer'.
        allow_random (bool): Accept frozen parts with random weights.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: If tokenizer and Q-Former do not fit, or ``loss_weights``, ``match_rows`` or ``itc_dropout`` are
            no such values.
    """

    qformer: QFormer

    def __init__(self, vision: nn.Module, qformer: QFormer, tokenizer, embed_dim: int = 256,
                 temperature: float = 0.07, max_text_len: int = 32, label_smoothing: float = 0.1,
                 gather_grad: bool = True, global_token_mean: bool = True, negative_seed: int = 0,
                 loss_weights: dict | None = None, match_rows: int | None = None, itc_dropout: float = 0.,
                 vision_norm_eps: float = 1e-5, frozen: Sequence[str] = ('vision', ), allow_random: bool = False,
                 data_preprocessor: dict | None = None):
        if qformer.vocab_size is None:
            raise ConfigError('Blip2Representation needs a Q-Former with a text half: set qformer.vocab_size')
        check_text_fits(qformer, tokenizer, max_text_len)
        super().__init__(dict(vision=vision, qformer=qformer), 'qformer', frozen, allow_random, data_preprocessor)
        self.tokenizer = tokenizer
        self.vision_norm = nn.LayerNorm(self.vision.embed_dim, vision_norm_eps)
        self.itc_head = ITCHead(qformer.width, embed_dim, temperature, dropout=itc_dropout)
        self.itm_head = ITMHead(qformer.width)
        self.itg_head = LMHead(qformer.width, qformer.vocab_size)
        self.max_text_len = max_text_len
        self.label_smoothing = label_smoothing
        self.gather_grad = gather_grad
        self.global_token_mean = global_token_mean
        self.negative_seed = negative_seed
        self.loss_weights = _check_weights(loss_weights or {})
        if match_rows is not None and (not isinstance(match_rows, int) or match_rows < 1):
            raise ConfigError(f'match_rows is {match_rows!r}, expected a positive whole number of pairs, or None for '
                              'the whole batch')
        self.match_rows = match_rows
        self.register_buffer('num_steps', torch.zeros((), dtype=torch.int64))

    def loss(self, images: torch.Tensor, data_samples: Sequence) -> dict:
        """Losses of stage 1.

        Args:
            images: float (B, 3, H, W).
            data_samples: With ``text``; where they have ``image_id``, rows of one id in one folder of images are
                positives of one another.

        Returns:
            dict: loss_itc, loss_itm, loss_itg, those whose weight is 0 left out, and the statistics acc_itm,
            itm_dropped (rows without any valid negative), temperature.
        """
        encoded = self.encode_image(images)
        text = self.tokenize([single_text(sample, 'text') for sample in data_samples], images.device)
        query_feats, query_cache = self.qformer.forward_queries(encoded.image_kv)

        # ITC: every image against every text of all processes
        image_feats = self.itc_head.image_features(query_feats)  # (B, Q, C)
        text_feats = self.itc_head.text_features(self.qformer.forward_text(*text))  # (B, C)
        i2t = query_text_similarity(image_feats, gather(text_feats, self.gather_grad))
        t2i = query_text_similarity(gather(image_feats, self.gather_grad), text_feats).T
        i2t, t2i = i2t / self.itc_head.temperature, t2i / self.itc_head.temperature  # (B, G)
        positives = self._positives(data_samples, images.device)

        losses = {}
        if self.loss_weights['itc']:
            losses['loss_itc'] = (contrastive_loss(i2t, positives, self.label_smoothing)
                                  + contrastive_loss(t2i, positives, self.label_smoothing)) / 2
        rows = slice(self.match_rows)
        if self.loss_weights['itm']:
            losses.update(self._loss_itm(encoded, text, i2t, t2i, positives, match_rows=self.match_rows))
        if self.loss_weights['itg']:
            losses['loss_itg'] = self._loss_itg(text.rows(rows), select_kv(query_cache, rows))
        for name, weight in self.loss_weights.items():
            if weight:
                losses[f'loss_{name}'] = weight * losses[f'loss_{name}']
        losses['temperature'] = self.itc_head.temperature.detach()
        if self.training:
            self.num_steps += 1
        return losses

    def _loss_itg(self, text: TextBatch, query_cache) -> torch.Tensor:
        """Write the text from the queries; [DEC] takes the place of [CLS]."""
        text = text.begin_with(self.tokenizer.dec_id)
        return self._loss_of_written(text, self.qformer.forward_causal(*text, query_cache), self.itg_head)

    @torch.no_grad()
    def image_features(self, encoded: EncodedImages) -> torch.Tensor:
        """Contrastive features (B, Q, C) of encoded images, float32, normalised."""
        return self.itc_head.image_features(self.qformer.forward_queries(encoded.image_kv)[0])

    def _start(self, text: TextBatch) -> tuple[torch.Tensor, ...]:
        """Queries (N, Q, D) and text (N, T, D)."""
        return self.qformer.start_joint(*text)

    def _finish(self, image_kv, started: tuple[torch.Tensor, ...],
                text_mask: torch.Tensor | None = None) -> torch.Tensor:
        queries, text = started
        return self.itm_head(self.qformer.finish_joint(image_kv, queries, text, text_mask)).float()


def _check_weights(given: dict) -> dict[str, float]:
    """Weights of all losses.

    Raises:
        ConfigError: A name or value is wrong, or all are 0.
    """
    weights = {'itc': 1., 'itm': 1., 'itg': 1., **given}
    if len(weights) > 3 or not all(isinstance(value, (int, float)) and value >= 0 for value in weights.values()) \
            or not any(weights.values()):
        raise ConfigError(f'loss_weights is {dict(given)}: expected numbers from 0 on for itc, itm and itg, not all 0')
    return weights
