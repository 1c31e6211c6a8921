import json

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from mmblip2.datasets import SceneLabels
from mmblip2.errors import DataError

ATTRIBUTES = dict(shape=['background', 'circle'], colour=['background', 'red', 'blue'])
PIPELINE = [dict(type='LoadImage'), dict(type='PackInputs')]


def build(root, labels, **changes):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / 'a.png')
    content = dict(dict(patch_size=8, image_size=16, attributes=ATTRIBUTES,
                        items=[dict(image='a.png', patch_labels=labels)]), **changes)
    (root / 'labels.json').write_text(json.dumps(content))
    return SceneLabels('labels.json', data_root=str(root), pipeline=PIPELINE)


def test_labels_arrive_as_tensors_through_workers(tmp_path):
    dataset = build(tmp_path, [[0, 1, 0, 1], [0, 2, 0, 1]])
    batch = next(iter(DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)))
    labels = batch['data_samples'][0].patch_labels
    assert labels.dtype == torch.int64 and labels.tolist() == [[0, 1, 0, 1], [0, 2, 0, 1]]
    labels += 1  # a model may write into its batch
    assert dataset[0]['data_samples'].patch_labels.tolist() == [[0, 1, 0, 1], [0, 2, 0, 1]]
    assert dataset.metainfo['attributes'] == ATTRIBUTES and dataset.metainfo['patch_size'] == 8


def test_image_labels_are_optional(tmp_path):
    labels = [[0] * 4] * 2
    assert 'image_labels' not in build(tmp_path, labels)[0]['data_samples']
    sample = build(tmp_path, labels, items=[dict(image='a.png', patch_labels=labels, image_labels=[0, 1])])[0]
    assert sample['data_samples'].image_labels.tolist() == [0.0, 1.0]


@pytest.mark.parametrize('labels', [[[0] * 4], [[0] * 5] * 2, [[0, 2, 0, 0], [0] * 4],
                                    [[0] * 4, [0, 0, 0, -1]]])
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    with pytest.raises(DataError, match=r'patch_labels of a\.png in .*labels\.json do not fit: shape .*, '
                                        r'expected \(2, 4\) .* with labels below \[2, 3\]'):
        build(tmp_path, labels)


def test_other_layouts_are_described(tmp_path):
    with pytest.raises(DataError, match='labels.json has a layout that cannot be read'):
        build(tmp_path, [[0, 1], [0]])
    with pytest.raises(DataError, match='labels.json has a layout that cannot be read'):
        build(tmp_path, [], items=[dict(image='a.png')])
