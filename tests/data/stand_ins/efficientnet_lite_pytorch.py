"""Stands in for the package of this name where a config is checked, or built without weights."""
from torch import nn


class EfficientNet(nn.Module):
    """7 x 7 x 1280 features of 224 px images, as EfficientNet-Lite0 gives them, by one convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1280, 32, stride=32)

    @classmethod
    def from_name(cls, model_name):
        assert model_name == 'efficientnet-lite0', model_name
        return cls()

    def extract_features(self, images):
        return self.conv(images)
