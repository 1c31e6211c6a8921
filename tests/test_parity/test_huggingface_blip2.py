"""Whole models equal transformers' BLIP-2 and InstructBLIP on the same (random) weights.

The references are redrawn: queries, biases and norms from N(0, 0.2), so that no term of the sums is invisible, and
every test that compares outputs first shows that they vary and depend on the image.
"""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmblip2 import FeatureExtractor, ImageTextMatchingInferencer, TextToImageRetrievalInferencer
from mmblip2.checkpoints.layouts import recognise
from mmblip2.models.losses import query_text_similarity
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

transformers = pytest.importorskip('transformers')
TRANSFORMERS = int(transformers.__version__.split('.')[0])

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

# Seeds of the weights with which what is generated varies and is decided by more than rounding
SEEDS = {'opt': 5, 't5': 17, 'instruct-llama': 0, 'instruct-t5': 12}
KINDS = list(SEEDS)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Tokenizer folders by name."""
    return write_tokenizers(tmp_path_factory.mktemp('tokenizers'))


def parts(folders, vocab_size=None):
    """Configs of our vision encoder and Q-Former."""
    return dict(
        vision=dict(type='VisionTransformer', image_size=SIDE, patch_size=7, width=32, depth=2, num_heads=4,
                    mlp_width=48),
        qformer=dict(type='QFormer', vision_width=32, num_layers=4, width=40, num_heads=4, mlp_width=56,
                     num_query=NUM_QUERY, max_positions=32, vocab_size=vocab_size),
        tokenizer=dict(type='BertTokenizer', path=folders['bert']) if vocab_size else None)


def draw_images():
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def assert_close(ours, theirs):
    """Equal to 1e-5, and worth comparing."""
    assert theirs.std() > 0.1, f'the reference output is too flat to prove anything: std {theirs.std():.3f}'
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def bert_vocab(folders):
    """Number of ids with [DEC]."""
    return len(MODELS.build(dict(type='BertTokenizer', path=folders['bert'])))


# ------------------------------------------------------------------------------------------ retrieval

@pytest.fixture(scope='module')
def retrieval(folders):
    """Our Blip2Representation and their Blip2ForImageTextRetrieval with the same weights."""
    vocab = bert_vocab(folders)
    torch.manual_seed(0)
    theirs = redraw(transformers.Blip2ForImageTextRetrieval(transformers.Blip2Config(
        vision_config=VISION, qformer_config=dict(QFORMER, vocab_size=vocab, use_qformer_text_input=True),
        num_query_tokens=NUM_QUERY, image_text_hidden_size=8)), seed=0)
    ours = MODELS.build(dict(type='Blip2Representation', embed_dim=8, vision_norm_eps=1e-6, allow_random=True,
                             **parts(folders, vocab))).eval()
    load(ours, theirs, missing={'itc_head.temperature', 'num_steps'}, missing_prefix='itg_head.')
    return ours, theirs


def load(ours, theirs, missing=(), missing_prefix='-'):
    """Fill our model from their state dict; nothing may be left over on either side."""
    state = theirs.state_dict()
    result = ours.load_state_dict(recognise(state).to_ours(state).state, strict=False)
    assert not result.unexpected_keys
    assert {key for key in result.missing_keys if not key.startswith(missing_prefix)} == set(missing)


@torch.no_grad()
def test_contrastive_similarities_equal_transformers(retrieval):
    ours, theirs = retrieval
    images, text = draw_images(), ours.tokenize(TEXTS)
    assert not text.mask.bool().all(), 'no padding in the batch'
    output = theirs(images, text.input_ids, text.mask)
    image_feats = ours.image_features(ours.encode_image(images))
    text_feats = ours.text_features(text)
    assert_close(image_feats, output.image_embeds)
    assert_close(text_feats, output.text_embeds)
    assert_close(query_text_similarity(image_feats, text_feats), output.logits_per_image)


@torch.no_grad()
def test_matching_logits_equal_transformers(retrieval):
    ours, theirs = retrieval
    images, text = draw_images(), ours.tokenize(TEXTS)
    expected = torch.cat([theirs(images.roll(i, 0), text.input_ids, text.mask,
                                 use_image_text_matching_head=True).logits_per_image for i in range(3)])
    encoded = [ours.encode_image(images.roll(i, 0)) for i in range(3)]
    logits = torch.cat([ours.itm_head(ours.qformer.forward_joint(one.image_kv, *text)) for one in encoded])
    assert_close(logits, expected)
    assert (expected[:3] - expected[3:6]).abs().min() > 1e-2, 'another image, the same logits'
    torch.testing.assert_close(ours.score_pairs(encoded[1].image_kv, text), expected[3:6, 1], atol=1e-5, rtol=0)


# ------------------------------------------------------------------- image-grounded text generation (ITG)

@pytest.fixture(scope='module')
def writer(retrieval):
    """Our model with redrawn ITG head, and transformers' BERT head with the same weights."""
    ours, _ = retrieval
    table = ours.qformer.word_embeddings.weight
    with torch.no_grad():  # the embeddings are of size 1; logits too shall be, for their rounding
        redraw(ours.itg_head, seed=2).norm.weight.mul_(0.2)
    head = transformers.models.bert.modeling_bert.BertOnlyMLMHead(transformers.BertConfig(
        vocab_size=len(table), hidden_size=table.size(1))).eval()
    own = ours.itg_head.state_dict()
    bias = dict(bias=own['bias'])
    if 'predictions.decoder.bias' in head.state_dict():
        bias['decoder.bias'] = own['bias']
    head.load_state_dict({f'predictions.{key}': value for key, value in {
        'transform.dense.weight': own['transform.weight'], 'transform.dense.bias': own['transform.bias'],
        'transform.LayerNorm.weight': own['norm.weight'], 'transform.LayerNorm.bias': own['norm.bias'],
        'decoder.weight': table.detach(), **bias}.items()})
    return head


