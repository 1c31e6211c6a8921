"""Trains a tiny stage 1, kills it again and again, and says whether the weights at the end are those of a run that was
left alone.

    python fault_run.py FOLDER WORLD WORKERS KILLS [shards]

With "shards" the data are a mix of tar shards, some samples of which are bad, and of single files.
Everything is imported once; each training is a fork of this process, so that a start costs little. Writes
FOLDER/result.json.
"""
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from processes import finish, fork
from tar_shards import write_shards

import mmblip2.datasets
import mmblip2.evaluation
import mmblip2.models  # noqa: F401
from mmblip2.checkpoints import io
from mmblip2.engine import Runner
from mmblip2.engine.hooks import CheckpointHook
from mmblip2.engine.preempt import PreemptHook

ITERATIONS = 60 if 'shards' in sys.argv else 120
TEXTS = ('two green stars above one yellow cross', 'a small red circle', 'there are three objects',
         'a large blue square left of a star')


def write_data(folder):
    """Images, captions and a WordPiece tokenizer."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(TEXTS, vocab_size=90, show_progress=False)
    tokenizer.save_model(str(folder))
    BertTokenizerFast.from_pretrained(str(folder)).save_pretrained(str(folder / 'bert'))
    pixels = np.random.default_rng(0).integers(0, 255, (10, 24, 24, 3), dtype=np.uint8)
    for number, array in enumerate(pixels):
        Image.fromarray(array).save(folder / f'{number}.png')
    (folder / 'train.json').write_text(json.dumps(
        [dict(image=f'{i}.png', caption=[TEXTS[i % 4], TEXTS[(i + 1) % 4]]) for i in range(10)]))
    texts = {i: dict(json=json.dumps(dict(caption=[TEXTS[i % 4], TEXTS[(i + 1) % 4]])).encode()) for i in range(17)}
    write_shards(folder / 'shards', (6, 4, 7), {**texts, 3: dict(json=None), 12: dict(png=b'no image')})


def data(folder, shards):
    """The config of the training data."""
    pipeline = [dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=16, crop_ratio_range=(0.5, 1.)),
                dict(type='RandomFlip'), dict(type='CleanCaption'), dict(type='PackInputs')]
    files = dict(type='COCORetrieval', data_root=str(folder), ann_file='train.json', pipeline=pipeline)
    if not shards:
        return files
    web = dict(type='WebShards', data_root=str(folder / 'shards'), shards='*.tar', shuffle_shards=2, pipeline=pipeline)
    return dict(type='MixedDataset', datasets=[web, files], ratios=(3, 1), window=8)


def config(folder, work_dir, workers, world):
    """Dropout 0.1, random crops, accumulation over 2 iterations, a checkpoint at the end of each window."""
    return Config(dict(
        default_scope='mmblip2', work_dir=str(work_dir), launcher='pytorch' if world > 1 else 'none',
        model=dict(
            type='Blip2Representation', embed_dim=8, frozen=('vision', ), allow_random=True,
            vision=dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=1, num_heads=2),
            qformer=dict(type='QFormer', vision_width=16, num_layers=1, width=16, num_heads=2, num_query=2,
                         max_positions=32, vocab_size=100, dropout=0.1),
            tokenizer=dict(type='BertTokenizer', path=str(folder / 'bert'))),
        train_dataloader=dict(
            batch_size=3, num_workers=workers, collate_fn=dict(type='pseudo_collate'),
            sampler=dict(type='SeekableInfiniteSampler'),
            dataset=data(folder, 'shards' in sys.argv)),
        train_cfg=dict(type='SeekIterLoop', max_iters=ITERATIONS),
        optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float32', accumulative_counts=2,
                           clip_grad=dict(max_norm=1.), optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05)),
        param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=False)],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=20),
                           bad_samples=dict(type='BadSamplesHook', max_bad=1000),
                           checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=2)),
        randomness=dict(seed=3)))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def plan_death(kind, after):
    """Have this process kill itself in iteration ``after`` of this start, at the moment ``kind``."""
    seen = dict(iterations=0)
    counted = PreemptHook.after_train_iter

    def count(self, runner, batch_idx, data_batch=None, outputs=None):
        counted(self, runner, batch_idx, data_batch, outputs)
        seen['iterations'] += 1
        inside_window = (runner.iter + 1) % 2 == 1
        if kind == 'window' and seen['iterations'] >= after and inside_window:
            die()

    def half_a_file(checkpoint, file):
        if seen['iterations'] < after:
            return save(checkpoint, file)
        import io as python_io
        whole = python_io.BytesIO()
        save(checkpoint, whole)
        file.write(whole.getvalue()[:len(whole.getvalue()) // 2])
        file.flush()
        die()

    def before_the_name(source, target):
        replace(source, target) if seen['iterations'] < after or not str(target).endswith('.pth') else die()

    def before_the_pointer(self, runner, step, meta):
        if seen['iterations'] < after:
            return kept(self, runner, step, meta)
        runner.save_checkpoint(self.out_dir, self.filename_tmpl.format(step), meta=meta, by_epoch=False)
        die()

    PreemptHook.after_train_iter = count
    save, replace, kept = torch.save, os.replace, CheckpointHook._save_checkpoint_with_step
    if kind == 'save':
        io.torch.save = half_a_file
    elif kind == 'rename':
        os.replace = before_the_name
    elif kind == 'pointer':
        CheckpointHook._save_checkpoint_with_step = before_the_pointer


def train(rank, folder, work_dir, workers, world, resume, death=None):
    """One process of a training; on rank 0 it leaves the weights in final.pth."""
    if death is not None and rank == (death[1] % world if death[0] == 'window' else 0):  # rank 0 saves
        plan_death(death[0], 1 + death[1] % 5)
    cfg = config(folder, work_dir, workers, world)
    cfg.resume = resume
    runner = Runner.from_cfg(cfg)
    runner.train()
    if rank == 0:
        io.write_checkpoint(dict(weights=io.saved_state(runner.bare_model)), work_dir / 'final.pth')


def newest(work_dir):
    """Iteration of the newest checkpoint, 0 for none."""
    return max((int(path.stem[5:]) for path in work_dir.glob('iter_*.pth')), default=0)


def main():
    folder, (world, workers, kills) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    write_data(folder)
    rng = random.Random(world * 10 + workers)
    Runner.from_cfg(config(folder, folder / 'warm', 0, 1))  # imports what the forks would import again and again
    statuses = finish(fork(world, train, folder, folder / 'whole', workers, world, False))
    assert not any(statuses), statuses
    done, reached = [], []
    while len(done) < kills:
        kind = ('time', 'window', 'save', 'rename', 'pointer')[len(done) % 5]
        children = fork(world, train, folder, folder / 'cut', workers, world, True, (kind, len(done)))
        if kind == 'time':  # after one or two new checkpoints
            while newest(folder / 'cut') < (reached or [0])[-1] + rng.choice((2, 4)):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
        statuses = finish(children, kill=kind == 'time')
        if not any(statuses):
            break  # it came to its end before it could be killed
        done.append(kind)
        reached.append(newest(folder / 'cut'))
    statuses = finish(fork(world, train, folder, folder / 'cut', workers, world, True))
    assert not any(statuses), statuses
    whole, cut = (torch.load(folder / name / 'final.pth', weights_only=True)['weights'] for name in ('whole', 'cut'))
    equal = whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    bad = [[*map(json.loads, path.read_text().splitlines())] for name in ('whole', 'cut')
           for path in folder.glob(f'{name}/bad_samples.jsonl')]
    (folder / 'result.json').write_text(json.dumps(dict(kills=done, reached=reached, equal=equal, bad=bad)))


if __name__ == '__main__':
    main()
