"""Every shipped config passes the check, its model and pipelines agree, and its model builds without any file."""
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmblip2.checkpoints.sources import PUBLISHED
from mmblip2.utils import config_check, run_config
from mmblip2.utils.meta import build_on_meta, count_parameters

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


# Paper, section 4 and tables 7 to 9: (learning rate, its end, warm-up, beta 2, layer decay), (samples an update,
# length, image size). Weight decay is 0.05 throughout.
STAGE_1, STAGE_2 = (1e-4, 1e-5, 2000, 0.98, None), (1e-4, 5e-5, 2000, 0.98, None)
RECIPES = {
    'blip2_vit-g_stage1': (STAGE_1, (1680, 250000, 224)),
    'blip2_vit-g_stage1-shards': (STAGE_1, (1680, 250000, 224)),
    'blip2_vit-l_stage1': (STAGE_1, (2320, 250000, 224)),
    'blip2-opt2.7b_stage2': (STAGE_2, (1920, 80000, 224)),
    'blip2-opt6.7b_stage2': (STAGE_2, (1920, 80000, 224)),
    'blip2-flan-t5xl_stage2': (STAGE_2, (1520, 80000, 224)),
    'blip2-flan-t5xxl_stage2': (STAGE_2, (1520, 80000, 224)),
    'blip2-opt2.7b_16xb16_caption-coco': ((1e-5, 0., 1000, 0.999, None), (256, 5, 364)),
    'blip2-opt6.7b_16xb16_caption-coco': ((1e-5, 0., 1000, 0.999, 0.95), (256, 5, 364)),
    'blip2-flan-t5xl_16xb16_caption-coco': ((1e-5, 0., 1000, 0.999, None), (256, 5, 364)),
    'blip2-opt2.7b_16xb8_vqa-vqav2': ((1e-5, 0., 1000, 0.999, 0.95), (128, 5, 490)),
    'blip2-opt6.7b_16xb8_vqa-vqav2': ((1e-5, 0., 1000, 0.999, 0.9), (128, 5, 490)),
    'blip2-flan-t5xl_16xb8_vqa-vqav2': ((1e-5, 0., 1000, 0.999, 0.95), (128, 5, 490)),
    'blip2_vit-g_16xb14_retrieval-coco': ((1e-5, 0., 1000, 0.999, 0.95), (224, 5, 364)),
    'blip2_vit-l_16xb14_retrieval-coco': ((5e-6, 0., 1000, 0.98, None), (224, 5, 364)),
}
# BLIP: paper, table 14 (pre-training: section 4.1); OK-VQA and A-OKVQA: LAVIS's configs. (learning rate, its end or
# factor an epoch, weight decay), (samples an update, epochs, image size).
BLIP_RECIPES = {
    'blip-base_32xb90_pretrain': ((3e-4, 0.85, 0.05), (2880, 20, 224)),
    'blip-large_32xb75_pretrain': ((2e-4, 0.85, 0.05), (2400, 20, 224)),
    'blip-base_8xb32_caption': ((1e-5, 0., 0.05), (256, 5, 384)),
    'blip-large_16xb16_caption': ((2e-6, 0., 0.05), (256, 5, 384)),
    'blip-base_8xb32_retrieval': ((1e-5, 0., 0.05), (256, 6, 384)),
    'blip-large_16xb16_retrieval': ((5e-6, 0., 0.05), (256, 6, 384)),
    'blip-base_8xb32_retrieval_flickr30k': ((1e-5, 0., 0.05), (256, 6, 384)),
    'blip-large_16xb16_retrieval_flickr30k': ((5e-6, 0., 0.05), (256, 6, 384)),
    'blip-base_8xb32_vqa': ((2e-5, 0., 0.05), (256, 10, 480)),
    'blip-base_8xb16_vqa': ((2e-5, 0., 0.05), (256, 10, 480)),
    'blip-base_8xb32_okvqa': ((3e-5, 1e-5, 0.02), (256, 7, 480)),
    'blip-base_8xb16_aokvqa': ((2e-5, 1e-5, 0.02), (128, 7, 480)),
    'blip-base_8xb32_nlvr': ((3e-5, 0., 0.05), (256, 15, 384)),
}
# How answers are generated: (beams, fewest and most new tokens, length penalty, repetition penalty), prompt, what the
# Q-Former reads, image size. Captions: LAVIS's evaluation and, zero-shot, mmpretrain's. VQA: the paper's beams, and its
# length penalty and LAVIS's 10 tokens of zero-shot VQA for the fine-tuned, too. Stage 2 and InstructBLIP: defaults of
# LAVIS's classes. At least one token is what generating does anyhow.
CAPTION, VQA, INSTRUCT = (5, 8, 30, 1., 1.), (5, 1, 10, -1., 1.), (5, 1, 256, 1., 1.5)
A_PHOTO, LONG, SHORT = 'a photo of', 'Question: {} Answer:', 'Question: {} Short answer:'
INSTRUCTION = 'A short image description.'
DEFAULTS = dict(num_beams=1, min_new_tokens=1, max_new_tokens=30, length_penalty=1., repetition_penalty=1.)
ANSWERS = {
    'blip2-opt2.7b_stage2': ((5, 1, 30, 1., 1.), '', None, 224),
    'blip2-opt6.7b_stage2': ((5, 1, 30, 1., 1.), '', None, 224),
    'blip2-flan-t5xl_stage2': ((5, 1, 30, 1., 1.), '', None, 224),
    'blip2-flan-t5xxl_stage2': ((5, 1, 30, 1., 1.), '', None, 224),
    'blip2-opt2.7b_16xb16_caption-coco': (CAPTION, A_PHOTO, None, 364),
    'blip2-opt6.7b_16xb16_caption-coco': (CAPTION, A_PHOTO, None, 364),
    'blip2-flan-t5xl_16xb16_caption-coco': (CAPTION, A_PHOTO, None, 364),
    'blip2-opt2.7b_16xb8_vqa-vqav2': (VQA, LONG, '{}', 490),
    'blip2-opt6.7b_16xb8_vqa-vqav2': (VQA, LONG, '{}', 490),
    'blip2-flan-t5xl_16xb8_vqa-vqav2': (VQA, LONG, '{}', 490),
    'blip2-opt2.7b_8xb32_caption': ((5, 1, 30, 1., 1.), A_PHOTO, None, 364),
    'blip2-opt2.7b_8xb16_vqa': (VQA, LONG, None, 224),
    'blip2-opt6.7b_8xb16_vqa': (VQA, LONG, None, 224),
    'blip2-flan-t5xl_8xb16_vqa': (VQA, SHORT, None, 224),
    'blip2-flan-t5xxl_8xb16_vqa': (VQA, SHORT, None, 224),
    'blip2-vit-l-flan-t5xl_8xb16_vqa': (VQA, SHORT, None, 224),
    **{f'blip2-opt2.7b_8xb16_{name}': (VQA, LONG, None, 224) for name in ('okvqa', 'aokvqa', 'gqa')},
    'blip2-opt2.7b_8xb32_caption-nocaps': (CAPTION, A_PHOTO, None, 364),
    'instructblip-vicuna7b_8xb16_caption-flickr30k': (INSTRUCT, INSTRUCTION, INSTRUCTION, 224),
    'instructblip-vicuna13b_8xb16_caption-flickr30k': (INSTRUCT, INSTRUCTION, INSTRUCTION, 224),
    'instructblip-flan-t5xl_8xb16_caption-flickr30k': (INSTRUCT, INSTRUCTION, INSTRUCTION, 224),
    'instructblip-flan-t5xxl_8xb16_caption-flickr30k': (INSTRUCT, INSTRUCTION, INSTRUCTION, 224),
}


