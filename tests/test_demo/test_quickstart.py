import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load():
    spec = importlib.util.spec_from_file_location('demo_quickstart', ROOT / 'demo' / 'quickstart.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quickstart = load()
NAMES = [step.name for wave in quickstart.WAVES for step in wave]

# Stand-ins for the tools: they write what the real ones write, and a line of calls.txt.
MAKE_SHAPES = '''
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
(out / 'annotations').mkdir(parents=True, exist_ok=True)
(out / 'test').mkdir(exist_ok=True)
(out / 'meta.json').write_text('{}')
(out / 'test' / '1.jpg').write_bytes(b'jpeg')
def write(name, value):
    (out / 'annotations' / name).write_text(json.dumps(value))
write('captions_test.json', {'images': [{'id': 1, 'file_name': '1.jpg'}],
                             'annotations': [{'image_id': 1, 'caption': 'a red circle'}]})
write('questions_test.json', {'questions': [{'question_id': 5, 'image_id': 1, 'question': 'what color?'}]})
write('answers_test.json', {'annotations': [{'question_id': 5, 'answers': [{'answer': 'red'}] * 10}]})
figures = {'retrieval': {'i2t/Recall@1': 90.0, 't2i/Recall@1': 80.0}, 'caption': {'CIDEr': 2.0},
           'vqa': {'accuracy': 95.0}}
chance = {'retrieval': {'i2t/Recall@1': 0.2, 't2i/Recall@1': 0.2}, 'caption': {'CIDEr': 0.1},
          'vqa': {'accuracy': 40.0}}
(out / 'ceilings.json').write_text(json.dumps({'ceiling': {'test': figures}, 'chance': {'test': chance}}))
'''
TRAIN_TOKENIZERS = '''
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
assert sys.argv[sys.argv.index('--corpus') + 1].endswith('annotations/corpus_train.txt')
for name in ('bert', 'opt'):
    (out / name).mkdir(parents=True, exist_ok=True)
'''
TRAIN = '''
import json, os, pathlib, sys
work = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
assert work.parent == pathlib.Path(os.environ.get('MMBLIP2_FLICKR8K_WORK') or os.environ['MMBLIP2_QUICKSTART'])
folder = work / '20250101' / 'vis_data'
folder.mkdir(parents=True, exist_ok=True)
losses = [3.0, 2.5, 2.0, 1.5, 1.0]
(folder / 'scalars.json').write_text(''.join(json.dumps({'loss': x, 'iter': i}) + chr(10)
                                             for i, x in enumerate(losses)))
(work / 'iter_5.pth').touch()
(work / 'last_checkpoint').write_text(str(work / 'iter_5.pth'))
if os.environ.get('FAIL_IN') == work.name:
    print('the loss is not a number')
    sys.exit(3)
'''
TEST = '''
import json, pathlib, sys
work = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
assert pathlib.Path(sys.argv[2]).exists(), 'no checkpoint'
share = 0.1 if '--shuffle-images' in sys.argv else 1.0
task = pathlib.Path(sys.argv[1]).stem
metrics = {'stage1': {'i2t/retrieval/Recall@1': 40.0, 't2i/retrieval/Recall@1': 30.0,
                      'i2t/itc/Recall@1': 20.0, 't2i/itc/Recall@1': 10.0},
           'stage2': {'caption/CIDEr': 150.0, 'caption/Bleu_4': 30.0},
           'vqa': {'vqa/accuracy': 80.0, 'vqa/yes_no': 85.0}}
task = {'blip_pretrain': 'stage1', 'retrieval': 'stage1', 'blip_caption': 'stage2', 'caption': 'stage2',
        'blip_vqa': 'vqa'}.get(task, task)
metrics = metrics[task]
if 'model.candidates=None' in sys.argv:
    metrics = {'vqa/accuracy': 70.0, 'vqa/yes_no': 75.0}
(work / 'predictions').mkdir(parents=True)
name, rows = {'stage1': ('retrieval', {'images': ['data/shapes/test/1.jpg'], 'texts': ['a red circle'],
                                       'text_to_image': [0], 'i2t': [{'image': 0, 'top': [[0, 1.0]]}],
                                       't2i': [{'text': 0, 'top': [[0, 1.0]]}]}),
              'stage2': ('caption', [{'image_id': 1, 'caption': 'a red circle'}]),
              'vqa': ('vqa', [{'question_id': 5, 'answer': 'red'}])}[task]
(work / 'predictions' / (name + '.json')).write_text(json.dumps(rows))
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
out.write_text(json.dumps({k: share * v for k, v in metrics.items()}))
'''
PREPARE_FLICKR8K = '''
import json, os, pathlib, sys
source = pathlib.Path(sys.argv[sys.argv.index('--source') + 1])
assert (source / 'photo.jpg').is_file()
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
assert str(out) == os.environ['MMBLIP2_FLICKR8K']
for folder in ('annotations', 'images'):
    (out / folder).mkdir(parents=True, exist_ok=True)
(out / 'images' / '1.jpg').write_bytes(b'jpeg')
(out / 'annotations' / 'captions_val.json').write_text(json.dumps({
    'images': [{'id': 1, 'file_name': 'images/1.jpg'}], 'annotations': [{'image_id': 1, 'caption': 'a real dog'}]}))
'''
PREPARE_REAL_PARTS = '''
import pathlib, sys
for name in ('minilm-bert', 'smollm2'):
    folder = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]) / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text('{}')
'''
CACHE_FEATURES = '''
import os, pathlib, sys
assert pathlib.Path(os.environ['MMBLIP2_FLICKR8K'], 'annotations').is_dir()
assert pathlib.Path(sys.argv[1]).parts[-2:] == ('flickr8k', 'stage1.py')
pathlib.Path('data/features').mkdir(exist_ok=True)
'''
RECORD = '''import sys as _s
with open('calls.txt', 'a') as _file:
    _file.write(' '.join(_s.argv[1:]) + chr(10))
'''


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / 'my check out'
    for name, code in {'dataset_converters/make_shapes.py': MAKE_SHAPES, 'train.py': TRAIN, 'test.py': TEST,
                       'dataset_converters/train_tokenizers.py': TRAIN_TOKENIZERS,
                       'dataset_converters/prepare_flickr8k.py': PREPARE_FLICKR8K,
                       'model_converters/prepare_real_parts.py': PREPARE_REAL_PARTS,
                       'dataset_converters/cache_features.py': CACHE_FEATURES}.items():
        path = root / 'tools' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORD + code)
    configs = root / 'configs'
    (configs / 'quickstart').mkdir(parents=True)
    (configs / '_base_').mkdir()
    (configs / '_base_' / 'runtime.py').write_text('seed = 1\n')
    for name in ('language_model', 'vision_encoder', 'stage1', 'stage2', 'vqa', 'blip_vision_encoder', 'blip_pretrain',
                 'blip_caption', 'blip_vqa'):
        (configs / 'quickstart' / f'{name}.py').write_text("_base_ = ['../_base_/runtime.py']\nlr = 1\n")
    (configs / 'flickr8k').mkdir()
    for name in ('stage1', 'retrieval', 'stage2', 'caption'):
        (configs / 'flickr8k' / f'{name}.py').write_text("_base_ = ['../_base_/runtime.py']\nlr = 1\n")
    shutil.copytree(ROOT / 'demo', root / 'demo')
    return root


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / 'my home'
    folder.mkdir()
    return folder


