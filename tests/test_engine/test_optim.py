"""Autocast on CPU and parameter groups."""
import pytest
import torch
from torch import nn

import mmblip2.engine.autocast as autocast_module
from mmblip2.engine.autocast import autocast_context, resolve_dtype
from mmblip2.engine.optim import AutocastOptimWrapper, TrainableOptimWrapperConstructor
from mmblip2.errors import ConfigError


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.vision = nn.Linear(4, 4)
        self.vision.requires_grad_(False)
        self.body = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.ones(()))


def build(model, paramwise_cfg=None, **cfg):
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1), **cfg)
    return TrainableOptimWrapperConstructor(cfg, paramwise_cfg)(model)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_wrapper_runs_forward_in_its_dtype_and_keeps_weights_in_float32(dtype):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    wrapper = AutocastOptimWrapper(dtype=dtype, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.detach().clone()
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    assert out.dtype == getattr(torch, dtype)
    wrapper.update_params(out.float().square().mean())
    assert model.weight.dtype == torch.float32 and not torch.equal(model.weight, before)
    assert wrapper.loss_scaler.is_enabled() == (dtype == 'float16')


def test_loss_scaler_is_saved_and_restored():
    model = nn.Linear(2, 2)
    wrappers = [AutocastOptimWrapper(dtype='float16', optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
                for _ in range(2)]
    wrappers[0].loss_scaler.scale(torch.ones(1))
    wrappers[0].loss_scaler.update(128.)
    wrappers[1].load_state_dict(wrappers[0].state_dict())
    assert wrappers[1].loss_scaler.state_dict()['scale'] == 128.


def test_auto_is_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for able, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(autocast_module, 'cpu_has_bf16', lambda able=able: able)
        assert resolve_dtype('auto') is dtype


def test_unknown_dtype_is_named():
    with pytest.raises(ConfigError, match="'bf16' is unknown: use 'auto', 'bfloat16'"):
        autocast_context('bf16')


def test_groups_hold_trainable_parameters_only_and_are_merged():
    model = Net()
    groups = build(model).optimizer.param_groups
    assert len(groups) == 2
    decayed = {id(p) for group in groups if group['weight_decay'] for p in group['params']}
    assert decayed == {id(model.body.weight), id(model.head.weight)}
    every = {id(p) for group in groups for p in group['params']}
    assert every == {id(p) for p in model.parameters() if p.requires_grad}


def test_longest_custom_key_counts():
    model = Net()
    wrapper = build(model, dict(custom_keys={
        'head': dict(lr_mult=0.5), 'head.weight': dict(lr_mult=0.1, decay_mult=0)}))
    lr = {id(p): (group['lr'], group['weight_decay']) for group in wrapper.optimizer.param_groups
          for p in group['params']}
    assert lr[id(model.head.weight)] == (pytest.approx(1e-4), 0)
    assert lr[id(model.head.bias)] == (pytest.approx(5e-4), 0)
    assert lr[id(model.body.weight)] == (1e-3, 0.1)


@pytest.mark.parametrize('paramwise, message', [
    (dict(norm_decy_mult=0), 'paramwise_cfg: unknown norm_decy_mult'),
    (dict(custom_keys=dict(haed=dict(lr_mult=1))), "no trainable parameter has 'haed' in its name"),
    (dict(custom_keys=dict(head=dict(lr=1))), 'custom_keys.head: unknown lr'),
])
def test_paramwise_mistakes_are_errors(paramwise, message):
    with pytest.raises(ConfigError, match=message):
        build(Net(), paramwise)


def test_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ConfigError, match='no trainable parameter'):
        build(Net().requires_grad_(False))


def rates(model, **paramwise_cfg):
    """Learning rate by parameter name, of a constructor whose rate is 1."""
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1., weight_decay=0.1))
    wrapper = TrainableOptimWrapperConstructor(cfg, paramwise_cfg)(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}


def fine_tuned(depth=3, **kwargs):
    from mmblip2.models import VisionTransformer
    model = Net()
    model.vision = VisionTransformer(image_size=4, patch_size=2, width=4, depth=depth, num_heads=2, **kwargs)
    return model


def test_layer_decay_slows_every_block_towards_the_image():
    found = rates(fine_tuned(), layer_decay=0.5)
    assert {name: rate for name, rate in found.items() if 'norm1.weight' in name or 'qkv' in name} == {
        f'vision.blocks.{i}.{part}.weight': 0.5**(3 - i) for i in range(3) for part in ('norm1', 'attn.qkv')}
    assert {found[f'vision.{name}'] for name in ('cls_token', 'pos_embed', 'patch_embed.weight')} == {0.5**4}
    assert found['head.weight'] == found['body.bias'] == found['temperature'] == 1.


