"""Our config of the BLIP in a Hugging Face folder; what the model then says is in test_parity/test_huggingface_blip.py.
"""
import json
import shutil

import pytest

from mmblip2.checkpoints.huggingface_blip import CLASSES
from mmblip2.checkpoints.huggingface_config import config_from_folder, is_huggingface_folder
from mmblip2.errors import ConfigError

PROCESSOR = dict(image_processor_type='BlipImageProcessor', size=dict(height=32, width=32), resample=3,
                 image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], do_resize=True, do_rescale=True,
                 rescale_factor=1 / 255, do_normalize=True, do_convert_rgb=True)
# as a transformers of 2022 wrote them, with settings that say nothing of the architecture
VISION = dict(model_type='blip_vision_model', hidden_size=16, intermediate_size=24, num_hidden_layers=2,
              num_attention_heads=2, image_size=32, projection_dim=512, dropout=0.0, attention_dropout=0.0,
              num_channels=3, initializer_range=0.02, initializer_factor=1.0, torchscript=False, top_k=50)


@pytest.fixture
def write(tmp_path, bert_folder):
    """A function that writes a folder without weights; ``place=value`` sets one entry of config.json, None takes it
    out."""
    from mmblip2.models.tokenizers import BertTokenizer
    tokenizer = BertTokenizer(bert_folder, enc_token=True)
    text = dict(model_type='blip_text_model', vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2,
                num_attention_heads=4, intermediate_size=20, max_position_embeddings=40, hidden_dropout_prob=0.1,
                attention_probs_dropout_prob=0.1, encoder_hidden_size=16, bos_token_id=tokenizer.dec_id,
                sep_token_id=tokenizer.sep_id, eos_token_id=2, pad_token_id=0, is_decoder=True, use_cache=True,
                label_smoothing=0.0, hidden_act='gelu', length_penalty=1.0)

    def write(name='BlipForConditionalGeneration', processor=PROCESSOR, with_tokenizer=True, **settings):
        folder = tmp_path / 'model'
        shutil.rmtree(folder, ignore_errors=True)
        config = dict(architectures=[name], model_type='blip', vision_config=dict(VISION), text_config=dict(text),
                      projection_dim=12, image_text_hidden_size=6, logit_scale_init_value=2.6592,
                      initializer_factor=1.0, torch_dtype='float32', transformers_version=None)
        if name in ('BlipTextModel', 'BlipVisionModel'):
            config = dict(config['text_config' if name == 'BlipTextModel' else 'vision_config'], architectures=[name])
        for place, value in settings.items():
            *parents, key = place.split('__')
            node = config
            for parent in parents:
                node = node[parent]
            node[key] = value
            if value is None:
                del node[key]
        folder.mkdir()
        if with_tokenizer:
            shutil.copytree(bert_folder, folder, dirs_exist_ok=True)
        (folder / 'config.json').write_text(json.dumps(config))
        if processor is not None:
            (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
        return folder

    return write


@pytest.fixture
def notes(monkeypatch):
    """What is logged."""
    found = []
    monkeypatch.setattr('mmblip2.checkpoints.huggingface_config.say', lambda message, level=None: found.append(message))
    return found


def test_sizes_and_settings_are_those_of_the_folder(write, notes):
    folder = write()
    assert is_huggingface_folder(folder)
    cfg = config_from_folder(folder)
    model = cfg.model
    assert model.vision == dict(type='VisionTransformer', image_size=32, patch_size=16, width=16, depth=2, num_heads=2,
                                mlp_width=24, eps=1e-5, activation='gelu', qkv_bias='full', final_norm=True)
    assert model.text_decoder == dict(type='MED', vision_width=16, num_layers=2, width=16, num_heads=4, mlp_width=20,
                                      vocab_size=model.text_decoder.vocab_size, max_positions=40, dropout=0.1,
                                      eps=1e-12)
    assert model.tokenizer == dict(type='BertTokenizer', path=str(folder), enc_token=True)
    assert model.max_text_len == 40 and not notes
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline] == ['LoadImage', 'Resize', 'CaptionPrompt',
                                                                            'PackInputs']
    assert model.data_preprocessor.mean == pytest.approx([127.5, 102, 76.5])