def unilm_mask(text_mask):
    """Written out by hand: queries see queries, text sees queries and text up to itself; bool (B, 1, L, L), or for
    transformers 4.57 float (B, L, L)."""
    rows = []
    for real in text_mask.bool().tolist():
        length = NUM_QUERY + len(real)
        rows.append([[(i >= NUM_QUERY and j <= i and real[j - NUM_QUERY]) if j >= NUM_QUERY else True
                      for j in range(length)] for i in range(length)])
    return torch.tensor(rows)[:, None] if TRANSFORMERS >= 5 else torch.tensor(rows).float()


@torch.no_grad()
def their_text_logits(theirs, head, images, input_ids, text_mask):
    """(B, T, V) of one pass over [queries ; text] under the UniLM mask."""
    patches = theirs.vision_model(images).last_hidden_state
    embeds = theirs.embeddings(input_ids=input_ids, query_embeds=theirs.query_tokens.expand(len(images), -1, -1))
    hidden = theirs.qformer(query_embeds=embeds, query_length=NUM_QUERY, attention_mask=unilm_mask(text_mask),
                            encoder_hidden_states=patches).last_hidden_state
    return head(hidden[:, NUM_QUERY:])


@torch.no_grad()
def test_itg_logits_from_the_query_cache_equal_one_pass_of_transformers(retrieval, writer):
    (ours, theirs), images = retrieval, draw_images()
    text = ours.tokenize(TEXTS)
    expected = their_text_logits(theirs, writer, images, *text)
    _, cache = ours.qformer.forward_queries(ours.encode_image(images).image_kv)
    logits = ours.itg_head(ours.qformer.forward_causal(*text, cache), ours.qformer.word_embeddings.weight)
    real = text.mask.bool()
    assert_close(logits[real], expected[real])

    other = their_text_logits(theirs, writer, images.flip(0), *text)
    assert (other - expected)[real].abs().max() > 1e-2, 'the reference does not look at the image'
    later = text.input_ids.clone()
    later[:, 3] = 7
    changed = (their_text_logits(theirs, writer, images, later, text.mask) - expected).abs().amax(-1)
    assert changed[:, :3].max() == 0 and changed[:, 3:][real[:, 3:]].min() > 1e-3, 'the reference is not causal'


