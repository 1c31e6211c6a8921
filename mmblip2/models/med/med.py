"""The multimodal mixture of encoder-decoder (BLIP, section 3.1): one BERT that reads text, text and image, or writes.

Shapes: B texts, T text tokens, P patches, E vision width, S rows that cross-attention reads, D width, H heads.
"""
import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from ..layers import BertTower, Mlp, PostNormLayer, self_attention_mask
from ..layers.attention import KeyValue


class MEDLayer(PostNormLayer):
    """One post-norm layer: self-attention, cross-attention if there is something to read, MLP."""

    def __init__(self, width, num_heads, mlp_width, vision_width, dropout, eps):
        super().__init__(width, num_heads, dropout, eps, vision_width)
        self.mlp = Mlp(width, mlp_width)
        self.mlp_norm = nn.LayerNorm(width, eps)

    def forward(self, x, image_kv=None, mask=None, past=None, keep=slice(None), image_mask=None):
        """Run the layer.

        Args:
            x: (B, T, D).
            image_kv: Cross-attention keys and values; None: the text alone.
            mask: bool (B, 1, T, rows of ``past`` + T).
            past: Self-attention keys and values of rows in front of ``x``.
            keep: Slice of the rows that the caller needs; only these are computed.
            image_mask: bool (B, 1, 1, S), True at the rows that cross-attention may read.

        Returns:
            tuple: rows (B, len(keep), D), and this layer's self-attention ``KeyValue`` of ``past`` and ``x``.
        """
        x, seen = self.attend(x, mask, past, keep)
        return self.read(x, image_kv, image_mask), seen

    def read(self, x, image_kv=None, image_mask=None):
        """Cross-attention, if there is something to read, and MLP of the text (B, T, D)."""
        if image_kv is not None:
            x = self.cross_attend(x, image_kv, image_mask)
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


