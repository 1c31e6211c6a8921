"""A model, a data set and a metric that train in milliseconds; tests put this folder on sys.path and import
it."""
import hashlib

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn

from mmblip2.registry import DATASETS, METRICS, MODELS
from mmblip2.structures import DataSample


@DATASETS.register_module()
class ToyData(BaseDataset):
    """Row i is 4 numbers made from i, plus noise that depends on the draw."""

    def __init__(self, size=20, **kwargs):
        self.size = size
        super().__init__(**kwargs)

    def load_data_list(self):
        return [dict(number=number) for number in range(self.size)]

    def prepare_data(self, index):
        rng = np.random.default_rng((index.seed, index.pos) if hasattr(index, 'seed') else int(index))
        base = np.random.default_rng(int(index)).normal(size=4)
        sample = DataSample()
        sample.sample_idx = int(index)
        inputs = torch.tensor(base + 0.1 * rng.normal(size=4), dtype=torch.float32)
        return dict(inputs=inputs, data_samples=sample)


@MODELS.register_module()
class ToyModel(BaseModel):
    """A frozen layer, then trained ones with dropout; learns to sum its input."""
    droppable = ('old_head.*', )

    def __init__(self, width=8, frozen_seed=0, dropout=0.1, poison=None, freeze=True):
        super().__init__()
        self.vision = nn.Linear(4, width)
        with torch.no_grad():
            self.vision.weight.normal_(generator=torch.Generator().manual_seed(frozen_seed))
            self.vision.bias.zero_()
        self.vision.requires_grad_(not freeze)
        self.freeze = freeze
        self.frozen_seed = frozen_seed
        self.poison = poison
        self.steps = 0
        self.body = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.register_buffer('scale', torch.ones(()))
        self.head = nn.Linear(width, 1)

    def frozen_parts(self):
        return dict(vision=self.vision) if self.freeze else {}

    def frozen_record(self):
        digest = hashlib.sha256(self.vision.weight.detach().numpy().tobytes()).hexdigest()
        return dict(vision=dict(source=f'seed {self.frozen_seed}', sha256=digest)) if self.freeze else {}

    def init_weights(self):
        pass

    def forward(self, inputs, data_samples, mode='loss'):
        x = torch.stack(list(inputs))
        out = self.head(self.body(self.vision(x)))[:, 0]
        if mode == 'loss':
            self.steps += 1
            loss = (out.float() - x.sum(dim=1)).square().mean()
            return dict(loss_fit=loss * (float('nan') if self.steps == self.poison else 1.))
        for sample, value in zip(data_samples, out):
            sample.pred_text = f'{float(value):.3f}'
        return data_samples


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Mean and count of the predicted numbers."""
    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results += [float(sample['pred_text']) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(mean=float(np.mean(results)), count=len(results))


def toy_config(work_dir, max_iters=12, workers=0, **changes):
    """A whole config as a dict; ``changes`` replace top-level entries."""
    loader = dict(batch_size=4, num_workers=workers, collate_fn=dict(type='pseudo_collate'))
    evaluation = dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(type='ToyData', size=6))
    config = dict(
        default_scope='mmblip2', work_dir=str(work_dir),
        custom_imports=dict(imports=['toy_parts']),
        model=dict(type='ToyModel'),
        train_dataloader=dict(**loader, sampler=dict(type='SeekableInfiniteSampler', shuffle=True, seed=1),
                              dataset=dict(type='ToyData')),
        train_cfg=dict(type='SeekIterLoop', max_iters=max_iters, val_interval=4),
        val_dataloader=evaluation, test_dataloader=evaluation, val_cfg=dict(), test_cfg=dict(),
        val_evaluator=dict(type='ToyMetric'), test_evaluator=dict(type='ToyMetric'),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05)),
        param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=False)],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=2),
                           checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4)),
        randomness=dict(seed=3))
    config.update(changes)
    return config
