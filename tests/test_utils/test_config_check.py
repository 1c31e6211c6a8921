"""Every typo is found before anything is built, with a suggestion."""
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from toy_parts import toy_config

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.utils import cli, run_config
from mmblip2.utils import config_check as check

PIPELINE = [dict(type='LoadImage'), dict(type='Resize', scale=384), dict(type='PackInputs')]


def config(**changes):
    return Config(toy_config('work', **changes))


def problems(cfg):
    with pytest.raises(ConfigError) as error:
        check.check_config(cfg)
    return str(error.value)


def test_good_config_passes_and_is_not_changed():
    cfg = config()
    before = cfg.to_dict()
    check.check_config(cfg)
    assert cfg.to_dict() == before


@pytest.mark.parametrize('change, message', [
    ('+optim_wraper=dict(type="OptimWrapper")', "optim_wraper: unknown key; did you mean 'optim_wrapper'?"),
    ('+train_dataloaders=1', "train_dataloaders: unknown key; did you mean 'train_dataloader'?"),
    ('+custom_hook=[]', "custom_hook: unknown key; did you mean 'custom_hooks'?"),
    ('+default_hooks.loger=dict(type="LoggerHook")', "default_hooks.loger: unknown default hook; did you "
                                                     "mean 'logger'?"),
    ('default_hooks.logger.type=LogerHook', "default_hooks.logger.type: 'LogerHook' is not a known hook; did "
                                            "you mean 'LoggerHook'?"),
    ('+default_hooks.logger.intervall=5', "default_hooks.logger.intervall: LoggerHook has no argument "
                                          "'intervall'; did you mean 'interval'?"),
    ('+default_hooks.checkpoint.max_keep=5', "CheckpointHook has no argument 'max_keep'; did you mean "
                                             "'max_keep_ckpts'?"),
    ('model.type=ToyModle', "model.type: 'ToyModle' is not a known model; did you mean 'ToyModel'?"),
    ('+model.widht=5', "model.widht: ToyModel has no argument 'widht'; did you mean 'width'?"),
    ('+model.part=dict(type="no_such.Part")', "model.part.type: 'no_such.Part' needs the package no_such, which is "
                                              "not installed: pip install it"),
    ('+model.part=dict(type="QFromer")', "model.part.type: 'QFromer' is not a known model; did you mean "
                                         "'QFormer'?"),
    ('train_dataloader.dataset.type=COCOCaptions', "'COCOCaptions' is not a known dataset; did you mean "
                                                   "'COCOCaption'?"),
    ('+train_dataloader.dataset.annfile=a', "ToyData has no argument 'annfile'; did you mean 'ann_file'?"),
    ('+train_dataloader.dataset.pipeline=[dict(type="Resise", scale=1)]',
     "train_dataloader.dataset.pipeline[0].type: 'Resise' is not a known transform; did you mean 'Resize'?"),
    ('+train_dataloader.dataset.pipeline=[dict(type="Resize", size=1)]', "Resize has no argument 'size'"),
    ('+train_dataloader.dataset.pipeline=[dict(type="Resize")]', "Resize needs the argument 'scale'"),
    ('+train_dataloader.batchsize=1', "a dataloader has no option 'batchsize'; did you mean 'batch_size'?"),
    ('train_dataloader.sampler.type=SeekableInfinitSampler', "did you mean 'SeekableInfiniteSampler'?"),
    ('train_dataloader.collate_fn.type=pseudocollate', "did you mean 'pseudo_collate'?"),
    ('train_cfg.type=SeekIterLop', "train_cfg.type: 'SeekIterLop' is not a known loop; did you mean "
                                   "'SeekIterLoop'?"),
    ('+train_cfg.max_iter=3', "train_cfg.max_iter: SeekIterLoop has no argument 'max_iter'; did you mean "
                              "'max_iters'?"),
    ('+val_cfg.fp16=True', "val_cfg.fp16: ValLoop has no argument 'fp16'"),
    ('val_evaluator.type=ToyMetrics', "val_evaluator.type: 'ToyMetrics' is not a known metric; did you mean"),
    ('+val_evaluator.prefx=a', "val_evaluator.prefx: ToyMetric has no argument 'prefx'; did you mean "
                               "'prefix'?"),
    ('optim_wrapper.type=AutcastOptimWrapper', "did you mean 'AutocastOptimWrapper'?"),
    ('optim_wrapper.optimizer.type=AdmW', "optim_wrapper.optimizer.type: 'AdmW' is not a known optimizer; "
                                          "did you mean 'AdamW'?"),
    ('+optim_wrapper.optimizer.weightdecay=0', "AdamW has no argument 'weightdecay'; did you mean "
                                               "'weight_decay'?"),
    ('+optim_wrapper.clip_gradd=dict(max_norm=1)', "OptimWrapper has no argument 'clip_gradd'; did you mean "
                                                   "'clip_grad'?"),
    ('+optim_wrapper.paramwise_cfg=dict(custom_key={})', "optim_wrapper.paramwise_cfg.custom_key: unknown "
                                                         "key; did you mean 'custom_keys'?"),
    ('+optim_wrapper.paramwise_cfg=dict(layer_deacy=0.9)', "unknown key; did you mean 'layer_decay'?"),
    ('+optim_wrapper.paramwise_cfg=dict(custom_keys={"a": dict(lr_mul=1)})', "did you mean 'lr_mult'?"),
    ('param_scheduler.0.type=CosineAnealingLR', "param_scheduler[0].type: 'CosineAnealingLR' is not a known "
                                                "parameter scheduler; did you mean 'CosineAnnealingLR'?"),
    ('+param_scheduler.0.eta_mim=0', "CosineAnnealingLR has no argument 'eta_mim'; did you mean 'eta_min'?"),
    ('+custom_hooks=[dict(type="EMAHok")]', "custom_hooks[0].type: 'EMAHok' is not a known hook; did you "
                                            "mean 'EMAHook'?"),
    ('+randomness.sead=1', "randomness.sead: unknown key; did you mean 'seed'?"),
    ('val_cfg=None', 'val_cfg: missing; val_dataloader, val_cfg, val_evaluator belong together'),
    ('+model.part={"lambda": 1}', "model.part.lambda: 'lambda' is a Python keyword"),
    ('+default_hooks.checkpoint.save_best=caption/CIDEr', "no val_evaluator gives 'caption/CIDEr'; their "
                                                          'keys start with toy'),
])
def test_typo_is_found_with_a_suggestion(change, message):
    cfg = config()
    cli.apply_cfg_options(cfg, [change])
    assert message in problems(cfg)


