import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from mmblip2.checkpoints.huggingface_config import CLASSES, config_from_folder, is_huggingface_folder, tensor_names
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.utils.run_config import load_config

VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28,
              patch_size=7, layer_norm_eps=1e-5)
QFORMER = dict(hidden_size=40, num_hidden_layers=4, num_attention_heads=4, intermediate_size=56, vocab_size=200,
               max_position_embeddings=24, cross_attention_frequency=3)
OPT = dict(model_type='opt', hidden_size=24, word_embed_proj_dim=24, num_hidden_layers=3, num_attention_heads=2,
           ffn_dim=48, max_position_embeddings=64, vocab_size=340, eos_token_id=2)
T5 = dict(model_type='t5', d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=2, feed_forward_proj='gated-gelu',
          dense_act_fn='gelu', tie_word_embeddings=False, vocab_size=340, eos_token_id=2, decoder_start_token_id=0)
PROCESSOR = dict(image_processor_type='BlipImageProcessor', size=dict(height=28, width=28), resample=3,
                 image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], do_resize=True, do_rescale=True,
                 rescale_factor=1 / 255, do_normalize=True, do_convert_rgb=True)


@pytest.fixture
def write(tmp_path, opt_folder, bert_folder):
    """A function that writes a folder without weights; ``place=value`` sets one entry of config.json."""

    def write(name='Blip2ForConditionalGeneration', text=OPT, processor=PROCESSOR, generation=None, **settings):
        folder = tmp_path / 'model'
        shutil.rmtree(folder, ignore_errors=True)
        qformer = dict(QFORMER, use_qformer_text_input=True) if 'Retrieval' in name else dict(QFORMER)
        config = dict(architectures=[name], model_type='blip-2', vision_config=dict(VISION), qformer_config=qformer,
                      text_config=dict(text), num_query_tokens=5, image_token_index=339)
        for place, value in settings.items():
            *parents, key = place.split('__')
            node = config
            for parent in parents:
                node = node[parent]
            node[key] = value
        shutil.copytree(bert_folder if 'Retrieval' in name else opt_folder, folder)
        (folder / 'config.json').write_text(json.dumps(config))
        if processor is not None:
            (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
        if generation is not None:
            (folder / 'generation_config.json').write_text(json.dumps(generation))
        return folder

    return write


@pytest.fixture
def notes(monkeypatch):
    """What is logged."""
    found = []
    monkeypatch.setattr('mmblip2.checkpoints.huggingface_config.say', lambda message, level=None: found.append(message))
    return found


def test_sizes_and_settings_are_those_of_the_folder(write):
    folder = write()
    cfg = config_from_folder(folder)
    model = cfg.model
    assert model.type == 'Blip2Generation' and model.frozen == ['vision', 'language_model']
    assert model.vision == dict(type='VisionTransformer', image_size=28, patch_size=7, width=32, depth=2, num_heads=4,
                                mlp_width=48, eps=1e-5, activation='gelu', weights=str(folder))
    assert model.vision_norm_eps == 1e-5
    assert model.qformer == dict(
        type='QFormer', vision_width=32, num_query=5, vocab_size=None, num_layers=4, width=40, num_heads=4,
        mlp_width=56, cross_attention_freq=3, max_positions=24, dropout=0.1, eps=1e-12)
    language_model = model.language_model
    assert (language_model.type, language_model.dtype, language_model.ending) == ('CausalLM', 'float32', '</s>')
    assert language_model.tokenizer == language_model.weights == str(folder)
    assert language_model.config == {key: value for key, value in OPT.items() if key != 'eos_token_id'}
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline] == ['LoadImage', 'Resize', 'CaptionPrompt',
                                                                           'PackInputs']
    assert model.data_preprocessor.mean == pytest.approx([127.5, 102., 76.5])
    assert model.data_preprocessor.std == pytest.approx([51., 63.75, 76.5])


def test_retrieval_takes_the_berts_tokenizer_and_its_positions(write):
    model = config_from_folder(write('Blip2ForImageTextRetrieval', image_text_hidden_size=16)).model
    assert model.type == 'Blip2Representation' and model.embed_dim == 16 and model.frozen == ['vision']
    assert model.qformer.vocab_size == 200 and model.max_text_len == 24
    assert model.tokenizer.type == 'BertTokenizer' and 'language_model' not in model


def test_a_table_without_a_row_for_dec_gets_one(write, bert_folder, notes):
    from transformers import AutoTokenizer
    words = len(AutoTokenizer.from_pretrained(bert_folder))
    folder = write('Blip2ForImageTextRetrieval', qformer_config__vocab_size=words)
    assert config_from_folder(folder).model.qformer.vocab_size == words + 1
    assert 'the tokenizer has no [DEC]; its row of the word embeddings is new' in '; '.join(notes)


