"""Every row of docs/coming_from.md and every block of docs/inference.md runs as it stands there, with small models
behind the published names."""
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tests' / 'data'))
from published_models import HUB, published  # noqa: E402

from mmblip2.errors import CheckpointError, ConfigError  # noqa: E402

PAGE = (ROOT / 'docs' / 'coming_from.md').read_text(encoding='utf-8')
# LAVIS's model zoo as far as it is BLIP, BLIP-2 or InstructBLIP: class, and type to file.
STAGE_1 = dict(pretrain='blip2_pretrained.pth', pretrain_vitL='blip2_pretrained_vitL.pth',
               coco='blip2_finetune_coco.pth')
ZOO = {
    'blip2_feature_extractor': STAGE_1,
    'blip2_image_text_matching': STAGE_1,
    'blip2_opt': {
        'pretrain_opt2.7b': 'blip2_pretrained_opt2.7b.pth', 'pretrain_opt6.7b': 'blip2_pretrained_opt6.7b.pth',
        'caption_coco_opt2.7b': 'blip2_caption_opt2.7b.pth', 'caption_coco_opt6.7b': 'blip2_caption_opt6.7b.pth'},
    'blip2_t5': {
        'pretrain_flant5xl': 'blip2_pretrained_flant5xl.pth', 'pretrain_flant5xxl': 'blip2_pretrained_flant5xxl.pth',
        'pretrain_flant5xl_vitL': 'blip2_pretrained_flant5xl_vitL.pth',
        'caption_coco_flant5xl': 'blip2_caption_flant5xl.pth'},
    'blip2_t5_instruct': dict(flant5xl='instruct_blip_flanxl_trimmed.pth',
                              flant5xxl='instruct_blip_flanxxl_trimmed.pth'),
    'blip2_vicuna_instruct': dict(vicuna7b='instruct_blip_vicuna7b_trimmed.pth',
                                  vicuna13b='instruct_blip_vicuna13b_trimmed.pth'),
    'blip_caption': dict(base_coco='blip_coco_caption_base.pth', large_coco='model_large_caption.pth'),
    'blip_vqa': dict(vqav2='model_base_vqa_capfilt_large.pth', okvqa='blip_okvqa.pth', aokvqa='blip_aokvqa.pth'),
    'blip_retrieval': dict(coco='blip_coco_retrieval.pth', flickr='blip_flickr_retrieval.pth'),
    'blip_image_text_matching': dict(base='model_base_retrieval_coco.pth', large='model_large_retrieval_coco.pth'),
    'blip_feature_extractor': dict(base='model_base_capfilt_large.pth'),
    'blip_pretrain': dict(base='model_base_capfilt_large.pth'), 'blip_nlvr': dict(nlvr='model_base_nlvr.pth')}