def run(checkout, home, mode=quickstart.FULL, demo=quickstart.BLIP2):
    """Runs all steps; returns the run and the command lines of the tools that were called."""
    calls = home / 'calls.txt'
    calls.unlink(missing_ok=True)
    steps = quickstart.Quickstart(mode, home, checkout, demo=demo)
    try:
        steps.run()
    finally:
        lines = calls.read_text().splitlines() if calls.exists() else []
    return steps, lines


def done_by(lines):
    """Names of the steps behind command lines."""
    folders = [line.split('--work-dir ')[1].split()[0] for line in lines if '--work-dir' in line]
    return sorted(folder.rsplit('/', 1)[1] for folder in folders)


def test_second_run_skips_every_step(checkout, home, capsys):
    steps, lines = run(checkout, home)
    assert len(lines) == len(NAMES)
    first = steps.summary()
    capsys.readouterr()
    steps, lines = run(checkout, home)
    assert lines == []
    out = capsys.readouterr().out
    assert all(f'[{i}/{len(NAMES)}] {name}: done before, skipped' in out for i, name in enumerate(NAMES, 1))
    assert steps.summary()['seconds'] == first['seconds']  # those of the run that did the work


def test_moved_checkout_skips_every_step(checkout, home):
    run(checkout, home)
    moved = checkout.rename(checkout.parent / 'elsewhere')
    assert run(moved, home)[1] == []


