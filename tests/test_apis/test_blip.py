"""The inferencers with models of BLIP: what is right for BLIP-2 holds without a special case."""
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmblip2 import (
    FeatureExtractor,
    ImageCaptionInferencer,
    ImageTextMatchingInferencer,
    ImageToTextRetrievalInferencer,
    TextToImageRetrievalInferencer,
    VisualQuestionAnsweringInferencer,
    get_model,
    inference_model,
)
from mmblip2.errors import CheckpointError, ConfigError

TEXTS = ['a small red circle', 'two green stars above one yellow cross', 'there are three objects', 'one cross']
CAPTION = [dict(type='CaptionPrompt', prompt='a picture of')]
QUESTION = [dict(type='CleanQuestion'), dict(type='VQAPrompt', template='{}', qformer_text=None)]


@pytest.fixture(scope='module')
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(5)]


@pytest.fixture
def build(tiny_blip):
    """Function ``(type, steps=(), **model)`` to a model by get_model, redrawn from a seed."""
    def built(kind, steps=(), seed=0, **model):
        parts = {key: value for key, value in tiny_blip.items() if key not in ('text_encoder', 'text_decoder')}
        cfg = Config(dict(
            model=dict(type=kind, **parts, **{key: tiny_blip[value] if value in ('text_encoder', 'text_decoder') else
                                              value for key, value in model.items()}),
            test_dataloader=dict(dataset=dict(pipeline=[
                dict(type='LoadImage'), dict(type='Resize', scale=16), *steps, dict(type='PackInputs')]))))
        found = get_model(cfg, pretrained=False, device='cpu')
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in found.named_parameters():
            if parameter.ndim > 1 and not name.startswith('momentum.'):
                parameter.data.normal_(0, 0.5, generator=generator)
        return found
    return built


@pytest.fixture
def retrieval(build):
    return build('BlipRepresentation', [dict(type='CleanCaption')], text_encoder='text_encoder', embed_dim=8,
                 max_text_len=24, queue_size=None)


@pytest.fixture
def captioner(build):
    return build('BlipGeneration', CAPTION, text_decoder='text_decoder', generation=dict(max_new_tokens=6))


@pytest.fixture
def answerer(build):
    return build('BlipGeneration', QUESTION, text_encoder='text_encoder', text_decoder='text_decoder',
                 generation=dict(max_new_tokens=4, num_beams=2))


@torch.no_grad()
def scored(model, images, texts):
    """ITC (I, N) and ITM logits of 'matches' (I, N), an image and a text at a time."""
    itc, itm = torch.empty(len(images), len(texts)), torch.empty(len(images), len(texts))
    for i, image in enumerate(images):
        pixels = torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BICUBIC))).permute(2, 0, 1)
        encoded = model.encode_image(model.data_preprocessor(dict(inputs=[pixels]))['images'])
        for j, text in enumerate(texts):
            tokens = model.tokenize([text])
            marked = tokens.begin_with(model.tokenizer.enc_id)
            first = model.text_encoder.forward_joint(encoded.image_kv, *marked)[:, :1]
            itm[i, j] = model.itm_head(first)[0, 1]
            itc[i, j] = (model.image_features(encoded)[0, 0] * model.text_features(tokens)[0]).sum()
    return itc, itm


def test_matching_and_both_searches_score_as_the_heads(retrieval, images):
    itc, itm = scored(retrieval, images, TEXTS)
    both = itc + itm
    assert both.std() > 0.1, 'too flat to prove anything'
    rows = ImageTextMatchingInferencer(retrieval)(images[1], TEXTS)
    assert [row['itc_score'] for row in rows] == pytest.approx(itc[1].tolist(), abs=1e-5)
    assert all(0 < row['itm_score'] < 1 for row in rows)
    found = ImageToTextRetrievalInferencer(retrieval, TEXTS, progress=False)(images, topk=4, progress=False)
    for i, best in enumerate(found):
        assert [row['sample_idx'] for row in best] == both[i].argsort(descending=True).tolist()
        assert [row['match_score'] for row in best] == pytest.approx(sorted(both[i].tolist(), reverse=True), abs=1e-4)
    search = TextToImageRetrievalInferencer(retrieval, images, progress=False)
    for j, best in enumerate(search(TEXTS, topk=5)):
        assert [row['sample_idx'] for row in best] == both[:, j].argsort(descending=True).tolist()
    fast = TextToImageRetrievalInferencer(retrieval, images, fast_match=True, progress=False)(TEXTS, topk=5)
    assert [row['sample_idx'] for row in fast[0]] == itc[:, 0].argsort(descending=True).tolist()


def test_a_gallery_on_the_disk_belongs_to_its_model(retrieval, images, tmp_path):
    path = tmp_path / 'gallery'
    first = TextToImageRetrievalInferencer(retrieval, images, path, progress=False)(TEXTS, topk=2)
    again = TextToImageRetrievalInferencer(retrieval, None, path, progress=False)(TEXTS, topk=2)
    assert [[row['sample_idx'] for row in best] for best in again] == [[row['sample_idx'] for row in best]
                                                                      for best in first]
    retrieval.text_encoder.layers[0].cross_attention.query.weight.data += 1
    with pytest.raises(CheckpointError, match='another model'):
        TextToImageRetrievalInferencer(retrieval, None, path, progress=False)
    retrieval.vision.norm.eps = 1e-3
    with pytest.raises(CheckpointError, match='another model'):
        TextToImageRetrievalInferencer(retrieval, images, path, progress=False)


