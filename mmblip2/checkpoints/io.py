"""Checkpoint files: plain types only, written atomically, matched to a model key by key.

A file of ours is ``torch.save`` of a dict without any Python object (it loads with ``weights_only=True``)::

    format            'mmblip2/1'
    meta              mmblip2_version, config (a dict: data, never run), iter, epoch, seed, cfg_filename,
                      frozen {part: {source, sha256, resized if the input size was another}}
                      in a converted file lacks: keys that its source did not have
    state_dict        every tensor of the model that is not a frozen weight
    optimizer         state by parameter name
    param_schedulers  list of state dicts
    message_hub       scalars (the last values only) and runtime_info
    raw               with EMAHook: the trained weights, while state_dict has their average
    rng               one entry a process

Frozen weights are never written; ``meta.frozen`` says what they were.
"""
import contextlib
import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..utils.dist import local, shard_like, whole
from ..utils.log import say
from .blip import kind_of, other_decoder
from .files import FOLDER_FILES, read_file, weights_file
from .sources import locate

FORMAT = 'mmblip2/1'
EXTRA = 'mmblip2_extra.safetensors'  # beside an export to transformers: what its layout has no place for
EXTRA_KEY = 'mmblip2_extra'  # the same inside a file for LAVIS or mmpretrain


def _some(names, limit=5):
    """'a, b, c and 4 more'."""
    names = list(names)
    text = ', '.join(names[:limit])
    return f'{text} and {len(names) - limit} more' if len(names) > limit else text


@dataclass
class LoadReport:
    """What a load did. Each list holds state-dict keys.

    Attributes:
        path: The file, or several joined by ' + '.
        format: What it was taken for, in words.
        matched: Keys that were copied into the model.
        interpolated: Those of them that were resized on the way.
        new: Keys of the model that the file does not have; they keep their initial values.
        missing: Keys of the model that the file should have; never a report without an error.
        unexpected: Keys of the file that nothing knows; never a report without an error.
        dropped: Keys of the file that the model has no use for, all declared: buffers and second names in the layout of
            the file, ``model.droppable``.
        notes: Remarks for the reader, one a line.
    """
    path: str
    format: str = ''
    matched: list = field(default_factory=list)
    interpolated: list = field(default_factory=list)
    new: list = field(default_factory=list)
    missing: list = field(default_factory=list)
    unexpected: list = field(default_factory=list)
    dropped: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def __str__(self):
        kinds = ('matched', 'interpolated', 'new', 'missing', 'unexpected', 'dropped')
        lines = [f'weights from {self.path}' + (f', taken for {self.format}' if self.format else '') + ': ' +
                 ', '.join(f'{len(getattr(self, kind))} {kind}' for kind in kinds)]
        lines += [f'  {kind}: {_some(_prefixes(getattr(self, kind)), 12)}' for kind in kinds[1:] if getattr(self, kind)]
        return '\n'.join(lines + [f'  {note}' for note in self.notes])

    def log(self):
        """Log the whole report, for callers without a logger of their own."""
        for line in str(self).splitlines():
            say(line)

    def log_notes(self):
        """Log what was changed on the way, for callers that do not log the whole report."""
        for note in self.notes:
            say(f'weights from {self.path}: {note}')


def _prefixes(keys):
    """Keys shortened to their first two levels, with the number of keys: 'qformer.bert (36)'."""
    counts: dict[str, int] = {}
    for key in keys:
        name = '.'.join(key.split('.')[:2])
        counts[name] = counts.get(name, 0) + 1
    return [name if count == 1 else f'{name} ({count})' for name, count in counts.items()]


# ----------------------------------------------------------------------------------------------- files

def write_checkpoint(checkpoint, path):
    """Write to a side file, flush it to the disk and rename it: ``path`` is always a whole file.

    Args:
        checkpoint (dict): Tensors and plain Python values only.
        path (str | Path): Final name.

    Raises:
        CheckpointError: The disk is full or not writable; a file that was there before is untouched.
    """
    with whole_file(path, f'checkpoint {path}', 'earlier checkpoints are untouched') as file:
        torch.save(checkpoint, file)