def test_arguments_of_a_backbone_of_mmpretrain_are_those_of_its_class():
    pytest.importorskip('mmpretrain')
    arch = dict(depths=[1, 1, 1, 1], channels=[4, 4, 8, 8])
    vision = dict(type='MMPretrainBackbone', backbone='ConvNeXt', arch=arch, gap_before_final_norm=False,
                  norm_cfg=dict(type='LN2d', eps=1e-5), image_size=32)
    qformer = dict(type='QFormer', vision_width=8, num_layers=1, width=8, num_heads=2, num_query=2)
    model = dict(type='Blip2Generation', vision=vision, qformer=qformer, language_model=dict(
        type='CausalLM', tokenizer='nowhere', config=dict(model_type='opt')))
    check.check_config(config(model=model))
    encoder = MODELS.build(vision)
    assert encoder.embed_dim == 8 and encoder.module.norm3.eps == 1e-5

    def said(**changes):
        found = problems(config(model=dict(model, vision=dict(vision, **changes))))
        assert found.startswith('1 problem in')
        return found

    assert "model.vision.archh: mmpretrain.ConvNeXt has no argument 'archh'; did you mean 'arch'?" in said(archh=1)
    assert "mmpretrain.ConvNeXt has no argument 'weigths'; did you mean 'weights'?" in said(weigths='a')
    assert "model.vision: mmpretrain has no backbone 'ConvNext'; did you mean 'ConvNeXt'?" in said(backbone='ConvNext')
    check.check_config(config(model=dict(model, vision=dict(
        type='MMPretrainBackbone', backbone='TIMMBackbone', model_name='vit', dynamic_img_size=True))))
    needs = problems(config(model=dict(model, vision=dict(type='MMPretrainBackbone', backbone='mmpretrain.ResNet'))))
    assert "model.vision: mmpretrain.ResNet needs the argument 'depth'" in needs
    nameless = problems(config(model=dict(model, vision=dict(type='MMPretrainBackbone', arch='base'))))
    assert "model.vision: MMPretrainBackbone needs the argument 'backbone'" in nameless