def test_old_folders_and_what_transformers_4_wrote_into_every_config_make_no_difference(write):
    new = config_from_folder(write())
    leftovers = dict(add_cross_attention=False, bad_words_ids=None, finetuning_task=None, num_beams=1, top_p=1.0,
                     torchscript=False, tf_legacy_loss=False, _name_or_path='x', max_length=20, torch_dtype='float32')
    old = write(text=dict(OPT, **leftovers), image_token_index=None, torch_dtype='float32', initializer_factor=1.0,
                use_decoder_only_language_model=True, is_encoder_decoder=False,
                vision_config=dict(VISION, **leftovers, num_channels=3, projection_dim=512, dropout=0.0,
                                   initializer_factor=1.0, model_type='blip_2_vision_model', qkv_bias=True),
                qformer_config=dict(QFORMER, **leftovers, classifier_dropout=None,
                                    position_embedding_type='absolute', encoder_hidden_size=1408))
    assert config_from_folder(old).model == new.model


def test_what_a_config_leaves_out_is_what_transformers_takes(write):
    """The published folders say little more than the names of the parts."""
    import transformers
    folder = write(vision_config={}, qformer_config={}, text_config=dict(model_type='opt'))
    config = json.loads((folder / 'config.json').read_text())
    del config['num_query_tokens']
    (folder / 'config.json').write_text(json.dumps(config))
    model = config_from_folder(folder).model
    theirs = transformers.Blip2Config()
    vision, qformer = theirs.vision_config, theirs.qformer_config
    assert dict(model.vision, weights=None) == dict(
        type='VisionTransformer', weights=None, image_size=vision.image_size, patch_size=vision.patch_size,
        width=vision.hidden_size, depth=vision.num_hidden_layers, num_heads=vision.num_attention_heads,
        mlp_width=vision.intermediate_size, eps=vision.layer_norm_eps, activation=vision.hidden_act)
    assert dict(model.qformer) == dict(
        type='QFormer', vision_width=vision.hidden_size, num_query=theirs.num_query_tokens, vocab_size=None,
        num_layers=qformer.num_hidden_layers, width=qformer.hidden_size, num_heads=qformer.num_attention_heads,
        mlp_width=qformer.intermediate_size, cross_attention_freq=qformer.cross_attention_frequency,
        max_positions=qformer.max_position_embeddings, dropout=qformer.hidden_dropout_prob,
        eps=qformer.layer_norm_eps)


@pytest.mark.parametrize('settings, message', [
    (dict(vision_config__qkv_bias=False), 'vision_config.qkv_bias is False, only True can be built'),
    (dict(vision_config__hidden_act='silu'), "vision_config.hidden_act is 'silu', only 'gelu' and 'quick_gelu'"),
    (dict(vision_config__num_channels=4), 'vision_config.num_channels is 4, only 3'),
    (dict(vision_config__image_size=[28, 56]), r'vision_config.image_size is \[28, 56\], only squares'),
    (dict(vision_config__rope=True), 'vision_config has the setting rope=True, which is not known here'),
    (dict(qformer_config__hidden_act='relu'), "qformer_config.hidden_act is 'relu', only 'gelu'"),
    (dict(qformer_config__position_embedding_type='relative_key'), "position_embedding_type is 'relative_key'"),
    (dict(qformer_config__gated=1), 'qformer_config has the setting gated=1, which is not known here'),
    (dict(text_config__rotary=9), "text_config has the setting rotary=9, which transformers .* for 'opt'"),
    (dict(text_config__word_embed_proj_dim=12), 'word_embed_proj_dim is 12 and hidden_size 24: .* mixes the images'),
    (dict(quantization_config=dict(bits=4)), 'quantised weights cannot be read'),
    (dict(new_head=True), 'config.json has the setting new_head=True'),
])
def test_what_cannot_be_built_is_refused_by_its_name(write, settings, message):
    with pytest.raises(ConfigError, match=rf'model cannot be built here: .*{message}'):
        config_from_folder(write(**settings))


def test_a_type_of_weights_that_cannot_be_read_is_refused(write):
    with pytest.raises(ConfigError, match="dtype is 'float8', expected one of float32, bfloat16, float16"):
        config_from_folder(write(dtype='float8'))


def test_all_problems_are_said_at_once(write):
    with pytest.raises(ConfigError, match='new_head.*qkv_bias is False.*relative_key'):
        config_from_folder(write(vision_config__qkv_bias=False, new_head=True,
                                 qformer_config__position_embedding_type='relative_key'))


@pytest.mark.parametrize('settings, message', [
    (dict(do_resize=False), 'do_resize of the image processor is False, only True'),
    (dict(do_center_crop=True), 'do_center_crop of the image processor is True, only False'),
    (dict(resample=9), 'resample of the image processor is 9, expected one of'),
    (dict(size=dict(shortest_edge=28)), "size of the image processor is {'shortest_edge': 28}, expected height and"),
])
def test_images_that_cannot_be_prepared_so_are_refused(write, settings, message):
    with pytest.raises(ConfigError, match=message):
        config_from_folder(write(processor=dict(PROCESSOR, **settings)))