@contextlib.contextmanager
def whole_file(path, what, untouched):
    """Open a side file to write; at the end it is flushed to the disk and renamed, or else removed.

    Args:
        path (str | Path): Final name.
        what (str): What is written, for the error.
        untouched (str): What a failure leaves as it was, for the error.

    Raises:
        CheckpointError: The disk is full or not writable; a file that was there before is untouched.
    """
    path = Path(path)
    side = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(side, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(side, path)
        sync_dir(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):  # what torch says hides 'No space left on device'
            reason = reason.__context__
        raise CheckpointError(f'cannot write {what}: {reason or error}; {untouched}') from error
    finally:
        side.unlink(missing_ok=True)


def sync_dir(folder):
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems cannot sync a folder
    finally:
        os.close(handle)


def read_checkpoint(source, map_location='cpu', mapped=True):
    """Read a checkpoint of ours, LAVIS, mmpretrain or transformers without running anything that is in it.

    Tensors stay on the disk until they are used, where the file allows it. See also ``mmblip2.checkpoints.inert``.

    Args:
        source (str | Path): Our own file; the work directory of a training (its newest checkpoint); a ``.pth`` with a
            state dict (plain, or below 'state_dict' or 'model'); a ``.safetensors``; a folder of transformers, in one
            file or in shards; or what :func:`mmblip2.checkpoints.sources.locate` finds or downloads, a URL or a name on
            the Hugging Face hub.
        map_location: Where the tensors go.
        mapped (bool): False reads all at once: for a file that may be removed or replaced while it is in use.

    Returns:
        dict: 'state_dict' {key: tensor}, a known layout under our names; 'meta'; 'format': ``FORMAT``, the name of the
        project ('LAVIS', 'mmpretrain', 'transformers'), or '' for plain tensors. For all but our own, also 'path' (the
        file or folder), and for a known layout 'layout', 'dropped' (keys that hold no weights) and 'notes'. 'meta' of a
        folder has ``image_token_index`` where its config says it, for an export.

    Raises:
        CheckpointError: No such file, a broken file, one without tensors, a shard that is missing, a key that its
            layout does not know, or a file that would run code.
    """
    path = locate(source)
    file = path
    if path.is_dir():
        training = find_checkpoints(path)
        file = training[0] if training else weights_file(path)
        if file is None:
            raise CheckpointError(f'{path} is a folder without a checkpoint (iter_*.pth, epoch_*.pth; {FOLDER_FILES}): '
                                  'give the work directory of a training, the folder of a model, or a file')
    content = read_file(file, map_location, mapped)
    if not isinstance(content, dict):
        raise CheckpointError(f'{file} holds a {type(content).__name__}, expected a dict of tensors')
    if content.get('format', '') not in ('', FORMAT):
        raise CheckpointError(f'{file} has format {content["format"]!r}, this version of mmblip2 reads '
                              f'{FORMAT!r}: use the mmblip2 version that wrote it')
    state = content
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), dict):
            state = content[key]
            break
    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise CheckpointError(f'{file} holds no tensors (its keys: {_some(map(str, content))}), expected a '
                              "state dict, plain or below 'state_dict' or 'model'")
    meta = content.get('meta') if isinstance(content.get('meta'), dict) else {}
    if content.get('format') == FORMAT:
        if file.suffix != '.safetensors':
            _check_sums(file)
        return {**content, 'meta': meta, 'state_dict': state}
    if path.is_dir():
        index = folder_config(path).get('image_token_index')
        meta = {} if index is None else dict(image_token_index=index)
    result = _under_our_names(dict(format='', meta=meta, path=str(path), state_dict=state))
    extra = read_file(path / EXTRA, map_location, mapped) if path.is_dir() and (path / EXTRA).is_file() else \
        content.get(EXTRA_KEY)
    if isinstance(extra, dict):
        result['state_dict'].update(extra)
    return result


def _under_our_names(checkpoint):
    """A checkpoint in the layout of another project, in ours."""
    from .layouts import recognise
    layout = recognise(checkpoint['state_dict'], folder_config(checkpoint['path']).get('model_type'))
    if layout is None:
        return checkpoint
    try:
        found = layout.to_ours(checkpoint['state_dict'])
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint["path"]}: {error}') from error
    return dict(checkpoint, format=layout.name, layout=layout, state_dict=found.state, dropped=found.dropped,
                notes=found.notes)