def test_features_have_the_names_of_lavis(retrieval, images):
    extract = FeatureExtractor(retrieval)
    patches = extract.get_image_features(images, batch_size=2, progress=False)
    assert patches.shape == (5, 5, 16)
    found = extract.extract_features(images, mode='image', progress=False)
    assert torch.equal(found['image_embeds'], patches) and found['image_embeds_proj'].shape == (5, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(found['image_embeds_proj'], retrieval.itc_head.image_features(patches))
        tokens = retrieval.tokenize(TEXTS)
        embeds = retrieval.text_encoder.forward_text_tokens(*tokens)
        both = retrieval.text_encoder.forward_joint(
            retrieval.project_image(patches[:4]), *tokens.begin_with(retrieval.tokenizer.enc_id))
    real = tokens.mask.bool()
    texts = extract.extract_features(texts=TEXTS, mode='text', batch_size=3, progress=False)
    torch.testing.assert_close(texts['text_embeds'][real], embeds[real])
    assert torch.equal(texts['text_mask'], tokens.mask)
    joint = extract.extract_features(images[:4], TEXTS, batch_size=3, progress=False)
    torch.testing.assert_close(joint['multimodal_embeds'][real], both[real])
    assert torch.equal(joint['text_mask'], tokens.mask)
    rows = extract(images[:4], TEXTS, progress=False)
    assert [len(row['multimodal_embeds']) for row in rows] == real.sum(dim=1).tolist(), 'its own tokens only'


def test_features_of_models_that_write(captioner, answerer, images):
    found = FeatureExtractor(captioner).extract_features(images, mode='image', progress=False)
    assert set(found) == {'image_embeds'} and found['image_embeds'].shape == (5, 5, 16)
    with pytest.raises(ConfigError, match='this BlipGeneration reads no texts'):
        FeatureExtractor(captioner).get_text_features('a star')
    read = FeatureExtractor(answerer).extract_features(images[0], TEXTS, progress=False)
    assert read['multimodal_embeds'].shape[0] == 4


def test_captions(captioner, images):
    caption = ImageCaptionInferencer(captioner)
    found = caption(images, batch_size=2, progress=False)
    assert all(isinstance(row['pred_caption'], str) for row in found) and len(found) == 5
    assert found == [caption(image)[0] for image in images], 'whatever the batch'
    assert inference_model(captioner, images[0]) == found[0]
    assert len(caption(images[0], num_captions=3, num_beams=3)[0]['pred_caption']) == 3
    again = [caption(images, do_sample=True, seed=1, batch_size=size, progress=False) for size in (1, 4)]
    assert again[0] == again[1]
    with pytest.raises(ConfigError, match='was not made for questions'):
        inference_model(captioner, images[0], 'what color is the star?')


def test_answers_that_are_written_and_chosen(answerer, build, images):
    answer = VisualQuestionAnsweringInferencer(answerer)
    questions = ['what color is the star?', 'how many objects?', 'is it red?', 'one?', 'two green stars']
    found = answer(images, questions, batch_size=3, progress=False)
    assert [row['question'] for row in found] == questions
    assert found == [answer(image, question)[0] for image, question in zip(images, questions)], 'whatever the batch'
    candidates = ['green', 'three', 'one yellow cross', 'blue']
    chooses = build('BlipGeneration', QUESTION, text_encoder='text_encoder', text_decoder='text_decoder',
                    candidates=candidates, rank_topk=3)
    choose = VisualQuestionAnsweringInferencer(chooses)
    ranked = choose(images, questions, batch_size=2, progress=False)
    assert {row['pred_answer'] for row in ranked} <= set(candidates)
    assert ranked == [choose(image, question)[0] for image, question in zip(images, questions)]
    with pytest.raises(ConfigError, match='num_beams=3 has no effect: this model chooses among its candidates'):
        VisualQuestionAnsweringInferencer(chooses)(images, questions, num_beams=3)
    with pytest.raises(ConfigError, match='this model answers questions'):
        inference_model(answerer, images[0])


def test_half_precision_is_where_it_is_safe(captioner, images):
    model = get_model(captioner._config, pretrained=False, device='cpu', dtype='bfloat16')
    assert model.vision.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.text_decoder.parameters()} == {torch.float32}
    assert model.vision.norm.weight.dtype == torch.float32
    assert isinstance(inference_model(model, images[0])['pred_caption'], str)
    assert FeatureExtractor(model).get_image_features(images[0]).dtype == torch.float32


def test_one_call_does_what_fits_the_model(retrieval, images):
    assert set(inference_model(retrieval, images[0], texts=TEXTS[0])) == {'itm_score', 'itc_score'}
    best, = inference_model(retrieval, images[0], prototype=TEXTS)
    assert set(best) == {'match_score', 'sample_idx', 'text'}
    with pytest.raises(ConfigError, match='which answers no question'):
        inference_model(retrieval, images[0], 'what color is it?')
    with pytest.raises(ConfigError, match='writes text .*BlipRepresentation'):
        ImageCaptionInferencer(retrieval)