@MODELS.register_module()
class MED(BertTower):
    """BERT whose layers can all cross-attend to an image, with every token of the text.

    Its uses are methods: :meth:`forward_text` (text only), :meth:`forward_joint` (image-grounded encoder),
    :meth:`forward_causal` (image-grounded decoder). BLIP uses one as the encoder and one as the decoder; what they
    share is the algorithm's business. Padding is never read, in text and in what cross-attention looks at.

    Args:
        vision_width (int, optional): Width E of what cross-attention reads; None builds none.
        num_layers (int): Number of layers.
        width (int): Width D.
        num_heads (int): Attention heads.
        mlp_width (int, optional): Hidden width of the MLPs. Defaults to 4 * width.
        vocab_size (int): Size of the text vocabulary; BERT's and [DEC] and [ENC].
        max_positions (int): Longest text.
        dropout (float): Dropout on attention weights and on every sub-layer's output.
        eps (float): Epsilon of the LayerNorms.
        init_std (float): Standard deviation of the initial weights and embeddings.
        bert (str, optional): BERT folder whose weights a training starts from; not needed afterwards.

    Raises:
        ConfigError: A size is no positive whole number, or ``num_heads`` does not divide ``width``.
    """

    title = 'MED'
    bert_mlps = (('mlp', 'mlp_norm'), )

    def __init__(self, vision_width: int | None = None, num_layers: int = 12, width: int = 768, num_heads: int = 12,
                 mlp_width: int | None = None, vocab_size: int = 30524, max_positions: int = 512,
                 dropout: float = 0.1, eps: float = 1e-12, init_std: float = 0.02, bert: str | None = None):
        self.check_sizes(
            dict(num_layers=num_layers, width=width, num_heads=num_heads, vocab_size=vocab_size,
                 max_positions=max_positions),
            dict(vision_width=vision_width, mlp_width=mlp_width))
        super().__init__(vision_width, width, vocab_size, max_positions, dropout, eps, bert)
        self.layers = nn.ModuleList(
            self._build_layer(i, num_heads=num_heads, mlp_width=mlp_width or 4 * width, dropout=dropout, eps=eps)
            for i in range(num_layers))
        self._draw_weights(init_std)

    def _build_layer(self, index: int, **sizes) -> nn.Module:
        """Layer ``index``."""
        return MEDLayer(self.width, vision_width=self.vision_width, **sizes)

    def share(self, other: 'MED'):
        """Take over everything of another one but the self-attention, as BLIP's decoder does of the encoder.

        Raises:
            ConfigError: Their sizes differ.
        """
        own, others = ({name: tuple(p.shape) for name, p in med.named_parameters()} for med in (self, other))
        if own != others:
            name = next(name for name in {**own, **others} if own.get(name) != others.get(name))
            raise ConfigError(f'two MEDs cannot share their weights: {name} is {others.get(name)} in the one and '
                              f'{own.get(name)} in the other: give both the same sizes')
        for name in ('word_embeddings', 'position_embeddings', 'embedding_norm'):
            setattr(self, name, getattr(other, name))
        for layer, shared in zip(self.layers, other.layers):
            for name, part in shared.named_children():
                if name not in ('attention', 'attention_norm'):
                    setattr(layer, name, part)

    def forward_joint(self, image_kv, input_ids: torch.Tensor, text_mask: torch.Tensor,
                      image_mask: torch.Tensor | None = None, keep: slice = slice(None)) -> torch.Tensor:
        """Text reads the image; its tokens see each other.

        Args:
            image_kv: From :meth:`project_image`: B images, or fewer, each for as many texts that follow one another.
            input_ids: int64 (B, T), beginning with [ENC].
            text_mask: (B, T), nonzero at real tokens.
            image_mask: (rows of ``image_kv``, S), nonzero at the rows that may be read; None: all.
            keep: Slice of the tokens that the caller needs; the last layer computes only these.

        Returns:
            torch.Tensor: (B, len(keep), D); rows of padding mean nothing.
        """
        return self.finish_joint(image_kv, self.start_joint(input_ids, text_mask), text_mask, image_mask, keep)

    def start_joint(self, input_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """What :meth:`forward_joint` computes before anything depends on the image; a text needs it once.

        Args:
            input_ids: int64 (B, T).
            text_mask: (B, T), nonzero at real tokens.

        Returns:
            torch.Tensor: (B, T, D), after the self-attention of layer 0.
        """
        mask = self_attention_mask('bidirectional', 0, text_mask)
        return self.layers[0].attend(self._embed_text(input_ids), mask)[0]

    def finish_joint(self, image_kv, text: torch.Tensor, text_mask: torch.Tensor | None = None,
                     image_mask: torch.Tensor | None = None, keep: slice = slice(None)) -> torch.Tensor:
        """The rest of :meth:`forward_joint`.

        Args:
            image_kv: As there.
            text: (B, T, D), of :meth:`start_joint`.
            text_mask: (B, T), nonzero at real tokens; None: all are.
            image_mask: As there.
            keep: As there.

        Returns:
            torch.Tensor: (B, len(keep), D).
        """
        seen = _keys_mask(image_mask)
        if len(self.layers) == 1:
            return self.layers[0].read(text[:, keep], image_kv[0], seen)
        text = self.layers[0].read(text, image_kv[0], seen)
        mask = self_attention_mask('bidirectional', 0, text_mask) if text_mask is not None else None
        return self._run(text, image_kv, mask, keep=keep, first=1, image_mask=seen)[0]

    def forward_causal(self, input_ids: torch.Tensor, text_mask: torch.Tensor, image_kv=None,
                       image_mask: torch.Tensor | None = None, past: list[KeyValue] | None = None,
                       keep: slice = slice(None)) -> tuple[torch.Tensor, list[KeyValue]]:
        """Text reads the image and its own earlier tokens.

        Args:
            input_ids: int64 (B, T), beginning with [DEC], or the tokens after ``past``.
            text_mask: (B, tokens of ``past`` + T), nonzero at real tokens.
            image_kv: As in :meth:`forward_joint`; None: the text alone.
            image_mask: As in :meth:`forward_joint`.
            past: Second result of an earlier call, for the tokens in front of these.
            keep: As in :meth:`forward_joint`.

        Returns:
            tuple: (B, len(keep), D), and each layer's self-attention keys and values of all tokens so far.
        """
        before = past[0].key.size(2) if past is not None else 0
        mask = self_attention_mask('causal', 0, text_mask)[:, :, before:]
        return self._run(self._embed_text(input_ids, before), image_kv, mask, past, keep,
                         image_mask=_keys_mask(image_mask))


def _keys_mask(mask):
    """(B, S) as attention takes it: bool (B, 1, 1, S)."""
    return mask.bool()[:, None, None, :] if mask is not None else None
