"""Which project a checkpoint is of, and the way to our names and back: LAVIS, mmpretrain, transformers.

The rules are tried in this order, and the first that applies decides:

1. ``Qformer.bert.*`` or ``ln_vision.*``: LAVIS; by ``opt_proj``, ``t5_proj``, ``llm_proj`` stage 2, else stage 1.
   ``visual_encoder.*`` and a ``text_encoder`` or ``text_decoder`` with cross-attention in layer 0: BLIP in LAVIS or in
   the original repository, whose names are the same;
2. ``query_tokens`` and ``multimodal_backbone.bert.*``: mmpretrain; with the temperature, the text projection or the
   matching head it is retrieval, else caption or VQA. ``text_backbone``, ``seq_gen_head.decoder.bert``,
   ``vqa_head.decoder.bert`` or two cross-attentions in ``multimodal_backbone``: its BLIP;
3. ``query_tokens`` and ``qformer.encoder.*``: transformers, whose class the heads tell; and the bare keys of
   ``Blip2QFormerModel`` and ``Blip2VisionModel``. ``vision_model.*`` beside ``text_encoder``, ``text_decoder`` or
   ``text_model``: its BLIP; and the bare keys of ``BlipTextModel``;
4. anything else is none of them: our own names, a vision encoder alone, a language model.
"""
from collections.abc import Iterable

from ..errors import CheckpointError
from . import huggingface, lavis, mmpretrain
from .keymap import Converted, Layout, strip, without_wrapper

__all__ = ['Converted', 'Layout', 'recognise', 'to_write', 'without_wrapper']

_PROJECTS = {'LAVIS': lavis, 'mmpretrain': mmpretrain, 'transformers': huggingface}


def recognise(keys: Iterable[str], model_type: str | None = None) -> Layout | None:
    """What project a checkpoint is of.

    Args:
        keys: All keys of the file (of all shards), with or without a wrapper's 'module.'.
        model_type: Of the config.json beside the file, if there is one: the keys of ``BlipVisionModel`` are those of
            ``Blip2VisionModel``, which they are taken for without it.

    Returns:
        Layout or None: None for our own names, and for what is no BLIP-2 or BLIP of the three projects.
    """
    keys = strip(keys)
    found = (lavis.recognise(keys), mmpretrain.recognise(keys), huggingface.recognise(keys, model_type))
    return next((layout for layout in found if layout is not None), None)


def to_write(name: str, keys: Iterable[str], **what) -> Layout:
    """The layout of a project that takes a model of ours.

    Args:
        name: 'LAVIS', 'mmpretrain' or 'transformers'.
        keys: The keys of the model, all of them.
        what: What the keys do not tell. LAVIS: ``language``, 'opt', 't5' or 'llm', the name of its language model, if
            the file is to have the projection to one. transformers: ``kind``, the name of the class, if not that which
            the keys tell (retrieval, generation, or InstructBLIP where the Q-Former reads text; the same of BLIP).

    Returns:
        Layout: With ``from_ours``.

    Raises:
        CheckpointError: Another ``name``, ``language`` or ``kind``, or ``language`` is needed and not said.
    """
    if name not in _PROJECTS:
        raise CheckpointError(f'layout {name!r} is unknown, expected one of {", ".join(_PROJECTS)}')
    return _PROJECTS[name].to_write(list(keys), **what)
