"""What the transformers that grow out of a BERT share: BLIP-2's Q-Former and BLIP's MED.

Shapes: B rows, T text tokens, L rows of a sequence, S rows that are looked at, D width, E width of what is read.
"""
from typing import Any

import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.utils.dist import whole

from .attention import Attention, KeyValue

_ADDED_WORDS = 2  # [DEC], and [ENC] of BLIP


class PostNormLayer(nn.Module):
    """The attentions of a post-norm layer: self-attention, and cross-attention if it is given ``kv_width``.

    A subclass adds its MLPs and ``forward(x, image_kv, mask, past, keep, **kwargs)``, which returns the rows and the
    ``KeyValue`` that :meth:`attend` gave.
    """

    def __init__(self, width: int, num_heads: int, dropout: float, eps: float, kv_width: int | None):
        super().__init__()
        self.attention = Attention(width, num_heads, dropout=dropout)
        self.cross_attention: Any = None
        self.attention_norm = nn.LayerNorm(width, eps)
        if kv_width is not None:
            self.cross_attention = Attention(width, num_heads, kv_width=kv_width, dropout=dropout)
            self.cross_attention_norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def attend(self, x, mask=None, past=None, keep=slice(None)):
        """Self-attention.

        Args:
            x: (B, L, D).
            mask: bool (B, 1, L, S).
            past: ``KeyValue`` of rows in front of ``x``.
            keep: Slice of the rows that the caller needs; only these are computed.

        Returns:
            tuple: rows (B, len(keep), D), and the ``KeyValue`` of all rows, those of ``past`` first.
        """
        seen = self.attention.project_kv(x)
        if past is not None:
            seen = KeyValue.cat([past, seen], dim=2)
        x = x[:, keep]
        mask = mask[:, :, keep] if mask is not None else None
        return self.attention_norm(x + self.dropout(self.attention(x, seen, mask))), seen

    def cross_attend(self, x, image_kv, mask=None):
        """Cross-attention of ``x`` (B, L, D), under a bool mask that is broadcastable to (B, H, L, S)."""
        return self.cross_attention_norm(x + self.dropout(self.cross_attention(x, image_kv, mask)))


