"""A frozen language model with a few trained weights beside it (LoRA), or kept in 8 or 4 bits."""
from importlib import import_module
from importlib.util import find_spec

import torch

from mmblip2.errors import ConfigError, first_lines

from ..hub import suggestion

_LORA = ('r', 'alpha', 'targets')
_BITS = ('8bit', '4bit')
_MARK = 'lora_'


def check_packages(lora, quantize):
    """Refuse settings that are wrong or need a package that is not installed.

    Args:
        lora (dict or None): See :class:`LanguageModel`.
        quantize (str or None): See :class:`LanguageModel`.

    Raises:
        ConfigError: With what to do.
    """
    if lora is not None:
        if not isinstance(lora, dict):
            raise ConfigError(f'lora of the language model is {lora!r}, expected a dict such as dict(r=8, alpha=16)')
        unknown = [key for key in lora if key not in _LORA]
        if unknown:
            raise ConfigError(f'lora of the language model has no setting {unknown[0]!r}; known are '
                              f'{", ".join(_LORA)}' + suggestion(unknown[0], _LORA))
        rank = lora.get('r', 8)
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ConfigError(f'lora.r of the language model is {rank!r}, expected a whole number from 1 on')
    if quantize not in (None, *_BITS):
        raise ConfigError(f'quantize of the language model is {quantize!r}, expected one of {", ".join(_BITS)}')
    for wanted, setting, packages in ((lora is not None, 'lora', ('peft', )),
                                      (quantize is not None, f'quantize={quantize!r}', ('bitsandbytes', 'accelerate'))):
        missing = [name for name in packages if wanted and find_spec(name) is None]
        if missing:
            raise ConfigError(f'{setting} of the language model needs {" and ".join(missing)}: pip install '
                              f'{" ".join(missing)}')


def quantization(quantize, dtype):
    """transformers' settings for weights of 8 or 4 bits (NF4), computed with in ``dtype``."""
    import transformers
    if quantize == '8bit':
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4',
                                           bnb_4bit_compute_dtype=getattr(torch, dtype))


def add_lora(model, lora):
    """Put low-rank matrices beside the linear layers of a transformers model, in place; only they are trained.

    Args:
        model (nn.Module): Of transformers.
        lora (dict): ``r`` (rank, 8), ``alpha`` (16; what they add is scaled by ``alpha / r``), ``targets`` (names of
            layers, by default those that peft knows for the architecture).

    Raises:
        ConfigError: No such layers.
    """
    peft = import_module('peft')
    settings = peft.LoraConfig(r=lora.get('r', 8), lora_alpha=lora.get('alpha', 16),
                               target_modules=list(lora['targets']) if lora.get('targets') else None)
    try:
        peft.inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise ConfigError(f'lora.targets of the language model: {first_lines(error)}. Name linear layers of '
                          f"{type(model).__name__}, for example targets=['q_proj', 'v_proj']") from error


def lora_parameters(model):
    """The trained matrices of :func:`add_lora`, in float32."""
    return [parameter for name, parameter in model.named_parameters() if _MARK in name]


def without_lora(state):
    """A state dict as it is without :func:`add_lora`."""
    return {key.replace('.base_layer.', '.'): value for key, value in state.items() if _MARK not in key}


def merge_lora(model):
    """Add what the matrices say to the weights beside them and remove them, in place."""
    kind = import_module('peft.tuners.tuners_utils').BaseTunerLayer
    for name, layer in list(model.named_modules()):
        if isinstance(layer, kind):
            layer.merge()
            owner, _, key = name.rpartition('.')
            setattr(model.get_submodule(owner), key, layer.get_base_layer())
