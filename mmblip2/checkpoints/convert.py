"""Files of one project into files of another, tensor by tensor; see :func:`convert`."""
import copy
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from . import io, layouts, stream
from .export import assemble, export_to_huggingface, fingerprint_of
from .parts import norm_eps
from .sources import locate

TARGETS = {'mmblip2': 'mmblip2', 'lavis': 'LAVIS', 'mmpretrain': 'mmpretrain', 'huggingface': 'transformers'}
_IN_LAVIS = {'opt': 'opt', 't5': 't5', 'llama': 'llm'}  # what LAVIS calls a language model
_LANGUAGE = 'language_model.'


def convert(source, out, to, config=None, whole=False, split=False, shard_size=5 * 10**9, force=False):
    """Write a checkpoint of any known layout in another one.

    No model is built and values stay as they are, bit for bit. In memory is one file of the source at most, however
    large the whole.

    Args:
        source (str | Path): Whatever :func:`io.read_checkpoint` takes.
        out (str | Path): The new file; for 'huggingface' a folder.
        to (str): 'mmblip2', 'lavis', 'mmpretrain' or 'huggingface'.
        config (str | Path | Config, optional): Of the model, ours. Default: the one inside the file or, of a folder of
            transformers, what its config.json says.
        whole (bool): Also the frozen vision encoder, from where the config has it (LAVIS, mmpretrain).
        split (bool): Frozen parts that the source brings go into files beside ``out`` (mmblip2); without it ``out``
            refers to the source for them.
        shard_size (int): See :func:`export_to_huggingface`.
        force (bool): Replace ``out``.

    Returns:
        list[str]: What the user should know, one remark a line.

    Raises:
        CheckpointError: The source cannot be read or does not fit, it is in that layout already, ``out`` exists or is
            the source, or the disk has no room.
        ConfigError: A config is needed and there is none, or the layout has no such model.
    """
    if to not in TARGETS:
        raise ConfigError(f'to is {to!r}, expected one of {", ".join(TARGETS)}')
    source = locate(source)
    stream.check_target(out, 0, force, folder=to == 'huggingface', sources=(source,))
    content = io.read_checkpoint(source)
    if content['format'] == (io.FORMAT if to == 'mmblip2' else TARGETS[to]):
        raise CheckpointError(f'{source} is in the layout of {TARGETS[to]} already')
    if not content['format'] and layouts.recognise(content['state_dict']) is None and not _is_ours(content):
        raise CheckpointError(f'{source} is no BLIP-2 or BLIP of mmblip2, LAVIS, mmpretrain or transformers (its keys: '
                              f'{io._some(content["state_dict"])})')
    cfg = _config(source, content, config)
    if to == 'huggingface':
        return export_to_huggingface(_needed(cfg, source, to), source, out, shard_size, force)
    if to == 'mmblip2':
        return _to_ours(content, source, Path(out), cfg, split, force)
    return _to_others(content, source, out, to, cfg, whole, force)


def _is_ours(content):
    return any(key.startswith(('qformer.', 'vision_norm.', 'text_encoder.', 'text_decoder.'))
               for key in content['state_dict'])


def _config(source, content, config):
    """Our config of the model, or None."""
    from mmengine.config import Config

    from ..apis.trust import config_inside
    from ..utils.run_config import load_config
    from .huggingface_config import config_from_folder, is_huggingface_folder
    if config is not None:
        return config if isinstance(config, Config) else load_config(config)
    if content['format'] == 'transformers' and is_huggingface_folder(content['path']):
        return config_from_folder(content['path'])
    return config_inside(content['meta'], source) if content['meta'].get('config') else None


def _needed(cfg, source, to):
    if cfg is None:
        raise ConfigError(f'{source} says nothing of its config, which {to} needs: give --config CONFIG')
    return cfg


def _to_others(content, source, out, to, cfg, whole, force):
    """A file for LAVIS or mmpretrain: what was trained, without the language model."""
    name, what, notes = TARGETS[to], {}, list(content.get('notes', ()))
    state, sources = content['state_dict'], [content.get('path', source)]
    if whole:
        found = assemble(_needed(cfg, source, f'{to} with frozen parts'), source, ('vision', ))
        state, sources, notes = found.state, found.sources, notes + found.notes
    kept = {key: value for key, value in state.items() if not key.startswith(_LANGUAGE)}
    if len(kept) < len(state):
        notes.append(f'the language model is left out: it is in no file of {name}')
    if to == 'lavis' and 'language_projection.weight' in kept:
        what['language'] = _language_of(_needed(cfg, source, to))
    layout = layouts.to_write(name, kept, **what)
    renamed, left = layout.from_ours(kept)
    if left:
        notes.append(f'{name} has no place for {io._some(left)}: in the file under {io.EXTRA_KEY!r}, which is read '
                     'here')
    file = {'model' if to == 'lavis' else 'state_dict': renamed, **({} if to == 'lavis' else dict(meta={})),
            **({io.EXTRA_KEY: {key: kept[key] for key in left}} if left else {})}
    stream.check_target(out, sum(map(stream.nbytes, renamed.values())), force, sources=sources)
    stream.write_torch(file, out, sources)
    return [f'{out}: {layout}, {len(renamed)} tensors', *notes]


