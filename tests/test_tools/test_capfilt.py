"""tools/dataset_converters/capfilt.py: the web's texts and the written ones that match their image, nothing else."""
import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2 import ImageCaptionInferencer, ImageTextMatchingInferencer
from mmblip2.datasets import ImageTextPairs
from mmblip2.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / 'tools' / 'dataset_converters' / 'capfilt.py'
spec = importlib.util.spec_from_file_location('capfilt', PATH)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
TEXTS = ['a small red circle', 'two green stars', 'one yellow cross', 'there are three objects', 'a blue square']


@pytest.fixture
def web(tmp_path):
    """A table of 10 rows with a text each, the last ones about images that had one before, and an empty text."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f'images/{i}.png')
    with open(tmp_path / 'web.csv', 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['file', 'alt'])
        rows.writerows([[f'{i % 8}.png', '...' if i == 3 else TEXTS[i % 5]] for i in range(10)])
    return tmp_path


@pytest.fixture
def models(tiny_generator, representation, web):
    """Options that name a captioner and a filter; the model files lie beside the set."""
    captioner = tiny_generator([dict(type='CaptionPrompt', prompt='a photo of')])
    options = []
    for name, model in (('captioner', captioner), ('filter', representation)):
        model._config.dump(str(web / f'{name}.py'))
        torch.save(dict(state_dict=model.state_dict()), web / f'{name}.pth')
        options += [f'--{name}', str(web / f'{name}.py'), f'--{name}-weights', str(web / f'{name}.pth')]
    return options


def options_of(web, models, *more, out='out.jsonl'):
    return [str(web / 'web.csv'), '--images', str(web / 'images'), '--image-key', 'file', '--caption-key', 'alt',
            '--out', str(web / out), '--batch-size', '2', '--shard-size', '3', '--device', 'cpu', *models, *more]


def read(path):
    text = path.read_text()
    return json.loads(text) if path.suffix == '.json' else [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def run(web, models):
    """Function of further options: run the tool; returns the rows of OUT and the report."""
    def call(*more, out='out.jsonl'):
        tool.main(options_of(web, models, *more, out=out))
        return read(web / out), json.loads((web / f'{out}.report.json').read_text())
    return call


def test_texts_above_the_threshold_are_kept_with_their_scores(run, web, models):
    rows, report = run('--threshold', '0', '--num-captions', '2')
    assert [row['image'] for row in rows] == [f'{i}.png' for i in range(8)]
    assert rows[0]['caption'][:2] == [TEXTS[0], TEXTS[3]] and rows[0]['origin'][:2] == ['web', 'web']
    assert rows[3]['origin'] == ['synthetic'] * len(rows[3]['caption']), 'its web text is empty'
    assert report['web'] == dict(kept=9, dropped=0, empty=1)
    written = report['synthetic']
    assert written['kept'] + written['empty'] + report['same_as_web'] <= 16 and written['kept'] > 8

    match = ImageTextMatchingInferencer(models[5], models[7], device='cpu')
    for row in rows:
        found = match(str(web / 'images' / row['image']), row['caption'], progress=False)
        assert row['score'] == pytest.approx([one['itm_score'] for one in found], abs=1e-4)
    captioner = ImageCaptionInferencer(models[1], models[3], device='cpu')
    torch.manual_seed(3)  # the second shard begins at place 3
    found = captioner([str(web / 'images' / f'{i}.png') for i in (3, 4)], num_captions=2, batch_size=2, progress=False,
                      do_sample=True, top_p=0.9)
    for row, one in zip(rows[3:5], found):
        texts = [text for text in dict.fromkeys(one['pred_caption']) if text]
        assert [text for text, origin in zip(row['caption'], row['origin']) if origin == 'synthetic'] == texts

    scores = sorted(score for row in rows for score in row['score'])
    gap, threshold = max((high - low, (high + low) / 2) for low, high in zip(scores, scores[1:]))
    assert gap > 2e-4, 'too flat to prove anything'
    half, report = run('--threshold', str(threshold), '--num-captions', '2', out='half.jsonl')
    expected = [[item for item in zip(row['caption'], row['origin'], row['score']) if item[2] >= threshold]
                for row in rows]
    assert [list(zip(row['caption'], row['origin'], row['score'])) for row in half] == [row for row in expected if row]
    assert sum(report[origin]['kept'] for origin in tool.ORIGINS) == sum(map(len, expected))
    assert sum(report[origin]['dropped'] for origin in tool.ORIGINS) == len(scores) - sum(map(len, expected)) > 0
    for origin in tool.ORIGINS:
        for fate in ('kept', 'dropped'):
            shown = report['examples'][f'{origin}_{fate}']
            assert len(shown) == min(10, report[origin][fate])
            assert all((one['score'] >= threshold) == (fate == 'kept') for one in shown)


@pytest.mark.parametrize('ending', ['jsonl', 'json'])
def test_what_is_written_is_read_as_a_data_set(run, web, ending):
    tool_out = f'out.{ending}'
    with open(web / 'web.csv') as file:
        content = file.read().splitlines()
    (web / 'web.csv').write_text('\n'.join(
        [content[0] + ',image_id', *(f'{line},{line.partition(".")[0]}' for line in content[1:])]))
    rows, _ = run('--threshold', '0', out=tool_out)
    dataset = ImageTextPairs(ann_file=str(web / tool_out), data_prefix=dict(img_path=str(web / 'images')))
    assert [dataset.get_data_info(i)['image_id'] for i in range(len(dataset))] == list(range(8))
    assert [dataset.get_data_info(i)['captions'] for i in range(len(dataset))] == [row['caption'] for row in rows]


def stop_after(monkeypatch, batches):
    """Ctrl-C in the batch behind ``batches``; returns the places of the batches that are worked on."""
    places, whole = [], tool.CapFilt.__call__

    def broken(self, web, images, index):
        if len(places) == batches:
            raise KeyboardInterrupt
        places.append(index)
        return whole(self, web, images, index)

    monkeypatch.setattr(tool.CapFilt, '__call__', broken)
    return places


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(run, web, monkeypatch, capsys):
    run('--threshold', '0', out='whole.jsonl')
    with monkeypatch.context() as patch:
        assert stop_after(patch, 3) == []
        with pytest.raises(KeyboardInterrupt):
            run('--threshold', '0')
    assert not (web / 'out.jsonl').exists()
    assert sorted(path.name for path in (web / 'out.jsonl.parts').iterdir()) == ['000000.jsonl', 'settings.json']
    with pytest.raises(ConfigError, match='out.jsonl.parts is there already: --resume goes on, --overwrite begins'):
        run('--threshold', '0')
    with pytest.raises(ConfigError, match='other settings: seed 0, now 1. --overwrite begins anew'):
        run('--threshold', '0', '--seed', '1', '--resume')
    with monkeypatch.context() as patch:
        places = stop_after(patch, 99)
        run('--threshold', '0', '--resume')
        assert places == [3, 5, 6], 'the finished shard is not done again, the partial one is'
    assert 'left 0:00:00' in capsys.readouterr().out
    assert not (web / 'out.jsonl.parts').exists()
    for name in ('', '.report.json'):
        assert (web / f'out.jsonl{name}').read_bytes() == (web / f'whole.jsonl{name}').read_bytes()


def test_a_finished_set_is_neither_made_again_nor_lost(run, web, monkeypatch, capsys):
    run('--threshold', '0')
    before = (web / 'out.jsonl').read_bytes()
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        run('--threshold', '0', '--resume')
        assert 'out.jsonl is finished' in capsys.readouterr().out
        with pytest.raises(ConfigError, match='out.jsonl is there already'):
            run('--threshold', '0')
        with pytest.raises(ConfigError, match='threshold 0.0, now 0.5'):
            run('--resume')
        with pytest.raises(KeyboardInterrupt):
            run('--threshold', '0', '--overwrite')
        assert (web / 'out.jsonl').read_bytes() == before, 'replaced only by a whole one'
    run('--threshold', '0', '--seed', '1', '--overwrite')
    assert (web / 'out.jsonl').read_bytes() != before


def test_a_threshold_that_leaves_nothing_is_lowered_without_new_work(run, monkeypatch):
    with pytest.raises(DataError, match='no text of 8 images reaches --threshold 1.0: lower it and go on with --res'):
        run('--threshold', '1')
    stop_after(monkeypatch, 0)
    rows, report = run('--threshold', '0', '--resume')
    assert len(rows) == 8 and report['settings']['threshold'] == 0


def test_broken_images_are_listed_and_limited(run, web):
    (web / 'images/1.png').unlink()
    (web / 'images/4.png').write_bytes((web / 'images/4.png').read_bytes()[:-300])
    (web / 'images/5.png').write_bytes(b'')
    with pytest.raises(DataError, match=r'3 images cannot be read, --max-broken allows 2: 1.png \(there is no such '
                                        r'file\); 4.png \(.*truncated.*\); 5.png \(.*empty \(0 bytes\)\)'):
        run('--threshold', '0', '--max-broken', '2')
    rows, report = run('--threshold', '0', '--max-broken', '3', '--resume')
    assert [row['image'] for row in rows] == [f'{i}.png' for i in (0, 2, 3, 6, 7)]
    assert report['broken'] == 3 and [image for image, _ in report['broken_images']] == ['1.png', '4.png', '5.png']
    assert report['images'] == 8


def test_a_kill_while_the_shards_are_removed_costs_nothing(run, web, monkeypatch, capsys):
    remove = tool.shutil.rmtree

    def killed(folder, *args, **kwargs):
        if Path(folder) != web / 'out.jsonl.parts':
            return remove(folder, *args, **kwargs)
        min(folder.iterdir(), key=lambda path: path.name == 'settings.json').unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool.shutil, 'rmtree', killed)
        with pytest.raises(KeyboardInterrupt):
            run('--threshold', '0')
    content, parts = (web / 'out.jsonl').read_bytes(), web / 'out.jsonl.parts'
    assert parts.exists()
    with monkeypatch.context() as patch:
        patch.setattr(tool.CapFilt, '__call__', lambda *_: pytest.fail('it worked'))
        run('--threshold', '0', '--resume')
    assert 'is finished' in capsys.readouterr().out and not parts.exists()
    assert (web / 'out.jsonl').read_bytes() == content


def test_what_cannot_work_is_said_before_the_work_or_by_its_cause(run, web, monkeypatch):
    (web / 'out.jsonl').mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(tool.CapFilt, '__call__', lambda *_: pytest.fail('it worked'))
        with pytest.raises(ConfigError, match='out.jsonl is a folder: give a file'):
            run('--overwrite')
    with pytest.raises(DataError, match=r'none of the 8 images can be read, the first is 0.png \(there is no such file'
                                        r'\): check --images, and begin anew with --overwrite'):
        run('--images', str(web / 'nowhere'), '--threshold', '0', out='none.jsonl')
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run('--threshold', '0', out='torn.jsonl')
    shard = web / 'torn.jsonl.parts' / '000000.jsonl'
    shard.write_text(shard.read_text()[:-20])
    with pytest.raises(DataError, match='000000.jsonl is broken .*: delete it and go on with --resume'):
        run('--threshold', '0', '--resume', out='torn.jsonl')


def test_one_encoder_of_both_models_runs_once(tiny_generator, representation, web):
    """The same texts and scores as with two encoders, with half of their calls."""
    captioner = tiny_generator([dict(type='CaptionPrompt', prompt='a photo of')])
    args = tool.parse_args(options_of(web, ['--captioner', 'a', '--filter', 'b']))
    inferencers = ImageCaptionInferencer(captioner), ImageTextMatchingInferencer(representation)
    assert not tool.same_vision(*inferencers), 'the weights are others'
    kept = representation.vision
    captioner.vision.load_state_dict(representation.vision.state_dict())
    batch = tool.read_web(args)[:3], [tool.read_image(web / f'images/{i}.png') for i in range(3)], 0
    calls = []
    hooks = [vision.register_forward_pre_hook(lambda *_: calls.append(1)) for vision in (kept, captioner.vision)]
    try:
        apart = tool.CapFilt.__new__(tool.CapFilt)
        apart.captioner, apart.match, apart.args, apart.generation = *inferencers, args, dict(tool.SAMPLING)
        expected = apart(*batch)
        assert len(calls) == 2
        for hook in hooks:
            hook.remove()
        run = captioner.vision.forward
        captioner.vision.forward = lambda images: calls.append(1) or run(images)
        together = tool.CapFilt(*inferencers, args)
        assert together.shared and representation.vision is captioner.vision
        assert together(*batch) == expected and len(calls) == 3
        assert together(*batch)[0]['texts'] and len(calls) == 3, 'the same images again'
        assert together(batch[0][:2], batch[1][:2], 0)[0]['texts'] and len(calls) == 4
    finally:
        representation.vision = kept


def test_blip_writes_and_filters_with_one_encoder(bert_folder, web):
    """Captioner and filter of one pre-training: what they say is what each says alone, an image is encoded once."""
    from mmengine.config import Config

    import mmblip2.models  # noqa: F401
    from mmblip2.registry import MODELS, our_scope
    med = dict(type='MED', vision_width=16, num_layers=2, width=16, num_heads=2, vocab_size=130, max_positions=48)
    parts = dict(
        vision=dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=2, num_heads=2,
                    qkv_bias='full', final_norm=True),
        tokenizer=dict(type='BertTokenizer', path=bert_folder, enc_token=True))
    steps = [dict(type='LoadImage'), dict(type='Resize', scale=16)]
    models, options = {}, []
    for name, model, step in (
            ('filter', dict(type='BlipRepresentation', text_encoder=med, text_decoder=med, embed_dim=8, queue_size=4),
             dict(type='CleanCaption')),
            ('captioner', dict(type='BlipGeneration', text_decoder=med, generation=dict(max_new_tokens=6)),
             dict(type='CaptionPrompt', prompt='a small'))):
        cfg = Config(dict(model={**model, **parts},
                          test_dataloader=dict(dataset=dict(pipeline=[*steps, step, dict(type='PackInputs')]))))
        with our_scope():
            models[name] = MODELS.build(cfg.model)
        generator = torch.Generator().manual_seed(0)
        for parameter in models[name].parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.3, generator=generator)
        cfg.dump(str(web / f'{name}.py'))
        options += [f'--{name}', str(web / f'{name}.py'), f'--{name}-weights', str(web / f'{name}.pth')]
    models['captioner'].vision.load_state_dict(models['filter'].vision.state_dict())
    for name, model in models.items():
        torch.save(dict(state_dict=model.state_dict()), web / f'{name}.pth')
    args = tool.parse_args(options_of(web, options, '--threshold', '0'))
    inferencers = [kind(config, weights, device='cpu') for kind, config, weights in (
        (ImageCaptionInferencer, args.captioner, args.captioner_weights),
        (ImageTextMatchingInferencer, args.filter, args.filter_weights))]
    capfilt, calls = tool.CapFilt(*inferencers, args), []
    assert capfilt.shared
    capfilt.captioner.model.vision.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    paths = [str(web / f'images/{i}.png') for i in range(3)]
    records = capfilt(tool.read_web(args)[:3], [tool.read_image(path) for path in paths], 0)
    assert len(calls) == 1
    match = ImageTextMatchingInferencer(args.filter, args.filter_weights, device='cpu')
    captioner = ImageCaptionInferencer(args.captioner, args.captioner_weights, device='cpu')
    torch.manual_seed(0)
    captions = captioner(paths, batch_size=3, progress=False, do_sample=True, top_p=0.9)
    assert len({one['pred_caption'] for one in captions}) > 1
    for path, record, caption in zip(paths, records, captions):
        texts, origins, scores = zip(*record['texts'])
        assert [text for text, origin in zip(texts, origins) if origin == 'synthetic'] == [
            text for text in [caption['pred_caption']] if text and text not in texts[:origins.count('web')]]
        assert scores == pytest.approx([one['itm_score'] for one in match(path, texts, progress=False)], abs=1e-5)


def test_bad_input_says_what_to_do(run, web, models, capsys):
    for options, message in ((('--threshold', '1.5'), 'threshold is 1.5, expected a probability'),
                             (('--batch-size', '0'), 'batch-size is 0, expected at least 1'),
                             (('--resume', '--overwrite'), 'give one of them')):
        with pytest.raises(SystemExit):
            run(*options)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(out='out.csv')
    assert 'ends with .jsonl or .json' in capsys.readouterr().err
    with pytest.raises(ConfigError, match="generate has no setting 'top_q'; did you mean 'top_p'"):
        run('--generation', 'top_q=0.9')
    with pytest.raises(ConfigError, match='top_p=0.5 has an effect only with do_sample=True'):
        run('--generation', 'do_sample=False', 'top_p=0.5')
    with pytest.raises(ConfigError, match='ImageTextMatchingInferencer needs a'):
        tool.main(options_of(web, [*models[:4], '--filter', models[1], '--filter-weights', models[3]]))
    (web / 'file').write_text('')
    with pytest.raises(ConfigError, match='cannot be written'):
        run(out='file/out.jsonl')
    web_json = web / 'web.json'
    web_json.write_text('[{"file": "0.png", "alt": "a"}]')
    with pytest.raises(ConfigError, match='web.json is the web set itself'):
        tool.main([str(web_json), *options_of(web, models, '--overwrite', out='web.json')[1:]])
    assert not list(web.glob('*.parts'))


@pytest.mark.dist
def test_two_processes_write_the_same_bytes(run, web, models):
    (web / 'images/6.png').write_bytes(b'')
    run('--threshold', '0')
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(PATH),
         *options_of(web, models, '--threshold', '0', out='two.jsonl')], capture_output=True, text=True, timeout=240,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert '2 processes on cpu' in done.stdout
    for name in ('', '.report.json'):
        assert (web / f'two.jsonl{name}').read_bytes() == (web / f'out.jsonl{name}').read_bytes()
