"""Models of ours as folders that transformers loads: ``Blip2ForConditionalGeneration``, ``Blip2ForImageTextRetrieval``,
``InstructBlipForConditionalGeneration``; and, by ``export_blip.py``, those of BLIP.

No model is built: shapes come from one on the meta device, tensors go from the files where they lie into the new ones.
"""
import contextlib
import json
import os
import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from ..compat import read_tokenizer
from ..errors import CheckpointError, ConfigError
from . import export_blip, io, layouts, stream
from .blip import kind_of, other_decoder
from .sources import find, locate

_NOT_OF_TEXT_CONFIG = ('_name_or_path', 'architectures', 'dtype', 'torch_dtype', 'transformers_version',
                       '_attn_implementation', '_attn_implementation_internal', '_attn_implementation_autoset')
_IMAGE_TOKEN = '<image>'


@dataclass
class Whole:
    """All of a model, frozen parts included.

    Attributes:
        model (nn.Module): On the meta device: shapes and types.
        state: Tensors by our names, of the language model one of several tied ones; mapped, in the types of the files.
        sources: Files and folders that they are in.
        notes: Remarks for the reader, one a line.
        lacks: Keys of the model that a file of its layout does not have (the temperature in one of transformers).
    """
    model: Any
    state: dict[str, torch.Tensor]
    sources: list[Path]
    notes: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)


def assemble(cfg, checkpoint, parts=None, optional=False):
    """Collect the tensors of a model: what was trained from its checkpoint, frozen parts from where the config has
    them, unless the checkpoint has them too.

    Args:
        cfg (Config): With ``model``.
        checkpoint (str | Path): Whatever :func:`io.read_checkpoint` takes.
        parts (Sequence[str], optional): The frozen parts that are wanted; default: all.
        optional (bool): Do without a frozen part that is neither in ``checkpoint`` nor on this machine.

    Returns:
        Whole: All that is wanted; every shape is the model's.

    Raises:
        CheckpointError: Something is missing, unknown or of another shape; or a frozen part is not the one that the
            checkpoint was trained with.
        ConfigError: A frozen part has no source, or the model cannot be built for its shapes.
    """
    from ..utils.meta import build_on_meta
    model = build_on_meta(cfg.model)
    checkpoint = locate(checkpoint)
    content = io.read_checkpoint(checkpoint)
    state, sources, notes = dict(content['state_dict']), [checkpoint], []
    read, absent = {}, []
    for name in model.frozen_parts():
        if any(key.startswith(f'{name}.') for key in state):
            continue
        source = _source(cfg.model[name], name, optional) if parts is None or name in parts else None
        if source is None:
            absent.append(f'{name}.')
            continue
        sources.append(source)
        read[name] = source
        state.update(_part(getattr(model, name), name, source))
    state, adapted, _ = io._adapted(model, state)
    notes += adapted
    if hasattr(model, 'language_model'):
        _untie(model.language_model, state)
    expected = {key: value for key, value in model.state_dict(keep_vars=True).items()
                if not key.startswith(tuple(absent))}
    may_lack = content['layout'].loses if 'layout' in content else content['meta'].get('lacks', ())
    whole = Whole(model, {}, sources, notes)
    _complete(whole, expected, state, may_lack)
    for name, source in read.items():
        was = content['meta'].get('frozen', {}).get(name)
        if was is not None and was['sha256'] != fingerprint_of(whole, name):
            raise CheckpointError(f'the frozen part {name!r} in {source} is not the one that {checkpoint} was trained '
                                  f'with (from {was["source"]}, sha256 {was["sha256"][:12]}): give model.{name} the '
                                  'original weights')
    return whole


def _source(part, name, optional):
    """Path of a frozen part's weights, or None if there is none and that is allowed."""
    source = part.get('weights') or part.get('model')
    if optional:
        return find(source)[0] if source is not None else None
    if source is None:
        raise ConfigError(f'the frozen part {name!r} has no weights in the config: give them in model.{name}, or a '
                          'checkpoint that holds them')
    return locate(source, f'weights of the frozen part {name!r}')


