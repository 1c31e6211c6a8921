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
    warnings.filterwarnings('ignore', message='`broadcast_buffers` is deprecated')  # mmengine's DDP passes it on
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


def _transformers_version():
    import transformers
    return transformers.__version__


def obey_newer_config(config, folder):
    """Let transformers 4.57 read what transformers 5 wrote into a config.json and 4.57 ignores without a word.

    Args:
        config (PretrainedConfig): As read; changed in place. With transformers 5 it stays as it is.
        folder (str): Where it is from.

    Raises:
        ConfigError: It has rotary positions that cannot be said in the words of 4.57.
    """
    from .errors import ConfigError
    version = _transformers_version()
    if int(version.split('.')[0]) >= 5:
        return
    # The output layer is not the embedding (Flan-T5); beside it stands tie_word_embeddings=True, which 4.57 obeys.
    if getattr(config, 'scale_decoder_outputs', None) is False:
        config.tie_word_embeddings = False
    rope = getattr(config, 'rope_parameters', None)
    if not rope:
        return
    if rope.keys() != {'rope_theta', 'rope_type'} or rope['rope_type'] != 'default':
        raise ConfigError(f'{folder} was written by transformers 5, and transformers {version} cannot '
                          f'read its rope_parameters {rope}: install transformers>=5, or take the folder as published')
    config.rope_theta = rope['rope_theta']


def read_tokenizer(folder):
    """``AutoTokenizer.from_pretrained``, also for a folder whose class only transformers 5 has a name for.

    Code of the folder is never run.
    """
    import transformers
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        if 'TokenizersBackend' not in str(error):
            raise
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)  # its tokenizer.json says everything


def mismatched_tensors(model, info):
    """Tensors of another shape in a folder of transformers.

    Args:
        model (nn.Module): What ``from_pretrained`` built.
        info (dict): Its ``output_loading_info``.

    Returns:
        list[tuple[str, str, str]]: Sorted names, with the shapes in the file and in the model; transformers 4.57 does
        not tell the shape in the file.
    """
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = [(entry, 'another shape', shapes.get(entry, 'another')) if isinstance(entry, str) else
             (entry[0], tuple(entry[1]), tuple(entry[2])) for entry in info['mismatched_keys']]
    return sorted((key, str(in_file), str(in_model)) for key, in_file, in_model in found)
