"""The recipes of configs/blip2 run: every size is shrunk, everything else (pipelines, data sets, losses, groups of
parameters, schedules, hooks) is as shipped."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.utils import config_check

ROOT = Path(__file__).parents[1]
LANGUAGE = dict(
    opt=dict(model_type='opt', hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2,
             num_attention_heads=2, max_position_embeddings=512),
    t5=dict(model_type='t5', d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
            feed_forward_proj='gated-gelu', dense_act_fn='gelu'),
    llama=dict(model_type='llama', hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
               max_position_embeddings=512))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The data folders of configs/blip2/README.md with four images each, below the current folder."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 20, 24, 3), dtype=np.uint8)

    def images(folder, template):
        names = [template.format(i + 1) for i in range(4)]
        for name, array in zip(names, pixels):
            path = tmp_path / 'data' / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        return names

    def write(path, rows):
        path = tmp_path / 'data' / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(map(json.dumps, rows)) if path.suffix == '.jsonl' else json.dumps(rows))

    captions = ['two green stars above one cross', 'there are three objects']
    coco = images('coco', 'val2014/COCO_val2014_{:012d}.jpg')
    write('coco/annotations/coco_karpathy_train.json', [
        dict(image=name, caption=caption, image_id=f'coco_{i}') for i, name in enumerate(coco) for caption in captions])
    for split in ('val', 'test'):
        write(f'coco/annotations/coco_karpathy_{split}.json', [dict(image=name, caption=captions) for name in coco])
    for split in ('train', 'val'):
        images('coco', f'{split}2014/COCO_{split}2014_' + '{:012d}.jpg')
        write(f'coco/annotations/v2_OpenEnded_mscoco_{split}2014_questions.json', dict(questions=[
            dict(question_id=i, image_id=i, question='What color is the star?') for i in range(1, 5)]))
        write(f'coco/annotations/v2_mscoco_{split}2014_annotations.json', dict(annotations=[
            dict(question_id=i, answers=[dict(answer='green')] * 10) for i in range(1, 5)]))
    genome = images('visual_genome', '{}.jpg')
    write('visual_genome/annotations/vg_caption.json', [dict(image=name, caption=captions[0]) for name in genome])
    write('visual_genome/annotations/vg_qa.json', [
        dict(image=name, question='How many objects?', answer='three') for name in genome])
    write('flickr30k/annotations/flickr30k_test.json', [
        dict(image=name, caption=captions) for name in images('flickr30k', '{}.jpg')])
    for web in ('cc3m', 'cc12m', 'sbu', 'laion115m'):
        names = images(f'{web}/images', '0/{}.jpg')
        write(f'{web}/captions.jsonl', [dict(image=name, caption=captions) for name in names])
    return tmp_path


def shrunk(name, bert_folder, opt_folder):
    """The config with small modules, without files of weights, on a CPU."""
    cfg = config_check.load_config(str(ROOT / 'configs' / 'blip2' / f'{name}.py'))
    model = cfg.model
    size = model.vision.image_size
    model.vision.update(patch_size=size // 2, width=16, depth=3, num_heads=2, mlp_width=32, weights=None)
    model.qformer.update(vision_width=16, num_layers=2, width=16, num_heads=2, mlp_width=32, num_query=3)
    if 'bert' in model.qformer:
        model.qformer.bert = None
    if 'tokenizer' in model:
        model.qformer.vocab_size = 130
        model.tokenizer.path = bert_folder
    if 'language_model' in model:
        config = dict(LANGUAGE[model.language_model.config.model_type])
        model.language_model.update(model=None, tokenizer=opt_folder, dtype='float32')
        model.language_model.pop('config')
        model.language_model.config = config
    model.allow_random = True
    cfg.load_from = None
    return cfg


@pytest.mark.parametrize('name, losses, rates', [
    ('blip2_vit-g_stage1', ('loss_itc', 'loss_itm', 'loss_itg'), 1),
    ('blip2-opt2.7b_stage2', ('loss_lm', ), 1),
    ('blip2-flan-t5xl_stage2', ('loss_lm', ), 1),
    ('blip2_vit-g_16xb14_retrieval-coco', ('loss_itc', 'loss_itm', 'loss_itg'), 5),
    ('blip2_vit-l_16xb14_retrieval-coco', ('loss_itc', 'loss_itm', 'loss_itg'), 1),
    ('blip2-opt2.7b_16xb16_caption-coco', ('loss_lm', ), 1),
    ('blip2-flan-t5xl_16xb8_vqa-vqav2', ('loss_lm', ), 5),
])
def test_recipe_trains(name, losses, rates, data, bert_folder, opt_folder):
    from mmblip2.engine import Runner
    cfg = shrunk(name, bert_folder, opt_folder)
    cfg.optim_wrapper.dtype = 'float32'
    cfg.train_dataloader.update(batch_size=4, num_workers=0)
    cfg.train_cfg.update(dict(max_iters=3) if 'max_iters' in cfg.train_cfg else dict(max_epochs=1))
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    if cfg.get('val_evaluator') and cfg.val_evaluator.type == 'COCOCaptionMetric':  # needs Java
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.default_hooks.checkpoint.pop('save_best')
    elif cfg.get('val_dataloader'):
        cfg.val_dataloader.num_workers = 0
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = 'work'
    config_check.check_config(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    logged = [json.loads(line) for line in next(Path('work').glob('*/vis_data/scalars.json')).read_text().splitlines()]
    first = logged[0]
    assert all(0 < first[loss] < 20 for loss in losses)
    assert runner.iter == (3 if 'stage' in name else 2 if 'vqa' not in name else 3)
    groups = runner.optim_wrapper.optimizer.param_groups
    assert len({group['initial_lr'] for group in groups}) == rates
    assert first['lr'] == pytest.approx(groups[0]['initial_lr'] * cfg.param_scheduler[0].start_factor)
    frozen = {name for name, p in runner.model.named_parameters() if not p.requires_grad}
    trained = {id(p) for group in groups for p in group['params']}
    assert len(runner.optim_wrapper.optimizer.state) == len(trained), 'every trained parameter has had a gradient'
    assert len(trained) + len(frozen) == len(list(runner.model.parameters()))
    checkpoint, = (path for path in Path('work').glob('*.pth') if not path.name.startswith('best'))
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert any(key.startswith('vision.') for key in state) == ('stage' not in name)
    assert not any(key.startswith('language_model.') for key in state)
    if 'retrieval' in name:
        assert list(Path('work').glob('best_i2t_retrieval_Recall@1_epoch_1.pth'))


@pytest.mark.parametrize('name, prompt, qformer_text', [
    ('blip2-opt2.7b_8xb32_caption', 'a photo of', None),
    ('blip2-opt2.7b_8xb16_vqa', 'Question: what color is the star? Answer:', None),
    ('blip2-flan-t5xl_8xb16_vqa', 'Question: what color is the star? Short answer:', None),
    ('blip2-opt2.7b_16xb16_caption-coco', 'a photo of', None),
    ('instructblip-vicuna7b_8xb16_caption-flickr30k', 'A short image description.', 'A short image description.'),
    ('instructblip-flan-t5xl_8xb16_caption-flickr30k', 'A short image description.', 'A short image description.'),
])
def test_evaluation_asks_what_the_paper_asks(name, prompt, qformer_text, data, bert_folder, opt_folder, monkeypatch):
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, DefaultScope

    from mmblip2.registry import MODELS
    cfg = shrunk(name, bert_folder, opt_folder)
    cfg.model.generation.max_new_tokens = 3
    cfg.model.generation.pop('min_new_tokens', None)
    with DefaultScope.overwrite_default_scope('mmblip2'):
        dataset, model = DATASETS.build(cfg.test_dataloader.dataset), MODELS.build(cfg.model).eval()
    read = []
    if model.tokenizer is not None:
        call = type(model.tokenizer).__call__
        monkeypatch.setattr(type(model.tokenizer), '__call__',
                            lambda self, texts, *args: (read.extend(texts), call(self, texts, *args))[1])
    batch = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]))
    samples = model(**batch, mode='predict')
    assert [sample.prompt for sample in samples] == [prompt] * 2
    assert all(isinstance(sample.pred_text, str) for sample in samples)
    assert read == ([] if qformer_text is None else [qformer_text] * 2)