def test_a_retrieval_model_that_reads_no_text_is_refused(write):
    with pytest.raises(ConfigError, match='use_qformer_text_input is False, with which no text can be read'):
        config_from_folder(write('Blip2ForImageTextRetrieval', qformer_config__use_qformer_text_input=False))


def test_placeholders_and_queries_must_be_as_many(write):
    folder = write()
    (folder / 'processor_config.json').write_text(json.dumps(dict(num_query_tokens=32)))
    with pytest.raises(ConfigError, match='the processor writes 32 placeholders and the model has 5 queries'):
        config_from_folder(folder)


def test_processor_settings_are_found_in_the_file_of_either_version(write):
    four = config_from_folder(write(processor=dict(PROCESSOR, resample=1)))
    folder = write(processor=None)
    (folder / 'processor_config.json').write_text(json.dumps(
        dict(image_processor=dict(PROCESSOR, resample=1), num_query_tokens=5, processor_class='Blip2Processor')))
    five = config_from_folder(folder)
    assert five.model == four.model and five.test_dataloader == four.test_dataloader
    assert four.test_dataloader.dataset.pipeline[1] == dict(type='Resize', scale=28, filter='lanczos')


@pytest.mark.parametrize('processor, note', [
    (None, 'no preprocessor_config.json: images are resized with the bicubic filter'),
    (dict(PROCESSOR, sharpen=2), 'sharpen=2 of the image processor is not known here and left out'),
    (dict(PROCESSOR, size=dict(height=384, width=384)), 'makes images of 384 x 384, the model reads 28 x 28'),
])
def test_what_the_processor_leaves_open_is_said(write, processor, note, notes):
    cfg = config_from_folder(write(processor=processor))
    assert cfg.test_dataloader.dataset.pipeline[1].scale == 28
    assert note in '; '.join(notes)


@pytest.mark.parametrize('said', ['dtype', 'torch_dtype'])
def test_the_language_model_has_the_type_of_the_file_and_t5_is_never_in_float16(write, said, notes):
    opt = config_from_folder(write(**{said: 'float16'})).model.language_model
    assert opt.dtype == 'float16'
    t5 = config_from_folder(write(text=T5, **{said: 'float16'})).model.language_model
    assert (t5.type, t5.dtype) == ('Seq2SeqLM', 'bfloat16')
    assert 'float16, in which T5 overflows: the language model is built in bfloat16' in '; '.join(notes)


def test_t5_keeps_its_activation_and_its_own_output_layer(write):
    config = config_from_folder(write(text=T5)).model.language_model.config
    assert (config.dense_act_fn, config.tie_word_embeddings) == ('gelu', False)
    tied = config_from_folder(write(text=dict(T5, tie_word_embeddings=True))).model.language_model.config
    assert 'tie_word_embeddings' not in tied


def test_the_end_of_a_text_is_that_of_the_folder(write, opt_folder):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(opt_folder)
    new_line = tokenizer('\n', add_special_tokens=False).input_ids[0]
    published = config_from_folder(write(text_config__eos_token_id=new_line)).model
    assert published.language_model.ending == '\n' and 'generation' not in published
    byte = next(i for i in range(4, len(tokenizer)) if '\ufffd' in tokenizer.decode([i]))  # half a letter
    assert config_from_folder(write(text_config__eos_token_id=byte)).model.language_model.ending == byte
    several = config_from_folder(write(text_config__eos_token_id=[new_line, 2])).model
    assert several.language_model.ending == '\n' and several.generation == dict(eos_token_id=[new_line, 2])
    text = {key: value for key, value in OPT.items() if key != 'eos_token_id'}
    other = config_from_folder(write(text=text, generation=dict(eos_token_id=new_line)))
    assert other.model.language_model.ending == '\n'


def test_the_search_is_that_of_generation_config(write, notes):
    generation = dict(num_beams=5, max_new_tokens=12, length_penalty=-1.0, pad_token_id=1, use_cache=True)
    cfg = config_from_folder(write(generation=generation))
    assert cfg.model.generation == dict(num_beams=5, max_new_tokens=12, length_penalty=-1.0)
    assert 'generation' not in config_from_folder(write(generation=dict(max_length=20))).model
    assert 'max_length=20 counts prompt and placeholders' in '; '.join(notes)