def _language_of(cfg):
    """'opt', 't5' or 'llm'."""
    from ..utils.meta import architecture
    kind = architecture(cfg.model.language_model)['model_type']
    if kind not in _IN_LAVIS:
        raise ConfigError(f'LAVIS has no BLIP-2 with a language model of model_type {kind!r}, only with '
                          f'{", ".join(_IN_LAVIS)}')
    return _IN_LAVIS[kind]


# ------------------------------------------------------------------------------------------------- ours

def _to_ours(content, source, out, cfg, split, force):
    """A file as a training here writes it, to be tested or fine-tuned."""
    from ..version import __version__
    notes = list(content.get('notes', ()))
    meta: dict[str, Any] = dict(mmblip2_version=__version__, frozen={})
    state, parts, sources = content['state_dict'], {}, [content.get('path', source)]
    if cfg is not None:
        cfg, brought = _referring(cfg, content, out if split else None)
        found = assemble(cfg, source, optional=True)
        sources, notes = found.sources, notes + found.notes
        frozen = found.model.frozen_parts()
        meta['lacks'] = found.lacks
        parts = {name: {key: value for key, value in found.state.items() if key.startswith(f'{name}.')}
                 for name in frozen}
        state = {key: value for key, value in found.state.items() if key.split('.')[0] not in frozen}
        for name in frozen:
            if not parts[name]:
                notes.append(f'{name} is frozen and neither in {source} nor here: the new file does not say which it '
                             'was trained with')
                continue
            where = cfg.model[name].get('weights') or cfg.model[name].get('model')
            meta['frozen'][name] = dict(source=str(where), sha256=fingerprint_of(found, name))
        parts = {name: parts[name] for name in brought if split and parts.get(name)}
        meta.update(config=cfg.to_dict(), cfg_filename=str(cfg.filename or content['path']))
    else:
        notes.append('no config inside: use it with one, or give --config')
    files = {out: dict(format=io.FORMAT, meta=meta, state_dict=state)}
    files.update({beside(out, name): dict(format=io.FORMAT, meta={}, state_dict=part) for name, part in parts.items()})
    size = sum(sum(map(stream.nbytes, file['state_dict'].values())) for file in files.values())
    for path in files:
        stream.check_target(path, size, force, sources=sources)
    for path, file in files.items():
        stream.write_torch(file, path, sources)
    return [f'{path}: mmblip2, {len(file["state_dict"])} tensors' for path, file in files.items()] + notes


def beside(out, name):
    """The file of a frozen part beside ``out``."""
    return out.with_name(f'{out.stem}_{name}.pth')


def _referring(cfg, content, split_to):
    """A copy of ``cfg`` whose frozen parts come from the source, or from files beside ``split_to``; and their names.

    Parts that the source does not bring stay as they are.
    """
    import inspect

    from ..registry import MODELS
    from ..utils.meta import architecture
    cfg = copy.deepcopy(cfg)
    settings = inspect.signature(MODELS.get(cfg.model.type)).parameters
    if cfg.model.get('vision_norm_eps') is None and 'layout' in content and 'vision_norm_eps' in settings and \
            'vision_norm.weight' in content['state_dict']:
        cfg.model.vision_norm_eps = norm_eps(content)
    frozen = cfg.model.get('frozen', settings['frozen'].default)
    others = [name for name in frozen if name not in ('vision', 'language_model')]
    if others:
        raise ConfigError(f'the config freezes {", ".join(map(repr, others))}, whose weights would be in no file: take '
                          'it out of frozen')
    brought = [name for name in frozen if any(key.startswith(f'{name}.') for key in content['state_dict'])]
    for name in brought:
        part = cfg.model[name]
        if name == 'language_model':
            tokenizer = part.get('tokenizer') or part.get('model')
            part.config = dict(architecture(part), vocab_size=_vocabulary(content['state_dict']))
            part.pop('model', None)
            part.tokenizer = tokenizer
        part.weights = str(content['path'] if split_to is None else beside(split_to, name).absolute())
    return cfg, brought


def _vocabulary(state):
    """Rows of the language model's embedding."""
    for key, value in state.items():
        if key.startswith(_LANGUAGE) and key.endswith(('.embed_tokens.weight', '.shared.weight', '.wte.weight')):
            return len(value)
    raise CheckpointError('the source brings a language model without an embedding (embed_tokens, shared, wte)')
