"""The state of all random number generators as plain values."""
import random
from contextlib import contextmanager

import numpy as np
import torch


def get_random_state():
    """State of Python's, NumPy's and torch's global generators.

    Returns:
        dict: Tensors and plain values, for a checkpoint.
    """
    version, numbers, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    state = dict(python=[version, list(numbers), gauss],
                 numpy=[legacy['bit_generator'], torch.from_numpy(legacy['state']['key'].astype(np.int64)),
                        int(legacy['state']['pos']), int(legacy['has_gauss']), float(legacy['gauss'])],
                 torch=torch.get_rng_state())
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state):
    """Put back what :func:`get_random_state` gave."""
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def random_state_kept():
    """Leave the generators as they were: a validation between two iterations does not change the training."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
