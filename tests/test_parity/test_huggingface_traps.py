"""Where transformers' BLIP-2 goes wrong without a word, this package cannot: it has no placeholders, puts the queries
in front of the text by itself, and pads on the side where padding changes nothing."""
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mmblip2.apis import get_model
from mmblip2.checkpoints.huggingface_config import config_from_folder
from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

transformers = pytest.importorskip('transformers')

sys.path.insert(0, str(Path(__file__).parents[1] / 'data'))
from tiny_huggingface import (  # noqa: E402
    LANGUAGE,
    NUM_QUERY,
    PROMPTS,
    QFORMER,
    SIDE,
    TARGETS,
    TEXTS,
    VISION,
    redraw,
    write_tokenizers,
)

KINDS = ['opt', 'llama', 't5', 'opt-350m']  # the last one embeds text in another width than that of its layers


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory):
    return write_tokenizers(tmp_path_factory.mktemp('tokenizers'))


@pytest.fixture(scope='module')
def models(tokenizers):
    """Ours, redrawn; built on first use."""
    built = {}

    def get(kind):
        if kind not in built:
            family = kind.split('-')[0]
            config = dict(LANGUAGE[family])
            if kind == 'opt-350m':
                config.update(word_embed_proj_dim=16, do_layer_norm_before=False)
            folder = tokenizers[family]
            built[kind] = redraw(MODELS.build(dict(
                type='Blip2Generation', allow_random=True,
                vision=dict(type='VisionTransformer', image_size=SIDE, patch_size=7, width=32, depth=2, num_heads=4),
                qformer=dict(type='QFormer', vision_width=32, num_layers=2, width=40, num_heads=4,
                             num_query=NUM_QUERY, max_positions=32),
                language_model=dict(type='Seq2SeqLM' if family == 't5' else 'CausalLM', config=config,
                                    tokenizer=folder, max_text_len=96))), seed=0)
        return built[kind]

    return get


def draw_images(seed=1):
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def first_logits(model, images, prompts):
    """(B, V): from which the first new token of each row is chosen."""
    found = []
    handle = model.language_model.model.register_forward_hook(
        lambda module, args, output: found.append(output.logits[:, -1]))
    model.generation = dict(max_new_tokens=1)
    model.predict(images, [DataSample(prompt=prompt) for prompt in prompts])
    handle.remove()
    return found[0]


def texts_of(model, images, prompts, beams):
    model.generation = dict(max_new_tokens=6, num_beams=beams)
    samples = model.predict(images, [DataSample(prompt=prompt) for prompt in prompts])
    return [sample.pred_text for sample in samples]


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_a_row_depends_on_its_own_image_alone(models, kind):
    """transformers mixes the images of a batch where word_embed_proj_dim is not hidden_size (OPT-350m)."""
    model, images = models(kind), draw_images()
    assert model.visual_prefix(images, [DataSample()] * 3).shape == (3, NUM_QUERY, model.language_model.hidden_size)
    before = first_logits(model, images, PROMPTS)
    for row in range(3):
        changed = images.clone()
        changed[row] = draw_images(2)[row]
        moved = (first_logits(model, changed, PROMPTS) - before).abs().amax(dim=1)
        assert moved[row] > 1e-2, 'the row does not look at its image'
        assert torch.cat([moved[:row], moved[row + 1:]]).max() < 1e-5, 'another row looks at it'


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_prompts_of_unequal_length_give_in_a_batch_what_each_gives_alone(models, kind):
    """In transformers a batch that is padded on the right continues the padding."""
    model, images = models(kind), draw_images()
    assert len({len(model.language_model.tokenizer(prompt).input_ids) for prompt in PROMPTS}) == 3
    together = first_logits(model, images, PROMPTS)
    alone = torch.cat([first_logits(model, images[i:i + 1], PROMPTS[i:i + 1]) for i in range(3)])
    assert together.std() > 0.1 and (together[0] - together[1]).abs().max() > 1e-2
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    for beams in (1, 3):
        alone = [texts_of(model, images[i:i + 1], PROMPTS[i:i + 1], beams)[0] for i in range(3)]
        assert texts_of(model, images, PROMPTS, beams) == alone