def entries(folder='*'):
    """The models of the metafiles."""
    return [entry for file in sorted((ROOT / 'configs').glob(f'{folder}/metafile.yml'))
            for entry in yaml.safe_load(file.read_text(encoding='utf-8'))['Models']]


def ids(path):
    return str(path.relative_to(ROOT / 'configs'))


@pytest.mark.parametrize('path', CONFIGS, ids=ids)
def test_config_is_valid(path, monkeypatch, real_parts):
    monkeypatch.chdir(ROOT)
    cfg = run_config.load_config(str(path))
    config_check.check_config(cfg)


def header(path):
    """The comments before the first line of a config, continued commands joined."""
    text = path.read_text(encoding='utf-8')
    return re.sub(r' \\\n# +', ' ', text[:text.index('\n_base_')])


def work_dir(path):
    """Where the training command of a config's header writes."""
    command, = re.findall(rf'python tools/train.py configs/{ids(path)}(.*)', header(path))
    named = re.search(r'--work-dir (\S+)', command)
    return named[1] if named else f'work_dirs/{path.stem}'


@pytest.mark.parametrize('path', CONFIGS, ids=ids)
def test_a_header_says_command_hardware_and_what_to_expect(path):
    cfg, text = run_config.load_config(str(path)), header(path)
    assert text.startswith('# ')
    assert re.search(r'\bHardware\b.*\b(GPUs|A100|CPU cores)\b', text)
    expected = text[re.search(r'\bExpected\b', text).start():].replace('\n# ', ' ')
    if not re.search('not measured|no metric|no figure', expected):  # the reason why there is none, or a figure
        assert re.search(r' \d+\.\d', expected)
        assert re.search(r"\((paper, table \d|InstructBLIP paper|LAVIS's benchmarks|mmpretrain|measured)", expected)
    tests = re.findall(rf'python tools/test.py configs/{ids(path)} (\S+)', text)
    if cfg.get('train_dataloader') and cfg.get('test_dataloader'):
        assert tests.pop(0) == work_dir(path), 'the test reads what was trained'
    weights = {entry['Weights'] for entry in entries() if entry['Config'].endswith(f'/{ids(path)}') and
               entry.get('Weights')}
    files = weights | {address.rpartition('/')[2] for address in weights}
    assert len(tests) == bool(weights and cfg.get('test_dataloader')) and set(tests) <= files, 'the published one'
    if not cfg.get('train_dataloader'):
        assert 'CHECKPOINT is that file' in text.replace('\n# ', ' ') and tests


