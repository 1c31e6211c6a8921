"""The two-pass retrieval evaluation on a tiny model and eight images with one to three captions."""
import json
import os

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmblip2.engine.retrieval_loop import _alike, _best, _top
from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional import Ranks, recall_from_ranks

COLORS = ['red', 'green', 'blue', 'yellow', 'white', 'black', 'cyan', 'purple']


@pytest.fixture
def runner(tmp_path, tiny_parts):
    tiny_parts.pop('language_model')
    tiny_parts['qformer']['init_std'] = 0.3
    return build(tmp_path, dict(type='Blip2Representation', embed_dim=8, allow_random=True, **tiny_parts))


@pytest.fixture
def blip(tmp_path, tiny_blip):
    """The same with BLIP."""
    tiny_blip['text_encoder'].update(init_std=0.3)
    tiny_blip.pop('text_decoder')
    return build(tmp_path, dict(type='BlipRepresentation', embed_dim=8, queue_size=None, **tiny_blip))


def build(tmp_path, model):
    import mmblip2.datasets  # noqa: F401
    from mmblip2.engine import Runner
    torch.manual_seed(0)
    rows = []
    for i, color in enumerate(COLORS):
        Image.new('RGB', (16, 16), color).save(tmp_path / f'{i}.png')
        rows.append(dict(image=f'{i}.png', image_id=i,
                         caption=[f'a {color} square', f'two {color} stars', f'one {color} circle'][:1 + i % 3]))
    (tmp_path / 'ann.json').write_text(json.dumps(rows))
    cfg = Config(dict(
        model=model, work_dir=str(tmp_path / 'work'), default_scope='mmblip2',
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


@pytest.mark.parametrize('name', ['runner', 'blip'])
def test_scores_equal_every_pair_scored_alone(name, request):
    runner = request.getfixturevalue(name)
    loop = runner.test_loop
    with torch.no_grad():
        ours = loop.score()
    itc, itm = naive(runner.model, loop.dataloader.dataset)
    assert itm.std() > 0.01 and itc.std() > 0.01
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


def written(tmp_path):
    return (tmp_path / 'work/predictions/retrieval.json').read_bytes()


def log_of(tmp_path):
    file, = (tmp_path / 'work').glob('*/*.log')
    return file.read_text()


class Counted:
    """Counts the calls of a method of the model; from call ``fail_at`` on they fail."""

    def __init__(self, monkeypatch, model, name, fail_at=None):
        self.calls, self.work, self.fail_at = 0, getattr(model, name), fail_at
        monkeypatch.setattr(model, name, self)

    def __call__(self, *args):
        self.calls += 1
        if self.fail_at is not None and self.calls >= self.fail_at:
            raise RuntimeError('the power is gone')
        return self.work(*args)


@pytest.fixture
def cut(runner, tmp_path, monkeypatch):
    """What an uninterrupted evaluation writes; then one is cut off after five of eight images."""
    loop = runner.test_loop
    loop.block_size, loop.text_batch_size = 2, 64
    loop.run()
    whole = written(tmp_path)
    assert not (tmp_path / 'work/retrieval_blocks').exists()
    (tmp_path / 'work/predictions/retrieval.json').unlink()
    with monkeypatch.context() as patch:
        counted = Counted(patch, runner.model, 'match_started', fail_at=6)
        with pytest.raises(RuntimeError, match='the power is gone'):
            loop.run()
        assert counted.calls == 6
    folder, = (tmp_path / 'work/retrieval_blocks').iterdir()
    return whole, folder


def test_a_cut_off_evaluation_goes_on_from_its_finished_parts(runner, tmp_path, monkeypatch, cut):
    whole, folder = cut
    assert f'goes on from the finished parts in {folder}' in log_of(tmp_path)
    calls = {name: Counted(monkeypatch, runner.model, name) for name in (
        'match_started', 'text_features', 'image_features', 'encode_image')}
    runner.test_loop.run()
    # four of eight images are finished: the first batch of three, and one of the second, whose images are needed again
    assert {name: counted.calls for name, counted in calls.items()} == dict(
        match_started=4, text_features=0, image_features=0, encode_image=2)
    assert written(tmp_path) == whole
    assert not folder.parent.exists()


def test_finished_parts_of_other_weights_data_or_settings_are_not_used(runner, tmp_path, monkeypatch, cut):
    loop, (whole, folder) = runner.test_loop, cut
    counted = Counted(monkeypatch, runner.model, 'match_started')
    loop.k_test = 4
    assert loop._blocks().folder != folder
    loop.k_test = 3
    assert loop._blocks().folder == folder
    image = tmp_path / '7.png'
    pixels, facts = image.read_bytes(), image.stat()
    image.write_bytes(pixels + b'other')
    assert loop._blocks().folder != folder
    image.write_bytes(pixels)
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert loop._blocks().folder == folder
    with torch.no_grad():
        runner.model.itm_head.classifier.bias += 1
    assert loop._blocks().folder != folder
    loop.run()
    assert counted.calls == 8 and written(tmp_path) != whole
    assert folder.is_dir(), 'they may belong to an evaluation that still runs'


def test_damaged_parts_are_computed_again(runner, tmp_path, cut):
    whole, folder = cut
    files = sorted(folder.glob('*.pt'))
    assert {path.name.split('-')[0] for path in files} == {'texts', 'images', 'pairs'}
    for path in files:
        path.write_bytes(path.read_bytes()[:-30])
    runner.test_loop.run()
    assert written(tmp_path) == whole


def test_parts_with_other_candidates_are_computed_again(runner, tmp_path, cut):
    """As when another machine goes on, whose rounding chooses another of two candidates that are nearly tied."""
    whole, folder = cut
    path = sorted(folder.glob('pairs-*.pt'))[0]
    pairs = torch.load(path, weights_only=True)['pairs']
    image, (rows, logits) = next(iter(pairs.items()))
    pairs[image] = (rows[:-1], logits[:-1] + 100)
    torch.save(dict(pairs=pairs), path)
    runner.test_loop.run()
    ours, theirs = json.loads(written(tmp_path)), json.loads(whole)
    assert ours['ranks'] == theirs['ranks']
    assert ours['i2t'][image]['top'][0][1] == pytest.approx(theirs['i2t'][image]['top'][0][1], abs=1e-5)


@pytest.mark.parametrize('options', [dict(block_size=1), dict(block_size=3), dict(block_size=0)])
def test_the_block_size_changes_no_bit(runner, tmp_path, options):
    loop = runner.test_loop
    loop.run()
    before = written(tmp_path)
    vars(loop).update(options)
    loop.run()
    assert written(tmp_path) == before


@torch.no_grad()
@pytest.mark.parametrize('name', ['runner', 'blip'])
def test_batches_and_memory_change_no_score(name, request):
    loop = request.getfixturevalue(name).test_loop
    before = loop.score()
    for options in (dict(text_batch_size=1), dict(text_batch_size=256), dict(memory_gib=0), dict(memory_gib=4e-6)):
        vars(loop).update(options)
        for ours, expected in zip(loop.score(), before):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (before[1] > -100).sum() == 8 * 3 and (before[2] > -100).sum() == 15 * 3


@torch.no_grad()
def test_what_is_shared_is_computed_once(runner, monkeypatch):
    """A pair for both directions, a text for all images, an image's keys and values for all texts."""
    model, pairs, texts = runner.model, [], []
    score, start = model.match_started, model.start_text
    monkeypatch.setattr(model, 'match_started', lambda kv, started, mask: pairs.append(len(started[0])) or score(
        kv, started, mask))
    monkeypatch.setattr(model, 'start_text', lambda text: texts.append(len(text.mask)) or start(text))
    images = Counted(monkeypatch, model.qformer, 'project_image')
    _, i2t, t2i = runner.test_loop.score()
    assert sum(pairs) == ((i2t > -100) | (t2i.T > -100)).sum() < (i2t > -100).sum() + (t2i > -100).sum()
    assert images.calls == 3 + 8, 'three batches are encoded, eight images re-ranked'
    assert sum(texts) == 15 + 4, 'the first batch of four tells the shapes'


def test_memory_and_remaining_time_are_reported(runner, tmp_path, monkeypatch):
    monkeypatch.setattr('mmblip2.engine.retrieval_loop._SAY_SECONDS', 0)
    runner.test_loop.memory_gib = 0
    runner.test_loop.run()
    log = log_of(tmp_path)
    assert 'pairs are re-ranked' in log and ' s left' in log
    assert log.count('encode images, batch') == 3 and log.count('re-rank, pair') > 8
    assert 'memory: 0.00 GiB of memory_gib=0 kept' in log and 'peak of the process' in log


def test_a_k_beyond_the_gallery_re_ranks_everything(runner):
    runner.test_loop.k_test = 100
    with torch.no_grad():
        itc, i2t, t2i = runner.test_loop.score()
    _, itm = naive(runner.model, runner.test_loop.dataloader.dataset)
    torch.testing.assert_close(i2t, itm + itc, atol=1e-5, rtol=0)
    torch.testing.assert_close(t2i, i2t.T, atol=0, rtol=0)


def test_similarities_that_are_not_finite_are_refused_before_re_ranking(runner, monkeypatch):
    feats = runner.model.image_features
    monkeypatch.setattr(runner.model, 'image_features', lambda images: feats(images) * float('nan'))
    counted = Counted(monkeypatch, runner.model, 'match_started')
    with pytest.raises(DataError, match='120 ITC similarities are not finite, the first nan of image 0 and text 0'):
        runner.test_loop.run()
    assert counted.calls == 0


def test_logits_that_are_not_finite_are_refused(runner):
    runner.model.itm_head.classifier.bias.data.fill_(float('inf'))
    with pytest.raises(DataError, match='not finite'):
        runner.test_loop.run()


def test_bfloat16_makes_no_ties_among_similarities(runner):
    loop = runner.test_loop
    loop.autocast, loop.k_test = 'bfloat16', 0
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        itc = loop.score()[0]
    assert itc.dtype == torch.float32 and (itc != itc.bfloat16().float()).any()


@pytest.mark.parametrize('options, message', [
    (dict(k_test=-1), 'k_test is -1, expected a whole number from 0 up'),
    (dict(text_batch_size=0), 'text_batch_size is 0, expected a whole number from 1 up'),
    (dict(block_size=1.5), 'block_size is 1.5, expected a whole number from 0 up'),
    (dict(memory_gib=-1), 'memory_gib is -1, expected 0 or more GiB')])
def test_wrong_options_are_refused(runner, options, message):
    from mmblip2.engine.retrieval_loop import RetrievalTestLoop
    with pytest.raises(ConfigError, match=f'RetrievalTestLoop: {message}'):
        RetrievalTestLoop(runner, runner.cfg.test_dataloader, **options)


def test_of_tied_candidates_the_first_are_taken():
    scores = torch.tensor([[1., 2., 2., 2., 0.], [3., 3., 3., 3., 3.], [0., 1., 2., 3., 4.]])
    assert _best(scores, 2).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert [[column for column, _ in row] for row in _top(scores, 3)] == [[1, 2, 3], [0, 1, 2], [4, 3, 2]]
    assert _best(scores, 9).all()


def test_texts_of_alike_length_share_a_batch():
    lengths = torch.tensor([5] * 40 + [3] * 100 + [4] * 2 + [9])
    batches = _alike(lengths, 64)
    assert [lengths[batch].unique().tolist() for batch in batches] == [[3], [3], [4, 5], [9]]
    assert sorted(torch.cat(batches).tolist()) == list(range(143)) and max(map(len, batches)) <= 64
