"""The config that a checkpoint carries: data that says which of our parts to build, and nothing else."""
import sys

from mmblip2.errors import CheckpointError

# Keys that make mmengine or transformers import or run what a file, a folder or a repository holds.
_RUNS_CODE = ('_scope_', 'trust_remote_code', 'custom_generate', 'auto_map', 'code_revision')


def config_inside(meta, path):
    """The config of a checkpoint, without a way for the file to choose what is run.

    A part has to be one of ours, or registered by a module that the caller has imported; nothing is imported by name.

    Args:
        meta (dict): Of the checkpoint.
        path (str | Path): For messages.

    Returns:
        Config: Only its parts are built; it is never executed.

    Raises:
        CheckpointError: There is none, it names what is not registered, or has a setting that would run code.
    """
    from mmengine.config import Config

    import mmblip2.datasets
    import mmblip2.models  # noqa: F401
    from mmblip2.registry import MODELS, TRANSFORMS
    found, by_hand = meta.get('config'), f'call get_model(CONFIG, pretrained={str(path)!r})'
    if not isinstance(found, dict) or not isinstance(found.get('model'), dict):
        raise CheckpointError(f'{path} has no config inside: {by_hand}')
    imports = (found.get('custom_imports') or {}).get('imports') or []
    missing = [name for name in ([imports] if isinstance(imports, str) else imports) if name not in sys.modules]
    if missing:
        raise CheckpointError(f'{path} needs the module {missing[0]} of its custom_imports, and a file may not import '
                              f'by itself: import {missing[0]} before, or {by_hand}')
    dataset = (found.get('test_dataloader') or found.get('val_dataloader') or {}).get('dataset') or {}
    named = (_not_ours(found['model'], 'model', MODELS.module_dict) +
             _not_ours(dataset.get('pipeline'), 'pipeline', TRANSFORMS.module_dict))
    if named:
        raise CheckpointError(f'the config inside {path} has {named[0]}, which could run code, and a file may not '
                              f'choose what is run: {by_hand} with the config you trust, here '
                              f'{meta.get("cfg_filename")!r}')
    return Config(found)


def _not_ours(node, path, known, foreign=False):
    """'path.key=value' of types that are not among ``known``, and of settings that run code."""
    if isinstance(node, (list, tuple)):
        return [found for i, item in enumerate(node) for found in _not_ours(item, f'{path}[{i}]', known, foreign)]
    if not isinstance(node, dict):
        return []
    here = [f'{path}.{key}={node[key]!r}' for key in _RUNS_CODE if key in node]
    name = node.get('type')
    if name is not None and not foreign and not (isinstance(name, str) and name.removeprefix('mmblip2.') in known):
        here.append(f'{path}.type={name!r}')
    # below 'config' are settings of transformers' architectures, which have types of their own and build nothing
    return here + [found for key, item in node.items()
                   for found in _not_ours(item, f'{path}.{key}', known, foreign or key == 'config')]