def test_what_a_config_starts_from_is_what_the_commands_of_others_wrote(monkeypatch):
    monkeypatch.delenv('MMBLIP2_QUICKSTART', raising=False)
    configs = {path: run_config.load_config(str(path)) for path in CONFIGS}
    written = {path: work_dir(path) for path, cfg in configs.items() if cfg.get('train_dataloader')}
    assert len(set(written.values())) == len(written), 'no two configs write into one folder'

    def sources(value):
        if isinstance(value, dict):
            return [found for item in value.values() for found in sources(item)]
        if isinstance(value, (list, tuple)):
            return [found for item in value for found in sources(item)]
        return [value] if isinstance(value, str) and value.startswith('work_dirs/') else []

    read = {(path, source) for path, cfg in configs.items() for source in sources([cfg.get('load_from'), cfg.model])}
    assert len(read) > 10
    assert {source for _, source in read} <= set(written.values())
    for path, source in read:
        assert source != written[path]


@pytest.mark.parametrize('path', [path for path in CONFIGS if path.parent.name in ('blip', 'blip2')], ids=ids)
def test_command_name_and_recipe_speak_of_the_same_processes(path):
    cfg, text = run_config.load_config(str(path)), header(path)
    named = re.search(r'_(\d+)xb(\d+)_', path.stem)
    if not cfg.get('train_dataloader'):
        processes, = re.findall(rf'dist_test.sh configs/{ids(path)} CHECKPOINT (\d+)\n', text)
        assert (processes, str(cfg.test_dataloader.batch_size)) == named.groups()
        assert re.search(rf'Hardware: {processes} GPUs, {named[2]} images', text)
        return
    (several, machines, each), = re.findall(
        rf'(NNODES=(\d+) NODE_RANK=0 MASTER_ADDR=HOST )?bash tools/dist_train.sh configs/{ids(path)} (\d+)\n', text)
    processes, batch = int(machines or 1) * int(each), cfg.train_dataloader.batch_size
    assert bool(several) == (processes > 8), 'a machine has 8 GPUs'
    assert processes * batch == cfg.auto_scale_lr.base_batch_size
    assert named is None or named.groups() == (str(processes), str(batch))
    assert f'train.py configs/{ids(path)} --auto-scale-lr\n' in text, 'one process alone needs another learning rate'
    assert f'of {processes} processes' in text and 'add --auto-scale-lr' in text.replace('\n# ', ' ')
    assert ('negatives' in text) == cfg.model.type.endswith('Representation')


