"""A folder that transformers saved is loaded by its path alone, and says what transformers says.

Every class is redrawn, saved with its processor, and read again; photographs go through our preprocessing here and
through the image processor of the folder there.
"""
import sys
from pathlib import Path

import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope

from mmblip2.apis import FeatureExtractor, get_model, inference_model
from mmblip2.checkpoints.huggingface_config import config_from_folder
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.models.losses import query_text_similarity
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
    write_photos,
    write_tokenizers,
)

MEAN, STD = [0.4, 0.45, 0.5], [0.3, 0.2, 0.25]  # not CLIP's
# class and language model, and a seed with which what is written varies and is decided by more than rounding
WRITERS = {('Blip2ForConditionalGeneration', 'opt'): 14, ('Blip2ForConditionalGeneration', 't5'): 4,
           ('Blip2ForConditionalGeneration', 'llama'): 21, ('InstructBlipForConditionalGeneration', 'llama'): 10,
           ('InstructBlipForConditionalGeneration', 't5'): 0}
BASES = [('Blip2Model', 'opt'), ('Blip2Model', 't5')]
GENERATORS = [*WRITERS, *BASES]
ids = '-'.join


def image_processor(side=SIDE, **settings):
    """transformers' processor that resizes with Pillow: it has another name since version 5."""
    name = 'BlipImageProcessorPil' if hasattr(transformers, 'BlipImageProcessorPil') else 'BlipImageProcessor'
    return getattr(transformers, name)(
        **{**dict(size=dict(height=side, width=side), image_mean=MEAN, image_std=STD), **settings})


