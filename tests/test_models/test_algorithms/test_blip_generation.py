import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from PIL import Image

from mmblip2.checkpoints import io
from mmblip2.engine import Runner
from mmblip2.errors import CheckpointError, ConfigError, DataError
from mmblip2.registry import METRICS, MODELS
from mmblip2.structures import DataSample

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'data'))
from word_tokenizer import write_bert

WORDS = ("a an picture of photo small red circle left large blue square two green stars above one yellow cross what "
         "color is the star how many there yes no three ? ' don t").split()
WIDTH, SIDE = 16, 16
PROMPT = 'a picture of '
QUESTIONS = ['what color is the star?', 'how many', 'is there a small red circle left of the large square?']
ANSWERS = ['yes', 'no', 'two green stars', 'a large blue square', 'two', 'three', 'two stars', 'one']


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    """Folder of a tokenizer of these words."""
    return write_bert(tmp_path_factory.mktemp('bert'), WORDS)[0]


def build(bert, asks=False, enc_token=True, std=0.3, **kwargs):
    med = dict(type='MED', vision_width=WIDTH, num_layers=2, width=WIDTH, num_heads=2, vocab_size=len(WORDS) + 7,
               max_positions=48, dropout=0.)
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='BlipGeneration', tokenizer=dict(type='BertTokenizer', path=bert, enc_token=enc_token),
        vision=dict(type='VisionTransformer', image_size=SIDE, patch_size=8, width=WIDTH, depth=2, num_heads=2,
                    qkv_bias='full', final_norm=True),
        text_decoder=med, **(dict(text_encoder=med) if asks else {}), **kwargs))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=std)
    return model.eval()


