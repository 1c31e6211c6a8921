"""Start a Q-Former (BLIP-2, section 3.1) or a MED (BLIP, section 3.1) from a pre-trained BERT.

What BERT has goes over: word and position embeddings and their LayerNorm, self-attention, and each layer's
MLP; in a Q-Former both as the text MLP and as its copy for the queries. Cross-attention, queries and heads are new.
"""
import os
from collections import Counter
from dataclasses import dataclass, field

import torch

from mmblip2.errors import CheckpointError

# Names inside a layer: ours -> BERT's.
_ATTENTION = {
    'attention.query': 'attention.self.query',
    'attention.key': 'attention.self.key',
    'attention.value': 'attention.self.value',
    'attention.output': 'attention.output.dense',
    'attention_norm': 'attention.output.LayerNorm',
}
_MLP = {'{mlp}.fc1': 'intermediate.dense', '{mlp}.fc2': 'output.dense', '{norm}': 'output.LayerNorm'}


@dataclass
class BertInitReport:
    """What :func:`init_from_bert` did.

    Attributes:
        title (str): What was started.
        source (str): The BERT folder.
        loaded (list[str]): Names of the parameters that BERT filled.
        new (list[str]): Names of those that keep their random values.
        new_words (int): Rows at the end of the word embeddings that keep their random values.
        unused (list[str]): Names of the BERT tensors without a place.
    """
    title: str
    source: str
    loaded: list = field(default_factory=list)
    new: list = field(default_factory=list)
    new_words: int = 0
    unused: list = field(default_factory=list)

    def __str__(self):
        lines = [f'{self.title} from {self.source}: {len(self.loaded)} parameters loaded, {len(self.new)} new']
        kinds = Counter('.'.join('*' if word.isdigit() else word for word in name.split('.')[:3]) for name in self.new)
        if kinds:
            lines.append('  new: ' + ', '.join(f'{kind} ({count})' if count > 1 else kind
                                               for kind, count in kinds.items()))
        if self.new_words:
            lines.append(f'  new: the last {self.new_words} rows of word_embeddings.weight')
        if self.unused:
            lines.append(f'  unused: {", ".join(self.unused)}')
        return '\n'.join(lines)


@torch.no_grad()
def init_from_bert(tower, folder):
    """Copy a BERT into a Q-Former or a MED, in place.

    BERT adds the embedding of token type 0 to every token; these have no token types, so that row is
    added to the position embeddings. Text alone then gives exactly BERT's hidden states. A longer vocabulary
    ([DEC]) keeps its new rows random; a longer position table of BERT is cut.

    Args:
        tower (BertTower): With or without text half. Same widths as BERT; no more layers than BERT has.
        folder (str): Folder of a Hugging Face BERT: ``config.json`` and ``model.safetensors`` or
            ``pytorch_model.bin``.

    Returns:
        BertInitReport: What was loaded and what stayed new, by name.

    Raises:
        CheckpointError: The folder holds no BERT, or the sizes differ.
    """
    bert = _read(folder, tower.title)
    own = dict(tower.named_parameters())
    report = BertInitReport(tower.title, str(folder))
    plan = {}  # name in the tower -> name in BERT
    for kind in ('weight', 'bias'):
        plan[f'embedding_norm.{kind}'] = f'embeddings.LayerNorm.{kind}'
    for i in range(len(tower.layers)):
        names = dict(_ATTENTION)
        for mlp, norm in tower.bert_mlps:
            names.update({ours.format(mlp=mlp, norm=norm): theirs for ours, theirs in _MLP.items()})
        for ours, theirs in names.items():
            for kind in ('weight', 'bias'):
                plan[f'layers.{i}.{ours}.{kind}'] = f'encoder.layer.{i}.{theirs}.{kind}'

    problems = []
    for ours, theirs in plan.items():
        if theirs not in bert:
            problems.append(f'{theirs} is missing')
        elif bert[theirs].shape != own[ours].shape:
            problems.append(f"{theirs} is {tuple(bert[theirs].shape)}, the {tower.title}'s {ours} is "
                            f'{tuple(own[ours].shape)}')
    used = set(plan.values())
    if tower.has_text:
        words, positions, types = (bert.get(f'embeddings.{name}_embeddings.weight')
                                   for name in ('word', 'position', 'token_type'))
        used |= {f'embeddings.{name}_embeddings.weight' for name in ('word', 'position', 'token_type')}
        table, places = tower.word_embeddings.weight, tower.position_embeddings.weight
        if words is None or positions is None:
            problems.append('word or position embeddings are missing')
        else:
            if words.size(0) > table.size(0) or words.size(1) != table.size(1):
                problems.append(f"word embeddings are {tuple(words.shape)}, the {tower.title}'s "
                                f'{tuple(table.shape)}')
            if positions.size(0) < places.size(0):
                problems.append(f'BERT has {positions.size(0)} positions, the {tower.title} {places.size(0)}')
    if problems:
        raise CheckpointError(f'{folder} does not fit the {tower.title}: {"; ".join(problems[:3])}'
                              + (f' and {len(problems) - 3} more' if len(problems) > 3 else '')
                              + '. Set num_layers, width, mlp_width, vocab_size and max_positions to the '
                              'sizes in its config.json')

    for ours, theirs in plan.items():
        own[ours].copy_(bert[theirs])
    report.loaded = list(plan)
    if tower.has_text:
        table[:len(words)].copy_(words)
        places.copy_(positions[:len(places)])
        if types is not None:
            places.add_(types[0].to(places))
        report.loaded += ['word_embeddings.weight', 'position_embeddings.weight']
        report.new_words = len(table) - len(words)
    report.new = [name for name in own if name not in set(report.loaded)]
    report.unused = sorted(set(bert) - used)
    return report


def _read(folder, title):
    """State dict of a BERT folder with the names of a bare BertModel."""
    from mmblip2.checkpoints.io import read_checkpoint
    from mmblip2.checkpoints.sources import locate
    try:
        folder = locate(folder, 'folder of a BERT')
    except CheckpointError as error:
        raise CheckpointError(f'{error}; or set bert=None to start the {title} from random weights') from error
    for name in ('model.safetensors', 'pytorch_model.bin'):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            break
    else:
        raise CheckpointError(f'{folder} holds neither model.safetensors nor pytorch_model.bin: expected the folder of '
                              'a Hugging Face BERT. Get model.safetensors of bert-base-uncased (or of another BERT of '
                              'these sizes) and put it there, or set bert=None to start the {title} from random '
                              'weights')
    state = read_checkpoint(path)['state_dict']
    start = 'bert.' if any(key.startswith('bert.') for key in state) else ''
    # Old files call a LayerNorm's parameters gamma and beta.
    renamed = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}
    bert = {}
    for key, value in state.items():
        key = key[len(start):] if key.startswith(start) else key
        for old, new in renamed.items():
            key = key.replace(old, new)
        if not key.endswith('position_ids'):
            bert[key] = value
    if 'embeddings.LayerNorm.weight' not in bert:
        raise CheckpointError(f'{path} is no BERT: it has no embeddings.LayerNorm (its keys: '
                              f'{", ".join(sorted(state)[:3])} ...)')
    return bert
