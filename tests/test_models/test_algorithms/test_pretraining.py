"""The parts that the quickstart makes itself before it freezes them."""
import copy

import pytest
import torch

from mmblip2.errors import DataError
from mmblip2.models.algorithms.pretraining import LanguagePretraining, VisionPretraining
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample


@pytest.fixture
def language(tiny_parts):
    torch.manual_seed(0)
    return LanguagePretraining(MODELS.build(copy.deepcopy(tiny_parts['language_model'])))


@pytest.fixture
def vision(tiny_parts):
    torch.manual_seed(0)
    encoder = MODELS.build(copy.deepcopy(tiny_parts['vision']))
    return VisionPretraining(encoder, dict(shape=3, size=2))


def labelled(vision, attributes=2):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    patches = vision.vision(images).size(1) - 1
    labels = torch.arange(attributes * patches).view(attributes, patches) % 2
    return images, [DataSample(patch_labels=labels), DataSample(patch_labels=1 - labels)]


def train(model, batch, steps, lr):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(value for key, value in model(*batch, mode='loss').items() if key.startswith('loss'))
        loss.backward()
        optimizer.step()
    return loss.item()


def test_vision_encoder_learns_its_labels_and_counts_whole_patches(vision):
    batch = labelled(vision)
    before = [sample.pred_correct for sample in vision(*batch, mode='predict')]
    assert train(vision, batch, 150, 3e-3) < 0.1
    after = vision(*batch, mode='predict')
    assert all(sample.pred_correct == sample.num_patches > old for sample, old in zip(after, before))


def test_labels_of_other_attributes_are_refused(vision):
    with pytest.raises(DataError, match=r'patch_labels have 3 attributes, model.num_classes has 2 \(shape, size\)'):
        vision(*labelled(vision, attributes=3), mode='loss')


def test_language_model_learns_targets_and_reads_prompts(language):
    samples = [DataSample(prompt=prompt, target=target)
               for prompt, target in (('a small', 'red circle'), ('two green', 'stars above'))]
    assert train(language, (None, samples), 60, 1e-2) < 0.5
    known = [sample.nll for sample in language(None, samples, mode='predict')]
    swapped = [DataSample(prompt=samples[1 - i].prompt, target=sample.target) for i, sample in enumerate(samples)]
    assert all(sample.nll > nll + 1 for sample, nll in zip(language(None, swapped, mode='predict'), known))
    assert all(sample.num_tokens > 0 for sample in swapped)
