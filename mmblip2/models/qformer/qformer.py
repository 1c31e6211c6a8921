"""The Q-Former (BLIP-2, section 3.1): learned queries that read an image, and text that shares their self-attention.

Shapes: B images or image-text rows, P patches, E vision width, Q queries, T text tokens, L = Q+T, D width, H heads.
"""
import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from ..layers import BertTower, Mlp, PostNormLayer, self_attention_mask
from ..layers.attention import KeyValue


class QFormerLayer(PostNormLayer):
    """One post-norm layer: self-attention over all rows, cross-attention and MLP of the queries, MLP of the text."""

    def __init__(self, width, num_heads, mlp_width, vision_width, dropout, eps, cross_attention, text):
        super().__init__(width, num_heads, dropout, eps, vision_width if cross_attention else None)
        self.query_mlp = Mlp(width, mlp_width)
        self.query_norm = nn.LayerNorm(width, eps)
        if text:
            self.text_mlp = Mlp(width, mlp_width)
            self.text_norm = nn.LayerNorm(width, eps)

    def forward(self, x, image_kv=None, mask=None, past=None, keep=slice(None), num_query=0):
        """Run the layer.

        Args:
            x: (B, L, D); the first ``num_query`` rows are queries, the others text.
            image_kv: Cross-attention keys and values of the image; used on query rows if this layer has any.
            mask: bool (B, 1, L, S).
            past: Self-attention keys and values of rows in front of ``x``.
            keep: Slice of the rows that the caller needs; only these are computed. It starts at row 0.
            num_query: Number of query rows in ``x``.

        Returns:
            tuple: rows (B, len(keep), D), and this layer's self-attention ``KeyValue`` of ``past`` and ``x``.
        """
        x, seen = self.attend(x, mask, past, keep)
        queries, text = x[:, :num_query], x[:, num_query:]
        parts = []
        if queries.size(1):
            parts.append(self.read(queries, image_kv))
        if text.size(1):
            parts.append(self.feed_text(text))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], seen

    def read(self, queries, image_kv=None):
        """Cross-attention, if this layer has any, and MLP of the queries (B, Q, D)."""
        if self.cross_attention is not None:
            queries = self.cross_attend(queries, image_kv)
        return self.query_norm(queries + self.dropout(self.query_mlp(queries)))

    def feed_text(self, text):
        """MLP of the text (B, T, D)."""
        return self.text_norm(text + self.dropout(self.text_mlp(text)))


