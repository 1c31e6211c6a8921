"""A shrunk config is the config with small sizes. What runs with it: tests/test_recipes.py."""
import pytest
from mmengine.config import Config

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.utils.meta import count_parameters
from mmblip2.utils.shrink import DEPTH, WIDTH, shrink

FAMILIES = {
    'opt': dict(vocab_size=50272, num_hidden_layers=32, num_attention_heads=32, hidden_size=2560,
                word_embed_proj_dim=2560, ffn_dim=10240, max_position_embeddings=128),
    'llama': dict(num_hidden_layers=32, num_attention_heads=32, hidden_size=4096, intermediate_size=11008),
    'qwen3': dict(num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, hidden_size=1024, head_dim=128),
    'gpt2': dict(n_embd=1024, n_layer=24, n_head=16),
    't5': dict(num_layers=24, num_decoder_layers=24, d_kv=64, d_model=2048, num_heads=32, d_ff=5120,
               feed_forward_proj='gated-gelu', dense_act_fn='gelu'),
}


def config(**model):
    return Config(dict(model=dict(
        type='Blip2Generation',
        vision=dict(type='VisionTransformer', image_size=224, patch_size=14, weights='nowhere'),
        qformer=dict(type='QFormer', vision_width=1408, num_layers=12, width=768, num_heads=12, bert='nowhere'),
        language_model=dict(type='CausalLM', model='no/such-model', config=dict(model_type='opt', **FAMILIES['opt'])),
    ) | model))


@pytest.mark.parametrize('model_type', FAMILIES)
def test_language_models_keep_their_architecture_at_depth_2_and_width_64(model_type, bert_folder, opt_folder):
    given = dict(model_type=model_type, **FAMILIES[model_type])
    cfg = config(language_model=dict(type='Seq2SeqLM' if model_type == 't5' else 'CausalLM', model='no/such-model',
                                     config=given, dtype='bfloat16', max_text_len=20, ending='</s>'))
    if model_type == 't5':
        cfg.model.language_model.pop('ending')
    small = shrink(cfg, bert_folder, opt_folder).model
    assert cfg.model.language_model.config == given and cfg.model.vision.weights == 'nowhere', 'it is a copy'
    model = MODELS.build(small)
    language = model.language_model
    assert language.hidden_size == WIDTH and language.model.config.model_type == model_type
    assert language.max_text_len == 20 and len(language.tokenizer) == language.model.config.vocab_size
    assert language.model.config.num_hidden_layers == DEPTH
    assert count_parameters(language)['total'] < 500_000
    if model_type == 'qwen3':
        assert language.model.config.num_key_value_heads < language.model.config.num_attention_heads
    if model_type == 't5':
        assert language.model.config.dense_act_fn == 'gelu'


@pytest.mark.parametrize('image_size, patch_size, patches', [(224, 14, 4), (490, 14, 2), (72, 24, 3), (16, 16, 1)])
def test_images_keep_their_size_and_have_few_patches(image_size, patch_size, patches, bert_folder, opt_folder):
    cfg = config(vision=dict(type='VisionTransformer', image_size=image_size, patch_size=patch_size, weights='nowhere'))
    vision = MODELS.build(shrink(cfg, bert_folder, opt_folder).model.vision)
    assert (vision.image_size, vision.grid, vision.embed_dim, len(vision.blocks)) == (
        image_size, patches, WIDTH, DEPTH)


def test_encoders_of_other_packages_keep_their_size(bert_folder, opt_folder):
    module = dict(type='torch.nn.Conv2d', in_channels=3, out_channels=24, kernel_size=8, stride=8)
    cfg = config(vision=dict(type='FeatureMapEncoder', module=module, embed_dim=24, image_size=32, weights='nowhere'))
    cfg.model.qformer.vision_width = 24
    small = shrink(cfg, bert_folder, opt_folder).model
    assert small.vision.module == module and small.vision.weights is None
    assert MODELS.build(small).vision_norm.normalized_shape == (24, )


def test_a_text_half_gets_the_vocabulary_of_its_tokenizer(bert_folder, opt_folder):
    cfg = config(tokenizer=dict(type='BertTokenizer', path='nowhere'))
    cfg.model.qformer.vocab_size = 30523
    model = MODELS.build(shrink(cfg, bert_folder, opt_folder).model)
    assert model.qformer.word_embeddings.num_embeddings == len(model.tokenizer) < 200


def test_sizes_that_are_small_stay(bert_folder, opt_folder):
    cfg = config()
    cfg.train_dataloader = dict(batch_size=2)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=5)
    cfg.load_from = 'nowhere'
    small = shrink(cfg, bert_folder, opt_folder)
    assert small.train_dataloader.batch_size == 2 and small.train_cfg == dict(by_epoch=True, max_epochs=1)
    assert small.load_from is None and cfg.load_from == 'nowhere'


def test_feature_caches_are_left_out(bert_folder, opt_folder):
    cfg = config()
    parts = [dict(type='COCOCaption', feature_cache=dict(dir='data/features')), dict(type='COCOCaption')]
    cfg.train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=parts))
    assert 'feature_cache' not in str(shrink(cfg, bert_folder, opt_folder).train_dataloader)
    assert 'feature_cache' in str(cfg.train_dataloader)


def test_an_unknown_architecture_is_an_error(bert_folder, opt_folder):
    cfg = config(language_model=dict(type='CausalLM', config=dict(model_type='nonesuch')))
    with pytest.raises(ConfigError, match="model_type='nonesuch' is not known to transformers"):
        shrink(cfg, bert_folder, opt_folder)
    cfg.model.language_model = dict(type='CausalLM', model='no/such-model')
    with pytest.raises(ConfigError, match='architecture of CausalLM no/such-model is unknown'):
        shrink(cfg, bert_folder, opt_folder)