@torch.no_grad()
def test_itg_loss_is_the_hand_calculation_from_dec_to_sep(retrieval, writer):
    """[DEC] is read at position 0 and never predicted; each place predicts the next token; [SEP] is the last."""
    (ours, theirs), images = retrieval, draw_images()
    tokenizer, text = ours.tokenizer, ours.tokenize(TEXTS)
    total, count = 0., 0
    for image, sentence in zip(images, TEXTS):  # alone, so without any padding
        words = tokenizer.tokenizer(sentence, add_special_tokens=False).input_ids
        read = torch.tensor([[tokenizer.dec_id] + words])
        predicted = words + [tokenizer.sep_id]
        log_p = their_text_logits(theirs, writer, image[None], read, torch.ones_like(read))[0].log_softmax(-1)
        smooth = ours.label_smoothing
        for place, token in enumerate(predicted):
            total -= (1 - smooth) * log_p[place, token] + smooth * log_p[place].mean()
        count += len(predicted)
    _, cache = ours.qformer.forward_queries(ours.encode_image(images).image_kv)
    assert ours.label_smoothing == 0.1 and tokenizer.dec_id == len(tokenizer) - 1
    assert text.input_ids[:, 0].unique().tolist() == [tokenizer.tokenizer.cls_token_id]
    torch.testing.assert_close(ours._loss_itg(text, cache), total / count, atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------------- generation

class Pair:
    """Our Blip2Generation and their model with the same weights.

    Attributes:
        instruct (bool): Whether the Q-Former reads the prompt.
        is_t5 (bool): Whether the language model has an encoder.
    """

    def __init__(self, kind, folders):
        family = kind.split('-')[-1]
        self.instruct, self.is_t5 = kind.startswith('instruct'), family == 't5'
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folders[family])
        self.image_id = len(self.tokenizer)  # transformers needs a placeholder beside the tokenizer's own ids
        language = dict(LANGUAGE[family], vocab_size=self.image_id + 1)
        vocab = bert_vocab(folders) if self.instruct else None
        name = 'InstructBlip' if self.instruct else 'Blip2'
        torch.manual_seed(0)
        theirs = getattr(transformers, f'{name}ForConditionalGeneration')(getattr(transformers, f'{name}Config')(
            vision_config=VISION, qformer_config=dict(QFORMER, vocab_size=vocab or 10), text_config=language,
            num_query_tokens=NUM_QUERY, image_token_index=self.image_id))
        if self.is_t5:  # as transformers 5 does it; so each version draws the same numbers
            theirs.language_model.lm_head.weight = theirs.language_model.shared.weight
        self.theirs = redraw(theirs, SEEDS[kind])
        own = dict(type='CausalLM', config=language, tokenizer=folders[family], max_text_len=96)
        if self.is_t5:  # Flan-T5's output layer is not its embedding, which transformers learns from the files
            self.theirs.language_model.lm_head.weight = torch.nn.Parameter(torch.randn(
                self.image_id + 1, 24, generator=torch.Generator().manual_seed(SEEDS[kind])) / 5)
            self.theirs.language_model.save_pretrained(f'{folders[family]}/{kind}')
            own.update(type='Seq2SeqLM', config=None, model=f'{folders[family]}/{kind}')
        self.ours = MODELS.build(dict(type='Blip2Generation', vision_norm_eps=1e-6, allow_random=True,
                                      language_model=own, **parts(folders, vocab))).eval()
        load(self.ours, self.theirs)
        self.lm = self.ours.language_model

    def text_for_qformer(self, prompts):
        if not self.instruct:
            return {}
        text = self.ours.tokenizer(prompts, 32)
        return dict(qformer_input_ids=text.input_ids, qformer_attention_mask=text.mask)

    def samples(self):
        return [DataSample(prompt=prompt, target=target, **(dict(qformer_text=prompt) if self.instruct else {}))
                for prompt, target in zip(PROMPTS, TARGETS)]

    def their_loss(self, images):
        """(loss, logits) of transformers on rows padded by hand, and which logits predict a target."""
        if self.is_t5:
            rows = [[self.image_id] * NUM_QUERY + self.tokenizer(prompt).input_ids for prompt in PROMPTS]
            answers = [self.tokenizer(target).input_ids for target in TARGETS]
            labels = pad(answers, -100)
            predicts = labels != -100
        else:
            rows, answers = [], []
            for prompt, target in zip(PROMPTS, TARGETS):
                start = [self.image_id] * NUM_QUERY + self.tokenizer(prompt).input_ids
                rows.append([self.image_id] * NUM_QUERY + self.tokenizer(f'{prompt} {target}').input_ids
                            + [self.lm.end_id])
                answers.append([-100] * len(start) + rows[-1][len(start):])
            labels = pad(answers, -100)
            predicts = labels.roll(-1, 1) != -100
        ids = pad(rows, self.tokenizer.pad_token_id)
        mask = pad([[1] * len(row) for row in rows], 0)
        output = self.theirs(pixel_values=images, input_ids=ids, attention_mask=mask, labels=labels,
                             **self.text_for_qformer(PROMPTS))
        return output.loss, output.logits, predicts

    def their_ids(self, images, **settings):
        """New ids of each row, generated alone and without padding, and the smallest lead of what was chosen."""
        rows, leads = [], []
        beams = settings.get('num_beams', 1)
        for i, prompt in enumerate(PROMPTS):
            ids = torch.tensor([[self.image_id] * NUM_QUERY + self.tokenizer(prompt).input_ids])
            output = self.theirs.generate(
                pixel_values=images[i:i + 1], input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id, output_scores=True, return_dict_in_generate=True,
                num_return_sequences=beams, **self.text_for_qformer([prompt]), **settings)
            rows.append(until(output.sequences[0, 1 if self.is_t5 else ids.size(1):], settings['eos_token_id']))
            if beams == 1:
                best = [score.topk(2).values[0] for score in output.scores]
                leads.append(min(float(pair[0] - pair[1]) for pair in best))
            else:
                leads.append(float(output.sequences_scores[0] - output.sequences_scores[1]))
        return rows, min(leads)

    def our_ids(self, images, monkeypatch, **settings):
        """New ids of each row, generated together."""
        found = []
        search = self.lm._search
        with monkeypatch.context() as patch:
            patch.setattr(self.lm, '_search', lambda *args: found.append(search(*args)) or found[0])
            patch.setattr(self.ours, 'generation', settings)
            self.ours.predict(images, self.samples())
        return [until(row, settings['eos_token_id']) for row in found[0][:, 1 if self.is_t5 else 0:]]


