"""A folder of BLIP that transformers saved is loaded by its path alone, and says what transformers says.

Every class is redrawn, saved with its processor, and read again; photographs go through our preprocessing here and
through the image processor of the folder there. transformers' BLIP ignores the mask of what cross-attention reads and
does not put [ENC] in front: questions are not padded, and it gets the ids that our models read.
"""
import sys
from pathlib import Path

import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image

from mmblip2.apis import FeatureExtractor, get_model, inference_model
from mmblip2.errors import ConfigError
from mmblip2.structures import DataSample

transformers = pytest.importorskip('transformers')

sys.path.insert(0, str(Path(__file__).parents[1] / 'data'))
from tiny_huggingface import SIDE, TEXTS, VISION, redraw, write_photos, write_tokenizers  # noqa: E402

MEAN, STD = [0.4, 0.45, 0.5], [0.3, 0.2, 0.25]  # not CLIP's
TEXT = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=56,
            max_position_embeddings=32)


def image_processor(side=SIDE):
    """transformers' processor that resizes with Pillow: it has another name since version 5."""
    name = 'BlipImageProcessorPil' if hasattr(transformers, 'BlipImageProcessorPil') else 'BlipImageProcessor'
    return getattr(transformers, name)(size=dict(height=side, width=side), image_mean=MEAN, image_std=STD)


class Saved:
    """A model of transformers, its folder, and ours from that folder.

    Attributes:
        photos: (3, 3, side, side), the photographs as the folder's image processor gives them.
    """

    def __init__(self, root, name, bert, paths, seed=0):
        self.folder = root / name
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
        self.dec_id, self.enc_id = len(self.tokenizer), len(self.tokenizer) + 1
        ids = dict(bos_token_id=self.dec_id, eos_token_id=self.tokenizer.sep_token_id,
                   sep_token_id=self.tokenizer.sep_token_id, pad_token_id=self.tokenizer.pad_token_id)
        text = dict(TEXT, vocab_size=self.enc_id + 1, **ids)
        if name == 'BlipTextModel':
            config = transformers.BlipTextConfig(**text, encoder_hidden_size=24)
        elif name == 'BlipVisionModel':
            config = transformers.BlipVisionConfig(**VISION)
        else:
            config = transformers.BlipConfig(vision_config=dict(VISION), text_config=text, projection_dim=8,
                                             image_text_hidden_size=8)
        torch.manual_seed(0)
        self.theirs = redraw(getattr(transformers, name)(config), seed)
        with torch.no_grad():  # they are the output layer too: logits of 10 would differ by 1e-5 in the last bit
            for key, value in self.theirs.named_parameters():
                value.mul_(0.15 if 'word_embeddings' in key else 1.)
        self.theirs.save_pretrained(self.folder)
        if name == 'BlipTextModel':
            self.tokenizer.save_pretrained(self.folder)
        elif name == 'BlipVisionModel':
            image_processor().save_pretrained(self.folder)
        else:
            transformers.BlipProcessor(image_processor(), self.tokenizer).save_pretrained(self.folder)
        images = []
        for path in paths:
            with Image.open(path) as image:
                images.append(image.convert('RGB'))
        self.photos = image_processor()(images, return_tensors='pt')['pixel_values']
        self.ours = get_model(self.folder, device='cpu')

    def our_photos(self, paths):
        """(3, 3, side, side) through the pipeline of the config."""
        with DefaultScope.overwrite_default_scope('mmblip2'):
            pipeline = Compose(self.ours._config.test_dataloader.dataset.pipeline)
        rows = pseudo_collate([pipeline(dict(img_path=path)) for path in paths])
        return self.ours.data_preprocessor(rows, False)['images']


def assert_close(ours, theirs):
    """Equal to 1e-5, and worth comparing."""
    assert theirs.std() > 0.1, f'the reference output is too flat to prove anything: std {theirs.std():.3f}'
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def perturbed(images):
    images = images.clone()
    images[:, :, :SIDE // 2] += 0.5
    return images


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp('photos'))


@pytest.fixture(scope='module')
def saved(tmp_path_factory, photos):
    """Saved and loaded on first use, kept for the module."""
    bert = write_tokenizers(tmp_path_factory.mktemp('tokenizers'))['bert']
    root, built = tmp_path_factory.mktemp('folders'), {}

    def get(name, seed=0):
        if name not in built:
            built[name] = Saved(root, name, bert, photos, seed)
        return built[name]

    return get


# ------------------------------------------------------------------------------------------ features