def test_settings_that_would_run_code_are_found():
    cfg = config()
    cfg.model.part = dict(type='CausalLM', config=dict(text_config=dict(auto_map={})))
    cfg.model.generation = dict(trust_remote_code=True)
    text = problems(cfg)
    assert 'model.part.config.text_config.auto_map: auto_map={} would run code of a model repository' in text
    assert 'model.generation.trust_remote_code: trust_remote_code=True would run code of a model repository' in text


def test_settings_of_models_and_generation_are_checked():
    cfg = config()
    cfg.model.language_model = dict(type='CausalLM', config=dict(model_type='opt', hiden_size=3, vocab_size=9))
    cfg.model.vision = dict(type='HFVisionEncoder', config=dict(model_type='vit', hidden_size=32, patchsize=3))
    cfg.model.generation = dict(num_beems=5, max_new_tokens=5, repetition_penalty=2.)
    text = problems(cfg)
    for line in (
            "model.language_model.config.hiden_size: 'opt' has no setting 'hiden_size'; did you mean 'hidden_size'?",
            "model.vision.config.patchsize: 'vit' has no setting 'patchsize'; did you mean 'patch_size'?",
            "model.generation.num_beems: generate has no setting 'num_beems'; did you mean 'num_beams'?"):
        assert line in text
    assert 'vocab_size' not in text and 'max_new_tokens' not in text and 'repetition_penalty' not in text


def test_all_problems_are_listed_at_once():
    cfg = config()
    cli.apply_cfg_options(cfg, ['model.type=ToyModle', '+optim_wraper=1', '+train_cfg.max_iter=2'])
    text = problems(cfg)
    assert text.startswith('3 problems in ') and text.count('\n') == 3


def test_image_sizes_of_model_and_pipeline_must_agree():
    cfg = config()
    cfg.model.vision = dict(type='VisionTransformer', image_size=364)
    cfg.train_dataloader.dataset.pipeline = PIPELINE
    text = problems(cfg)
    assert ('image size of the model (364) and of train_pipeline (384) differ: set both to one value '
            '(model.vision.image_size, train_dataloader.dataset.pipeline[1].scale)') in text


def test_transforms_inside_others_are_checked_too():
    cfg = config()
    cfg.model.vision = dict(type='VisionTransformer', image_size=364)
    inside = [dict(type='LoadImage'), dict(type='Resize', scale=384)]
    cfg.train_dataloader.dataset.pipeline = [dict(type='EachImage', transforms=inside), dict(type='PackInputs')]
    assert ('differ: set both to one value (model.vision.image_size, '
            'train_dataloader.dataset.pipeline[0].transforms[1].scale)') in problems(cfg)
    inside[1] = dict(type='Resise', scale=364)
    cfg.train_dataloader.dataset.pipeline = [dict(type='EachImage', transforms=inside), dict(type='PackInputs')]
    assert ("pipeline[0].transforms[1].type: 'Resise' is not a known transform; did you mean 'Resize'?"
            ) in problems(cfg)


