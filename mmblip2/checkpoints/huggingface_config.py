"""Our config from the folder of a Hugging Face BLIP-2 or InstructBLIP: config.json, generation_config.json, the image
processor's settings and the tokenizers, as transformers 4.27 to 5 write them. Folders of BLIP are translated in
``huggingface_blip.py``.

Every setting of the folder is mapped, said to concern training only, known to say nothing of the architecture, or
refused by its name. Settings that a file leaves out have the values that transformers gives them.
"""
import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, first_lines
from ..utils.log import say
from .files import FOLDER_FILES, read_file, shards_of, weights_file

_GENERATORS = ('Blip2ForConditionalGeneration', 'Blip2Model', 'InstructBlipForConditionalGeneration')
# of the others: the sections of their config.json that they build; one without sections is a section itself
_PARTS = {'Blip2ForImageTextRetrieval': ('vision_config', 'qformer_config'),
          'Blip2VisionModelWithProjection': ('vision_config', 'qformer_config'),
          'Blip2TextModelWithProjection': ('qformer_config', ),
          'Blip2VisionModel': ('vision_config', ), 'Blip2QFormerModel': ('qformer_config', )}
_BARE = ('Blip2VisionModel', 'Blip2QFormerModel')
_READ_TEXT = ('Blip2ForImageTextRetrieval', 'Blip2TextModelWithProjection', 'InstructBlipForConditionalGeneration')
CLASSES = (*_GENERATORS, *_PARTS)  # and those of huggingface_blip.py
INSTRUCTION = 'A short image description.'  # what InstructBLIP is asked for a caption in its paper

# Settings by transformers' names: (our name, value where the file leaves it out)
_VISION = dict(
    image_size=('image_size', 224), patch_size=('patch_size', 14), hidden_size=('width', 1408),
    num_hidden_layers=('depth', 39), num_attention_heads=('num_heads', 16), intermediate_size=('mlp_width', 6144),
    layer_norm_eps=('eps', 1e-6), hidden_act=('activation', 'gelu'))
_QFORMER = dict(
    num_hidden_layers=('num_layers', 12), hidden_size=('width', 768), num_attention_heads=('num_heads', 12),
    intermediate_size=('mlp_width', 3072), cross_attention_frequency=('cross_attention_freq', 2),
    max_position_embeddings=('max_positions', 512), hidden_dropout_prob=('dropout', 0.1),
    layer_norm_eps=('eps', 1e-12))
# ... of which only one value can be built here
_ONLY_VISION = dict(qkv_bias=True, num_channels=3)
_ONLY_QFORMER = dict(hidden_act='gelu', position_embedding_type='absolute')
# ... that have rules of their own below
_OTHER_TOP = ('mmblip2', 'vision_config', 'qformer_config', 'text_config', 'num_query_tokens', 'image_text_hidden_size')
# ... that change nothing here: how a new model is drawn, placeholders (there are none here), what follows from others
_VOID = ('initializer_range', 'initializer_factor', 'image_token_index', 'image_token_id',
         'use_decoder_only_language_model', 'projection_dim', 'classifier_dropout', 'tie_word_embeddings')
# ... that transformers 4 wrote into every config and that are none of an architecture
_GENERIC = frozenset((
    '_attn_implementation', '_attn_implementation_autoset', '_commit_hash', '_name_or_path', 'add_cross_attention',
    'architectures', 'attn_implementation', 'bad_words_ids', 'begin_suppress_tokens', 'bos_token_id',
    'chunk_size_feed_forward', 'cross_attention_hidden_size', 'decoder_start_token_id', 'diversity_penalty',
    'do_sample', 'dtype', 'early_stopping', 'encoder_no_repeat_ngram_size', 'eos_token_id',
    'exponential_decay_length_penalty', 'finetuning_task', 'forced_bos_token_id', 'forced_eos_token_id', 'id2label',
    'is_decoder', 'is_encoder_decoder', 'label2id', 'length_penalty', 'max_length', 'min_length', 'model_type',
    'no_repeat_ngram_size', 'num_beam_groups', 'num_beams', 'num_return_sequences', 'output_attentions',
    'output_hidden_states', 'output_scores', 'pad_token_id', 'prefix', 'problem_type', 'pruned_heads',
    'remove_invalid_values', 'repetition_penalty', 'return_dict', 'return_dict_in_generate', 'sep_token_id',
    'suppress_tokens', 'task_specific_params', 'temperature', 'tf_legacy_loss', 'tie_encoder_decoder',
    'tokenizer_class', 'top_k', 'top_p', 'torch_dtype', 'torchscript', 'transformers_version', 'typical_p',
    'use_bfloat16', 'use_cache', 'n_positions', 'output_past'))
