"""Checkpoint names of another project as data, and the two directions in which they are read.

A table has one row for each module or parameter, theirs to ours: ``{}`` is a layer's number, ``*`` the name of a
module's parameter, ``**`` whatever follows.
"""
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, lru_cache
from typing import Any

import torch

from ..errors import CheckpointError

State = dict[str, torch.Tensor]

_HOLES = {'{}': r'(\d+)', '*': r'([^.]+)', '**': r'(.+)'}
_QKV_BIAS = re.compile(r'(vision\.blocks\.\d+\.attn\.)qkv\.bias')
_QV_BIAS = re.compile(r'(vision\.blocks\.\d+\.attn\.)([qv]_bias)')


@dataclass
class Converted:
    """What :meth:`Layout.to_ours` made of a file.

    Attributes:
        state: Tensors by our names: those of the file or views of them.
        dropped: Keys of the file that hold nothing of the model's: buffers, and second names of tensors, also of such
            as are not in the file (the output layer of a frozen language model, which is its embedding).
        notes: Remarks for the reader, one a line.
    """
    state: State
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """Names of one project for one kind of file.

    Attributes:
        name: The project: 'LAVIS', 'mmpretrain' or 'transformers'.
        kind: What of it, in words.
        table: Rows, theirs to ours.
        vision_norm_eps: Epsilon that this project gives to the norm after the vision encoder; no weight, yet part of
            what the weights mean.
        bias: How the attention of the vision encoder keeps its bias: 'split' (queries and values), 'fused' (one
            tensor, in which the keys' part means nothing) or 'full' (one tensor, ours too).
        buffers: Patterns of keys that hold no weights.
        aliases: Keys of a second name, to the key of the tensor whose name it is.
        leaks: Keys of second names of weights that the file does not hold.
        flat: Keys of tensors that have fewer axes there, to their number.
        rows: Keys of tensors that have one axis more there, the first, of length 1.
        loses: fnmatch patterns of our keys that it has no place for: to lack them is no fault of a file.
        twice: Whether its files have the buffers and the second names; those that transformers saves do not.
    """
    name: str
    kind: str
    table: dict[str, str]
    vision_norm_eps: float
    bias: str = 'split'
    buffers: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    leaks: tuple[str, ...] = ()
    flat: dict[str, int] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    loses: tuple[str, ...] = ('num_steps', )
    twice: bool = True

    def __str__(self):
        return f'{self.name} ({self.kind})'

    # ---------------------------------------------------------------------------------------- reading

    def to_ours(self, state: State) -> Converted:
        """Rename a file's tensors.

        Args:
            state: By the names of this layout, all of a file or a part of it (second names together with the first); a
                wrapper's 'module.' is taken off.

        Returns:
            Converted: Nothing is copied.

        Raises:
            CheckpointError: A key is unknown, a second name has other values than the first, or a buffer holds what
                it never does.
        """
        found = Converted({})
        rename = _renamer(tuple(self.table.items()))
        state = without_wrapper(state)
        unknown = []
        for key, value in state.items():
            if self._leftover(key, value, state):
                found.dropped.append(key)
                continue
            name = rename(key)
            if name is None:
                unknown.append(key)
            elif key in self.flat:
                found.state[name] = value.reshape(1, -1, value.shape[-1])
            else:
                found.state[name] = value[0] if key in self.rows else value
        if unknown:
            raise CheckpointError(f'{len(unknown)} of {len(state)} keys are unknown in a file of {self} '
                                  f'({_named(unknown)}), for which its other keys were taken: is it a file of another '
                                  'model or version?')
        if self.bias == 'fused':
            self._split_biases(found)
        return found

    def _leftover(self, key, value, state):
        """Whether ``key`` holds nothing of its own, which is checked."""
        if any(_pattern(buffer).fullmatch(key) for buffer in self.buffers):
            if key.endswith('position_ids') and not _counts(value):
                raise CheckpointError(f'{key} is not 0, 1, 2 ..., as it is in every file of {self}: positions in '
                                      'another order are unknown here')
            return True
        if key in self.leaks:
            first = next(state[name] for name in self.leaks if name in state)
            if not _equal(first, value):
                raise CheckpointError(f'{_named(k for k in self.leaks if k in state)} differ, and are one tensor in '
                                      f'{self}: is the file broken?')
            return True
        twin = self.aliases.get(key)
        if twin is None:
            return False
        if twin not in state:
            raise CheckpointError(f'{key} is a second name of {twin} in {self}, which the file does not have: is the '
                                  'file whole?')
        if not _equal(value, state[twin]):
            raise CheckpointError(f'{key} and {twin} differ, and are one tensor in {self} and here: one of the two '
                                  'would be lost')
        return True

    def _split_biases(self, found):
        """Take the parts of queries and values from the fused biases."""
        state, changed = {}, 0
        for key, value in found.state.items():
            match = _QKV_BIAS.fullmatch(key)
            if match is None:
                state[key] = value
                continue
            query, keys, values = value.chunk(3)
            state[f'{match.group(1)}q_bias'], state[f'{match.group(1)}v_bias'] = query, values
            changed += not _equal(keys, None)
        if changed:
            found.notes.append(f"the keys' part of {changed} attention biases is not zero; it is left out, because it "
                               'changes no softmax')
        found.state = state

    # ---------------------------------------------------------------------------------------- writing

    def from_ours(self, state: State) -> tuple[State, list[str]]:
        """Rename our tensors into what a user of this project expects, with its buffers and second names.

        Args:
            state: By our names, all of a model or a part of it (the two biases of an attention in one part).

        Returns:
            tuple: Tensors by the names of this layout, in the order of ``state``; and the keys of ``state`` that it
            has no place for (see ``loses``).

        Raises:
            CheckpointError: A key has no place in it whose loss would change the model, or one of the two biases of
                an attention is missing.
        """
        rename = _renamer(tuple((ours, theirs) for theirs, ours in self.table.items()))
        result: State = {}
        left, refused = [], []
        for key, value in self._joined(state).items():
            name = rename(key)
            if name in self.flat:
                result[name] = value.reshape(value.shape[-self.flat[name]:])
            elif name is not None:
                result[name] = value[None] if name in self.rows else value
            elif any(fnmatch(key, pattern) for pattern in self.loses):
                left.append(key)
            else:
                refused.append(key)
        if refused:
            raise CheckpointError(f'{self} has no place for {len(refused)} keys of this model ({_named(refused)}): '
                                  'a file without them would be another model')
        if self.twice:
            result.update({alias: result[twin] for alias, twin in self.aliases.items() if twin in result
                           and any(key.startswith(alias.rpartition('decoder.')[0]) for key in result)})
            result.update(self._positions(result))
        return result, left

    def _joined(self, state):
        """``state`` with the biases of the vision encoder in the form of this layout."""
        joined = {}
        for key, value in state.items():
            whole, part = _QKV_BIAS.fullmatch(key), _QV_BIAS.fullmatch(key)
            if whole and self.bias == 'split':
                query, _, values = value.chunk(3)
                joined[f'{whole.group(1)}q_bias'], joined[f'{whole.group(1)}v_bias'] = query, values
            elif part and self.bias != 'split':
                query, values = (state.get(f'{part.group(1)}{name}') for name in ('q_bias', 'v_bias'))
                if query is None or values is None:
                    raise CheckpointError(f'{key} is without the other bias of its attention, and {self} has one '
                                          'tensor for both: give them together')
                if part.group(2) == 'q_bias':
                    joined[f'{part.group(1)}qkv.bias'] = torch.cat([query, torch.zeros_like(query), values])
            else:
                joined[key] = value
        return joined

    def _positions(self, written):
        """Positions 0, 1, 2 ... beside the embeddings' norm, as BERT keeps them."""
        positions = {}
        for key in self.buffers:
            start, _, name = key.rpartition('.')
            if name == 'position_ids' and f'{start}.LayerNorm.weight' in written:
                table = written.get(f'{start}.position_embeddings.weight')
                positions[key] = torch.arange(len(table) if table is not None else 512)[None]
        return positions