def test_image_sizes_are_checked_in_every_concatenated_data_set():
    cfg = config()
    cfg.model.vision = dict(type='VisionTransformer', image_size=384)
    data = dict(type='ToyData', pipeline=PIPELINE)
    other = [*PIPELINE[:1], dict(type='Resize', scale=224), *PIPELINE[2:]]
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[data, dict(data, pipeline=other)])
    text = problems(cfg)
    assert 'train_pipeline (224)' in text and 'train_dataloader.dataset.datasets[1].pipeline[1].scale' in text
    assert 'datasets[0]' not in text


def test_helper_variables_are_no_unknown_keys():
    cfg = config(image_size=64, data_root='data', train_pipeline=[], shapes='x', num_query=32)
    check.check_config(cfg)


def test_best_retrieval_is_saved_by_the_key_of_the_loop():
    cfg = config(val_evaluator=dict(type='RetrievalRecall'))
    cfg.default_hooks.checkpoint.save_best = 'i2t/retrieval/Recall@1'
    check.check_config(cfg)


@pytest.mark.parametrize('metric, right, wrong', [
    (dict(type='VQAMetric'), 'vqa/accuracy', 'vqa/acuracy'),
    (dict(type='VQAMetric', prefix='v'), 'v/number', 'v/acuracy'),
    (dict(type='VQAMetric'), 'vqa/question_type/what is', 'vqa/accuraccy'),
    (dict(type='COCOCaptionMetric'), 'caption/CIDEr', 'caption/CIDER'),
    (dict(type='NLVRAccuracy'), 'nlvr/consistency', 'nlvr/consistancy'),
    (dict(type='RetrievalRecall', topk=(1, 20)), 'i2t/retrieval/Recall@20', 'i2t/retrieval/recall@1')])
def test_misspelt_metric_of_save_best_is_found_at_the_start(metric, right, wrong):
    cfg = config(val_evaluator=metric)
    cfg.default_hooks.checkpoint.save_best = right
    check.check_config(cfg)
    cfg.default_hooks.checkpoint.save_best = wrong
    with pytest.raises(ConfigError, match=f"no val_evaluator gives '{wrong}'; did you mean"):
        check.check_config(cfg)


def test_missing_checkpoint_is_found():
    with pytest.raises(ConfigError, match='checkpoint nowhere.pth not found: check the path'):
        check.check_config(config(), checkpoint='nowhere.pth')


def test_a_folder_without_a_checkpoint_is_found(tmp_path):
    with pytest.raises(ConfigError, match=r'is a folder without a checkpoint \(iter_\*.pth, .*\): check the'):
        check.check_config(config(), checkpoint=str(tmp_path))
    (tmp_path / 'iter_4.pth').touch()
    check.check_config(config(), checkpoint=str(tmp_path))


@pytest.mark.parametrize('load_from, message', [
    ('none.pth', 'load_from: checkpoint none.pth not found: run the training that writes it first, or set load_from'),
    ('empty', 'load_from: empty is a folder without a checkpoint (iter_*.pth, epoch_*.pth; model.safetensors'),
    ([dict(checkpoint='stage1'), dict(checkpoint='none', exclude=['a'])],
     'load_from[1].checkpoint: checkpoint none not found'),
    (dict(checkpoint='none'), 'load_from.checkpoint: checkpoint none not found')])
def test_what_a_training_starts_from_has_to_exist(tmp_path, monkeypatch, load_from, message):
    monkeypatch.chdir(tmp_path)
    for name in ('stage1', 'empty', 'work'):
        Path(name).mkdir()
    Path('stage1', 'iter_4.pth').touch()
    cfg = config(load_from=load_from)
    check.check_config(cfg)  # without a training nobody reads it
    for cfg.resume in (False, True):  # there is nothing to resume either
        with pytest.raises(ConfigError) as error:
            check.check_config(cfg, training=True)
        assert message in str(error.value) and str(error.value).startswith('1 problem in')
    Path('work', 'iter_2.pth').touch()
    check.check_config(cfg, training=True)  # resumed, so load_from is not read
    cfg.resume = 'stage1'
    check.check_config(cfg, training=True)
    cfg.resume = 'none.pth'
    with pytest.raises(ConfigError, match='resume: checkpoint none.pth not found: check the path'):
        check.check_config(cfg, training=True)
    check.check_config(config(load_from='stage1'), training=True)


