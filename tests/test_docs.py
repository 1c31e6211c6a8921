"""The pages of docs/ run: their files are written, their commands called, with small parts of the same kinds."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.errors import ConfigError

ROOT = Path(__file__).parents[1]
CAPTIONS = ['a small red circle', 'two green stars', 'one yellow cross', 'there are three objects']
SMALL_QFORMER = ['model.qformer.num_layers=2', 'model.qformer.width=32', 'model.qformer.num_heads=2',
                 'model.qformer.mlp_width=64', 'model.qformer.vision_width=32', 'model.qformer.num_query=4']
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=4',
         'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0', 'test_dataloader.num_workers=0',
         'optim_wrapper.dtype=float32', 'default_hooks.logger.interval=1']


def blocks(page):
    """(language, title, text) of the fenced blocks of a page."""
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    return re.findall(r'^```(\w+)(?: title=(\S+))?\n(.*?)^```$', text, re.M | re.S)


def write_files(page, folder):
    for _, title, text in blocks(page):
        if title:
            path = folder / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def commands(page):
    return [line for language, _, text in blocks(page) if language == 'bash' for line in text.splitlines()]


def call(command, folder, **environment):
    """Run a line of a page with this Python; a training or a test with the small sizes."""
    words = command.split()
    assert words[0] == 'python'
    if words[1] in ('tools/train.py', 'tools/test.py'):
        stage1 = 'stage1' in words[2]
        words += ['--cfg-options', *SHORT, *SMALL_QFORMER, *(['model.qformer.vocab_size=130'] if stage1 else [
            'model.language_model.dtype=float32', 'model.generation.max_new_tokens=3', 'model.generation.num_beams=2'])]
    elif words[1].endswith('capfilt.py'):
        words += ['--threshold', '0']  # two iterations teach no filter
    run = subprocess.run([sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=300,
                         env={**os.environ, 'PYTHONPATH': str(ROOT), **environment})
    assert run.returncode == 0, f'{command}\n{run.stdout[-2000:]}\n{run.stderr[-3000:]}'
    return run.stdout


@pytest.fixture(scope='module')
def project(tmp_path_factory, bert_folder, opt_folder):
    """A checkout with the data and the parts of own_data.md, all small, after its commands have run."""
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertModel,
        Qwen2Config,
        Qwen2ForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
    )
    folder = tmp_path_factory.mktemp('checkout')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 20, 24, 3), dtype=np.uint8)
    images = [f'{i + 1:04d}.jpg' for i in range(8)]
    (folder / 'data/mine/images').mkdir(parents=True)
    (folder / 'data/folder').mkdir()
    for i, (name, array) in enumerate(zip(images, pixels)):
        Image.fromarray(array).save(folder / 'data/mine/images' / name)
        Image.fromarray(array).save(folder / 'data/folder' / name)
        (folder / 'data/folder' / name).with_suffix('.txt').write_text('\n'.join(CAPTIONS[i % 2:]))
    (folder / 'data/mine/train.json').write_text(json.dumps(
        [dict(image=name, caption=CAPTIONS[i:i + 2]) for i, name in enumerate(images[:4])]))

    pretrained, size = folder / 'data/pretrained', dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                                         intermediate_size=64)
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(image_size=224, patch_size=56, **size)).save_pretrained(pretrained / 'siglip')
    tokenizer = AutoTokenizer.from_pretrained(opt_folder)
    tokenizer.save_pretrained(pretrained / 'qwen')
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=128,
                                 **size)).save_pretrained(pretrained / 'qwen')
    bert = AutoTokenizer.from_pretrained(bert_folder)
    bert.save_pretrained(pretrained / 'bert-base-uncased')
    BertModel(BertConfig(vocab_size=len(bert), **size)).save_pretrained(pretrained / 'bert-base-uncased')

    write_files('own_data.md', folder)
    outputs = [call(command, folder) for command in commands('own_data.md')]
    return folder, outputs


def test_own_data_trains_both_stages_and_is_used(project):
    folder, (stage1, stage2, tested, used, _) = project
    assert 'i2t/retrieval/Recall@1' in stage1 and '(itc ' in stage1
    assert 'caption/CIDEr' in stage2 and 'train 2/2  loss ' in stage2
    assert 'caption/CIDEr' in tested
    assert len(list((folder / 'work_dirs/my_stage2/pictures').rglob('*.png'))) == 2
    best, caption = used.strip().splitlines()[-2:]
    assert "'match_score'" in best and "'pred_caption'" in caption


def test_own_data_are_bootstrapped(project):
    from mmblip2.datasets import ImageTextPairs
    folder, outputs = project
    shown = re.search(r'web texts: 7 kept, 0 dropped, 0 empty\nsynthetic texts: (\d+) kept', outputs[-1])
    assert 'captioner and filter have the same encoder' in outputs[-1]
    setting = next(text for language, title, text in blocks('own_data.md') if 'ImageTextPairs' in text and not title)
    settings = eval(setting, dict(dict=dict))
    settings.pop('type')
    dataset = ImageTextPairs(**dict(settings, ann_file=str(folder / settings['ann_file']),
                                    data_prefix=dict(img_path=str(folder / settings['data_prefix']['img_path']))))
    texts = [text for i in range(len(dataset)) for text in dataset.get_data_info(i)['captions']]
    assert len(texts) == 7 + int(shown[1])


def test_parts_from_outside_are_used(project):
    folder, _ = project
    write_files('extend.md', folder)
    export, *calls = commands('extend.md')
    name, value = export.removeprefix('export ').split('=')
    for command in calls:
        call(command, folder, **{name: os.pathsep.join([value, str(ROOT)])})
    metrics = json.loads((folder / 'work_dirs/one_token/metrics.json').read_text())
    assert 0 <= metrics['words/known'] <= 100
    assert len(json.loads((folder / 'work_dirs/one_token/predictions/words.json').read_text())) == 8
    code = ('import my_project.parts\n'
            'from mmblip2 import get_model\n'
            'model = get_model("work_dirs/one_token")\n'
            'import torch\n'
            'print(type(model).__name__, tuple(model.visual_prefix(torch.zeros(1, 3, 224, 224), [None]).shape))')
    run = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, timeout=120,
                         env={**os.environ, name: os.pathsep.join([value, str(ROOT)])})
    assert 'OneTokenGeneration (1, 1, 32)' in run.stdout, run.stderr[-2000:]


def test_a_module_that_is_not_on_the_path_is_named(project):
    folder, _ = project
    write_files('extend.md', folder)
    run = subprocess.run([sys.executable, 'tools/train.py', 'my_project/one_token.py'], cwd=folder, timeout=120,
                         capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert run.returncode == 2
    assert 'my_project.parts' in run.stderr and 'PYTHONPATH' in run.stderr and 'Traceback' not in run.stderr


def test_links_of_the_pages_lead_somewhere():
    pages = [ROOT / 'README.md', *ROOT.glob('docs/*.md'), *ROOT.glob('configs/*/README.md')]
    for page in pages:
        text = re.sub(r'`[^`\n]+`', '', page.read_text(encoding='utf-8'))  # calls look like links
        for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
            assert (page.parent / target).exists(), f'{page}: {target}'


def settings(page, part):
    """The settings of a part, ``vision`` for example, that the tables of a page have, as they stand there."""
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    return {re.search(r"type='(\w+)'", setting)[1]: setting
            for setting in re.findall(rf'^\|.*`{part}=(dict\(.*?\))`', text, re.M)}


def build(setting, **own):
    """Build what a table says, with own values for its words in capitals."""
    from mmengine.registry import DefaultScope

    from mmblip2.registry import MODELS
    assert set(re.findall(r'=([A-Z]+)\b', setting)) <= set(own)
    with DefaultScope.overwrite_default_scope('mmblip2'):
        return MODELS.build(eval(setting, dict(own)))


def test_the_other_parts_are_all_tried_here():
    assert set(settings('own_data.md', 'vision')) == {'MMPretrainBackbone', 'FeatureMapEncoder'}
    assert set(settings('own_data.md', 'language_model')) == {'Seq2SeqLM'}


def test_an_mmpretrain_backbone_is_set_as_the_page_says(tmp_path):
    pytest.importorskip('mmpretrain')
    setting = settings('own_data.md', 'vision')['MMPretrainBackbone']
    assert "arch='base'" in setting
    small = setting.replace("arch='base'", "arch='atto'")
    encoder = build(small.replace(', weights=FILE', ''))
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in encoder.module.state_dict().items()}},
               tmp_path / 'convnext.pth')
    loaded = build(small, FILE=str(tmp_path / 'convnext.pth')).eval()
    images = torch.randn(1, 3, 224, 224)
    assert loaded.embed_dim == 320 and loaded(images).shape == (1, 49, 320), 'a token for each of 7 x 7 regions'
    assert torch.equal(loaded(images), encoder.eval()(images))
    # which is why the page sets it
    with pytest.raises(ConfigError, match=r'of shape \(1, 320\), expected a feature map'):
        build(small.replace(', weights=FILE', '').replace('gap_before_final_norm=False, ', ''))
    widths = type(loaded.module).arch_settings['base']['channels']
    assert f'{widths[-1]} for this ConvNeXt' in (ROOT / 'docs' / 'own_data.md').read_text(encoding='utf-8')


def test_a_torch_module_is_set_as_the_page_says(tmp_path, monkeypatch):
    (tmp_path / 'package_of_the_page.py').write_text(
        'from torch import nn\n\n\n'
        'class Net(nn.Module):\n'
        '    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 6, 32, stride=32)\n\n'
        '    def forward_features(self, images):\n        return self.conv(images)\n\n'
        '    def forward(self, images):\n        return self.conv(images).mean((2, 3))\n\n\n'
        'def net():\n    return Net()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    import package_of_the_page
    torch.save(package_of_the_page.net().state_dict(), tmp_path / 'net.pth')
    setting = settings('own_data.md', 'vision')['FeatureMapEncoder']
    assert 'PACKAGE.FUNCTION' in setting
    encoder = build(setting.replace('PACKAGE.FUNCTION', 'package_of_the_page.net'),
                    FILE=str(tmp_path / 'net.pth'), METHOD='forward_features')
    assert encoder.embed_dim == 6 and encoder(torch.zeros(1, 3, 224, 224)).shape == (1, 49, 6)


def test_flan_t5_is_set_as_the_page_says(tmp_path, opt_folder):
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration
    tokenizer = AutoTokenizer.from_pretrained(opt_folder)
    tokenizer.save_pretrained(tmp_path)
    T5ForConditionalGeneration(T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=tokenizer.pad_token_id)).save_pretrained(tmp_path)
    model = build(settings('own_data.md', 'language_model')['Seq2SeqLM'], FOLDER=str(tmp_path))
    assert next(model.parameters()).dtype == torch.bfloat16


def test_eight_gpus_write_where_stage_2_looks():
    text = (ROOT / 'docs' / 'own_data.md').read_text(encoding='utf-8')
    options, = re.findall(r'`bash tools/dist_train.sh my_project/stage1.py 8(.*?)`', text)
    source, = re.findall(r"^load_from = '(\S+)'", text, re.M)
    assert options == f' --work-dir {source}'
    assert f'python tools/train.py my_project/stage1.py --work-dir {source}' in commands('own_data.md')
