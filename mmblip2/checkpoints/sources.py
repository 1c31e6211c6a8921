"""Where weights are: a path, a folder of one's own, the caches of other packages, or the network.

``MMBLIP2_WEIGHTS`` names one folder, or several as in ``PATH``, in which a file or a model's folder is looked for by
its last name: ``eva_vit_g.pth``, ``blip2-opt-2.7b`` (or ``Salesforce/blip2-opt-2.7b``).
"""
import hashlib
import os
import re
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import CheckpointError, first_lines
from .files import shards_of, weights_file

_SALESFORCE = 'https://storage.googleapis.com/sfr-vision-language-research/'
LAVIS = f'{_SALESFORCE}LAVIS/models/'
BLIP = f'{_SALESFORCE}BLIP/models/'
MMPRETRAIN = 'https://download.openmmlab.com/mmclassification/v1/'
# Published files by their names, wherever a config or a user says that they are, and where they come from. A name that
# many files have stands with its folders, which then have to be said too.
PUBLISHED = {
    **{name: f'{LAVIS}BLIP2/{name}' for name in (
        'eva_vit_g.pth', 'clip_vit_L.pth', 'blip2_pretrained.pth', 'blip2_pretrained_vitL.pth',
        'blip2_finetune_coco.pth', 'blip2_pretrained_opt2.7b.pth', 'blip2_pretrained_opt6.7b.pth',
        'blip2_pretrained_flant5xl.pth', 'blip2_pretrained_flant5xl_vitL.pth', 'blip2_pretrained_flant5xxl.pth',
        'blip2_caption_opt2.7b.pth', 'blip2_caption_opt6.7b.pth', 'blip2_caption_flant5xl.pth')},
    **{name: f'{LAVIS}InstructBLIP/{name}' for name in (
        'instruct_blip_vicuna7b_trimmed.pth', 'instruct_blip_vicuna13b_trimmed.pth',
        'instruct_blip_flanxl_trimmed.pth', 'instruct_blip_flanxxl_trimmed.pth')},
    **{name: f'{LAVIS}BLIP/{name}' for name in (
        'blip_coco_caption_base.pth', 'blip_coco_retrieval.pth', 'blip_flickr_retrieval.pth', 'blip_okvqa.pth',
        'blip_aokvqa.pth')},
    **{name: f'{BLIP}{name}' for name in (
        'model_base_capfilt_large.pth', 'model_base.pth', 'model_base_14M.pth', 'model_large.pth',
        'model_base_caption_capfilt_large.pth', 'model_large_caption.pth', 'model_base_vqa_capfilt_large.pth',
        'model_vqa.pth', 'model_base_retrieval_coco.pth', 'model_base_retrieval_flickr.pth',
        'model_large_retrieval_coco.pth', 'model_large_retrieval_flickr.pth', 'model_base_nlvr.pth')},
    **{name: f'{MMPRETRAIN}blip2/{name}' for name in (
        'blip2-opt2.7b_3rdparty_pretrain_20230505-b51db4e1.pth', 'blip2_3rdparty_pretrain_20230505-f7ef4390.pth')},
    **{name: f'{MMPRETRAIN}blip/{name}' for name in (
        'blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth',
        'blip-base_3rdparty-capflit_vqa_20230505-81488941.pth',
        'blip-base_3rdparty_coco-retrieval_20230419-a1804d2c.pth', 'blip-base_3rdparty_nlvr_20230427-3b14d33f.pth')},
    'bert-base-uncased': 'google-bert/bert-base-uncased',
    'deit_base_patch16_224-b5f2ef4d.pth': 'https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth',
    'vit_large_patch16_224.augreg_in21k': 'timm/vit_large_patch16_224.augreg_in21k',
    # lists of answers that a model of question answering ranks
    'coco/annotations/answer_list.json': f'{_SALESFORCE}datasets/answer_list.json',
    'okvqa_answer_list_train.json': f'{_SALESFORCE}LAVIS/datasets/okvqa/okvqa_answer_list_train.json',
    'specialized_vocab_train.json': f'{_SALESFORCE}LAVIS/datasets/aokvqa/specialized_vocab_train.json',
}
VARIABLE = 'MMBLIP2_WEIGHTS'
TIMEOUT = 30  # seconds without an answer
_FILES = ('.pth', '.pt', '.safetensors', '.bin', '.py', '.json')
_OURS = ('work_dirs', 'data', 'configs', 'checkpoints', 'weights')  # folders, never owners of models on the hub
_BESIDE = ['*.json', '*.txt', '*.model']  # what a model's folder has beside its weights; never code
# by anyone's training: another one's would be taken for it
_ANYONES = re.compile(r'(iter|epoch|best)_.*\.pth|last_checkpoint')