def folder_config(folder):
    """Content of ``config.json`` in a folder of transformers; {} where there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    path = Path(folder, 'config.json')
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} is broken ({error}): copy or download it again') from error
    return content if isinstance(content, dict) else {}


def _check_sums(path):
    """Refuse a file whose tensors are not those that were written; torch does not look."""
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        broken = str(error)
    if broken is not None:
        raise CheckpointError(f'{path} is broken ({broken} differs from what was written): use an earlier checkpoint '
                              'or copy it again')


def last_checkpoint(work_dir):
    """What the file ``last_checkpoint`` of a work directory names, and the place of that checkpoint.

    Returns:
        tuple[str, Path | None] | None: The path is that of a file, in the folder itself if it has one of that name (it
        may be a copy of another); None for neither. No tuple without the file ``last_checkpoint``.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    if not pointer.is_file():
        return None
    text = pointer.read_text(errors='replace').strip('\0 \n')
    for path in (Path(work_dir, Path(text).name), Path(text)):
        try:
            if path.is_file():
                return text, path.resolve()
        except OSError:  # too long for a name: a pointer that was torn itself
            continue
    return text, None


def find_checkpoints(work_dir):
    """Training checkpoints of a work directory, newest first, also the one that ``last_checkpoint`` names.

    Files with more iterations that are older than the named one are those of an earlier run: they come last.

    Returns:
        list[Path]: Only files that exist; they may be broken.
    """
    work_dir = Path(work_dir)
    found: set[Path] = set()
    named = None
    for pattern in ('iter_*.pth', 'epoch_*.pth'):
        found.update(path for path in work_dir.glob(pattern) if path.exists())
    pointer = last_checkpoint(work_dir)
    if pointer and pointer[1]:
        named = pointer[1]
        found.add(named)
    unique = list({path.resolve(): path for path in found}.values())
    by_name = len({path.name.split('_')[0] for path in unique}) == 1  # all count iterations, or all count epochs

    def age(path):
        found = re.search(r'_(\d+)\.pth$', path.name)
        number = (int(found.group(1)) if found else -1) if by_name else _iterations(path)
        return number, path.stat().st_mtime

    newest_first = sorted(unique, key=age, reverse=True)
    if named is not None:
        written = named.stat().st_mtime
        newest_first.sort(key=lambda path: path.stat().st_mtime < written and age(path)[0] > age(named)[0])
    return newest_first


def _iterations(path):
    """Iterations of the training that wrote ``path``; -1 when it cannot be read."""
    try:
        return int(torch.load(path, weights_only=True, mmap=True)['meta']['iter'])
    except Exception:  # it is tried, and reported, when it is its turn
        return -1


# ---------------------------------------------------------------------------------------------- models

def _frozen_parts(model):
    return model.frozen_parts() if hasattr(model, 'frozen_parts') else {}


def frozen_record(model):
    """{part: {'source', 'sha256', ...}} of the model's frozen parts; empty for a model without the protocol."""
    return model.frozen_record() if hasattr(model, 'frozen_record') else {}


def _frozen_keys(model):
    """State-dict keys of the frozen weights: everything in a frozen part that takes no gradient."""
    prefixes = tuple(f'{name}.' for name in _frozen_parts(model))
    if not prefixes:
        return set()
    return {key for key, value in model.state_dict(keep_vars=True).items()
            if key.startswith(prefixes) and not value.requires_grad}


def saved_state(model):
    """The tensors a checkpoint of ``model`` holds: its state dict without the frozen weights, on the CPU.

    Every process has to call this if the model is divided among them.
    """
    scalars = getattr(model, 'sharded_scalars', ())
    frozen = _frozen_keys(model)
    tensors = {key: value for key, value in model.state_dict().items()
               if key not in frozen and isinstance(value, torch.Tensor)}
    copies: dict[tuple, torch.Tensor] = {}  # tied tensors stay tied in the file
    for key, value in tensors.items():
        ident = (_address(value), value.shape, value.dtype)
        if ident not in copies:
            copies[ident] = whole(value.detach()).cpu()
            if key in scalars:
                copies[ident] = copies[ident].reshape(())
        tensors[key] = copies[ident]
    return tensors


