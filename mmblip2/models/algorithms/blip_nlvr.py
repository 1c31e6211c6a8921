"""Is a sentence about two images true? (BLIP, section 5.5.)

Shapes: B sentences, each with two images; P patches, E vision width, T text tokens, D width.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import MODELS

from ..heads import QUEUES
from ..med import TwinMED
from .base import VisionLanguageModel, check_text_fits


@MODELS.register_module()
class BlipNLVR(VisionLanguageModel):
    """Natural language visual reasoning: the text reads both images, and a classifier the state of its first token.

    The sentence begins with [ENC]. A pre-trained ``BlipRepresentation`` is how a training begins (``load_from``): what
    it has besides vision and text encoder is left out, the layers that merge and the classifier are new.

    Args:
        vision (nn.Module): Encoder, images to tokens (B, P, E), with ``embed_dim``.
        text_encoder (TwinMED): Reads the sentence and both images.
        tokenizer (BertTokenizer): Its tokenizer, with ``enc_token``.
        max_text_len (int, optional): Longest sentence in tokens; longer ones are cut. Default: as long as
            ``text_encoder`` can read, as in the original.
        frozen (Sequence[str]): Parts that are not trained, of 'vision', 'text_encoder'.
        allow_random (bool): Accept frozen parts with random weights.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: Tokenizer and text encoder do not fit, or the latter reads one image.
    """

    droppable = ('itc_head.*', 'itm_head.*', 'lm_head.*', 'text_decoder.*', 'momentum.*', *QUEUES)
    text_encoder: TwinMED

    def __init__(self, vision: nn.Module, text_encoder: TwinMED, tokenizer, max_text_len: int | None = None,
                 frozen: Sequence[str] = (), allow_random: bool = False, data_preprocessor: dict | None = None):
        if not isinstance(text_encoder, TwinMED):
            raise ConfigError(f'text_encoder of BlipNLVR is a {type(text_encoder).__name__}, which does not read two '
                              "images: set text_encoder.type='TwinMED'")
        longest = text_encoder.max_positions if max_text_len is None else max_text_len
        check_text_fits(text_encoder, tokenizer, longest, 'text_encoder', needs_enc=True)
        super().__init__(dict(vision=vision, text_encoder=text_encoder), 'text_encoder', frozen, allow_random,
                         data_preprocessor)
        self.tokenizer = tokenizer
        self.max_text_len = longest
        width = text_encoder.width
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def _see(self, images, vision: Any = None) -> torch.Tensor:
        """Tokens (B, 2, P, E) of pairs of images (B, 2, 3, H, W)."""
        if images.dim() != 5 or images.size(1) != 2:
            raise DataError(f'BlipNLVR reads two images a sentence, got images of shape {tuple(images.shape)}, '
                            'expected (B, 2, 3, H, W): begin the pipeline with '
                            "dict(type='EachImage', transforms=[...])")
        return super()._see(images.flatten(0, 1), vision).unflatten(0, (-1, 2))

    def logits(self, images: torch.Tensor, data_samples: Sequence) -> torch.Tensor:
        """Class 1 is 'true'.

        Args:
            images: float (B, 2, 3, H, W), normalised pixels.
            data_samples: B, with ``text``.

        Returns:
            torch.Tensor: float32 (B, 2).
        """
        image_kv = self.encode_image(images).image_kv
        text = self.tokenizer([sample.text for sample in data_samples], self.max_text_len, images.device).begin_with(
            self.tokenizer.enc_id)
        first = self.text_encoder.forward_joint(image_kv, text.input_ids, text.mask, keep=slice(0, 1))[:, 0]  # (B, D)
        return self.head(first).float()

    def loss(self, images: torch.Tensor, data_samples: Sequence) -> dict:
        """Cross-entropy.

        Args:
            images: float (B, 2, 3, H, W), normalised pixels.
            data_samples: B, with ``text`` and ``gt_label``.

        Returns:
            dict: loss_nlvr and the statistic acc_nlvr.

        Raises:
            DataError: A sample has no label.
        """
        labels = [sample.get('gt_label') for sample in data_samples]
        if None in labels:
            raise DataError(f'sample {data_samples[labels.index(None)].get("sample_idx")} has no gt_label: train on a '
                            'split with labels, in a data set such as NLVR2')
        logits = self.logits(images, data_samples)
        target = torch.tensor(labels, device=logits.device)
        return dict(loss_nlvr=F.cross_entropy(logits, target), acc_nlvr=(logits.argmax(dim=1) == target).float().mean())

    @torch.no_grad()
    def predict(self, images: torch.Tensor, data_samples: Sequence) -> Sequence:
        """Write ``pred_score``, the probabilities of false and true, float32 (2,), and ``pred_label``, int.

        Args:
            images: float (B, 2, 3, H, W), normalised pixels.
            data_samples: B, with ``text``.

        Returns:
            Sequence: The samples.
        """
        for sample, score in zip(data_samples, self.logits(images, data_samples).softmax(dim=1)):
            sample.pred_score, sample.pred_label = score, int(score.argmax())
        return data_samples
