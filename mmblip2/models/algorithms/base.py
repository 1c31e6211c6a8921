"""What all vision-language models share: frozen parts, and the way from pixels to what cross-attention reads.

Shapes: B images, P patches, E vision width.
"""
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import nn

from mmblip2.errors import ConfigError, DataError

from ..layers import BertTower
from ..layers.attention import KeyValue
from ..tokenizers import TextBatch


class EncodedImages(NamedTuple):
    """Images as a Q-Former or a MED sees them.

    ``patches`` (B, P, E) normalised; ``image_kv`` their cross-attention keys and values, one entry a layer.
    """
    patches: torch.Tensor
    image_kv: list[KeyValue | None]

    def rows(self, index) -> 'EncodedImages':
        """The images ``index``."""
        return EncodedImages(self.patches[index], select_kv(self.image_kv, index))


def select_kv(image_kv, index):
    """The batch rows ``index`` of per-layer keys and values."""
    return [kv.rows(index) if kv is not None else None for kv in image_kv]


def concat_kv(parts):
    """Concatenate per-layer keys and values along the batch."""
    return [KeyValue.cat(layer, dim=0) if layer[0] is not None else None for layer in zip(*parts)]


def single_text(sample, field: str) -> str:
    """A text of a training sample, where the model reads one.

    Raises:
        DataError: It is a list.
    """
    text = getattr(sample, field)
    if not isinstance(text, str):
        raise DataError(f'{field} of a training sample is {len(text)} texts, and this model reads one: several '
                        'captions of an image in a step are for stage 2 (Blip2Generation); take captions_per_image '
                        'out of the data set, or set draw_caption=True')
    return text


def check_text_fits(tower: Any, tokenizer, max_text_len: int, name: str = 'qformer', needs_enc: bool = False):
    """Refuse a Q-Former or MED, the part ``name``, whose tables are too small for its texts; with ``needs_enc`` also a
    tokenizer without [ENC].

    Raises:
        ConfigError: With both numbers; or with the setting that adds [ENC].
    """
    if needs_enc and tokenizer.enc_id is None:
        raise ConfigError(f'a text that {name} reads beside an image begins with [ENC], which the tokenizer does not '
                          'have: set enc_token=True in model.tokenizer')
    if len(tokenizer) > tower.vocab_size:
        raise ConfigError(f'the tokenizer has {len(tokenizer)} tokens, {name}.vocab_size is {tower.vocab_size}: '
                          f'set it to at least {len(tokenizer)}')
    if max_text_len > tower.max_positions:
        raise ConfigError(f'max_text_len is {max_text_len}, {name}.max_positions is {tower.max_positions}: '
                          'lower the first or raise the second')


def fingerprint(module: nn.Module) -> str:
    """sha256 (hex) over names, types, shapes and bytes of a module's parameters and buffers, in name order.

    What was resized for another input size counts as it was before, so that the size does not change what a module is:
    such a module, or one inside it, has the originals in a dict ``before_resize``, name to tensor.
    """
    state = getattr(module, 'frozen_state', module.state_dict)()
    for name, original in _before_resize(module).items():
        state[name] = original.to(state[name].dtype)
    return digest(sorted(state.items()))


def digest(tensors) -> str:
    """sha256 (hex) over names, types, shapes and bytes of (name, tensor) pairs, in their order."""
    result = hashlib.sha256()
    for name, tensor in tensors:
        result.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return result.hexdigest()


def _before_resize(module):
    """Tensors as they were before they were resized, by their names in the module's state dict."""
    return {f'{name}.{key}' if name else key: tensor for name, part in module.named_modules()
            for key, tensor in getattr(part, 'before_resize', {}).items()}


def _record(part):
    """What a checkpoint says of a frozen part."""
    record = dict(source=str(getattr(part, 'weights_source', None) or 'random'), sha256=fingerprint(part))
    state = part.state_dict()
    resized = [f'{name} from {tuple(original.shape)} to {tuple(state[name].shape)}'
               for name, original in _before_resize(part).items()]
    return dict(record, resized=', '.join(resized)) if resized else record