def _match(expected, state, path, checkpoint, droppable=(), may_lack=None):
    """Compare the keys and shapes of ``state`` with ``expected`` and collect everything that is wrong.

    Args:
        expected (dict[str, Tensor]): What the model wants filled.
        state (dict[str, Tensor]): What the file has.
        path (str | Path): For messages.
        checkpoint (dict): That it is from, for what it was taken for and what was dropped already.
        droppable (tuple[str]): fnmatch patterns of keys the file may have in vain.
        may_lack (Callable): Whether a key that is missing is new, instead of an error; default: none is.

    Raises:
        CheckpointError: With the first keys and shapes that differ.
    """
    report = LoadReport(str(path), taken_for(checkpoint), dropped=list(checkpoint.get('dropped', ())))
    report.notes += checkpoint.get('notes', ())
    present = {_address(expected[key]) for key in state if key in expected}
    for key in expected:
        if key not in state and _address(expected[key]) not in present:
            (report.new if may_lack is not None and may_lack(key) else report.missing).append(key)
    for key in state:
        if key in expected:
            report.matched.append(key)
        else:
            droppable_ = any(fnmatch(key, pattern) for pattern in droppable)
            (report.dropped if droppable_ else report.unexpected).append(key)
    shapes = [f'{key}: {tuple(state[key].shape)} in the file, {tuple(expected[key].shape)} in the model'
              for key in report.matched if state[key].shape != expected[key].shape
              and not (hasattr(expected[key], 'to_local') and expected[key].numel() == state[key].numel() == 1)]
    tied: dict[tuple, str] = {}
    torn = []
    for key in report.matched:
        first = tied.setdefault(_address(expected[key]), key)
        if first != key and not torch.equal(state[first], state[key]):
            torn.append(f'{first} and {key}')
    problems = other_decoder(expected, state)
    if torn:
        problems.append(f'two tensors in the file are one in the model ({_some(torn, 3)}), so one would be lost: build '
                        'the part so that it keeps them apart (a language model: from the folder that it was made '
                        'from, or with config=dict(tie_word_embeddings=False))')
    if shapes:
        problems.append(f'{len(shapes)} of other shape ({_some(shapes, 3)})')
    if report.missing:
        problems.append(f'{len(report.missing)} missing in the file ({_some(report.missing)})')
    if report.unexpected:
        problems.append(f'{len(report.unexpected)} unknown to the model ({_some(report.unexpected)})')
    if not report.matched:
        problems.append('no key in common')
    if problems:
        raise CheckpointError(f'{path} does not fit the model: ' + '; '.join(problems) + '. ' +
                              (f'The file was taken for {report.format}. ' if report.format else '') +
                              (_other_stage(expected, state) or
                               'Is it a checkpoint of another architecture or config?'))
    return report


def taken_for(checkpoint):
    """What a checkpoint was taken for, in words; '' for plain tensors."""
    if checkpoint['format'] == FORMAT:
        return 'a checkpoint of mmblip2'
    return f'{checkpoint["layout"]}' if checkpoint['format'] else ''


def _other_stage(expected, state):
    """Say so when a file is of one stage and the model of another."""
    wanted, has = _stage(expected), _stage(state)
    if wanted and has and wanted != has:
        return f'The file is of {has}, the model of {wanted}: give the checkpoint and the config of the same.'
    return None


def _stage(keys):
    kind = kind_of(keys)
    if kind is not None:
        return f'a BLIP for {kind}'
    if 'language_projection.weight' in keys:
        return 'stage 2 (Blip2Generation: it has a projection to a language model, and no heads for retrieval)'
    if 'itm_head.classifier.weight' in keys:
        return 'stage 1 (Blip2Representation: it has the heads of retrieval, and no projection to a language model)'
    return None