def test_changed_config_repeats_the_step_and_its_followers(checkout, home):
    run(checkout, home)
    config = checkout / 'configs' / 'quickstart' / 'stage2.py'
    config.write_text(config.read_text().replace('lr = 1', 'lr = 2'))
    _, lines = run(checkout, home)
    assert done_by(lines) == ['stage2', 'test_caption', 'test_caption_shuffled', 'test_vqa',
                              'test_vqa_shuffled', 'vqa']


def test_changed_base_config_repeats_all_trainings(checkout, home):
    run(checkout, home)
    (checkout / 'configs' / '_base_' / 'runtime.py').write_text('seed = 2\n')
    assert done_by(run(checkout, home)[1]) == sorted(NAMES[2:])


def test_removed_results_are_made_again_with_what_follows(checkout, home):
    steps, _ = run(checkout, home)
    shutil.rmtree(steps.folder('vqa'))
    assert done_by(run(checkout, home)[1]) == ['test_vqa', 'test_vqa_shuffled', 'vqa']


def test_interrupted_training_goes_on_at_its_checkpoint(checkout, home, monkeypatch):
    monkeypatch.setenv('FAIL_IN', 'stage2')
    with pytest.raises(quickstart.StepError):
        run(checkout, home)
    monkeypatch.delenv('FAIL_IN')
    _, lines = run(checkout, home)
    assert '--resume' in lines[0] and done_by(lines[:1]) == ['stage2']
    assert not any('--resume' in line for line in lines[1:])


def test_interrupted_training_with_another_config_begins_anew(checkout, home, monkeypatch):
    monkeypatch.setenv('FAIL_IN', 'stage2')
    with pytest.raises(quickstart.StepError):
        run(checkout, home)
    monkeypatch.delenv('FAIL_IN')
    (checkout / 'configs' / 'quickstart' / 'stage2.py').write_text('lr = 2\n')
    assert '--resume' not in run(checkout, home)[1][0]


def test_failed_step_names_status_and_log(checkout, home, monkeypatch):
    monkeypatch.setenv('FAIL_IN', 'stage1')
    message = 'stage1 failed with exit status 3. Its output: .*/stage1.log'
    with pytest.raises(quickstart.StepError, match=message):
        run(checkout, home)
    log = (home / 'work_dirs/quickstart/logs/stage1.log').read_text()
    assert log.startswith('$ ') and 'the loss is not a number' in log


def test_step_without_results_is_an_error(checkout, home):
    (checkout / 'tools' / 'train.py').write_text('')
    with pytest.raises(quickstart.StepError, match='ended well, but its results are not in'):
        run(checkout, home)


def test_output_is_shown_and_times_are_in_the_headers(checkout, home, capsys):
    run(checkout, home)
    out = capsys.readouterr().out
    assert '=== [1/13] data | 0 s gone, about ' in out
    assert '=== [8-9/13] test_retrieval, test_retrieval_shuffled | ' in out and ' s to go ===' in out


