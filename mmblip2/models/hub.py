"""Hugging Face models: what a config may say of them, and what to tell a user whose folder, or hub name without
network, could not be read."""
import difflib
import os
import re

from mmblip2.errors import ConfigError

TOKENIZER_FILES = ('tokenizer.json and tokenizer_config.json (some have vocab.json and merges.txt, vocab.txt or '
                   'tokenizer.model instead of the first)')
MODEL_FILES = ('config.json and model.safetensors (some have pytorch_model.bin; a large model all of its parts and '
               'their index.json)')
_RUNS_CODE = ('trust_remote_code', 'custom_generate', 'auto_map', 'code_revision')


def settings_that_run_code(settings):
    """Settings with which transformers runs Python files of a model's folder or repository.

    Args:
        settings (dict): Of a model or of ``generate``; nested ones count too.

    Returns:
        dict: Place of each such setting (``'text_config.auto_map'``) to what is wrong with it.
    """
    found = {}
    for key, value in settings.items():
        kernel = str(key).lstrip('_') == 'attn_implementation' and '/' in str(value)  # a repository with a kernel
        if key in _RUNS_CODE or kernel:
            found[key] = (f'{key}={value!r} would run code of a model repository, which mmblip2 never does: leave it '
                          'out, and use a model that transformers has itself')
        elif isinstance(value, dict):
            found.update((f'{key}.{place}', problem) for place, problem in settings_that_run_code(value).items())
    return found


def refuse_code(settings, what):
    """Refuse settings with which code of a model's folder would run.

    Args:
        settings (dict): See :func:`settings_that_run_code`.
        what (str): What they are of, for the error.

    Raises:
        ConfigError: There is one.
    """
    refuse(settings_that_run_code(settings), what)


def unknown_settings(settings):
    """Settings that the config of a new model does not have; transformers would keep them and nothing would read them.

    Args:
        settings (dict): With ``model_type``; of nested ones (``vision_config``) too.

    Returns:
        dict: Place of each to what is wrong with it. Empty for a ``model_type`` that transformers does not know or that
        has no defaults: it says so itself.
    """
    from transformers import AutoConfig
    try:
        defaults = AutoConfig.for_model(settings.get('model_type'))
    except Exception:  # composed configs have checks of their own
        return {}
    return _unknown(settings, defaults)


def _unknown(settings, defaults):
    found = {}
    for key, value in settings.items():
        if key in ('model_type', 'decoder_start_token_id'):  # the latter has no default, but is one of T5's
            continue
        if not hasattr(defaults, key):
            found[key] = f'{defaults.model_type!r} has no setting {key!r}' + suggestion(
                key, [*vars(defaults), *getattr(defaults, 'attribute_map', ())])
            continue
        inner = getattr(defaults, key)
        if isinstance(value, dict) and hasattr(inner, 'model_type'):
            nested = unknown_settings(value) if 'model_type' in value else _unknown(value, inner)
            found.update((f'{key}.{place}', problem) for place, problem in nested.items())
    return found


def suggestion(key, names):
    """'; did you mean ...?' if one of ``names`` is close to ``key``, or nothing."""
    near = difflib.get_close_matches(key, names, n=1)
    return f'; did you mean {near[0]!r}?' if near else ''


def refuse(problems, what):
    """Raise if there are problems.

    Args:
        problems (dict): As from the functions above.
        what (str): What the settings are of, for the error.

    Raises:
        ConfigError: With all of them.
    """
    if problems:
        raise ConfigError(f'{what}: ' + '; '.join(problems.values()))


def cannot_read(name, files):
    """Why ``name`` could not be read and what to do about it, as the second half of an error message.

    Args:
        name (str): What the config gave: a folder, or a name on the hub.
        files (str): The files that are needed, in words.

    Returns:
        str: Without a full stop.
    """
    if os.path.isdir(name):
        found = sorted(os.listdir(name))
        shown = ', '.join(found[:8]) + (' ...' if len(found) > 8 else '') if found else 'nothing'
        return f'expected {files} in that folder, which holds {shown}'
    from mmblip2.checkpoints.sources import find
    looked = f'looked in {", ".join(find(name)[1]) or name}'
    if re.fullmatch(r'[\w-][\w.-]*(/[\w-][\w.-]*)?', name) is None:
        return f'there is no such folder; expected one with {files}; {looked}'
    from huggingface_hub.constants import HF_HUB_CACHE
    cached = os.path.join(HF_HUB_CACHE, 'models--' + name.replace('/', '--'))
    folder = name.split('/')[-1]
    return (f'there is no such folder here, and no such name on the Hugging Face hub, or no way to the hub. Without '
            f'network: on a machine with network run `hf download {name} --local-dir {folder}`, which gets {files}, '
            f'copy the folder to here, and give its path instead of the name; or copy the whole of {cached} from there '
            f'to here; {looked}')
