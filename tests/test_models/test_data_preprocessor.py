import pytest
import torch
from mmengine.dataset import pseudo_collate

from mmblip2.errors import ConfigError, DataError
from mmblip2.models.data_preprocessor import CLIP_MEAN, CLIP_STD, ImageTextPreprocessor
from mmblip2.structures import DataSample


def batch(*sizes):
    return pseudo_collate([{
        'inputs': torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
        'data_samples': DataSample(sample_idx=index)
    } for index, (height, width) in enumerate(sizes)])


def test_images_are_stacked_and_normalised_in_float32():
    data = batch((4, 6), (4, 6))
    out = ImageTextPreprocessor(mean=[1, 2, 3], std=[2, 4, 8])(data)
    expected = torch.stack(data['inputs']).double()
    expected = (expected - torch.tensor([1., 2, 3]).view(3, 1, 1)) / torch.tensor([2., 4, 8]).view(3, 1, 1)
    assert out['images'].dtype == torch.float32
    torch.testing.assert_close(out['images'].double(), expected)
    assert [sample.sample_idx for sample in out['data_samples']] == [0, 1]


def test_the_callers_batch_is_not_changed():
    data = batch((4, 4))
    before = data['inputs'][0].clone()
    ImageTextPreprocessor()(data)
    assert torch.equal(data['inputs'][0], before) and data['inputs'][0].dtype == torch.uint8


def test_defaults_are_clips_and_survive_casting_the_model():
    preprocessor = ImageTextPreprocessor().to(torch.bfloat16)
    assert torch.equal(preprocessor.mean.flatten(), torch.tensor(CLIP_MEAN))
    assert torch.equal(preprocessor.std.flatten(), torch.tensor(CLIP_STD))
    assert preprocessor(batch((4, 4)))['images'].dtype == torch.float32
    assert not preprocessor.state_dict()


def test_batch_of_texts_has_no_images():
    data = {'data_samples': [DataSample(target='x')]}
    assert ImageTextPreprocessor()(data) == {'images': None, 'data_samples': data['data_samples']}


def test_label_tensors_follow_the_images():
    data = batch((4, 4))
    data['data_samples'][0].patch_labels = torch.zeros(1, 4, dtype=torch.long)
    sample = ImageTextPreprocessor().to('meta')(data)['data_samples'][0]
    assert sample.patch_labels.device.type == 'meta' and sample.sample_idx == 0
    assert data['data_samples'][0].patch_labels.device.type == 'cpu'


def test_different_sizes_in_a_batch_are_refused():
    with pytest.raises(DataError, match=r'of one batch differ in size, .* \(3, 4, 4\) and \(3, 4, 6\)'):
        ImageTextPreprocessor()(batch((4, 4), (4, 6)))


def test_size_that_is_not_the_models_is_refused():
    with pytest.raises(ConfigError) as error:
        ImageTextPreprocessor(image_size=364)(batch((384, 384)))
    assert str(error.value) == ('image size of the model (364) and of the pipeline (384) differ: '
                                'set both to one value')
    with pytest.raises(ConfigError, match=r'model \(4\) and of the pipeline \(4 x 6\)'):
        ImageTextPreprocessor(image_size=4)(batch((4, 6)))
    ImageTextPreprocessor(image_size=(4, 6))(batch((4, 6)))


def test_wrong_mean_is_refused():
    with pytest.raises(ConfigError, match='mean and std have three values each'):
        ImageTextPreprocessor(mean=[0.5])


def test_features_of_a_cache_stay_as_they_are_and_do_not_mix_with_images():
    tokens = [torch.full((5, 6), 300., dtype=torch.bfloat16), torch.zeros(5, 6, dtype=torch.bfloat16)]
    out = ImageTextPreprocessor(image_size=8)(dict(inputs=tokens))
    assert torch.equal(out['images'], torch.stack(tokens)) and out['images'].dtype == torch.bfloat16
    with pytest.raises(ConfigError, match='give all data sets of the loader a feature_cache, or none'):
        ImageTextPreprocessor()(dict(inputs=[tokens[0], *batch((8, 8))['inputs']]))
