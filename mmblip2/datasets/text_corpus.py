"""Plain text, for training a language model without images."""
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .files import open_text


@DATASETS.register_module()
class TextCorpus(ImageTextDataset):
    """One text a line (UTF-8, blank lines skipped), which is the ``target``.

    A line with a tab is ``prompt<TAB>target``: the prompt is read, the target learned.

    Args:
        ann_file (str): The text file.
        **kwargs: See ``ImageTextDataset``.
    """

    def load_data_list(self):
        """Returns:
            list[dict]: ``prompt`` and ``target``.
        """
        with open_text(self.ann_file) as file:
            lines = [line.strip() for line in file if line.strip()]
        return [dict(prompt=prompt if tab else '', target=target if tab else prompt)
                for prompt, tab, target in (line.partition('\t') for line in lines)]