# ------------------------------------------------------------------------------------------------ names

def without_wrapper(state: dict[str, Any]) -> dict[str, Any]:
    """Take off the 'module.' that DataParallel and DistributedDataParallel put before every key."""
    if state and all(key.startswith('module.') for key in state):
        return {key[len('module.'):]: value for key, value in state.items()}
    return state


def strip(keys: Iterable[str]) -> set[str]:
    """Keys without a wrapper's 'module.'."""
    return set(without_wrapper(dict.fromkeys(keys)))


def inner(prefix: str, attention: str, ours: str = 'qformer.layers.{}.',
          mlps: tuple[tuple[str, str, str], ...] = (('_query', 'query_mlp', 'query_norm'),
                                                    ('', 'text_mlp', 'text_norm'))) -> dict[str, str]:
    """Rows of the layers of a BERT that cross-attends.

    Args:
        prefix: What stands before a layer's own names, with ``{}`` for its number and a dot at the end.
        attention: Name of the module that asks: 'self' in BERT, 'attention' in transformers' Q-Former.
        ours: What stands before ours.
        mlps: What ends their names of an MLP, and our names of it and of the norm behind it.
    """
    rows = {}
    for theirs, own in (('attention', 'attention'), ('crossattention', 'cross_attention')):
        for part in ('query', 'key', 'value'):
            rows[f'{prefix}{theirs}.{attention}.{part}.*'] = f'{ours}{own}.{part}.*'
        rows[f'{prefix}{theirs}.output.dense.*'] = f'{ours}{own}.output.*'
        rows[f'{prefix}{theirs}.output.LayerNorm.*'] = f'{ours}{own}_norm.*'
    for theirs, mlp, norm in mlps:
        rows[f'{prefix}intermediate{theirs}.dense.*'] = f'{ours}{mlp}.fc1.*'
        rows[f'{prefix}output{theirs}.dense.*'] = f'{ours}{mlp}.fc2.*'
        rows[f'{prefix}output{theirs}.LayerNorm.*'] = f'{ours}{norm}.*'
    return rows


@cache
def _pattern(row):
    """A row of a table as a regular expression."""
    parts = re.split(r'(\{\}|\*\*|\*)', row)
    return re.compile(''.join(_HOLES.get(part, re.escape(part)) for part in parts))


@lru_cache(maxsize=64)
def _renamer(rows):
    """A function from a key to its new name, or to None."""
    exact = {old: new for old, new in rows if not re.search(r'[*{]', old)}
    compiled = [(_pattern(old), re.sub(r'\*\*|\*', '{}', new)) for old, new in rows if old not in exact]

    def rename(key):
        if key in exact:
            return exact[key]
        for pattern, new in compiled:
            match = pattern.fullmatch(key)
            if match:
                return new.format(*match.groups())
        return None

    return rename


def _named(keys):
    """The first keys and the number of the others."""
    from .io import _some  # io reads by these layouts
    return _some(keys)


# ----------------------------------------------------------------------------------------------- values

def _equal(one, other):
    """Whether two tensors, or a tensor and zero (None), have the same values; tensors without values do."""
    if one.is_meta or (other is not None and other.is_meta):
        return other is None or one.shape == other.shape
    return not one.any() if other is None else torch.equal(one, other)


def _counts(value):
    """Whether ``value`` (1, n) is 0, 1, 2 ..."""
    return value.is_meta or torch.equal(value.flatten(), torch.arange(value.numel()).to(value))