@torch.no_grad()
def test_vision_model(saved, photos):
    model = saved('BlipVisionModel')
    expected = model.theirs(model.photos)
    encoded = model.ours.encode_image(model.our_photos(photos))
    assert_close(encoded.patches, expected.last_hidden_state)
    assert_close(model.ours.pooled_image(encoded), expected.pooler_output)
    assert (model.theirs(perturbed(model.photos)).last_hidden_state - encoded.patches).abs().max() > 1e-2
    assert_close(FeatureExtractor(model.folder, device='cpu').get_image_features(photos), expected.last_hidden_state)
    with pytest.raises(ConfigError, match='this BlipFeatures has no text encoder'):
        model.ours.tokenize(TEXTS)
    with pytest.raises(ConfigError, match='this BlipFeatures has no contrastive projections'):
        model.ours.image_features(encoded)


@torch.no_grad()
def test_text_model(saved):
    model = saved('BlipTextModel')
    text = model.ours.tokenize(TEXTS)
    assert not text.mask.all(), 'no padding in the batch'
    expected = model.theirs(text.input_ids, text.mask)
    real = text.mask.bool()
    assert_close(model.ours.text_encoder.forward_text_tokens(*text)[real], expected.last_hidden_state[real])
    assert_close(model.ours.pooled_text(text), expected.pooler_output)
    patches = torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(1))
    expected = model.theirs(text.input_ids, text.mask, encoder_hidden_states=patches).last_hidden_state
    found = model.ours.text_encoder.forward_joint(model.ours.project_image(patches), *text)
    assert_close(found[real], expected[real])


@torch.no_grad()
def test_contrastive_model(saved, photos):
    model = saved('BlipModel')
    text = model.ours.tokenize(TEXTS)
    assert not text.mask.all(), 'no padding in the batch'
    output = model.theirs(input_ids=text.input_ids, pixel_values=model.photos, attention_mask=text.mask)
    encoded = model.ours.encode_image(model.our_photos(photos))
    assert_close(encoded.patches, output.vision_model_output.last_hidden_state)
    assert_close(model.ours.image_features(encoded), output.image_embeds)
    assert_close(model.ours.text_features(text), output.text_embeds)
    assert_close(model.ours.contrastive_logits(encoded, text), output.logits_per_image)
    extract = FeatureExtractor(model.folder, device='cpu')
    assert_close(extract.extract_features(photos, mode='image')['image_embeds_proj'][:, 0], output.image_embeds)
    assert_close(extract.get_text_features(TEXTS, project=True)[:, 0], output.text_embeds)


@torch.no_grad()
def test_retrieval_model(saved, photos):
    model = saved('BlipForImageTextRetrieval', 8)
    ours = model.ours
    encoded, text = ours.encode_image(model.our_photos(photos)), ours.tokenize(TEXTS)
    assert not text.mask.all(), 'no padding in the batch'
    expected = model.theirs(text.input_ids, model.photos, attention_mask=text.mask, use_itm_head=False).itm_score
    assert_close(ours.image_features(encoded)[:, 0] @ ours.text_features(text).T, expected)

    def match(pixels):
        """(3, 2), each text with one image; transformers gets the [ENC] that our model puts there itself."""
        return model.theirs(text.begin_with(model.enc_id).input_ids, pixels, attention_mask=text.mask).itm_score

    expected = torch.stack([match(model.photos.roll(i, 0)) for i in range(3)])
    found = torch.stack([ours.match_logits(ours.encode_image(model.our_photos(photos).roll(i, 0)).image_kv, text)
                         for i in range(3)])
    assert_close(found, expected)
    assert (match(perturbed(model.photos)) - expected[0]).abs().max() > 1e-2


# -------------------------------------------------------------------------------------------- texts

PROMPTS = ['a photo of', '', 'there are three objects']  # of other lengths: ours are continued in one batch
TARGETS = ['a small red circle', 'green stars', 'above one cross']
QUESTIONS = ['what color is the star?', 'what is left of the star?', 'two green stars?']


def row_of(model, text, first):
    """Ids (1, T) of one text behind another first token."""
    row = torch.tensor([model.tokenizer(text).input_ids])
    row[0, 0] = first
    return row


@torch.no_grad()
def test_logits_of_captions(saved, photos):
    model = saved('BlipForConditionalGeneration', 3)
    ours = model.ours
    encoded = ours.encode_image(model.our_photos(photos))
    text = ours.tokenizer([f'{prompt} {target}' for prompt, target in zip(PROMPTS, TARGETS)], 32)
    text = text.begin_with(model.dec_id)
    assert not text.mask.all(), 'no padding in the batch'
    states, _ = ours.text_decoder.forward_causal(*text, encoded.image_kv)
    found = ours._logits(states)
    for i in range(3):
        row = text.input_ids[i:i + 1, :int(text.mask[i].sum())]
        expected = model.theirs(pixel_values=model.photos[i:i + 1], input_ids=row).logits[0]
        assert_close(found[i, :row.size(1)], expected)
        changed = model.theirs(pixel_values=perturbed(model.photos)[i:i + 1], input_ids=row).logits[0]
        assert (changed - expected).abs().max() > 1e-2