def _part(module, name, source):
    """Tensors of a frozen part by the model's names."""
    state = io.read_checkpoint(source)['state_dict']
    own = {key: value for key, value in state.items() if key.startswith(f'{name}.')}
    if own:
        return own
    if name == 'language_model':  # a folder of transformers; that of a model without head has shorter names
        inner = module.model
        known, base = inner.state_dict(), f'{inner.base_model_prefix}.'
        return {f'{name}.model.{key if key in known else base + key}': value for key, value in state.items()
                if key in known or base + key in known}
    return {f'{name}.{key}': value for key, value in state.items()}


def _untie(language, state):
    """Give the output layer a tensor of its own where the files do; what transformers 5 says of a T5 is otherwise."""
    output = language.model.get_output_embeddings()
    if output.weight is not language.model.get_input_embeddings().weight:
        return
    names = [f'language_model.{name}' for name, value in language.state_dict(keep_vars=True).items()
             if value is output.weight]
    found = [state[name] for name in names if name in state]
    if any(not torch.equal(found[0], other) for other in found[1:]):
        output.weight = torch.nn.Parameter(torch.empty_like(output.weight), output.weight.requires_grad)


def _untie_unscaled(whole):
    """Write the output layer of a T5 that is its embedding and reads unscaled outputs as a tensor of its own:
    transformers 4 scales wherever it ties, and 5 ties such a one if it was built there."""
    language = getattr(whole.model, 'language_model', None)
    if language is None or getattr(language.model.config, 'scale_decoder_outputs', True):
        return
    table, output = language.model.get_input_embeddings().weight, language.model.get_output_embeddings()
    if output.weight is table:
        names = [f'language_model.{name}' for name, value in language.state_dict(keep_vars=True).items()
                 if value is table]
        output.weight = torch.nn.Parameter(torch.empty_like(table), table.requires_grad)
        own = next(f'language_model.{name}' for name, value in language.state_dict(keep_vars=True).items()
                   if value is output.weight)
        whole.state[own] = next(whole.state[name] for name in names if name in whole.state)


def _complete(whole, expected, state, may_lack):
    """Take from ``state`` what fills ``expected``: of a language model one of several tied tensors, and of its
    embedding no more rows than the model has."""
    first: dict[int, str] = {}
    names = {key: first.setdefault(id(value), key) for key, value in expected.items()}
    where = ' and '.join(map(str, whole.sources))
    for key, value in expected.items():
        if key not in state or names[key] in whole.state:
            continue
        found = state[key]
        if key.startswith('language_model.') and _has_more_rows(found, value):
            whole.notes.append(f'{key}: the first {len(value)} of {len(found)} rows, as the model has')
            found = found[:len(value)]
        if found.shape != value.shape:
            raise CheckpointError(f'{key} is {tuple(found.shape)} in {where} and {tuple(value.shape)} in the model of '
                                  'the config: is it the config of this checkpoint?')
        whole.state[names[key]] = found
    for key, first_name in names.items():  # what two parts share is in the file of each: another model may have one
        if first_name in whole.state and not key.startswith('language_model.'):
            whole.state[key] = whole.state[first_name]
    missing = [key for key in expected if names[key] == key and key not in whole.state]
    whole.lacks = [key for key in missing if _any(key, may_lack)]
    missing = [key for key in missing if key not in whole.lacks]
    extra = [key for key in state if key not in expected and not _any(key, getattr(whole.model, 'droppable', ()))]
    other = ''.join(f'{problem}; ' for problem in other_decoder(expected, state))
    if missing or extra or other:
        raise CheckpointError(f"{where}: {other}{len(missing)} tensors of the config's model are missing "
                              f'({io._some(missing) or "none"}), {len(extra)} are unknown to it '
                              f'({io._some(extra) or "none"}): is it the config of this checkpoint?')
    if whole.lacks:
        whole.notes.append(f'not in {where}: {io._some(whole.lacks)}')