# What a newer or older transformers calls otherwise and translates itself
_TRANSLATED = ('rope_parameters', 'rope_scaling', 'rope_theta', 'scale_decoder_outputs')
_GENERATION = ('do_sample', 'early_stopping', 'length_penalty', 'max_new_tokens', 'min_new_tokens',
               'no_repeat_ngram_size', 'num_beams', 'repetition_penalty', 'temperature', 'top_k', 'top_p')
_NO_SETTINGS = ('architectures', 'dtype', 'torch_dtype', 'transformers_version', '_name_or_path', 'tie_word_embeddings',
                'scale_decoder_outputs')  # of a language model, or set by rules below
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer.model', 'spiece.model', 'vocab.json', 'vocab.txt')
_IMAGE_PROCESSOR = ('crop_size', 'data_format', 'default_to_square', 'do_center_crop', 'do_convert_rgb', 'do_normalize',
                    'do_pad', 'do_rescale', 'do_resize', 'feature_extractor_type', 'image_mean',
                    'image_processor_type', 'image_std', 'processor_class', 'resample', 'rescale_factor', 'size')
_FILTERS = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic', 4: 'box', 5: 'hamming'}  # Pillow's numbers


def is_huggingface_folder(path) -> bool:
    """Whether ``path`` is a folder with a config.json that names a ``model_type``, as ``save_pretrained`` writes it.

    Args:
        path (str | Path): Anything.
    """
    return 'model_type' in folder_settings(path)


