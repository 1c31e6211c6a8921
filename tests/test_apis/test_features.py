"""The feature extractor: shapes, batches, files and errors; that it equals transformers is in tests/test_parity."""
import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2 import FeatureExtractor
from mmblip2.errors import ConfigError, DataError

TEXTS = ['a small red circle', 'two green stars', 'there are three objects']


@pytest.fixture(scope='module')
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope='module')
def extractor(representation):
    return FeatureExtractor(representation)


def shapes(features):
    return {name: tuple(tensor.shape) for name, tensor in features.items()}


def test_modes_have_the_names_of_lavis(extractor, images):
    length = extractor.model.tokenize(TEXTS).mask.size(1)
    assert shapes(extractor.extract_features(images, mode='image')) == dict(
        image_embeds=(3, 3, 16), image_embeds_proj=(3, 3, 8))
    assert shapes(extractor.extract_features(texts=TEXTS, mode='text')) == dict(
        text_embeds=(3, length, 16), text_embeds_proj=(3, length, 8), text_mask=(3, length))
    assert shapes(extractor.extract_features(images, TEXTS)) == dict(multimodal_embeds=(3, 3, 16))
    assert extractor.get_image_features(images).shape == (3, 5, 16)
    for embeds in (extractor.extract_features(images, mode='image')['image_embeds_proj'],
                   extractor.get_text_features(TEXTS, project=True)):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(embeds.shape[:2]))


def test_features_are_those_of_retrieval(extractor, images):
    model = extractor.model
    tokens = model.tokenize(TEXTS)
    found = extractor.extract_features(texts=TEXTS, mode='text')
    torch.testing.assert_close(found['text_embeds_proj'][:, 0], model.text_features(tokens), atol=1e-5, rtol=0)
    assert torch.equal(found['text_mask'], tokens.mask)
    multimodal = extractor.get_qformer_features(images, TEXTS)
    with torch.no_grad():
        for i, image in enumerate(images):
            encoded = model.encode_image(extractor.prepare([dict(sample_idx=0, image=image)])['images'])
            alone = model.qformer.forward_joint(encoded.image_kv, *tokens.rows([i]).trimmed())
            torch.testing.assert_close(multimodal[i], alone[0], atol=1e-5, rtol=0)
    assert (multimodal - extractor.get_qformer_features(images)).abs().max() > 1e-2, 'the text changes nothing'


def test_batches_change_nothing(extractor, images):
    for size in (1, 2):
        for mode, inputs in (('image', (images, None)), ('text', (None, TEXTS)), ('multimodal', (images, TEXTS)),
                             ('multimodal', (images[0], TEXTS)), ('multimodal', (images, TEXTS[0]))):
            whole = extractor.extract_features(*inputs, mode)
            parts = extractor.extract_features(*inputs, mode, batch_size=size, progress=False)
            for name, tensor in whole.items():
                torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=0)


def test_call_gives_rows(extractor, images):
    rows = extractor(images)
    assert len(rows) == 3 and shapes(rows[0]) == dict(image_embeds=(3, 16), image_embeds_proj=(3, 8))
    whole = extractor.extract_features(texts=TEXTS, mode='text')
    for i, row in enumerate(extractor(texts=TEXTS)):
        length = int(whole['text_mask'][i].sum())
        assert shapes(row) == dict(text_embeds=(length, 16), text_embeds_proj=(length, 8))
        assert torch.equal(row['text_embeds'], whole['text_embeds'][i, :length])
    assert shapes(extractor(images[0], TEXTS[0])[0]) == dict(multimodal_embeds=(3, 16))


def test_features_are_written(extractor, images, tmp_path):
    from safetensors.torch import load_file
    found = extractor.extract_features(images, mode='image', out_file=tmp_path / 'new' / 'a.safetensors')
    read = load_file(tmp_path / 'new' / 'a.safetensors')
    assert found.keys() == read.keys() and all(torch.equal(found[name], read[name]) for name in read)
    extractor.extract_features(images, mode='image', out_file=tmp_path / 'new' / 'a.npz')
    with np.load(tmp_path / 'new' / 'a.npz') as read:
        assert np.array_equal(read['image_embeds_proj'], found['image_embeds_proj'].numpy())
    for get, name in ((extractor.get_image_features, 'b.npy'), (extractor.get_qformer_features, 'c.npy')):
        found = get(images, out_file=tmp_path / 'new' / name)
        assert np.array_equal(np.load(tmp_path / 'new' / name), found.numpy())
    found = extractor.get_text_features(TEXTS, out_file=tmp_path / 'new' / 'd.npy')
    assert np.array_equal(np.load(tmp_path / 'new' / 'd.npy'), found.numpy())
    assert len(list((tmp_path / 'new').iterdir())) == 5, 'a side file was left'
    with pytest.raises(ConfigError, match=r'out_file .*a.npy should end with .npz or .safetensors'):
        extractor.extract_features(images, mode='image', out_file=tmp_path / 'a.npy')
    with pytest.raises(ConfigError, match=r'out_file .*a.pkl should end with .npy or .npz or .safetensors'):
        extractor.get_image_features(images, out_file=tmp_path / 'a.pkl')
    with pytest.raises(ConfigError, match='cannot write out_file'):
        extractor.get_image_features(images, out_file=tmp_path / 'new' / 'a.npz' / 'b.npy')


