"""Predictions as a file."""
import json
import os
import pickle
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from ..errors import DataError
from ..registry import METRICS
from ..utils.dist import gather_objects, on_first


def _plain(value):
    """Tensors and arrays as lists; None for what is neither text, number nor a container of these."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool)) else None


@METRICS.register_module()
class DumpPredictions(BaseMetric):
    """Writes one record a sample, ordered by ``sample_idx``, each sample once; gives no metric.

    First in the list of evaluators it writes before anything is scored.

    Args:
        out_path (str): ``.json`` or ``.pkl``.
    """

    gathers_by_index = True
    results: list[dict]

    def __init__(self, out_path):
        super().__init__()
        self.out_path = Path(out_path)

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            items = sample.items() if isinstance(sample, dict) else sample.all_items()
            record = {key: _plain(value) for key, value in sorted(items)}
            self.results.append({key: value for key, value in record.items() if value is not None})

    def evaluate(self, size):
        """Gather and write the records.

        Raises:
            DataError: They are not one a sample; on every process, so that none waits for another.
        """
        parts = gather_objects(self.results)
        self.results = []
        on_first(lambda: self._write([record for part in parts for record in part], size))
        return {}

    def _write(self, records, size):
        if all('sample_idx' in record for record in records):
            unique = {record['sample_idx']: record for record in records}
            records = [unique[index] for index in sorted(unique)]
            if len(records) != size:
                raise DataError(f'DumpPredictions has {len(records)} different sample_idx for {size} samples: '
                                'sample_idx must be the index in the whole data set')
        self.out_path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out_path.with_name(self.out_path.name + '.partial')
        if self.out_path.suffix == '.pkl':
            partial.write_bytes(pickle.dumps(records))
        else:
            partial.write_text(json.dumps(records, indent=1, ensure_ascii=False))
        os.replace(partial, self.out_path)

    def compute_metrics(self, results):
        return {}
