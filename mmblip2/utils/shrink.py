"""The same config with a tiny model, to see on any machine that it runs before its real size is started."""
import copy
import inspect

from ..errors import ConfigError
from .config_check import FOREIGN_KEYS
from .run_config import innermost_datasets

DEPTH, WIDTH, HEADS, MLP_WIDTH = 2, 64, 4, 128
_PATCHES = 4  # most patches along a side: the images keep their size, the patches grow
_BATCH = 4  # most samples a batch
_QUEUE = 16  # entries of a momentum queue, which the batch divides
_FILES = ('weights', 'bert')  # arguments that name files; None does without
_LANGUAGE_SIZES = {  # by the names that the architectures of transformers have for them
    **dict.fromkeys(('hidden_size', 'd_model', 'n_embd', 'word_embed_proj_dim'), WIDTH),
    **dict.fromkeys(('num_hidden_layers', 'num_layers', 'num_decoder_layers', 'n_layer'), DEPTH),
    **dict.fromkeys(('num_attention_heads', 'num_heads', 'n_head'), HEADS),
    **dict.fromkeys(('intermediate_size', 'd_ff', 'ffn_dim', 'n_inner'), MLP_WIDTH),
    **dict.fromkeys(('head_dim', 'd_kv'), WIDTH // HEADS),
}
_OF_THE_TOKENIZER = ('vocab_size', 'bos_token_id', 'eos_token_id', 'pad_token_id')


def shrink(cfg, bert_tokenizer, language_tokenizer):
    """A config with a model of depth 2 and width 64 that trains for two iterations, or one epoch.

    One rule for every config: ViT, Q-Former, MED and language model get small sizes and random weights, tokenizers are
    replaced, numbers are float32, a batch has at most four samples, a momentum queue 16 entries, every iteration is
    logged. All else stays: data sets and their files, pipelines and image sizes, losses, text lengths, parameter
    groups, schedules, hooks, evaluators, generation. A vision encoder of another package keeps its size and loses its
    weights. Feature caches are left out: the images are read, and nothing is computed for all of them beforehand.

    Args:
        cfg (Config): Any config of a model that is built from our parts; it is not changed.
        bert_tokenizer (str): Folder of a WordPiece tokenizer, for what Q-Former and MED read.
        language_tokenizer (str): Folder of a tokenizer of which a new line is one token, for the language model.

    Returns:
        Config: Needs no file but the data and the two folders; ``load_from`` is None.

    Raises:
        ConfigError: The architecture of the language model is said nowhere, or a tokenizer cannot be read.
    """
    from mmengine.registry import DefaultScope
    cfg = copy.deepcopy(cfg)
    with DefaultScope.overwrite_default_scope('mmblip2'):
        _Shrinker(str(bert_tokenizer), str(language_tokenizer)).model(cfg.model)
    cfg.load_from, cfg.resume = None, False
    if cfg.get('optim_wrapper') and 'dtype' in cfg.optim_wrapper:
        cfg.optim_wrapper.dtype = 'float32'
    for split in ('train', 'val', 'test'):
        loader, loop = cfg.get(f'{split}_dataloader'), cfg.get(f'{split}_cfg')
        if loader:
            loader.update(num_workers=0, persistent_workers=False)
            for _, dataset in innermost_datasets(loader.get('dataset') or {}):
                dataset.pop('feature_cache', None)
            if 'batch_size' in loader:
                loader.batch_size = min(loader.batch_size, _BATCH)
        if loop and 'autocast' in loop:
            loop.autocast = 'float32'
    if cfg.get('train_cfg'):
        cfg.train_cfg.update(dict(max_epochs=1) if 'max_epochs' in cfg.train_cfg else dict(max_iters=2))
    if (cfg.get('default_hooks') or {}).get('logger'):
        cfg.default_hooks.logger.interval = 1
    return cfg


class _Shrinker:

    def __init__(self, bert_tokenizer, language_tokenizer):
        self.bert_tokenizer = bert_tokenizer
        self.language_tokenizer = language_tokenizer

    def model(self, node):
        """Shrink a model config and what is below it, in place."""
        import mmblip2.models  # noqa: F401

        from ..models.language.base import LanguageModel
        from ..models.layers import BertTower
        from ..models.tokenizers import BertTokenizer
        from ..models.vision import VisionTransformer
        from ..registry import MODELS
        from .meta import argument, towers
        name = str(node.get('type', ''))
        if '.' in name:
            return  # belongs to another package
        kind = MODELS.get(name) if name else None
        kind = kind if inspect.isclass(kind) else object
        node.update({key: None for key in _FILES if key in node})
        if 'allow_random' in inspect.signature(kind).parameters:
            node['allow_random'] = True
        if issubclass(kind, VisionTransformer):
            image_size, patch_size = _sizes(kind, node)
            node.update(depth=DEPTH, width=WIDTH, num_heads=HEADS, mlp_width=MLP_WIDTH,
                        patch_size=image_size // _patches(image_size, image_size // patch_size))
        elif issubclass(kind, BertTower):
            node.update(num_layers=DEPTH, width=WIDTH, num_heads=HEADS, mlp_width=MLP_WIDTH)
        elif issubclass(kind, BertTokenizer):
            node['path'] = self.bert_tokenizer
        elif issubclass(kind, LanguageModel):
            self.language_model(node)
            return
        for key, value in list(node.items()):
            if isinstance(value, dict) and key not in FOREIGN_KEYS:
                self.model(value)
        if name and argument(node, 'queue_size') is not None:
            node['queue_size'] = _QUEUE
        vision = node.get('vision')
        for _, tower in towers(node):
            if isinstance(vision, dict) and 'width' in vision and argument(tower, 'vision_width') is not None:
                tower['vision_width'] = vision['width']
            if argument(tower, 'vocab_size') is not None:
                tower['vocab_size'] = len(MODELS.build(node['tokenizer']))

    def language_model(self, node):
        """A language model of the same architecture with small sizes."""
        import transformers

        from .meta import architecture
        config = {key: value for key, value in architecture(node).items() if key not in _OF_THE_TOKENIZER}
        try:
            known = transformers.AutoConfig.for_model(config['model_type']).to_dict()
        except ValueError as error:
            raise ConfigError(f'config of the language model: model_type={config["model_type"]!r} is not known to '
                              "transformers, expected 'opt', 'llama', 't5' ...") from error
        before = {**known, **config}
        config.update({key: size for key, size in _LANGUAGE_SIZES.items() if key in known})
        if 'num_key_value_heads' in known:  # fewer than heads stay fewer
            grouped = before['num_key_value_heads'] != before['num_attention_heads']
            config['num_key_value_heads'] = HEADS // 2 if grouped else HEADS
        node.update(tokenizer=self.language_tokenizer, dtype='float32')
        node['config'] = config  # update would merge
        node.pop('model', None)


def _sizes(kind, node):
    """Image and patch size of a ViT, given or default."""
    parameters = inspect.signature(kind).parameters
    return [node.get(name, parameters[name].default) for name in ('image_size', 'patch_size')]


def _patches(image_size, patches):
    """The most patches along a side, of those that divide the image, that are neither more than before nor than 4."""
    return max(number for number in range(1, min(patches, _PATCHES) + 1) if image_size % number == 0)
