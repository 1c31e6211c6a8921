"""Decoder-only language models: OPT, Llama, Qwen ...

Shapes: B samples, Q visual prefix tokens, T text tokens, H width of the input embeddings, V vocabulary.
"""
import inspect
import logging

import torch
from mmengine.logging import print_log

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from .base import LanguageModel, pad_ids, token_loss


@MODELS.register_module()
class CausalLM(LanguageModel):
    """A decoder-only language model behind a visual prefix.

    A training row reads ``[prefix][BOS? prompt target ending][padding]``. The loss covers target and ending.
    Prefix, prompt (with its BOS) and padding are never targets; only when the prompt is empty, the BOS is a
    target too, predicted from the last prefix token (the rule of LAVIS). Prompt and target are joined by one
    space. A row longer than ``max_text_len`` is cut on the right, so that a long text loses its ending (as in
    LAVIS).
    A row for generation reads ``[padding][prefix][BOS? prompt]``.

    Differs from LAVIS: a prompt for generation is never cut.

    Args:
        model, config, weights, tokenizer, dtype, max_text_len, attention, lora, quantize: See
            :class:`LanguageModel`.
        ending (str | int, optional): The one token, or its id, that ends every target and stops the generation.
            Default: a new line for OPT, the tokenizer's end-of-sequence token for the others.
        add_special_tokens (bool): Whether the tokenizer adds what it adds by itself (BOS for OPT and Llama).

    Raises:
        ConfigError: The ending is not one token; ``max_text_len``, or later prefix and text together, exceed the
            model's positions; no row of a batch has room for its target.
    """

    def __init__(self, model=None, config=None, weights=None, tokenizer=None, dtype='float32',
                 max_text_len=32, ending=None, add_special_tokens=True, attention=None, lora=None, quantize=None):
        super().__init__('AutoModelForCausalLM', model, config, weights, tokenizer, dtype, max_text_len,
                         attention, lora, quantize)
        self._check_length(max_text_len, 'max_text_len alone makes')
        self.add_special_tokens = add_special_tokens
        if ending is None:
            ending = '\n' if self.model.config.model_type == 'opt' else self.tokenizer.eos_token
        if ending is None:
            raise ConfigError('the tokenizer has no end-of-sequence token: set ending=<token> of the '
                              'language model')
        end_ids = [ending] if isinstance(ending, int) else self.tokenizer(ending, add_special_tokens=False).input_ids
        if len(end_ids) != 1:
            raise ConfigError(f'ending={ending!r} of the language model is {len(end_ids)} tokens, expected '
                              "one: choose another, the tokenizer's end-of-sequence token for example")
        self.end_id = end_ids[0]
        self._told_of_no_room = False
        self._takes = set(inspect.signature(self.model.forward).parameters)
        self._can_keep = 'logits_to_keep' in self._takes

    def loss(self, prefix, prompts, targets):
        """See :meth:`LanguageModel.loss`."""
        prompts = [prompt.rstrip() for prompt in prompts]
        rows, starts, no_room = [], [], 0
        for prompt, target in zip(prompts, targets):
            text = f'{prompt} {target.strip()}' if prompt else target.strip()
            row = self._tokenize(text) + [self.end_id]
            rows.append(row[:self.max_text_len])
            starts.append(len(self._tokenize(prompt)) if prompt else 0)
            first = max(starts[-1], 1 if prefix is None else 0)
            no_room += len(rows[-1]) <= first < len(row)
        self._check_room(no_room, len(rows), max(starts, default=0))
        ids, mask = pad_ids(rows, 'cpu')  # (B, T)
        is_target = mask & (torch.arange(ids.size(1)) >= torch.tensor(starts)[:, None])  # (B, T)
        if prefix is None:
            # The first token has nothing before it to be predicted from.
            is_target[:, 0] = False
        # The output layer reads ``keep`` places of a row, of which the one at ``shift`` predicts the first text token:
        # the last of the prefix. Known on the CPU, so that nobody waits for the device.
        shift = -1 if prefix is None else 0 if self._can_keep else prefix.size(1) - 1
        keep = ids.size(1) + shift + 1
        sample, place = is_target.nonzero(as_tuple=True)
        chosen = sample * keep + place + shift
        device = self.device
        labels, chosen = ids[is_target].to(device), chosen.to(device)
        embeds, mask = self.embed(ids.to(device)), mask.to(device)  # (B, T, H)
        if prefix is not None:
            embeds, mask = _prepend(prefix, embeds, mask)  # (B, Q + T, H)
        self._check_length(embeds.size(1))
        kept = dict(logits_to_keep=keep) if self._can_keep else {}
        with self._logits_of(chosen):
            logits = self.model(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False, **kept).logits
        return token_loss(logits, labels)

    def generate(self, prefix, prompts, max_new_tokens=30, num_beams=1, min_new_tokens=None,
                 length_penalty=1.0, num_return_sequences=1, **kwargs):
        """See :meth:`LanguageModel.generate`."""
        rows = [self._tokenize(prompt.rstrip()) for prompt in prompts]
        if prefix is None and not all(rows):
            raise ValueError('nothing to continue: a prompt has no tokens and there is no visual prefix')
        device = self.device
        ids, mask = pad_ids(rows, device, side='left')  # (B, T)
        embeds = self.embed(ids)
        if prefix is not None:
            embeds, mask = _prepend(prefix, embeds, mask)
            # [prefix][padding][prompt] -> [padding][prefix][prompt], so that relative positions are right
            # in every model; the sort is stable.
            order = mask.long().argsort(dim=1, stable=True)
            embeds = embeds.gather(1, order[:, :, None].expand_as(embeds))
            mask = mask.gather(1, order)
        self._check_length(embeds.size(1) + max_new_tokens, advice='shorten the prompt or lower max_new_tokens')
        count = num_return_sequences or 1
        new_ids = self._search(embeds, mask.long(), self.end_id, max_new_tokens, num_beams, min_new_tokens,
                               length_penalty, count, kwargs)
        return self._decode(new_ids, self.end_id, count)

    def _read_once(self, inputs_embeds, attention_mask, rows):
        """All but the last token, into a cache that ``generate`` goes on from."""
        if inputs_embeds.size(1) < 2:
            return None
        mask = attention_mask[:, :-1]
        settings = {}
        if 'position_ids' in self._takes:  # as generate counts them
            settings['position_ids'] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        if self._can_keep:
            settings['logits_to_keep'] = 1
        cache = self.model(inputs_embeds=inputs_embeds[:, :-1], attention_mask=mask, use_cache=True,
                           **settings).get('past_key_values')
        cache = self._repeated(cache, rows)
        return cache and dict(inputs_embeds=inputs_embeds, attention_mask=attention_mask, past_key_values=cache)

    def count_context(self, num_prefix, prompt, max_new_tokens):
        """See :meth:`LanguageModel.count_context`."""
        return num_prefix + len(self._tokenize(prompt.rstrip())) + max_new_tokens

    def _check_room(self, count, total, longest):
        """Refuse a batch without any target, and say once that some rows have none. Decided by each process alone."""
        if not count:
            return
        advice = (f'max_text_len of the language model is {self.max_text_len} tokens, prompt and target together, and '
                  f'the longest prompt has {longest}: raise max_text_len above that by the length of the targets, or '
                  'shorten the prompts')
        if count == total:
            raise ConfigError(f'none of the {total} texts of a batch has room for its target: {advice}')
        if not self._told_of_no_room:
            self._told_of_no_room = True
            print_log(f'{count} of the {total} texts of a batch have no room for their target and teach nothing: '
                      f'{advice}. Said only once', logger='current', level=logging.WARNING)

    def _tokenize(self, text):
        return self.tokenizer(text, add_special_tokens=self.add_special_tokens).input_ids


def _prepend(prefix, embeds, mask):
    """Put the prefix (B, Q, H), always visible, before embeddings (B, T, H) and mask (B, T) bool."""
    embeds = torch.cat([prefix.to(embeds), embeds], dim=1)  # (B, Q + T, H)
    return embeds, torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