@torch.no_grad()
def test_logits_of_answers(saved, photos):
    model = saved('BlipForQuestionAnswering', 3)
    ours = model.ours
    images = model.our_photos(photos)
    samples = [DataSample(prompt=question) for question in QUESTIONS]
    context = ours.visual_prefix(images, samples)
    assert not context.mask.all(), 'no padding in the batch'
    text = ours.tokenizer(TARGETS, 32).begin_with(model.dec_id)
    states, _ = ours.text_decoder.forward_causal(*text, context.kv, context.mask)
    found = ours._logits(states)
    for i in range(3):
        row = text.input_ids[i:i + 1, :int(text.mask[i].sum())]
        expected = their_answers(model, model.photos[i:i + 1], QUESTIONS[i], row)
        assert_close(found[i, :row.size(1)], expected)
        changed = their_answers(model, perturbed(model.photos)[i:i + 1], QUESTIONS[i], row)
        assert (changed - expected).abs().max() > 1e-2


def their_answers(model, image, question, row):
    """Logits (T, V) of the tokens of ``row``, of an unpadded question that begins with [ENC]."""
    states = model.theirs.vision_model(pixel_values=image).last_hidden_state
    states = model.theirs.text_encoder(input_ids=row_of(model, question, model.enc_id),
                                       encoder_hidden_states=states).last_hidden_state
    return model.theirs.text_decoder(input_ids=row, encoder_hidden_states=states).logits[0]


@pytest.mark.parametrize('beams', [1, 5])
@torch.no_grad()
def test_captions_are_identical(saved, photos, beams):
    """Ours in one batch, theirs row by row."""
    model = saved('BlipForConditionalGeneration', 3)
    texts, lead = [], []
    for i, prompt in enumerate(PROMPTS):
        given = dict(input_ids=torch.tensor([model.tokenizer(prompt).input_ids])) if prompt else {}
        texts.append(written(model, beams, lead, model.photos[i:i + 1], len(model.tokenizer(prompt).input_ids) - 1,
                             **given))
    assert min(lead) > 1e-3, f'too close to call: {min(lead)}'
    model.ours.generation = dict(num_beams=beams, max_new_tokens=8)
    found = model.ours.predict(model.our_photos(photos), [DataSample(prompt=prompt) for prompt in PROMPTS])
    assert [sample.pred_text for sample in found] == texts
    assert len(set(texts)) == 3, 'the same text for all rows'


@pytest.mark.parametrize('beams', [1, 5])
@torch.no_grad()
def test_answers_are_identical(saved, photos, beams):
    model = saved('BlipForQuestionAnswering', 3)
    texts, lead = [], []
    for i, question in enumerate(QUESTIONS):
        texts.append(written(model, beams, lead, model.photos[i:i + 1], 1,
                             input_ids=row_of(model, question, model.enc_id)))
    assert min(lead) > 1e-3, f'too close to call: {min(lead)}'
    model.ours.generation = dict(num_beams=beams, max_new_tokens=8)
    found = model.ours.predict(model.our_photos(photos), [DataSample(prompt=question) for question in QUESTIONS])
    assert [sample.pred_text for sample in found] == texts
    assert len(set(texts)) == 3, 'the same text for all rows'


def written(model, beams, leads, image, length, **given):
    """What transformers writes behind ``length`` tokens; the smallest lead of what was chosen goes into ``leads``."""
    output = model.theirs.generate(
        pixel_values=image, do_sample=False, num_beams=beams, max_new_tokens=8, output_scores=True,
        return_dict_in_generate=True, num_return_sequences=beams, **given)
    if beams == 1:
        leads += [float(pair[0] - pair[1]) for score in output.scores for pair in score.topk(2).values]
    else:
        leads.append(float(output.sequences_scores[0] - output.sequences_scores[1]))
    return model.tokenizer.decode(output.sequences[0, length:], skip_special_tokens=True).strip()


@torch.no_grad()
def test_inference_model_takes_a_folder(saved, photos):
    """Without a prompt, as transformers' generate without input_ids; and with a question."""
    model = saved('BlipForConditionalGeneration', 3)
    expected = written(model, 1, [], model.photos[:1], 1)
    settings = dict(device='cpu', num_beams=1, max_new_tokens=8)
    assert inference_model(str(model.folder), photos[0], **settings)['pred_caption'] == expected != ''
    model = saved('BlipForQuestionAnswering', 3)
    expected = written(model, 1, [], model.photos[:1], 1, input_ids=row_of(model, QUESTIONS[0], model.enc_id))
    assert inference_model(str(model.folder), photos[0], QUESTIONS[0], **settings)['pred_answer'] == expected != ''
