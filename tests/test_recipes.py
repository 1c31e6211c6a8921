"""Every shipped config runs: two iterations of its training, its whole validation and test, on generated files in its
own annotation formats. ``shrink`` makes every size small; everything else (pipelines, data sets, losses, groups of
parameters, schedules, hooks, metrics) is as shipped."""
import gc
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tests' / 'data'))
from recipe_files import write_data, write_tokenizers  # noqa: E402

from mmblip2.errors import DataError  # noqa: E402
from mmblip2.evaluation.functional import caption  # noqa: E402
from mmblip2.utils import config_check, run_config  # noqa: E402
from mmblip2.utils.shrink import DEPTH, shrink  # noqa: E402

CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)
LOSSES = {'Blip2Representation': {'loss_itc', 'loss_itm', 'loss_itg'}, 'Blip2Generation': {'loss_lm'},
          'BlipRepresentation': {'loss_itc', 'loss_itm', 'loss_lm'}, 'BlipGeneration': {'loss_lm'},
          'BlipNLVR': {'loss_nlvr'}, 'LanguagePretraining': {'loss_lm'}}
RECALLS = {f'{way}/{score}/Recall@{k}' for way in ('i2t', 't2i') for score in ('retrieval', 'itc')
           for k in (1, 5, 10, 'mean')}
# What shrink may change; the rest of a config is as shipped.
CHANGED = re.compile(
    r'model\.allow_random|model\.vision\.(patch_size|width|depth|num_heads|mlp_width|weights)'
    r'|model\.(qformer|text_encoder|text_decoder)\.(vision_width|num_layers|width|num_heads|mlp_width|vocab_size|bert)'
    r'|model\.tokenizer\.path|model\.queue_size'
    r'|model\.language_model\.(model|weights|tokenizer|dtype|config\.\w+)'
    r'|(train|val|test)_dataloader\.(batch_size|num_workers|persistent_workers|dataset\.feature_cache.*)'
    r'|(val|test)_cfg\.autocast|optim_wrapper\.dtype|train_cfg\.(max_iters|max_epochs)|default_hooks\.logger\.interval|load_from|resume')
CAPTION_SCORES = {f'caption/{name}' for name in ('Bleu_1', 'Bleu_2', 'Bleu_3', 'Bleu_4', 'METEOR', 'ROUGE_L', 'CIDEr')}


class SharedMeteor:
    """Stands in for ``subprocess.Popen``: one METEOR process for all evaluations of this file.

    Its protocol keeps nothing from line to line, and a process of its own needs some 10 s to read its tables.
    """

    def __init__(self):
        self.process = None

    def __call__(self, command, stderr, **options):
        assert any('meteor' in word for word in command)
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
        return self

    def __enter__(self):
        stdin = self.process.stdin
        return SimpleNamespace(stdin=SimpleNamespace(write=stdin.write, flush=stdin.flush, close=lambda: None),
                               stdout=self.process.stdout, kill=lambda: None)

    def __exit__(self, *args):
        pass

    def end(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope='module', autouse=True)
def quick():
    """Leaves out what takes most of the time of a tiny run and is no law of a recipe.

    A run formats the text of its config; each data set has all objects of the process searched for garbage.
    """
    from mmengine.config import config
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, 'FormatCode', lambda text, **options: (text, True))
        yield
    gc.unfreeze()