# What else users of the three know by name and has to stand on the left.
KNOWN = {
    'blip2', 'blip2_vicuna_xinstruct', 'blip_diffusion', 'blip_classification', 'img2prompt_vqa', 'pnp_vqa',
    'Blip2Config', 'Blip2VisionConfig', 'Blip2QFormerConfig', 'Blip2VisionModel', 'Blip2QFormerModel',
    'Blip2ForImageTextRetrieval', 'Blip2VisionModelWithProjection', 'Blip2TextModelWithProjection', 'Blip2Model',
    'Blip2Model.get_image_features', 'Blip2Model.get_qformer_features', 'Blip2Model.get_text_features',
    'Blip2ForConditionalGeneration', 'Blip2ForConditionalGeneration.generate', 'AutoModel',
    'AutoModelForImageTextToText', 'AutoModelForVisualQuestionAnswering', 'AutoModelForVision2Seq', 'Blip2Processor',
    'BlipProcessor', 'BlipImageProcessor', 'InstructBlipForConditionalGeneration', 'InstructBlipProcessor',
    'BlipModel', 'BlipForConditionalGeneration', 'BlipForQuestionAnswering', 'BlipForImageTextRetrieval',
    'BlipForConditionalGeneration.generate', 'BlipVisionModel', 'BlipTextModel', 'BlipConfig', 'BlipVisionConfig',
    'BlipTextConfig', *HUB,
    'list_models', 'get_model', 'init_model(config, checkpoint)', 'ImageCaptionInferencer',
    'VisualQuestionAnsweringInferencer', 'TextToImageRetrievalInferencer', 'ImageToTextRetrievalInferencer',
    'VisualGroundingInferencer', 'NLVRInferencer', 'FeatureExtractor', 'UniversalVisualizer.visualize_*',
    'tools/train.py', 'tools/test.py', 'tools/dist_train.sh', 'tools/dist_test.sh', 'tools/slurm_train.sh',
    'tools/slurm_test.sh', 'tools/kfold-cross-valid.py', 'tools/analysis_tools/analyze_logs.py',
    'tools/analysis_tools/eval_metric.py', 'tools/analysis_tools/get_flops.py', 'tools/visualization/vis_scheduler.py',
    'tools/misc/print_config.py', 'tools/misc/verify_dataset.py',
    'tools/visualization/browse_dataset.py', 'tools/model_converters/publish_model.py', 'demo/image_demo.py',
    'COCOCaption', 'COCORetrieval', 'COCOVQA', 'VisualGenomeQA', 'VGVQA', 'Flickr30kCaption', 'Flickr30kRetrieval',
    'NoCaps', 'GQA', 'OCRVQA', 'TextVQA', 'VizWiz', 'VSR', 'ScienceQA', 'IconQA', 'InfographicVQA', 'RefCOCO', 'NLVR2',
    'FlamingoEvalCOCOCaption', 'FlamingoEvalCOCOVQA', 'MiniGPT4Dataset', 'VQAAcc', 'GQAAcc', 'ANLS', 'ReportVQA',
    'NocapsSave', 'RetrievalRecall', 'RetrievalAveragePrecision', 'VisualGroundingMetric', 'ScienceQAMetric',
    'RetrievalValLoop', 'RetrievalTestLoop', 'blip2-opt2.7b_8xb32_caption', 'blip2-opt2.7b_8xb16_vqa',
    'blip2-opt2.7b_8xb16_gqa', 'blip2_8xb32_retrieval', 'blip-base_8xb32_caption',
    'blip-base_8xb32_caption_flickr30k', 'blip-base_8xb32_nocaps', 'blip-base_8xb32_vqa', 'blip-base_8xb32_okvqa',
    'blip-base_8xb32_retrieval', 'blip-base_8xb32_retrieval_flickr30k', 'blip-base_8xb32_nlvr',
    'blip-base_8xb16_refcoco', 'blip-base_8xb32_ocrvqa', 'BlipCaption', 'BlipVQA', 'BlipRetrieval', 'BlipNLVR',
    'BlipGrounding'}
GUIDE = {'image captioning', 'prompted image captioning', 'visual question answering', 'chat-based prompting'}


def rows():
    """(left cell, right cell) of all tables."""
    lines = [line for line in PAGE.splitlines() if line.startswith('|')]
    heads = {i for i, line in enumerate(lines) for i in (i - 1, i) if not set(line) - set('|-')}
    found = [tuple(cell.strip() for cell in line.strip('|').split('|')) for i, line in enumerate(lines)
             if i not in heads]
    assert all(len(cells) == 2 for cells in found), found
    return found


def spans(cell):
    return re.findall('`([^`]+)`', cell)


def calls(cell):
    """The spans of a right cell that are Python or a command; others are single words."""
    found = [span for span in spans(cell) if '(' in span or ' ' in span]
    assert all(re.fullmatch(r'\w+', span) for span in spans(cell) if span not in found), cell
    return found


ROWS = rows()
RUNNING = [(left, right) for left, right in ROWS if calls(right)]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Names of the weights that calls look for; the working directory is one in which all of them run."""
    root = tmp_path_factory.mktemp('world')
    with pytest.MonkeyPatch.context() as patch, published(root, patch) as looked_for:
        (root / 'answers.json').write_text('[{"question_id": 1000, "answer": "green"}, {"question_id": 2000, "answer": '
                                           '"two"}, {"question_id": 3000, "answer": "no"}]')
        run_tool('tools/train.py', ['configs/blip2/blip2-opt2.7b_stage2.py'])
        yield looked_for


@pytest.fixture(scope='module')
def names(world):
    """What the Python blocks of the page define."""
    namespace: dict = {}
    for block in re.findall(r'^```python\n(.*?)^```$', PAGE, re.M | re.S):
        exec(block, namespace)
    return namespace


def run_tool(path, argv):
    """What ``python path argv`` does, in this process."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(argv)


