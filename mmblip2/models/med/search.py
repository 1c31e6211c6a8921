"""Greedy search, beam search and sampling of a MED decoder, by transformers' ``generate``.

Shapes: B rows to continue, N texts a row (beams or samples), T tokens, D width, V vocabulary.
"""
import functools
from collections.abc import Callable

import torch

from ..layers.attention import KeyValue
from .med import MED


class _Cache:
    """Keys and values of the tokens so far, as transformers' search asks for them."""

    is_compileable = False
    layers: list[KeyValue] | None = None

    def get_seq_length(self, *args) -> int:
        return 0 if self.layers is None else self.layers[0].key.size(2)

    def reorder_cache(self, rows: torch.Tensor):
        assert self.layers is not None
        self.layers = [layer.rows(rows) for layer in self.layers]


@functools.cache
def _writer_class():
    """The adapter; made when it is first needed, so that nothing here imports transformers before."""
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class MEDWriter(PreTrainedModel, GenerationMixin):
        main_input_name = 'input_ids'

        def __init__(self, decoder, lm_head, image_kv, image_mask):
            config = PretrainedConfig(vocab_size=decoder.vocab_size)  # type: ignore[call-arg]
            super().__init__(config)  # of this call alone
            self.decoder, self.lm_head, self.image_kv, self.image_mask = decoder, lm_head, image_kv, image_mask

        # transformers' signatures differ from version to version
        def prepare_inputs_for_generation(self, input_ids, past_key_values=None,  # type: ignore[override]
                                          attention_mask=None, **kwargs):
            return dict(input_ids=input_ids[:, past_key_values.get_seq_length():], past_key_values=past_key_values)

        def forward(self, input_ids, past_key_values, **kwargs):
            real = input_ids.new_ones(len(input_ids), past_key_values.get_seq_length() + input_ids.size(1))
            states, past_key_values.layers = self.decoder.forward_causal(
                input_ids, real, self.image_kv, self.image_mask, past_key_values.layers, slice(-1, None))
            logits = self.lm_head(states, self.decoder.word_embeddings.weight)  # (B*N, 1, V)
            return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    return MEDWriter


@torch.no_grad()
def search(decoder: MED, lm_head: Callable, input_ids: torch.Tensor, image_kv: list[KeyValue | None],
           image_mask: torch.Tensor | None = None, **settings) -> torch.Tensor:
    """Continue rows of ids of one length.

    Beams, and several texts of a row, share the keys and values of what cross-attention reads; nothing is copied for
    them.

    Args:
        decoder: With a vocabulary of V tokens.
        lm_head: (B, T, D) and the word embeddings to logits (B, T, V).
        input_ids: int64 (B, T), [DEC] first, no padding.
        image_kv: Of ``decoder.project_image``, B rows.
        image_mask: (B, S), nonzero at the rows that cross-attention may read; None: all.
        **settings: Of transformers' ``generate``, with ``eos_token_id`` and ``pad_token_id``.

    Returns:
        torch.Tensor: int64 (B * N, T + new tokens), the texts of one row after the other.
    """
    writer = _writer_class()(decoder, lm_head, image_kv, image_mask)
    return writer.generate(inputs=input_ids, attention_mask=torch.ones_like(input_ids), past_key_values=_Cache(),
                           **settings)