@pytest.mark.parametrize('load_from, message', [
    ([dict(checkpoint='a', includes=['b'])], "load_from[0].includes: unknown key; did you mean 'include'?"),
    ([dict(path='a')], 'load_from[0]: expected a path or a list of dict(checkpoint=<path>, include=[...], exclude'),
    (['a.pth'], "list of dict(checkpoint=<path>, include=[...], exclude=[...]), got 'a.pth'"),
    (3, 'load_from: expected a path or a list of dict(checkpoint=<path>')])
def test_load_from_is_a_path_or_a_list_of_dicts(load_from, message):
    assert message in problems(config(load_from=load_from))


def test_unreadable_config_names_the_file(tmp_path):
    path = tmp_path / 'bad.py'
    path.write_text('model = dict(\n')
    with pytest.raises(ConfigError, match='bad.py cannot be read: SyntaxError'):
        run_config.load_config(path)
    with pytest.raises(ConfigError, match='none.py not found'):
        run_config.load_config(tmp_path / 'none.py')


def test_retrieval_loop_writes_its_own_predictions():
    cfg = config(test_cfg=dict(type='RetrievalTestLoop'))
    run_config.dump_predictions(cfg, 'out.json')
    assert cfg.test_cfg.out_file == 'out.json' and cfg.test_evaluator.type == 'ToyMetric'
    with pytest.raises(ConfigError, match='out.pkl: retrieval predictions are written as .json'):
        run_config.dump_predictions(cfg, 'out.pkl')


def test_amp_keeps_the_options_of_the_wrapper():
    cfg = config()
    cfg.optim_wrapper.clip_grad = dict(max_norm=1.)
    run_config.use_amp(cfg)
    assert cfg.optim_wrapper.type == 'AutocastOptimWrapper' and cfg.optim_wrapper.dtype == 'auto'
    assert cfg.optim_wrapper.clip_grad.max_norm == 1.
    cfg.optim_wrapper.type = 'OptimWrapperDict'
    with pytest.raises(ConfigError, match='leave --amp out'):
        run_config.use_amp(cfg)


def test_an_error_in_a_config_has_its_line(tmp_path):
    (tmp_path / 'bad.py').write_text('a = 1\nb = a / 0\n')
    with pytest.raises(ConfigError, match=r'bad.py cannot be read: ZeroDivisionError: .*bad.py, line 2\)'):
        run_config.load_config(tmp_path / 'bad.py')


def test_a_work_dir_that_cannot_be_made_is_told_before_the_run(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='work_dir: .*work cannot be written: .*file is a file; choose another'):
        check.check_config(Config(toy_config(tmp_path / 'file' / 'work')), training=True)


def test_a_backend_without_its_package_is_told_before_the_run(monkeypatch):
    from mmblip2.utils import config_check
    cfg = Config(toy_config('work', visualizer=dict(type='Visualizer', vis_backends=[
        dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])))
    monkeypatch.setattr(config_check, 'find_spec', lambda name: True)
    config_check.check_config(cfg)
    monkeypatch.undo()
    found = config_check.find_spec
    monkeypatch.setattr(config_check, 'find_spec', lambda name: None if name == 'tensorboard' else found(name))
    with pytest.raises(ConfigError, match=r'vis_backends\[1\]: TensorboardVisBackend needs the package tensorboard: '
                                          'pip install tensorboard'):
        config_check.check_config(cfg)
