"""Labels of the embedded data set's scenes, for pre-training a small vision encoder."""
import numpy as np
import torch

from mmblip2.errors import DataError
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .files import are_objects, read_json, wrong_layout

_LAYOUT = ('{"patch_size", "image_size", "attributes": {name: [classes, the first is background]}, "items": '
           '[{"image", "patch_labels": one list of labels an attribute, row-major patches}]}', )


@DATASETS.register_module()
class SceneLabels(ImageTextDataset):
    """What stands in each patch of a rendered scene: one class for each attribute, class 0 is background.

    Gives ``patch_labels`` ((A, P) int64, P patches row by row) and, where the file has them,
    ``image_labels`` ((N,) float). ``dataset.metainfo`` has ``attributes`` (name to class names),
    ``patch_size`` and ``image_size``.

    Args:
        ann_file (str): JSON made with the scenes.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        DataError: Another layout, or labels that do not fit the patches or the classes.
    """

    def load_data_list(self):
        """Returns:
            list[dict]: ``image_id``, ``img_path``, ``patch_labels`` and perhaps ``image_labels`` (arrays).
        """
        content = read_json(self.ann_file)
        if (not are_objects([content], 'patch_size', 'image_size', 'attributes', 'items')
                or not are_objects(content['items'], 'image', 'patch_labels')):
            raise wrong_layout(self.ann_file, content, _LAYOUT)
        attributes = content['attributes']
        self._metainfo.update(attributes=attributes, patch_size=content['patch_size'],
                              image_size=content['image_size'])
        shape = (len(attributes), (content['image_size'] // content['patch_size'])**2)
        num_classes = np.array([[len(classes)] for classes in attributes.values()])
        rows = []
        for item in content['items']:
            try:
                labels = np.array(item['patch_labels'], dtype=np.int64)
            except (ValueError, TypeError):
                raise wrong_layout(self.ann_file, item, _LAYOUT) from None
            if labels.shape != shape or (labels < 0).any() or (labels >= num_classes).any():
                raise DataError(f'patch_labels of {item["image"]} in {self.ann_file} do not fit: shape '
                                f'{labels.shape}, expected {shape} (attributes, patches) with labels below '
                                f'{num_classes[:, 0].tolist()}')
            row = dict(image_id=item['image'], img_path=self.image_path(item['image']), patch_labels=labels)
            if 'image_labels' in item:
                row['image_labels'] = np.array(item['image_labels'], dtype=np.float32)
            rows.append(row)
        return rows

    def draw(self, results, rng):
        """Turn the label arrays into tensors."""
        for key in ('patch_labels', 'image_labels'):
            if key in results:
                results[key] = torch.from_numpy(results[key])
        return results
