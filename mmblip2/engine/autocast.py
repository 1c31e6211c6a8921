"""Mixed precision by name, the same on CPU and GPU."""
from contextlib import nullcontext

import torch

from ..errors import ConfigError
from ..utils.env import cpu_has_bf16

_DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16, 'float32': None}


def device_type():
    """'cuda' or 'cpu'."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def resolve_dtype(name, device=None):
    """Autocast dtype of a name.

    Args:
        name (str | None): 'bfloat16', 'float16', 'float32' or None (no autocast), or 'auto': bfloat16 where
            the hardware multiplies it, otherwise no autocast.
        device (str, optional): 'cuda' or 'cpu', where it will run; default: :func:`device_type`.

    Returns:
        torch.dtype | None: None means no autocast.

    Raises:
        ConfigError: Another name.
    """
    if name is None:
        return None
    if name == 'auto':
        able = torch.cuda.is_bf16_supported() if (device or device_type()) == 'cuda' else cpu_has_bf16()
        return torch.bfloat16 if able else None
    if name not in _DTYPES:
        raise ConfigError(f"autocast dtype {name!r} is unknown: use 'auto', {', '.join(map(repr, _DTYPES))}")
    return _DTYPES[name]


def autocast_context(name, device=None):
    """Context manager for :func:`resolve_dtype`'s dtype on ``device``, by default the current one."""
    dtype = resolve_dtype(name, device)
    return nullcontext() if dtype is None else torch.autocast(device or device_type(), dtype)
