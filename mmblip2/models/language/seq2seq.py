"""Encoder-decoder language models: T5, Flan-T5.

Shapes: B samples, Q visual prefix tokens, T text tokens of the encoder, U tokens of the decoder, H width.
"""
import torch

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from .base import LanguageModel, one_each, pad_ids, token_loss


@MODELS.register_module()
class Seq2SeqLM(LanguageModel):
    """An encoder-decoder language model; its encoder reads ``[prefix][prompt </s>][padding]``.

    The decoder's targets are the tokens of the target and ``</s>``; padding is never a target. Prompt and
    target are each cut to ``max_text_len`` tokens and keep their ``</s>``. Of a sample with several targets the encoder
    reads prefix and prompt once.

    Args:
        model, config, weights, tokenizer, dtype, max_text_len, attention, lora, quantize: See
            :class:`LanguageModel`. LAVIS
            runs Flan-T5 with ``config=dict(dense_act_fn='gelu')``.

    Raises:
        ConfigError: ``dtype='float16'``, or later a run under float16 autocast (T5 overflows in it), or the
            tokenizer has no end-of-sequence token; ``max_text_len``, or later prefix and prompt together or the new
            tokens, exceed the positions of a model that has a table of them (BART).
    """

    def __init__(self, model=None, config=None, weights=None, tokenizer=None, dtype='float32',
                 max_text_len=32, attention=None, lora=None, quantize=None):
        if dtype == 'float16':
            raise ConfigError("dtype of the language model is 'float16', in which T5 overflows: use "
                              "'bfloat16' or 'float32'")
        super().__init__('AutoModelForSeq2SeqLM', model, config, weights, tokenizer, dtype, max_text_len,
                         attention, lora, quantize)
        self._check_length(max_text_len, 'max_text_len alone makes')
        self.end_id = self.tokenizer.eos_token_id
        if self.end_id is None:
            raise ConfigError('the tokenizer has no end-of-sequence token, which ends every target of '
                              'a Seq2SeqLM')
        # A new config does not say it; T5 starts its decoder with the padding token.
        start_id = getattr(self.model.config, 'decoder_start_token_id', None)
        self.start_id = self.tokenizer.pad_token_id if start_id is None else start_id
        if self.start_id is None:
            raise ConfigError('neither the language model has a decoder_start_token_id nor its tokenizer a '
                              'padding token: one of them must start the decoder')

    def loss(self, prefix, prompts, targets):
        """See :meth:`LanguageModel.loss`."""
        embeds, mask = self._encoder_input(prefix, prompts, self.max_text_len)
        owners, targets = one_each(targets)
        labels, is_target = pad_ids([self._tokenize(target, self.max_text_len) for target in targets], 'cpu')  # (B, U)
        start = labels.new_full((len(targets), 1), self.start_id)
        ids = torch.cat([start, labels[:, :-1]], dim=1).to(embeds.device)
        read = dict(inputs_embeds=embeds)
        if owners != list(range(len(embeds))):  # the encoder reads a sample once, the decoder's rows are the targets
            states = self.model.get_encoder()(**read, attention_mask=mask.long(), return_dict=True)
            states.last_hidden_state = states.last_hidden_state[owners]
            read, mask = dict(encoder_outputs=states), mask[owners]
        with self._logits_of(is_target.flatten().nonzero()[:, 0].to(embeds.device)):
            logits = self.model(**read, attention_mask=mask.long(), use_cache=False,
                                decoder_input_ids=ids).logits  # (N, V)
        return token_loss(logits, labels[is_target].to(embeds.device))

    def generate(self, prefix, prompts, max_new_tokens=30, num_beams=1, min_new_tokens=None,
                 length_penalty=1.0, num_return_sequences=1, **kwargs):
        """See :meth:`LanguageModel.generate`."""
        self._check_length(max_new_tokens, 'max_new_tokens makes')
        embeds, mask = self._encoder_input(prefix, prompts, max_len=None)
        count = num_return_sequences or 1
        ids = self._search(embeds, mask.long(), self.end_id, max_new_tokens, num_beams, min_new_tokens,
                           length_penalty, count, dict(kwargs, decoder_start_token_id=self.start_id))
        return self._decode(ids[:, 1:], self.end_id, count)  # the first id is the decoder's start token

    def _read_once(self, inputs_embeds, attention_mask, rows):
        """The encoder's states, and the decoder's keys and values of them, which all beams of a sample read."""
        from transformers import DynamicCache, EncoderDecoderCache
        states = self.model.get_encoder()(inputs_embeds=inputs_embeds, attention_mask=attention_mask, return_dict=True)
        start = attention_mask.new_full((len(inputs_embeds), 1), self.start_id)
        cache = self.model(encoder_outputs=states, attention_mask=attention_mask, decoder_input_ids=start,
                           use_cache=True).past_key_values
        cross = self._repeated(getattr(cache, 'cross_attention_cache', cache), rows)
        if cross is None:
            return None
        cross.reorder_cache = lambda beams: None  # a beam is followed by one of the same sample
        return dict(encoder_outputs=states, attention_mask=attention_mask,
                    past_key_values=EncoderDecoderCache(DynamicCache(), cross))

    def count_context(self, num_prefix, prompt, max_new_tokens):
        """Tokens of the encoder, prefix and prompt; new tokens are the decoder's, which counts for itself."""
        return num_prefix + len(self._tokenize(prompt, None))

    def _encoder_input(self, prefix, prompts, max_len):
        """Embeddings (B, Q + T, H) and mask (B, Q + T) bool of prefix and prompts."""
        device = self.device
        if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16:
            raise ConfigError("the autocast dtype is 'float16', in which T5 overflows: use 'bfloat16' or 'float32'")
        ids, mask = pad_ids([self._tokenize(prompt, max_len) for prompt in prompts], device)
        embeds = self.embed(ids)  # (B, T, H)
        if prefix is not None:
            embeds = torch.cat([prefix.to(embeds), embeds], dim=1)
            mask = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        self._check_length(embeds.size(1), 'prefix and prompt make', 'shorten the prompt')
        return embeds, mask

    def _tokenize(self, text, max_len):
        ids = self.tokenizer(text.strip(), add_special_tokens=False).input_ids
        return ids[:None if max_len is None else max_len - 1] + [self.end_id]
