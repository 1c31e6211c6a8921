"""Predictions for an evaluation server."""
from mmengine.logging import print_log

from mmblip2.errors import ConfigError
from mmblip2.evaluation.functional.submission import FORMATS, check_submission
from mmblip2.registry import METRICS

from .base import GatheredMetric, plain_id, required


@METRICS.register_module()
class ServerSubmission(GatheredMetric):
    """Write the file that a server takes and check it; gives no score.

    The file is written before it is checked. An image that occurs in several samples is written once, with its first
    caption; ids that are texts of digits become numbers.

    Args:
        task (str): 'vqa' (EvalAI), 'coco' (caption server) or 'nocaps' (EvalAI).
        split (str, optional): 'test' or 'val': the number of predictions has to be that of the split.
        out_file (str, optional): See :class:`GatheredMetric`; COCO's server wants
            ``captions_<split>2014_<name>_results.json``.

    Raises:
        ConfigError: Another task or split.
        DataError: The file would not be taken; says why.
    """

    default_prefix = 'submission'

    def __init__(self, task: str, split: str | None = None, out_file: str | None = None):
        super().__init__(prefix=f'submission_{task}', out_file=out_file)
        if task not in FORMATS:
            raise ConfigError(f'ServerSubmission: task {task!r} is not one of {", ".join(FORMATS)}')
        if split is not None and split not in FORMATS[task].sizes:
            raise ConfigError(f'ServerSubmission: split {split!r} is not one of {", ".join(FORMATS[task].sizes)}')
        self.task, self.split = task, split

    def read(self, sample) -> dict:
        id_key, text_key, _ = FORMATS[self.task]
        found = plain_id(required(sample, id_key))
        if isinstance(found, str) and found.isdecimal():
            found = int(found)
        return {id_key: found, text_key: required(sample, 'pred_text')}

    def to_predictions(self, results: list) -> list:
        if self.task == 'vqa':
            return results
        first: dict = {}
        for row in results:
            first.setdefault(row['image_id'], row)
        return list(first.values())

    def compute_metrics(self, results: list) -> dict:
        """Nothing, after the check."""
        rows = check_submission(self.to_predictions(results), self.task, self.split)
        print_log(f'{self._path()}: {len(rows)} predictions in the format of the {self.task} server', 'current')
        return {}