def _adapted(model, state):
    """Let the parts of ``model`` turn what a file has for them into what they take, by their ``adapt_weights``.

    Args:
        model (nn.Module): Parts with ``adapt_weights(state) -> (state, notes)`` are asked, the others are not;
            without a note nothing was changed.
        state (dict[str, Tensor]): By the model's keys; stays as it is.

    Returns:
        tuple: The state to load, notes for the reader, and the keys that were resized.
    """
    notes, resized = [], []
    for name, part in model.named_modules():
        if not hasattr(part, 'adapt_weights'):
            continue
        start = f'{name}.' if name else ''
        taken, remarks = part.adapt_weights(
            {key[len(start):]: value for key, value in state.items() if key.startswith(start)})
        if remarks:
            state = {key: value for key, value in state.items() if not key.startswith(start)}
            state.update((start + key, value) for key, value in taken.items())
            resized += [start + key for key in getattr(part, 'before_resize', ())]
        notes += [f'{name}: {remark}' if name else remark for remark in remarks]
    return state, notes, resized


def _address(tensor):
    """Identity of the memory behind a tensor, the same for tied weights; unique for empty ones."""
    own = local(tensor)
    return (own.data_ptr(), tensor.shape) if own.numel() else id(tensor)


@torch.no_grad()
def _copy(expected, state, keys):
    for key in keys:
        expected[key].copy_(shard_like(state[key], expected[key]))