def test_layer_decay_of_the_39_blocks_is_that_of_the_recipe():
    found = rates(fine_tuned(depth=39), layer_decay=0.95)
    assert found['vision.blocks.38.mlp.fc1.weight'] == pytest.approx(0.95)
    assert found['vision.blocks.0.mlp.fc1.weight'] == pytest.approx(0.1353, abs=1e-4)
    assert found['vision.pos_embed'] == pytest.approx(0.1285, abs=1e-4)


def test_what_stands_behind_the_blocks_keeps_the_full_rate():
    model = fine_tuned()
    model.vision.final_norm = nn.LayerNorm(4)
    assert rates(model, layer_decay=0.5)['vision.final_norm.weight'] == 1.


def test_layer_decay_multiplies_custom_keys_and_weight_decay_is_untouched():
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1., weight_decay=0.1))
    model = fine_tuned()
    groups = TrainableOptimWrapperConstructor(
        cfg, dict(layer_decay=0.5, custom_keys={'blocks.2': dict(lr_mult=0.1)}))(model).optimizer.param_groups
    assert groups[0]['lr'] == 1., 'the log shows the rate of the first group'
    by_parameter = {id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    assert by_parameter[id(model.vision.blocks[2].attn.proj.weight)] == (pytest.approx(0.05), 0.1)
    assert by_parameter[id(model.vision.blocks[0].attn.proj.bias)] == (0.125, 0.)


@pytest.mark.filterwarnings('ignore:Detected call of')
def test_a_schedule_keeps_the_ratios():
    from mmengine.optim import LinearLR
    model = fine_tuned()
    wrapper = TrainableOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.)), dict(layer_decay=0.5))(model)
    before = [group['lr'] for group in wrapper.optimizer.param_groups]
    scheduler = LinearLR(wrapper, start_factor=0.1, end=10, by_epoch=False)
    scheduler.step()
    after = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert len(set(before)) == 5
    assert after == pytest.approx([rate * after[0] for rate in before]) and after[0] < 0.25


@pytest.mark.parametrize('model, decay, message', [
    (Net(), 0.95, "does not train: take 'vision' out of model.frozen, or leave layer_decay out"),
    (fine_tuned(), 1.5, 'layer_decay is 1.5, expected a factor above 0'),
])
def test_layer_decay_without_effect_is_an_error(model, decay, message):
    with pytest.raises(ConfigError, match=message):
        rates(model, layer_decay=decay)


def test_layer_decay_needs_numbered_blocks():
    model = Net()
    model.vision.requires_grad_(True)
    with pytest.raises(ConfigError, match='no numbered blocks in the vision encoder Linear'):
        rates(model, layer_decay=0.9)


def test_what_decays_in_stage_1(tiny_parts):
    """Matrices, tables and queries; neither biases, norms nor the temperature (which decays in LAVIS by accident)."""
    from mmblip2.registry import MODELS
    tiny_parts.pop('language_model')
    model = MODELS.build(dict(type='Blip2Representation', embed_dim=8, allow_random=True, **tiny_parts))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = TrainableOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))).groups(model)
    decayed = {group['weight_decay'] > 0: {names[id(p)] for p in group['params']} for group in groups}
    assert {'qformer.queries', 'qformer.word_embeddings.weight', 'itc_head.vision_proj.weight'} <= decayed[True]
    assert {'itc_head.temperature', 'qformer.layers.0.attention_norm.weight', 'vision_norm.weight'} <= decayed[False]
    assert not any(name.endswith('bias') for name in decayed[True])


def test_accumulation_synchronizes_at_the_end_of_each_window_only():
    from contextlib import contextmanager
    silent = []

    class Wrapped(Net):
        @contextmanager
        def no_sync(self):
            silent.append(wrapper._inner_count)
            yield

    model = Wrapped()
    wrapper = AutocastOptimWrapper(dtype='float32', accumulative_counts=3,
                                   optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    wrapper.initialize_count_status(model, 0, 6)
    for _ in range(6):
        with wrapper.optim_context(model):
            loss = model.head.weight.sum()
        wrapper.update_params(loss)
    assert silent == [0, 1, 3, 4]
