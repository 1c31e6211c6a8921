"""NLVRInferencer against the model itself, pictures of both images, and inputs that are no pair."""
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmblip2 import ImageCaptionInferencer, ImageTextMatchingInferencer, NLVRInferencer, inference_model
from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import MODELS, our_scope
from mmblip2.structures import DataSample

TEXTS = ['A small red circle.', 'two green stars', 'there are three objects']


@pytest.fixture
def model(tiny_blip):
    import mmblip2.models  # noqa: F401
    torch.manual_seed(0)
    cfg = Config(dict(
        model=dict(type='BlipNLVR', vision=tiny_blip['vision'], tokenizer=tiny_blip['tokenizer'],
                   text_encoder=dict(tiny_blip['text_encoder'], type='TwinMED', init_std=0.5)),
        test_dataloader=dict(dataset=dict(pipeline=[
            dict(type='EachImage', transforms=[dict(type='LoadImage'), dict(type='Resize', scale=16)]),
            dict(type='CleanCaption', max_words=40), dict(type='PackInputs')]))))
    with our_scope():
        built = MODELS.build(cfg.model).eval()
    for parameter in built.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    built._config = cfg
    return built


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 30 + i, 3), dtype=np.uint8)) for i in range(4)]


@pytest.fixture
def triples(images):
    return [(images[i], images[i + 1], text) for i, text in enumerate(TEXTS)]


@torch.no_grad()
def probabilities(model, triple):
    """By the model alone."""
    *pair, text = triple
    pixels = [np.array(image.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1) for image in pair]
    inputs = model.data_preprocessor(dict(inputs=[torch.from_numpy(np.stack(pixels))]))['images']
    return model.logits(inputs, [DataSample(text=text.lower().replace('.', ''))]).softmax(1)[0].numpy()


def test_each_pair_gets_its_score(model, triples):
    judge = NLVRInferencer(model)
    for size in (1, 2, 3):
        for given in (triples, iter(triples), [list(triple) for triple in triples]):
            found = judge(given, batch_size=size, progress=False)
            for result, triple in zip(found, triples, strict=True):
                expected = probabilities(model, triple)
                assert list(result) == ['pred_scores', 'pred_label', 'pred_score']
                assert result['pred_scores'].dtype == np.float32
                np.testing.assert_allclose(result['pred_scores'], expected, atol=1e-5)
                assert result['pred_label'] == expected.argmax()
                assert result['pred_score'] == pytest.approx(expected.max(), abs=1e-5)
    assert len({round(result['pred_score'], 3) for result in found}) == 3, 'too flat to prove anything'
    swapped, = judge((triples[0][1], triples[0][0], TEXTS[0]))
    assert abs(swapped['pred_scores'] - found[0]['pred_scores']).max() > 1e-3


def test_one_tuple_is_one_sentence_and_files_are_read(model, triples, tmp_path):
    judge = NLVRInferencer(model)
    expected = judge(triples)[0]['pred_scores']
    triples[0][0].save(tmp_path / 'a.png')
    array = np.array(triples[0][1])[..., ::-1]
    result, = judge((str(tmp_path / 'a.png'), array, TEXTS[0]))
    assert np.array_equal(result['pred_scores'], expected)
    sample, = judge(triples[0], return_datasamples=True)
    assert sample.text == TEXTS[0] and sample.pred_label == int(expected.argmax())
    assert judge([]) == []


def test_pictures_show_both_images(model, images, tmp_path):
    for name, image in zip(('left', 'right'), images):
        image.resize((400, 300)).save(tmp_path / f'{name}.png')
    triple = (str(tmp_path / 'left.png'), str(tmp_path / 'right.png'), TEXTS[0])
    judge = NLVRInferencer(model)
    judge([triple, (images[0], images[1], TEXTS[1])], show_dir=tmp_path / 'out', draw_score=False, resize=60)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['image_000001.png', 'left_right.png']
    picture = np.asarray(Image.open(tmp_path / 'out' / 'left_right.png').convert('RGB')).astype(int)
    small = [np.asarray(Image.open(path).resize((80, 60), Image.Resampling.BICUBIC)) for path in triple[:2]]
    row = picture[:60]
    places = [next(x for x in range(row.shape[1] - 79) if np.abs(row[:, x:x + 80] - one).max() <= 1) for one in small]
    assert places[0] < places[1]
    sample, = judge(triple, return_datasamples=True)
    score = float(sample.pred_score.max())
    assert judge.lines(sample) == [TEXTS[0], f'{"true" if sample.pred_label else "false"} ({score:.2f})']
    assert judge.lines(sample, draw_score=False)[1] in ('true', 'false')


@pytest.mark.parametrize('inputs, message', [
    ([('a.png', 'is it?')], r'input 0 has 2 entries, expected a tuple \(image, image, text\): NLVR2 is about two'),
    ([('a.png', 'b.png', 'c.png', 'x')], 'input 0 has 4 entries'), (['a.png', 'b.png', 'x'], 'input 0 is a str'),
    ('a.png', 'got a str; expected a tuple'), (3, 'got a int; expected a tuple'),
    ([('a.png', 'b.png', '...')], r"the text of input 0 is '...', expected a text with at least one word"),
    ([('a.png', 'x', None)], 'the text of input 0 is None'),
    ([('none.png', 'none.png', 'one dog')], r'cannot read image 0 \(none.png\): no such file')])
def test_what_is_no_pair_with_a_text_is_refused(model, inputs, message):
    with pytest.raises(DataError, match=message):
        NLVRInferencer(model)(inputs)


def test_another_model_is_refused(tiny_generator):
    captioner = tiny_generator([dict(type='CaptionPrompt', prompt='a photo of')])
    with pytest.raises(ConfigError, match='NLVRInferencer needs a BlipNLVR, this is a Blip2Generation, which'):
        NLVRInferencer(captioner)


def test_other_inferencers_send_the_model_here(model):
    with pytest.raises(ConfigError, match='needs a model that writes text .*this is a BlipNLVR: take NLVRInferencer'):
        ImageCaptionInferencer(model)
    with pytest.raises(ConfigError, match='this model is a BlipNLVR, .*: give another one, or use NLVRInferencer'):
        ImageTextMatchingInferencer(model)


def test_inference_model_takes_the_three_together_or_one_after_the_other(model, triples):
    expected = NLVRInferencer(model)(triples)
    for found in (inference_model(model, triples[0]), inference_model(model, *triples[0])):
        assert np.array_equal(found['pred_scores'], expected[0]['pred_scores'])
    several = inference_model(model, triples, batch_size=2)
    assert [result['pred_label'] for result in several] == [result['pred_label'] for result in expected]
    with pytest.raises(ConfigError, match=r'one of the three is missing: call inference_model\(model, image, image'):
        inference_model(model, triples[0][0], TEXTS[0])
    with pytest.raises(ConfigError, match='topk is for retrieval'):
        inference_model(model, triples[0], topk=2)