@pytest.mark.parametrize('side', ['left', 'right'])
@torch.no_grad()
def test_the_padding_side_of_the_tokenizer_does_not_matter(models, side, monkeypatch):
    model, images = models('opt'), draw_images()
    expected = first_logits(model, images, PROMPTS)
    monkeypatch.setattr(model.language_model.tokenizer, 'padding_side', side)
    torch.testing.assert_close(first_logits(model, images, PROMPTS), expected, atol=1e-6, rtol=0)
    assert model.language_model.tokenizer.padding_side == side


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_the_loss_of_a_batch_is_that_of_its_rows(models, kind):
    model, images = models(kind), draw_images()
    samples = [DataSample(prompt=prompt, target=target) for prompt, target in zip(PROMPTS, TARGETS)]

    def loss(rows):
        return model.language_model.loss(
            model.visual_prefix(images[rows], samples[rows]), [sample.prompt for sample in samples[rows]],
            [sample.target for sample in samples[rows]])

    total, count = loss(slice(0, 3))
    alone = [loss(slice(i, i + 1)) for i in range(3)]
    assert count == sum(number for _, number in alone)
    torch.testing.assert_close(total, sum(value for value, _ in alone), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_the_image_is_read_without_any_placeholder(models, kind):
    """In transformers a text without placeholders is continued without its image, one with too few with another's."""
    model, images = models(kind), draw_images()
    tokenizer = model.language_model.tokenizer
    assert '<image>' not in tokenizer.get_vocab()
    seen, reader = [], model.language_model.model
    reader = reader.encoder if kind == 't5' else reader.get_decoder()
    handle = reader.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs['inputs_embeds']), with_kwargs=True)
    logits = first_logits(model, images, PROMPTS)
    handle.remove()
    longest = max(len(tokenizer(prompt).input_ids) for prompt in PROMPTS)
    assert seen[0].shape[:2] == (3, NUM_QUERY + longest), 'the queries stand in front of the longest prompt'
    assert (first_logits(model, draw_images(2), PROMPTS) - logits).abs().amax(dim=1).min() > 1e-2
    assert (first_logits(model, draw_images(2), [''] * 3) - first_logits(model, images, [''] * 3)).abs().max() > 1e-2


# ----------------------------------------------------------------------------------------- from a folder

@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizers):
    """A saved Blip2ForConditionalGeneration whose tokenizer has the <image> of the processor."""
    folder = tmp_path_factory.mktemp('opt')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizers['opt'])
    image_id = len(tokenizer)
    theirs = redraw(transformers.Blip2ForConditionalGeneration(transformers.Blip2Config(
        vision_config=VISION, qformer_config=dict(QFORMER, vocab_size=10), num_query_tokens=NUM_QUERY,
        text_config=dict(LANGUAGE['opt'], vocab_size=image_id + 1), image_token_index=image_id)), seed=0)
    theirs.save_pretrained(folder)
    tokenizer.add_tokens(['<image>'], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


def edited(folder, target, **settings):
    """A copy of the folder with other settings in its config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / 'config.json').read_text())
    for key, value in settings.items():
        config[key] = value
    (target / 'config.json').write_text(json.dumps(config))
    return target


@torch.no_grad()
def test_a_folder_without_placeholders_gives_the_same_model(folder, tmp_path):
    """transformers cannot generate with image_token_index=None, as in the first published folders."""
    images = draw_images()
    new, old = get_model(folder, device='cpu'), get_model(
        edited(folder, tmp_path / 'old', image_token_index=None), device='cpu')
    logits = first_logits(new, images, PROMPTS)
    torch.testing.assert_close(first_logits(old, images, PROMPTS), logits, atol=1e-6, rtol=0)
    assert (first_logits(old, draw_images(2), PROMPTS) - logits).abs().max() > 1e-2


@torch.no_grad()
def test_a_folder_whose_widths_differ_is_refused(folder, tmp_path):
    config = json.loads((folder / 'config.json').read_text())
    text = dict(config['text_config'], word_embed_proj_dim=12)
    with pytest.raises(ConfigError, match='word_embed_proj_dim is 12 and hidden_size 24: .* mixes the images'):
        config_from_folder(edited(folder, tmp_path / 'opt', text_config=text))


@torch.no_grad()
def test_placeholders_of_a_retrieval_folder_take_no_words_away(tokenizers, tmp_path):
    """transformers drops the first num_query_tokens ids of every text where image_token_index is set."""
    bert = transformers.AutoTokenizer.from_pretrained(tokenizers['bert'])
    redraw(transformers.Blip2ForImageTextRetrieval(transformers.Blip2Config(
        vision_config=VISION, qformer_config=dict(QFORMER, vocab_size=len(bert) + 1, use_qformer_text_input=True),
        num_query_tokens=NUM_QUERY, image_text_hidden_size=8)), seed=0).save_pretrained(tmp_path / 'none')
    bert.save_pretrained(tmp_path / 'none')
    without = get_model(tmp_path / 'none', device='cpu')
    bert.add_tokens(['<image>'], special_tokens=True)
    bert.save_pretrained(tmp_path / 'none')
    with_index = get_model(edited(tmp_path / 'none', tmp_path / 'set', image_token_index=len(bert) - 1), device='cpu')
    feats = without.text_features(without.tokenize(TEXTS))
    torch.testing.assert_close(with_index.text_features(with_index.tokenize(TEXTS)), feats, atol=1e-6, rtol=0)
    assert (feats[1] - feats[2]).abs().max() > 1e-2
    ids = with_index.tokenize(['two <image> stars']).input_ids
    assert ids.max() < with_index.qformer.vocab_size == len(bert), 'an id without a row, or a row for <image>'