class Saved:
    """A model of transformers, its folder, and ours from that folder.

    Attributes:
        photos: (3, 3, side, side), the photographs as the folder's image processor gives them.
    """

    def __init__(self, root, name, language, tokenizers, photos, seed=0):
        self.folder = root / f'{name}-{language}'
        self.instruct, self.is_t5 = name.startswith('Instruct'), language == 't5'
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizers[language or 'bert'])
        self.reads_text = self.instruct or name in ('Blip2ForImageTextRetrieval', 'Blip2TextModelWithProjection')
        bert = transformers.AutoTokenizer.from_pretrained(tokenizers['bert'])
        self.image_id = len(self.tokenizer)  # the processor adds <image>
        qformer = dict(QFORMER, vocab_size=len(bert) + 1)
        prefix = 'InstructBlip' if self.instruct else 'Blip2'
        if not self.instruct:
            qformer['use_qformer_text_input'] = self.reads_text
        text = dict(text_config=dict(LANGUAGE[language], vocab_size=self.image_id + 1)) if language else {}
        if name == 'Blip2Model' and self.is_t5:
            text['text_config']['dense_act_fn'] = 'gelu'  # as in the published models, instead of gelu_new
        config = getattr(transformers, f'{prefix}Config')(
            vision_config=VISION, qformer_config=qformer, num_query_tokens=NUM_QUERY, image_text_hidden_size=8,
            image_token_index=self.image_id if language else None, **text)
        if name == 'Blip2VisionModel':
            config = config.vision_config
        elif name == 'Blip2QFormerModel':
            config = config.qformer_config
        torch.manual_seed(0)
        self.theirs = getattr(transformers, name)(config)
        if self.is_t5:  # as transformers 5 builds it, so that every version draws the same numbers
            self.theirs.language_model.lm_head.weight = self.theirs.language_model.shared.weight
        redraw(self.theirs, seed)
        if self.is_t5:  # Flan-T5's output layer is not its embedding
            self.theirs.language_model.lm_head.weight = torch.nn.Parameter(torch.randn(
                self.image_id + 1, 24, generator=torch.Generator().manual_seed(seed)) / 5)
        self.theirs.save_pretrained(self.folder, max_shard_size='60KB' if language == 'llama' else '1GB')
        if self.instruct:
            transformers.InstructBlipProcessor(
                image_processor(), self.tokenizer, bert, num_query_tokens=NUM_QUERY).save_pretrained(self.folder)
        elif name == 'Blip2VisionModel':
            image_processor().save_pretrained(self.folder)
        elif name != 'Blip2QFormerModel':
            transformers.Blip2Processor(image_processor(), self.tokenizer,
                                        num_query_tokens=NUM_QUERY if language else None).save_pretrained(self.folder)
        self.qformer_tokenizer = bert
        self.photos = image_processor()(photos, return_tensors='pt')['pixel_values']
        self.ours = get_model(self.folder, device='cpu')
        if language:
            self.ours.language_model.max_text_len = 96  # a byte a token; the default would cut the targets

    def our_photos(self, paths):
        """(3, 3, side, side) through the pipeline of the config."""
        return prepare(self.ours._config, paths, self.ours.data_preprocessor)

    def text_for_qformer(self, prompts):
        if not self.instruct:
            return {}
        text = self.qformer_tokenizer(prompts, padding=True, return_tensors='pt')
        return dict(qformer_input_ids=text.input_ids, qformer_attention_mask=text.attention_mask)

    def samples(self):
        return [DataSample(prompt=prompt, target=target, **(dict(qformer_text=prompt) if self.instruct else {}))
                for prompt, target in zip(PROMPTS, TARGETS)]

    def their_logits(self, images):
        """Logits of each target's tokens, (T, V) a row, each row alone and without padding."""
        rows = []
        for image, prompt, target in zip(images, PROMPTS, TARGETS):
            start = [self.image_id] * NUM_QUERY
            answer = self.tokenizer(target).input_ids
            if self.is_t5:
                row, more = start + self.tokenizer(prompt).input_ids, dict(decoder_input_ids=torch.tensor(
                    [[0] + answer[:-1]]))
            else:
                row, more = start + self.tokenizer(f'{prompt} {target}').input_ids + [2], {}
                answer = row[NUM_QUERY + len(self.tokenizer(prompt).input_ids):]
            row = torch.tensor([row])
            logits = self.theirs(pixel_values=image[None], input_ids=row, attention_mask=torch.ones_like(row),
                                 **more, **self.text_for_qformer([prompt])).logits[0]
            rows.append(logits if self.is_t5 else logits[-len(answer) - 1:-1])
        return rows

    def our_logits(self, images):
        """The same from one padded batch."""
        found = []
        handle = self.ours.language_model.model.register_forward_hook(
            lambda module, args, output: found.append(output.logits))
        self.ours.loss(images, self.samples())
        handle.remove()
        lengths = []  # they are of targets alone
        for prompt, target in zip(PROMPTS, TARGETS):
            if self.is_t5:
                lengths.append(len(self.tokenizer(target).input_ids))
            else:
                whole = self.tokenizer(f'{prompt} {target}').input_ids
                lengths.append(len(whole) + 1 - len(self.tokenizer(prompt).input_ids))
        return found[0].split(lengths)


def prepare(config, paths, preprocessor):
    with DefaultScope.overwrite_default_scope('mmblip2'):
        pipeline = Compose(config.test_dataloader.dataset.pipeline)
    return preprocessor(pseudo_collate([pipeline(dict(img_path=path)) for path in paths]), False)['images']


def assert_close(ours, theirs):
    """Equal to 1e-5, and worth comparing."""
    assert theirs.std() > 0.1, f'the reference output is too flat to prove anything: std {theirs.std():.3f}'
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp('photos'))


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory):
    return write_tokenizers(tmp_path_factory.mktemp('tokenizers'))


@pytest.fixture(scope='module')
def saved(tmp_path_factory, tokenizers, photos):
    """Saved and loaded on first use, kept for the module."""
    root, built = tmp_path_factory.mktemp('folders'), {}
    images = [open_photo(path) for path in photos]

    def get(name, language=None):
        if (name, language) not in built:
            built[name, language] = Saved(root, name, language, tokenizers, images, WRITERS.get((name, language), 3))
        return built[name, language]

    return get


def open_photo(path):
    from PIL import Image
    with Image.open(path) as image:
        return image.convert('RGB')


# -------------------------------------------------------------------------------------------- images

@pytest.mark.parametrize('settings', [
    {}, dict(resample=2), dict(resample=1, size=dict(height=20, width=20)), dict(do_normalize=False),
    dict(rescale_factor=1 / 127.5, image_mean=[1., 1., 1.])])
