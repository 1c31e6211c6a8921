"""Fills feature caches with several processes, some of which are killed: python cache_run.py FOLDER.

Writes FOLDER/result.json. Also the parts of tests of feature caches: a config, and an encoder whose features of an
image do not depend on the other images of the batch, to the last bit.
"""
import errno
import json
import os
import signal
import sys
from pathlib import Path

import torch
from eval_run import configs, write_more
from fault_run import config as training
from fault_run import write_data
from mmengine.config import Config
from PIL import Image
from processes import finish, fork
from torch import nn

import mmblip2.datasets
import mmblip2.evaluation
import mmblip2.models  # noqa: F401
from mmblip2.checkpoints import io
from mmblip2.datasets.feature_cache import FeatureCache
from mmblip2.engine import Runner
from mmblip2.errors import MMBlip2Error
from mmblip2.registry import MODELS, TRANSFORMS

FIXED = [dict(type='LoadImage'), dict(type='Resize', scale=16)]
RANDOM = [dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=16), dict(type='RandomFlip')]


@MODELS.register_module()
class PixelTokens(nn.Module):
    """Four tokens of 16 numbers, each of one pixel; nothing is summed up."""
    embed_dim = 16
    image_size = None
    weights_source = 'toy'

    def __init__(self, scale=1.):
        super().__init__()
        self.weight = nn.Parameter(scale * torch.linspace(-1, 1, 16))

    def forward(self, images):
        return images[:, 0, ::4, :16].unflatten(1, (-1, 1))[:, :, 0] * self.weight


@TRANSFORMS.register_module()
class Unsaid:
    """Does not say whether it changes the image."""

    def __call__(self, results):
        return results


def write_files(folder):
    """Ten images, of which the last has another size, and annotations of all tasks."""
    write_data(folder)
    write_more(folder)
    Image.open(folder / '9.png').resize((24, 40)).save(folder / '9.png')


def config(folder, work_dir, stage=1, task=None, image=FIXED, feature_cache=None, vision=None, workers=0, max_iters=6,
           mean=None, amp=None, frozen=('vision', ), reads_text=False, world=1, **dataset):
    """A training of stage 1 or 2, or with ``task`` a test; ``dataset`` are further arguments of the data set."""
    cfg = training(folder, work_dir, workers, world).to_dict()
    vision, tasks = vision or dict(type='PixelTokens'), configs(Path(folder))
    cfg['model'].update(vision=vision, frozen=frozen)
    text, kind = [dict(type='CleanCaption'), dict(type='PackInputs')], 'COCORetrieval'
    if stage == 2:
        cfg['model'] = dict(tasks['vqa' if reads_text else 'caption']['model'], vision=vision,
                            frozen=('vision', 'language_model'), allow_random=True)
        text.insert(1, dict(type='CaptionPrompt', qformer_text='what' if reads_text else None))
        kind = 'COCOCaption'
    if mean:
        cfg['model']['data_preprocessor'] = dict(type='ImageTextPreprocessor', mean=mean)
    dataset['serialize_data'] = False  # mmengine collects garbage after it, which takes long
    if feature_cache:
        dataset['feature_cache'] = feature_cache
    loader = dict(cfg['train_dataloader'])
    cfg['train_dataloader']['dataset'] = dict(type=kind, data_root=str(folder), ann_file='train.json',
                                              pipeline=[*image, *text], **dataset)
    cfg['train_cfg']['max_iters'] = max_iters
    cfg['optim_wrapper'].update(accumulative_counts=1, dtype=amp or 'float32')
    cfg['default_hooks']['checkpoint']['interval'] = 4
    cfg['default_hooks']['logger']['interval'] = 1
    if task:
        for name in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
            cfg.pop(name)
        test = tasks[task]
        rest = [step for step in test['dataset']['pipeline'] if step['type'] not in ('LoadImage', 'Resize')]
        cfg.update(test_cfg=test['test_cfg'], test_evaluator=[test['metric']], test_dataloader=dict(
            loader, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset={**test['dataset'], 'pipeline': [*image, *rest], **dataset}))
    return Config(cfg)


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def train(rank, folder, name, features, world, event=None, shard_mib=1.3e-4):
    """One process of a training; leaves FOLDER/NAME.pth, and which shards it wrote in FOLDER/NAME_RANK.json."""
    settings = dict(dir=str(folder / features), shard_mib=shard_mib)  # an image a shard
    cfg = config(folder, folder / name, feature_cache=settings, world=world)
    cfg.train_dataloader.batch_size = 4 // world
    written = []
    write = FeatureCache.write
    replace = os.replace

    def counting(self, shard, rows):
        write(self, shard, rows)
        written.append(shard)
        (folder / f'{name}_{rank}.json').write_text(json.dumps(written))

    def dying(source, target):
        if str(target).endswith('.bin') and len(written) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def full(handle):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, 'No space left on device')

    FeatureCache.write = counting
    if event == 'kill' and rank == 0:
        os.replace = dying
    if event == 'full':
        os.fsync = full
    try:
        runner = Runner.from_cfg(cfg)
        runner.train()
    except MMBlip2Error as error:
        (folder / f'{name}_{rank}.txt').write_text(str(error))
        os._exit(2)
    if rank == 0:
        io.write_checkpoint(dict(weights=io.saved_state(runner.bare_model)), folder / f'{name}.pth')