def _any(key, patterns):
    return any(fnmatch(key, pattern) for pattern in patterns)


def _has_more_rows(table, wanted):
    return table.dim() == wanted.dim() == 2 and table.size(1) == wanted.size(1) and len(table) > len(wanted)


def fingerprint_of(whole, name):
    """What ``fingerprint`` would say of a part, were it built."""
    from ..models.algorithms.base import _before_resize, digest
    part = getattr(whole.model, name).state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for key, value in part.items():
        first.setdefault(id(value), key)
    original = _before_resize(getattr(whole.model, name))

    memory = stream.GiveBack(whole.sources)

    def tensors():
        for key in sorted(part):
            value = original[key] if key in original else whole.state[f'{name}.{first[id(part[key])]}']
            yield key, value.to(part[key].dtype)
            memory.used(stream.nbytes(value))

    return digest(tensors())


# ------------------------------------------------------------------------------------------------ export

def export_to_huggingface(cfg, checkpoint, out, shard_size=5 * 10**9, force=False):
    """Write a folder that ``transformers`` 4.57 and 5 load with ``from_pretrained``.

    It has config.json, generation_config.json, preprocessor and processor settings, the tokenizers, and the weights as
    safetensors. What that layout has no place for (temperature, the head that writes text in stage 1, the number of
    steps) is in ``mmblip2_extra.safetensors``, which is read when the folder is loaded here.

    A language model whose embedding has no row to spare for the placeholder ``<image>`` gets one. It is the mean of the
    others, in the output layer too: the placeholder is never the most likely token, and its probability is the
    geometric mean of those of all tokens, which the others lose. No more rows than needed are added for that reason.

    Args:
        cfg (Config): Of the model; its frozen parts are read from where it has them.
        checkpoint (str | Path): The trained weights.
        out (str | Path): The new folder.
        shard_size (int): Bytes of a file of weights, unless a single tensor is larger.
        force (bool): Replace ``out``.

    Returns:
        list[str]: What the user should know, one remark a line.

    Raises:
        ConfigError: transformers has no such model; all reasons at once, before anything is written.
        CheckpointError: See :func:`assemble`; or ``out`` exists, or the disk has no room.
    """
    from ..utils.meta import build_on_meta
    _refuse(cfg, build_on_meta(cfg.model))
    whole = assemble(cfg, checkpoint)
    _untie_unscaled(whole)
    model, notes, shapes = whole.model, whole.notes, whole.model.state_dict()
    layout = layouts.to_write('transformers', whole.state)
    tensors, left = layout.from_ours(whole.state)
    typed, _ = layout.from_ours({key: shapes[key] for key in whole.state})
    entries = {key: (value, typed[key].dtype) for key, value in tensors.items()}
    if kind_of(shapes) is not None:
        files, tokenizers = export_blip.files(cfg, model, layout.kind, notes)
    else:
        files, tokenizers = _text_files(cfg, model, entries, notes)
        files['config.json'] = {**_config(model, layout.kind), **files['config.json']}
    files['config.json']['dtype'] = _name(max((kind for _, kind in entries.values()), key=_size_of))
    files['preprocessor_config.json'].update(_images(model))
    norm, eps = getattr(model, 'vision_norm', None), files['config.json']['vision_config']['layer_norm_eps']
    if norm is not None and eps != norm.eps:
        notes.append(
            f'transformers has one epsilon for the vision encoder and the norm after it: '
            f'{eps:g} is written, vision_norm_eps here is {norm.eps:g}. Outputs differ by that (measured for 1e-6 and '
            '1e-5: 2e-5 in features of size 3.3, less than 5e-7 in logits)')
    extra = {key: (whole.state[key], shapes[key].dtype) for key in left}
    shards = _shards(entries, shard_size)
    size = sum(stream.nbytes(*entry) for entry in [*entries.values(), *extra.values()])
    with _new_folder(out, size, force, whole.sources) as folder:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
        for name, tokenizer in tokenizers.items():
            _save_tokenizer(tokenizer, folder / name)
        for name, keys in shards.items():
            stream.write_safetensors({key: entries[key] for key in keys}, folder / name, whole.sources)
        if len(shards) > 1:
            index = dict(metadata=dict(total_size=sum(stream.nbytes(*entry) for entry in entries.values())),
                         weight_map={key: name for name, keys in shards.items() for key in sorted(keys)})
            (folder / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
        if extra:
            stream.write_safetensors(extra, folder / io.EXTRA, whole.sources)
            notes.append(f'transformers has no place for {io._some(left, 7)}: in {io.EXTRA}, which is read here')
    return [f'{out}: {layout.kind}, {len(entries)} tensors, {size / 1e9:.2f} GB in {len(shards)} file'
            f'{"s" if len(shards) > 1 else ""}', *notes]


def _size_of(dtype):
    return torch.empty(0, dtype=dtype).element_size()


def _name(dtype):
    return str(dtype).removeprefix('torch.')


def _refuse(cfg, model):
    """Refuse a model that transformers has no class for.

    Raises:
        ConfigError: All reasons.
    """
    from ..models import Blip2Generation, Blip2Representation, CausalLM, Seq2SeqLM, VisionTransformer
    problems = []
    if kind_of(model.state_dict()) is not None:
        problems += export_blip.problems(model)
    elif type(model) not in (Blip2Generation, Blip2Representation):
        problems.append(f'model is a {type(model).__name__}, expected Blip2Representation, Blip2Generation, '
                        'BlipRepresentation or BlipGeneration')
    elif type(model.vision) is not VisionTransformer:
        problems.append(f'model.vision is a {type(model.vision).__name__}; its vision encoder can only be our '
                        'VisionTransformer')
    else:
        if not isinstance(model.vision.pre_norm, torch.nn.Identity):
            problems.append('model.vision.pre_norm is True (CLIP); its vision encoder has no norm before the first '
                            'block')
        if model.vision.patch_embed.bias is None:
            problems.append('model.vision.patch_bias is False; its patch embedding has a bias')
    language = getattr(model, 'language_model', None)
    if language is not None and type(language) not in (CausalLM, Seq2SeqLM):
        problems.append(f'model.language_model is a {type(language).__name__}, expected CausalLM or Seq2SeqLM')
    elif language is not None:
        config = language.model.config
        if config.hidden_size != language.hidden_size:
            problems.append(
                f'the language model embeds text in {language.hidden_size} and its layers are {config.hidden_size} '
                'wide (OPT-350m); transformers projects the queries to the latter and then mixes the images of a batch')
        if not getattr(language, 'add_special_tokens', True):
            problems.append('model.language_model.add_special_tokens is False; its processor adds them')
        if language.must_be_frozen:
            problems.append(f'model.language_model has {language.must_be_frozen}, for which its layout has no place: '
                            'call model.language_model.merge_lora(), write model.language_model.model with '
                            'save_pretrained, and name that folder as model.language_model.model, without lora and '
                            'quantize')
        if isinstance(cfg.model.language_model.get('tokenizer'), dict):  # SizeOnlyTokenizer of a bare folder
            problems.append('model.language_model.tokenizer has no files, and its processor needs one: give the folder '
                            'of a tokenizer')
    if problems:
        raise ConfigError('transformers has no class for this model: ' + '; '.join(problems))


def _config(model, kind):
    """config.json but for the language model."""
    instruct = kind.startswith('Instruct')
    vision, qformer, layer = model.vision, model.qformer, model.qformer.layers[0]
    block = vision.blocks[0]
    crossed = [i for i, one in enumerate(qformer.layers) if one.cross_attention is not None]
    dropout, name = qformer.dropout.p, 'instructblip_{}_model' if instruct else 'blip_2_{}_model'
    config = dict(
        architectures=[kind], model_type='instructblip' if instruct else 'blip-2', num_query_tokens=qformer.num_query,
        initializer_range=0.02,
        vision_config=dict(
            model_type=name.format('vision'), hidden_size=vision.embed_dim, num_hidden_layers=len(vision.blocks),
            num_attention_heads=block.attn.num_heads, intermediate_size=block.mlp.fc1.out_features,
            image_size=vision.image_size, patch_size=vision.patch_embed.kernel_size[0], qkv_bias=True,
            hidden_act=block.mlp.activation.__name__, layer_norm_eps=block.norm1.eps, attention_dropout=0.0,
            initializer_range=0.02),
        qformer_config=dict(
            model_type=name.format('qformer').removesuffix('_model'), hidden_size=qformer.width,
            num_hidden_layers=len(qformer.layers), num_attention_heads=layer.attention.num_heads,
            intermediate_size=layer.query_mlp.fc1.out_features, hidden_act='gelu',
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
            max_position_embeddings=qformer.max_positions, layer_norm_eps=layer.attention_norm.eps,
            initializer_range=0.02, pad_token_id=0, encoder_hidden_size=qformer.vision_width,
            cross_attention_frequency=crossed[1] if len(crossed) > 1 else len(qformer.layers),
            vocab_size=qformer.vocab_size or 30522),
        # what transformers has no setting for
        mmblip2=dict(vision_norm_eps=model.vision_norm.eps))
    if not instruct:
        config['qformer_config']['use_qformer_text_input'] = qformer.has_text
    if kind == 'Blip2ForImageTextRetrieval':
        config.update(image_text_hidden_size=model.itc_head.vision_proj.out_features,
                      text_config=dict(model_type='opt'))  # there has to be one; nothing of it is built
    return config


def _images(model):
    """preprocessor_config.json but for the class of the processor."""
    mean, std = ([round(float(value) / 255, 8) for value in values] for values in model.data_preprocessor._mean_std)
    size = model.vision.image_size
    return dict(image_processor_type='BlipImageProcessor', do_convert_rgb=True, do_resize=True,
                size=dict(height=size, width=size), resample=3, do_rescale=True, rescale_factor=1 / 255,
                do_normalize=True, image_mean=mean, image_std=std)


def _text_files(cfg, model, entries, notes):
    """Json files, complete but for what :func:`_config` and :func:`_images` say, and tokenizers by their folder.

    ``entries`` gets rows for the placeholder where the language model has none to spare.
    """
    from ..models.tokenizers import BertTokenizer
    language = getattr(model, 'language_model', None)
    reader = BertTokenizer(cfg.model.tokenizer.path).tokenizer if cfg.model.get('tokenizer') else None
    if language is None:
        return {'config.json': {}, 'generation_config.json': {},
                'preprocessor_config.json': dict(processor_class='Blip2Processor'),
                'processor_config.json': dict(processor_class='Blip2Processor')}, {'.': reader}
    part = cfg.model.language_model
    tokenizer = part.get('tokenizer') or part.get('model')
    tokenizer = read_tokenizer(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer
    seq2seq = bool(language.model.config.is_encoder_decoder)
    ending = part.get('ending') or ('\n' if language.model.config.model_type == 'opt' else tokenizer.eos_token)
    end_id = tokenizer.eos_token_id if seq2seq else tokenizer(ending, add_special_tokens=False).input_ids[0]
    tokenizer.add_special_tokens({'additional_special_tokens': [_IMAGE_TOKEN]})
    tokenizer.padding_side = 'right' if seq2seq else 'left'  # as generate of a decoder needs it
    if reader is not None and not seq2seq:
        notes.append('the processor of transformers pads the texts of both tokenizers on the left, where the Q-Former '
                     'reads short ones at other positions: give it instructions of one length, or one at a time')
    image_id = tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
    rows = language.model.get_input_embeddings().num_embeddings
    if image_id >= rows:
        added = image_id + 1 - rows
        notes.append(f'the language model has {rows} embeddings and {_IMAGE_TOKEN} is token {image_id}: {added} added, '
                     'the mean of the others')
        _add_rows(language.model, entries, added)
        rows += added
    config = _text_config(language.model, vocab_size=rows, eos_token_id=end_id)
    generation = dict(model.generation, eos_token_id=end_id, **{
        key: value for key in ('bos_token_id', 'pad_token_id') if (value := getattr(tokenizer, key)) is not None})
    if seq2seq:
        generation['decoder_start_token_id'] = config.get('decoder_start_token_id', tokenizer.pad_token_id)
        config['decoder_start_token_id'] = generation['decoder_start_token_id']
    processor = dict(processor_class='InstructBlipProcessor' if reader else 'Blip2Processor')
    tokenizers = {'.': tokenizer, **({'qformer_tokenizer': reader} if reader else {})}
    return {
        'config.json': dict(text_config=config, image_token_index=image_id, image_text_hidden_size=256),
        'generation_config.json': generation, 'preprocessor_config.json': dict(processor),
        'processor_config.json': dict(processor, num_query_tokens=model.qformer.num_query)}, tokenizers


def _text_config(model, **changed):
    """Settings of a language model in words that transformers 4.57 and 5 both read."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_TEXT_CONFIG}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    config.update(changed, tie_word_embeddings=tied)
    rope = config.get('rope_parameters')
    if rope and rope.get('rope_type') == 'default':
        config['rope_theta'] = rope['rope_theta']
    if config.get('decoder_start_token_id', 0) is None:
        del config['decoder_start_token_id']
    return config


def _add_rows(model, entries, count):
    """Append ``count`` times the mean row to input embeddings and output layer."""
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for name, parameter in model.state_dict(keep_vars=True).items():
        key = f'language_model.{name}'
        if key in entries and any(parameter is table for table in tables):
            table, dtype = entries[key]
            mean = table.mean(0, keepdim=True, dtype=torch.float32).to(table.dtype)
            entries[key] = torch.cat([table, mean.expand(count, -1)]), dtype


def _save_tokenizer(tokenizer, folder):
    """``save_pretrained`` in words that transformers 4.57 reads too."""
    tokenizer.save_pretrained(folder)
    path = Path(folder, 'tokenizer_config.json')
    config = json.loads(path.read_text(encoding='utf-8'))
    config['padding_side'] = tokenizer.padding_side  # which transformers does not write if it was set afterwards
    if config.get('tokenizer_class') == 'TokenizersBackend':
        config['tokenizer_class'] = 'PreTrainedTokenizerFast'
    if isinstance(config.get('extra_special_tokens'), list):
        config['additional_special_tokens'] = config.pop('extra_special_tokens')
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def _shards(entries, limit):
    """{file name: keys}, each file at most ``limit`` bytes unless it has one tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for key, entry in entries.items():
        own = stream.nbytes(*entry)
        if groups[-1] and size + own > limit:
            groups.append([])
            size = 0
        groups[-1].append(key)
        size += own
    if len(groups) == 1:
        return {'model.safetensors': groups[0]}
    return {f'model-{i:05d}-of-{len(groups):05d}.safetensors': keys for i, keys in enumerate(groups, 1)}


@contextlib.contextmanager
def _new_folder(path, size, force, sources):
    """A side folder that becomes ``path`` at the end, or is removed."""
    path = Path(path)
    stream.check_target(path, size, force, folder=True, sources=sources)
    side = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        side.mkdir(parents=True)
        yield side
        old = path.with_name(f'.{path.name}.{os.getpid()}.old')
        if path.exists():
            path.rename(old)
        side.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        io.sync_dir(path.parent)
    finally:
        shutil.rmtree(side, ignore_errors=True)
