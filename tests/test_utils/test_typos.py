"""Thirty and some misspelt configs: each is found before anything is built, with its place and the right word."""
from pathlib import Path

import pytest

from mmblip2.errors import ConfigError
from mmblip2.utils.config_check import check_config
from mmblip2.utils.run_config import load_config

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'blip2' / 'blip2_vit-g_16xb14_retrieval-coco.py'

# (place of the misspelt key or value, what is written instead, the place in the message, the word in it)
KEYS = [
    ('model', 'modle', 'modle', 'model'),
    ('optim_wrapper', 'optim_wraper', 'optim_wraper', 'optim_wrapper'),
    ('param_scheduler', 'param_schedulers', 'param_schedulers', 'param_scheduler'),
    ('train_dataloader', 'train_dataloder', 'train_dataloder', 'train_dataloader'),
    ('val_evaluator', 'val_evalutor', 'val_evalutor', 'val_evaluator'),
    ('default_hooks', 'defualt_hooks', 'defualt_hooks', 'default_hooks'),
    ('randomness', 'randomnes', 'randomnes', 'randomness'),
    ('load_from', 'load_form', 'load_form', 'load_from'),
    ('default_hooks.checkpoint', 'checkpont', 'default_hooks.checkpont', 'checkpoint'),
    ('default_hooks.logger', 'loger', 'default_hooks.loger', 'logger'),
    ('default_hooks.checkpoint.save_best', 'save_bset', 'default_hooks.checkpoint.save_bset', 'save_best'),
    ('default_hooks.checkpoint.max_keep_ckpts', 'max_keep_ckpt', 'default_hooks.checkpoint.max_keep_ckpt',
     'max_keep_ckpts'),
    ('randomness.seed', 'sed', 'randomness.sed', 'seed'),
    ('optim_wrapper.paramwise_cfg.layer_decay', 'layer_decy', 'optim_wrapper.paramwise_cfg.layer_decy', 'layer_decay'),
    ('optim_wrapper.optimizer.weight_decay', 'weight_decy', 'optim_wrapper.optimizer.weight_decy', 'weight_decay'),
    ('optim_wrapper.optimizer.betas', 'beta', 'optim_wrapper.optimizer.beta', 'betas'),
    ('model.qformer.num_query', 'num_queries', 'model.qformer.num_queries', 'num_query'),
    ('model.qformer.cross_attention_freq', 'cross_attention_frequency', 'model.qformer.cross_attention_frequency',
     'cross_attention_freq'),
    ('model.vision.patch_size', 'patchsize', 'model.vision.patchsize', 'patch_size'),
    ('model.embed_dim', 'embed_dims', 'model.embed_dims', 'embed_dim'),
    ('model.frozen', 'freeze', 'model.freeze', None),
    ('train_dataloader.batch_size', 'batchsize', 'train_dataloader.batchsize', 'batch_size'),
    ('train_dataloader.num_workers', 'num_worker', 'train_dataloader.num_worker', 'num_workers'),
    ('train_dataloader.dataset.ann_file', 'ann_files', 'train_dataloader.dataset.ann_files', 'ann_file'),
    ('train_dataloader.dataset.pipeline.1.scale', 'scales', 'train_dataloader.dataset.pipeline[1].scales', 'scale'),
    ('train_cfg.max_epochs', 'max_epoch', 'train_cfg.max_epoch', None),
    ('val_cfg.k_test', 'k_tests', 'val_cfg.k_tests', 'k_test'),
    ('param_scheduler.0.start_factor', 'start_facter', 'param_scheduler[0].start_facter', 'start_factor'),
]
VALUES = [
    ('model.type', 'Blip2Representatoin', 'model.type', 'Blip2Representation'),
    ('model.vision.type', 'VisionTransfomer', 'model.vision.type', 'VisionTransformer'),
    ('optim_wrapper.type', 'AutocastOptimWraper', 'optim_wrapper.type', 'AutocastOptimWrapper'),
    ('optim_wrapper.optimizer.type', 'AdmaW', 'optim_wrapper.optimizer.type', 'AdamW'),
    ('param_scheduler.1.type', 'CosineAnealingLR', 'param_scheduler[1].type', 'CosineAnnealingLR'),
    ('train_dataloader.sampler.type', 'SeekableSampeler', 'train_dataloader.sampler.type', 'SeekableSampler'),
    ('train_dataloader.dataset.type', 'COCORetreival', 'train_dataloader.dataset.type', 'COCORetrieval'),
    ('train_dataloader.dataset.pipeline.0.type', 'LoadImages', 'train_dataloader.dataset.pipeline[0].type',
     'LoadImage'),
    ('val_cfg.type', 'RetrivalValLoop', 'val_cfg.type', 'RetrievalValLoop'),
    ('val_evaluator.type', 'RetrievalRecal', 'val_evaluator.type', 'RetrievalRecall'),
    ('default_hooks.checkpoint.type', 'CheckpointHok', 'default_hooks.checkpoint.type', 'CheckpointHook'),
]


