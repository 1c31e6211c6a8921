"""Trains tiny models on one process, with DDP and with FSDP2: python fsdp_run.py FOLDER OPT.

Everything is imported once; each training is a fork of this process. Each leaves losses.pth (the mean over processes,
one row an iteration) and final.pth in FOLDER/<name>.
"""
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.tensor
from fault_run import plan_death, write_data
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from processes import finish, fork

from mmblip2.checkpoints import io
from mmblip2.datasets.samplers import Draw, SeekableInfiniteSampler
from mmblip2.engine import Runner
from mmblip2.registry import DATA_SAMPLERS, HOOKS, METRICS, TRANSFORMS

BATCH = 8  # of all processes
LOSSES: list = []
TEXTS: list = []


@DATA_SAMPLERS.register_module()
class ContiguousSampler(SeekableInfiniteSampler):
    """Process r has the r-th part of a batch, so that gathered rows stand as one process has them."""

    def __iter__(self):
        for draw in super().__iter__():
            each = BATCH // self.world_size
            pos = draw.pos // BATCH * BATCH + self.rank * each + draw.pos % BATCH // self.world_size
            yield Draw(pos * 3 % self.size, draw.seed, pos)


@TRANSFORMS.register_module()
class TextAsTarget:

    def __call__(self, results):
        return dict(results, prompt='a photo of', target=results['text'])


@HOOKS.register_module()
class KeepLosses(Hook):

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        row = torch.stack([outputs[name].detach().float() for name in sorted(outputs) if 'loss' in name])
        if dist.is_initialized():
            dist.all_reduce(row)
            row /= dist.get_world_size()
        LOSSES.append(row)


def config(folder, opt, stage, work_dir, world, **changes):
    vision = dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=2, num_heads=2)
    qformer = dict(type='QFormer', vision_width=16, num_layers=2, width=16, num_heads=2, num_query=3, max_positions=32,
                   dropout=0., init_std=0.2)
    if stage == 1:
        model = dict(type='Blip2Representation', vision=vision, qformer=dict(qformer, vocab_size=100), embed_dim=8,
                     tokenizer=dict(type='BertTokenizer', path=str(folder / 'bert')))
    else:
        model = dict(type='Blip2Generation', vision=vision, qformer=qformer, frozen=('vision', 'language_model'),
                     language_model=dict(type='CausalLM', tokenizer=opt, config=dict(
                         model_type='opt', hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2,
                         dropout=0., num_attention_heads=2, max_position_embeddings=64)))
    task = [] if stage == 1 else [dict(type='TextAsTarget')]
    cfg = Config(dict(
        default_scope='mmblip2', work_dir=str(work_dir), launcher='pytorch' if world > 1 else 'none',
        model=dict({'frozen': ('vision', ), **model}, allow_random=True),
        train_dataloader=dict(
            batch_size=BATCH // world, num_workers=0, collate_fn=dict(type='pseudo_collate'),
            sampler=dict(type='ContiguousSampler', seed=0),
            dataset=dict(type='COCORetrieval', data_root=str(folder), ann_file='train.json', pipeline=[
                dict(type='LoadImage'), dict(type='Resize', scale=16), dict(type='CleanCaption'), *task,
                dict(type='PackInputs')])),
        train_cfg=dict(type='SeekIterLoop', max_iters=8),
        optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float32', accumulative_counts=2,
                           clip_grad=dict(max_norm=0.5), optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05)),
        param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=False)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=9)),
        custom_hooks=[dict(type='KeepLosses')], randomness=dict(seed=3)))
    cfg.merge_from_dict(changes)
    return cfg


@METRICS.register_module()
class KeepTexts(BaseMetric):
    """Keeps what was said of which image, and of how many there were as a number."""

    def process(self, data_batch, data_samples):
        self.results += [(sample['sample_idx'], sample['pred_text']) for sample in data_samples]

    def compute_metrics(self, results):
        TEXTS.append(sorted(set(results)))
        return dict(count=len(results))


def validation(folder):
    """Of 5 images, which two processes cannot share evenly."""
    return dict(
        val_cfg=dict(type='ValLoop'), val_evaluator=dict(type='KeepTexts'),
        val_dataloader=dict(
            batch_size=1, num_workers=0, collate_fn=dict(type='pseudo_collate'),
            sampler=dict(type='BlockSampler', batch_size=1),
            dataset=dict(type='COCORetrieval', data_root=str(folder), ann_file='train.json', indices=5, pipeline=[
                dict(type='LoadImage'), dict(type='Resize', scale=16), dict(type='CleanCaption'),
                dict(type='TextAsTarget'), dict(type='PackInputs')])),
        **{'train_cfg.val_interval': 4})


def train(rank, cfg, resume=False, death=None):
    """One process of a training."""
    if death is not None and rank == death[1]:
        plan_death(death[0], 3)
    cfg.resume = resume
    runner = Runner.from_cfg(cfg)
    runner.train()
    weights = io.saved_state(runner.bare_model)
    if rank == 0:
        io.write_checkpoint(dict(weights=weights), Path(cfg.work_dir, 'final.pth'))
        io.write_checkpoint(dict(losses=torch.stack(LOSSES), texts=TEXTS), Path(cfg.work_dir, 'losses.pth'))


WRAP = {1: ['vision.blocks.*'], 2: ['vision', 'language_model.model.model.decoder.layers.*']}


def main():
    folder, opt = Path(sys.argv[1]), sys.argv[2]
    write_data(folder)

    def run(name, stage, world, wrap=None, **how):
        given = {} if wrap is None else dict(fsdp=dict(wrap=wrap))
        changes = how.pop('changes', {})
        cfg = config(folder, opt, stage, folder / name, world, **given, **changes)
        return finish(fork(world, train, cfg, *how.values()))

    for stage in (1, 2):
        Runner.from_cfg(config(folder, opt, stage, folder / 'warm', 1))  # imports what the forks would import again
    for stage, wrap in WRAP.items():
        assert not any(run(f'{stage}_one', stage, 1))
        assert not any(run(f'{stage}_fsdp2', stage, 2, wrap))
        assert not any(run(f'{stage}_fsdp4', stage, 4, wrap))
    assert not any(run('1_ddp2', 1, 2))
    # each kind goes on from iteration 4 of another
    for name, world, wrap, source in (('one', 1, None, 'fsdp4'), ('ddp2', 2, None, 'fsdp2'),
                                      ('fsdp4', 4, WRAP[1], 'one'), ('fsdp2', 2, [], 'ddp2')):
        assert not any(run(f'{name}_from_{source}', 1, world, wrap, resume=str(folder / f'1_{source}' / 'iter_4.pth')))
    # recomputed activations, averaged weights through a file, and a validation in which one process has more to do
    more = dict(custom_hooks=[dict(type='KeepLosses'), dict(type='EMAHook', momentum=0.1)],
                activation_checkpointing=['vision.blocks.*', 'qformer.layers.*'], **validation(folder))
    assert not any(run('ema_one', 2, 1, changes=more))
    assert not any(run('ema_fsdp2', 2, 2, WRAP[2], resume=str(folder / 'ema_one' / 'iter_4.pth'), changes=more))
    for kind, rank in (('window', 1), ('pointer', 0)):
        assert any(run('killed', 1, 2, WRAP[1], resume=True, death=(kind, rank)))
    assert not any(run('killed', 1, 2, WRAP[1], resume=True))


if __name__ == '__main__':
    main()
