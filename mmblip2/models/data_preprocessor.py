"""From a list of uint8 images to one normalised batch on the device."""
import torch
from mmengine.model import BaseDataPreprocessor

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import MODELS

CLIP_MEAN = (122.770938, 116.7460125, 104.09373615)  # pixels 0-255, RGB
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)


@MODELS.register_module()
class ImageTextPreprocessor(BaseDataPreprocessor):
    """Stack the images of a batch, move them to the device as bytes, and normalise them there in float32.

    Args:
        mean (Sequence[float]): Subtracted, RGB, pixels 0-255. Defaults to CLIP's.
        std (Sequence[float]): Divided by, RGB, pixels 0-255. Defaults to CLIP's.
        image_size (int | tuple[int, int], optional): Size (height, width) that the model is built for;
            batches of another size are refused. None: any size.
        non_blocking (bool): Copy to the device without waiting (needs pinned memory to have an effect).
    """

    def __init__(self, mean=CLIP_MEAN, std=CLIP_STD, image_size=None, non_blocking=True):
        super().__init__(non_blocking=non_blocking)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError('mean and std have three values each (RGB, pixels 0-255), std above 0: '
                              f'got {mean}, {std}')
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self._mean_std = tuple(mean), tuple(std)
        self._make_buffers()

    def forward(self, data, training=False):
        """Prepare one collated batch.

        Args:
            data (dict): ``inputs``: list of B tensors (3, H, W) uint8, or (P, E) from a feature cache, or absent;
                ``data_samples``: list.
            training (bool): Not used: augmentation is the pipeline's.

        Returns:
            dict: ``images``: (B, 3, H, W) float32, (B, P, E) as they came, or None without inputs; ``data_samples``:
            list of B with tensors on the device, or None.

        Raises:
            DataError: The images of the batch differ in size.
            ConfigError: Their size is not the model's, or only some come from a feature cache.
        """
        samples = data.get('data_samples')
        if samples is not None:
            samples = [self._to_device(sample) for sample in samples]
        inputs = data.get('inputs')
        return {'images': None if inputs is None else self._images(inputs), 'data_samples': samples}

    def _images(self, inputs):
        sizes = sorted({tuple(image.shape) for image in inputs})
        if len({len(size) for size in sizes}) > 1:
            raise ConfigError('a batch has images and features of a feature cache: give all data sets of the loader a '
                              'feature_cache, or none')
        if len(sizes[0]) == 2 and len(sizes) == 1:
            return torch.stack(list(inputs)).to(self.mean.device, non_blocking=self._non_blocking)
        if len(sizes) > 1:
            raise DataError(f'images of one batch differ in size, for instance {sizes[0]} and {sizes[-1]} '
                            '(channels, height, width): end the image part of the pipeline with '
                            'Resize(scale=...)')
        size = sizes[0][-2:]
        if self.image_size is not None and size != tuple(self.image_size):
            raise ConfigError(f'image size of the model ({_name(self.image_size)}) and of the pipeline '
                              f'({_name(size)}) differ: set both to one value')
        images = inputs if isinstance(inputs, torch.Tensor) else torch.stack(list(inputs))
        images = images.to(self.mean.device, non_blocking=self._non_blocking).float()  # (B, 3, H, W)
        return images.sub_(self.mean).div_(self.std)

    def _to_device(self, sample):
        if any(isinstance(value, torch.Tensor) for value in sample.values()):
            return sample.to(self.mean.device, non_blocking=self._non_blocking)
        return sample

    def _make_buffers(self, device=None):
        for name, values in zip(('mean', 'std'), self._mean_std):
            # Not persistent: they belong to the config, not to the checkpoint.
            self.register_buffer(name, torch.tensor(values, device=device).view(3, 1, 1), persistent=False)

    def _apply(self, fn, *args, **kwargs):
        """Follow the model to a device, but keep the exact float32 values when the model is cast."""
        super()._apply(fn, *args, **kwargs)
        self._make_buffers(self.mean.device)
        return self


def _name(size):
    height, width = size
    return str(height) if height == width else f'{height} x {width}'