def pad(rows, value):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value)


def until(row, end_id):
    """Ids (T,) as a list, up to and with the first ``end_id``."""
    row = row.tolist()
    return row[:row.index(end_id) + 1] if end_id in row else row


@pytest.fixture(scope='module')
def pairs(folders):
    """Built on first use, kept for the module."""
    built = {}

    def get(kind):
        if kind not in built:
            built[kind] = Pair(kind, folders)
        return built[kind]

    return get


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_loss_and_logits_equal_transformers(pairs, kind):
    pair, images = pairs(kind), draw_images()
    loss, logits, predicts = pair.their_loss(images)
    found = []
    handle = pair.lm.model.register_forward_hook(lambda module, args, output: found.append(output.logits))
    ours = pair.ours.loss(images, pair.samples())['loss_lm']
    handle.remove()
    assert_close(found[0], logits[predicts])  # ours are of targets alone
    torch.testing.assert_close(ours, loss, atol=1e-5, rtol=0)

    other = draw_images()
    other[:, :, :14] += 0.5
    changed = (pair.their_loss(other)[1][predicts] - logits[predicts]).abs()
    assert changed.max() > 1e-2, 'the reference does not look at the image'


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('beams', [1, 5])
def test_generated_ids_equal_transformers(pairs, kind, beams, monkeypatch):
    """Ours in one padded batch, theirs row by row."""
    pair, images = pairs(kind), draw_images()
    settings = dict(num_beams=beams, max_new_tokens=10, eos_token_id=pair.lm.end_id)
    expected, lead = pair.their_ids(images, **settings)
    assert lead > 1e-3, f'too close to call: {lead}'
    assert pair.our_ids(images, monkeypatch, **settings) == expected
    assert len({tuple(row) for row in expected}) == 3, 'the same text for all rows'

    # the same search with an ending that a row reaches half-way, and that longer rows pay for
    settings.update(dict(eos_token_id=expected[0][4]), **(dict(length_penalty=-1.) if beams > 1 else {}))
    expected, lead = pair.their_ids(images, **settings)
    assert lead > 1e-3, f'too close to call: {lead}'
    assert len(set(map(len, expected))) > 1, 'no row ends early'
    assert pair.our_ids(images, monkeypatch, **settings) == expected


@torch.no_grad()
def test_instruction_read_by_the_qformer_changes_the_loss(pairs):
    pair, images = pairs('instruct-llama'), draw_images()
    samples = pair.samples()
    loss = pair.ours.loss(images, samples)['loss_lm']
    for sample in samples:
        sample.qformer_text = 'two green stars'
    assert (pair.ours.loss(images, samples)['loss_lm'] - loss).abs() > 1e-3


# ------------------------------------------------------------------------------------ feature extractor

def as_files(tmp_path):
    """Three random pictures of the models' size, as files."""
    generator = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / f'{i}.png')
    return tmp_path


