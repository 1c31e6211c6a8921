"""Every adapter learns: eight rendered scenes come back as their exact captions, and are found by them.

No part is frozen and none has dropout. Training ends when the loss proves what is asserted afterwards, never after a
number of steps, so that other numerics change the time it takes and not the result.
"""
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmblip2.evaluation.functional import retrieval_recall
from mmblip2.models.losses import query_text_similarity
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'data'))
from word_tokenizer import write_bert

SCRIPT = Path(__file__).resolve().parents[3] / 'tools' / 'dataset_converters' / 'make_shapes.py'
SIDE, PATCH, WIDTH, MOST_STEPS = 36, 12, 32, 2000
PROMPT = 'a photo of'


@MODELS.register_module(force=True)
class FourConvolutions(nn.Sequential):
    """A small convolutional network without any state but its weights."""

    def __init__(self, width):
        super().__init__(nn.Conv2d(3, width, 3, stride=3), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
                         nn.Conv2d(width, width, 4, stride=4), nn.GELU(), nn.Conv2d(width, width, 1))


VISION = dict(
    vit=dict(type='VisionTransformer', image_size=SIDE, patch_size=PATCH, width=WIDTH, depth=2, num_heads=2),
    mmpretrain=dict(
        type='MMPretrainBackbone', backbone='mmpretrain.VisionTransformer', image_size=SIDE, img_size=SIDE,
        patch_size=PATCH, out_type='raw',
        arch=dict(embed_dims=WIDTH, num_layers=2, num_heads=2, feedforward_channels=2 * WIDTH)),
    huggingface=dict(
        type='HFVisionEncoder', config=dict(
            model_type='vit', image_size=SIDE, patch_size=PATCH, hidden_size=WIDTH, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=2 * WIDTH)),
    cnn=dict(type='FeatureMapEncoder', module=dict(type='FourConvolutions', width=WIDTH), image_size=SIDE))
DECODER = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
LANGUAGE = dict(
    opt=dict(DECODER, model_type='opt', word_embed_proj_dim=WIDTH, ffn_dim=2 * WIDTH, dropout=0.),
    llama=dict(DECODER, model_type='llama', num_key_value_heads=1, intermediate_size=2 * WIDTH),
    qwen2=dict(DECODER, model_type='qwen2', num_key_value_heads=1, intermediate_size=2 * WIDTH),
    gpt2=dict(model_type='gpt2', n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0., embd_pdrop=0.,
              attn_pdrop=0.),
    t5=dict(model_type='t5', d_model=WIDTH, d_kv=16, d_ff=2 * WIDTH, num_layers=2, num_heads=2, dropout_rate=0.,
            feed_forward_proj='gated-gelu', tie_word_embeddings=False))  # the shape of Flan-T5


@pytest.fixture(scope='module')
def scenes():
    """Eight images, uint8 (3, 36, 36), and a caption of each, of all five wordings."""
    spec = importlib.util.spec_from_file_location('make_shapes', SCRIPT)
    make_shapes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_shapes)
    shapes = make_shapes.load_shapes()
    rng = np.random.default_rng(0)
    drawn = [shapes.sample_scene(rng) for _ in range(8)]
    images = [torch.from_numpy(np.array(shapes.render(scene, SIDE))).permute(2, 0, 1) for scene in drawn]
    captions = [shapes.captions(scene)[i % 5].text for i, scene in enumerate(drawn)]
    assert len(set(captions)) == 8
    return images, captions


