"""Streams of small shards whose samples tell where they are from."""
import torch
from mmengine.config import Config
from toy_parts import toy_config

from mmblip2.datasets import WebStream, web_stream
from mmblip2.datasets.tar_files import open_tar
from mmblip2.datasets.transforms import LoadImage
from mmblip2.registry import TRANSFORMS
from mmblip2.structures import DataSample
from mmblip2.utils import config_check


def read_without_package(monkeypatch):
    """Shards are read from files, as webdataset would read them: it need not be installed."""
    def read(url):
        file = open_tar(url.removeprefix('test:'))
        for number in range(file.summary.samples):
            key, members = file.sample(number)
            yield {'__key__': key, '__url__': url, **{ending: file.read(place) for ending, place in members.items()}}

    monkeypatch.setattr(web_stream, '_read', read)
    monkeypatch.setattr(web_stream, 'find_spec', lambda name: True)
    monkeypatch.setattr(config_check, 'find_spec', lambda name: True)


@TRANSFORMS.register_module()
class NumberOfImage:
    """The number that is in the picture's corner."""

    def __call__(self, results):
        red = LoadImage()(results)['image'].getpixel((0, 0))[0]
        sample = DataSample(sample_idx=results['sample_idx'], text=results['caption'], question=str(red))
        return dict(inputs=torch.tensor([red / 20, *results['rng'].random(3)]).float(), data_samples=sample)


class Traced(WebStream):
    """Notes the number of the shard that a sample is from, as ``question_id``."""

    def _pack(self, number, index, raw):
        packed = super()._pack(number, index, raw)
        if 'data_samples' in packed:
            packed['data_samples'].question_id = number
        return packed


def numbers(packed):
    return [int(item['data_samples'].question) for item in packed]


def config(folder, work_dir, workers=0, max_iters=9, **changes):
    cfg = toy_config(work_dir, max_iters, workers, **changes)
    cfg['train_dataloader'] = dict(
        batch_size=4, num_workers=workers, collate_fn=dict(type='pseudo_collate'), dataset=dict(
            type='WebStream', urls=f'{folder}/{{000..004}}.tar', samples=20, shuffle=2,
            pipeline=[dict(type='NumberOfImage')]))
    for key in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg.pop(f'{key}_{part}')
    cfg['train_cfg'] = dict(type='SeekIterLoop', max_iters=max_iters)
    return Config(cfg)