@MODELS.register_module()
class QFormer(BertTower):
    """Querying Transformer: a BERT whose learned queries cross-attend to image patches.

    Its uses are methods that share the weights: :meth:`forward_queries` (image only), :meth:`forward_text`
    (text only), :meth:`forward_joint` (both, ITM and instructions), :meth:`forward_causal` (text generation from
    the queries, ITG). Agrees with ``Blip2QFormerModel`` of transformers and ``Qformer.py`` of LAVIS on the same
    weights.

    Args:
        vision_width (int): Width E of the image patches.
        num_layers (int): Number of layers.
        width (int): Width D.
        num_heads (int): Attention heads.
        mlp_width (int, optional): Hidden width of the MLPs. Defaults to 4 * width.
        num_query (int, optional): Number of learned queries Q; None builds none, as in ``Blip2QFormerModel``: they are
            given to :meth:`forward_queries`.
        cross_attention_freq (int): Layers 0, f, 2f, ... have cross-attention.
        vocab_size (int, optional): Size of the text vocabulary; None builds no text half (stage 2).
        max_positions (int): Longest text.
        dropout (float): Dropout on attention weights and on every sub-layer's output.
        eps (float): Epsilon of the LayerNorms.
        init_std (float): Standard deviation of the initial weights, queries and embeddings.
        bert (str, optional): BERT folder whose weights a training starts from; not needed afterwards.
        patch_dropout (float): In training an image is read without this share of its patches, drawn at random: against
            overfitting on few images, and cheaper. (FLIP, arXiv:2212.00794, leaves them out before the encoder.)
        channel_dropout (float): In training an image is read with this share of the encoder's channels set to 0, the
            same ones in all of its patches, the rest scaled up (arXiv:1411.4280): against overfitting on few images.

    Raises:
        ConfigError: A size is no positive whole number, ``num_heads`` does not divide ``width``, or ``patch_dropout``
            or ``channel_dropout`` is not from 0 to below 1.
    """

    title = 'Q-Former'
    has_queries = True

    def __init__(self, vision_width: int, num_layers: int = 12, width: int = 768, num_heads: int = 12,
                 mlp_width: int | None = None, num_query: int | None = 32, cross_attention_freq: int = 2,
                 vocab_size: int | None = None, max_positions: int = 512, dropout: float = 0.1,
                 eps: float = 1e-12, init_std: float = 0.02, bert: str | None = None, patch_dropout: float = 0.,
                 channel_dropout: float = 0.):
        self.check_sizes(
            dict(vision_width=vision_width, num_layers=num_layers, width=width, num_heads=num_heads,
                 cross_attention_freq=cross_attention_freq, max_positions=max_positions),
            dict(num_query=num_query, mlp_width=mlp_width, vocab_size=vocab_size))
        for name, share in (('patch_dropout', patch_dropout), ('channel_dropout', channel_dropout)):
            if not 0 <= share < 1:
                raise ConfigError(f'QFormer: {name} is {share!r}, expected a number from 0 to below 1')
        super().__init__(vision_width, width, vocab_size, max_positions, dropout, eps, bert)
        self.patch_dropout = patch_dropout
        self.channel_dropout = channel_dropout
        self.num_query = num_query
        self.queries = nn.Parameter(torch.empty(1, num_query, width)) if num_query is not None else None
        self.layers = nn.ModuleList(
            QFormerLayer(width, num_heads, mlp_width or 4 * width, vision_width, dropout, eps,
                         cross_attention=i % cross_attention_freq == 0, text=self.has_text)
            for i in range(num_layers))
        if self.queries is not None:
            nn.init.normal_(self.queries, std=init_std)
        self._draw_weights(init_std)

    def project_image(self, patches: torch.Tensor) -> list[KeyValue | None]:
        """See ``BertTower``; in training of what ``patch_dropout`` and ``channel_dropout`` leave."""
        if self.training and self.patch_dropout:
            kept = max(1, round(patches.size(1) * (1 - self.patch_dropout)))
            chosen = torch.rand(patches.shape[:2], device=patches.device).argsort(dim=1)[:, :kept]  # (B, kept)
            patches = patches.gather(1, chosen.unsqueeze(2).expand(-1, -1, patches.size(2)))
        if self.training and self.channel_dropout:
            patches = patches * F.dropout(patches.new_ones(len(patches), 1, patches.size(2)), self.channel_dropout)
        return super().project_image(patches)

    @property
    def bert_mlps(self):  # type: ignore[override]
        return (('query_mlp', 'query_norm'), ('text_mlp', 'text_norm'))[:1 + self.has_text]

    def _embed_queries(self, batch: int, queries: torch.Tensor | None = None) -> torch.Tensor:
        queries = self.queries if queries is None else queries
        if queries is None:
            raise ConfigError('this Q-Former was built without queries (num_query=None): give them to forward_queries, '
                              'or set num_query in its config')
        return self.dropout(self.embedding_norm(queries).expand(batch, -1, -1))  # (B, Q, D)

    def image_states(self, patches: torch.Tensor, image_kv: list[KeyValue | None]) -> torch.Tensor:
        """What the queries read of an image (B, Q, D)."""
        return self.forward_queries(image_kv)[0]

    def forward_queries(self, image_kv: list[KeyValue | None],
                        queries: torch.Tensor | None = None) -> tuple[torch.Tensor, list[KeyValue]]:
        """Queries read the image, no text.

        Args:
            image_kv: From :meth:`project_image`, B images.
            queries: (B, Q, D) or (1, Q, D) in place of the learned ones, of any number.

        Returns:
            tuple: query features (B, Q, D), and each layer's self-attention keys and values of the queries, which
            :meth:`forward_causal` takes.

        Raises:
            ConfigError: There are no learned queries, and none are given.
        """
        batch = next(kv.key.size(0) for kv in image_kv if kv is not None)
        x = self._embed_queries(batch, queries)
        return self._run(x, image_kv, num_query=x.size(1))

    def forward_joint(self, image_kv, input_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """Queries and text see each other; the queries read the image.

        Args:
            image_kv: From :meth:`project_image`: B images, or one image for all B texts.
            input_ids: int64 (B, T).
            text_mask: (B, T), nonzero at real tokens.

        Returns:
            torch.Tensor: query features (B, Q, D).
        """
        return self.finish_joint(image_kv, *self.start_joint(input_ids, text_mask), text_mask)

    def start_joint(self, input_ids: torch.Tensor, text_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What :meth:`forward_joint` computes before anything depends on the image; a text needs it once.

        Args:
            input_ids: int64 (B, T).
            text_mask: (B, T), nonzero at real tokens.

        Returns:
            tuple: queries (B, Q, D) after the self-attention of layer 0, and text (B, T, D) after layer 0.
        """
        text = self._embed_text(input_ids)
        queries = self._embed_queries(len(text))
        x = torch.cat([queries, text], dim=1)  # (B, Q+T, D)
        x, _ = self.layers[0].attend(x, self_attention_mask('bidirectional', queries.size(1), text_mask))
        queries, text = x.split([queries.size(1), text.size(1)], dim=1)
        return queries, self.layers[0].feed_text(text) if len(self.layers) > 1 else text

    def finish_joint(self, image_kv, queries: torch.Tensor, text: torch.Tensor,
                     text_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The rest of :meth:`forward_joint`.

        Args:
            image_kv: From :meth:`project_image`: B images, or one image for all B texts.
            queries: (B, Q, D), of :meth:`start_joint`.
            text: (B, T, D), of :meth:`start_joint`.
            text_mask: (B, T), nonzero at real tokens; None: all are.

        Returns:
            torch.Tensor: query features (B, Q, D).
        """
        queries = self.layers[0].read(queries, image_kv[0])
        if len(self.layers) == 1:
            return queries
        num_query = queries.size(1)
        mask = self_attention_mask('bidirectional', num_query, text_mask) if text_mask is not None else None
        return self._run(torch.cat([queries, text], dim=1), image_kv, mask, keep=slice(0, num_query), first=1,
                         num_query=num_query)[0]

    def forward_causal(self, input_ids: torch.Tensor, text_mask: torch.Tensor, query_cache) -> torch.Tensor:
        """Text sees all queries and earlier text.

        The queries never see text under this mask, so their keys and values are those of :meth:`forward_queries`.

        Args:
            input_ids: int64 (B, T), beginning with [DEC].
            text_mask: (B, T), nonzero at real tokens.
            query_cache: Second result of :meth:`forward_queries`.

        Returns:
            torch.Tensor: (B, T, D).
        """
        num_query = query_cache[0].key.size(2)
        mask = self_attention_mask('causal', num_query, text_mask)[:, :, num_query:]
        return self._run(self._embed_text(input_ids), mask=mask, past=query_cache)[0]