def test_a_generator_gives_what_its_language_model_reads(tiny_generator, images):
    model = tiny_generator([dict(type='CaptionPrompt', prompt='a')])
    extractor = FeatureExtractor(model)
    found = extractor.extract_features(images, mode='image')
    pixels = extractor.prepare([dict(sample_idx=i, image=image) for i, image in enumerate(images)])['images']
    with torch.no_grad():
        torch.testing.assert_close(found['image_embeds_proj'], model.visual_prefix(pixels, []), atol=1e-5, rtol=0)
    assert extractor.get_image_features(images).shape == (3, 5, 16)
    for extract in (lambda: extractor.get_qformer_features(images, TEXTS), lambda: extractor.get_text_features('a')):
        with pytest.raises(ConfigError, match='Q-Former of this Blip2Generation was built without a text half'):
            extract()
    reader = FeatureExtractor(tiny_generator([dict(type='VQAPrompt', qformer_text='{}')], reads_text=True))
    assert reader.get_qformer_features(images, TEXTS).shape == (3, 3, 16)
    assert list(reader.extract_features(texts=TEXTS, mode='text')) == ['text_embeds', 'text_mask']
    with pytest.raises(ConfigError, match='has no contrastive projection: leave project out'):
        reader.get_text_features(TEXTS, project=True)


@pytest.fixture
def blip(tiny_blip):
    """Function ``(type, **settings) -> FeatureExtractor`` of a BLIP."""
    from mmengine.config import Config

    from mmblip2.registry import MODELS, our_scope

    def build(kind, **settings):
        torch.manual_seed(0)
        model = {**tiny_blip, 'type': kind, **settings}
        steps = [dict(type='LoadImage'), dict(type='Resize', scale=16), dict(type='PackInputs')]
        cfg = Config(dict(model={key: value for key, value in model.items() if value is not None},
                          test_dataloader=dict(dataset=dict(pipeline=steps))))
        with our_scope():
            built = MODELS.build(cfg.model).eval()
        built._config = cfg
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.3)
        return FeatureExtractor(built)
    return build


def test_of_blip_patches_and_tokens_stand_where_queries_do(blip, images):
    extractor = blip('BlipRepresentation', embed_dim=8, queue_size=8, text_decoder=None)
    model, tokens = extractor.model, extractor.model.tokenize(TEXTS)
    length = tokens.mask.size(1)
    found = extractor.extract_features(images, mode='image')
    assert shapes(found) == dict(image_embeds=(3, 5, 16), image_embeds_proj=(3, 5, 8))
    assert torch.equal(found['image_embeds'], extractor.get_image_features(images))
    texts = extractor.extract_features(texts=TEXTS, mode='text')
    torch.testing.assert_close(texts['text_embeds_proj'][:, 0], model.text_features(tokens), atol=1e-5, rtol=0)
    both = extractor.extract_features(images, TEXTS)
    assert shapes(both) == dict(multimodal_embeds=(3, length, 16), text_mask=(3, length))
    assert torch.equal(both['text_mask'], tokens.mask) and not tokens.mask.all()
    with torch.no_grad():
        for i, image in enumerate(images):
            encoded = model.encode_image(extractor.prepare([dict(sample_idx=0, image=image)])['images'])
            torch.testing.assert_close(found['image_embeds_proj'][i, :1], model.image_features(encoded)[0], atol=1e-5,
                                       rtol=0)
            logits = model.itm_head(both['multimodal_embeds'][i:i + 1, :1])  # [ENC] first: what ITM sees
            expected = model.match_logits(encoded.image_kv, tokens.rows([i]))
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for size in (1, 2):
        for inputs in ((images, TEXTS), (images[0], TEXTS), (images, TEXTS[0])):
            whole, parts = (extractor.extract_features(*inputs, batch_size=n, progress=False) for n in (8, size))
            mask = whole['text_mask'].bool()
            torch.testing.assert_close(parts['multimodal_embeds'][mask], whole['multimodal_embeds'][mask], atol=1e-5,
                                       rtol=0)
    assert shapes(extractor(images, TEXTS)[0]) == dict(multimodal_embeds=(int(tokens.mask[0].sum()), 16))


def test_blips_that_write_give_what_they_read(blip, images):
    captioner = blip('BlipGeneration', text_encoder=None)
    assert shapes(captioner.extract_features(images, mode='image')) == dict(image_embeds=(3, 5, 16))
    with pytest.raises(ConfigError, match='^this BlipGeneration reads no texts: leave texts out, or take'):
        captioner.extract_features(images, TEXTS)
    answers = blip('BlipGeneration')
    assert answers.get_qformer_features(images, TEXTS).shape[::2] == (3, 16)


def test_bad_input_says_what_to_do(extractor, images):
    other = torch.nn.Identity()
    other._config, other.data_preprocessor = extractor.model._config, extractor.model.data_preprocessor
    with pytest.raises(ConfigError, match='needs a model of BLIP-2 or BLIP, this model is a Identity'):
        FeatureExtractor(other)
    with pytest.raises(ConfigError, match="mode 'pixels' is not one of 'image', 'text', 'multimodal'"):
        extractor.extract_features(images, mode='pixels')
    with pytest.raises(ConfigError, match="mode='multimodal' needs texts: give texts="):
        extractor.extract_features(images)
    with pytest.raises(ConfigError, match="mode='image' needs no texts: leave texts out"):
        extractor.extract_features(images, TEXTS, 'image')
    with pytest.raises(ConfigError, match="mode='image' needs images: give images="):
        extractor()
    with pytest.raises(DataError, match='there is no image: give at least one'):
        extractor.get_image_features([])
    with pytest.raises(DataError, match='texts is empty'):
        extractor.get_text_features([])
    with pytest.raises(DataError, match='there are 3 images and 2 texts'):
        extractor.extract_features(images, TEXTS[:2])