def folder_settings(path) -> dict:
    """Content of a folder's config.json; {} where there is none that can be read.

    Args:
        path (str | Path): Anything.
    """
    try:
        content = json.loads(Path(path, 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError, TypeError):
        return {}
    return content if isinstance(content, dict) else {}


def config_from_folder(path):
    """Our config of the model in a Hugging Face folder.

    Args:
        path (str | Path): What ``save_pretrained`` of one of :data:`CLASSES`, or of a class of BLIP, wrote, with its
            processor, or a published model as downloaded.

    Returns:
        Config: ``model``, whose frozen parts take their weights from the folder, and
        ``test_dataloader.dataset.pipeline``, which prepares an image as the folder's processor does. The type of the
        model is ``Blip2Generation`` (Blip2ForConditionalGeneration, Blip2Model, InstructBLIP), ``Blip2Representation``
        (Blip2ForImageTextRetrieval) or, for the classes that are a part of BLIP-2, ``Blip2Features``; see
        ``huggingface_blip.py`` for those of BLIP.

    Raises:
        CheckpointError: No such folder, or one of its files cannot be read.
        ConfigError: Another class, or settings that cannot be had here; all of them at once.
    """
    from mmengine.config import Config

    from .huggingface_blip import BlipReader, is_blip
    reader = (BlipReader if is_blip(path) else FolderReader)(Path(path))
    model, pipeline = reader.model()
    reader.finish()
    return Config(dict(model=model, test_dataloader=dict(dataset=dict(pipeline=pipeline))))


class FolderReader:
    """Collects what is wrong while it translates, so that all of it can be said at once.

    Args:
        folder (Path): With a config.json.

    Raises:
        CheckpointError: A file of it cannot be read.
        ConfigError: It is of another class, or a size is no number.
    """

    classes: tuple[str, ...] = CLASSES
    #: classes whose config.json is a section itself
    bare: dict[str, str] = {name: _PARTS[name][0] for name in _BARE}
    #: settings by section; '' for those of the top
    tables: dict[str, dict] = {'vision_config': _VISION, 'qformer_config': _QFORMER, 'text_config': {},
                               '': dict(num_query_tokens=(None, 32), image_text_hidden_size=(None, 256))}

    def __init__(self, folder):
        self.folder = folder
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.config = self.read('config.json')
        if not self.config:
            raise CheckpointError(f'{folder} has no config.json: give the folder that save_pretrained of transformers '
                                  'wrote, or a model as downloaded from its hub')
        self.kind = self.class_name()
        self.sections = {name: self.config if name == self.bare.get(self.kind) else self.config.get(name) or {}
                         for name in self.tables if name}
        self.check_types()

    def read(self, name):
        """The content of a JSON file of the folder, or an empty dict."""
        file = self.folder / name
        if not file.is_file():
            return {}
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise CheckpointError(f'{file} cannot be read ({error}): copy or download it again') from error
        if not isinstance(content, dict):
            raise CheckpointError(f'{file} holds a {type(content).__name__}, expected a dict: copy or download it '
                                  'again')
        return content

    @property
    def sees_images(self):
        """Whether the class has a vision encoder."""
        return 'vision_config' in _PARTS.get(self.kind, ('vision_config', ))

    def class_name(self):
        named = self.config.get('architectures') or []
        named = [named] if isinstance(named, str) else named
        found = next((name for name in named if name in self.classes), None)
        if found is None:
            raise ConfigError(f'{self.folder} holds {", ".join(named) or "no named class"} (model_type '
                              f'{self.config.get("model_type")!r}), expected one of {", ".join(self.classes)}')
        return found

    def check_types(self):
        """Refuse values that no model can be built with, before transformers reads them.

        Raises:
            ConfigError: All of them.
        """
        for name, section in self.sections.items():
            if not isinstance(section, dict):
                raise ConfigError(f'{self.folder}: {name} is a {type(section).__name__}, expected a dict')
        for name, table in self.tables.items():
            section = self.sections[name] if name else self.config
            name = f'{name}.' if name else ''
            for key, (_, default) in table.items():
                value = section.get(key, default)
                for item in value if isinstance(value, (list, tuple)) else [value]:
                    kind = (int, float) if isinstance(default, float) else type(default)
                    if not isinstance(item, kind) or isinstance(default, int) and item < 1:
                        expected = {int: 'a whole number above 0', float: 'a number', str: 'a name'}[type(default)]
                        self.problems.append(f'{name}{key} is {value!r}, expected {expected}')
        self.finish()

    def finish(self):
        """Say what was noticed.

        Raises:
            ConfigError: Something cannot be had here.
        """
        if self.problems:
            raise ConfigError(f'{self.folder} cannot be built here: ' + '; '.join(self.problems))
        for note in self.notes:
            say(f'{self.folder}: {note}')

    def part(self, name, table, only, others=(), dropouts=()):
        """Settings of a part by our names."""
        given = dict(self.sections[name])
        settings = {ours: given.pop(theirs, default) for theirs, (ours, default) in table.items()}
        for key, value in only.items():
            if given.get(key, value) != value:
                self.problems.append(f'{name}.{key} is {given[key]!r}, only {value!r} can be built')
        for key in dropouts:
            if given.get(key):
                self.notes.append(f'{name}.{key}={given[key]} would matter in training only and is left out')
        self.unknown(given, (*only, *others, *dropouts), name)
        return settings

    def unknown(self, given, known, what):
        for key in given:
            if key not in known and key not in _VOID and key not in _GENERIC:
                self.problems.append(f'{what} has the setting {key}={given[key]!r}, which is not known here')

    # ---------------------------------------------------------------------------------------- the model

    def model(self):
        """``model`` and pipeline of our config."""
        if self.kind not in _BARE:
            self.unknown(self.config, _OTHER_TOP, 'config.json')
        if 'quantization_config' in self.config:
            self.problems.append('quantised weights cannot be read: take the folder with the full ones')
        vision, qformer = self.vision(), self.qformer()
        preprocessor, resize = self.processor(vision['image_size'])
        parts = _PARTS.get(self.kind, ('vision_config', 'qformer_config'))
        model, task = dict(type='Blip2Features', data_preprocessor=preprocessor), []
        if 'vision_config' in parts:
            own = self.config.get('mmblip2') or {}  # of a folder that was exported here
            model.update(vision=vision, vision_norm_eps=own.get('vision_norm_eps', vision['eps']))
        if 'qformer_config' in parts:
            model['qformer'] = qformer
        if self.kind not in _BARE and self.kind not in _GENERATORS:
            model['embed_dim'] = self.config.get('image_text_hidden_size', 256)
        if self.kind in _READ_TEXT:
            instruct = self.kind.startswith('Instruct')
            model.update(self.text_half(qformer, self.folder / 'qformer_tokenizer' if instruct else self.folder))
        if self.kind == 'Blip2ForImageTextRetrieval':
            model.update(type='Blip2Representation', frozen=['vision'])
        elif self.kind in _GENERATORS:
            model.update(type='Blip2Generation', frozen=['vision', 'language_model'], **self.language_model())
            instruction = INSTRUCTION if self.kind in _READ_TEXT else None
            task = [dict(type='CaptionPrompt', **(dict(prompt=instruction, qformer_text=instruction) if instruction
                                                  else dict(prompt='')))]
        if 'vision' in model.get('frozen', ()):
            vision['weights'] = str(self.folder)
        return model, [dict(type='LoadImage'), *resize, *task, dict(type='PackInputs')]

    def vision(self):
        settings = self.part('vision_config', self.tables['vision_config'], _ONLY_VISION,
                             dropouts=('attention_dropout', 'dropout'))
        for key in ('image_size', 'patch_size'):
            value = settings[key]
            if isinstance(value, (list, tuple)):
                if len(set(value)) != 1:
                    self.problems.append(f'vision_config.{key} is {value}, only squares can be built')
                settings[key] = value[0]
        if settings['activation'] not in ('gelu', 'quick_gelu'):
            self.problems.append(f'vision_config.hidden_act is {settings["activation"]!r}, only \'gelu\' and '
                                 "'quick_gelu' can be built")
        return dict(type='VisionTransformer', **settings)

    def qformer(self):
        others = ('vocab_size', 'use_qformer_text_input', 'encoder_hidden_size', 'attention_probs_dropout_prob')
        settings = self.part('qformer_config', _QFORMER, _ONLY_QFORMER, others)
        given = self.sections['qformer_config']
        dropout = given.get('attention_probs_dropout_prob', 0.1)
        if dropout != settings['dropout']:
            self.notes.append(f'qformer_config.attention_probs_dropout_prob={dropout} would matter in training only; '
                              f'both dropouts are {settings["dropout"]} here')
        reads_text = self.kind in _READ_TEXT
        if reads_text and not self.kind.startswith('Instruct') and not given.get('use_qformer_text_input', False):
            self.problems.append('qformer_config.use_qformer_text_input is False, with which no text can be read')
        width = self.sections['vision_config'].get('hidden_size', 1408)
        if self.kind == 'Blip2QFormerModel':
            width = given.get('encoder_hidden_size', 1408)
        return dict(type='QFormer', vision_width=width,
                    num_query=None if self.kind == 'Blip2QFormerModel' else self.config.get('num_query_tokens', 32),
                    vocab_size=given.get('vocab_size', 30522) if reads_text else None, **settings)

    def text_half(self, qformer, tokenizer):
        """Arguments of a model whose Q-Former reads text; cut only where its positions end, as in transformers."""
        from ..models.tokenizers import BertTokenizer
        settings = dict(type='BertTokenizer', path=str(tokenizer))
        if not has_tokenizer(tokenizer):
            settings = self.no_tokenizer(tokenizer, qformer['vocab_size'])
        elif len(BertTokenizer(str(tokenizer))) == qformer['vocab_size'] + 1:
            qformer['vocab_size'] += 1  # [DEC], which ITC and ITM do not read
            self.notes.append('the tokenizer has no [DEC]; its row of the word embeddings is new')
        return dict(tokenizer=settings, max_text_len=qformer['max_positions'])

    def no_tokenizer(self, folder, size):
        """Config of what stands in for a tokenizer without files."""
        self.notes.append(f'no tokenizer in {folder}: the model has features, but cannot read or write text. '
                          'Save the processor into the folder too')
        return dict(type='SizeOnlyTokenizer', size=size)

    # ------------------------------------------------------------------------------- the language model

    def language_model(self):
        """Arguments ``language_model`` and, where the folder says something of it, ``generation``."""
        import transformers

        from ..compat import obey_newer_config
        from ..models.hub import refuse_code
        text = dict(self.sections['text_config'])
        refuse_code(text, f'text_config of {self.folder}')
        model_type = text.pop('model_type', 'opt')
        if model_type not in transformers.CONFIG_MAPPING:
            raise ConfigError(f'{self.folder}: text_config.model_type is {model_type!r}, which transformers '
                              f'{transformers.__version__} does not know')
        try:
            default = transformers.AutoConfig.for_model(model_type)
            config = transformers.AutoConfig.for_model(model_type, **text)
        except Exception as error:  # of many kinds: unknown types, settings that contradict one another
            raise ConfigError(f'{self.folder}: text_config cannot be read by transformers '
                              f'{transformers.__version__}: {first_lines(error)}') from error
        obey_newer_config(config, str(self.folder))
        known = default.to_dict()
        for key in text:
            if key not in known and not hasattr(default, key) and key not in _GENERIC and key not in _TRANSLATED:
                self.problems.append(f'text_config has the setting {key}={text[key]!r}, which transformers '
                                     f'{transformers.__version__} does not know for {model_type!r}')
        settings = dict(model_type=model_type, vocab_size=config.vocab_size)
        settings.update({key: value for key, value in config.to_dict().items() if key in known
                         and value != known[key] and key not in _NO_SETTINGS and key not in settings})
        settings.update(self.output_layer(text, config, default))
        width = getattr(config, 'word_embed_proj_dim', None)
        if width not in (None, config.hidden_size):
            self.problems.append(
                f'text_config.word_embed_proj_dim is {width} and hidden_size {config.hidden_size}: transformers '
                'projects the queries to the latter, embeds text in the former, and so mixes the images of a batch; '
                'such a model has no right answer to be reproduced')
        seq2seq = bool(config.is_encoder_decoder)
        language_model: dict[str, Any] = dict(type='Seq2SeqLM' if seq2seq else 'CausalLM', config=settings,
                                              dtype=self.dtype(seq2seq), weights=str(self.folder))
        generation = self.generation()
        if not has_tokenizer(self.folder):
            language_model['tokenizer'] = self.no_tokenizer(self.folder, config.vocab_size)
            return dict(language_model=language_model)
        language_model['tokenizer'] = str(self.folder)
        ends = text.get('eos_token_id', self.read('generation_config.json').get('eos_token_id', config.eos_token_id))
        self.ends(ends if isinstance(ends, list) else [ends], seq2seq, language_model, generation)
        arguments = dict(language_model=language_model)
        return dict(arguments, generation=generation) if generation else arguments

    def output_layer(self, text, config, default):
        """Settings that say whether the output layer is the embedding, and whether a T5 scales what it reads."""
        ties = bool(getattr(config, 'tie_word_embeddings', True))
        if not hasattr(default, 'dense_act_fn'):  # no T5
            return {} if ties == bool(getattr(default, 'tie_word_embeddings', True)) else dict(tie_word_embeddings=ties)
        # transformers 4 scales where it ties. 5 says the first of its own and ties where the file has no second tensor.
        scales = text.get('scale_decoder_outputs', text.get('tie_word_embeddings', True) is not False)
        own = text.get('tie_word_embeddings') is False
        if 'scale_decoder_outputs' in text:
            own = 'language_model.lm_head.weight' in tensor_names(self.folder)
        settings = dict(tie_word_embeddings=False) if own else {}
        if scales == own:
            if not hasattr(default, 'scale_decoder_outputs'):
                self.problems.append(f'text_config.scale_decoder_outputs={scales} with an output layer that is '
                                     f'{"not " if own else ""}the embedding needs transformers>=5')
            settings['scale_decoder_outputs'] = scales
        return settings

    def dtype(self, seq2seq):
        """Type of the language model's weights in the file."""
        said = [settings.get(key) for settings in (self.config, self.sections['text_config'])
                for key in ('dtype', 'torch_dtype')]
        dtype = next((str(name).removeprefix('torch.') for name in said if name), 'float32')
        if dtype not in ('float32', 'bfloat16', 'float16'):
            raise ConfigError(f'{self.folder} cannot be built here: dtype is {dtype!r}, expected one of float32, '
                              'bfloat16, float16')
        if dtype == 'float16' and seq2seq:
            self.notes.append('the file is in float16, in which T5 overflows: the language model is built in bfloat16')
            return 'bfloat16'
        return dtype

    def generation(self):
        """What generation_config.json says of the search."""
        given = self.read('generation_config.json')
        if 'max_length' in given and 'max_new_tokens' not in given:
            self.notes.append(f'generation_config.json: max_length={given["max_length"]} counts prompt and '
                              'placeholders in transformers and is left out; set generation.max_new_tokens')
        return {key: given[key] for key in _GENERATION if given.get(key) is not None}

    def ends(self, ids, seq2seq, language_model, generation):
        """Which tokens end a text; transformers obeys the text_config, its own defaults included."""
        from ..compat import read_tokenizer
        tokenizer = read_tokenizer(str(self.folder))
        if ids[0] is None or (len(ids) == 1 and ids[0] == tokenizer.eos_token_id and seq2seq):
            return
        if len(ids) > 1 or seq2seq:
            generation['eos_token_id'] = ids if len(ids) > 1 else ids[0]
        if not seq2seq:
            ending = tokenizer.decode([ids[0]])
            is_text = tokenizer(ending, add_special_tokens=False).input_ids == [ids[0]]
            language_model['ending'] = ending if is_text else ids[0]

    # ------------------------------------------------------------------------------------------- images

    def processor(self, image_size):
        """The data preprocessor, and the transforms between loading and packing."""
        given = self.read('processor_config.json').get('image_processor') or self.read('preprocessor_config.json')
        given = {key: value for key, value in given.items() if value is not None}
        queries = self.read('processor_config.json').get('num_query_tokens')
        if queries not in (None, self.config.get('num_query_tokens', 32)):
            self.problems.append(f'the processor writes {queries} placeholders and the model has '
                                 f'{self.config.get("num_query_tokens", 32)} queries (num_query_tokens)')
        if not given and self.sees_images:
            self.notes.append('no preprocessor_config.json: images are resized with the bicubic filter and normalised '
                              "with CLIP's mean and standard deviation, as BLIP-2's are")
        for key, value in (('do_resize', True), ('do_center_crop', False), ('do_pad', False)):
            if given.get(key, value) != value:
                self.problems.append(f'{key} of the image processor is {given[key]!r}, only {value} can be had')
        for key in given.keys() - set(_IMAGE_PROCESSOR):
            self.notes.append(f'{key}={given[key]!r} of the image processor is not known here and left out')
        size = given.get('size', image_size)
        sides = (size.get('height'), size.get('width')) if isinstance(size, dict) else (size, size)
        if None in sides:
            self.problems.append(f'size of the image processor is {size}, expected height and width')
        elif sides != (image_size, image_size):
            self.notes.append(f'the image processor makes images of {sides[0]} x {sides[1]}, the model reads '
                              f'{image_size} x {image_size}: the latter is used')
        resample = given.get('resample', 3)
        if resample not in _FILTERS:
            self.problems.append(f'resample of the image processor is {resample!r}, expected one of {_FILTERS}')
        unit = self.numbers(given, 'rescale_factor', 1 / 255, 1)[0] if given.get('do_rescale', True) else 1.
        mean, std = self.numbers(given, 'image_mean', _CLIP_MEAN, 3), self.numbers(given, 'image_std', _CLIP_STD, 3)
        if given.get('do_normalize') is False:
            mean, std = [0.] * 3, [1.] * 3
        preprocessor = dict(type='ImageTextPreprocessor', mean=[value / unit for value in mean],
                            std=[value / unit for value in std])
        resize = dict(type='Resize', scale=image_size)
        if resample != 3:
            resize['filter'] = _FILTERS.get(resample)
        return preprocessor, [resize]


    def numbers(self, given, key, default, count):
        """``count`` numbers of the image processor; one number is that of every channel."""
        value = given.get(key, default)
        found = list(value) if isinstance(value, (list, tuple)) else [value] * count
        if (len(found) == count and all(isinstance(item, (int, float)) for item in found)
                and (key == 'image_mean' or all(found))):
            return found
        self.problems.append(f'{key} of the image processor is {value!r}, expected {count} number'
                             f'{"s" if count > 1 else ""}' + ('' if key == 'image_mean' else ' other than 0'))
        return [1.] * count


def has_tokenizer(folder) -> bool:
    """Whether a folder has a tokenizer's files; without, transformers 5 makes one that knows no words."""
    return any(Path(folder, name).is_file() for name in _TOKENIZER_FILES)


def tensor_names(folder) -> set[str]:
    """Names of the tensors in the files of a Hugging Face folder, without reading the tensors where that can be.

    Args:
        folder (str | Path): With model.safetensors, pytorch_model.bin, or the index of their shards.

    Raises:
        CheckpointError: It has none of these, or one that cannot be read.
    """
    file = weights_file(folder)
    if file is None:
        raise CheckpointError(f'{folder} has no {FOLDER_FILES}')
    if file.name.endswith('.index.json'):
        return set(shards_of(file))
    if file.suffix != '.safetensors':
        return set(read_file(file))
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(file), 'pt') as content:
            return set(content.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{file} is broken or incomplete ({error}): copy or download it again') from error
