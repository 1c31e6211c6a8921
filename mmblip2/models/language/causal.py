"""Decoder-only language models: OPT, Llama, Qwen ...

Shapes: B samples, Q visual prefix tokens, T text tokens, H width of the input embeddings, V vocabulary.
"""
import inspect
import logging
from typing import NamedTuple

import torch
from mmengine.logging import print_log

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from .base import LanguageModel, one_each, pad_ids, token_loss

#: model types of which tests show that several targets in a row give the losses of rows of their own
_PACKED = {'gpt2', 'llama', 'mistral', 'opt', 'qwen2'}


@MODELS.register_module()
class CausalLM(LanguageModel):
    """A decoder-only language model behind a visual prefix.

    A training row reads ``[prefix][BOS? prompt target ending][padding]``. The loss covers target and ending.
    Prefix, prompt (with its BOS) and padding are never targets; only when the prompt is empty, the BOS is a
    target too, predicted from the last prefix token (the rule of LAVIS). Prompt and target are joined by one
    space. A row longer than ``max_text_len`` is cut on the right, so that a long text loses its ending (as in
    LAVIS).
    Several targets of a sample are read behind one prefix and prompt, ``[prefix][BOS? prompt][target ending][target
    ending]...``, each as if the others were not there; model types of which that was not verified read them in rows of
    their own.
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
        if any(not isinstance(target, str) for target in targets):
            return self._loss_of_several(prefix, prompts, targets)
        rows, starts = self._training_rows(prefix is not None, prompts, targets)
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

    def _loss_of_several(self, prefix, prompts, targets):
        """The loss where samples have several targets: those of a sample stand in one row, behind the prefix and the
        prompt that they share, and do not see one another."""
        owners, targets = one_each(targets)
        prompts = [prompts[sample] for sample in owners]
        if prefix is None or self.model.config.model_type not in _PACKED or self.attention not in ('eager', 'sdpa'):
            return self.loss(None if prefix is None else prefix[owners], prompts, targets)
        rows, starts = self._training_rows(True, prompts, targets)
        packed = pack_targets(rows, starts, owners, prefix.size(1))
        self._check_length(int(packed.positions.max()) + 1)
        device = self.device
        embeds = self.embed(packed.ids.to(device))  # (B, T, H)
        embeds = torch.cat([prefix.to(embeds), embeds], dim=1)  # (B, Q + T, H)
        mask = packed.visible[:, None].to(device)
        if self.attention == 'eager':
            mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill_(~mask, torch.finfo(embeds.dtype).min)
        with self._logits_of(packed.predictors.to(device)):
            logits = self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False,
                                position_ids=packed.positions.to(device)).logits
        return token_loss(logits, packed.labels.to(device))

    @property
    def attention(self):
        """str: What computes the attention of the transformers model: 'eager', 'sdpa' ..."""
        return self.model.config._attn_implementation

    def _training_rows(self, has_prefix, prompts, targets):
        """Ids of each row, cut to ``max_text_len``, and where its targets start."""
        rows, starts, no_room = [], [], 0
        for prompt, target in zip(prompts, targets):
            text = f'{prompt} {target.strip()}' if prompt else target.strip()
            row = self._tokenize(text) + [self.end_id]
            rows.append(row[:self.max_text_len])
            starts.append(len(self._tokenize(prompt)) if prompt else 0)
            first = max(starts[-1], 0 if has_prefix else 1)
            no_room += len(rows[-1]) <= first < len(row)
        self._check_room(no_room, len(rows), max(starts, default=0))
        return rows, starts

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


class PackedTargets(NamedTuple):
    """Rows in which the targets of a sample stand behind one prefix and prompt: B samples, Q prefix tokens, T tokens of
    text, N target tokens; all on the CPU.

    ``ids`` (B, T) int64; ``positions`` (B, Q + T) int64, as each target alone would have; ``visible`` (B, Q + T, Q + T)
    bool, what each token (second axis) sees; ``labels`` (N,) int64; ``predictors`` (N,) int64, the places among all
    B * (Q + T) that predict them.
    """
    ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    labels: torch.Tensor
    predictors: torch.Tensor


def pack_targets(rows, starts, owners, num_prefix):
    """Put the rows of each sample behind one another; what they share at their start, at most the prompt, comes once.

    Args:
        rows (list[list[int]]): Prompt, target and ending of each target.
        starts (list[int]): Tokens of its prompt.
        owners (list[int]): Its sample, in ascending order from 0.
        num_prefix (int): Visual prefix tokens.

    Returns:
        PackedTargets: See there.
    """
    of_sample: list[list[tuple[list[int], int]]] = [[] for _ in range(owners[-1] + 1)]
    for row, start, owner in zip(rows, starts, owners):
        of_sample[owner].append((row, start))
    shared = [_common_start([row for row, _ in group], min(start for _, start in group)) for group in of_sample]
    width = max(same + sum(len(row) - same for row, _ in group) for group, same in zip(of_sample, shared))
    total = num_prefix + width
    ids = torch.zeros(len(of_sample), width, dtype=torch.int64)
    positions = torch.zeros(len(of_sample), total, dtype=torch.int64)
    part = torch.full((len(of_sample), total), -1)  # 0: prefix and shared start; 1, 2, ...: a target; -1: padding
    labels, predictors = [], []
    for sample, (group, same) in enumerate(zip(of_sample, shared)):
        place = num_prefix + same
        ids[sample, :same] = torch.tensor(group[0][0][:same], dtype=torch.int64)
        part[sample, :place] = 0
        positions[sample, :place] = torch.arange(place)
        for number, (row, start) in enumerate(group, 1):
            own = slice(place, place + len(row) - same)
            ids[sample, place - num_prefix:own.stop - num_prefix] = torch.tensor(row[same:], dtype=torch.int64)
            positions[sample, own] = torch.arange(num_prefix + same, num_prefix + len(row))
            part[sample, own] = number
            before = [num_prefix + same - 1, *range(own.start, own.stop - 1)]  # of each own token, the place before it
            for label, predictor in zip(row[start:], before[start - same:]):
                labels.append(label)
                predictors.append(sample * total + predictor)
            place = own.stop
    visible = (part[:, :, None] == part[:, None, :]) | (part == 0)[:, None, :]
    visible &= torch.ones(total, total, dtype=torch.bool).tril()
    return PackedTargets(ids, positions, visible, torch.tensor(labels), torch.tensor(predictors))


def _common_start(rows, most):
    """How many first ids, at most ``most``, are the same in all ``rows``."""
    same = 0
    while same < most and all(len(row) > same and row[same] == rows[0][same] for row in rows):
        same += 1
    return same


def _prepend(prefix, embeds, mask):
    """Put the prefix (B, Q, H), always visible, before embeddings (B, T, H) and mask (B, T) bool."""
    embeds = torch.cat([prefix.to(embeds), embeds], dim=1)  # (B, Q + T, H)
    return embeds, torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
