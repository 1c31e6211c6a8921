"""The ViT: variants by arguments, positions for any image size, checkpointed gradients."""
import math

import pytest
import torch
from torch import nn

from mmblip2.checkpoints import io
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.models.vision.vit import VisionTransformer, resize_positions

TINY = dict(image_size=8, patch_size=4, width=16, depth=2, num_heads=2)
CLIP = dict(activation='quick_gelu', pre_norm=True, qkv_bias='full', patch_bias=False, eps=1e-5)


def redrawn(encoder, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return encoder


def count(**kwargs):
    with torch.device('meta'):
        return sum(parameter.numel() for parameter in VisionTransformer(**kwargs).parameters())


def test_parameters_of_the_encoders_of_the_paper():
    """985.89 M and 290.6 M, by arithmetic on LAVIS's shapes."""
    assert count(mlp_width=6144) == 985_894_528
    assert count(width=1024, depth=23, mlp_width=4096, **CLIP) == 290_581_504


def test_names_of_the_weights_stay():
    outside = ['cls_token', 'pos_embed', 'patch_embed.weight', 'patch_embed.bias']
    block = ['norm1.weight', 'norm1.bias', 'attn.q_bias', 'attn.v_bias', 'attn.qkv.weight', 'attn.proj.weight',
             'attn.proj.bias', 'norm2.weight', 'norm2.bias', 'mlp.fc1.weight', 'mlp.fc1.bias', 'mlp.fc2.weight',
             'mlp.fc2.bias']
    eva = set(VisionTransformer(**{**TINY, 'depth': 1}).state_dict())
    assert eva == set(outside + [f'blocks.0.{name}' for name in block])
    clip = set(VisionTransformer(**{**TINY, 'depth': 1}, **CLIP).state_dict())
    assert clip - eva == {'pre_norm.weight', 'pre_norm.bias', 'blocks.0.attn.qkv.bias'}
    assert eva - clip == {'patch_embed.bias', 'blocks.0.attn.q_bias', 'blocks.0.attn.v_bias'}


@pytest.mark.parametrize('change, message', [
    (dict(activation='relu'), "activation 'relu' is unknown: set it to one of 'gelu', 'quick_gelu'"),
    (dict(qkv_bias=True), "qkv_bias True is unknown: set it to one of 'qv', 'full'"),
    (dict(num_heads=3), 'width 16 is not a multiple of num_heads 3: change one of them'),
    (dict(image_size=10), 'image_size 10 is not a multiple of patch_size 4: set it to 8 or 12'),
    (dict(image_size=3), 'image_size 3 is not a multiple of patch_size 4: set it to 4$'),
])
def test_values_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        VisionTransformer(**{**TINY, **change})


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match=r'of the model \(8\) and of the pipeline \(\(12, 12\)\) differ'):
        VisionTransformer(**TINY)(torch.zeros(1, 3, 12, 12))


# ------------------------------------------------------------------------------------------ positions

