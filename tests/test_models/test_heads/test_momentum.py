import pytest
import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.models.heads import MomentumCopies, advance, check_queue, random_queue


def test_copies_follow_slowly_and_are_not_trained():
    torch.manual_seed(0)
    parts = dict(one=nn.Linear(3, 2), two=nn.LayerNorm(2))
    copies = MomentumCopies(0.9, parts)
    assert list(copies.state_dict()) == ['one.weight', 'one.bias', 'two.weight', 'two.bias']
    assert not any(p.requires_grad for p in copies.parameters()) and parts['one'].weight.requires_grad
    before = copies.one.weight.clone()
    with torch.no_grad():
        parts['one'].weight.add_(1.)
    assert torch.equal(copies.one.weight, before), 'a copy, not the module itself'
    copies.follow(parts)
    torch.testing.assert_close(copies.one.weight, 0.9 * before + 0.1 * (before + 1.))
    copies.restart(parts)
    assert torch.equal(copies.one.weight, parts['one'].weight)


def test_momentum_is_a_share():
    for wrong in (-0.1, 1., 995):
        with pytest.raises(ConfigError, match=f'momentum is {wrong}, expected a number from 0 to below 1'):
            MomentumCopies(wrong, {})


def test_the_oldest_entries_are_replaced_in_order():
    queue, ids, pointer = torch.zeros(2, 6), torch.zeros(6, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for step in range(1, 5):
        new = torch.tensor([2 * step - 1, 2 * step])
        advance([queue, ids], pointer, [new.expand(2, 2).float(), new])
        assert pointer.tolist() == [2 * step % 6]
    assert ids.tolist() == [7, 8, 3, 4, 5, 6] and queue[1].tolist() == [7, 8, 3, 4, 5, 6]
    new = torch.tensor([9, 10, 11, 12, 13])  # more than there is room for behind the oldest
    advance([queue, ids], pointer, [new.expand(2, 5).float(), new])
    assert ids.tolist() == [13, 8, 9, 10, 11, 12] == queue[0].tolist() and pointer.tolist() == [1]


def test_a_new_queue_is_the_same_everywhere_and_of_unit_length():
    torch.manual_seed(1)
    queue = random_queue(8, 50, 0)
    torch.manual_seed(2)
    assert torch.equal(queue, random_queue(8, 50, 0)) and not torch.equal(queue, random_queue(8, 50, 1))
    torch.testing.assert_close(queue.norm(dim=0), torch.ones(50))
    assert queue.mean().abs() < 0.1 and queue.std() > 0.1


def test_batches_that_do_not_fill_a_queue_evenly_are_refused():
    check_queue(57600, 75, 16)
    with pytest.raises(ConfigError, match=r'queue_size 57600 is not a multiple of the batch of all processes, 224 \(28 '
                                          r'of 8 processes\): set queue_size to 57568 or 57792, or change the batch '
                                          r'size; .* set drop_last=True in train_dataloader'):
        check_queue(57600, 28, 8)
    with pytest.raises(ConfigError, match=r'12 \(12 of 1 process\): set queue_size to 12, or'):
        check_queue(8, 12, 1)
