"""Reading pickles that hold more than tensors, without running anything that they name.

``torch.load(weights_only=True)`` refuses whole files for one harmless object in a corner, mmengine's message hub for
example. Here only what rebuilds tensors is real. Every other name becomes an inert stand-in, which takes any state and
does nothing; ``getattr``, which mmengine's files use, is one of them. A pickle that calls a name from outside of the
packages that write such files is refused: that is what an attack looks like. Nothing is imported on the way.
"""
import pickle
from collections import OrderedDict

import torch


class RefusedPickle(pickle.UnpicklingError):
    """The pickle would have called what no checkpoint needs."""


class _Sealed:
    """A function that a pickle may call, and of which it can change nothing."""

    __slots__ = ('_function',)

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state):
        raise RefusedPickle(f'it changes {self._function.__module__}.{self._function.__name__}')


class _Bytes:
    """The kind of a storage without a type, for ``torch.load``."""

    __slots__ = ()
    dtype = torch.uint8


# What is really called. Everything else is a stand-in.
_REAL = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch', 'Size'): torch.Size,
    ('torch', 'device'): torch.device,
    ('torch.storage', 'UntypedStorage'): _Bytes(),
    **{('torch', name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{('torch._utils', name): _Sealed(getattr(torch._utils, name)) for name in (
        '_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter')},
}
# Packages whose objects are made by calls, which do nothing here.
_INERT_PACKAGES = ('mmengine', 'mmcv', 'mmpretrain', 'mmblip2', 'numpy', 'collections', 'copyreg', 'datetime', 'torch')
_INERT_NAMES = (('builtins', 'getattr'), ('builtins', 'set'), ('builtins', 'frozenset'), ('builtins', 'bytes'),
                ('builtins', 'bytearray'), ('builtins', 'complex'), ('builtins', 'slice'), ('_codecs', 'encode'),
                ('pathlib', 'PosixPath'), ('pathlib', 'PurePosixPath'), ('pathlib', 'WindowsPath'))


class _Kind(type):
    """The type of the stand-ins: calling one is where a refused name shows."""

    callable: bool

    def __call__(cls, *args, **kwargs):
        if not cls.callable:
            raise RefusedPickle(f'it calls {cls.__module__}.{cls.__qualname__}')
        return super().__call__()


class StandIn(metaclass=_Kind):
    """An object of a class that was not looked up. It takes any state, item or element and keeps none."""

    callable = False

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def _ignore(self, *args, **kwargs):
        pass

    __setstate__ = __setitem__ = append = extend = add = update = _ignore


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)  # names of protocol 2
        if (module, name) in _REAL:
            return _REAL[module, name]
        known = module.split('.')[0] in _INERT_PACKAGES or (module, name) in _INERT_NAMES
        return _Kind(name, (StandIn,), dict(callable=known, __module__=module, __qualname__=name))


class _Module:
    """What ``torch.load`` takes for the module ``pickle``."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file, **kwargs):
        return _Unpickler(file, **kwargs).load()


def load_inert(path, map_location='cpu', mapped=False):
    """Read a file of ``torch.save``; everything but tensors and plain values is a :class:`StandIn`.

    Args:
        path (str | Path): Of the file.
        map_location: Of ``torch.load``.
        mapped (bool): Leave the tensors on the disk until they are used.

    Returns:
        The content.

    Raises:
        RefusedPickle: It calls a name from outside of the packages that write checkpoints; nothing was run.
        pickle.UnpicklingError, RuntimeError, EOFError: It is no such file.
    """
    return torch.load(path, map_location=map_location, pickle_module=_Module, weights_only=False, mmap=mapped)


def without_stand_ins(value):
    """Copy of nested dicts, lists and tuples without the entries that are stand-ins."""
    if isinstance(value, dict):
        return {key: without_stand_ins(item) for key, item in value.items()
                if not isinstance(key, StandIn) and not isinstance(item, StandIn)}
    if isinstance(value, (list, tuple)):
        return type(value)([without_stand_ins(item) for item in value if not isinstance(item, StandIn)])
    return value