# (place, a value of another kind, what the message says)
KINDS = [
    ('model.vision.depth', '39', "expected a number, got the text '39'"),
    ('model.tokenizer', 'BertTokenizer', "expected dict(type='BertTokenizer', ...), got 'BertTokenizer'"),
    ('model.frozen', 'vision', "expected a list of names, got 'vision'"),
    ('train_dataloader.batch_size', '14', "expected a whole number from 1 on, got '14'"),
    ('train_dataloader.num_workers', -1, 'expected a whole number from 0 on, got -1'),
    ('train_dataloader.persistent_workers', 'yes', "expected True or False, got 'yes'"),
    ('train_dataloader.sampler', 'SeekableSampler', "expected a dict with a type, such as dict(type='Seek"),
    ('train_dataloader.collate_fn', 'pseudo_collate', "expected dict(type='pseudo_collate')"),
    ('train_dataloader.dataset.pipeline.0', 'LoadImage', "expected a dict with a type, such as dict(type='LoadImage')"),
    ('val_dataloader.dataset.pipeline', dict(type='LoadImage'), "expected a list of dicts, got {'type': 'LoadImage'}"),
    ('test_dataloader.dataset', 'COCORetrieval', "expected a dict with a type, such as dict(type='COCORetrieval')"),
    ('train_cfg.max_epochs', 2.5, 'expected a whole number from 1 on, got 2.5'),
    ('val_cfg.k_test', '128', "expected a number, got the text '128'"),
    ('val_evaluator', 'RetrievalRecall', 'expected a dict with a type, or a list of them'),
    ('test_evaluator', ['RetrievalRecall'], "expected a dict with a type, such as dict(type='RetrievalRecall')"),
    ('optim_wrapper.dtype', 'bf16', "autocast dtype 'bf16' is unknown"),
    ('optim_wrapper.accumulative_counts', 0, 'expected a whole number from 1 on, got 0'),
    ('optim_wrapper.optimizer.lr', '1e-4', "expected a number, got the text '1e-4'"),
    ('optim_wrapper.paramwise_cfg.custom_keys', dict(temperature=0.1), 'expected dict(lr_mult=..., decay_mult=...)'),
    ('optim_wrapper.paramwise_cfg.layer_decay', '0.9', "expected a number, got '0.9'"),
    ('param_scheduler.0', 'LinearLR', "expected a dict with a type, such as dict(type='LinearLR')"),
    ('param_scheduler.1.begin', '10', "expected a number, got the text '10'"),
    ('default_hooks.checkpoint', 1000, 'expected a dict with a type'),
    ('default_hooks.logger.interval', 0, 'expected a whole number from 1 on, got 0'),
    ('custom_hooks', dict(type='EMAHook'), 'expected a list of dicts'),
    ('env_cfg.cudnn_benchmrk', True, "did you mean 'cudnn_benchmark'?"),
    ('auto_scale_lr', dict(base_batchsize=3), "did you mean 'base_batch_size'?"),
    ('visualizer', dict(type='Visualizer', vis_backends=['LocalVisBackend']), 'expected a dict with a type'),
    ('log_level', 'INFOO', 'expected one of DEBUG, INFO'),
    ('default_scope', 'mmblip', "did you mean 'mmblip2'?"),
    ('activation_checkpointing', 'qformr.layers.*', "did you mean 'qformer'?"),
    ('compile', dict(modules='qformr.layers.*'), "did you mean 'qformer'?"),
    ('checkpoint_config', dict(interval=1), "did you mean 'default_hooks.checkpoint'?"),
    ('clip_grad', dict(max_norm=1.), "did you mean 'optim_wrapper.clip_grad'?"),
    ('find_unused_parameters', 'True', "expected True or False, got 'True'"),
]
PLACES_IN_MESSAGES = {'train_dataloader.dataset.pipeline.0': 'train_dataloader.dataset.pipeline[0]',
                      'param_scheduler.0': 'param_scheduler[0]', 'param_scheduler.1.begin': 'param_scheduler[1].begin',
                      'compile': 'compile.modules', 'auto_scale_lr': 'auto_scale_lr.base_batchsize',
                      'test_evaluator': 'test_evaluator[0]',
                      'visualizer': 'visualizer.vis_backends[0]',
                      'optim_wrapper.paramwise_cfg.custom_keys': 'optim_wrapper.paramwise_cfg.custom_keys.temperature'}