def test_every_class_has_its_type(write):
    found = {}
    for name in CLASSES:
        model = config_from_folder(write(name)).model
        found[name] = model.type, {'vision', 'text_encoder', 'text_decoder'} & model.keys()
    both = {'vision', 'text_encoder'}
    assert found == {
        'BlipForConditionalGeneration': ('BlipGeneration', {'vision', 'text_decoder'}),
        'BlipForQuestionAnswering': ('BlipGeneration', {*both, 'text_decoder'}),
        'BlipForImageTextRetrieval': ('BlipRepresentation', both), 'BlipModel': ('BlipFeatures', both),
        'BlipTextModel': ('BlipFeatures', {'text_encoder'}), 'BlipVisionModel': ('BlipFeatures', {'vision'})}
    retrieval = config_from_folder(write('BlipForImageTextRetrieval')).model
    assert retrieval.embed_dim == 6 and retrieval.queue_size is None
    assert config_from_folder(write('BlipModel')).model.embed_dim == 12


def test_what_a_file_leaves_out_is_transformers_default(write):
    model = config_from_folder(write(text_config__num_attention_heads=None, vision_config__layer_norm_eps=1e-6)).model
    assert model.text_decoder.num_heads == 8 and model.vision.eps == 1e-6
    whole = config_from_folder(write('BlipForImageTextRetrieval', image_text_hidden_size=None)).model
    assert whole.embed_dim == 256


def test_cross_attention_has_the_width_of_the_vision_encoder(write):
    """Whatever the file says: transformers sets it so. Of the text model alone the file says it."""
    model = config_from_folder(write(text_config__encoder_hidden_size=768)).model
    assert model.text_decoder.vision_width == 16
    assert config_from_folder(write('BlipTextModel', encoder_hidden_size=24)).model.text_encoder.vision_width == 24


@pytest.mark.parametrize('name, settings, message', [
    ('BlipForConditionalGeneration', dict(text_config__bos_token_id=7), 'text_config.bos_token_id is 7, and the .DEC'),
    ('BlipForQuestionAnswering', dict(text_config__sep_token_id=None), 'text_config.sep_token_id is 102, and the .SEP'),
    ('BlipForQuestionAnswering', dict(vision_config__hidden_size=24), 'cannot read questions of the former'),
    ('BlipForImageTextRetrieval', dict(text_config__vocab_size=5), 'vocab_size is 5, and the tokenizer of the folder'),
    ('BlipForImageTextRetrieval', dict(text_config__hidden_act='relu'), "hidden_act is 'relu', only 'gelu' can be"),
    ('BlipModel', dict(text_config__adapters=3), 'text_config has the setting adapters=3, which is not known here'),
    ('BlipModel', dict(new_head=1), 'config.json has the setting new_head=1'),
    ('BlipVisionModel', dict(image_size=0), 'vision_config.image_size is 0, expected a whole number above 0'),
    ('BlipForCaptions', {}, r'BlipForCaptions .model_type .blip.., expected one of BlipForConditionalGeneration')])
def test_what_cannot_be_built_is_refused(write, name, settings, message):
    with pytest.raises(ConfigError, match=message):
        config_from_folder(write(name, **settings))


def test_all_problems_are_said_at_once(write):
    with pytest.raises(ConfigError, match='new_head=1.*hidden_act.*bos_token_id is 7'):
        config_from_folder(write(new_head=1, text_config__hidden_act='relu', text_config__bos_token_id=7))


def test_without_tokenizer_and_processor_it_is_said(write, notes):
    model = config_from_folder(write('BlipModel', processor=None, with_tokenizer=False)).model
    assert model.tokenizer.type == 'SizeOnlyTokenizer' and model.tokenizer.size == model.text_encoder.vocab_size
    assert any('no tokenizer in' in note for note in notes) and any('no preprocessor_config' in note for note in notes)
    notes.clear()
    config_from_folder(write('BlipTextModel', processor=None))
    assert not any('no preprocessor_config' in note for note in notes)


def test_dropouts_that_differ_are_said(write, notes):
    config_from_folder(write(text_config__attention_probs_dropout_prob=0.3))
    assert any('attention_probs_dropout_prob=0.3 would matter in training only' in note for note in notes)