@pytest.fixture(scope='module')
def words(scenes, tmp_path_factory):
    """Folder of a tokenizer of words, not trained; </s> stands before and after a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    words = sorted({word for text in [PROMPT, *scenes[1]] for word in text.split()})
    vocab = {word: i for i, word in enumerate(['<pad>', '</s>', '<unk>', '\n', *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, '<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(' ', 'removed')
    tokenizer.post_processor = processors.TemplateProcessing(single='</s> $A', special_tokens=[('</s>', 1)])
    folder = str(tmp_path_factory.mktemp('words'))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='</s>', eos_token='</s>', pad_token='<pad>',
                            unk_token='<unk>').save_pretrained(folder)
    return folder


def build(vision, language, words):
    torch.manual_seed(0)
    return MODELS.build(dict(
        type='Blip2Generation', vision=VISION[vision], frozen=(), generation=dict(max_new_tokens=40),
        qformer=dict(type='QFormer', vision_width=WIDTH, num_layers=2, width=WIDTH, num_heads=2, num_query=4,
                     dropout=0.),
        language_model=dict(type='Seq2SeqLM' if language == 't5' else 'CausalLM', config=LANGUAGE[language],
                            tokenizer=words),
        data_preprocessor=dict(type='mmblip2.ImageTextPreprocessor', image_size=SIDE)))


def fit(model, data, is_done):
    """Train on one batch until ``is_done(losses)`` says so of the weights as they are."""
    optimizer = torch.optim.Adam(model.parameters(), 4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 500 / max(500, step))
    for _ in range(MOST_STEPS):
        losses = model.train()(**model.data_preprocessor(data, True), mode='loss')
        if is_done(losses):
            return
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        schedule.step()
    pytest.fail(f'not learned in {MOST_STEPS} steps: {losses}')


@pytest.mark.parametrize('vision, language', [
    *(('vit', language) for language in LANGUAGE), *((vision, 'opt') for vision in VISION if vision != 'vit')])
def test_eight_scenes_come_back_as_their_exact_captions(vision, language, scenes, words):
    if vision == 'mmpretrain':
        pytest.importorskip('mmpretrain')
    images, captions = scenes
    model = build(vision, language, words)
    samples = [DataSample(prompt=PROMPT, target=caption) for caption in captions]
    tokens = sum(len(caption.split()) + 1 for caption in captions)
    # 0.5 nats over all tokens together: every one has a probability above 0.6, so greedy search must find it
    fit(model, dict(inputs=images, data_samples=samples), lambda losses: losses['loss_lm'] < 0.5 / tokens)

    def predict(indices):
        asked = [DataSample(prompt=PROMPT) for _ in indices]
        return [sample.pred_text for sample in model.eval().test_step(
            dict(inputs=[images[i] for i in indices], data_samples=asked))]

    assert predict(range(8)) == captions
    assert [predict([i])[0] for i in range(8)] == captions
    assert predict([5, 2, 7]) == [captions[i] for i in (5, 2, 7)]


@torch.no_grad()
def score(model, images, captions):
    """ITC similarities and ITM logits, (8, 8) each, images by captions."""
    batch = model.eval().data_preprocessor(dict(inputs=images), False)
    encoded, text = model.encode_image(batch['images']), model.tokenize(captions)
    itc = query_text_similarity(model.image_features(encoded), model.text_features(text))
    itm = torch.stack([model.score_pairs(encoded.rows(slice(i, i + 1)).image_kv, text) for i in range(len(images))])
    return itc, itm


def margin(scores):
    """How much higher every true pair scores than all others of its image and of its caption; negative: it does not."""
    others = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return (scores.diag() - torch.maximum(others.amax(0), others.amax(1))).min()


def test_eight_scenes_are_found_by_their_captions_and_the_captions_by_them(scenes, tmp_path):
    images, captions = scenes
    folder, words = write_bert(tmp_path, captions)
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='Blip2Representation', vision=VISION['vit'], frozen=(), embed_dim=WIDTH,
        qformer=dict(type='QFormer', vision_width=WIDTH, num_layers=2, width=WIDTH, num_heads=2, num_query=4,
                     dropout=0., vocab_size=words + 1),
        tokenizer=dict(type='BertTokenizer', path=folder),
        data_preprocessor=dict(type='mmblip2.ImageTextPreprocessor', image_size=SIDE)))
    samples = [DataSample(text=caption, image_id=i) for i, caption in enumerate(captions)]
    assert min(map(margin, score(model, images, captions))) < 0

    def is_done(losses):  # the losses see a few of the 64 pairs, so they only say when it is worth looking at all
        if losses['loss_itc'] > 1. or losses['loss_itm'] > 0.1:
            return False
        itc, itm = score(model, images, captions)
        return margin(itc) > 0.05 and margin(itm) > 1.

    fit(model, dict(inputs=images, data_samples=samples), is_done)
    for scores in score(model, images, captions):
        own = [[i] for i in range(8)]
        assert retrieval_recall(scores, own, [1]) == retrieval_recall(scores.T, own, [1]) == {1: 100.}
    flipped = score(model, images[::-1], captions)[0]
    assert retrieval_recall(flipped, [[i] for i in range(8)], [1])[1] == 0


def blip(folder, words, **kwargs):
    """A BLIP that writes; with ``text_encoder=True`` one that is asked."""
    med = dict(type='MED', vision_width=WIDTH, num_layers=2, width=WIDTH, num_heads=2, vocab_size=words + 2,
               max_positions=64, dropout=0.)
    if kwargs.pop('text_encoder', False):
        kwargs['text_encoder'] = med
    torch.manual_seed(0)
    return MODELS.build(dict(
        type='BlipGeneration', vision=dict(VISION['vit'], final_norm=True, qkv_bias='full'), text_decoder=med,
        tokenizer=dict(type='BertTokenizer', path=folder, enc_token=True), label_smoothing=0.,
        data_preprocessor=dict(type='mmblip2.ImageTextPreprocessor', image_size=SIDE), **kwargs))


def test_eight_scenes_come_back_as_the_captions_of_blip(scenes, tmp_path):
    images, captions = scenes
    model = blip(*write_bert(tmp_path, [PROMPT, *captions]), generation=dict(max_new_tokens=30))
    samples = [DataSample(prompt=PROMPT, target=caption) for caption in captions]
    tokens = sum(len(caption.split()) + 1 for caption in captions)
    fit(model, dict(inputs=images, data_samples=samples), lambda losses: losses['loss_lm'] < 0.5 / tokens)

    def predict(indices):
        return [sample.pred_text for sample in model.eval().test_step(
            dict(inputs=[images[i] for i in indices], data_samples=[DataSample(prompt=PROMPT) for _ in indices]))]

    assert predict(range(8)) == captions and predict([5, 2]) == [captions[5], captions[2]]
    assert predict(range(7, -1, -1)) == captions[::-1]


def test_blip_answers_two_questions_about_eight_scenes(scenes, tmp_path):
    """Every image has an answer of its own to each question, generated and found among the candidates."""
    images, _ = scenes
    questions = ['what', 'which number is it']
    answers = [[f'{first} {second}' for first in ('red', 'blue') for second in ('star', 'cross', 'square', 'circle')],
               ['one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight']]
    candidates = [answer for group in answers for answer in group]
    model = blip(*write_bert(tmp_path, questions + candidates), generation=dict(max_new_tokens=5, num_beams=3),
                 text_encoder=True)
    samples = [DataSample(prompt=questions[q], targets={answers[q][i]: 1.}) for q in range(2) for i in range(8)]
    # 0.5 nats over all answers together: every one has a probability above 0.6
    fit(model, dict(inputs=images * 2, data_samples=samples), lambda losses: losses['loss_lm'] < 0.5 / 16)

    def predict(order):
        asked = [DataSample(prompt=samples[i].prompt) for i in order]
        return [sample.pred_text for sample in model.eval().test_step(
            dict(inputs=[images[i % 8] for i in order], data_samples=asked))]

    order = [15, 0, 8, 7, 3, 12]
    assert predict(range(16)) == candidates and predict(order) == [candidates[i] for i in order]
    model.candidates = candidates
    assert predict(range(16)) == candidates and predict(order) == [candidates[i] for i in order]