class BertTower(nn.Module):
    """Embeddings and layers of a BERT without token types; a subclass adds ``layers``, then draws the weights.

    Args:
        vision_width (int, optional): Width E of what cross-attention reads; None without any.
        width (int): Width D.
        vocab_size (int, optional): Size of the text vocabulary; None builds no embeddings.
        max_positions (int): Longest text.
        dropout (float): Dropout of the embeddings.
        eps (float): Epsilon of the LayerNorms.
        bert (str, optional): BERT folder whose weights a training starts from.
    """

    #: what messages call it
    title = ''
    #: names in a layer of every MLP that starts from BERT's, each with the norm after it
    bert_mlps: tuple[tuple[str, str], ...] = ()
    #: whether learned queries read the image in place of the text's tokens
    has_queries = False
    layers: Any  # nn.ModuleList of PostNormLayer

    def __init__(self, vision_width: int | None, width: int, vocab_size: int | None, max_positions: int, dropout: float,
                 eps: float, bert: str | None):
        super().__init__()
        self.vision_width = vision_width
        self.width = width
        self.max_positions = max_positions
        self.vocab_size = vocab_size
        self.bert = bert
        if vocab_size is not None:
            self.word_embeddings = nn.Embedding(vocab_size, width)
            self.position_embeddings = nn.Embedding(max_positions, width)
        self.embedding_norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def check_sizes(cls, required: dict, optional: dict):
        """Refuse sizes that cannot be built.

        Args:
            required: By name; ``width`` and ``num_heads`` are among them.
            optional: By name, may be None.

        Raises:
            ConfigError: One is no positive whole number, or ``num_heads`` does not divide ``width``.
        """
        given = {**required, **{name: size for name, size in optional.items() if size is not None}}
        for name, size in given.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ConfigError(f'{cls.__name__}: {name} is {size!r}, expected a positive whole number'
                                  + (' or None' if name in optional else ''))
        width, num_heads = required['width'], required['num_heads']
        if width % num_heads:
            raise ConfigError(f'{cls.__name__}: width {width} is not a multiple of num_heads {num_heads}: change one '
                              'of them')

    @property
    def has_text(self) -> bool:
        """Whether it has embeddings of text."""
        return self.vocab_size is not None

    def _draw_weights(self, std):
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def init_weights(self):
        """At the start of a training: take over the BERT folder, if there is one, and log what stayed new."""
        if self.bert is not None:
            from mmengine.logging import print_log

            from .bert_init import init_from_bert
            for line in str(init_from_bert(self, self.bert)).splitlines():
                print_log(line, logger='current')

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Weights of one whose vocabulary lacks the words that BLIP adds to BERT's, [DEC] (and [ENC]).

        Args:
            state: Tensors by name, as a file has them. Stays as it is.

        Returns:
            tuple: Tensors with rows for these words, which stay as they are here (zero on the meta device), and a
            note; any other difference stays and is refused by its shape.
        """
        table = state.get('word_embeddings.weight')
        if self.vocab_size is None or table is None or table.dim() != 2 or table.size(1) != self.width:
            return state, []
        added = self.vocab_size - len(table)
        if not 0 < added <= _ADDED_WORDS:
            return state, []
        own = whole(self.word_embeddings.weight)[-added:].detach()
        drawn = not own.is_meta  # a model that is converted has no values of its own
        own = own.to(table) if drawn else table.new_zeros(own.shape)
        return ({**state, 'word_embeddings.weight': torch.cat([table, own])},
                [f'the file has {len(table)} words and the model {self.vocab_size}: the last {added} row'
                 f'{"s" if added > 1 else ""} of word_embeddings {"stay as drawn" if drawn else "are zero"}'])

    def project_image(self, patches: torch.Tensor) -> list[KeyValue | None]:
        """Cross-attention keys and values of an image, per layer; the costly part, so computed once an image.

        Args:
            patches: (B, P, E).

        Returns:
            list: One ``KeyValue`` (B, H, P, d) a layer, None for a layer without cross-attention.
        """
        return [layer.cross_attention.project_kv(patches) if layer.cross_attention is not None else None
                for layer in self.layers]

    def image_states(self, patches: torch.Tensor, image_kv: list[KeyValue | None]) -> torch.Tensor:
        """What an image is, with no text beside it: its patches (B, P, E), or what queries read of them (B, Q, D)."""
        return patches

    def forward_joint(self, image_kv, input_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """What is read of images (B, ..) beside texts (B, T): by queries (B, Q, D), or else by the text (B, T, D)."""
        raise NotImplementedError

    def _embed_text(self, input_ids: torch.Tensor, first: int = 0) -> torch.Tensor:
        """(B, T, D) of ids (B, T) whose first column has position ``first``."""
        if not self.has_text:
            raise RuntimeError(f'this {self.title} was built without a text half: set vocab_size in its config')
        length = first + input_ids.size(1)
        if length > self.max_positions:
            raise ValueError(f'text of {length} tokens is longer than max_positions={self.max_positions}')
        x = self.word_embeddings(input_ids) + self.position_embeddings.weight[first:length]
        return self.dropout(self.embedding_norm(x))

    def _run(self, x, image_kv=None, mask=None, past=None, keep=slice(None), first=0, **kwargs):
        """The layers from ``first`` on; ``keep`` are the rows of the last that the caller needs."""
        cache = []
        for i, layer in enumerate(self.layers[first:], first):
            last = i == len(self.layers) - 1
            x, kv = layer(x, image_kv[i] if image_kv is not None else None, mask,
                          past[i] if past is not None else None, keep if last else slice(None), **kwargs)
            cache.append(kv)
        return x, cache

    def forward_text(self, input_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """Text alone, bidirectional; the feature of its first token ([CLS]).

        Args:
            input_ids: int64 (B, T).
            text_mask: (B, T), nonzero at real tokens.

        Returns:
            torch.Tensor: (B, D).
        """
        return self._run_text(input_ids, text_mask, keep=slice(0, 1))[:, 0]

    def forward_text_tokens(self, input_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """Text alone, bidirectional, all its tokens; the first of them is what :meth:`forward_text` gives.

        Args:
            input_ids: int64 (B, T).
            text_mask: (B, T), nonzero at real tokens.

        Returns:
            torch.Tensor: (B, T, D); rows of padding mean nothing.
        """
        return self._run_text(input_ids, text_mask, keep=slice(None))

    def _run_text(self, input_ids, text_mask, keep):
        mask = text_mask.bool()[:, None, None, :].expand(-1, -1, input_ids.size(1), -1)  # (B, 1, T, T)
        return self._run(self._embed_text(input_ids), mask=mask, keep=keep)[0]
