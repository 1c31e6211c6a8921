"""What a language model must offer to BLIP-2, and how one is loaded.

Shapes: B samples, Q visual prefix tokens, T text tokens, H width of the input embeddings.
"""
import contextlib
import inspect
import logging
import re
from abc import abstractmethod
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from mmblip2.checkpoints.sources import local_or_hub
from mmblip2.compat import mismatched_tensors, obey_newer_config, read_tokenizer
from mmblip2.errors import ConfigError, first_lines

from ..hub import (
    MODEL_FILES,
    TOKENIZER_FILES,
    cannot_read,
    refuse,
    refuse_code,
    settings_that_run_code,
    suggestion,
    unknown_settings,
)
from .adapted import add_lora, check_packages, lora_parameters, merge_lora, quantization, without_lora

_DTYPES = ('float32', 'bfloat16', 'float16')
#: settings of a generation that choose or fill a cache of their own
_OWN_CACHE = {'use_cache', 'cache_implementation', 'cache_config', 'prefill_chunk_size'}
_ADAPTERS = {'AutoModelForCausalLM': 'CausalLM', 'AutoModelForSeq2SeqLM': 'Seq2SeqLM'}


class LanguageModel(nn.Module):
    """A transformers language model that reads a visual prefix before its prompt.

    The prefix is concatenated to the text embeddings here; no placeholder tokens exist. Text is padded by
    hand, so no call changes the tokenizer.

    Args:
        auto_class (str): transformers class that builds the model, ``'AutoModelForCausalLM'`` for example.
        model (str, optional): Folder with a Hugging Face model (or a name on its hub, of which the last part may be a
            folder in ``MMBLIP2_WEIGHTS``); also one of a whole BLIP-2 or InstructBLIP, whose language model is taken.
        config (dict, optional): Without ``model``: the architecture of a randomly initialised model, with
            its ``model_type``; vocabulary size and special token ids default to the tokenizer's. With
            ``model``: settings that replace those of the folder, which must be of the same ``model_type`` and, where
            ``tie_word_embeddings`` is set, have an output layer of that kind (T5 1.1 and Flan-T5: False).
        weights (str, optional): An mmblip2 checkpoint whose ``language_model.`` tensors are loaded.
        tokenizer (str or tokenizer, optional): Folder of the tokenizer, or a ready one; default: ``model``.
        dtype (str): Type of the weights: ``'float32'``, ``'bfloat16'`` or ``'float16'``.
        max_text_len (int): Longest text of a training sample, in tokens.
        lora (dict, optional): Train low-rank matrices beside the frozen weights (needs peft): ``dict(r=8, alpha=16,
            targets=['q_proj', 'v_proj'])``; without ``targets`` the layers that peft knows for the architecture. They
            are in every checkpoint, the frozen weights are not. :meth:`merge_lora` ends it.
        quantize (str, optional): ``'8bit'`` or ``'4bit'`` keeps the frozen weights so (needs bitsandbytes and
            accelerate, and ``model``); ``dtype`` is what it computes in.
        attention (str, optional): ``attn_implementation`` of transformers. Training under bfloat16 autocast on
            a CPU is a quarter faster with ``'eager'`` than with the default (torch 2.15, OPT of width 128).

    Attributes:
        hidden_size (int): Width of the input embeddings, the width that a prefix must have.
        weights_source (str or None): Where the weights came from; None when they are random.
        model (nn.Module): The transformers model.
        tokenizer: The transformers tokenizer.

    Raises:
        ConfigError: Neither or unusable ``model`` and ``config``, an unknown setting or one with which code of the
            folder would run, a model of the other family (encoder-decoder or decoder-only), weights that do not
            fill the model or of which layers are left over, no tokenizer, or a tokenizer with more ids than the
            model has embeddings.
        CheckpointError: ``weights`` do not fit.
    """

    def __init__(self, auto_class, model=None, config=None, weights=None, tokenizer=None, dtype='float32',
                 max_text_len=32, attention=None, lora=None, quantize=None):
        super().__init__()
        check_packages(lora, quantize)
        if quantize is not None and (model is None or weights is not None):
            raise ConfigError(f'quantize={quantize!r} of the language model reads a folder of transformers: set model, '
                              'and leave weights out')
        if dtype not in _DTYPES:
            raise ConfigError(f'dtype of the language model is {dtype!r}, expected one of '
                              f'{", ".join(_DTYPES)}')
        if model is None and config is None:
            raise ConfigError('the language model has neither `model` nor `config`: set model=<folder of a '
                              "Hugging Face model>, or config=dict(model_type='opt', ...) for random weights")
        if model is None and tokenizer is None:
            raise ConfigError('the language model has no tokenizer: set tokenizer=<folder>')
        refuse_code(dict(config or {}, attn_implementation=attention), 'config of the language model')
        self.tokenizer = tokenizer or model
        if isinstance(self.tokenizer, str):
            self.tokenizer = _load_tokenizer(local_or_hub(self.tokenizer))
        if model is None:
            with _undrawn() if weights is not None else contextlib.nullcontext():
                self.model = _from_config(auto_class, config, self.tokenizer, dtype, attention)
        else:
            overrides = plain(config or {})
            model_type = overrides.pop('model_type', None)
            self.model = _from_folder(auto_class, local_or_hub(model), overrides, dtype, attention,
                                      quantize)
            if model_type not in (None, self.model.config.model_type):
                raise ConfigError(f'the language model {model} is of model_type {self.model.config.model_type!r}, its '
                                  f'config says {model_type!r}: give the folder and the config of one model')
        self.weights_source = model
        self._told_of_cache = False
        self.max_text_len = max_text_len

        rows = self.model.get_input_embeddings().num_embeddings
        if len(self.tokenizer) > rows:
            raise ConfigError(f'the tokenizer {tokenizer or model} has {len(self.tokenizer)} ids, but the '
                              f'language model embeds only {rows}: use the tokenizer that the model was '
                              f'trained with, or config=dict(vocab_size={len(self.tokenizer)}) for a '
                              'new model')
        if weights is not None:
            from mmblip2.checkpoints.io import load_weights
            load_weights(self, weights, prefix='language_model')
            self.weights_source = weights
        self._reset_generation_config()
        self.has_lora = lora is not None
        #: why the model must have it among its frozen parts
        self.must_be_frozen = f'quantize={quantize!r}' if quantize else 'lora' if lora is not None else None
        if lora is not None:
            add_lora(self.model, lora)
            self.requires_grad_(False)

    def requires_grad_(self, requires_grad=True):
        """As of every module, but the matrices of ``lora`` are always trained."""
        super().requires_grad_(requires_grad)
        if self.has_lora:
            for parameter in lora_parameters(self.model):
                parameter.requires_grad_(True)
        return self

    def frozen_state(self):
        """State dict of what is never trained, by the names without ``lora``."""
        return without_lora(self.state_dict())

    def merge_lora(self):
        """Add the trained matrices to the weights and end ``lora``: ``self.model.save_pretrained(folder)`` then writes
        a folder that a config may name as ``model``."""
        if self.has_lora:
            merge_lora(self.model)
            self.has_lora, self.must_be_frozen = False, None

    def _reset_generation_config(self):
        # A folder may bring sampling settings of its own; what is generated is decided by the arguments.
        from transformers import GenerationConfig
        self.model.generation_config = GenerationConfig(bos_token_id=self.tokenizer.bos_token_id)

    @property
    def hidden_size(self):
        """int: Width of the input embeddings (for OPT-350m not the width of its layers)."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def device(self):
        """torch.device: Where the input embeddings are computed, also where accelerate keeps them elsewhere."""
        table = self.model.get_input_embeddings()
        hook = getattr(table, '_hf_hook', None)
        placed = getattr(getattr(hook, 'hooks', [hook])[0], 'execution_device', None)
        return table.weight.device if placed is None else torch.device(placed)

    def embed(self, input_ids):
        """Look up the input embeddings.

        Args:
            input_ids (Tensor): (B, T) int64.

        Returns:
            Tensor: (B, T, H) in the model's own type.
        """
        return self.model.get_input_embeddings()(input_ids)

    @abstractmethod
    def loss(self, prefix, prompts, targets):
        """Cross entropy of the targets.

        Args:
            prefix (Tensor or None): (B, Q, H), any floating type; None trains on text alone.
            prompts (list[str]): What precedes each target; ``''`` for nothing. Never a target itself.
            targets (list[str | list[str]]): What the model shall say; a list are several targets of a sample, each
                predicted as if the others were not there. Prefix and prompt are read once for all of them.

        Returns:
            tuple[Tensor, Tensor]: Sum over all target tokens (float32 scalar, nats) and their number (int64
            scalar).
        """

    @property
    def max_context(self):
        """int or None: Most tokens that the model was made for: the rows of its position table, or, where positions
        are relative (T5), the length that its config or tokenizer names; None where nothing says it."""
        config = self.model.config
        limit = getattr(config, 'max_position_embeddings', None) or getattr(config, 'n_positions', None)
        named = self.tokenizer.model_max_length
        return limit or (named if named < 10**6 else None)  # transformers' way to say "none" is 1e30

    def count_context(self, num_prefix, prompt, max_new_tokens):
        """Tokens that generating takes of :attr:`max_context`.

        Args:
            num_prefix (int): Visual prefix tokens.
            prompt (str): What the new text continues.
            max_new_tokens (int): Most tokens to generate.

        Returns:
            int: Prefix, prompt with its special tokens, and new tokens.
        """
        return num_prefix + len(self.tokenizer(prompt.rstrip()).input_ids) + max_new_tokens

    @abstractmethod
    def generate(self, prefix, prompts, max_new_tokens=30, num_beams=1, min_new_tokens=None,
                 length_penalty=1.0, num_return_sequences=1, **kwargs):
        """Continue the prompts.

        Args:
            prefix (Tensor or None): (B, Q, H), any floating type.
            prompts (list[str]): One prompt a sample; ``''`` for none. Prompts are never cut.
            max_new_tokens (int): Most tokens to generate, prefix and prompt not counted.
            num_beams (int): 1 is greedy search.
            min_new_tokens (int, optional): Fewest tokens before the text may end.
            length_penalty (float): Exponent of the length that divides a beam's score; unused without beams.
            num_return_sequences (int): Texts a sample: the best beams, or that many samples of ``do_sample=True``.
            **kwargs: More settings of transformers' ``generate``.

        Returns:
            list[str] | list[list[str]]: The new text of each sample, stripped, without prompt and special tokens; with
            ``num_return_sequences`` above 1 the list of its texts, best beam first.

        Raises:
            ConfigError: Prompt and new tokens exceed the model's positions; more texts than beams without sampling; an
                unknown setting, or one with which code of a model repository would run or no texts be returned.
        """

    def _check_length(self, length, what='prefix, text and new tokens make',
                      advice='lower max_text_len or max_new_tokens'):
        """Refuse more positions than the model has a table for; relative ones (T5) have no limit."""
        limit = getattr(self.model.config, 'max_position_embeddings', None)
        if limit is not None and length > limit:
            raise ConfigError(f'{what} {length} tokens, but the language model has '
                              f'{limit} positions: {advice}, or use a model with a larger max_position_embeddings')

    def _search(self, inputs_embeds, attention_mask, end_id, max_new_tokens, num_beams, min_new_tokens,
                length_penalty, count, kwargs):
        """Run transformers' ``generate`` on embeddings and return the ids (B * count, N) that it gives back, those of
        one sample after the other."""
        refuse(generation_problems(kwargs, self.generate), 'generate of the language model')
        settings = search_settings(end_id, self.tokenizer.pad_token_id, max_new_tokens, num_beams, min_new_tokens,
                                   length_penalty, count, kwargs)
        inputs = dict(inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        rows = max(num_beams, count)
        if rows > 1 and not _OWN_CACHE.intersection(kwargs):
            with torch.no_grad():
                inputs = self._read_once(inputs_embeds, attention_mask, rows) or inputs
        # Processes do not wait for one another's texts: fsdp gathers the weights before an evaluation.
        return self.model.generate(**inputs, synced_gpus=False, **settings)

    def _read_once(self, inputs_embeds, attention_mask, rows):
        """Inputs of ``generate`` in which prefix and prompt have been read once a sample, for ``rows`` beams or samples
        of each; None where that is not possible."""

    def _repeated(self, cache, rows):
        """Repeat each sample of a transformers cache ``rows`` times; None, said once, for one that cannot be."""
        from transformers import DynamicCache
        try:
            if not isinstance(cache, DynamicCache):
                raise TypeError
            cache.batch_repeat_interleave(rows)
        except (AttributeError, NotImplementedError, TypeError):
            if not self._told_of_cache:
                self._told_of_cache = True
                print_log(f'the cache of {type(self.model).__name__} ({type(cache).__name__}) cannot be repeated: '
                          'prefix and prompt are read once a beam instead of once an image. Said only once',
                          logger='current', level=logging.WARNING)
            return None
        return cache

    @contextlib.contextmanager
    def _logits_of(self, chosen):
        """Inside, the model gives logits of chosen positions only.

        Args:
            chosen (Tensor): int64 (N,), places among the B * K rows that reach the output layer.
        """
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, args: (args[0].flatten(0, 1)[chosen], *args[1:]))
        try:
            yield
        finally:
            hook.remove()

    def _decode(self, rows, end_id, count=1):
        """Text of each row of ids up to its first ``end_id``; with ``count`` above 1 the texts of each ``count`` rows.
        """
        texts = []
        for row in rows.tolist():
            row = row[:row.index(end_id)] if end_id in row else row
            texts.append(self.tokenizer.decode(row, skip_special_tokens=True,
                                               clean_up_tokenization_spaces=False).strip())
        return texts if count == 1 else [texts[i:i + count] for i in range(0, len(texts), count)]


def search_settings(end_id, pad_id, max_new_tokens, num_beams, min_new_tokens, length_penalty, count, others):
    """Arguments of :meth:`LanguageModel.generate` as transformers' ``generate`` takes them.

    Args:
        end_id (int): Token that ends a text.
        pad_id (int or None): Token behind the end.
        max_new_tokens, num_beams, min_new_tokens, length_penalty: See :meth:`LanguageModel.generate`.
        count (int): Its ``num_return_sequences``.
        others (dict): Its other settings.

    Returns:
        dict: Settings.

    Raises:
        ConfigError: More texts than beams without sampling.
    """
    settings = dict(do_sample=False, max_new_tokens=max_new_tokens, num_beams=num_beams, eos_token_id=end_id,
                    pad_token_id=end_id if pad_id is None else pad_id)
    if min_new_tokens is not None:
        settings['min_new_tokens'] = min_new_tokens
    if num_beams > 1:
        settings['length_penalty'] = length_penalty
    settings.update(others)
    if count > 1:
        sampled = settings['do_sample'] and num_beams == 1
        if not sampled and num_beams < count:
            raise ConfigError(f'{count} texts a sample (num_return_sequences) need as many beams, got num_beams='
                              f'{num_beams}: set num_beams={count}, or do_sample=True with num_beams=1')
        settings['num_return_sequences'] = count
    return settings


def generation_problems(settings, generate):
    """What is wrong with the settings of a generation.

    Args:
        settings (dict): What is given to ``generate`` beside prefix and prompts.
        generate (function): That method of a language model; what it passes on goes to transformers.

    Returns:
        dict: Each wrong setting to what is wrong with it.
    """
    problems = settings_that_run_code(settings)
    taken = inspect.signature(generate).parameters.values()
    allowed = {item.name for item in taken if item.kind is not item.VAR_KEYWORD} - {'self', 'prefix', 'prompts'}
    if settings and any(item.kind is item.VAR_KEYWORD for item in taken):
        from transformers import GenerationConfig
        allowed.update(name for name in vars(GenerationConfig()) if name[0] != '_' and name != 'transformers_version')
    if settings.get('num_return_sequences') not in (None, 1):
        problems['num_return_sequences'] = (f'num_return_sequences={settings["num_return_sequences"]!r}, but a sample '
                                            'gets one text: leave it out')
    if settings.get('return_dict_in_generate'):
        problems['return_dict_in_generate'] = ('return_dict_in_generate is set, but generate returns texts alone: '
                                               'leave it out')
    for key in settings:
        if key not in allowed and key not in problems:
            problems[key] = f'generate has no setting {key!r}' + suggestion(key, allowed)
    return problems


def one_each(targets):
    """Split the targets of samples that have several.

    Args:
        targets (list[str | list[str]]): Of each sample.

    Returns:
        tuple[list[int], list[str]]: The sample of each target, ascending, and the target.
    """
    lists = [[target] if isinstance(target, str) else target for target in targets]
    return ([sample for sample, texts in enumerate(lists) for _ in texts], [text for texts in lists for text in texts])


def pad_ids(rows, device, side='right'):
    """Pad lists of ids to one length.

    Args:
        rows (list[list[int]]): Ids of each sample.
        device (torch.device): Where the result lives.
        side (str): ``'right'`` or ``'left'``: where the padding stands.

    Returns:
        tuple[Tensor, Tensor]: Ids (B, T) int64 with 0 in the padding, and the mask (B, T) bool, True on text.
    """
    ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(len(row)) if side == 'right' else slice(ids.size(1) - len(row), None)
        ids[i, place] = torch.tensor(row, dtype=torch.int64)
        mask[i, place] = True
    return ids.to(device), mask.to(device)


def token_loss(logits, labels):
    """Cross entropy of targets.

    Args:
        logits (Tensor): (N, V), any floating type.
        labels (Tensor): (N,) int64.

    Returns:
        tuple[Tensor, Tensor]: Sum (float32 scalar, nats) and number of targets (int64 scalar).
    """
    loss_sum = nn.functional.cross_entropy(logits.float(), labels, reduction='sum')
    return loss_sum, torch.tensor(len(labels), device=labels.device)


def _load_tokenizer(folder):
    try:
        return read_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f'no tokenizer could be loaded from {folder}: {cannot_read(folder, TOKENIZER_FILES)} '
                          f'({first_lines(error)})') from error


def _from_folder(auto_class, folder, overrides, dtype, attention, quantize=None):
    import transformers
    settings = plain(overrides or {})
    tied = settings.pop('tie_word_embeddings', None)  # set afterwards, it would untie T5's two inputs as well
    outer = _config_of_whole(folder)
    if outer is not None and settings:
        raise ConfigError(f'{folder} is a {outer.model_type} as a whole, whose language model is taken as it is there: '
                          f'take {", ".join(settings)} out of config')
    try:
        # False, as without the argument transformers asks at the terminal whether to run a folder's own code.
        config, unknown = (outer.text_config, {}) if outer is not None else transformers.AutoConfig.from_pretrained(
            folder, return_unused_kwargs=True, trust_remote_code=False, **settings)
        if unknown:
            raise ConfigError(f'config of the language model {folder} has no setting '
                              f'{", ".join(map(repr, unknown))}')
        _check_family(auto_class, config, f'the language model {folder}')
        obey_newer_config(config, f'the language model {folder}')
        with _no_progress_bar():
            # Tensors of another shape are refused below, with their names.
            how = dict(config=config, dtype=getattr(torch, dtype), attn_implementation=attention,
                       ignore_mismatched_sizes=True, output_loading_info=True)
            if quantize is not None:
                how['quantization_config'] = quantization(quantize, dtype)
            if outer is None:
                model, info = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=False, **how)
            else:
                model, info = _from_whole(getattr(transformers, auto_class), folder, how)
    except (OSError, ValueError) as error:
        raise ConfigError(f'the language model {folder} could not be loaded: {cannot_read(folder, MODEL_FILES)} '
                          f'({first_lines(error)})') from error
    _check_loaded(model, info, folder)
    if tied not in (None, _is_tied(model)):
        raise ConfigError(f'the output layer of the language model {folder} is {"" if _is_tied(model) else "not "}its '
                          f'embedding, config says tie_word_embeddings={tied}: take that out of config, or give the '
                          'folder of the model that config describes')
    return model


def _config_of_whole(folder):
    """Config of a whole BLIP-2 or InstructBLIP in ``folder``; None for the folder, or hub name, of anything else."""
    from mmblip2.checkpoints.io import folder_config
    if 'text_config' not in folder_config(folder) or 'qformer_config' not in folder_config(folder):
        return None
    import transformers
    return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _from_whole(auto_class, folder, how):
    """The language model inside a BLIP-2, with the loading info; built without drawing random weights first."""
    from mmblip2.checkpoints.io import read_checkpoint
    start = 'language_model.model.'
    state = {key[len(start):]: value for key, value in read_checkpoint(folder)['state_dict'].items()
             if key.startswith(start)}
    if not state:
        raise ConfigError(f'{folder} holds no language model (no key language_model.*): give the folder of one')
    kind = type(how['config'])
    if kind not in auto_class._model_mapping:
        raise ValueError(f'{auto_class.__name__} has no model for {kind.__name__}')
    model, info = auto_class._model_mapping[kind].from_pretrained(None, state_dict=state, **how)
    for parameter in model.parameters():  # they may still be the mapped file
        parameter.data = parameter.data.clone()
    return model, info


def _is_tied(model):
    """Whether output layer and input embeddings are one tensor."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _check_loaded(model, info, folder):
    """Refuse a model of which the folder filled only a part, or not all of the folder."""
    name = type(model).__name__
    if info['mismatched_keys']:
        key, in_file, in_model = mismatched_tensors(model, info)[0]
        raise ConfigError(f'the language model {folder} has {len(info["mismatched_keys"])} tensors of another shape '
                          f'than {name}, first {key}: {in_file} in the file, {in_model} in the model. '
                          'Take the sizes out of config, or set them to those of the folder')
    if info['missing_keys']:
        raise ConfigError(f'the language model {folder} lacks {len(info["missing_keys"])} tensors of {name}, first '
                          f'{sorted(info["missing_keys"])[0]}: they would be random. Is the number of layers in '
                          'config larger than that of the folder?')
    names = {module for module, _ in model.named_modules()}
    layers = {match.group(1) for match in map(re.compile(r'(.*?\.\d+)\.').match, info['unexpected_keys']) if match}
    left = sorted(layer for layer in layers if layer not in names)
    if left:
        raise ConfigError(f'the language model {folder} has {len(left)} layers more than {name}, first {left[0]}: '
                          'they would be left out. Take the number of layers out of config, or set it to that of '
                          'the folder')


