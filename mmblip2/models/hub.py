"""What to tell a user whose Hugging Face folder, or hub name without network, could not be read."""
import os
import re

TOKENIZER_FILES = 'tokenizer.json and tokenizer_config.json'
MODEL_FILES = ('config.json and model.safetensors (a large model: model.safetensors.index.json and all of its '
               'parts)')


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
    if re.fullmatch(r'[\w-][\w.-]*(/[\w-][\w.-]*)?', name) is None:
        return f'there is no such folder; expected one with {files}'
    from huggingface_hub.constants import HF_HUB_CACHE
    cached = os.path.join(HF_HUB_CACHE, 'models--' + name.replace('/', '--'))
    return (f'there is no such folder here, and no such name on the Hugging Face hub, or no way to the hub. Without '
            f'network: get {files} of {name} on a machine with network, put them into one folder, and give that '
            f'folder instead of the name; or copy the whole of {cached} from there to here')