def full_config():
    """A shipped config in which every place of the lists above exists."""
    cfg = load_config(str(CONFIG))
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    cfg.load_from = None
    return cfg


def parent_of(cfg, place):
    *path, last = place.split('.')
    for name in path:
        cfg = cfg[int(name) if name.isdigit() else name]
    return cfg, last


def message_of(cfg):
    with pytest.raises(ConfigError) as raised:
        check_config(cfg)
    return str(raised.value)


def test_the_config_is_right_as_it_is():
    check_config(full_config())


@pytest.mark.parametrize('place, wrong, where, word', KEYS, ids=[case[1] for case in KEYS])
def test_misspelt_key(place, wrong, where, word):
    cfg = full_config()
    node, last = parent_of(cfg, place)
    assert last in node, 'the place is gone from the config: choose another'
    node[wrong] = node.pop(last)
    line = next((line for line in message_of(cfg).splitlines() if f'{where}:' in line), None)
    assert line is not None, message_of(cfg)
    assert word is None or f"'{word}'" in line, line


@pytest.mark.parametrize('place, wrong, where, word', VALUES, ids=[case[1] for case in VALUES])
def test_misspelt_type(place, wrong, where, word):
    cfg = full_config()
    node, last = parent_of(cfg, place)
    assert node[last] != wrong and isinstance(node[last], str)
    node[last] = wrong
    line = next((line for line in message_of(cfg).splitlines() if f'{where}:' in line), None)
    assert line is not None, message_of(cfg)
    assert f"'{word}'" in line, line


def test_all_mistakes_are_told_at_once():
    cfg = full_config()
    for place, wrong, *_ in VALUES:
        node, last = parent_of(cfg, place)
        node[last] = wrong
    message = message_of(cfg)
    assert all(f'{where}:' in message for _, _, where, _ in VALUES if where != 'model.vision.type')


def test_values_of_another_kind_are_told_all_at_once():
    cfg = full_config()
    for place, wrong, _ in KINDS:
        node, last = parent_of(cfg, place)
        node[int(last) if last.isdigit() else last] = wrong
    lines = message_of(cfg).splitlines()
    for place, _, text in KINDS:
        where = PLACES_IN_MESSAGES.get(place, place)
        assert any(f' {where}: ' in line and text in line for line in lines), (where, text, lines)
    assert len({line.split(':')[0] for line in lines[1:]}) == len(lines) - 1, 'each once'


@pytest.mark.parametrize('section', ['train_cfg', 'optim_wrapper', 'default_hooks', 'train_dataloader', 'randomness'])
def test_a_section_that_is_no_dict_is_one_problem(section):
    cfg = full_config()
    cfg[section] = [5]
    first, line = message_of(cfg).splitlines()
    assert f'{section}: expected a dict, got [5]' in line and cfg[section] == [5]


def test_misspelt_clip_grad():
    cfg = full_config()
    cfg.optim_wrapper.clip_grad = dict(max_nrm=1.)
    assert 'optim_wrapper.clip_grad: unknown max_nrm; known are max_norm' in message_of(cfg)


def test_a_variable_of_the_config_is_no_mistake():
    cfg = full_config()
    cfg.seed, cfg.optimizer, cfg.my_images = 7, dict(cfg.optim_wrapper.optimizer, lr=1.), 'data/mine'
    check_config(cfg)