def load_weights(module, path, prefix=''):
    """Fill a whole module, the way a part of a model loads its weights.

    Args:
        module (nn.Module): Receives every key of its state dict.
        path (str | Path): Any file that :func:`read_checkpoint` takes.
        prefix (str): The part's name in the file ('vision'): only keys 'vision.*' are used, without the
            prefix. A foreign file without any such key is taken as the part's own state dict.

    Returns:
        LoadReport: All matched.

    Raises:
        CheckpointError: A key is missing, unknown or of another shape, or the file cannot be read.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint['state_dict']
    if prefix:
        start = prefix.rstrip('.') + '.'
        own = {key[len(start):]: value for key, value in state.items() if key.startswith(start)}
        if not own and checkpoint['format']:
            frozen = checkpoint['meta'].get('frozen', {}).get(start[:-1])
            hint = f"; it was frozen there, its weights are in {frozen['source']}" if frozen else ''
            raise CheckpointError(f'{path} holds no weights of {start[:-1]!r} (it has: '
                                  f'{_some(sorted({key.split(".")[0] for key in state}))}){hint}')
        state = own or state
    expected = module.state_dict()
    state, notes, resized = _adapted(module, state)
    report = _match(expected, state, path, checkpoint)
    report.interpolated += resized
    report.notes += notes
    _copy(expected, state, report.matched)
    return report


def load_strict(model, checkpoint, path, adapt=True):
    """Fill everything that is not frozen, for test and resume.

    A file of another project may lack what that project does not have, which ``report.new`` names; a part that such a
    file lacks keeps the weights that it was built with, if it was built with any.

    Args:
        model (nn.Module): Any module; ``frozen_parts``, ``frozen_record``, ``droppable`` are optional.
        checkpoint (dict): From :func:`read_checkpoint`.
        path (str | Path): For messages.
        adapt (bool): Let the parts adapt the weights (positions of another image size). A resumed training must
            not: the optimizer's state has the shapes of the file.

    Returns:
        LoadReport: What was done.

    Raises:
        CheckpointError: A key is missing, unknown or of another shape; or a frozen part is absent or is not
            the one that the file was trained with.
    """
    remarks = _check_frozen(model, checkpoint, path)
    state, frozen = checkpoint['state_dict'], _frozen_keys(model)
    expected = {key: value for key, value in model.state_dict().items() if key not in frozen}
    trained, brought = _without_frozen(model, checkpoint, expected)
    trained, notes, resized = _adapted(model, trained) if adapt else (trained, [], [])
    layout = checkpoint.get('layout')
    lacks = layout.loses if layout else checkpoint['meta'].get('lacks', ())
    built = tuple(f'{name}.' for name, part in model.named_children()
                  if layout and getattr(part, 'weights_source', None)
                  and not any(key.startswith(f'{name}.') for key in trained))

    def may_lack(key):
        return key.startswith(built) or any(fnmatch(key, pattern) for pattern in lacks)

    report = _match(expected, trained, path, checkpoint, getattr(model, 'droppable', ()), may_lack)
    kept = {key for key in report.new if key.startswith(built)}
    report.new = [key for key in report.new if key not in kept]
    for name in sorted({key.split('.')[0] for key in kept}):
        report.notes.append(f'{name}: not in the file, from {getattr(model, name).weights_source}')
    report.interpolated += resized
    report.notes += remarks + brought + notes
    if checkpoint['format'] == FORMAT:
        _refuse_frozen(model, state, frozen, path)
    _copy(expected, trained, report.matched)
    return report


def _without_frozen(model, checkpoint, expected):
    """The state without the weights of frozen parts, and what is to be said of these, which are not loaded here.

    A file of another project may bring them. The part has its own already: those of this file if it was built so (see
    ``mmblip2.checkpoints.parts``).
    """
    frozen = _frozen_keys(model)
    notes: list[str] = []
    state = {key: value for key, value in checkpoint['state_dict'].items() if key not in frozen}
    if checkpoint['format'] == FORMAT:
        return state, notes
    for name, part in _frozen_parts(model).items():
        start = f'{name}.'
        keys = [key for key in checkpoint['state_dict'] if key.startswith(start) and key not in expected]
        if not keys:
            continue
        state = {key: value for key, value in state.items() if not key.startswith(start) or key in expected}
        source = getattr(part, 'weights_source', None)
        notes.append(f'{name}: frozen, its {len(keys)} tensors in the file are ' +
                     ('those that it was built with' if str(source) == checkpoint['path'] else
                      f'not used: it has {"random ones" if source is None else f"those of {source}"}'))
    return state, notes


def load_entries(load_from):
    """The entries of ``load_from``: a path, a dict, or a list of dicts becomes the list."""
    if isinstance(load_from, (str, Path)):
        load_from = dict(checkpoint=load_from)
    return [load_from] if isinstance(load_from, dict) else list(load_from)


def chosen(state, entry):
    """The tensors of ``state`` that an entry of ``load_from`` takes, by its 'include' and 'exclude'."""
    return {key: value for key, value in state.items()
            if any(fnmatch(key, pattern) for pattern in entry.get('include', ['*']))
            and not any(fnmatch(key, pattern) for pattern in entry.get('exclude', []))}


def load_partial(model, load_from):
    """Initialise a model from one or several files; later files win where two have a key.

    Args:
        model (nn.Module): See :func:`load_strict`.
        load_from (str | list[dict]): A path, or dicts with 'checkpoint' and optional 'include' and 'exclude'
            (lists of fnmatch patterns of keys, by our names; default: include all, exclude none).

    Returns:
        LoadReport: 'new' lists the model's keys that no file has.

    Raises:
        CheckpointError: An unknown key that ``model.droppable`` does not cover, another shape, a frozen part, or whole
            layers that the files lack (unless an entry chooses its keys by 'include' or 'exclude').
    """
    entries = load_entries(load_from)
    frozen = _frozen_keys(model)
    expected = {key: value for key, value in model.state_dict().items() if key not in frozen}
    total = LoadReport(' + '.join(str(entry['checkpoint']) for entry in entries))
    origin, kinds = {}, []
    for number, entry in enumerate(entries):
        path = entry['checkpoint']
        checkpoint = read_checkpoint(path)
        state = chosen(checkpoint['state_dict'], entry)
        if not state:
            raise CheckpointError(f'{path}: include {entry.get("include")} and exclude '
                                  f'{entry.get("exclude")} leave no key (the file has: '
                                  f'{_some(checkpoint["state_dict"])})')
        if checkpoint['format'] in (FORMAT, ''):
            _refuse_frozen(model, state, frozen, path)
        state, brought = _without_frozen(model, dict(checkpoint, state_dict=state), expected)
        state = {key: value for key, value in state.items() if key != 'num_steps'}  # a new training counts its own
        state, notes, resized = _adapted(model, state)
        report = _match(expected, state, path, checkpoint, getattr(model, 'droppable', ()), lambda key: True)
        _copy(expected, state, report.matched)
        total.notes += report.notes + brought + notes
        total.interpolated += [key for key in resized if key not in total.interpolated]
        kinds.append(report.format)
        origin.update(dict.fromkeys(report.matched, number))
        total.dropped += [key for key in report.dropped if key not in total.dropped]
        total.notes += _frozen_differences(model, checkpoint, path)
    filled = {_address(expected[key]) for key in origin}
    total.format = ' + '.join(dict.fromkeys(kind for kind in kinds if kind))
    total.matched = list(origin)
    total.new = [key for key in expected if key not in origin and _address(expected[key]) not in filled]
    if not any('include' in entry or 'exclude' in entry for entry in entries):
        _refuse_new_layers(total)
    if len(entries) > 1:
        for number, entry in enumerate(entries):
            keys = [key for key, source in origin.items() if source == number]
            total.notes.append(f'from {entry["checkpoint"]}: {_some(_prefixes(keys), 12) or "nothing"}')
    return total


def _refuse_new_layers(report):
    """Refuse to leave whole layers of a stack random of which the files fill the others."""
    layer = re.compile(r'(.*?\.)(\d+)\.').match
    filled = {found.group() for found in map(layer, report.matched) if found}
    stacks = {found.group(1) for found in map(layer, report.matched) if found}
    left = sorted({found.group() for found in map(layer, report.new) if found and found.group(1) in stacks} - filled)
    if left:
        raise CheckpointError(f'{report.path} has fewer layers than the model: it lacks {_some(n[:-1] for n in left)}, '
                              'which would be random. Set the number of layers to that of the file; or, if that is '
                              "meant, say so with load_from=[dict(checkpoint=..., include=['*'])]")


def _refuse_frozen(model, state, frozen, path):
    keys = [key for key in state if key in frozen]
    if keys:
        part = next(name for name in _frozen_parts(model) if keys[0].startswith(f'{name}.'))
        raise CheckpointError(f'{path} holds trained weights of {part!r} ({_some(keys, 2)}), which is frozen '
                              f'in this model: give the file to the part itself (model.{part}.weights), or '
                              f"exclude '{part}.*'")


def _frozen_differences(model, checkpoint, path):
    """Notes on frozen parts which are not those that the file was trained beside, or at another input size."""
    built, saved = frozen_record(model), checkpoint['meta'].get('frozen', {})
    notes = [f'note: {path} was trained beside another {part} ({was["source"]}; now {built[part]["source"]})'
             for part, was in saved.items() if part in built and built[part]['sha256'] != was['sha256']]
    return notes + _resized_otherwise(built, saved)


def _resized_otherwise(built, saved):
    """Notes on the same frozen parts at another input size."""
    notes = []
    for part, was in saved.items():
        now = built.get(part, {})
        if now.get('sha256') == was['sha256'] and now.get('resized') != was.get('resized'):
            shapes = [f'resized {record["resized"]}' if 'resized' in record else 'as in the file'
                      for record in (now, was)]
            notes.append(f'frozen {part}: the weights of the training at another input size; now {shapes[0]}, then '
                         f'{shapes[1]}')
    return notes


def _check_frozen(model, checkpoint, path):
    """Refuse a model with other frozen parts; notes on those that only have another input size."""
    built = frozen_record(model)
    for part, was in checkpoint['meta'].get('frozen', {}).items():
        if part not in built:
            raise CheckpointError(f'{path} was trained with a frozen {part!r} (from {was["source"]}, sha256 '
                                  f'{was["sha256"][:12]}), and this model has no frozen part of that name: '
                                  'load and freeze it as the training config did')
        if built[part]['sha256'] != was['sha256']:
            raise CheckpointError(
                f'the frozen part {part!r} differs from the one that {path} was trained with: sha256 '
                f'{built[part]["sha256"][:12]} from {built[part]["source"]}, expected {was["sha256"][:12]} '
                f'from {was["source"]}; give model.{part} the original weights')
    return _resized_otherwise(built, checkpoint['meta'].get('frozen', {}))
