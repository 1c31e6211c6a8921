"""tools/test.py and tools/train.py take BLIP in every layout: the same figures and texts from each."""
import json
import sys
from pathlib import Path

import pytest

from mmblip2.checkpoints import io
from mmblip2.checkpoints.convert import convert

pytest.importorskip('transformers')
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test_checkpoints'))
from test_export_blip import bert, tiny, trained
from test_formats import data, run_tool

__all__ = ['bert', 'data', 'trained']  # the fixtures
LAYOUTS = {'lavis': 'LAVIS', 'mmpretrain': 'mmpretrain', 'huggingface': 'transformers'}


@pytest.fixture(scope='module')
def files(trained, tmp_path_factory):
    """Made on first use: a model's file in every layout."""
    made = {}

    def get(kind):
        if kind not in made:
            root, path = tmp_path_factory.mktemp(kind), trained(kind)[2]
            made[kind] = {'mmblip2': path}
            for to in LAYOUTS:
                made[kind][to] = root / (to if to == 'huggingface' else f'{to}.pth')
                convert(path, made[kind][to], to)
        return made[kind]

    return get


def sized(loader):
    """The loader with images of ``tiny``."""
    loader['dataset']['pipeline'][1]['scale'] = 32
    return loader


def test_retrieval_from_every_layout(trained, files, data, tmp_path):
    found = {}
    for name, path in files('retrieval').items():
        root = tmp_path / name
        root.mkdir()
        cfg = dict(model=trained('retrieval')[0].model.to_dict(), test_cfg=dict(type='RetrievalTestLoop', k_test=3),
                   test_dataloader=sized(data('COCORetrieval', dict(type='CleanCaption'), test_mode=True)),
                   test_evaluator=dict(type='RetrievalRecall'))
        log = run_tool('test', cfg, root, str(path), '--out', str(root / 'metrics.json'))
        found[name] = json.loads((root / 'metrics.json').read_text())
        assert name == 'mmblip2' or f'taken for {LAYOUTS[name]} (' in log
        assert '0 missing, 0 unexpected' in log
    assert found['mmblip2']['i2t/retrieval/Recall@5'] == 100
    assert all(figures == found['mmblip2'] for figures in found.values())


def test_captions_from_every_layout(trained, files, data, tmp_path):
    found = {}
    for name, path in files('caption').items():
        root = tmp_path / name
        root.mkdir()
        cfg = dict(model=dict(trained('caption')[0].model.to_dict(), generation=dict(max_new_tokens=5)),
                   test_cfg=dict(type='TestLoop'), test_dataloader=sized(data(
                       'COCOCaption', dict(type='CaptionPrompt', prompt='there are'), test_mode=True)),
                   test_evaluator=dict(type='DumpPredictions', out_path=str(root / 'texts.json')))
        assert '0 new, 0 missing, 0 unexpected' in run_tool('test', cfg, root, str(path))
        found[name] = json.loads((root / 'texts.json').read_text())
    assert len(found['mmblip2']) == 3
    assert all(texts == found['mmblip2'] for texts in found.values())


def test_a_training_starts_from_the_authors_file_and_goes_on(trained, files, bert, data, tmp_path):
    """A captioner is fine-tuned from a pre-training in LAVIS's names; resume needs only its own checkpoint."""
    convert(trained('pre-training')[2], tmp_path / 'model_base.pth', 'lavis')
    loader = dict(sized(data('COCOCaption', dict(type='CaptionPrompt', prompt='there are'))),
                  sampler=dict(type='SeekableInfiniteSampler'))
    cfg = dict(model=tiny('caption', bert).model.to_dict(), train_dataloader=loader, train_cfg=dict(max_iters=1),
               optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4)),
               default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)))
    log = run_tool('train', cfg, tmp_path, '--cfg-options', f'load_from={tmp_path / "model_base.pth"}')
    assert 'taken for LAVIS (BLIP, pre-training)' in log and '0 new, 0 missing, 0 unexpected' in log
    assert {key.split('.')[0] for key in io.read_checkpoint(tmp_path / 'work')['state_dict']} == {
        'vision', 'text_decoder', 'lm_head'}
    log = run_tool('train', cfg, tmp_path, '--resume', '--cfg-options', 'train_cfg.max_iters=2')
    assert 'at iteration 1' in log and (tmp_path / 'work' / 'iter_2.pth').is_file()
