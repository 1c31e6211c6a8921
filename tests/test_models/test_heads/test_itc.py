import pytest
import torch

from mmblip2.errors import ConfigError
from mmblip2.models.heads import ITCHead


def test_dropout_of_both_features_in_training_alone():
    torch.manual_seed(0)
    head = ITCHead(64, 8, dropout=0.5)
    images, texts = torch.randn(2, 3, 64), torch.randn(2, 64)
    head.eval()
    assert torch.equal(head.image_features(images), head.image_features(images))
    assert torch.equal(head.text_features(texts), head.text_features(texts))
    head.train()
    assert not torch.equal(head.image_features(images), head.image_features(images))
    assert not torch.equal(head.text_features(texts), head.text_features(texts))
    assert not any('dropout' in name for name in head.state_dict())


@pytest.mark.parametrize('share', [-0.1, 1])
def test_dropout_is_a_share(share):
    with pytest.raises(ConfigError, match=f'dropout of contrastive features is {share}, expected a number from 0 to'):
        ITCHead(64, 8, dropout=share)
