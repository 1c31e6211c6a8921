"""The base of the metrics: results are gathered by sample index and written before they are scored."""
import json
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log

from mmblip2.errors import DataError
from mmblip2.utils.dist import gather_objects, on_first


class GatheredMetric(BaseMetric):
    """A metric over one result a sample, whatever the sampler, its padding and the number of processes.

    A subclass says what it needs of a sample (``read``), what is written (``to_predictions``) and the score
    (``compute_metrics``, on rank 0, with the results in the order of the data set).

    Args:
        prefix (str, optional): First part of the metric keys. Defaults to the class's ``default_prefix``.
        out_file (str, optional): Where predictions are written. Defaults to
            ``<work_dir>/predictions/<prefix>.json``; outside a Runner nothing is written without it.

    Attributes:
        work_dir (str or None): Overrides the Runner's folder, which is otherwise taken from its log file.
        gathers_by_index (bool): True: the Runner may give processes different numbers of samples (``BlockSampler``).
    """

    gathers_by_index = True
    #: Keys of the result, without the prefix, that do not depend on the data; the config check knows them.
    known_keys: tuple[str, ...] = ()

    def __init__(self, prefix: str | None = None, out_file: str | None = None):
        super().__init__(prefix=prefix)
        self.out_file = out_file
        self.work_dir = None

    @abstractmethod
    def read(self, sample) -> Any:
        """What is kept of one predicted sample: plain Python values."""

    def to_predictions(self, results: list) -> list | dict | None:
        """What is written, as JSON, or None when there is nothing worth a file."""
        return None

    def process(self, data_batch: Any, data_samples: Sequence):
        for sample in data_samples:
            self.results.append((int(required(sample, 'sample_idx')), self.read(sample)))

    def evaluate(self, size: int) -> dict:
        """Gather the results of all processes, write the predictions, score.

        Args:
            size: Number of samples of the data set.

        Returns:
            dict[str, float]: The same on every process, keys ``<prefix>/<name>``.

        Raises:
            DataError: The results are not exactly one a sample of the data set, or cannot be scored; on every
                process, so that none waits for another.
        """
        parts = gather_objects(self.results)
        self.results: list[Any] = []

        def score():
            results = _in_order(parts, size, type(self).__name__)
            self._write(self.to_predictions(results))
            return {f'{self.prefix}/{name}': value for name, value in self.compute_metrics(results).items()}

        return on_first(score)

    def _write(self, predictions: list | dict | None):
        path = self._path()
        if predictions is None or path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + '.partial')
        partial.write_text(json.dumps(predictions))
        os.replace(partial, path)
        print_log(f'{len(predictions)} predictions written to {path}', 'current')

    def _path(self) -> Path | None:
        if self.out_file:
            return Path(self.out_file)
        folder = self.work_dir or _runner_folder()
        return Path(folder, 'predictions', f'{self.prefix}.json') if folder else None


def _runner_folder() -> Path | None:
    """The work_dir of the running Runner, whose log file is ``<work_dir>/<time>/<time>.log``."""
    log_file = MMLogger.get_current_instance().log_file
    return Path(log_file).parents[1] if log_file else None


def _in_order(parts: list[list], size: int, name: str) -> list:
    """One result a sample in the order of the data set; copies that samplers add as padding are dropped."""
    merged: dict[int, Any] = {}
    for part in parts:
        for index, result in part:
            merged.setdefault(index, result)
    if size == 0:
        raise DataError(f'{name} has nothing to score: the data set is empty')
    missing = [index for index in range(size) if index not in merged]
    if missing or len(merged) != size:
        extra = sorted(index for index in merged if not 0 <= index < size)
        raise DataError(f'{name} gathered {len(merged)} results for a data set of {size} samples '
                        f'(missing sample_idx: {len(missing)} {missing[:5]}, outside the data set: '
                        f'{len(extra)} {extra[:5]}): the sampler must cover every sample, and sample_idx '
                        'must be its index')
    return [merged[index] for index in range(size)]


def required(sample, name: str):
    """A field of a data sample.

    Raises:
        DataError: It is absent or None.
    """
    value = sample.get(name)
    if value is None:
        raise DataError(f'sample {sample.get("sample_idx")} has no {name}, which the metric reads: '
                        + ("the model's predict mode must set it" if name.startswith('pred_') else
                           'the data set must provide it and PackInputs must keep it'))
    return value


def plain_id(value):
    """An id as int or str, from what a data set may hold (0-d tensors, numpy integers)."""
    return value.item() if hasattr(value, 'item') else value
