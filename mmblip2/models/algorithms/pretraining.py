"""Training of the parts that BLIP-2 takes frozen, for those who have none (the quickstart)."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn

from mmblip2.errors import DataError
from mmblip2.registry import MODELS
from mmblip2.utils.dist import share_of_global

from ..language.base import LanguageModel


class _Pretraining(BaseModel):
    """Shared dispatch; every part initialises itself."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor or dict(type='mmblip2.ImageTextPreprocessor'))

    def init_weights(self):
        """Nothing: every part initialises itself when it is built."""

    def forward(self, images=None, data_samples=None, mode='tensor'):
        """'loss' or 'predict'."""
        return self.loss(images, data_samples) if mode == 'loss' else self.predict(images, data_samples)


@MODELS.register_module()
class LanguagePretraining(_Pretraining):
    """A language model learns ``target`` after ``prompt``, without images.

    Args:
        language_model (nn.Module): ``CausalLM``, trainable.
        data_preprocessor (dict, optional): Config of the data preprocessor.
    """

    def __init__(self, language_model: LanguageModel, data_preprocessor: dict | None = None):
        super().__init__(data_preprocessor)
        self.language_model = language_model

    def loss(self, images, data_samples: Sequence) -> dict:
        """Returns loss_lm, the mean over target tokens."""
        total, count = self.language_model.loss(None, [sample.prompt for sample in data_samples],
                                                [sample.target for sample in data_samples])
        return dict(loss_lm=share_of_global(total, count))

    @torch.no_grad()
    def predict(self, images, data_samples: Sequence) -> Sequence:
        """Write ``nll`` (nats, summed over the sample's target tokens) and ``num_tokens``."""
        for sample in data_samples:
            total, count = self.language_model.loss(None, [sample.prompt], [sample.target])
            sample.nll, sample.num_tokens = float(total), int(count)
        return data_samples


@MODELS.register_module()
class VisionPretraining(_Pretraining):
    """A vision encoder learns what each of its patches shows.

    Args:
        vision (nn.Module): Encoder whose tokens are a class token and then patches, with ``embed_dim``.
        num_classes (dict): Number of classes of each attribute, in the order of ``patch_labels``.
        data_preprocessor (dict, optional): Config of the data preprocessor.
    """

    vision: Any  # a module with embed_dim

    def __init__(self, vision: nn.Module, num_classes: dict[str, int], data_preprocessor: dict | None = None):
        super().__init__(data_preprocessor)
        self.vision = vision
        self.num_classes = dict(num_classes)
        self.norm = nn.LayerNorm(self.vision.embed_dim)
        self.classifier = nn.Linear(self.vision.embed_dim, sum(num_classes.values()))

    def _logits_and_labels(self, images, data_samples):
        """Per attribute: logits (B, classes, P) and labels (B, P)."""
        logits = self.classifier(self.norm(self.vision(images)[:, 1:])).float()  # (B, P, sum of classes)
        labels = torch.stack([sample.patch_labels for sample in data_samples]).to(logits.device)  # (B, A, P)
        if labels.size(1) != len(self.num_classes):
            raise DataError(f'patch_labels have {labels.size(1)} attributes, model.num_classes has '
                            f'{len(self.num_classes)} ({", ".join(self.num_classes)}): name the same ones')
        return zip(self.num_classes, logits.transpose(1, 2).split(list(self.num_classes.values()), dim=1),
                   labels.unbind(dim=1))

    def loss(self, images: torch.Tensor, data_samples: Sequence) -> dict:
        """Returns one loss an attribute, averaged over patches."""
        return {f'loss_{name}': F.cross_entropy(logits, labels)
                for name, logits, labels in self._logits_and_labels(images, data_samples)}

    @torch.no_grad()
    def predict(self, images: torch.Tensor, data_samples: Sequence) -> Sequence:
        """Write ``pred_correct`` (patches with every attribute right) and ``num_patches``."""
        right = torch.stack([logits.argmax(dim=1) == labels
                             for _, logits, labels in self._logits_and_labels(images, data_samples)]).all(dim=0)
        for sample, row in zip(data_samples, right):
            sample.pred_correct, sample.num_patches = int(row.sum()), row.numel()
        return data_samples
