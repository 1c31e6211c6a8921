"""BLIP-2 stage 2, captioning and visual question answering (section 3.3 and 4).

Shapes: B images, Q queries, D Q-Former width, H language model width.
"""
from collections.abc import Callable, Sequence

import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.utils.dist import share_of_global

from ..language.base import LanguageModel
from ..qformer import QFormer
from .base import EncodedImages, check_text_fits
from .text_generation import TextGeneration, shared_rows


@MODELS.register_module()
class Blip2Generation(TextGeneration):
    """Query features, projected, are the visual prefix of a language model.

    The samples carry the task: ``prompt`` (may be empty), ``target`` in training, and, where the Q-Former reads
    text beside its queries (VQA fine-tuning, InstructBLIP), ``qformer_text``.

    Args:
        vision (nn.Module): Encoder, images to tokens (B, P, E), with ``embed_dim``.
        qformer (nn.Module): A ``QFormer``; with a text half only if it reads text.
        language_model (nn.Module): ``CausalLM`` or ``Seq2SeqLM``.
        tokenizer (BertTokenizer, optional): Of the Q-Former's text; needed if it has a text half.
        max_text_len (int): Longest text the Q-Former reads, in tokens.
        global_token_mean (bool): Divide the loss by the tokens of all processes; False by the own ones, as LAVIS.
        generation (dict, optional): Arguments of the language model's ``generate``.
        generation_batch_size (int, optional): Texts that are generated at a time, prompts of alike length together;
            default: all of a batch. For large batches, in which the questions about an image meet.
        vision_norm_eps (float): Epsilon of the norm after the encoder (1e-5 LAVIS, 1e-6 Hugging Face).
        frozen (Sequence[str]): Parts that are not trained, of 'vision', 'qformer', 'language_model'.
        allow_random (bool): Accept frozen parts with random weights.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: If the Q-Former has a text half and no tokenizer was given, or the other way round,
            ``generation`` has an unknown setting or one with which code of a model repository would run, or
            ``generation_batch_size`` is no positive number.
    """

    qformer: QFormer
    droppable = ('itc_head.*', 'itm_head.*', 'itg_head.*', 'num_steps', 'qformer.word_embeddings.*',
                 'qformer.position_embeddings.*', 'qformer.layers.*.text_mlp.*', 'qformer.layers.*.text_norm.*')

    def __init__(self, vision: nn.Module, qformer: QFormer, language_model: LanguageModel, tokenizer=None,
                 max_text_len: int = 32, global_token_mean: bool = True, generation: dict | None = None,
                 generation_batch_size: int | None = None, vision_norm_eps: float = 1e-5,
                 frozen: Sequence[str] = ('vision', 'language_model'),
                 allow_random: bool = False, data_preprocessor: dict | None = None):
        if qformer.has_text != (tokenizer is not None):
            raise ConfigError(
                f'qformer.vocab_size is {qformer.vocab_size} and tokenizer is {tokenizer}: set both for a Q-Former '
                'that reads text, neither for one that does not')
        if tokenizer is not None:
            check_text_fits(qformer, tokenizer, max_text_len)
        super().__init__(dict(vision=vision, qformer=qformer, language_model=language_model), 'qformer', generation,
                         generation_batch_size, frozen, allow_random, data_preprocessor)
        self.vision_norm = nn.LayerNorm(self.vision.embed_dim, vision_norm_eps)
        self.language_projection = nn.Linear(qformer.width, language_model.hidden_size)
        self.tokenizer = tokenizer
        self.max_text_len = max_text_len
        self.global_token_mean = global_token_mean
        if qformer.has_text:  # only queries leave the Q-Former, so nobody reads the last layer's text rows
            for module in (qformer.layers[-1].text_mlp, qformer.layers[-1].text_norm):
                module.requires_grad_(False)

    @property
    def reads_qformer_text(self) -> bool:  # type: ignore[override]
        """Whether the Q-Former reads ``qformer_text`` of the samples."""
        return self.tokenizer is not None

    @property
    def writer(self) -> Callable[..., list]:
        """See ``TextGeneration``."""
        return self.language_model.generate

    def visual_prefix(self, images: torch.Tensor, data_samples: Sequence) -> torch.Tensor:
        """Images (and the text the Q-Former reads) to the language model's prefix (B, Q, H).

        Outside training an image that several samples share, by their ``img_path`` and its pixels, is encoded once.
        """
        texts = [] if self.tokenizer is None else [sample.get('qformer_text') for sample in data_samples]
        shared = None if self.training else shared_rows(images, data_samples)
        if shared is None:
            return self.prefix_of(self.encode_image(images), texts)
        encoded, rows = self.encode_image(images[shared.first]), torch.tensor(shared.of_sample, device=images.device)
        return self.prefix_of(encoded.rows(rows), texts) if texts else self.prefix_of(encoded, texts)[rows]

    def prefix_of(self, encoded: EncodedImages, texts: Sequence[str | None]) -> torch.Tensor:
        """Encoded images, and a text each if the Q-Former reads text, to the language model's prefix (B, Q, H); one
        image may so be asked several times.

        Raises:
            ConfigError: The Q-Former reads text, and there is none for an image.
        """
        if self.tokenizer is None:
            query_feats, _ = self.qformer.forward_queries(encoded.image_kv)
        else:
            if None in texts:
                raise ConfigError('this Q-Former reads text, but a sample has no qformer_text: set qformer_text in '
                                  'the pipeline (for example VQAPrompt(qformer_text="{}"))')
            text = self.tokenizer(texts, self.max_text_len, encoded.patches.device)
            query_feats = self.qformer.forward_joint(encoded.image_kv, *text)
        return self.language_projection(query_feats)

    def loss(self, images: torch.Tensor, data_samples: Sequence) -> dict:
        """Next-token loss of the targets, given image and prompt.

        Args:
            images: float (B, 3, H, W).
            data_samples: With ``prompt`` and ``target``, one or several texts (see ``LanguageModel.loss``).

        Returns:
            dict: loss_lm.
        """
        total, count = self.language_model.loss(
            self.visual_prefix(images, data_samples), [sample.prompt for sample in data_samples],
            [sample.target for sample in data_samples])
        return dict(loss_lm=share_of_global(total, count) if self.global_token_mean else total / count)
