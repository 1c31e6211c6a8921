"""Our config from the folder of a Hugging Face BLIP; see ``huggingface_config.py``.

==============================  =====================================================
class of transformers           type of our model
==============================  =====================================================
BlipForConditionalGeneration    ``BlipGeneration``
BlipForQuestionAnswering        ``BlipGeneration`` with a text encoder
BlipForImageTextRetrieval       ``BlipRepresentation``, without momentum encoders
BlipModel, BlipTextModel,       ``BlipFeatures``
BlipVisionModel
==============================  =====================================================

Texts begin as in BLIP, with [ENC] where they read an image; transformers leaves [CLS] there.
"""
from typing import Any

from .huggingface_config import FolderReader, folder_settings, has_tokenizer

_TEXTS = ('BlipForConditionalGeneration', 'BlipForQuestionAnswering')
_FEATURES = ('BlipModel', 'BlipTextModel', 'BlipVisionModel')
CLASSES = (*_TEXTS, 'BlipForImageTextRetrieval', *_FEATURES)
_TYPES = ('blip', 'blip_text_model', 'blip_vision_model')

_VISION = dict(
    image_size=('image_size', 384), patch_size=('patch_size', 16), hidden_size=('width', 768),
    num_hidden_layers=('depth', 12), num_attention_heads=('num_heads', 12), intermediate_size=('mlp_width', 3072),
    layer_norm_eps=('eps', 1e-5), hidden_act=('activation', 'gelu'))
_TEXT = dict(
    num_hidden_layers=('num_layers', 12), hidden_size=('width', 768), num_attention_heads=('num_heads', 8),
    intermediate_size=('mlp_width', 3072), vocab_size=('vocab_size', 30524),
    max_position_embeddings=('max_positions', 512), hidden_dropout_prob=('dropout', 0.0),
    layer_norm_eps=('eps', 1e-12))
_ONLY_TEXT = dict(hidden_act='gelu', position_embedding_type='absolute')
_OTHER_TEXT = ('encoder_hidden_size', 'attention_probs_dropout_prob', 'label_smoothing')
_OTHER_TOP = ('mmblip2', 'vision_config', 'text_config', 'logit_scale_init_value', 'image_text_hidden_size',
              'label_smoothing')


def is_blip(folder) -> bool:
    """Whether the config.json of a folder is of the first BLIP."""
    return folder_settings(folder).get('model_type') in _TYPES


class BlipReader(FolderReader):
    """As its base, for BLIP."""

    classes = CLASSES
    bare = {'BlipTextModel': 'text_config', 'BlipVisionModel': 'vision_config'}
    tables = {'vision_config': _VISION, 'text_config': _TEXT,
              '': dict(projection_dim=(None, 512), image_text_hidden_size=(None, 256))}

    @property
    def sees_images(self):
        """Whether the class has a vision encoder."""
        return self.kind != 'BlipTextModel'

    def model(self):
        """``model`` and pipeline of our config."""
        if self.kind not in self.bare:
            self.unknown(self.config, _OTHER_TOP, 'config.json')
        if 'quantization_config' in self.config:
            self.problems.append('quantised weights cannot be read: take the folder with the full ones')
        model: dict[str, Any] = {}
        steps: list[dict] = []
        if self.sees_images:
            model['vision'] = dict(self.vision(), qkv_bias='full', final_norm=True)
            model['data_preprocessor'], steps = self.processor(model['vision']['image_size'])
        if self.kind in _FEATURES:
            model['type'] = 'BlipFeatures'
            if self.kind == 'BlipModel':
                model['embed_dim'] = self.config.get('projection_dim', 512)
        elif self.kind == 'BlipForImageTextRetrieval':
            model.update(type='BlipRepresentation', embed_dim=self.config.get('image_text_hidden_size', 256),
                         queue_size=None)
        else:
            model['type'] = 'BlipGeneration'
            if generation := self.generation():
                model['generation'] = generation
        if self.kind != 'BlipVisionModel':
            model.update(self.texts())
        task = [dict(type='CaptionPrompt', prompt='')] if self.kind in _TEXTS[:1] else []
        load = [dict(type='LoadImage'), *steps] if self.sees_images else []
        return model, [*load, *task, dict(type='PackInputs')]

    def texts(self):
        """The BERTs of the class, and the tokenizer."""
        settings = self.part('text_config', _TEXT, _ONLY_TEXT, _OTHER_TEXT)
        given = self.sections['text_config']
        dropout = given.get('attention_probs_dropout_prob', 0.0)
        if dropout != settings['dropout']:
            self.notes.append(f'text_config.attention_probs_dropout_prob={dropout} would matter in training only; '
                              f'both dropouts are {settings["dropout"]} here')
        seen = given.get('encoder_hidden_size', 768)
        if self.kind not in self.bare:  # transformers gives it the width of the vision encoder, whatever the file says
            seen = self.sections['vision_config'].get('hidden_size', 768)
        if self.kind == 'BlipForQuestionAnswering' and seen != settings['width']:
            self.problems.append(f'text_config.hidden_size is {settings["width"]} and vision_config.hidden_size {seen}:'
                                 ' the decoder, made for the latter, cannot read questions of the former')
        parts = {'BlipForConditionalGeneration': ('text_decoder', ),
                 'BlipForQuestionAnswering': ('text_encoder', 'text_decoder')}.get(self.kind, ('text_encoder', ))
        model = {part: dict(type='MED', vision_width=seen, **settings) for part in parts}
        if has_tokenizer(self.folder):
            model['tokenizer'] = self.tokenizer(given, settings['vocab_size'])
        else:
            model['tokenizer'] = self.no_tokenizer(self.folder, settings['vocab_size'])
        model['max_text_len'] = settings['max_positions']  # transformers cuts nothing
        if self.kind == 'BlipForQuestionAnswering':
            model['max_question_len'] = settings['max_positions']
        return model

    def tokenizer(self, given, words):
        """BLIP's tokenizer: the folder's, [DEC] and [ENC] where the table has rows for them."""
        from ..models.tokenizers import BertTokenizer
        settings = dict(type='BertTokenizer', path=str(self.folder), enc_token=True)
        found = BertTokenizer(str(self.folder), enc_token=True)
        first = given.get('bos_token_id', 30522)
        if self.kind in _TEXTS and found.dec_id != first:
            self.problems.append(f'text_config.bos_token_id is {first}, and the [DEC] of the tokenizer in the folder '
                                 f'is {found.dec_id}: is it the tokenizer of this model?')
        if self.kind in _TEXTS and given.get('sep_token_id', 102) != found.sep_id:
            self.problems.append(f'text_config.sep_token_id is {given.get("sep_token_id", 102)}, and the [SEP] of the '
                                 f'tokenizer in the folder is {found.sep_id}: is it the tokenizer of this model?')
        if len(found) > words:
            self.problems.append(f'text_config.vocab_size is {words}, and the tokenizer of the folder has {len(found)} '
                                 'tokens with [DEC] and [ENC]')
        return settings
