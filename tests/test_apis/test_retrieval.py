"""Retrieval inferencers against scores written out by hand, and their prepared galleries."""
import os
import re
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2 import ImageToTextRetrievalInferencer, TextToImageRetrievalInferencer
from mmblip2.apis import gallery, retrieval
from mmblip2.apis.retrieval import pair_logits
from mmblip2.errors import CheckpointError, ConfigError, DataError
from mmblip2.models.losses import query_text_similarity

TEXTS = ['a small red circle', 'two green stars above one yellow cross', 'there are three objects', 'blue square']


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Folder of seven different pictures."""
    folder = tmp_path_factory.mktemp('photos')
    generator = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(generator.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(folder / f'photo_{i}.png')
    return folder


@pytest.fixture(scope='module')
def table(representation, photos):
    """ITC cosines and ITM logits of all pairs, float32 (7, 4), image by image and text by text."""
    model, pixels = representation, []
    for path in sorted(photos.iterdir()):
        image = np.array(Image.open(path).resize((16, 16), Image.Resampling.BICUBIC))
        pixels.append(model.data_preprocessor(dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)]))['images'])
    itc, itm = torch.zeros(7, 4), torch.zeros(7, 4)
    with torch.no_grad():
        for i, image in enumerate(pixels):
            encoded = model.encode_image(image)
            for j, text in enumerate(TEXTS):
                tokens = model.tokenize([text])
                itc[i, j] = query_text_similarity(model.image_features(encoded), model.text_features(tokens))
                itm[i, j] = model.score_pairs(encoded.image_kv, tokens)
    assert itc.std() > 0.05 and itm.std() > 0.05, 'too flat to prove anything'
    assert itm.std(dim=0).min() > 1e-2 and itm.std(dim=1).min() > 1e-2
    return SimpleNamespace(itc=itc, itm=itm)


def expected(itc, itm, topk, k_test):
    """Rows by hand: the k_test best by ITC, ordered by ITM + ITC."""
    rows = []
    for query, cosines in enumerate(itc.tolist()):
        best = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k_test]
        scored = [(cosines[i] + (float(itm[query, i]) if itm is not None else 0.), i) for i in best]
        rows.append(sorted(scored, reverse=True)[:topk])
    return rows


def assert_same(results, wanted):
    assert [[one['sample_idx'] for one in row] for row in results] == [[i for _, i in row] for row in wanted]
    for row, others in zip(results, wanted):
        for one, (score, _) in zip(row, others):
            assert one['match_score'] == pytest.approx(score, abs=1e-5) and isinstance(one['match_score'], float)


def pairs_of(results):
    """Results as :func:`assert_same` wants them."""
    return [[(one['match_score'], one['sample_idx']) for one in row] for row in results]


@pytest.mark.parametrize('k_test, batch_size', [(128, 256), (3, 256), (3, 1)])
def test_images_for_texts_are_the_hand_calculation(representation, photos, table, k_test, batch_size):
    search = TextToImageRetrievalInferencer(representation, photos, None, False, 2, k_test=k_test, progress=False)
    results = search(TEXTS, topk=2, batch_size=batch_size)
    assert_same(results, expected(table.itc.T, table.itm.T, 2, k_test))
    first = results[0][0]
    assert sorted(first) == ['match_score', 'sample', 'sample_idx']
    assert first['sample'] == dict(img_path=str(photos / f'photo_{first["sample_idx"]}.png'))
    assert_same(search(TEXTS[1]), pairs_of([results[1][:1]]))  # one text and topk=1 are the defaults


@pytest.mark.parametrize('k_test, batch_size', [(128, 3), (2, 1)])
def test_texts_for_images_are_the_hand_calculation(representation, photos, table, tmp_path, k_test, batch_size):
    (tmp_path / 'texts.txt').write_text('\n'.join(TEXTS) + '\n')
    for prototype in (TEXTS, tmp_path / 'texts.txt'):
        search = ImageToTextRetrievalInferencer(representation, prototype, k_test=k_test, progress=False)
        results = search(photos, topk=2, batch_size=batch_size)
        assert_same(results, expected(table.itc, table.itm, 2, k_test))
    assert sorted(results[0][0]) == ['match_score', 'sample_idx', 'text']
    assert all(one['text'] == TEXTS[one['sample_idx']] for row in results for one in row)


def test_fast_match_is_the_cosine_and_keeps_no_patches(representation, photos, table, monkeypatch):
    monkeypatch.setattr(representation, 'match_logits', None)
    images = TextToImageRetrievalInferencer(representation, photos, fast_match=True, progress=False)
    texts = ImageToTextRetrievalInferencer(representation, TEXTS, fast_match=True, progress=False)
    assert images.prototype.patches is None
    assert_same(images(TEXTS, topk=3), expected(table.itc.T, None, 3, 7))
    assert_same(texts(photos, topk=3), expected(table.itc, None, 3, 4))


def test_more_results_than_the_gallery_has_are_all_of_it(representation, photos, table):
    search = TextToImageRetrievalInferencer(representation, photos, k_test=1, progress=False)
    assert_same(search(TEXTS, topk=99), expected(table.itc.T, table.itm.T, 7, 7))
    assert_same(search(TEXTS, topk=4), expected(table.itc.T, table.itm.T, 4, 4))  # all of them were re-ranked


def test_data_samples_have_the_scores_of_the_best(representation, photos):
    images = TextToImageRetrievalInferencer(representation, photos, progress=False)
    texts = ImageToTextRetrievalInferencer(representation, TEXTS, progress=False)
    for search, query in ((images, TEXTS), (texts, photos)):
        found = search(query, topk=3, progress=False)
        samples = search(query, topk=3, progress=False, return_datasamples=True)
        for row, sample in zip(found, samples, strict=True):
            assert sample.pred_score.shape == (len(search.prototype.rows),)
            best = sample.pred_score.topk(4)
            assert best.indices[:3].tolist() == [one['sample_idx'] for one in row]
            assert best.values.tolist() == pytest.approx([*(one['match_score'] for one in row), float('-inf')])


def test_of_equal_scores_the_lower_index_comes_first(representation, photos, monkeypatch):
    monkeypatch.setattr(retrieval, 'query_text_similarity',
                        lambda images, texts: torch.full((len(images), len(texts)), 0.5))
    monkeypatch.setattr(representation, 'match_logits', lambda kv, text: torch.zeros(len(text.mask), 2))
    search = TextToImageRetrievalInferencer(representation, [*sorted(photos.iterdir())] * 5, k_test=20, progress=False)
    assert [one['sample_idx'] for one in search('a star', topk=35)[0]] == list(range(35))
    assert [one['sample_idx'] for one in search('a star', topk=4)[0]] == [0, 1, 2, 3]


def test_an_image_is_projected_once_for_all_its_texts(representation, photos, monkeypatch):
    search = TextToImageRetrievalInferencer(representation, photos, progress=False)
    projected, project = [], representation.qformer.project_image
    monkeypatch.setattr(representation.qformer, 'project_image',
                        lambda patches: projected.append(len(patches)) or project(patches))
    search(TEXTS * 3)
    assert sum(projected) == 7
    texts = ImageToTextRetrievalInferencer(representation, TEXTS * 40, progress=False)
    projected.clear()
    texts(photos, batch_size=2)
    assert sum(projected) == 7


def test_scores_do_not_depend_on_how_pairs_are_grouped(representation, photos, monkeypatch):
    search = TextToImageRetrievalInferencer(representation, photos, progress=False)
    tokens = representation.tokenize(TEXTS)
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(28, generator=generator)[:19]
    kv = lambda rows: representation.qformer.project_image(search.prototype.patches[rows])  # noqa: E731
    with torch.no_grad():
        found = dict.fromkeys((1, 5, 32))
        for copied in found:
            monkeypatch.setattr(retrieval, '_COPIED_KV', copied)
            found[copied] = pair_logits(representation, kv, tokens, pairs // 4, pairs % 4, batch_size=3)
        alone = torch.cat([representation.match_logits(kv(pair[None] // 4), tokens.rows(pair[None] % 4))
                           for pair in pairs])
    for logits in found.values():
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def test_every_kind_of_gallery_gives_the_same(representation, photos, tmp_path):
    import json

    from torch.utils.data import DataLoader

    from mmblip2.datasets import COCORetrieval
    paths = sorted(photos.iterdir())
    (tmp_path / 'rows.json').write_text(json.dumps(
        [dict(image=path.name, caption=f'picture {i}') for i, path in enumerate([paths[0], *paths])]))  # one has two
    config = dict(type='COCORetrieval', ann_file=str(tmp_path / 'rows.json'), data_prefix=dict(img_path=str(photos)))
    pipeline = representation._config.test_dataloader.dataset.pipeline
    dataset = COCORetrieval(**{key: value for key, value in config.items() if key != 'type'}, pipeline=pipeline,
                            test_mode=True)
    shuffled = DataLoader(dataset, 3, shuffle=True, collate_fn=lambda rows: dict(
        inputs=[row['inputs'] for row in rows], data_samples=[row['data_samples'] for row in rows]))
    wanted = pairs_of(TextToImageRetrievalInferencer(representation, str(photos), progress=False)(TEXTS, topk=7))
    in_memory = [Image.open(path) for path in paths[:3]] + [np.array(Image.open(path))[..., ::-1] for path in paths[3:]]
    for prototype in (paths, [str(path) for path in paths], in_memory, iter(paths), config, dataset, shuffled):
        search = TextToImageRetrievalInferencer(representation, prototype, progress=False)
        results = search(TEXTS, topk=7)
        assert_same(results, wanted)
        sample = results[0][0]['sample']
        if prototype in (config, dataset, shuffled):
            assert sample['image_id'] == f'photo_{results[0][0]["sample_idx"]}' and 'sample_idx' not in sample
        assert (sample['img_path'] is None) == (prototype is in_memory)


# --------------------------------------------------------------------------------------- prepared galleries

def test_a_prepared_gallery_answers_without_encoding(representation, photos, tmp_path, monkeypatch):
    cache = tmp_path / 'new folder' / 'images.safetensors'
    wanted = TextToImageRetrievalInferencer(representation, photos, progress=False)(TEXTS, topk=3)
    first = TextToImageRetrievalInferencer(representation, photos, cache, progress=False)
    texts = ImageToTextRetrievalInferencer(representation, TEXTS, tmp_path / 'texts', progress=False)
    found = texts(photos, topk=3)
    assert [path.name for path in cache.parent.iterdir()] == ['images.safetensors'], 'a side file was left'
    assert first.prototype.patches.shape == (7, 5, 16)
    if sys.platform == 'linux':
        assert str(cache) in Path('/proc/self/maps').read_text(), 'the file is not mapped'
    monkeypatch.setattr(representation.vision, 'forward', None)
    for prototype in (photos, None):
        again = TextToImageRetrievalInferencer(representation, prototype, cache, progress=False)
        for search in (again, first):
            assert_same(search(TEXTS, topk=3), pairs_of(wanted))
    monkeypatch.undo()
    monkeypatch.setattr(representation.qformer, 'forward_text', None)
    for prototype in (TEXTS, None):
        again = ImageToTextRetrievalInferencer(representation, prototype, tmp_path / 'texts', progress=False)
        assert_same(again(photos, topk=3), pairs_of(found))


def test_a_gallery_in_memory_can_be_saved(representation, photos, tmp_path):
    search = TextToImageRetrievalInferencer(representation, photos, progress=False)
    search.save_prototype(tmp_path / 'file')
    again = TextToImageRetrievalInferencer(representation, photos, tmp_path / 'file', progress=False)
    assert_same(again(TEXTS, topk=3), pairs_of(search(TEXTS, topk=3)))


def change(model, monkeypatch, what):
    """Another model, as little as possible."""
    if what == 'pipeline':
        config = deepcopy(model._config)
        config.test_dataloader.dataset.pipeline[1] = dict(type='Resize', scale=(16, 17))
        monkeypatch.setattr(model, '_config', config)
    elif what == 'mean':
        monkeypatch.setattr(model.data_preprocessor.mean, 'data', model.data_preprocessor.mean + 1)
    elif what == 'eps':
        monkeypatch.setattr(model.vision_norm, 'eps', 1e-6)
    else:
        weight = model.get_parameter(what)
        monkeypatch.setattr(weight, 'data', weight.data.clone().add_(1e-3))


@pytest.mark.parametrize('what, message', [
    ('vision.patch_embed.weight', 'another model'), ('qformer.queries', 'another model'),
    ('itc_head.vision_proj.weight', 'another model'), ('eps', 'another model'),
    ('pipeline', 'prepared in another way'), ('mean', 'prepared in another way')])
def test_a_gallery_of_another_model_is_refused(representation, photos, tmp_path, monkeypatch, what, message):
    cache = tmp_path / 'file'
    TextToImageRetrievalInferencer(representation, photos, cache, progress=False)
    before = cache.read_bytes()
    change(representation, monkeypatch, what)
    for prototype in (photos, None):
        with pytest.raises(CheckpointError, match=re.escape(str(cache)) + f'.*{message}.*delete the file'):
            TextToImageRetrievalInferencer(representation, prototype, cache, progress=False)
    assert cache.read_bytes() == before


def test_training_of_other_parts_leaves_the_gallery_valid(representation, photos, tmp_path, monkeypatch):
    cache = tmp_path / 'file'
    TextToImageRetrievalInferencer(representation, photos, cache, progress=False)
    change(representation, monkeypatch, 'itm_head.classifier.weight')
    TextToImageRetrievalInferencer(representation, photos, cache, progress=False)


def test_another_gallery_is_refused(representation, photos, tmp_path):
    cache, other = tmp_path / 'file', tmp_path / 'photo.png'
    paths = sorted(photos.iterdir())
    other.write_bytes(paths[6].read_bytes())
    paths[6] = other
    TextToImageRetrievalInferencer(representation, paths, cache, progress=False)
    for images in (paths[:6], paths[::-1], photos):
        with pytest.raises(DataError, match='another gallery'):
            TextToImageRetrievalInferencer(representation, images, cache, progress=False)
    Image.open(paths[0]).save(other)  # the same name, another picture
    with pytest.raises(DataError, match='another gallery'):
        TextToImageRetrievalInferencer(representation, paths, cache, progress=False)
    ImageToTextRetrievalInferencer(representation, TEXTS, tmp_path / 'texts', progress=False)
    with pytest.raises(DataError, match='another gallery'):
        ImageToTextRetrievalInferencer(representation, TEXTS[::-1], tmp_path / 'texts', progress=False)
    with pytest.raises(CheckpointError, match='holds texts, not images'):
        TextToImageRetrievalInferencer(representation, photos, tmp_path / 'texts', progress=False)


def test_what_is_no_gallery_is_refused(representation, photos, tmp_path, monkeypatch):
    cache = tmp_path / 'file'
    TextToImageRetrievalInferencer(representation, photos, cache, fast_match=True, progress=False)
    with pytest.raises(DataError, match='prepared with fast_match=True, without the patches'):
        TextToImageRetrievalInferencer(representation, photos, cache, progress=False)
    whole = cache.read_bytes()
    for broken in (whole[:-10], b'', b'text', whole.replace(b'mmblip2-gallery/1', b'mmblip2-gallery/9')):
        cache.write_bytes(broken)
        with pytest.raises(CheckpointError, match='is no gallery'):
            TextToImageRetrievalInferencer(representation, photos, cache, fast_match=True, progress=False)
    cache.write_bytes(whole[:-1] + b'\xff')
    with pytest.raises(CheckpointError, match='file is broken .*: delete it, or give another prototype_cache'):
        TextToImageRetrievalInferencer(representation, photos, cache, fast_match=True, progress=False)
    with pytest.raises(ConfigError, match='there is no gallery: give prototype='):
        TextToImageRetrievalInferencer(representation, None, tmp_path / 'none')
    with pytest.raises(CheckpointError, match='cannot write the gallery'):
        TextToImageRetrievalInferencer(representation, photos, tmp_path / 'file' / 'inside', progress=False)


def test_an_interrupted_gallery_leaves_no_file(representation, photos, tmp_path, monkeypatch):
    encode, calls = representation.encode_image, []

    def second_fails(images):
        calls.append(images)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(representation, 'encode_image', second_fails)
    with pytest.raises(KeyboardInterrupt):
        TextToImageRetrievalInferencer(representation, photos, tmp_path / 'file', prepare_batch_size=3, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_after_the_first_batch(representation, photos, tmp_path, monkeypatch):
    encode, calls = representation.encode_image, []
    monkeypatch.setattr(representation, 'encode_image', lambda images: calls.append(images) or encode(images))

    def full(handle, start, size):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'posix_fallocate', full, raising=False)
    with pytest.raises(CheckpointError, match=r'cannot write the gallery .*file \(0.0 MiB\): .*No space left'):
        TextToImageRetrievalInferencer(representation, photos, tmp_path / 'file', prepare_batch_size=3, progress=False)
    assert len(calls) == 1 and not list(tmp_path.iterdir())


def test_half_precision_patches_are_half_as_large(representation, photos, tmp_path, monkeypatch):
    config = deepcopy(representation._config)
    config.optim_wrapper = dict(dtype='bfloat16')
    wanted = TextToImageRetrievalInferencer(representation, photos, progress=False)(TEXTS, topk=7)
    monkeypatch.setattr(representation, '_config', config)
    for cache in (None, tmp_path / 'file'):
        search = TextToImageRetrievalInferencer(representation, photos, cache, progress=False)
        assert search.prototype.patches.dtype == torch.bfloat16 and search.prototype.features.dtype == torch.float32
        results = search(TEXTS, topk=7)
        for row, others in zip(results, wanted):
            scores = {one['sample_idx']: one['match_score'] for one in others}
            assert all(abs(one['match_score'] - scores[one['sample_idx']]) < 0.2 for one in row)
    cosines = TextToImageRetrievalInferencer(representation, photos, fast_match=True, progress=False)(TEXTS, topk=7)
    cosines = torch.tensor([one['match_score'] for row in cosines for one in row])
    assert (cosines != cosines.bfloat16()).float().mean() > 0.9, 'cosines are as coarse as bfloat16'


# ---------------------------------------------------------------------------------------------- bad input

def test_broken_images_are_named_before_any_is_encoded(representation, photos, tmp_path, monkeypatch):
    paths = sorted(photos.iterdir())
    (tmp_path / 'cut.png').write_bytes(paths[0].read_bytes()[:600])
    (tmp_path / 'empty.png').touch()
    monkeypatch.setattr(representation, 'encode_image', None)
    images = [*paths, tmp_path / 'cut.png', tmp_path / 'none.png', tmp_path / 'empty.png', tmp_path / 'none.jpg', 3]
    with pytest.raises(DataError, match=r'(?s)5 of the 12 images .* none was encoded yet: .*and 2 more') as error:
        TextToImageRetrievalInferencer(representation, images, progress=False)
    for cache in (None, tmp_path / 'file'):
        with pytest.raises(DataError, match='image 0 .*cut.png'):
            TextToImageRetrievalInferencer(representation, [Image.open(tmp_path / 'cut.png')], cache, progress=False)
    with pytest.raises(DataError, match='image 1 is a int: expected a path'):
        TextToImageRetrievalInferencer(representation, [paths[0], 3], tmp_path / 'file', progress=False)
    with pytest.raises(DataError, match=r'2 of the 2 images .*image 0 \(.*cut.png\).*image 1 \(.*none.png\)'):
        TextToImageRetrievalInferencer(representation, images[7:9], progress=False)
    assert str(tmp_path) in str(error.value)


def test_random_pipelines_and_sets_without_images_are_refused(representation, photos, tmp_path):
    import json

    from torch.utils.data import ConcatDataset, DataLoader
    (tmp_path / 'rows.json').write_text(json.dumps(
        [dict(image=path.name, caption='a picture') for path in sorted(photos.iterdir())]))
    config = dict(type='COCORetrieval', ann_file=str(tmp_path / 'rows.json'), data_prefix=dict(img_path=str(photos)),
                  pipeline=[dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=16), dict(type='PackInputs')])
    with pytest.raises(ConfigError, match='RandomResizedCrop changes the images of the gallery at random'):
        TextToImageRetrievalInferencer(representation, config, progress=False)
    loader = DataLoader(ConcatDataset([[1], [2]]))
    with pytest.raises(ConfigError, match="the data loader reads a ConcatDataset: expected a data set of mmengine's"):
        TextToImageRetrievalInferencer(representation, loader, progress=False)
    (tmp_path / 'texts.txt').write_text('a\n')
    config = dict(type='TextCorpus', ann_file=str(tmp_path / 'texts.txt'), pipeline=[dict(type='PackInputs')])
    with pytest.raises(DataError, match='the samples of TextCorpus have no images'):
        TextToImageRetrievalInferencer(representation, config, progress=False)
    for wrong in (dict(type='Nothing'), dict(config, colour='red')):
        with pytest.raises(ConfigError, match='the data set that prototype describes cannot be built: .*(Noth|colour)'):
            TextToImageRetrievalInferencer(representation, wrong, progress=False)


def test_bad_input_says_what_to_do(representation, photos, tmp_path, tiny_generator):
    texts = ImageToTextRetrievalInferencer(representation, TEXTS, progress=False)
    images = TextToImageRetrievalInferencer(representation, photos, progress=False)
    for prototype in ([], iter([])):
        with pytest.raises(DataError, match='gallery is empty'):
            TextToImageRetrievalInferencer(representation, prototype)
    (tmp_path / 'folder').mkdir()
    with pytest.raises(DataError, match='has no images'):
        TextToImageRetrievalInferencer(representation, tmp_path / 'folder')
    with pytest.raises(DataError, match='prototype is empty'):
        ImageToTextRetrievalInferencer(representation, [])
    (tmp_path / 'texts.txt').write_text('a star\n\na cross\n')
    with pytest.raises(DataError, match=r"prototype\[1\] is '', an empty text"):
        ImageToTextRetrievalInferencer(representation, tmp_path / 'texts.txt')
    with pytest.raises(DataError, match='there is no such file: give a list of texts'):
        ImageToTextRetrievalInferencer(representation, 'a red circle')
    with pytest.raises(DataError, match=r"texts\[1\] is ' \.', an empty text"):
        images(['a star', ' .'])
    with pytest.raises(DataError, match='texts is empty'):
        images([])
    with pytest.raises(DataError, match=r'texts\[0\] is a int: expected a text'):
        images([3])
    for topk in (0, 1.5, True):
        with pytest.raises(ConfigError, match='topk is .*, expected a positive whole number'):
            images('a star', topk=topk)
        with pytest.raises(ConfigError, match='k_test is .*fast_match=True re-ranks nothing'):
            ImageToTextRetrievalInferencer(representation, TEXTS, k_test=topk)
    with pytest.raises(DataError, match=r'cannot read image 0 .*none.png'):
        texts(tmp_path / 'none.png')
    generator = tiny_generator([dict(type='CaptionPrompt', prompt='a')])
    for inferencer in (TextToImageRetrievalInferencer, ImageToTextRetrievalInferencer):
        with pytest.raises(ConfigError, match=f'{inferencer.__name__} needs a Blip2Representation .* is a '
                                              'Blip2Generation.*ImageCaptionInferencer'):
            inferencer(generator, TEXTS)


def test_long_texts_are_cut_as_in_training_and_said(representation, photos, monkeypatch):
    from mmblip2.apis import texts as module
    said = []
    monkeypatch.setattr(module, 'say', lambda message, level: said.append(message))
    search = TextToImageRetrievalInferencer(representation, photos, progress=False)
    stars = 'a ' * 22  # with [CLS] and [SEP] exactly max_text_len tokens
    assert representation.tokenizer([stars], 99).mask.size(1) == 24 == representation.max_text_len
    short = search(stars, topk=3)
    assert not said
    assert_same(search(stars + 'circle square', topk=3), pairs_of(short))
    assert said == [f"1 of 1 texts are longer than max_text_len=24 tokens and are cut there, as in training; the first "
                    f"is {(stars + 'circle square')[:60]!r}"]


def test_texts_are_cleaned_as_the_test_pipeline_does(representation, photos, monkeypatch):
    search = TextToImageRetrievalInferencer(representation, photos, progress=False)
    assert_same(search('A small, red (circle).', topk=3), pairs_of(search('a small, red circle', topk=3)))
    texts = ImageToTextRetrievalInferencer(representation, ['A red (circle)', 'a star.'], progress=False)
    assert {one['text'] for one in texts(photos, topk=2)[0]} == {'A red (circle)', 'a star.'}
    config = deepcopy(representation._config)
    del config.test_dataloader.dataset.pipeline[2]
    monkeypatch.setattr(representation, '_config', config)
    search = TextToImageRetrievalInferencer(representation, photos, progress=False)
    scores = [search(text, topk=7)[0] for text in ('a small, red (circle).', 'a small, red circle')]
    assert max(abs(one['match_score'] - other['match_score']) for one, other in zip(*scores)) > 1e-3


# ----------------------------------------------------------------------------------------------- pictures

def test_pictures_of_results(representation, photos, tmp_path):
    search = TextToImageRetrievalInferencer(representation, photos, progress=False)
    for _ in range(2):
        search(['a star', 'a star'], topk=3, show_dir=tmp_path / 'a' / 'b', figsize=(6, 3))
    names = sorted(path.name for path in (tmp_path / 'a' / 'b').iterdir())
    assert names == ['000000_a_star.png', '000000_a_star_1.png', '000001_a_star.png', '000001_a_star_1.png']
    with Image.open(tmp_path / 'a' / 'b' / names[0]) as picture:
        assert picture.width == 600 and picture.height <= 300
        drawn = np.array(picture)
    search('a star', topk=3, show_dir=tmp_path / 'plain', figsize=(6, 3), draw_score=False)
    with Image.open(tmp_path / 'plain' / names[0]) as picture:
        assert not np.array_equal(picture, drawn), 'draw_score changes nothing'
    search('a star', topk=3, show_dir=tmp_path / 'small', figsize=(6, 3), resize=8)
    with Image.open(tmp_path / 'small' / names[0]) as picture:
        assert not np.array_equal(picture, drawn), 'resize changes nothing'
    for wrong in ((16,), 16, (3, 0)):
        with pytest.raises(ConfigError, match=f'figsize is {re.escape(repr(wrong))}, expected two numbers above 0'):
            search('a star', figsize=wrong)
    images = [Image.new('RGB', (9, 9))]
    in_memory = TextToImageRetrievalInferencer(representation, images, tmp_path / 'g', progress=False)
    in_memory('a star', show_dir=tmp_path / 'memory')
    reopened = TextToImageRetrievalInferencer(representation, None, tmp_path / 'g')
    with pytest.raises(DataError, match='image 0 of this gallery was never a file, so there is nothing to draw'):
        reopened('a star', show_dir=tmp_path / 'memory')

    texts = ImageToTextRetrievalInferencer(representation, TEXTS, progress=False)
    texts([photos / 'photo_0.png'] * 2, topk=2, show_dir=tmp_path / 'texts')
    assert sorted(path.name for path in (tmp_path / 'texts').iterdir()) == ['photo_0.png', 'photo_0_1.png']


def test_preparation_shows_its_progress(representation, photos, capfd):
    TextToImageRetrievalInferencer(representation, photos)
    error = capfd.readouterr().err
    assert 'Check of the images' in error and 'Gallery' in error
    ImageToTextRetrievalInferencer(representation, TEXTS)
    assert 'Gallery' in capfd.readouterr().err
    TextToImageRetrievalInferencer(representation, photos, progress=False)
    assert 'Gallery' not in capfd.readouterr().err


def test_the_gallery_module_writes_what_safetensors_reads(tmp_path):
    features = torch.randn(5, 3, 2)
    patches = torch.randn(5, 2, 3).bfloat16()
    rows = [dict(img_path=f'ü {i}') for i in range(5)]
    gallery.Gallery(features, patches, rows, dict(kind='images')).save(tmp_path / 'file')
    found = gallery.read_gallery(tmp_path / 'file', dict(kind='images'), True)
    assert torch.equal(found.features, features) and torch.equal(found.patches, patches) and found.rows == rows
    assert found.meta == dict(kind='images')
    assert os.listdir(tmp_path) == ['file']