def batch(prompts, targets=(), seed=1):
    images = torch.randn(len(prompts), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    samples = [DataSample(prompt=prompt) for prompt in prompts]
    for sample, target in zip(samples, targets):
        sample.target = target
    return images, samples


CAPTIONS = ['a small red circle', 'two green stars above one yellow cross', 'three']


def predictions(model, images, samples):
    return [sample.pred_text for sample in model.predict(images, copy.deepcopy(samples))]


def one_by_one(model, images, samples):
    return [predictions(model, images[i:i + 1], samples[i:i + 1])[0] for i in range(len(samples))]


# ------------------------------------------------------------------------------------------ training

@pytest.mark.parametrize('asks', [False, True])
def test_gradient_reaches_every_trainable_and_no_frozen_parameter(bert, asks):
    model = build(bert, asks, frozen=('vision', ), allow_random=True).train()
    model.loss(*batch(QUESTIONS, CAPTIONS))['loss_lm'].backward()
    named = dict(model.named_parameters())
    assert not [name for name, p in named.items() if p.requires_grad and p.grad is None]
    assert all(p.grad is None and not p.requires_grad for name, p in named.items() if name.startswith('vision.'))
    assert {name.split('.')[0] for name in named} == {
        'vision', 'text_decoder', 'lm_head', *(['text_encoder'] if asks else [])}


@torch.no_grad()
def by_hand(model, context, text, first):
    """Losses of the tokens of ``[DEC] text [SEP]`` from place ``first`` on, one text, nothing cut or padded."""
    ids = torch.tensor([[model.tokenizer.dec_id, *model.tokenizer.tokenizer(text).input_ids[1:]]])
    states, _ = model.text_decoder.forward_causal(ids, torch.ones_like(ids), context.kv, context.mask)
    logits = model.lm_head(states, model.text_decoder.word_embeddings.weight)[0]
    return F.cross_entropy(logits[first - 1:-1], ids[0, first:], reduction='none', label_smoothing=0.1)


@pytest.mark.parametrize('prompt, first', [(PROMPT, 4), ('', 1)])
def test_the_prompt_is_no_target_of_a_caption(bert, prompt, first):
    """As the original: "a picture of " and the caption are one text, of which [DEC] a picture of has no loss."""
    model = build(bert)
    images, samples = batch([prompt] * 3, CAPTIONS)
    losses = [by_hand(model, model.visual_prefix(images[i:i + 1], samples[i:i + 1]), prompt + caption, first)
              for i, caption in enumerate(CAPTIONS)]
    assert [len(loss) for loss in losses] == [len(caption.split()) + 1 for caption in CAPTIONS]
    torch.testing.assert_close(model.loss(images, samples)['loss_lm'], torch.cat(losses).mean())
    assert torch.cat(losses).std() > 0.1
    for sample in samples:
        sample.prompt = prompt.strip()  # joined by one space, however it is written
    torch.testing.assert_close(model.loss(images, samples)['loss_lm'], torch.cat(losses).mean())


def test_a_text_is_cut_and_one_without_room_for_its_target_is_refused(bert):
    model = build(bert, max_text_len=6)
    images, samples = batch([PROMPT] * 3, CAPTIONS)
    cut = batch([PROMPT] * 3, ['a', 'two', 'three'])[1]
    torch.testing.assert_close(model.loss(images, samples)['loss_lm'], model.loss(images, cut)['loss_lm'])
    samples[0].prompt = 'a picture of a picture of'
    assert model.loss(images, samples)['loss_lm'].isfinite()
    for sample in samples:
        sample.prompt = 'a picture of a picture of'
    with pytest.raises(ConfigError, match='none of the 3 texts of a batch has room for its target: max_text_len is 6 '
                                          'tokens, prompt and target together, and the longest prompt has 7'):
        model.loss(images, samples)
    with pytest.raises(DataError, match='a training sample has no target: the pipeline needs CaptionPrompt'):
        model.loss(*batch([PROMPT]))


@pytest.mark.parametrize('global_mean', [True, False])
def test_answers_count_by_their_weights(bert, global_mean):
    """The original's loss: of each answer the sum over its tokens, times its weight; all of that by the questions."""
    model = build(bert, True, global_token_mean=global_mean)
    images, samples = batch(QUESTIONS, ['no', 'no', 'no'])
    weights = [{'yes': 0.7, 'two green stars': 0.3}, {'a large blue square': 0.2}, None]
    expected = 0.
    for i, sample in enumerate(samples):
        if weights[i] is not None:
            sample.targets = weights[i]
        context = model.visual_prefix(images[i:i + 1], samples[i:i + 1])
        for answer, weight in (weights[i] or {'no': 1.}).items():
            expected = expected + weight * by_hand(model, context, answer, 1).sum() / 3
    torch.testing.assert_close(model.loss(images, samples)['loss_lm'], expected)


def test_the_question_begins_with_enc_and_is_cut(bert):
    model = build(bert, True, max_question_len=6)
    read = []
    forward = model.text_encoder.forward_joint
    model.text_encoder.forward_joint = lambda kv, ids, mask: read.append(ids.tolist()) or forward(kv, ids, mask)
    model.visual_prefix(*batch(QUESTIONS))
    assert [row[0] for row in read[0]] == [model.tokenizer.enc_id] * 3
    assert [row.index(model.tokenizer.sep_id) + 1 for row in read[0]] == [6, 4, 6]


@pytest.mark.parametrize('candidates', [None, ANSWERS])
def test_padding_of_a_question_changes_nothing_at_all(bert, candidates):
    """transformers' port fails this: it reads the padding, and its scores differ by 0.2 to 0.46."""
    model = build(bert, True, candidates=candidates, generation=dict(max_new_tokens=5))
    images, samples = batch(QUESTIONS, CAPTIONS)
    for sample in samples:
        sample.targets = {'two stars': 0.6, 'no': 0.4}
    before = model.loss(images, samples)['loss_lm'], predictions(model, images, samples)
    kv = model.visual_prefix(images, samples).kv[-1].key
    read = type(model.tokenizer).__call__
    changed = []

    class Other(type(model.tokenizer)):
        def __call__(self, *args):
            text = read(self, *args)
            changed.append(int((text.mask == 0).sum()))
            text.input_ids[text.mask == 0] = 9
            return text

    model.tokenizer.__class__ = Other
    after = model.loss(images, samples)['loss_lm'], predictions(model, images, samples)
    assert changed[0] > 5
    assert torch.equal(before[0], after[0]) and before[1] == after[1]
    assert not torch.equal(kv, model.visual_prefix(images, samples).kv[-1].key), 'the padding was not changed'


# ------------------------------------------------------------------------------------------ generation

@pytest.mark.parametrize('settings', [dict(min_new_tokens=2), dict(num_beams=3, min_new_tokens=3)])
@pytest.mark.parametrize('asks', [False, True])
def test_texts_of_a_batch_are_those_of_each_sample_alone(bert, asks, settings):
    """Prompts of different lengths too, which transformers' port gets wrong."""
    model = build(bert, asks, generation=dict(max_new_tokens=6, **settings))
    prompts = ['what color is the star', 'a small', '', 'a small', 'the large']
    images, samples = batch(prompts)
    expected = one_by_one(model, images, samples)
    assert predictions(model, images, samples) == expected and len(set(expected)) > 2
    model.generation_batch_size = 2
    assert predictions(model, images, samples) == expected


def test_the_text_is_what_follows_the_prompt(bert, monkeypatch):
    model = build(bert)
    said = model.tokenizer.tokenizer.convert_tokens_to_ids("don ' t the star [SEP] yes [PAD]".split())
    monkeypatch.setattr('mmblip2.models.algorithms.blip_generation.search',
                        lambda decoder, head, start, *args, **settings: torch.cat([start, torch.tensor([said])], dim=1))
    assert predictions(model, *batch([PROMPT])) == ["don't the star"]
    assert predictions(model, *batch([''])) == ["don't the star"]


def test_settings_and_lengths_of_the_generation_are_checked(bert):
    with pytest.raises(ConfigError, match="generation of the model: generate has no setting 'num_beems'; did you mean"):
        build(bert, generation=dict(num_beems=3))
    model = build(bert)
    images, samples = batch([PROMPT])
    prefix = model.visual_prefix(images, samples)
    with pytest.raises(ConfigError, match='prompt and new tokens make 49 tokens, but the decoder has 48 positions'):
        model.generate(prefix, [PROMPT], max_new_tokens=45)
    assert len(model.generate(prefix, [PROMPT], max_new_tokens=44)) == 1
    with pytest.raises(ConfigError, match='2 texts a sample .* need as many beams, got num_beams=1'):
        model.generate(prefix, [PROMPT], num_return_sequences=2)
    several, = model.generate(prefix, [PROMPT], num_beams=3, num_return_sequences=2, max_new_tokens=4)
    assert len(several) == 2 and several[0] == model.generate(prefix, [PROMPT], num_beams=3, max_new_tokens=4)[0]


@pytest.mark.parametrize('asks', [False, True])
def test_an_image_that_samples_share_is_encoded_once(bert, asks, monkeypatch):
    model = build(bert, asks)
    images, samples = batch([*QUESTIONS, 'the star', 'a small', 'two'])
    images = images[:2][torch.tensor([0, 1, 0, 1, 1, 0])]
    for sample, image in zip(samples, [0, 1, 0, 1, 1, 0]):
        sample.img_path = f'{image}.jpg'
    alone = [model.visual_prefix(images[i:i + 1], samples[i:i + 1]) for i in range(6)]
    seen, projected = [], []
    forward, project = type(model.vision).forward, model.reader.project_image
    monkeypatch.setattr(type(model.vision), 'forward', lambda self, x: seen.append(len(x)) or forward(self, x))
    monkeypatch.setattr(model.reader, 'project_image', lambda x: projected.append(len(x)) or project(x))
    for size in (None, 4):
        model.generation_batch_size = size
        shared = model.visual_prefix(images, samples)
        assert seen.pop() == 2 and projected.pop() == 2 and not seen and not projected
        assert len(shared) == 6
        for i in range(6):
            rows = slice(None) if shared.mask is None else shared.mask[i].bool()
            for layer, own in zip(shared.kv, alone[i].kv):
                torch.testing.assert_close(layer.key[i][:, rows], own.key[0], atol=1e-5, rtol=0)
    model.train()
    assert len(model.visual_prefix(images, samples)) == 6 and seen == [6], 'in training images are augmented'


# ------------------------------------------------------------------------------------------ ranking

@torch.no_grad()
def pair_by_pair(model, image, sample, topk):
    """Losses of the candidates of one question by their places, every candidate read alone from its [DEC] on."""
    context = model.visual_prefix(image, [sample])
    start = torch.tensor([[model.tokenizer.dec_id]])
    states, _ = model.text_decoder.forward_causal(start, torch.ones_like(start), context.kv, context.mask)
    first = model.lm_head(states, model.text_decoder.word_embeddings.weight)[0, 0].softmax(0)
    tokens = [model.tokenizer.tokenizer(answer).input_ids[1] for answer in ANSWERS]
    order = sorted(range(len(ANSWERS)), key=lambda i: -float(first[tokens[i]]))[:topk]
    return {i: by_hand(model, context, ANSWERS[i], 1).sum() for i in order}


@pytest.mark.parametrize('topk', [1, 3, 128])
def test_ranking_equals_pair_by_pair(bert, topk):
    model = build(bert, True, candidates=ANSWERS, rank_topk=topk)
    images, samples = batch([*QUESTIONS, 'the star', 'what is above the large blue square'] * 2, seed=3)
    expected = [pair_by_pair(model, images[i:i + 1], sample, topk) for i, sample in enumerate(samples)]
    chosen, losses = model.rank(model.visual_prefix(images, samples))
    assert chosen.tolist() == [list(row) for row in expected] and chosen.shape == (10, min(topk, len(ANSWERS)))
    expected_losses = torch.stack([torch.stack(list(row.values())) for row in expected])
    torch.testing.assert_close(losses, expected_losses, atol=1e-4, rtol=0)
    assert expected_losses.std() > 1
    best = [ANSWERS[min(row, key=row.get)] for row in expected]
    assert predictions(model, images, samples) == best and len(set(best)) > 1
    model.generation_batch_size = 3
    assert predictions(model, images, samples) == best


def test_what_a_question_says_is_not_repeated_for_its_candidates(bert):
    model = build(bert, True, candidates=ANSWERS, rank_topk=5)
    images, samples = batch(QUESTIONS)
    read, forward = [], model.text_decoder.forward_causal

    def watch(ids, mask, kv, *args):
        read.append((tuple(ids.shape), len(kv[0].key)))
        return forward(ids, mask, kv, *args)

    model.text_decoder.forward_causal = watch
    model.predict(images, samples)
    # [DEC] once a question; then 5 candidates each, of at most four words of which the last predicts [SEP]
    (first, rows), (second, shared) = read
    assert first == (3, 1) and rows == shared == 3
    assert second[0] == 15 and second[1] <= 4


@pytest.mark.parametrize('name, content, message', [
    ('a.json', '[]', r'the candidates in .*a.json are empty: a model that ranks needs at least one answer'),
    ('a.txt', '\n', r'the candidates in .*a.txt: number 0 is .., expected a text with at least one word'),
    ('a.txt', '', r'the candidates in .*a.txt are empty'),
    ('a.json', '{"yes": 1}', 'expected a list of texts, got a dict'),
    ('a.json', '["yes", 3]', 'number 1 is 3, expected a text'),
    ('a.json', '["yes"', r'cannot be read from .*a.json .*: expected a JSON list of texts'),
    ('a.txt', 'yes\nno\nyes\n', "'yes' stands there twice, as number 0 and 2: take one out")])
def test_wrong_candidates_in_a_file_are_refused(bert, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    model = build(bert, True, candidates=str(tmp_path / name))
    with pytest.raises(DataError, match=message):
        model.predict(*batch(QUESTIONS))
    with pytest.raises(DataError, match=message):
        model.init_weights()  # said before the training


@pytest.mark.parametrize('wrong, message', [
    ([], 'candidates are empty: a model that ranks'), (['yes', 3], 'number 1 is 3, expected a text'),
    (['yes', ' '], "number 1 is ' ', expected a text with at least one word"), (5, 'list of texts, got a int'),
    (['no', 'no'], "candidates: 'no' stands there twice, as number 0 and 1")])
def test_wrong_candidates_in_a_config_are_refused_when_the_model_is_built(bert, wrong, message):
    with pytest.raises(ConfigError, match=message):
        build(bert, True, candidates=wrong)


def test_candidates_need_known_words_a_file_and_a_question(bert, tmp_path):
    model = build(bert, True, candidates=['yes', 'two qwertz', 'no', 'asdf'])
    with pytest.raises(ConfigError, match="does not know every word of 2 of the 4 candidates, the first is 'two qwert"):
        model.predict(*batch(QUESTIONS))
    with pytest.raises(CheckpointError, match='file of the candidates .*none.json not found'):
        build(bert, True, candidates=str(tmp_path / 'none.json')).predict(*batch(QUESTIONS))
    with pytest.raises(ConfigError, match='candidates are answers to questions, and there is no text_encoder'):
        build(bert, candidates=['yes'])
    with pytest.raises(ConfigError, match='rank_topk is 0'):
        build(bert, True, candidates=['yes'], rank_topk=0)


def test_candidates_are_read_from_lists_and_lines(bert, tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(ANSWERS))
    (tmp_path / 'a.txt').write_text('\n'.join(ANSWERS) + '\n')
    images, samples = batch(QUESTIONS)
    expected = predictions(build(bert, True, candidates=ANSWERS), images, samples)
    for name in ('a.json', 'a.txt'):
        assert predictions(build(bert, True, candidates=str(tmp_path / name)), images, samples) == expected


def test_a_ranking_model_gives_one_answer_and_no_setting_has_an_effect(bert):
    model = build(bert, True, candidates=ANSWERS, generation=dict(num_beams=3))
    prefix = model.visual_prefix(*batch(QUESTIONS))
    with pytest.raises(ConfigError, match='num_return_sequences is 2, but a model that chooses among candidates'):
        model.generate(prefix, QUESTIONS, num_return_sequences=2)
    assert model.generation_problems(dict(num_beams=5)) == {
        'num_beams': 'num_beams=5 has no effect: this model chooses among its candidates; built with candidates=None '
                     'it generates'}


@pytest.mark.parametrize('shape', [(3, SIDE, 2 * SIDE), (2, 2, 3, SIDE, SIDE)])
def test_images_of_another_shape_are_refused(bert, shape):
    samples = batch(['two'] * 2, CAPTIONS[:2])[1]
    with pytest.raises(DataError, match=r'BlipGeneration reads one image a sample, got images of shape '
                                        rf'\({", ".join(map(str, shape))}\), expected \(B, 3, H, W\): take EachImage'):
        build(bert).loss(torch.zeros(shape), samples)


def test_parts_that_do_not_fit_are_refused(bert):
    with pytest.raises(ConfigError, match=r'begins with \[ENC\].*set enc_token=True in model.tokenizer'):
        build(bert, True, enc_token=False)
    assert build(bert, enc_token=False)
    with pytest.raises(ConfigError, match='max_text_len is 60, text_decoder.max_positions is 48'):
        build(bert, max_text_len=60)
    with pytest.raises(ConfigError, match='max_text_len is 60, text_encoder.max_positions is 48'):
        build(bert, True, max_question_len=60)
    wide = dict(type='MED', vision_width=24, num_layers=1, width=WIDTH, num_heads=2, vocab_size=60, max_positions=48)
    parts = dict(type='BlipGeneration', tokenizer=dict(type='BertTokenizer', path=bert, enc_token=True),
                 vision=dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=1, num_heads=2))
    with pytest.raises(ConfigError, match='text_decoder.vision_width is 24, but it reads the states of the text '
                                          'encoder, which are 16 wide: set it to that'):
        MODELS.build(dict(parts, text_encoder=dict(wide, vision_width=16), text_decoder=wide))
    with pytest.raises(ConfigError, match='are 16 wide, text_decoder.vision_width is 24: set it to 16'):
        MODELS.build(dict(parts, text_decoder=wide))


# ------------------------------------------------------------------------------------------ transformers

def name_of_ours(name):
    """Our name of a parameter of transformers' BLIP."""
    for theirs, ours in (
            ('vision_model.embeddings.class_embedding', 'vision.cls_token'),
            ('vision_model.embeddings.position_embedding', 'vision.pos_embed'),
            ('vision_model.embeddings.patch_embedding.', 'vision.patch_embed.'),
            ('vision_model.encoder.layers.', 'vision.blocks.'), ('vision_model.post_layernorm.', 'vision.norm.'),
            ('layer_norm', 'norm'), ('self_attn.qkv', 'attn.qkv'), ('self_attn.projection', 'attn.proj'),
            ('text_decoder.cls.predictions.transform.dense.', 'lm_head.transform.'),
            ('text_decoder.cls.predictions.transform.LayerNorm.', 'lm_head.norm.'),
            ('text_decoder.cls.predictions.bias', 'lm_head.bias'), ('text_decoder.bert.', 'text_decoder.'),
            ('embeddings.LayerNorm.', 'embedding_norm.'), ('embeddings.word', 'word'), ('embeddings.posi', 'posi'),
            ('encoder.layer.', 'layers.'), ('crossattention.self.', 'cross_attention.'),
            ('crossattention.output.dense', 'cross_attention.output'), ('attention.output.dense', 'attention.output'),
            ('crossattention.output.LayerNorm', 'cross_attention_norm'), ('attention.self.', 'attention.'),
            ('attention.output.LayerNorm', 'attention_norm'), ('intermediate.dense', 'mlp.fc1'),
            ('output.dense', 'mlp.fc2'), ('output.LayerNorm', 'mlp_norm')):
        name = name.replace(theirs, ours)
    return name


def of_transformers(bert, asks, **generation):
    """transformers' model with other weights than those of a beginning, and ours with the same."""
    transformers = pytest.importorskip('transformers')
    model = build(bert, asks, generation=generation)
    tokenizer = model.tokenizer
    text = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=4 * WIDTH,
                vocab_size=len(WORDS) + 7, max_position_embeddings=48, bos_token_id=tokenizer.dec_id,
                eos_token_id=tokenizer.sep_id, sep_token_id=tokenizer.sep_id, pad_token_id=tokenizer.pad_id)
    config = transformers.BlipConfig(text_config=text, vision_config=dict(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=4 * WIDTH, image_size=SIDE,
        patch_size=8, layer_norm_eps=1e-6))
    kind = 'BlipForQuestionAnswering' if asks else 'BlipForConditionalGeneration'
    theirs = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in theirs.named_parameters():
        scale = 0.3 if 'vision' in name else 0.6
        parameter.data.normal_(0, scale, generator=generator).add_(float('norm' in name.lower() and 'weight' in name))
    state = {name_of_ours(name): value for name, value in theirs.state_dict().items() if 'decoder.weight' not in name
             and 'decoder.bias' not in name and 'position_ids' not in name}
    state['vision.cls_token'] = state['vision.cls_token'].view_as(model.vision.cls_token)
    state['vision.pos_embed'] = state['vision.pos_embed'].view_as(model.vision.pos_embed)
    model.load_state_dict(state)
    return theirs, model


