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

from mmblip2.apis import get_model
from mmblip2.errors import ConfigError

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
    with pytest.raises(ConfigError, match='this BlipFeatures has no text encoder'):
        model.ours.tokenize(TEXTS)


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
