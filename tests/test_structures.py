import pickle

import torch

from mmblip2.structures import FIELDS, DataSample


def test_table_in_docstring_lists_every_field():
    documented = [line.split()[0] for line in DataSample.__doc__.splitlines() if line.strip()]
    assert [name for name in documented if name in FIELDS] == list(FIELDS)


def test_fields_survive_pickling_and_moving():
    sample = DataSample(sample_idx=3, image_id='a', texts=['x', 'y'], patch_labels=torch.ones(2, 4))
    moved = pickle.loads(pickle.dumps(sample)).to('cpu')
    assert moved.sample_idx == 3 and moved.image_id == 'a' and moved.texts == ['x', 'y']
    assert torch.equal(moved.patch_labels, torch.ones(2, 4))
    assert 'question' not in moved and moved.get('question') is None