def test_other_models_and_broken_files_are_refused(write, tmp_path):
    with pytest.raises(ConfigError, match=r"holds BertModel \(model_type 'blip-2'\), expected one of Blip2For"):
        config_from_folder(write('BertModel'))
    with pytest.raises(CheckpointError, match='has no config.json: give the folder that save_pretrained'):
        config_from_folder(tmp_path)
    folder = write()
    (folder / 'preprocessor_config.json').write_text('{"size":')
    with pytest.raises(CheckpointError, match='preprocessor_config.json cannot be read .*download it again'):
        config_from_folder(folder)
    with pytest.raises(ConfigError, match="text_config.model_type is 'rwkv9', which transformers .* does not know"):
        config_from_folder(write(text_config__model_type='rwkv9'))
    with pytest.raises(ConfigError, match='would run code'):
        config_from_folder(write(text_config__auto_map=dict(AutoConfig='a.py')))
    assert len(CLASSES) == 8


def test_a_folder_is_recognised_by_its_config(write, tmp_path):
    folder = write()
    assert is_huggingface_folder(folder) and is_huggingface_folder(str(folder))
    (folder / 'config.json').write_text('[1]')
    assert not is_huggingface_folder(folder)
    assert not is_huggingface_folder(tmp_path) and not is_huggingface_folder(folder / 'config.json')
    assert not is_huggingface_folder('blip2_8xb32_retrieval')


def test_values_of_another_type_are_named_before_anything_is_built(write):
    folder = write(vision_config__hidden_size='32', vision_config__patch_size=[7, -7],
                   vision_config__layer_norm_eps='x', qformer_config__num_hidden_layers=0,
                   qformer_config__hidden_size=None, num_query_tokens=2.5)
    with pytest.raises(ConfigError) as error:
        config_from_folder(folder)
    for problem in ("vision_config.hidden_size is '32', expected a whole number above 0",
                    'vision_config.patch_size is [7, -7]', "vision_config.layer_norm_eps is 'x', expected a number",
                    'qformer_config.num_hidden_layers is 0', 'qformer_config.hidden_size is None',
                    'num_query_tokens is 2.5'):
        assert problem in str(error.value)
    with pytest.raises(ConfigError, match='vision_config is a list, expected a dict'):
        config_from_folder(write(vision_config=[1]))


def test_numbers_of_the_image_processor(write):
    made = config_from_folder(write(processor=dict(PROCESSOR, image_mean=0.5))).model.data_preprocessor
    assert made['mean'] == [127.5] * 3  # one number is that of every channel, as in transformers
    wrong = dict(PROCESSOR, image_mean='x', image_std=[1., 0., 1.], rescale_factor=0)
    with pytest.raises(ConfigError) as error:
        config_from_folder(write(processor=wrong))
    for problem in ("image_mean of the image processor is 'x', expected 3 numbers;",
                    'image_std of the image processor is [1.0, 0.0, 1.0], expected 3 numbers other than 0',
                    'rescale_factor of the image processor is 0, expected 1 number other than 0'):
        assert problem in str(error.value)


def test_names_of_tensors_are_read_from_every_kind_of_file(tmp_path):
    import torch
    from safetensors.torch import save_file
    state = dict(query_tokens=torch.zeros(1, 2, 4))
    with pytest.raises(CheckpointError, match='has no model.safetensors, pytorch_model.bin, or shards'):
        tensor_names(tmp_path)
    whole = dict(state, **{'qformer.encoder.layer.0.attention.attention.key.bias': torch.zeros(4),
                           'language_model.lm_head.weight': torch.zeros(2, 4)})
    torch.save(whole, tmp_path / 'pytorch_model.bin')
    assert tensor_names(tmp_path) == whole.keys()  # as they are there, not in our names
    save_file(state, tmp_path / 'model.safetensors')
    assert tensor_names(tmp_path) == {'query_tokens'}
    (tmp_path / 'model.safetensors').unlink()
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=dict(a='x', b='y'))))
    assert tensor_names(tmp_path) == {'a', 'b'}
    (tmp_path / 'model.safetensors').write_bytes(b'broken')
    (tmp_path / 'model.safetensors.index.json').unlink()
    with pytest.raises(CheckpointError, match='model.safetensors is broken or incomplete'):
        tensor_names(tmp_path)


def test_the_tool_prints_what_loads_again(write, tmp_path, capsys):
    path = Path(__file__).parents[2] / 'tools/model_converters/huggingface_to_config.py'
    spec = importlib.util.spec_from_file_location('huggingface_to_config', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    folder, out = write(generation=dict(num_beams=3)), tmp_path / 'out.py'
    tool.main([str(folder), '--out', str(out)])
    expected = config_from_folder(folder)
    printed = tmp_path / 'printed.py'
    printed.write_text(capsys.readouterr().out)
    for file in (out, printed):
        cfg = load_config(file)
        assert cfg.model == expected.model and cfg.test_dataloader == expected.test_dataloader
    with pytest.raises(ConfigError, match=r'--out config.txt: a config is a .py file'):
        tool.main([str(folder), '--out', 'config.txt'])