class VisionLanguageModel(BaseModel):
    """Base of the algorithms.

    A frozen part has no gradients, stays in eval mode even after ``train()``, runs without an autograd graph where
    nothing before it needs one, and is neither in the optimizer nor in the checkpoint.

    Args:
        parts (dict): Name to module; set as attributes.
        reader (str): Name of the part whose cross-attention reads the images, a Q-Former or a MED; it may be None.
        frozen (Sequence[str]): Names of the parts that are not trained.
        allow_random (bool): Accept a frozen part whose weights were not loaded from anywhere.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: If ``frozen`` names an unknown part or lacks one that must be frozen, a frozen part has random
            weights and ``allow_random`` is not set, or the reader expects tokens of another width than the encoder's.
    """

    #: fnmatch patterns of checkpoint keys that another stage has and this model does not need
    droppable: tuple[str, ...] = ()
    vision: Any  # a module with embed_dim
    tokenizer: Any  # what its texts are read with, or None
    #: type in which a vision encoder with weights of half precision computes; its norms and sums are in float32
    vision_dtype: torch.dtype | None = None

    def __init__(self, parts: dict[str, nn.Module], reader: str, frozen: Sequence[str] = (),
                 allow_random: bool = False, data_preprocessor: dict | None = None):
        super().__init__(data_preprocessor=data_preprocessor or dict(type='mmblip2.ImageTextPreprocessor'))
        for name, part in parts.items():
            setattr(self, name, part)
        self._reader = reader
        expected, width = getattr(self.reader, 'vision_width', None), getattr(self.vision, 'embed_dim', None)
        if None not in (expected, width) and expected != width:
            raise ConfigError(f'the tokens of the vision encoder ({type(self.vision).__name__}) are {width} wide, '
                              f'{reader}.vision_width is {expected}: set it to {width}')
        unknown = [name for name in frozen if name not in parts]
        if unknown:
            raise ConfigError(f'frozen={list(frozen)} names {unknown}, but the parts of {type(self).__name__} are '
                              f'{list(parts)}')
        for name, part in parts.items():
            reason = getattr(part, 'must_be_frozen', None)
            if reason is not None and name not in frozen:
                raise ConfigError(f'model.{name} has {reason}, which keeps its weights as they are: put {name!r} into '
                                  'model.frozen')
        self._frozen = tuple(frozen)
        self._record: dict[str, dict] | None = None
        for name, part in self.frozen_parts().items():
            if getattr(part, 'weights_source', None) is None and not allow_random:
                raise ConfigError(
                    f"the frozen part '{name}' ({type(part).__name__}) has random weights: give the path of its "
                    f'weights in model.{name}, or set model.allow_random=True if that is what you want')
            part.requires_grad_(False)
        self.train(self.training)

    @property
    def reader(self) -> BertTower:
        """The part whose cross-attention reads the images."""
        return getattr(self, self._reader)

    @property
    def text_reader(self) -> BertTower | None:
        """The part that reads texts, alone and beside an image; None if none does."""
        return self.reader if self.reader is not None and self.reader.has_text else None

    def init_weights(self):
        """Called once at the start of a training: the parts that grow out of a BERT may take one over."""
        for part in self.children():
            if isinstance(part, BertTower):
                part.init_weights()

    def frozen_parts(self) -> dict[str, nn.Module]:
        """Frozen modules by attribute name."""
        return {name: getattr(self, name) for name in self._frozen}

    def frozen_record(self) -> dict[str, dict]:
        """Source and sha256 of every frozen part, as written into checkpoints; ``resized`` where its weights were made
        for another input size: what, from and to which shape, in words."""
        if self._record is None:
            self._record = {name: _record(part) for name, part in self.frozen_parts().items()}
        return self._record

    def train(self, mode: bool = True):
        """Switch mode; frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.frozen_parts().values() if hasattr(self, '_frozen') else ():
            part.eval()
        return self

    def encode_image(self, images: torch.Tensor) -> EncodedImages:
        """Vision encoder, its norm if it stands outside (``vision_norm``), and the reader's keys and values.

        Args:
            images: float (B, 3, H, W), normalised pixels, or (B, P, E), what the encoder says of them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and 'vision' not in self._frozen):
            patches = self._see(images)  # (B, P, E)
        norm = getattr(self, 'vision_norm', None)
        patches = norm(patches.float()) if norm is not None else patches.float()
        return EncodedImages(patches, self.project_image(patches))

    def project_image(self, patches: torch.Tensor) -> list[KeyValue | None]:
        """The reader's cross-attention keys and values of patches (B, P, E), per layer."""
        return self.reader.project_image(patches)

    def _see(self, images, vision: Any = None) -> torch.Tensor:
        """Tokens (B, P, E) of the vision encoder, or of another one like it.

        Raises:
            DataError: The images are not (B, 3, H, W).
        """
        if images.dim() == 3 and images.size(2) == self.vision.embed_dim:  # they are, from a feature cache
            return images
        if images.dim() != 4:
            raise DataError(f'{type(self).__name__} reads one image a sample, got images of shape '
                            f'{tuple(images.shape)}, expected (B, 3, H, W): take EachImage out of the pipeline')
        vision = self.vision if vision is None else vision
        if self.vision_dtype is None:
            return vision(images)
        with torch.autocast(images.device.type, self.vision_dtype):
            return vision(images)

    @torch.no_grad()
    def image_states(self, encoded: EncodedImages) -> torch.Tensor:
        """What encoded images are beside texts: what queries read of them (B, Q, D), or their patches (B, P, E)."""
        return self.reader.image_states(*encoded)

    @torch.no_grad()
    def joint_states(self, encoded: EncodedImages, text: TextBatch) -> torch.Tensor:
        """What is read of images beside texts, by queries (B, Q, D) or by the text's tokens (B, T, D).

        Args:
            encoded: B images, or one for all texts.
            text: B texts.
        """
        assert self.text_reader is not None
        enc_id = self.tokenizer.enc_id
        return self.text_reader.forward_joint(encoded.image_kv,
                                              *(text if enc_id is None else text.begin_with(enc_id)))

    def forward(self, images=None, data_samples=None, mode: str = 'tensor'):
        """Dispatch.

        Args:
            images: float (B, 3, H, W), normalised pixels.
            data_samples: One ``DataSample`` an image.
            mode: 'loss' gives a dict of losses and statistics, 'predict' the samples with ``pred_text``, 'tensor'
                features.

        Raises:
            ValueError: For another mode.
        """
        if mode == 'loss':
            return self.loss(images, data_samples)
        if mode == 'predict':
            return self.predict(images, data_samples)
        if mode == 'tensor':
            return self.encode_image(images)
        raise ValueError(f"mode {mode!r} is not one of 'loss', 'predict', 'tensor'")
