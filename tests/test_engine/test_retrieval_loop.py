"""The two-pass retrieval evaluation on a tiny model and eight images with one to three captions."""
import json

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional import Ranks, recall_from_ranks

COLORS = ['red', 'green', 'blue', 'yellow', 'white', 'black', 'cyan', 'purple']


@pytest.fixture
def runner(tmp_path, tiny_parts):
    import mmblip2.datasets  # noqa: F401
    from mmblip2.engine import Runner
    torch.manual_seed(0)
    tiny_parts.pop('language_model')
    tiny_parts['qformer']['init_std'] = 0.3
    rows = []
    for i, color in enumerate(COLORS):
        Image.new('RGB', (16, 16), color).save(tmp_path / f'{i}.png')
        rows.append(dict(image=f'{i}.png', image_id=i,
                         caption=[f'a {color} square', f'two {color} stars', f'one {color} circle'][:1 + i % 3]))
    (tmp_path / 'ann.json').write_text(json.dumps(rows))
    cfg = Config(dict(
        model=dict(type='Blip2Representation', embed_dim=8, allow_random=True, **tiny_parts),
        work_dir=str(tmp_path / 'work'), default_scope='mmblip2',
        test_dataloader=dict(
            batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
            dataset=dict(type='COCORetrieval', data_root=str(tmp_path), ann_file='ann.json', test_mode=True,
                         pipeline=[dict(type='LoadImage'), dict(type='CleanCaption'), dict(type='PackInputs')])),
        test_cfg=dict(type='RetrievalTestLoop', k_test=3, text_batch_size=4),
        test_evaluator=dict(type='RetrievalRecall', topk=(1, 5))))
    runner = Runner.from_cfg(cfg)
    runner._test_loop = runner.build_test_loop(runner._test_loop)
    runner.model.eval()
    runner.call_hook('before_run')
    return runner


@torch.no_grad()
def naive(model, dataset):
    """ITC and ITM of every pair scored alone, from pixels, with no reuse at all."""
    images = [model.data_preprocessor(dict(inputs=[dataset[i]['inputs']], data_samples=[]))['images']
              for i in range(len(dataset))]
    itc, itm = (torch.empty(len(images), len(dataset.texts)) for _ in range(2))
    for i, image in enumerate(images):
        encoded = model.encode_image(image)
        for j, text in enumerate(dataset.texts):
            tokens = model.tokenize([text])
            itc[i, j] = (model.image_features(encoded)[0] @ model.text_features(tokens)[0]).max()
            itm[i, j] = model.score_pairs(encoded.image_kv, tokens)
    return itc, itm


def test_scores_equal_every_pair_scored_alone(runner):
    loop = runner.test_loop
    with torch.no_grad():
        ours = loop.score()
    itc, itm = naive(runner.model, loop.dataloader.dataset)
    torch.testing.assert_close(ours[0], itc, atol=1e-5, rtol=0)
    for scores, similarity, pairs in ((ours[1], ours[0], itm + itc), (ours[2], ours[0].T, (itm + itc).T)):
        best = similarity.sort(dim=1, descending=True, stable=True).indices[:, :3]  # of ties the first
        expected = torch.full_like(pairs, -100.).scatter(1, best, pairs.gather(1, best))
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_run_reports_both_directions_and_writes_predictions(runner, tmp_path):
    metrics = runner.test_loop.run()
    assert {f'{way}/{kind}/Recall@{k}' for way in ('i2t', 't2i') for kind in ('itc', 'retrieval')
            for k in (1, 5, 'mean')} == set(metrics)
    assert all(0 <= value <= 100 for value in metrics.values())
    written = json.loads((tmp_path / 'work/predictions/retrieval.json').read_text())
    assert len(written['images']) == 8 and len(written['t2i']) == len(written['texts']) == 15
    assert written['i2t'][0]['top'][0][1] >= written['i2t'][0]['top'][1][1]
    for name, ranks in written['ranks'].items():  # the file can be scored again
        recall = recall_from_ranks(Ranks(*ranks), (1, 5))
        assert {k: metrics[f'{name}/Recall@{k}'] for k in recall} == recall
    assert len(written['ranks']) == 4


def test_k_of_zero_reports_itc_alone(runner):
    runner.test_loop.k_test = 0
    metrics = runner.test_loop.run()
    assert metrics['i2t/retrieval/Recall@1'] == metrics['i2t/itc/Recall@1']


def test_predictions_are_on_disk_when_scoring_fails(runner, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError('scoring failed')
    monkeypatch.setattr('mmblip2.engine.retrieval_loop.retrieval_ranks', fail)
    with pytest.raises(RuntimeError, match='scoring failed'):
        runner.test_loop.run()
    assert (tmp_path / 'work/predictions/retrieval.json').is_file()


def test_another_data_set_is_refused(runner, tmp_path):
    from mmblip2.engine.retrieval_loop import RetrievalTestLoop
    runner.cfg.test_dataloader.dataset.test_mode = False
    with pytest.raises(DataError, match='set test_mode=True'):
        RetrievalTestLoop(runner, runner.cfg.test_dataloader)
    (tmp_path / 'texts.txt').write_text('one\n')
    runner.cfg.test_dataloader.dataset = dict(type='TextCorpus', ann_file=str(tmp_path / 'texts.txt'))
    with pytest.raises(ConfigError, match='needs a retrieval data set in test mode'):
        RetrievalTestLoop(runner, runner.cfg.test_dataloader)
