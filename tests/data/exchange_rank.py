"""Rows chosen from two processes, exchanged and gathered: python exchange_rank.py OUT writes OUT/<rank>.pth."""
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from processes import finish, fork

from mmblip2.utils.dist import exchange_rows, gather

CHOSEN = [[5, 3, 3], [0, 4, 5]]


def work(rank, out):
    dist.init_process_group('gloo')
    index = torch.tensor(CHOSEN[rank])
    result = dict(gathered=[])
    all_gather = dist.all_gather
    dist.all_gather = lambda parts, x: (result['gathered'].append(x.dtype), all_gather(parts, x))
    for name, choose in (('exchanged', exchange_rows), ('plain', lambda x, index: gather(x, True)[index])):
        if name == 'plain':
            dist.all_gather = all_gather
        x = (torch.arange(6.).reshape(3, 2) + 10 * rank).requires_grad_()
        rows = choose(x, index)
        (rows * torch.arange(1., 7.).reshape(3, 2) * (rank + 1)).sum().backward()
        result[name] = rows.detach(), x.grad
    torch.save(result, Path(out, f'{rank}.pth'))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    assert not any(finish(fork(2, work, sys.argv[1])))