def test_photographs_are_prepared_as_by_the_image_processor(tmp_path, photos, settings):
    processor = image_processor(**settings)
    side = processor.size['height']
    transformers.Blip2VisionModel(transformers.Blip2VisionConfig(
        **dict(VISION, image_size=side, patch_size=side // 4))).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = config_from_folder(tmp_path)
    ours = prepare(config, photos, MODELS.build(config.model.data_preprocessor))
    theirs = processor([open_photo(path) for path in photos], return_tensors='pt')['pixel_values']
    assert ours.shape == theirs.shape == (3, 3, side, side) and theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------ features

@torch.no_grad()
def test_retrieval_model(saved, photos):
    model = saved('Blip2ForImageTextRetrieval')
    ours, images = model.ours, model.our_photos(photos)
    text = model.tokenizer(TEXTS, padding=True, return_tensors='pt')
    assert not text.attention_mask.all(), 'no padding in the batch'
    output = model.theirs(model.photos, text.input_ids, text.attention_mask)
    encoded, own = ours.encode_image(images), ours.tokenize(TEXTS)
    assert_close(ours.image_features(encoded), output.image_embeds)
    assert_close(ours.text_features(own), output.text_embeds)
    assert_close(query_text_similarity(ours.image_features(encoded), ours.text_features(own)), output.logits_per_image)

    def match(pixels):
        return model.theirs(pixels, text.input_ids, text.attention_mask,
                            use_image_text_matching_head=True).logits_per_image

    expected = torch.stack([match(model.photos.roll(i, 0)) for i in range(3)])
    found = torch.stack([ours.itm_head(ours.qformer.forward_joint(
        ours.encode_image(images.roll(i, 0)).image_kv, *own)) for i in range(3)])
    assert_close(found, expected)
    assert (match(perturbed(model.photos)) - expected[0]).abs().max() > 1e-2


def perturbed(images):
    images = images.clone()
    images[:, :, :SIDE // 2] += 0.5
    return images


@torch.no_grad()
def test_vision_model(saved, photos):
    model = saved('Blip2VisionModel')
    expected = model.theirs(model.photos).last_hidden_state
    assert_close(model.ours.encode_image(model.our_photos(photos)).patches, expected)
    extract = FeatureExtractor(model.folder, device='cpu')
    assert_close(extract.get_image_features(photos), expected)
    with pytest.raises(ConfigError, match='vision encoder without a Q-Former or text encoder: get_image_features is'):
        extract.extract_features(photos, mode='image')
    assert (model.theirs(perturbed(model.photos)).last_hidden_state - expected).abs().max() > 1e-2


def test_file_of_a_folder_points_to_the_folder(saved):
    folder = saved('Blip2VisionModel').folder
    with pytest.raises(CheckpointError, match=f"no config inside, but its folder has: call get_model\\('{folder}'\\)"):
        get_model(folder / 'model.safetensors', device='cpu')


@torch.no_grad()
def test_vision_model_with_projection(saved, photos):
    model = saved('Blip2VisionModelWithProjection')
    output = model.theirs(model.photos)
    encoded = model.ours.encode_image(model.our_photos(photos))
    assert_close(encoded.patches, output.last_hidden_state)
    assert_close(model.ours.image_features(encoded), output.image_embeds)
    found = FeatureExtractor(model.folder, device='cpu').extract_features(photos, mode='image')
    assert_close(found['image_embeds_proj'], output.image_embeds)
    assert (model.theirs(perturbed(model.photos)).image_embeds - output.image_embeds).abs().max() > 1e-2


@torch.no_grad()
def test_text_model_with_projection(saved):
    model = saved('Blip2TextModelWithProjection')
    text = model.tokenizer(TEXTS, padding=True, return_tensors='pt')
    expected = model.theirs(text.input_ids, text.attention_mask).text_embeds  # of all tokens
    real = text.attention_mask.bool()
    assert not real.all(), 'no padding in the batch'
    assert_close(FeatureExtractor(model.folder, device='cpu').get_text_features(TEXTS, project=True)[real],
                 expected[real])
    expected = expected[:, 0]
    assert_close(model.ours.text_features(model.ours.tokenize(TEXTS)), expected)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


@torch.no_grad()
def test_qformer_alone_takes_queries_and_patches(saved):
    model = saved('Blip2QFormerModel')
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, 7, QFORMER['hidden_size'], generator=generator)
    patches = torch.randn(3, 17, VISION['hidden_size'], generator=generator)

    def ask(patches):
        return model.theirs(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state

    qformer = model.ours.qformer
    found, _ = qformer.forward_queries(qformer.project_image(patches), queries)
    assert_close(found, ask(patches))
    assert (ask(patches + 0.5) - found).abs().max() > 1e-2
    with pytest.raises(ConfigError, match='built without queries .*: give them to forward_queries'):
        qformer.forward_queries(qformer.project_image(patches))


@pytest.mark.parametrize('name, language', BASES, ids=map(ids, BASES))
@torch.no_grad()
def test_query_features_of_the_base_model(saved, photos, name, language):
    model = saved(name, language)
    expected = model.theirs.get_qformer_features(model.photos)
    expected = expected if isinstance(expected, torch.Tensor) else expected.last_hidden_state
    found, _ = model.ours.qformer.forward_queries(model.ours.encode_image(model.our_photos(photos)).image_kv)
    assert_close(found, expected)


# -------------------------------------------------------------------------------------------- language

@pytest.mark.parametrize('name, language', GENERATORS, ids=map(ids, GENERATORS))
@torch.no_grad()
def test_logits(saved, photos, name, language):
    model = saved(name, language)
    expected = model.their_logits(model.photos)
    for own, row in zip(model.our_logits(model.our_photos(photos)), expected):
        assert_close(own, row)
    changed = model.their_logits(perturbed(model.photos))
    assert max((one - other).abs().max() for one, other in zip(changed, expected)) > 1e-2


@pytest.mark.parametrize('name, language', WRITERS, ids=map(ids, WRITERS))
@pytest.mark.parametrize('beams', [1, 5])
@torch.no_grad()
def test_texts_are_identical(saved, photos, name, language, beams):
    """Ours in one padded batch, theirs row by row, each with its own end of text."""
    model = saved(name, language)
    texts, lead = their_texts(model, beams)
    assert lead > 1e-3, f'too close to call: {lead}'
    model.ours.generation = dict(num_beams=beams, max_new_tokens=10)
    found = model.ours.predict(model.our_photos(photos), model.samples())
    assert [sample.pred_text for sample in found] == texts
    assert len(set(texts)) == 3, 'the same text for all rows'


@pytest.mark.parametrize('language', ['opt', 'llama'])
@torch.no_grad()
def test_inference_model_takes_a_folder_and_an_image(saved, photos, language):
    """Without a prompt, as transformers' generate without input_ids; the llama's weights are in several files."""
    model = saved('Blip2ForConditionalGeneration', language)
    assert (model.folder / 'model.safetensors.index.json').exists() == (language == 'llama')
    output = model.theirs.generate(pixel_values=model.photos[1:2], do_sample=False, max_new_tokens=30)[0]
    expected = model.tokenizer.decode(output[output != model.image_id], skip_special_tokens=True).strip()
    assert inference_model(str(model.folder), photos[1], device='cpu')['pred_caption'] == expected != ''


def their_texts(model, beams):
    """What transformers writes, and the smallest lead of what was chosen."""
    texts, leads = [], []
    for i, prompt in enumerate(PROMPTS):
        row = torch.tensor([[model.image_id] * NUM_QUERY + model.tokenizer(prompt).input_ids])
        output = model.theirs.generate(
            pixel_values=model.photos[i:i + 1], input_ids=row, attention_mask=torch.ones_like(row), do_sample=False,
            num_beams=beams, max_new_tokens=10, pad_token_id=model.tokenizer.pad_token_id, output_scores=True,
            return_dict_in_generate=True, num_return_sequences=beams, **model.text_for_qformer([prompt]))
        new = output.sequences[0, 1 if model.is_t5 else row.size(1):]
        texts.append(model.tokenizer.decode(new, skip_special_tokens=True).strip())
        if beams == 1:
            best = [score.topk(2).values[0] for score in output.scores]
            leads.append(min(float(pair[0] - pair[1]) for pair in best))
        else:
            leads.append(float(output.sequences_scores[0] - output.sequences_scores[1]))
    return texts, min(leads)