@pytest.fixture(scope='module')
def meteor():
    shared = SharedMeteor()
    yield shared
    shared.end()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder with the data of all configs, and the folders of two tokenizers."""
    folder = tmp_path_factory.mktemp('recipes')
    write_data(folder)
    return folder, *write_tokenizers(folder)


@pytest.fixture
def shrunk(files, real_parts, tmp_path, monkeypatch):
    """A function from the path of a config to its shrunk copy, in the folder of the data."""
    folder, bert, language = files
    monkeypatch.chdir(folder)
    for name in ('MMBLIP2_SHAPES', 'MMBLIP2_QUICKSTART', 'MMBLIP2_COCO'):
        monkeypatch.delenv(name, raising=False)

    def load(path):
        shipped = run_config.load_config(str(path))
        cfg = shrink(shipped, bert, language)
        assert [key for key in changed(shipped, cfg) if not CHANGED.fullmatch(key)] == []
        cfg.work_dir = str(tmp_path / 'work')
        config_check.check_config(cfg)
        return cfg

    return load


def changed(one, other, path=''):
    """Paths of the entries in which two configs differ."""
    if not (isinstance(one, (dict, Config)) and isinstance(other, (dict, Config))):
        return [] if one == other else [path]
    return [found for key in {**one, **other} for found in changed(
        one.get(key), other.get(key), f'{path}.{key}' if path else key)]


def ids(path):
    return str(path.relative_to(ROOT / 'configs'))[:-3]


@pytest.mark.parametrize('path', CONFIGS, ids=ids)
def test_config_runs(path, shrunk, meteor, monkeypatch):
    from mmblip2.engine import Runner
    monkeypatch.setattr(caption, 'subprocess', SimpleNamespace(**{**vars(subprocess), 'Popen': meteor}))
    cfg = shrunk(path)
    if cfg.get('train_cfg'):
        trains(cfg)
    else:
        Runner.from_cfg(cfg).save_checkpoint(cfg.work_dir, 'iter_0.pth', save_optimizer=False,
                                             save_param_scheduler=False)
    if cfg.get('test_cfg'):
        cfg.load_from = cfg.work_dir
        runner = Runner.from_cfg(cfg)
        metrics_are_whole(runner.test(), cfg, 'test', runner.test_dataloader.dataset)


def trains(cfg):
    """Train as the config says and look at losses, gradients, learning rates, the validation and the checkpoint."""
    from mmblip2.engine import Runner
    from mmblip2.models.algorithms.base import fingerprint
    runner = Runner.from_cfg(cfg)
    model = runner.model
    parts = model.frozen_parts() if hasattr(model, 'frozen_parts') else {}
    if 'frozen' in cfg.model:
        assert set(parts) == set(cfg.model.frozen)
    before = {name: fingerprint(part) for name, part in parts.items()}
    fixed = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    runner.train()

    lines = next(Path(cfg.work_dir).glob('*/vis_data/scalars.json')).read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if 'loss' in line]
    promised = LOSSES.get(cfg.model.type) or {f'loss_{name}' for name in cfg.model.num_classes}
    off = [name for name, weight in cfg.model.get('loss_weights', {}).items() if not weight]
    promised = promised - {f'loss_{name}' for name in off}
    assert not off or cfg.find_unused_parameters, 'DDP asks for it'
    if cfg.model.type == 'BlipRepresentation' and 'text_decoder' not in cfg.model:
        promised = promised - {'loss_lm'}
    length = cfg.train_cfg.get('max_iters') or len(runner.train_dataloader)
    assert runner.iter == len(logged) == length >= 2
    for line in logged:
        assert {key for key in line if key.startswith('loss_')} == promised
        assert all(0 < line[key] < 100 for key in promised), line  # random weights of T5: 6 to 26
    if 'train_dataloader' in cfg:  # a sample of every source, however rarely it is drawn
        every = runner.train_dataloader.dataset
        assert all(dataset[0]['data_samples'] is not None for dataset in getattr(every, 'datasets', [every]))

    optimizer = runner.optim_wrapper.optimizer
    trained = {name: p for name, p in model.named_parameters() if name not in fixed}
    assert {id(p) for group in optimizer.param_groups for p in group['params']} == {id(p) for p in trained.values()}
    steps = {name: optimizer.state[p].get('exp_avg') for name, p in trained.items()
             if not name.startswith(tuple(f'{loss}_head.' for loss in off))}
    assert [name for name, step in steps.items() if step is None] == [], 'every trained parameter has had a gradient'
    assert all(step.isfinite().all() for step in steps.values())
    assert [name for name, step in steps.items() if not step.any() and not name.endswith('key.bias')] == []
    moved = {name for name, p in model.named_parameters() if name in fixed and not torch.equal(p, fixed[name])}
    assert all(name.startswith('momentum.') for name in moved), 'copies follow, nothing else that is not trained moves'
    assert bool(moved) == (cfg.model.type == 'BlipRepresentation')
    assert {name: fingerprint(part) for name, part in parts.items()} == before, 'no frozen part has changed'
    rates = [group['initial_lr'] for group in optimizer.param_groups]
    assert sorted(set(rates)) == pytest.approx(sorted(expected_rates(cfg.optim_wrapper)))
    assert logged[0]['lr'] == pytest.approx(rates[0] * cfg.param_scheduler[0].get('start_factor', 1.))

    checkpoint, = (file for file in Path(cfg.work_dir).glob('*.pth') if not file.name.startswith('best'))
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert set(trained) <= set(state)
    assert not [key for key in state if key.split('.')[0] in parts and key not in trained]  # trained: those of LoRA
    if cfg.get('val_cfg'):
        values = [line for line in map(json.loads, lines) if 'loss' not in line]
        assert len(values) == 1
        metrics = {key: value for key, value in values[0].items() if '/' in key}
        metrics_are_whole(metrics, cfg, 'val', runner.val_dataloader.dataset)
    best = cfg.default_hooks.checkpoint.get('save_best')
    if best:
        assert Path(cfg.work_dir, f'best_{best.replace("/", "_")}_epoch_1.pth').is_file()


@pytest.mark.parametrize('name', ['blip2_vit-g_stage1', 'blip2_vit-g_16xb14_retrieval-coco'])
def test_fewer_processes_learn_at_a_rate_in_proportion(name, shrunk):
    """What the headers say of ``--auto-scale-lr``, with layer-wise rates, too."""
    from mmblip2.engine import Runner
    cfg = shrunk(ROOT / 'configs' / 'blip2' / f'{name}.py')
    cfg.auto_scale_lr.enable = True
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg.pop(key, None)
    cfg.default_hooks.checkpoint.pop('save_best', None)
    runner = Runner.from_cfg(cfg)
    runner.train()
    ratio = cfg.train_dataloader.batch_size / cfg.auto_scale_lr.base_batch_size
    rates = {group['initial_lr'] for group in runner.optim_wrapper.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([ratio * rate for rate in sorted(expected_rates(cfg.optim_wrapper))])
    lines = next(Path(cfg.work_dir).glob('*/vis_data/scalars.json')).read_text().splitlines()
    factor = cfg.param_scheduler[0].start_factor
    assert any(json.loads(lines[0])['lr'] == pytest.approx(rate * factor) for rate in rates)


def expected_rates(optim_wrapper):
    """The different learning rates that the config asks for."""
    lr, paramwise = optim_wrapper.optimizer.lr, optim_wrapper.get('paramwise_cfg') or {}
    if 'layer_decay' in paramwise:  # embeddings, each block, everything behind
        return {lr * paramwise.layer_decay**k for k in range(DEPTH + 2)}
    return {lr} | {lr * options.get('lr_mult', 1.) for options in paramwise.get('custom_keys', {}).values()}


def metrics_are_whole(metrics, cfg, split, dataset):
    """The metrics are those of the task, finite, and of as many predictions as the data set has samples."""
    kind = cfg[f'{split}_evaluator'].type
    if kind == 'COCOCaptionMetric':
        expected, file = CAPTION_SCORES, 'caption.json'
    elif kind == 'RetrievalRecall':
        expected, file = RECALLS, 'retrieval.json'
    elif kind == 'NLVRAccuracy':
        expected, file = {'nlvr/accuracy', 'nlvr/consistency'}, 'nlvr.json'
    elif kind == 'PatchAccuracy':
        expected, file = {'vision/patch_accuracy'}, None
    else:
        prefix = dict(VQAMetric='vqa', GQAMetric='gqa', AOKVQAMetric='aokvqa')[kind]  # say which keys another one has
        rows = [dataset.get_data_info(i) for i in range(len(dataset))]
        answered = any('gt_answer' in row for row in rows)
        expected = {f'{prefix}/accuracy'} if answered else set()
        expected |= {f'{prefix}/{row["answer_type"].replace("/", "_")}' for row in rows if 'answer_type' in row}
        expected |= {f'{prefix}/question_type/{row["question_type"]}' for row in rows if 'question_type' in row}
        assert len(expected) != 1 or kind == 'AOKVQAMetric', 'the others have types'
        file = f'{prefix}.json'
    assert set(metrics) == expected
    assert all(math.isfinite(value) and 0 <= value <= 1000 for value in metrics.values())
    assert len(dataset) > 2
    if file:
        rows = json.loads(Path(cfg.work_dir, 'predictions', file).read_text())
        assert len(rows.get('images', rows) if isinstance(rows, dict) else rows) == len(dataset)


@pytest.mark.parametrize('name, prompt, qformer_text', [
    ('blip2-opt2.7b_8xb32_caption', 'a photo of', None),
    ('blip2-opt2.7b_8xb16_vqa', 'Question: what color is the star? Answer:', None),
    ('blip2-flan-t5xl_8xb16_vqa', 'Question: what color is the star? Short answer:', None),
    *((f'blip2-opt2.7b_8xb16_{name}', 'Question: what color is the star? Answer:', None)
      for name in ('okvqa', 'aokvqa', 'gqa')),
    ('blip2-opt2.7b_8xb32_caption-nocaps', 'a photo of', None),
    ('blip2-opt2.7b_16xb16_caption-coco', 'a photo of', None),
    ('blip2-opt6.7b_16xb16_caption-coco', 'a photo of', None),
    ('blip2-flan-t5xl_16xb16_caption-coco', 'a photo of', None),
    ('blip2-opt2.7b_16xb8_vqa-vqav2', 'Question: what color is the star? Answer:', 'what color is the star?'),
    ('blip2-opt6.7b_16xb8_vqa-vqav2', 'Question: what color is the star? Answer:', 'what color is the star?'),
    ('blip2-flan-t5xl_16xb8_vqa-vqav2', 'Question: what color is the star? Answer:', 'what color is the star?'),
    ('instructblip-vicuna7b_8xb16_caption-flickr30k', 'A short image description.', 'A short image description.'),
    ('instructblip-flan-t5xl_8xb16_caption-flickr30k', 'A short image description.', 'A short image description.'),
])
def test_evaluation_asks_what_the_paper_asks(name, prompt, qformer_text, shrunk, monkeypatch):
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, DefaultScope

    from mmblip2.registry import MODELS
    cfg = shrunk(ROOT / 'configs' / 'blip2' / f'{name}.py')
    cfg.model.generation.max_new_tokens = 3
    cfg.model.generation.pop('min_new_tokens', None)
    with DefaultScope.overwrite_default_scope('mmblip2'):
        dataset, model = DATASETS.build(cfg.test_dataloader.dataset), MODELS.build(cfg.model).eval()
    read = []
    if model.tokenizer is not None:
        call = type(model.tokenizer).__call__
        monkeypatch.setattr(type(model.tokenizer), '__call__',
                            lambda self, texts, *args: (read.extend(texts), call(self, texts, *args))[1])
    batch = model.data_preprocessor(pseudo_collate([dataset[0], dataset[0]]))
    samples = model(**batch, mode='predict')
    assert [sample.prompt for sample in samples] == [prompt] * 2
    assert all(isinstance(sample.pred_text, str) for sample in samples)
    assert read == ([] if qformer_text is None else [qformer_text] * 2)


@pytest.mark.parametrize('name, count', [
    ('quickstart/vqa', 4), ('blip2/blip2_8xb32_retrieval', 4), ('blip/blip-base_8xb32_okvqa', 3)])
def test_a_user_can_try_a_config_on_his_data(name, count, shrunk, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('try_config', ROOT / 'tools' / 'misc' / 'try_config.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    config = str(ROOT / 'configs' / f'{name}.py')
    tool.main([config, '--samples', '4', '--work-dir', str(tmp_path / 'try')])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f'{config} runs with a tiny model and 4 samples')
    rows = json.loads(next((tmp_path / 'try' / 'predictions').iterdir()).read_text())
    assert len(rows['images'] if isinstance(rows, dict) else rows) == count
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'try' / 'tokenizers' / 'language')
    if 'quickstart' in name:  # it has read the prompt, which is a word and a colon
        assert len(tokenizer('Question:', add_special_tokens=False).input_ids) == 2
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path / 'empty')
    with pytest.raises(DataError, match='not found: check'):
        tool.main([config])
