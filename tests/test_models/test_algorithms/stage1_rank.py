"""One process of the two-process test of stage 1: python stage1_rank.py BERT_FOLDER OUT.

Loss and gradients (averaged over processes, as DDP does) of its share of a batch of four go to OUT.
"""
import os
import sys

import torch
import torch.distributed as dist

from mmblip2.models.algorithms import Blip2Representation
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

TEXTS = ['a small red circle', 'two green stars', 'one yellow cross above a large star', 'a blue square']


def main(bert, out):
    world = int(os.environ.get('WORLD_SIZE', 1))
    rank = int(os.environ.get('RANK', 0))
    if world > 1:
        dist.init_process_group('gloo')
    torch.manual_seed(0)
    model = Blip2Representation(
        MODELS.build(dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=1, num_heads=2)),
        MODELS.build(dict(type='QFormer', vision_width=16, num_layers=2, width=16, num_heads=2, num_query=3,
                          max_positions=32, vocab_size=130, dropout=0., init_std=0.2)),
        MODELS.build(dict(type='BertTokenizer', path=bert)), embed_dim=8, allow_random=True)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    samples = [DataSample(text=text, image_id=i) for i, text in enumerate(TEXTS)]
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    losses = model.loss(images[share], samples[share])
    names = [name for name in losses if 'loss' in name]
    sum(losses[name] for name in names).backward()
    values = torch.stack([losses[name].detach() for name in names])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    if world > 1:
        for tensor in (values, *gradients.values()):
            dist.all_reduce(tensor)
            tensor /= world
    if rank == 0:
        torch.save(dict(names=names, values=values, gradients=gradients), out)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # a short gloo process sometimes aborts on the way out


if __name__ == '__main__':
    main(*sys.argv[1:])
