"""Losses and gradients of a batch of eight, on one, two and four processes: python loss_rank.py BERT OPT OUT.

Writes OUT/<stage>_<processes>.pth (stage 'blip': BLIP's pre-training, in its second step); gradients are averaged over
the processes, as DDP does. The texts of the processes have unequal lengths and numbers of tokens.
"""
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from processes import finish, fork

from mmblip2.models.algorithms import Blip2Generation, Blip2Representation, BlipRepresentation
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

TEXTS = ['a small red circle', 'two green stars', 'one yellow cross above a large star', 'a blue square', 'a star',
         'there are three objects', 'two green stars above one yellow cross', 'a cross']


def build(stage, bert, opt):
    torch.manual_seed(0)
    vision = MODELS.build(dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=1, num_heads=2))
    if stage == 'blip':
        encoder, decoder = (MODELS.build(dict(
            type='MED', vision_width=16, num_layers=2, width=16, num_heads=2, dropout=0., max_positions=40,
            vocab_size=130, init_std=0.2)) for _ in range(2))
        tokenizer = MODELS.build(dict(type='BertTokenizer', path=bert, enc_token=True))
        return BlipRepresentation(vision, encoder, tokenizer, decoder, embed_dim=8, queue_size=24,
                                  negative_all_rank=True)
    qformer = dict(type='QFormer', vision_width=16, num_layers=2, width=16, num_heads=2, num_query=3, dropout=0.,
                   max_positions=32, init_std=0.2)
    if stage == 1:
        return Blip2Representation(vision, MODELS.build(dict(qformer, vocab_size=130)),
                                   MODELS.build(dict(type='BertTokenizer', path=bert)), embed_dim=8, allow_random=True)
    language_model = MODELS.build(dict(type='CausalLM', tokenizer=opt, config=dict(
        model_type='opt', hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1, dropout=0.,
        num_attention_heads=2, max_position_embeddings=64)))
    return Blip2Generation(vision, MODELS.build(qformer), language_model, allow_random=True)


def work(rank, world, stage, bert, opt, out):
    if world > 1:
        dist.init_process_group('gloo')
    model = build(stage, bert, opt).train()
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    samples = [DataSample(text=text, image_id=i // 2, prompt='a photo of', target=text) for i, text in enumerate(TEXTS)]
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    if stage == 'blip':  # its queues and momentum encoders move in a step, so what counts is the next one
        with torch.no_grad():
            model.loss(images[share].flip(-1), [*samples[1:], samples[0]][share])
            model.itc_head.vision_proj.weight.mul_(1.5)
    losses = model.loss(images[share], samples[share])
    names = [name for name in losses if 'loss' in name]
    sum(losses[name] for name in names).backward()
    values = torch.stack([losses[name].detach() for name in names])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    if world > 1:
        for tensor in (values, *gradients.values()):
            dist.all_reduce(tensor)
            tensor /= world
    if rank == world - 1:
        torch.save(dict(names=names, values=values, gradients=gradients, buffers=dict(model.named_buffers())),
                   Path(out, f'{stage}_{world}.pth'))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == '__main__':
    stages = 1, 2, 'blip'
    for number in stages:
        build(number, *sys.argv[1:3])  # imports what the forks would import again
    for number in stages:
        for count in (1, 2, 4):
            assert not any(finish(fork(count, work, count, number, *sys.argv[1:4]))), (number, count)