def extractor(model, monkeypatch, tmp_path):
    """(A ``FeatureExtractor`` of a model, three image files, their pixel values)."""
    pipeline = [dict(type='LoadImage'), dict(type='PackInputs')]
    monkeypatch.setattr(model, '_config', Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline)))),
                        raising=False)
    extract, folder = FeatureExtractor(model), as_files(tmp_path)
    pixels = extract.prepare(extract.image_rows(folder))['images']
    assert pixels.std() > 0.5
    return extract, folder, pixels


@torch.no_grad()
def test_features_equal_transformers(retrieval, monkeypatch, tmp_path):
    (ours, theirs), state = retrieval, retrieval[1].state_dict()
    extract, folder, pixels = extractor(ours, monkeypatch, tmp_path)
    text = ours.tokenize(TEXTS)
    real = text.mask.bool()
    vision = transformers.Blip2VisionModelWithProjection(theirs.config).eval()
    words = transformers.Blip2TextModelWithProjection(theirs.config).eval()
    for model in (vision, words):
        assert not model.load_state_dict(state, strict=False).missing_keys

    found = extract.extract_features(folder, mode='image')
    output = vision(pixels)
    assert_close(extract.get_image_features(folder), output.last_hidden_state)
    assert_close(found['image_embeds_proj'], output.image_embeds)
    queries = theirs.query_tokens.expand(3, -1, -1)
    seen = theirs.qformer(query_embeds=queries, encoder_hidden_states=output.last_hidden_state).last_hidden_state
    assert_close(found['image_embeds'], seen)
    assert_close(extract.get_qformer_features(folder), seen)

    found = extract.extract_features(texts=TEXTS, mode='text')
    output = words(text.input_ids, text.mask)
    assert_close(found['text_embeds'][real], output.last_hidden_state[real])
    assert_close(found['text_embeds_proj'][real], output.text_embeds[real])
    assert_close(extract.get_text_features(TEXTS, project=True)[:, 0], output.text_embeds[:, 0])

    embeds = theirs.embeddings(input_ids=text.input_ids, query_embeds=queries)
    expected = theirs.qformer(
        query_embeds=embeds, query_length=NUM_QUERY, attention_mask=torch.cat([real.new_ones(3, NUM_QUERY), real], 1),
        encoder_hidden_states=vision(pixels).last_hidden_state).last_hidden_state[:, :NUM_QUERY]
    assert_close(extract.get_qformer_features(folder, TEXTS), expected)
    assert (expected - seen).abs().max() > 1e-2, 'the text changes nothing'


@torch.no_grad()
def test_matching_and_retrieval_scores_equal_transformers(retrieval, monkeypatch, tmp_path):
    ours, theirs = retrieval
    _, folder, pixels = extractor(ours, monkeypatch, tmp_path)
    text = ours.tokenize(TEXTS)
    itm = torch.stack([theirs(pixels.roll(-i, 0), text.input_ids, text.mask,
                              use_image_text_matching_head=True).logits_per_image for i in range(3)])
    itc = theirs(pixels, text.input_ids, text.mask).logits_per_image
    match = ImageTextMatchingInferencer(ours)
    for i, image in enumerate(sorted(folder.iterdir())):
        for j, found in enumerate(match(image, TEXTS)):
            logits = itm[(i - j) % 3, j]
            assert found['itm_score'] == pytest.approx(float(logits.softmax(0)[1]), abs=1e-5)
            assert found['itc_score'] == pytest.approx(float(itc[i, j]), abs=1e-5)
    search = TextToImageRetrievalInferencer(ours, folder, progress=False)
    for j, row in enumerate(search(TEXTS, topk=3)):
        for found in row:
            i = found['sample_idx']
            assert found['match_score'] == pytest.approx(float(itm[(i - j) % 3, j, 1] + itc[i, j]), abs=1e-5)


@torch.no_grad()
def test_features_of_a_generator_equal_transformers(pairs, monkeypatch, tmp_path):
    pair = pairs('opt')
    extract, folder, pixels = extractor(pair.ours, monkeypatch, tmp_path)
    theirs = pair.theirs
    patches = theirs.vision_model(pixels).last_hidden_state
    seen = theirs.qformer(query_embeds=theirs.query_tokens.expand(3, -1, -1),
                          encoder_hidden_states=patches).last_hidden_state
    assert_close(extract.get_image_features(folder), patches)
    assert_close(extract.get_qformer_features(folder), seen)
    prefix = theirs.language_projection(seen)
    scale = prefix.std()  # its weights are of size 1
    assert_close(extract.extract_features(folder, mode='image')['image_embeds_proj'] / scale, prefix / scale)