def decoded(model, rows, skip=0):
    return [model.tokenizer.tokenizer.decode(row[skip:], skip_special_tokens=True,
                                             clean_up_tokenization_spaces=True).strip() for row in rows]


SEARCHES = [dict(), dict(num_beams=3), dict(num_beams=3, min_new_tokens=5, length_penalty=0.5),
            dict(num_beams=2, repetition_penalty=1.1)]


@pytest.mark.parametrize('settings', SEARCHES)
def test_captions_are_those_of_transformers(bert, settings):
    theirs, ours = of_transformers(bert, False, max_new_tokens=9, **settings)
    images, samples = batch([PROMPT] * 6)
    ids = ours.tokenizer([PROMPT] * 6, 48).input_ids
    expected = decoded(ours, theirs.generate(images, ids.clone(), max_new_tokens=9, **settings), ids.size(1) - 1)
    assert len(set(expected)) > 2 and any(expected)
    assert predictions(ours, images, samples) == expected
    images, samples = batch([''] * 6, seed=2)
    expected = decoded(ours, theirs.generate(images, max_new_tokens=9, **settings))
    assert predictions(ours, images, samples) == expected and len(set(expected)) > 2


@pytest.mark.parametrize('settings', SEARCHES)
def test_answers_are_those_of_transformers(bert, settings):
    """It neither masks padding nor puts [ENC] in front: one question at a time, with our ids."""
    theirs, ours = of_transformers(bert, True, max_new_tokens=6, **settings)
    images, samples = batch([*QUESTIONS, 'the star', 'a large square'], seed=4)
    expected = []
    for i, sample in enumerate(samples):
        ids = ours.tokenizer([sample.prompt], 35).begin_with(ours.tokenizer.enc_id).input_ids
        expected += decoded(ours, theirs.generate(ids, images[i:i + 1], max_new_tokens=6, **settings))
    assert predictions(ours, images, samples) == expected and len(set(expected)) > 2


