import pytest
import torch

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS


def build(parts, *names, **settings):
    torch.manual_seed(0)
    return MODELS.build(dict(type='Blip2Features', **{name: parts[name] for name in names}, **settings)).eval()


def pixels():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_vision_encoder_alone_gives_normed_patches(tiny_parts):
    model = build(tiny_parts, 'vision', vision_norm_eps=1e-3)
    encoded = model(pixels())
    torch.testing.assert_close(encoded.patches, model.vision_norm(model.vision(pixels())))
    assert encoded.image_kv == [] and model.vision_norm.eps == 1e-3
    for call, what in ((lambda: model.image_features(encoded), 'Q-Former'),
                       (lambda: model.tokenize(['a']), 'text half')):
        with pytest.raises(ConfigError, match=f'this Blip2Features has no {what}: it was built from a part of BLIP-2'):
            call()


@torch.no_grad()
def test_images_and_texts_are_projected_where_the_parts_are_there(tiny_parts):
    parts = dict(tiny_parts, qformer=dict(tiny_parts['qformer'], vocab_size=None))
    images = build(parts, 'vision', 'qformer', embed_dim=5)
    feats = images.image_features(images.encode_image(pixels()))
    assert feats.shape == (2, 3, 5)
    torch.testing.assert_close(feats.norm(dim=-1), torch.ones(2, 3))
    assert not any('text' in name for name, _ in images.named_parameters())

    texts = build(tiny_parts, 'qformer', 'tokenizer', embed_dim=5)
    feats = texts.text_features(texts.tokenize(['a star', 'two green stars']))
    assert feats.shape == (2, 5)
    torch.testing.assert_close(feats.norm(dim=-1), torch.ones(2))
    assert not any('vision_proj' in name for name, _ in texts.named_parameters())
    with pytest.raises(ConfigError, match='this Blip2Features has no vision encoder'):
        texts.encode_image(pixels())


@torch.no_grad()
def test_a_qformer_without_queries_takes_any(tiny_parts):
    qformer = build(dict(qformer=dict(tiny_parts['qformer'], vocab_size=None, num_query=None)), 'qformer').qformer
    kv = qformer.project_image(torch.randn(2, 5, 16))
    queries = torch.randn(1, 7, 16)
    feats, cache = qformer.forward_queries(kv, queries)
    assert feats.shape == (2, 7, 16) and len(cache) == 2
    same = qformer.forward_queries(kv, queries.expand(2, -1, -1))[0]
    torch.testing.assert_close(same, feats)
    with pytest.raises(ConfigError, match='built without queries'):
        qformer.forward_queries(kv)


def test_it_is_not_trained_and_writes_nothing(tiny_parts):
    model = build(tiny_parts, 'vision')
    with pytest.raises(ConfigError, match='Blip2Features is not trained: give its folder to load_from'):
        model(pixels(), [], mode='loss')
    with pytest.raises(ConfigError, match='Blip2Features has features only'):
        model(pixels(), [], mode='predict')


def test_parts_that_do_not_fit_are_refused(tiny_parts):
    with pytest.raises(ConfigError, match='has neither vision nor qformer: set one of them'):
        build(tiny_parts)
    with pytest.raises(ConfigError, match='qformer.vocab_size is 130 and tokenizer is None: set both'):
        build(tiny_parts, 'qformer')
    with pytest.raises(ConfigError, match='qformer.vocab_size is None and tokenizer is .*: set both'):
        build(tiny_parts, 'vision', 'tokenizer')
    with pytest.raises(ConfigError, match='embed_dim is 8, which projects what a Q-Former gives, and there is none'):
        build(tiny_parts, 'vision', embed_dim=8)