def run_launcher(words, folder):
    """Call a launcher with a Python that only writes down how it was called; the tool must know those words."""
    told = folder / 'told'
    for name in ('python', 'srun'):
        (folder / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {told}\n')
        (folder / name).chmod(0o755)
    environment = {**os.environ, 'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}'}
    environment.pop('PYTHON', None)
    subprocess.run(words, env=environment, check=True, timeout=60)
    said = told.read_text().splitlines()
    script = next(word for word in said if word.endswith(('train.py', 'test.py')))
    spec = importlib.util.spec_from_file_location('tool', script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = module.parse_args(said[said.index(script) + 1:])
    assert args.launcher == ('slurm' if 'slurm' in words[1] else 'pytorch') and Path(args.config).is_file()
    return args


def run(call, names, folder):
    """The result of a call, or None of a command."""
    words = shlex.split(call) if call.startswith(('python ', 'bash ')) else []
    if not words:
        return eval(call, names)
    if words[0] == 'bash':
        return run_launcher(words, folder)
    return run_tool(words[1], words[2:])


def test_every_known_name_has_a_row():
    left = [span for row in ROWS for span in spans(row[0])]
    assert KNOWN - set(left) == set()
    assert {row[0] for row in ROWS} >= GUIDE
    found = {tuple(spans(row[0])) for row in ROWS}
    assert {(name, kind) for name, kinds in ZOO.items() for kind in kinds} <= found
    assert len(ROWS) == len({row[0] for row in ROWS}), 'no row stands twice'


def test_what_has_no_call_is_said_plainly():
    silent = {row for row in ROWS if row not in RUNNING}
    assert {right for _, right in silent} == {'not here'}
    allowed = {'blip2_vicuna_xinstruct', 'vicuna7b', 'vicuna13b', 'blip_diffusion', 'base', 'canny', 'depth', 'hed',
               'InstructBlipVideoForConditionalGeneration', 'VisualGroundingInferencer', 'tools/kfold-cross-valid.py',
               'blip_classification', 'img2prompt_vqa', 'pnp_vqa', 'blip-base_8xb16_refcoco', 'blip-base_8xb32_ocrvqa',
               'BlipGrounding', 'OCRVQA', 'VizWiz', 'VSR', 'ScienceQA', 'IconQA', 'InfographicVQA', 'RefCOCO',
               'FlamingoEvalCOCOCaption', 'FlamingoEvalCOCOVQA', 'MiniGPT4Dataset', 'RetrievalAveragePrecision',
               'VisualGroundingMetric', 'ScienceQAMetric'}
    assert {span for left, right in silent if right == 'not here' for span in spans(left)} == allowed
    assert len(RUNNING) + len(silent) == len(ROWS) and len(RUNNING) > 90


@pytest.mark.parametrize('left, right', RUNNING, ids=[left.replace('`', '') for left, _ in RUNNING])
def test_a_row_runs(left, right, world, names, tmp_path):
    for call in calls(right):
        world.clear()
        written = outputs(call)
        assert not any(path.is_file() for path in written)
        for path in written:
            shutil.rmtree(path, ignore_errors=True)
        check(call, run(call, names, tmp_path))
        assert [path for path in written if not path.exists()] == [], 'what a call writes'
        name = spans(left)[0] if spans(left) else ''
        if name in ZOO:
            assert ZOO[name][spans(left)[1]] in world, 'the file of that type'
        if name in HUB:
            assert name in world, 'the folder of that name'


def outputs(call):
    """Files and folders that a call writes by what it says."""
    groups = re.findall(r" (?:--out|--show-dir|--dump|-s) (\S+)|show_dir='(\w+)'|(exported)$", call)
    return [Path(path) for paths in groups for path in paths if path]


def check(call, found):
    """Whether a result is what such a call gives."""
    kinds = [(pattern, right) for pattern, right in RESULTS.items() if re.search(pattern, call)]
    assert kinds, f'say what {call} gives'
    assert kinds[0][1](found), found


def are(*keys):
    """A test of one result, or of the results in a list (of lists): it has these keys and no others."""
    def right(found):
        if isinstance(found, list):
            return bool(found) and all(map(right, found))
        return set(found) == set(keys) and all(one is not None for one in found.values())
    return right


def is_tensor(*shape):
    return lambda found: isinstance(found, torch.Tensor) and bool(found.isfinite().all()) and len(found) == shape[0]


def is_built(found):
    """A data set whose first sample is read, a metric, a loop, or a class of models."""
    import mmblip2.datasets
    import mmblip2.engine
    import mmblip2.evaluation  # noqa: F401
    from mmblip2.registry import DATASETS, LOOPS, METRICS, MODELS
    kind = found['type']
    if kind.startswith('Blip'):
        return MODELS.get(f'mmblip2.{kind}') is not None
    if 'data_root' in found:
        read = dict(type='mmblip2.LoadImage')
        pipeline = [dict(type='mmblip2.EachImage', transforms=[read]) if kind == 'NLVR2' else read]
        rows = DATASETS.build(dict(found, test_mode=True, pipeline=pipeline, _scope_='mmblip2'))
        image = rows[0]['image']
        return len(rows) > 0 and all(one.size[0] > 0 for one in (image if isinstance(image, list) else [image]))
    if kind.endswith('Loop'):
        return LOOPS.get(f'mmblip2.{kind}') is not None
    return METRICS.build(dict(found, _scope_='mmblip2')) is not None


RESULTS = {  # the first that fits a call
    r'^dict\(type=': is_built,
    r"\['(pred_caption|pred_answer)'\]$": lambda found: isinstance(found, str),
    r"\['it[mc]_score'\]$": lambda found: -1 <= found <= 1,
    r"\['image_embeds_proj'\]$": is_tensor(1),
    r'^inference_model\(.*prototype=': are('match_score', 'sample_idx', 'text'),
    r'^inference_model\(.*texts=': are('itm_score', 'itc_score'),
    r'^(NLVRInferencer\(|inference_model\(.*nlvr)': are('pred_scores', 'pred_label', 'pred_score'),
    r'^inference_model\(.*, image, question': are('question', 'pred_answer'),
    r'^inference_model\(': are('pred_caption'),
    r'^(caption|ImageCaptionInferencer\(.*?\))\(.*num_captions=3': lambda found: len(found[0]['pred_caption']) == 3,
    r'pipeline_steps\(\)$': lambda found: any(step['type'] == 'CaptionPrompt' for step in found),
    r'^(caption\(|ImageCaptionInferencer\()': are('pred_caption'),
    r'^(answer\(|VisualQuestionAnsweringInferencer\()': are('question', 'pred_answer'),
    r'^(match\(|ImageTextMatchingInferencer\()': are('itm_score', 'itc_score'),
    r'^TextToImageRetrievalInferencer\(': lambda found: len(found) == len(found[0]) == 2 and are(
        'match_score', 'sample_idx', 'sample')(found),
    r'^ImageToTextRetrievalInferencer\(': lambda found: len(found[0]) == 2 and are(
        'match_score', 'sample_idx', 'text')(found),
    r"mode='image'\)$": are('image_embeds', 'image_embeds_proj'),
    r"mode='text'\)$": are('text_embeds', 'text_embeds_proj', 'text_mask'),
    r"mode='multimodal'\)$|extract_features\(image, texts\[0\]\)$": lambda found: are('multimodal_embeds')(
        {key: value for key, value in found.items() if key != 'text_mask'}),
    r'get_text_features\(texts': is_tensor(2),
    r"get_(image|qformer)_features\(|\['images'\]$": is_tensor(1),
    r'^FeatureExtractor\(.*\)\(image\)$': are('image_embeds', 'image_embeds_proj'),
    r'^list_models\(': lambda found: 'blip2-opt2.7b_3rdparty-zeroshot_vqa' in found,
    r'^get_model\(.*\)\.tokenizer$': lambda found: found(['two green stars'], 9).mask.shape[0] == 1,
    r'^get_model\(': lambda found: isinstance(found, torch.nn.Module) and not found.training,
    r'^bash ': lambda args: args is not None,
    r'^python ': lambda found: True,
}


# --------------------------------------------------------------------------------------- docs/inference.md

INFERENCE = (ROOT / 'docs' / 'inference.md').read_text(encoding='utf-8')


def test_the_python_of_the_other_page_runs(world):
    """Line by line; where a comment gives a shape, it has as many sides."""
    import ast
    namespace: dict = {}
    shapes = 0
    for block in re.findall(r'^```python\n(.*?)^```$', INFERENCE, re.M | re.S):
        lines = block.splitlines()
        for node in ast.parse(block).body:
            if not isinstance(node, ast.Expr):
                exec(compile(ast.Module([node], []), 'inference.md', 'exec'), namespace)
                continue
            found = eval(compile(ast.Expression(node.value), 'inference.md', 'eval'), namespace)
            comment = lines[node.end_lineno - 1][node.end_col_offset:]
            said = re.search(r'# \(([A-Z, ]+)\)', comment)
            shapes += said is not None
            assert said is None or len(found) == len(said[1].split(', ')), (comment, found)
            keys = re.search(r'# (\w+(, \w+)+)$', comment)
            if keys and isinstance(found, list):
                one = found[0][0] if isinstance(found[0], list) else found[0]
                assert set(one) == set(keys[1].split(', '))
    assert shapes == 7
    assert len(namespace['chat'].history) == 2


def test_the_commands_of_the_other_page_run(world):
    block, = re.findall(r'^```bash\n(.*?)^```$', INFERENCE, re.M | re.S)
    for command in block.splitlines():
        run(command, {}, None)
    from mmblip2.checkpoints import io
    formats = {name: io.read_checkpoint(name)['format'] for name in ('ours.pth', 'lavis.pth', 'mmpretrain.pth',
                                                                     'huggingface')}
    assert list(formats.values()) == [io.FORMAT, 'LAVIS', 'mmpretrain', 'transformers']
    transformers = pytest.importorskip('transformers')
    theirs = transformers.Blip2ForImageTextRetrieval.from_pretrained('huggingface')
    states = [io.read_checkpoint(name)['state_dict'] for name in ('ours.pth', 'lavis.pth', 'mmpretrain.pth')]
    for state in states:
        assert torch.equal(state['qformer.queries'], theirs.query_tokens)
        assert torch.equal(state['itc_head.temperature'], states[0]['itc_head.temperature'])


def test_the_files_that_the_page_names_are_enough_offline(world):
    """Vision encoder, language model and BERT of the configs are found by their last names."""
    import copy

    from mmblip2 import get_model, inference_model
    said = re.search(r'^Offline, (.*?)\n\n', INFERENCE, re.M | re.S)[1]
    files = ('opt-2.7b/', 'bert-base-uncased/', 'eva_vit_g.pth')
    assert all(f'`{name}`' in said for name in files)
    before = get_model('blip2-opt2.7b_stage2')
    for name, reads in (('blip2-opt2.7b_stage2', ('opt-2.7b/', 'eva_vit_g.pth')),
                        ('blip2_vit-g_stage1', ('bert-base-uncased/', 'eva_vit_g.pth'))):
        model = get_model(name)
        cfg, weights = copy.deepcopy(model._config), Path('weights')
        cfg.model.update(allow_random=False, vision=dict(weights='data/pretrained/eva_vit_g.pth'))
        torch.save(before.vision.state_dict(), weights / 'eva_vit_g.pth')
        if 'language_model' in cfg.model:
            before.language_model.model.save_pretrained(weights / 'opt-2.7b')
            before.language_model.tokenizer.save_pretrained(weights / 'opt-2.7b')
            cfg.model.language_model = dict(type='CausalLM', model='facebook/opt-2.7b', dtype='float32')
        else:
            model.tokenizer.tokenizer.save_pretrained(weights / 'bert-base-uncased')
            cfg.model.tokenizer.path = 'data/pretrained/bert-base-uncased'
        built = get_model(cfg, pretrained=model._metainfo['Weights'])
        assert all(torch.equal(a, b) for a, b in zip(before.vision.state_dict().values(),
                                                     built.vision.state_dict().values()))
        if 'language_model' in cfg.model:
            assert inference_model(built, 'photo.jpg') == inference_model(before, 'photo.jpg')
        for file in reads:
            path = weights / file
            path.rename('away')
            with pytest.raises((CheckpointError, ConfigError), match=re.escape(path.name)):
                get_model(cfg, pretrained=model._metainfo['Weights'])
            Path('away').rename(path)