def test_losses_are_those_of_transformers(bert):
    theirs, ours = of_transformers(bert, False)
    ours.label_smoothing = 0.
    images, samples = batch([''] * 3, CAPTIONS)
    ids, mask = ours.tokenizer(CAPTIONS, 40).begin_with(ours.tokenizer.dec_id)
    with torch.no_grad():
        expected = theirs(images, ids, mask, labels=ids.masked_fill(mask == 0, -100)).loss
    torch.testing.assert_close(ours.loss(images, samples)['loss_lm'], expected, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------ the Runner

@METRICS.register_module(force=True)
class Texts(BaseMetric):
    """Keeps what was predicted, by the sample's place."""
    default_prefix = 'texts'
    found: dict = {}

    def process(self, data_batch, data_samples):
        self.results += [(sample['sample_idx'], sample['pred_text']) for sample in data_samples]

    def compute_metrics(self, results):
        Texts.found = dict(results)
        return dict(count=len(results))


def write_data(root):
    """Six images, a caption and a question with ten answers each, in LAVIS's layout."""
    rows = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f'{i}.png')
        rows.append(dict(image=f'{i}.png', caption=CAPTIONS[i % 3], question=QUESTIONS[i % 3], question_id=i,
                         image_id=i, answer=['yes'] * 7 + ANSWERS[1:4]))
    (root / 'train.json').write_text(json.dumps(rows))
    (root / 'test.json').write_text(json.dumps([dict(row, caption=[row['caption']]) for row in rows]))