@pytest.mark.parametrize('path', CONFIGS, ids=ids)
def test_model_builds_without_files(path, monkeypatch, real_parts, tmp_path, opt_folder):
    monkeypatch.chdir(tmp_path)
    for name in ('MMBLIP2_SHAPES', 'MMBLIP2_QUICKSTART'):
        monkeypatch.delenv(name, raising=False)
    if path.parent.name == 'quickstart':  # the size of its vocabulary is that of the tokenizer, which a script makes
        shutil.copytree(opt_folder, tmp_path / 'data' / 'shapes' / 'tokenizers' / 'opt')
    cfg = run_config.load_config(str(path))
    model = build_on_meta(cfg.model)
    assert all(parameter.is_meta for parameter in model.parameters())
    counts = count_parameters(model)
    assert counts['trainable'] > 0
    said = [entry['Metadata']['Parameters'] for entry in entries() if entry['Config'] == f'configs/{ids(path)}']
    assert said
    other = path.parent.name in ('coco', 'flickr8k') and not real_parts  # a stand-in is smaller
    if not other and ('language_model' not in cfg.model or path.parent.name != 'quickstart'):  # another tokenizer here
        assert set(said) == {counts['total']}, 'Parameters of the metafile'
    for part in cfg.model.get('frozen', ()):
        assert (counts['parts'][part]['trainable'] > 0) == ('lora' in cfg.model[part])
    if 'load_from' in cfg and isinstance(cfg.load_from, str) and cfg.load_from.startswith('work_dirs/blip2'):
        assert any(path.stem == Path(cfg.load_from).name for path in CONFIGS), 'load_from is the work of a config'