def bicubic_weights(old, new, align_corners):
    """(new, old): the share that each old row has in a new one, from the cubic kernel of Keys with a = -0.75."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        place = row * (old - 1) / (new - 1) if align_corners else (row + 0.5) * old / new - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            x = abs(place - tap)
            share = 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[row, min(max(tap, 0), old - 1)] += share
    return weights


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('old, new', [(2, 3), (4, 7), (6, 4)])
def test_positions_equal_bicubic_weights_worked_out_by_hand(old, new, align_corners):
    table = torch.randn(1, 1 + old**2, 3, generator=torch.Generator().manual_seed(0))
    weights = bicubic_weights(old, new, align_corners)
    patches = table[0, 1:].double().view(old, old, 3)
    expected = torch.einsum('ri,ijc,kj->rkc', weights, patches, weights).reshape(new**2, 3)
    resized = resize_positions(table, new, align_corners)
    torch.testing.assert_close(resized[0, 1:].double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(resized[:, 0], table[:, 0])


def test_positions_keep_their_type():
    assert resize_positions(torch.zeros(1, 5, 4, dtype=torch.float16), 3, False).dtype == torch.float16


@pytest.fixture
def log(monkeypatch):
    """Lines that the log gets."""
    lines = []
    monkeypatch.setattr('mmblip2.checkpoints.io.say', lambda line, level=None: lines.append(line))
    return lines


@pytest.mark.parametrize('kind, align_corners', [({}, False), (CLIP, True)], ids=['eva', 'clip'])
def test_weights_of_another_image_size_are_interpolated_and_logged(tmp_path, log, kind, align_corners):
    small = redrawn(VisionTransformer(**TINY, **kind))
    path = str(tmp_path / 'small.pth')
    torch.save({f'vision.{key}': value for key, value in small.state_dict().items()}, path)
    large = VisionTransformer(**{**TINY, 'image_size': 12}, **kind, weights=path)
    torch.testing.assert_close(large.pos_embed, resize_positions(small.pos_embed, 3, align_corners), rtol=0, atol=0)
    assert torch.equal(large.pos_embed[:, 0], small.pos_embed[:, 0])
    same = {key: value for key, value in small.state_dict().items() if key != 'pos_embed'}
    assert all(torch.equal(value, large.state_dict()[key]) for key, value in same.items())
    assert log == [f'weights from {path}: positions interpolated from 2 x 2 to 3 x 3 patches']
    assert large(torch.zeros(1, 3, 12, 12)).shape == (1, 10, 16)


def test_weights_of_the_same_size_are_taken_as_they_are(tmp_path, log):
    source = redrawn(VisionTransformer(**TINY))
    torch.save(source.state_dict(), tmp_path / 'vit.pth')
    loaded = VisionTransformer(**TINY, weights=str(tmp_path / 'vit.pth'))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in source.state_dict().items())
    assert not log


@pytest.mark.parametrize('shape', [(1, 8, 16), (1, 10, 12), (10, 16), (1, 1, 16)])
def test_other_tables_are_no_positions_and_refused(tmp_path, shape):
    state = {**VisionTransformer(**TINY).state_dict(), 'pos_embed': torch.zeros(shape)}
    torch.save(state, tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match=r'pos_embed: \(.*\) in the file, \(1, 5, 16\) in the model'):
        VisionTransformer(**TINY, weights=str(tmp_path / 'vit.pth'))


@pytest.mark.parametrize('depth, message', [
    (3, r'13 missing in the file \(blocks.2.norm1'), (1, r'13 unknown to the model \(blocks.1.norm1')])
def test_another_number_of_blocks_is_refused(tmp_path, depth, message):
    torch.save(VisionTransformer(**TINY).state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match=message):
        VisionTransformer(**{**TINY, 'depth': depth}, weights=str(tmp_path / 'vit.pth'))


class Model(nn.Module):
    """A vision encoder that may be frozen, and a head."""

    def __init__(self, frozen=False, **kwargs):
        super().__init__()
        self.vision = VisionTransformer(**{**TINY, **kwargs}).requires_grad_(not frozen)
        self.head = nn.Linear(2, 2)
        self.frozen = frozen

    def frozen_parts(self):
        return dict(vision=self.vision) if self.frozen else {}


def test_a_trained_encoder_goes_on_at_another_image_size(tmp_path):
    trained = Model()
    redrawn(trained)
    path = tmp_path / 'iter_1.pth'
    io.write_checkpoint(dict(format=io.FORMAT, meta={}, state_dict=io.saved_state(trained)), path)
    expected = resize_positions(trained.vision.pos_embed, 3, False)
    note = 'vision: positions interpolated from 2 x 2 to 3 x 3 patches'
    for load in (lambda model: io.load_partial(model, str(path)),
                 lambda model: io.load_strict(model, io.read_checkpoint(path), path)):
        model = Model(image_size=12)
        report = load(model)
        assert torch.equal(model.vision.pos_embed, expected) and torch.equal(model.head.bias, trained.head.bias)
        assert note in str(report) and not report.new
    with pytest.raises(CheckpointError, match=r'vision.pos_embed: \(1, 5, 16\) in the file, \(1, 10, 16\) in'):
        io.load_strict(Model(image_size=12), io.read_checkpoint(path), path, adapt=False)  # as resuming does


def test_the_positions_of_a_frozen_encoder_are_left_alone(tmp_path):
    torch.save(Model().state_dict(), tmp_path / 'all.pth')
    model = Model(frozen=True, image_size=12)
    before = model.vision.pos_embed.clone()
    report = io.load_strict(model, io.read_checkpoint(tmp_path / 'all.pth'), 'all.pth')
    assert torch.equal(model.vision.pos_embed, before)
    assert report.notes == ['vision: frozen, its 30 tensors in the file are not used: it has random ones']


# ------------------------------------------------------------------------------------------ gradients

@pytest.mark.parametrize('kind', [{}, CLIP], ids=['eva', 'clip'])
def test_checkpointed_blocks_give_the_same_output_and_gradients(kind):
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs, gradients = [], []
    for grad_checkpointing in (False, True):
        encoder = redrawn(VisionTransformer(**TINY, **kind, grad_checkpointing=grad_checkpointing)).train()
        pixels = images.clone().requires_grad_()
        outputs.append(encoder(pixels))
        outputs[-1].pow(2).mean().backward()
        gradients.append([pixels.grad] + [parameter.grad for parameter in encoder.parameters()])
    assert torch.equal(*outputs)
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*gradients))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[1])


def saved_bytes(encoder, images):
    """Bytes that autograd keeps for the backward pass, without the weights."""
    own = {parameter.data_ptr() for parameter in encoder.parameters()}
    kept = []

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(images)
    return sum(kept)


def test_checkpointing_keeps_less_and_only_where_there_is_a_backward_pass(monkeypatch):
    from mmblip2.models.vision import vit
    images = torch.zeros(2, 3, 8, 8)
    plain, saving = (VisionTransformer(**TINY, grad_checkpointing=value) for value in (False, True))
    assert saved_bytes(saving, images) < saved_bytes(plain, images) / 3
    monkeypatch.setattr(vit, 'checkpoint', None)  # from here on it must not be called
    with torch.no_grad():
        saving(images)
    saving.eval()(images)
    with pytest.raises(TypeError):
        saving.train()(images)


def test_checkpointing_works_under_autocast():
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    gradients = []
    for grad_checkpointing in (False, True):
        encoder = redrawn(VisionTransformer(**TINY, grad_checkpointing=grad_checkpointing)).train()
        with torch.autocast('cpu', torch.bfloat16):
            loss = encoder(images).float().pow(2).mean()
        loss.backward()
        gradients.append(encoder.blocks[0].attn.qkv.weight.grad)
    assert torch.equal(*gradients)


def blip(**kwargs):
    return VisionTransformer(**{**dict(image_size=16, patch_size=8, width=16, depth=3, num_heads=2, qkv_bias='full',
                                       final_norm=True), **kwargs})


def test_blips_encoder_normalises_inside():
    torch.manual_seed(0)
    vit, images = blip().eval(), torch.randn(2, 3, 16, 16)
    bare = blip(final_norm=False).eval()
    report = bare.load_state_dict(vit.state_dict(), strict=False)
    assert report.unexpected_keys == ['norm.weight', 'norm.bias'] and not report.missing_keys
    assert vit.norm.eps == 1e-6
    torch.testing.assert_close(vit(images), torch.nn.functional.layer_norm(bare(images), (16, ), eps=1e-6))


def test_stochastic_depth_skips_halves_of_blocks_in_training_only_and_keeps_the_mean():
    torch.manual_seed(0)
    vit = blip(drop_path=0.5)
    assert [block.drop_path for block in vit.blocks] == [0., 0.25, 0.5]
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(vit.eval()(images), vit(images))
    block, x = vit.blocks[2].train(), torch.randn(1, 5, 16).expand(2000, -1, -1)
    half = block.attn(block.norm1(x))
    dropped = block._dropped(half)
    skipped = (dropped == 0).all(dim=2).all(dim=1)
    assert 800 < skipped.sum() < 1200  # 1000 expected, standard deviation 22
    torch.testing.assert_close(dropped[~skipped], half[~skipped] * 2)
    for wrong in (-0.1, 1.):
        with pytest.raises(ConfigError, match=f'drop_path is {wrong}, expected a probability from 0 to below 1'):
            blip(drop_path=wrong)


def test_recomputed_blocks_skip_the_same_halves():
    torch.manual_seed(0)
    vit, images = blip(drop_path=0.5).train(), torch.randn(4, 3, 16, 16)
    gradients = []
    for vit.grad_checkpointing in (False, True):
        torch.manual_seed(1)
        vit.zero_grad()
        vit(images).square().mean().backward()
        gradients.append([p.grad.clone() for p in vit.parameters()])
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(*gradients))