def locate(source: str | Path, what: str = 'checkpoint') -> Path:
    """Find weights, and download them where they are nowhere.

    Looked for in this order: the path itself; the last part of its name in the folders of ``MMBLIP2_WEIGHTS``; the
    caches that LAVIS, mmpretrain, mmengine and Hugging Face download into; the network. Of several processes one
    downloads and the others wait. What is not whole, or has another hash than its name says (``-b51db4e1.pth``: the
    first hexadecimal digits of its sha256), never gets its final name.

    Args:
        source: A path; ``https://``, ``http://`` or ``file://`` URL; the name of a model on the Hugging Face hub
            (``Salesforce/blip2-opt-2.7b``) or the address of its page; or a path that ends in a name of ``PUBLISHED``.
        what: What it is, for the error: 'weights of blip2_3rdparty_retrieval'.

    Returns:
        Path: An existing file, or for a model of the hub its folder.

    Raises:
        CheckpointError: It is not there and cannot be downloaded; says which places were tried and where to put it. Or
            its hash is another one.
    """
    found, tried = find(source)
    if found is not None:
        return found
    text = str(source)
    origin = _published(text)
    try:
        if urlsplit(origin).scheme in ('https', 'http'):
            if _name(origin) in ('', '..'):
                raise ValueError('the address does not end in the name of a file')
            return _download_file(origin, _hub_cache() / _name(origin))
        if is_hub_name(origin):
            return _download_folder(origin)
    except (OSError, HTTPException, ValueError) as error:
        reason = f'it could not be downloaded from {origin} ({first_lines(error)}). '
    else:
        scheme = f'{text.partition("://")[0]}://' if '://' in text else ''
        foreign = f' ({scheme} is none of https://, http://, file://)' if scheme not in ('', 'file://') else ''
        reason = f'there is no address to download it from{foreign}. '
    raise CheckpointError(f'{what} {text} not found: {reason}Looked in: {"; ".join(tried)}. Give the path of '
                          f'{_name(text)}, or put it into a folder and set {VARIABLE}=FOLDER')


def find(source: str | Path) -> tuple[Path | None, list[str]]:
    """Find weights without the network.

    Args:
        source: As for :func:`locate`.

    Returns:
        tuple: The path, or None; and the places that were tried, in words.

    Raises:
        CheckpointError: A file of that name has another hash than the name says.
    """
    text = str(source)
    tried = []
    if text.lower().startswith('file://'):
        path = Path(urllib.request.url2pathname(urlsplit(text).path))
        return (_checked(path) if path.exists() else None), [str(path)]
    if '://' not in text:
        path = Path(text).expanduser()
        if path.exists():
            return path, []
        tried.append(str(path.absolute()))
        if _ANYONES.fullmatch(path.name):
            return None, tried
    published = _published(text)
    folders = [Path(folder).expanduser() for folder in os.environ.get(VARIABLE, '').split(os.pathsep) if folder]
    for folder in folders:
        for name in (published if is_hub_name(published) else _name(text), _name(text)):
            if (folder / name).exists():
                return _checked(folder / name), tried
    tried += [str(folder) for folder in folders] or [f'{VARIABLE} (not set)']
    if urlsplit(published).scheme in ('https', 'http'):
        for folder in (_hub_cache(), _mmengine_home()):
            path = folder / _name(published)
            if path.is_file() and _from_there(path, published):
                return _checked(path), tried
            tried.append(str(folder))
    elif is_hub_name(published):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.constants import HF_HUB_CACHE
        config = try_to_load_from_cache(published, 'config.json')
        if isinstance(config, str) and _is_whole(Path(config).parent):
            return Path(config).parent, tried
        tried.append(str(Path(HF_HUB_CACHE, 'models--' + published.replace('/', '--'))))
    return None, tried


def local_or_hub(source: str) -> str:
    """What transformers shall read: a folder that is here, or else the name on the hub.

    Args:
        source: A folder, a name on the hub, or a path that ends in a name of ``PUBLISHED``.
    """
    found, _ = find(source)
    if found is not None:
        return str(found)
    return source if Path(source).name == source else _published(source)  # a name alone is one of the hub's already