def test_cores_are_shared_by_steps_side_by_side(checkout, home, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    for name in ('train.py', 'test.py'):
        script = checkout / 'tools' / name
        script.write_text('import os; print("threads", os.environ["OMP_NUM_THREADS"])\n' + script.read_text())
    steps, _ = run(checkout, home)
    assert 'threads 2' in steps.log('test_vqa').read_text()
    assert 'threads 4' in steps.log('stage1').read_text()


def test_stop_ends_the_children_of_a_step(tmp_path):
    import queue
    import time
    code = 'import subprocess, sys; c = subprocess.Popen(["sleep", "60"]); print(c.pid, flush=True); c.wait()'
    lines = queue.Queue()
    process = quickstart.Process('x', [sys.executable, '-c', code], tmp_path, dict(os.environ),
                                 tmp_path / 'x.log', 'w', lines)
    child = int(lines.get(timeout=20)[1])
    process.stop()
    for _ in range(100):
        if not Path(f'/proc/{child}').exists() or 'Z' in Path(f'/proc/{child}/stat').read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail('the child of the step is still alive')


def test_short_mode_takes_few_steps_in_folders_of_its_own(checkout, home):
    _, lines = run(checkout, home, quickstart.SHORT)
    assert lines[0] == '--out data/shapes-short --train 400 --val 50 --test 50'
    trained = [line for line in lines if 'max_iters' in line]
    assert len(trained) == 5
    assert all('--no-validate' in line and 'work_dirs/quickstart-short/' in line for line in trained)


def test_full_mode_takes_the_configs_as_they_are(checkout, home):
    assert not any('--cfg-options' in line for line in run(checkout, home)[1])


def test_remaining_time_follows_what_was_measured():
    waves = tuple((quickstart.Step(name, 'test', 'test.py', (seconds, 1)),) for name, seconds in
                  (('a', 10), ('b', 20), ('c', 30)))
    steps = quickstart.Quickstart(quickstart.FULL, Path('/nowhere'), waves=waves)
    steps.is_done = lambda step: step.name == 'a'
    assert steps.remaining(waves[1], 5) == 45
    steps.measured, steps.guessed = 20.0, 10.0  # this machine takes twice the time
    assert steps.remaining(waves[1], 10) == 90


def make_summary(checkout, home):
    steps, _ = run(checkout, home)
    return steps.summary()


def test_summary_has_the_documented_layout(checkout, home, monkeypatch):
    monkeypatch.setenv('MMBLIP2_INSTALL_SECONDS', '12.5')
    summary = make_summary(checkout, home)
    assert list(summary) == ['retrieval', 'caption', 'vqa', 'shuffled', 'chance', 'ceiling', 'seconds',
                             'machine']
    assert summary['retrieval'] == {'i2t/Recall@1': 40.0, 't2i/Recall@1': 30.0, 'i2t/itc/Recall@1': 20.0,
                                    't2i/itc/Recall@1': 10.0}
    assert summary['caption'] == {'CIDEr': 150.0, 'Bleu_4': 30.0}
    assert summary['vqa'] == {'accuracy': 80.0, 'yes_no': 85.0}
    for task in quickstart.TASKS:
        assert summary['shuffled'][task].keys() == summary[task].keys()
    assert summary['shuffled']['vqa']['accuracy'] == 8.0
    assert summary['ceiling']['caption']['CIDEr'] == 200.0  # percent, as the result
    assert summary['chance']['vqa']['accuracy'] == 40.0
    assert summary['seconds']['installation'] == 12.5
    assert set(NAMES) < set(summary['seconds']) and summary['seconds']['run'] <= sum(
        summary['seconds'][name] for name in NAMES)
    assert summary['machine']['cores'] == os.cpu_count()


def test_floors_are_those_of_the_specification(checkout, home):
    summary = make_summary(checkout, home)
    assert quickstart.missed_floors(summary) == []
    for task, key, bad, floor in (('retrieval', 't2i/Recall@1', 14.9, '15.0'),
                                  ('vqa', 'accuracy', 64.9, '65.0'), ('caption', 'CIDEr', 119.9, '120.0')):
        worse = json.loads(json.dumps(summary))
        worse[task][key] = bad
        assert quickstart.missed_floors(worse) == [f'{task} {key} is {bad}, its floor is {floor}']
    summary['shuffled']['vqa']['accuracy'] = 60.1
    summary['shuffled']['caption']['CIDEr'] = 50.1
    assert quickstart.missed_floors(summary) == ['caption CIDEr is 150.0, its floor is 150.3',
                                                 'vqa accuracy is 80.0, its floor is 80.1']
    summary['vqa']['accuracy'] = float('nan')
    assert len(quickstart.missed_floors(summary)) == 2


def test_table_lists_headlines_first_with_all_bounds(checkout, home):
    rows = quickstart.table(make_summary(checkout, home))
    assert rows[0] == ('retrieval', 'image to text, recall@1 (%)', 40.0, 4.0, 0.2, 90.0, 15.0)
    assert ('vqa', 'yes_no', 85.0, 8.5, None, None, None) in rows
    text = quickstart.format_table(rows)
    assert 'ceiling' in text.splitlines()[0] and len({len(line) for line in text.splitlines()}) == 1


def test_blip_takes_over_the_data_and_nothing_else(checkout, home):
    run(checkout, home)
    _, lines = run(checkout, home, demo=quickstart.BLIP)
    tested = [f'test_blip_{task}{suffix}' for task in ('caption', 'retrieval', 'vqa_generate', 'vqa_rank')
              for suffix in ('', '_shuffled')]
    assert done_by(lines) == ['blip_caption', 'blip_pretrain', 'blip_vision_encoder', 'blip_vqa', *tested]
    assert len(lines) == 12, 'data and tokenizers are there'
    generated = [line for line in lines if 'model.candidates=None' in line]
    assert done_by(generated) == ['test_blip_vqa_generate', 'test_blip_vqa_generate_shuffled']
    assert all('work_dirs/quickstart/blip_vqa/' in line for line in generated), 'of the same training as the ranked'
    assert run(checkout, home, demo=quickstart.BLIP)[1] == [] and run(checkout, home)[1] == []
    config = checkout / 'configs' / 'quickstart' / 'blip_caption.py'
    config.write_text(config.read_text().replace('lr = 1', 'lr = 2'))
    assert done_by(run(checkout, home, demo=quickstart.BLIP)[1]) == [
        'blip_caption', 'test_blip_caption', 'test_blip_caption_shuffled']


def test_a_row_of_blip_has_the_bounds_of_its_task(checkout, home):
    summary = run(checkout, home, demo=quickstart.BLIP)[0].summary()
    rows = {row[:2]: row[2:] for row in quickstart.table(summary)}
    assert rows['vqa_rank', 'accuracy (%)'] == (80.0, 8.0, 40.0, 95.0, 55.0)
    assert rows['vqa_generate', 'accuracy (%)'] == (70.0, 7.0, 40.0, 95.0, 55.0)
    assert rows['retrieval', 'text to image, recall@1 (%)'] == (30.0, 3.0, 0.2, 80.0, 15.0)
    assert rows['caption', 'CIDEr (%)'] == (150.0, 15.0, 10.0, 200.0, 120.0)
    assert quickstart.missed_floors(summary) == []
    summary['vqa_generate']['accuracy'] = 54.0
    assert quickstart.missed_floors(summary) == ['vqa_generate accuracy is 54.0, its floor is 55.0']
    summary['shuffled']['vqa_rank']['accuracy'] = 60.1
    assert 'vqa_rank accuracy is 80.0, its floor is 80.1' in quickstart.missed_floors(summary)


@pytest.mark.parametrize('short', [False, True])
def test_main_of_blip_prints_its_table(checkout, home, short):
    result = main(checkout, home, '--blip', *(['--short'] if short else []))
    assert result.returncode == 0, result.stdout + result.stderr
    work = home / 'work_dirs' / ('quickstart-short' if short else 'quickstart')
    assert json.loads((work / 'summary_blip.json').read_text())['vqa_generate']['accuracy'] == 70.0
    assert 'vqa_generate' in result.stdout and 'MISSED' not in result.stdout
    assert str(work / 'summary_blip.json') in result.stdout and not (work / 'index.html').exists()
    calls = (home / 'calls.txt').read_text().splitlines()
    assert sum('train_cfg.max_iters' in line for line in calls) == (4 if short else 0)


def test_losses_must_fall():
    assert quickstart.loss_complaint('stage1', [3.0, 2.0, 2.5, 1.0]) is None
    complaint = quickstart.loss_complaint('stage1', [1.0] * 8)
    assert complaint == 'the loss of stage1 did not fall: first 1.000, last 1.000'
    assert 'logged only 2 losses' in quickstart.loss_complaint('stage1', [2.0, 1.0])
    assert quickstart.loss_complaint('stage1', [2.0, 2.0, 1.0, float('nan')])


def main(checkout, home, *arguments):
    return subprocess.run([sys.executable, checkout / 'demo' / 'quickstart.py', *arguments], cwd=home,
                          capture_output=True, text=True, timeout=120)


def test_main_writes_summary_page_and_table(checkout, home):
    result = main(checkout, home)
    assert result.returncode == 0, result.stdout + result.stderr
    work = home / 'work_dirs' / 'quickstart'
    assert json.loads((work / 'summary.json').read_text())['vqa']['accuracy'] == 80.0
    assert 'a red circle' in (work / 'index.html').read_text()
    assert 'image to text, recall@1 (%)' in result.stdout and 'MISSED' not in result.stdout


def test_main_says_plainly_that_a_floor_is_missed(checkout, home):
    script = checkout / 'tools' / 'test.py'
    script.write_text(script.read_text().replace("'vqa/accuracy': 80.0", "'vqa/accuracy': 61.0"))
    result = main(checkout, home)
    assert result.returncode == 1
    assert 'MISSED: vqa accuracy is 61.0, its floor is 65.0' in result.stdout


def test_short_main_fails_when_a_loss_rises(checkout, home):
    script = checkout / 'tools' / 'train.py'
    script.write_text(script.read_text().replace('1.5, 1.0]', '3.5, 4.0]'))
    result = main(checkout, home, '--short')
    assert result.returncode == 1 and 'MISSED: the loss of stage1 did not fall' in result.stdout


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'my photos'
    folder.mkdir()
    (folder / 'photo.jpg').touch()
    return folder


FLICKR8K_NAMES = [step.name for wave in quickstart.FLICKR8K_WAVES for step in wave]


def run_flickr8k(checkout, home, source='', mode=quickstart.FLICKR8K_FULL):
    """Runs all steps; returns the run and the names of those whose tools were called."""
    calls = home / 'calls.txt'
    calls.unlink(missing_ok=True)
    steps = quickstart.Quickstart(mode, home, checkout, demo=quickstart.FLICKR8K, source=str(source))
    try:
        steps.run()
    finally:
        lines = calls.read_text().splitlines() if calls.exists() else []
    return steps, lines


def test_flickr8k_runs_once_and_needs_the_photos_once(checkout, home, photos):
    with pytest.raises(quickstart.StepError, match='data needs the folder of the photos: make flickr8k DATA=DIR'):
        run_flickr8k(checkout, home)
    steps, lines = run_flickr8k(checkout, home, photos)
    assert len(lines) in (len(FLICKR8K_NAMES), len(FLICKR8K_NAMES) - 1), 'parts may be done by the first call'
    assert not any('--no-validate' in line for line in lines), 'the curve comes from the evaluations'
    assert not any('--cfg-options' in line for line in lines)
    assert run_flickr8k(checkout, home)[1] == [] and run_flickr8k(checkout, home, photos.parent)[1] == []
    config = checkout / 'configs' / 'flickr8k' / 'stage2.py'
    config.write_text(config.read_text().replace('lr = 1', 'lr = 2'))
    assert done_by(run_flickr8k(checkout, home)[1]) == ['caption', 'stage2', 'test_caption', 'test_caption_shuffled']


def test_flickr8k_goes_on_after_a_kill(checkout, home, photos, monkeypatch):
    monkeypatch.setenv('FAIL_IN', 'stage2')
    with pytest.raises(quickstart.StepError, match='stage2 failed with exit status 3'):
        run_flickr8k(checkout, home, photos)
    monkeypatch.delenv('FAIL_IN')
    _, lines = run_flickr8k(checkout, home)
    assert '--resume' in lines[0] and done_by(lines) == [
        'caption', 'stage2', 'test_caption', 'test_caption_shuffled']


def test_short_flickr8k_takes_few_images_and_steps(checkout, home, photos):
    _, lines = run_flickr8k(checkout, home, photos, quickstart.FLICKR8K_SHORT)
    assert any(line.endswith('--out data/flickr8k-short --first 48 12') for line in lines)
    assert all('train_dataloader.batch_size=8' in line for line in lines if '--work-dir' in line)
    assert sum('train_cfg.max_iters=8' in line for line in lines) == 4


def test_main_of_flickr8k_writes_floors_aims_and_page(checkout, home, photos):
    script = checkout / 'tools' / 'test.py'
    script.write_text(script.read_text().replace("'caption/Bleu_4': 30.0", "'caption/Bleu_4': 19.0"))
    result = main(checkout, home, '--flickr8k', '--source', str(photos))
    assert result.returncode == 1, result.stdout + result.stderr
    assert 'MISSED: caption Bleu_4 is 19.0, its floor is 20.0' in result.stdout
    assert result.stdout.count('MISSED') == 1
    work = home / 'work_dirs' / 'flickr8k'
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['retrieval']['i2t/Recall@1'] == 40.0 and summary['shuffled']['caption']['CIDEr'] == 15.0
    assert summary['floor']['retrieval'] == {'i2t/Recall@1': 22.0, 't2i/Recall@1': 18.0}
    assert summary['aim']['caption'] == {'Bleu_4': 23.0, 'CIDEr': 60.0}
    assert 'a real dog' in (work / 'index.html').read_text()


def test_short_flickr8k_prepares_made_up_photos(checkout, home, tmp_path):
    """With the real script: lists and archives in Flickr8k's format, of another number of images."""
    import tarfile
    source = tmp_path / 'made up'
    source.mkdir()
    for split, number in (('train', 60), ('val', 5)):
        names = [f'images/{split}{i}.jpg' for i in range(number)]
        rows = [dict(image=name, image_id=name[7:-4], caption=[f'caption {k} of {name}' for k in range(5)])
                for name in names]
        if split == 'train':
            rows = [dict(row, caption=caption) for row in rows for caption in row['caption']]
        (source / f'flickr8k_{split}.json').write_text(json.dumps(rows))
        (source / 'a.jpg').write_bytes(b'\xff\xd8 a photo')
        with tarfile.open(source / f'flickr8k_{split}_images.tar', 'w') as archive:
            for name in names:
                archive.add(source / 'a.jpg', name)
    name = 'tools/dataset_converters/prepare_flickr8k.py'
    shutil.copy(ROOT / name, checkout / name)
    (checkout / 'mmblip2').symlink_to(ROOT / 'mmblip2')
    steps, _ = run_flickr8k(checkout, home, source, quickstart.FLICKR8K_SHORT)
    rows = json.loads((steps.data / 'annotations' / 'karpathy_train.json').read_text())
    assert len({row['image'] for row in rows}) == 48 and len(list((steps.data / 'images').iterdir())) == 48 + 5
    assert run_flickr8k(checkout, home, mode=quickstart.FLICKR8K_SHORT)[1] == []