def _check_family(auto_class, config, what):
    """Refuse a model that the adapter's loss and search do not fit."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
    model_type, adapter = config.model_type, _ADAPTERS[auto_class]
    if getattr(config, 'is_encoder_decoder', False):
        family, right = 'an encoder-decoder', 'Seq2SeqLM'
    elif model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, 'is_decoder', True):
        family, right = 'an encoder, which cannot write text', None
    else:
        family, right = 'decoder-only', 'CausalLM'
    if right != adapter:
        advice = (f"set type='{right}'" if right else
                  "expected a decoder-only model such as 'opt' or 'llama' for CausalLM, or an encoder-decoder such as "
                  "'t5' for Seq2SeqLM")
        raise ConfigError(f'{what}: model_type={model_type!r} does not fit {adapter}, it is {family}: {advice}')


@contextlib.contextmanager
def _no_progress_bar():
    from transformers.utils import logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _undrawn():
    """Where nothing else is drawn either (``without_drawing``): do not draw weights that a file replaces."""
    from transformers import PreTrainedModel

    from mmblip2.checkpoints.parts import draws
    if draws():
        yield
        return
    owner: Any = PreTrainedModel
    kept = owner.initialize_weights
    owner.initialize_weights = lambda model: None
    try:
        yield
    finally:
        owner.initialize_weights = kept


def _from_config(auto_class, config, tokenizer, dtype, attention):
    import transformers
    settings = plain(config)
    model_type = settings.pop('model_type', None)
    try:
        transformers.AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ConfigError(f'config of the language model: model_type={model_type!r} is not known to '
                          "transformers, expected 'opt', 'llama', 't5' ...") from error
    refuse(unknown_settings(config), 'config of the language model')
    settings.setdefault('vocab_size', len(tokenizer))
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
        if getattr(tokenizer, name) is not None:
            settings.setdefault(name, getattr(tokenizer, name))
    config = transformers.AutoConfig.for_model(model_type, **settings)
    _check_family(auto_class, config, 'config of the language model')
    try:
        model = getattr(transformers, auto_class).from_config(config, dtype=getattr(torch, dtype),
                                                              attn_implementation=attention)
    except ValueError as error:
        raise ConfigError(f'config of the language model: model_type={model_type!r} does not fit '
                          f'{auto_class} ({first_lines(error)})') from error
    if settings.get('tie_word_embeddings') is False and _is_tied(model):
        # transformers 5 ties the output layer of every new T5; 4 drew the one of T5 1.1 as here
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight).normal_(std=model.config.initializer_factor))
    return model


def plain(value):
    """Copy of nested dicts and lists without mmengine's config types."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