def runner_config(root, bert, work_dir, asks, **model):
    kind = dict(type='COCOVQA') if asks else dict(type='COCOCaption')
    file = 'question_file' if asks else 'ann_file'
    task = dict(type='VQAPrompt', template='{}', qformer_text=None, every_answer=True) if asks else dict(
        type='CaptionPrompt', prompt=PROMPT)
    pipeline = [dict(type='LoadImage'), dict(type='Resize', scale=SIDE), task, dict(type='PackInputs')]
    loader = dict(batch_size=4, num_workers=0, collate_fn=dict(type='pseudo_collate'))
    med = dict(type='MED', vision_width=WIDTH, num_layers=2, width=WIDTH, num_heads=2, vocab_size=len(WORDS) + 7,
               max_positions=48, dropout=0.1)
    test = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
        **kind, **{file: 'test.json'}, data_root=str(root), pipeline=pipeline, test_mode=True))
    return Config(dict(
        default_scope='mmblip2', work_dir=str(work_dir), randomness=dict(seed=0),
        model=dict(
            type='BlipGeneration', text_decoder=med, **(dict(text_encoder=med) if asks else {}), **model,
            tokenizer=dict(type='BertTokenizer', path=bert, enc_token=True), frozen=('vision', ), allow_random=True,
            vision=dict(type='VisionTransformer', image_size=SIDE, patch_size=8, width=WIDTH, depth=2, num_heads=2,
                        qkv_bias='full', final_norm=True)),
        train_dataloader=dict(
            loader, sampler=dict(type='SeekableInfiniteSampler', shuffle=True, seed=1),
            dataset=dict(**kind, **{file: 'train.json'}, data_root=str(root), pipeline=pipeline)),
        train_cfg=dict(type='SeekIterLoop', max_iters=4, val_interval=4), val_cfg=dict(), test_cfg=dict(),
        val_dataloader=test, test_dataloader=test, val_evaluator=dict(type='Texts'),
        test_evaluator=dict(type='Texts'),
        optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float32', constructor='TrainableOptimWrapperConstructor',
                           optimizer=dict(type='AdamW', lr=1e-2)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=2),
                           checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))))