@pytest.mark.parametrize('path', [path for path in CONFIGS if path.parent.name == 'blip2'], ids=ids)
def test_recipe_is_that_of_the_paper(path):
    cfg = run_config.load_config(str(path))
    assert ('train_cfg' in cfg) == (path.stem in RECIPES)
    if 'train_cfg' not in cfg:
        return
    optimizer, (warmup, cosine) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    decay = (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('layer_decay')
    length = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs
    assert RECIPES[path.stem] == (
        (optimizer.lr, cosine.eta_min, warmup.end, optimizer.betas[1], decay),
        (cfg.auto_scale_lr.base_batch_size, length, cfg.model.vision.image_size))
    assert (optimizer.type, optimizer.betas[0], optimizer.weight_decay) == ('AdamW', 0.9, 0.05)
    assert cfg.auto_scale_lr.base_batch_size == 16 * cfg.train_dataloader.batch_size
    assert (warmup.type, cosine.type, cosine.begin) == ('LinearLR', 'CosineAnnealingLR', warmup.end)


@pytest.mark.parametrize('path', [path for path in CONFIGS if path.parent.name == 'blip'], ids=ids)
def test_recipe_of_blip_is_that_of_the_paper(path):
    cfg = run_config.load_config(str(path))
    assert ('train_cfg' in cfg) == (path.stem in BLIP_RECIPES)
    if 'train_cfg' not in cfg:
        return
    optimizer, over_time = cfg.optim_wrapper.optimizer, cfg.param_scheduler[-1]
    assert BLIP_RECIPES[path.stem] == (
        (optimizer.lr, over_time.get('eta_min', over_time.get('gamma')), optimizer.weight_decay),
        (cfg.auto_scale_lr.base_batch_size * cfg.optim_wrapper.get('accumulative_counts', 1), cfg.train_cfg.max_epochs,
         cfg.model.vision.image_size))
    assert (optimizer.type, optimizer.betas, over_time.by_epoch) == ('AdamW', (0.9, 0.999), True)
    pretraining = '_pretrain' in path.stem
    assert over_time.type == ('ExponentialLR' if pretraining else 'CosineAnnealingLR')
    if pretraining:
        warmup = cfg.param_scheduler[0]
        assert (warmup.start_factor * optimizer.lr, warmup.end) == (pytest.approx(1e-6), 3000)
    else:
        assert (len(cfg.param_scheduler), over_time.T_max) == (1, cfg.train_cfg.max_epochs)
    large, vqa = 'large' in path.stem, 'vqa' in path.stem
    assert cfg.model.vision.get('drop_path', 0.) == (0.1 if large or vqa else 0.)
    assert cfg.model.vision.width == (1024 if large else 768)
    if cfg.model.type == 'BlipRepresentation':
        assert (cfg.model.queue_size, cfg.model.momentum, cfg.model.alpha) == (57600, 0.995, 0.4)
        assert cfg.model.queue_size % cfg.auto_scale_lr.base_batch_size == 0
        assert cfg.model.max_text_len == (30 if pretraining else 35)
        assert cfg.test_cfg.k_test == (128 if 'flickr' in path.stem else 256)
        assert cfg.model.negative_all_rank == path.stem.endswith('_retrieval')
    if cfg.model.type == 'BlipGeneration' and not vqa:
        generation = cfg.model.generation
        assert (generation.num_beams, generation.min_new_tokens, generation.max_new_tokens) == (3, 5 - 4, 20 - 4)
    if vqa:
        assert (cfg.model.rank_topk, cfg.model.max_question_len) == (128, 35)
        assert (cfg.model.generation.num_beams, cfg.model.generation.max_new_tokens) == (3, 10 - 1)


@pytest.mark.parametrize('path', [path for path in CONFIGS if path.parent.name == 'blip2'], ids=ids)
def test_answers_are_asked_for_and_generated_as_published(path):
    cfg = run_config.load_config(str(path))
    asks = cfg.model.type == 'Blip2Generation' and 'test_dataloader' in cfg
    assert asks == (path.stem in ANSWERS), 'say how this config generates'
    if not asks:
        return
    settings, prompt, qformer_text, size = ANSWERS[path.stem]
    generation = {**DEFAULTS, **cfg.model.generation}
    assert set(generation) == set(DEFAULTS), 'nothing else is set'
    assert tuple(generation[key] for key in DEFAULTS) == settings
    assert cfg.model.vision.image_size == size
    for split in ('train', 'val', 'test'):
        if f'{split}_dataloader' not in cfg:
            continue
        dataset = cfg[f'{split}_dataloader'].dataset
        for source in dataset.get('datasets', [dataset]):
            if any(step.type == 'PrefixSplit' for step in source.pipeline):
                continue  # each caption is its own prompt
            asked, = (step for step in source.pipeline if step.type in ('CaptionPrompt', 'VQAPrompt'))
            said = asked.get('template') if asked.type == 'VQAPrompt' else asked.get('prompt')
            assert (said, asked.get('qformer_text')) == (prompt, qformer_text), split


@pytest.mark.parametrize('path', [path for path in CONFIGS if path.parent.name == 'blip2'], ids=ids)
def test_retrieval_re_ranks_as_published(path):
    """Paper, table 9: the best 128 of each query. LAVIS reads 35 tokens in its evaluation and trains with 32."""
    cfg = run_config.load_config(str(path))
    assert (cfg.model.type == 'Blip2Representation') == ('_stage1' in path.stem or 'retrieval' in path.stem)
    if cfg.model.type == 'Blip2Representation':
        loops = [cfg[key].k_test for key in ('val_cfg', 'test_cfg') if key in cfg]
        assert loops and set(loops) == {128}
        assert cfg.model.max_text_len == (32 if 'train_dataloader' in cfg else 35)


def test_smollm2_is_counted_without_its_folder(monkeypatch, real_parts, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = run_config.load_config(str(ROOT / 'configs' / 'flickr8k' / 'stage2.py'))
    counts = count_parameters(build_on_meta(cfg.model))['parts']
    assert counts['language_model'] == dict(trainable=0, frozen=134515008)  # as the model in the package has


FOLDERS = sorted({path.parent for path in CONFIGS})


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_the_lists_of_configs_are_whole(folder):
    """README and metafile of a folder name every config of it, and nothing that is not there."""
    leaves = {path.name for path in folder.glob('*.py')}
    assert set(re.findall(r'\]\(([^)/]+\.py)\)', (folder / 'README.md').read_text(encoding='utf-8'))) == leaves
    metafile = yaml.safe_load((folder / 'metafile.yml').read_text(encoding='utf-8'))
    assert {model['Config'] for model in metafile['Models']} == {f'configs/{folder.name}/{leaf}' for leaf in leaves}
    collections = {collection['Name']: collection for collection in metafile['Collections']}
    assert {collection['README'] for collection in collections.values()} == {f'configs/{folder.name}/README.md'}
    assert {model['In Collection'] for model in metafile['Models']} == set(collections)


def test_the_index_imports_every_metafile_and_no_name_stands_twice():
    files = yaml.safe_load((ROOT / 'model-index.yml').read_text(encoding='utf-8'))['Import']
    assert sorted(files) == [f'configs/{folder.name}/metafile.yml' for folder in FOLDERS]
    metafiles = [yaml.safe_load((ROOT / file).read_text(encoding='utf-8')) for file in files]
    for key in ('Models', 'Collections'):
        names = [entry['Name'] for metafile in metafiles for entry in metafile[key]]
        assert len(set(names)) == len(names)


def test_a_figure_of_a_metafile_stands_in_the_header_of_its_config_too():
    """And in README.md, where it was measured."""
    measured = (ROOT / 'README.md').read_text(encoding='utf-8')
    count = 0
    for folder in FOLDERS:
        for model in entries(folder.name):
            text = header(ROOT / model['Config'])
            figures = [value for result in model['Results'] or [] for value in result['Metrics'].values()]
            assert figures or re.search('not measured|no metric|no figure', text), model['Config']
            for figure in figures:
                assert re.search(rf'(?<![\d.]){re.escape(str(figure))}0?(?![\d]|\.\d)', text), (model['Config'], figure)
                assert folder.name in ('blip', 'blip2') or f' {figure} ' in measured, (model['Config'], figure)
                count += 1
    assert count > 30


def test_every_name_has_its_config_and_says_where_weights_and_figures_are_from():
    for model in entries():
        name, weights, origin = model['Name'], model.get('Weights'), model.get('Converted From')
        assert (ROOT / model['Config']).is_file(), name
        assert isinstance(model['Metadata']['Parameters'], int), name
        assert (weights is None) == (origin is None), name
        if weights is not None:
            assert all(url.startswith('https://') for url in origin.values())
            # nobody says from which file this one was made
            unknown = {'Weights'} if name == 'blip-image-captioning-large' else set()
            assert set(origin) == {'Weights', 'Code'} - unknown
            found = PUBLISHED.get(weights.rpartition('/')[2]) or f'https://huggingface.co/Salesforce/{name}'
            assert weights == found, 'get_model and a path of that name mean one file'
            original = origin.get('Weights', weights)
            assert original == weights or PUBLISHED[original.rpartition('/')[2]] == original, name
        if model['Config'].startswith(('configs/blip2/', 'configs/blip/')):
            assert ('Metrics From' in model['Metadata']) == bool(model['Results']), name


def test_every_published_file_has_a_name():
    named = {entry['Weights'] for entry in entries() if entry.get('Weights')}
    parts = {PUBLISHED[name] for name in (
        'eva_vit_g.pth', 'clip_vit_L.pth', 'bert-base-uncased', 'deit_base_patch16_224-b5f2ef4d.pth',
        'vit_large_patch16_224.augreg_in21k', 'coco/annotations/answer_list.json',
        'okvqa_answer_list_train.json', 'specialized_vocab_train.json')}
    assert set(PUBLISHED.values()) - parts <= named
    hub = ['blip2-opt-2.7b', 'blip2-opt-6.7b', 'blip2-opt-2.7b-coco', 'blip2-opt-6.7b-coco', 'blip2-flan-t5-xl',
           'blip2-flan-t5-xl-coco', 'blip2-flan-t5-xxl', 'blip2-itm-vit-g', 'blip2-itm-vit-g-coco',
           'instructblip-vicuna-7b', 'instructblip-vicuna-13b', 'instructblip-flan-t5-xl', 'instructblip-flan-t5-xxl',
           'blip-image-captioning-base', 'blip-image-captioning-large', 'blip-vqa-base', 'blip-vqa-capfilt-large',
           'blip-itm-base-coco', 'blip-itm-large-coco', 'blip-itm-base-flickr', 'blip-itm-large-flickr']
    assert {f'https://huggingface.co/Salesforce/{name}' for name in hub} <= named
    assert all(entry['Name'] in hub for entry in entries() if 'huggingface.co' in (entry.get('Weights') or ''))


def annotation_files(node, root=''):
    """Every annotation file in a config, below the data root of its data set."""
    if isinstance(node, dict):
        root = node.get('data_root') or root
        for key in ('ann_file', 'question_file', 'candidates'):
            if isinstance(node.get(key), str) and node[key]:
                yield os.path.normpath(os.path.join('' if key == 'candidates' else root, node[key]))
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from annotation_files(item, root)


@pytest.mark.parametrize('path', [path for path in CONFIGS if path.parent.name != 'quickstart'],
                         ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_annotation_files_are_said_to_be_prepared_or_described(path):
    """The trees of docs/dataset_prepare.md, which the tests of the tools compare with what they write, or the README
    beside the config."""
    page = (ROOT / 'docs' / 'dataset_prepare.md').read_text(encoding='utf-8')
    prepared = {}
    for block in re.findall(r'```text\n(data/.*?)```', page, re.S):
        prepared.setdefault(block.split()[0].split('/')[1], set()).update(block.split())
    readme = path.with_name('README.md')
    words = readme.read_text(encoding='utf-8').split() if readme.is_file() else []
    described = {re.sub(r'{.*?}', name, word) for word in words
                 for name in (re.findall(r'{(.*?)}', word) or [''])[0].split(',')}
    cfg = Config.fromfile(path)
    for file in annotation_files([cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')] + [
            cfg.get('model')]):
        home = file.split('/')[1]
        assert Path(file).name in prepared.get(home, ()) or file in described, file