def is_hub_name(name: str | Path) -> bool:
    """Whether ``name`` has the form of a model's name on the Hugging Face hub, ``owner/model``."""
    text = str(name)
    return (re.fullmatch(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', text) is not None
            and not text.endswith(_FILES) and text.split('/')[0] not in _OURS and not Path(text.split('/')[0]).exists())


def is_published(source: str | Path) -> bool:
    """Whether ``source`` is a path that ends in a name of ``PUBLISHED``."""
    return any(name in PUBLISHED for name in _endings(source))


def _endings(source: str | Path) -> list[str]:
    """'a/b/c' becomes 'c', 'b/c', 'a/b/c'."""
    parts = Path(source).parts
    return ['/'.join(parts[i:]) for i in reversed(range(len(parts)))]


def _published(source: str) -> str:
    """The address of a file that is known by its name, the name on the hub of a page there, or ``source`` itself."""
    if '://' not in source:
        return next((PUBLISHED[name] for name in _endings(source) if name in PUBLISHED), source)
    page = re.fullmatch(r'https://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?', source)
    return page[1] if page else source


def _name(source: str) -> str:
    """The last part: of a URL without its query."""
    path = unquote(urlsplit(source).path) if '://' in source else source
    return Path(path).name


def _hub_cache() -> Path:
    """Where torch, mmengine, mmpretrain and LAVIS (by timm) keep what they download."""
    import torch
    return Path(torch.hub.get_dir(), 'checkpoints')


def _mmengine_home() -> Path:
    cache = os.environ.get('XDG_CACHE_HOME', '~/.cache')
    return Path(os.environ.get('MMENGINE_HOME', Path(cache, 'mmengine'))).expanduser()


def _from_there(path: Path, url: str) -> bool:
    """Whether a cached file is the one behind ``url``: names like model.pth are used by many. Other packages do not
    write down where a file is from; theirs are believed."""
    note = path.with_name(f'{path.name}.url')
    return not note.is_file() or note.read_text(encoding='utf-8').strip() == url


def _is_whole(folder: Path) -> bool:
    """Whether a model's folder has weights, and all parts of them."""
    file = weights_file(folder)
    if file is None or not file.name.endswith('.index.json'):
        return file is not None
    try:
        return all((folder / part).is_file() for part in shards_of(file).values())
    except CheckpointError:  # it came half
        return False


def _said_hash(name: str) -> str:
    """The start of the sha256 that a file name carries, or ''. Eight digits that are a date are none."""
    found = re.search(r'-([0-9a-f]{8,64})\.\w+$', name)
    if found is None or re.fullmatch(r'(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])', found.group(1)):
        return ''
    return found.group(1)


def _checked(path: Path) -> Path:
    """``path``, if it is a folder or its hash is what its name says."""
    said = _said_hash(path.name)
    if said and path.is_file():
        digest = hashlib.sha256()
        with open(path, 'rb') as file:
            while block := file.read(2**20):
                digest.update(block)
        if not digest.hexdigest().startswith(said):
            raise CheckpointError(f'{path} is not the file that its name says: its sha256 starts with '
                                  f'{digest.hexdigest()[:len(said)]}, expected {said}. It is broken or not whole: '
                                  'delete it and get it again')
    return path


def _download_file(url: str, path: Path) -> Path:
    """Download into a side file, check it, rename it; the first of several processes does, the others wait for it.

    Raises:
        OSError: There is no way to it, it is not whole, or has another hash than its name says.
    """
    from filelock import FileLock
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        if path.is_file() and _from_there(path, url):  # another process was first
            return path
        side = path.with_name(f'{path.name}.part')  # what a killed process left is overwritten
        try:
            digest = hashlib.sha256()
            with open(side, 'wb') as file:
                for block in _blocks(url, path.name):
                    if file.tell() == 0 and block.lstrip().startswith(b'<'):
                        raise OSError('what came is a web page and no weights')
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            said = _said_hash(path.name)
            if not digest.hexdigest().startswith(said):
                raise OSError(f'what came has sha256 {digest.hexdigest()[:len(said)]}..., its name says {said}')
            path.with_name(f'{path.name}.url').write_text(f'{url}\n', encoding='utf-8')
            os.replace(side, path)
        finally:
            side.unlink(missing_ok=True)
    return path


def _blocks(url: str, name: str) -> Iterator[bytes]:
    """What a server sends, with a progress bar.

    Raises:
        OSError: It sends less than it said.
    """
    from huggingface_hub.utils.tqdm import tqdm
    request = urllib.request.Request(url, headers={'User-Agent': 'mmblip2'})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        size = int(answer.headers.get('Content-Length') or 0)
        came = 0
        with tqdm(total=size or None, unit='B', unit_scale=True, desc=name, mininterval=1) as bar:
            while block := answer.read(2**20):
                came += len(block)
                bar.update(len(block))
                yield block
        if size and came != size:
            raise OSError(f'the download ended after {came} of {size} bytes')


def _download_folder(name: str) -> Path:
    """A model of the hub, without code: safetensors, or where there are none, what torch wrote.

    Raises:
        OSError: There is no way to it, or it has no weights.
    """
    from huggingface_hub import snapshot_download
    for weights in ('*.safetensors', '*.bin'):
        try:
            folder = Path(snapshot_download(name, allow_patterns=[*_BESIDE, weights], ignore_patterns=['*/*']))
        except Exception as error:  # of no one family from release to release
            raise OSError(first_lines(error)) from error
        if _is_whole(folder):
            return folder
    raise OSError('the model has no weights there, neither *.safetensors nor *.bin, or not all of them came')
