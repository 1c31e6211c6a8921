"""Image-text matching against the model's own heads."""
import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2 import ImageTextMatchingInferencer
from mmblip2.errors import ConfigError, DataError
from mmblip2.models.losses import query_text_similarity

TEXTS = ['a small red circle', 'two green stars', 'there are three objects']


@pytest.fixture(scope='module')
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope='module')
def scores(representation, images):
    """Function of (image, text) to the scores, each pair alone."""
    @torch.no_grad()
    def score(image, text):
        pixels = np.array(images[image].resize((16, 16), Image.Resampling.BICUBIC))
        encoded = representation.encode_image(representation.data_preprocessor(
            dict(inputs=[torch.from_numpy(pixels).permute(2, 0, 1)]))['images'])
        tokens = representation.tokenize([TEXTS[text]])
        logits = representation.itm_head(representation.qformer.forward_joint(encoded.image_kv, *tokens))[0]
        cosine = query_text_similarity(representation.image_features(encoded), representation.text_features(tokens))
        return dict(itm_score=pytest.approx(float(1 / (1 + (logits[0] - logits[1]).exp())), abs=1e-5),
                    itc_score=pytest.approx(float(cosine), abs=1e-5))
    return score


@pytest.mark.parametrize('batch_size', [1, 2, 32])
def test_scores_of_pairs(representation, images, scores, batch_size):
    match = ImageTextMatchingInferencer(representation)
    results = match(images, TEXTS, batch_size=batch_size, progress=False)
    assert results == [scores(i, i) for i in range(3)]
    assert all(isinstance(value, float) for value in results[0].values())
    assert len({round(result['itm_score'], 3) for result in results}) == 3, 'too flat to prove anything'
    assert match(iter(images), iter(TEXTS), batch_size=batch_size, progress=False) == results
    assert match(images[1], TEXTS, batch_size=batch_size, progress=False) == [scores(1, j) for j in range(3)]
    assert match(images, TEXTS[2], batch_size=batch_size, progress=False) == [scores(i, 2) for i in range(3)]
    assert match(images[0], TEXTS[2]) == [scores(0, 2)]
    arrays = np.stack([np.array(image)[..., ::-1] for image in images])
    assert match(arrays, TEXTS, batch_size=batch_size, progress=False) == results


def test_one_image_for_many_texts_is_encoded_once(representation, images, monkeypatch):
    calls, encode = [], representation.encode_image
    monkeypatch.setattr(representation, 'encode_image', lambda pixels: calls.append(len(pixels)) or encode(pixels))
    ImageTextMatchingInferencer(representation)(images[0], TEXTS * 5, batch_size=4, progress=False)
    assert calls == [1]


def test_bad_pairs_say_what_to_do(representation, images, tiny_generator, monkeypatch):
    match = ImageTextMatchingInferencer(representation)
    with monkeypatch.context() as patch:
        patch.setattr(representation, 'encode_image', None)  # said before the work where the number is known
        with pytest.raises(DataError, match='there are 3 images and 2 texts'):
            match(images, TEXTS[:2], batch_size=1)
    for wrong in (images[:2], iter(images[:2])):
        with pytest.raises(DataError, match='there are 2 images and 3 texts: give as many of both'):
            match(wrong, TEXTS)
    with pytest.raises(DataError, match='there are 3 images and 2 texts'):
        match(iter(images), TEXTS[:2])
    with pytest.raises(DataError, match=r"texts\[1\] is '', an empty text"):
        match(images, ['a star', '', 'b'])
    with pytest.raises(DataError, match='texts is a int: expected a text or a list of texts'):
        match(images, 3)
    with pytest.raises(ConfigError, match='ImageTextMatchingInferencer needs a Blip2Representation'):
        ImageTextMatchingInferencer(tiny_generator([dict(type='CaptionPrompt', prompt='a')]))


def test_a_picture_has_text_and_scores(representation, images, tmp_path, monkeypatch):
    from mmblip2.apis import base
    drawn, draw = [], base.draw_caption
    monkeypatch.setattr(base, 'draw_caption', lambda image, lines: drawn.append(lines) or draw(image, lines))
    result = ImageTextMatchingInferencer(representation)(images[0], TEXTS[:2], show_dir=tmp_path)
    assert drawn[1] == ['text: two green stars', f'itm_score: {result[1]["itm_score"]:.3f}',
                        f'itc_score: {result[1]["itc_score"]:.3f}']
    assert len(list(tmp_path.iterdir())) == 2