def main():
    folder = Path(sys.argv[1])
    write_files(folder)
    Config.pretty_text = ''  # a third of the time
    Runner.from_cfg(config(folder, folder / 'warm'))

    def made(name, rank):
        path = folder / f'{name}_{rank}.json'
        return json.loads(path.read_text()) if path.is_file() else []

    def shards(features):
        return sorted((folder / features).glob('*/shard-*.bin'))

    def weights(name):
        return torch.load(folder / f'{name}.pth', weights_only=True)['weights']

    statuses = finish(fork(1, train, folder, 'one', 'alone', 1))
    statuses += finish(fork(2, train, folder, 'two', 'together', 2))
    assert not any(statuses), statuses
    whole = [path.read_bytes() for path in shards('alone')]
    result = dict(shards=len(whole), two_equal_one=[path.read_bytes() for path in shards('together')] == whole,
                  shared=sorted(made('two', 0) + made('two', 1)) == list(range(len(whole))))
    result['two_close_to_one'] = all(torch.allclose(a, b, atol=1e-4) for a, b in zip(
        weights('one').values(), weights('two').values()))

    assert any(finish(fork(1, train, folder, 'killed', 'cut', 1, 'kill')))
    result['left_by_the_kill'] = len(shards('cut'))
    result['parts_after_the_kill'] = len(list((folder / 'cut').glob('*/*.part')))
    # two runs that know nothing of one another go on at the same time
    statuses = finish(fork(1, train, folder, 'first', 'cut', 1) + fork(1, train, folder, 'second', 'cut', 1))
    assert not any(statuses), statuses
    result['made_after_the_kill'] = len(made('first', 0)) + len(made('second', 0))
    result['resumed_equal'] = [path.read_bytes() for path in shards('cut')] == whole and equal(
        weights('first'), weights('one')) and equal(weights('second'), weights('one'))
    result['files_at_the_end'] = len(list((folder / 'cut').glob('*/*')))

    statuses = finish_all(fork(2, train, folder, 'full', 'full', 2, 'full'))
    result['full_disk_status'] = statuses
    result['full_disk_said'] = [(folder / f'full_{rank}.txt').read_text() for rank in range(2)]
    result['full_disk_kept'] = len(shards('full'))
    (folder / 'result.json').write_text(json.dumps(result))


def finish_all(children):
    """Wait for all; exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == '__main__':
    main()