@pytest.mark.parametrize('asks, model', [
    (False, dict(generation=dict(max_new_tokens=6, num_beams=2))), (True, dict(candidates=ANSWERS, rank_topk=4))],
    ids=['caption', 'rank'])
def test_trained_resumed_and_tested_by_the_runner(bert, tmp_path, asks, model):
    write_data(tmp_path)
    runner = Runner.from_cfg(runner_config(tmp_path, bert, tmp_path / 'a', asks, **model))
    runner.train()
    validated, whole = Texts.found, runner.bare_model.state_dict()
    assert len(validated) == 6 and set(map(type, validated.values())) == {str}

    cfg = runner_config(tmp_path, bert, tmp_path / 'b', asks, **model)
    cfg.train_cfg.max_iters = 2
    Runner.from_cfg(cfg).train()
    cfg.train_cfg.max_iters, cfg.resume = 4, True
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert Texts.found == validated
    assert all(torch.equal(value, whole[key]) for key, value in resumed.bare_model.state_dict().items())

    cfg = runner_config(tmp_path, bert, tmp_path / 'c', asks, **model)
    cfg.load_from = str(tmp_path / 'a')
    Texts.found = {}
    Runner.from_cfg(cfg).test()
    assert Texts.found == validated
    saved = io.read_checkpoint(str(tmp_path / 'a' / 'iter_4.pth'))['state_dict']
    assert not [key for key in saved if key.startswith('vision.')] and 'lm_head.bias' in saved
