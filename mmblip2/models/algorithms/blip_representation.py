"""BLIP's pre-training, and image-text retrieval (BLIP, sections 3.1, 3.2 and 5.1).

Shapes: B images, W processes, G = W*B, K columns of a queue, P patches, E vision width, N texts, T text tokens, D MED
width, C contrastive width.
"""
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.utils.dist import gather, world

from ..heads import QUEUES, ITCHead, ITMHead, LMHead, MomentumCopies, advance, check_queue, project, random_queue
from ..losses import NO_ID, momentum_targets, same_image, soft_cross_entropy
from ..med import MED
from ..tokenizers import TextBatch
from .base import EncodedImages, check_text_fits, single_text
from .representation import Representation, own_rows

_TEMPERATURES = 0.001, 0.5


class _Keys(NamedTuple):
    """What ITC compares with: momentum features of images and texts, and the images' ids; the last dimension counts."""
    images: torch.Tensor
    texts: torch.Tensor
    ids: torch.Tensor


@MODELS.register_module()
class BlipRepresentation(Representation):
    """Vision-language representation learning with ITC against momentum encoders and queues, ITM, and LM.

    With ``text_decoder`` this is BLIP's pre-training, without it retrieval: fine-tuning and evaluation.

    Differs from the original: rows of one ``image_id`` are positives of one another wherever samples have it, the
    current batch of all processes stands in front of the queue (there: of the own process), hard negatives are always
    drawn by the similarity with momentum features (there in pre-training only), LM divides by the tokens of all
    processes, and text is padded to the longest of the batch.

    Args:
        vision (nn.Module): Encoder, images to tokens (B, P, E), the class token first, with ``embed_dim``; it has its
            final norm inside.
        text_encoder (MED): Reads texts alone and texts beside an image.
        tokenizer (BertTokenizer): Its tokenizer, with ``enc_token``.
        text_decoder (MED, optional): Writes texts; it shares everything but the self-attention with the encoder.
        embed_dim (int): Contrastive width C.
        temperature (float): Initial temperature; it stays in [0.001, 0.5].
        max_text_len (int): Longest text in tokens.
        queue_size (int, optional): Columns K of each queue, a multiple of the batch of all processes. None builds
            neither queues nor momentum encoders, for a model that is not trained.
        momentum (float): Share of the momentum encoders that a step keeps.
        alpha (float): Share of the momentum encoders in the targets of ITC.
        alpha_warmup_iters (int): Steps over which ``alpha`` grows from 0; two epochs in the original.
        negative_all_rank (bool): Draw hard negatives from the batches of all processes, not of the own one only.
        negative_floor (float): See ``sample_hard_negatives``: 1e-4 in the original's pre-training, 0 in its retrieval.
        label_smoothing (float): Of LM.
        negative_seed (int): Seed of the hard-negative draws.
        frozen (Sequence[str]): Parts that are not trained, of 'vision', 'text_encoder', 'text_decoder'; the last only
            with 'text_encoder', of which it shares most.
        allow_random (bool): Accept frozen parts with random weights.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: If parts do not fit one another, or a number makes no sense.
    """

    text_encoder: MED
    text_decoder: Any
    momentum: Any
    itc_head: ITCHead
    image_queue: torch.Tensor
    text_queue: torch.Tensor
    image_id_queue: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(self, vision: nn.Module, text_encoder: MED, tokenizer, text_decoder: MED | None = None,
                 embed_dim: int = 256, temperature: float = 0.07, max_text_len: int = 35,
                 queue_size: int | None = 57600, momentum: float = 0.995, alpha: float = 0.4,
                 alpha_warmup_iters: int = 0, negative_all_rank: bool = False, negative_floor: float = 0.,
                 label_smoothing: float = 0.1, negative_seed: int = 0, frozen: Sequence[str] = (),
                 allow_random: bool = False, data_preprocessor: dict | None = None):
        check_text_fits(text_encoder, tokenizer, max_text_len, 'text_encoder', needs_enc=True)
        if text_encoder.vision_width is None:
            raise ConfigError('text_encoder was built without cross-attention: set text_encoder.vision_width to the '
                              'width of the vision encoder')
        if not 0 <= alpha <= 1 or alpha_warmup_iters < 0:
            raise ConfigError(f'alpha is {alpha} and alpha_warmup_iters {alpha_warmup_iters}, expected a share from 0 '
                              'to 1, and a number of steps from 0 up')
        parts: dict[str, Any] = dict(vision=vision, text_encoder=text_encoder)
        if text_decoder is not None:
            text_decoder.share(text_encoder)
            if 'text_decoder' in frozen and 'text_encoder' not in frozen:
                raise ConfigError("frozen names 'text_decoder' and not 'text_encoder', of which it shares everything "
                                  "but the self-attention: freeze both, or 'text_encoder' alone (then the decoder's "
                                  'self-attention is trained), or neither')
            parts['text_decoder'] = text_decoder
        super().__init__(parts, 'text_encoder', frozen, allow_random, data_preprocessor)
        if text_decoder is None:
            self.text_decoder = None
        self.tokenizer = tokenizer
        self.itc_head = ITCHead(text_encoder.width, embed_dim, temperature, image_width=self.vision.embed_dim)
        self.itm_head = ITMHead(text_encoder.width)
        self.lm_head = None
        if text_decoder is not None:
            self.lm_head = LMHead(text_encoder.width, text_encoder.word_embeddings.num_embeddings)
        self.max_text_len = max_text_len
        self.alpha = alpha
        self.alpha_warmup_iters = alpha_warmup_iters
        self.negative_all_rank = negative_all_rank
        self.negative_floor = negative_floor
        self.label_smoothing = label_smoothing
        self.negative_seed = negative_seed
        self.register_buffer('num_steps', torch.zeros((), dtype=torch.int64))
        self.momentum = None
        if queue_size is not None:
            self._build_momentum(momentum, queue_size, embed_dim)
        self.droppable = tuple(f'{name}.*' for name in ('text_decoder', 'lm_head', 'momentum')
                               if getattr(self, name, None) is None)
        if queue_size is None:
            self.droppable += QUEUES
        else:  # a frozen part is not followed
            self.droppable += tuple(f'momentum.{name}.*' for name in self._frozen)

    def _build_momentum(self, momentum, queue_size, embed_dim):
        if not isinstance(queue_size, int) or queue_size < 1:
            raise ConfigError(f'queue_size is {queue_size!r}, expected a positive whole number, or None for a model '
                              'that is not trained')
        self.momentum = MomentumCopies(momentum, self._followed())
        for name, value in _new_queues(embed_dim, queue_size).items():
            self.register_buffer(name, value.to(self.num_steps.device))

    def _followed(self) -> dict[str, nn.Module]:
        """What the momentum encoders follow, by their names; a frozen part stays where it is."""
        parts = {name: getattr(self, name) for name in ('vision', 'text_encoder') if name not in self._frozen}
        return dict(parts, vision_proj=self.itc_head.vision_proj, text_proj=self.itc_head.text_proj)

    def init_weights(self):
        """Called once at the start of a training: the parts that grow out of a BERT may take one over."""
        super().init_weights()
        if self.momentum is not None:
            self.momentum.restart(self._followed())

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Weights of a model without momentum encoders and queues, as other projects publish them; of one with queues
        of another size; and of a pre-training of the original, whose output layer is a table of its own.

        Args:
            state: Tensors by name, as a file has them. Stays as it is.

        Returns:
            tuple: Tensors in which a missing momentum encoder is a copy of the encoder, a missing queue or one of
            another size a new one, and the output layer the encoder's word embeddings; and notes.
        """
        notes = []
        words, output = (state.get(f'{name}.word_embeddings.weight') for name in ('text_encoder', 'text_decoder'))
        if self.text_decoder is not None and words is not None and output is not None and not (
                words.is_meta or torch.equal(words, output)):
            state = {**state, 'text_decoder.word_embeddings.weight': words}
            notes.append('the output layer of the decoder in the file is a table of its own; here it is the word '
                         'embeddings of text_encoder (a BlipGeneration takes the table)')
        if self.momentum is None:
            return state, notes
        copies = {}
        for key, _ in self.momentum.named_parameters():
            followed = f'itc_head.{key}' if key.startswith(('vision_proj.', 'text_proj.')) else key
            if followed in state and f'momentum.{key}' not in state:
                copies[f'momentum.{key}'] = state[followed]
        new = dict(_new_queues(*self.image_queue.shape), num_steps=torch.zeros((), dtype=torch.int64))
        queue = state.get('image_queue')
        if queue is not None and queue.shape == self.image_queue.shape:
            new = {name: value for name, value in new.items() if name not in state}
        elif queue is not None:
            notes.append(f'queues of {queue.size(-1)} columns in the file and {len(self.image_id_queue)} in the model')
        if copies:
            notes.append(f'{len(copies)} tensors of the momentum encoders are copies of the trained ones')
        if new:
            notes.append(f'{", ".join(new)} start anew')
        return {**state, **copies, **new}, notes

    def start_anew(self):
        """Called once when a new training has read its ``load_from``: the steps of another training do not count, and
        image ids of the queues may belong to another data set."""
        self.num_steps.zero_()
        if self.momentum is not None:
            self.image_id_queue.fill_(NO_ID)

    def loss(self, images: torch.Tensor, data_samples: Sequence) -> dict:
        """Losses of pre-training, or of retrieval without a decoder.

        In training the momentum encoders follow first, and their features are put into the queues afterwards.

        Args:
            images: float (B, 3, H, W).
            data_samples: With ``text``; where they have ``image_id``, rows of one id in one folder of images are
                positives of one another.

        Returns:
            dict: loss_itc, loss_itm, loss_lm with a decoder, and the statistics acc_itm, temperature, itm_dropped (rows
            without any valid negative).

        Raises:
            ConfigError: In training the batch of all processes does not divide ``queue_size``; there are no momentum
                encoders.
        """
        if self.momentum is None:
            raise ConfigError('this BlipRepresentation was built without queues and momentum encoders, and cannot be '
                              'trained: set queue_size (57600 in the paper)')
        if self.training:
            check_queue(self.image_queue.size(1), len(images), world()[1])
            with torch.no_grad():
                self.itc_head.temperature.clamp_(*_TEMPERATURES)
            self.momentum.follow(self._followed())
        encoded = self.encode_image(images)
        text = self.tokenize([single_text(sample, 'text') for sample in data_samples], images.device)
        ids = self._image_ids(data_samples, images.device)
        image_feats_m, text_feats_m = self._momentum_features(images, encoded, text)  # (B, C), (B, C)
        batch = _Keys(gather(image_feats_m).T, gather(text_feats_m).T, gather(ids))
        keys = _Keys(*(torch.cat([new, old], dim=-1) for new, old in zip(batch, self._queues)))

        # ITC: every image against the texts of all processes and the queue
        temperature = self.itc_head.temperature
        image_feats = self.itc_head.image_features(encoded.patches[:, 0])  # (B, C)
        text_feats = self.itc_head.text_features(self.text_encoder.forward_text(*text))
        own = own_rows(len(ids), ids.device)
        positives = same_image(ids, keys.ids, own)  # (B, G+K)
        alpha = self._alpha()
        with torch.autocast(images.device.type, enabled=False):
            i2t, t2i = image_feats @ keys.texts / temperature, text_feats @ keys.images / temperature
            with torch.no_grad():
                i2t_m, t2i_m = image_feats_m @ keys.texts / temperature, text_feats_m @ keys.images / temperature
            loss_itc = (soft_cross_entropy(i2t, momentum_targets(i2t_m, positives, alpha))
                        + soft_cross_entropy(t2i, momentum_targets(t2i_m, positives, alpha))) / 2

        losses = dict(loss_itc=loss_itc)
        candidates = slice(0, len(batch.ids)) if self.negative_all_rank else slice(int(own[0]), int(own[-1]) + 1)
        losses.update(self._loss_itm(encoded, text, i2t[:, candidates], t2i[:, candidates], positives[:, candidates],
                                     self.negative_floor))
        if self.text_decoder is not None:
            written = text.begin_with(self.tokenizer.dec_id)
            feats, _ = self.text_decoder.forward_causal(*written, encoded.image_kv)
            losses['loss_lm'] = self._loss_of_written(written, feats, self.lm_head)
        losses['temperature'] = temperature.detach()
        if self.training:
            advance(list(self._queues), self.queue_ptr, list(batch))
            self.num_steps += 1
        return losses

    def _alpha(self) -> float:
        """Share of the momentum encoders in the targets of this step."""
        return self.alpha * min(1., int(self.num_steps) / self.alpha_warmup_iters if self.alpha_warmup_iters else 1.)

    @property
    def _queues(self):
        return _Keys(self.image_queue, self.text_queue, self.image_id_queue)

    @torch.no_grad()
    def _momentum_features(self, images, encoded: EncodedImages, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Contrastive features (B, C) of images and texts by the momentum encoders; a frozen part is its own."""
        copies = self.momentum
        patches = self._see(images, copies.vision).float() if hasattr(copies, 'vision') else encoded.patches
        text_encoder = getattr(copies, 'text_encoder', self.text_encoder)
        return (project(copies.vision_proj, patches[:, 0]),
                project(copies.text_proj, text_encoder.forward_text(*text)))

    @torch.no_grad()
    def image_features(self, encoded: EncodedImages) -> torch.Tensor:
        """Contrastive features (B, 1, C) of encoded images, of their class tokens, float32, normalised."""
        return self.itc_head.image_features(encoded.patches[:, :1])

    def _start(self, text: TextBatch) -> tuple[torch.Tensor, ...]:
        """Text (N, T, D) that begins with [ENC]."""
        return (self.text_encoder.start_joint(*text.begin_with(self.tokenizer.enc_id)), )

    def _finish(self, image_kv, started: tuple[torch.Tensor, ...],
                text_mask: torch.Tensor | None = None) -> torch.Tensor:
        feats = self.text_encoder.finish_joint(image_kv, started[0], text_mask, keep=slice(0, 1))  # (N, 1, D)
        return self.itm_head(feats).float()


def _new_queues(width, size):
    """The queues before the first step."""
    return dict(image_queue=random_queue(width, size, 0), text_queue=random_queue(width, size, 1),
                image_id_queue=torch.full((size, ), NO_ID, dtype=torch.int64, device='cpu'),
                queue_ptr=torch.zeros(1, dtype=torch.int64, device='cpu'))
