"""The one place for other packages' rough edges."""
import functools
import logging
import sys
import warnings

# What mmengine says on every run and nobody needs on the console; the log file keeps it.
_NOISE = ('Hooks will be executed in the following order', 'Distributed training is not used',
          '"FileClient" will be deprecated', '"HardDiskBackend" is the alias', 'Exp name:',
          'Checkpoints will be saved to', 'has no metainfo. ``dataset_meta`` in')


class _ConsoleFilter(logging.Filter):

    def filter(self, record):
        message = record.getMessage()
        return not any(noise in message for noise in _NOISE)


def quiet_console(logger):
    """Keep mmengine's standing remarks out of the console handler of ``logger``."""
    # With accumulation the schedule advances before the first update; that is meant.
    warnings.filterwarnings('ignore', message=r'Detected call of `scheduler.step\(\)` before')
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(_ConsoleFilter())


def quiet_config_reader():
    """Keep mmengine from announcing every environment variable in a config."""
    from mmengine.logging import MMLogger
    if not MMLogger._instance_dict:
        MMLogger.get_instance('mmengine', log_level='WARNING')


@functools.cache
def read_shipped_bases():
    """Let ``_base_ = 'mmblip2::_base_/models/blip2_vit-g.py'`` in a config name one that comes with this package.

    mmengine asks ``pkg_resources`` for the place of a package, which setuptools >= 82 does not have, and expects a
    wheel there.
    """
    from mmengine.config import Config

    from .utils.paths import PREFIX, find_base
    theirs = Config._get_cfg_path

    def get_cfg_path(path, filename):
        return (str(find_base(path)), None) if path.startswith(PREFIX) else theirs(path, filename)

    Config._get_cfg_path = staticmethod(get_cfg_path)


def log_to_file_only(logger, message):
    """Write ``message`` to the logger's files and not to the console."""
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, message, None, None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


@functools.cache
def import_mmpretrain():
    """Import mmpretrain and register its models.

    ``mmpretrain.models`` subclasses names that transformers >= 4.52 does not have, unless its multimodal flag
    is switched off first.

    Returns:
        module: ``mmpretrain``.

    Raises:
        ConfigError: It is not installed.
    """
    from .errors import ConfigError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            import mmpretrain
            if 'mmpretrain.models' not in sys.modules:
                import mmpretrain.utils.dependency as dependency
                dependency.WITH_MULTIMODAL = False
            import mmpretrain.models
    except ImportError as error:
        raise ConfigError(f"a type 'mmpretrain.*' needs mmpretrain, which cannot be imported ({error}): "
                          'pip install mmpretrain') from error
    return mmpretrain
