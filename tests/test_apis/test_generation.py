"""The inferencers that write text, with BLIP: captions, answers that are generated, answers that are chosen."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

import mmblip2.models  # noqa: F401
from mmblip2.apis import (
    ChatInferencer,
    ImageCaptionInferencer,
    VisualQuestionAnsweringInferencer,
    inference_model,
)
from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from word_tokenizer import write_bert

CAPTION = [dict(type='CaptionPrompt', prompt='a small')]
VQA = [dict(type='CleanQuestion'), dict(type='VQAPrompt', template='{}', qformer_text=None)]
ANSWERS = ['red', 'a large blue square', 'two', 'there are three objects']
QUESTIONS = ['what color is the star?', 'how many objects are there?', 'is there a cross?']


def images(count=3):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def blip(tmp_path):
    """Function ``(task, asks=False, **model) -> BlipGeneration`` with ``_config``, redrawn from a seed."""
    folder, words = write_bert(tmp_path, ['a small large red blue green yellow star square circle cross', '?', *ANSWERS,
                                          *(question.rstrip('?') for question in QUESTIONS)])

    def build(task, asks=False, **model):
        med = dict(type='MED', vision_width=16, num_layers=2, width=16, num_heads=2, vocab_size=words + 2,
                   max_positions=64)
        cfg = Config(dict(
            model=dict(
                type='BlipGeneration', text_decoder=med, **(dict(text_encoder=med) if asks else {}), **model,
                vision=dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=2, num_heads=2,
                            final_norm=True),
                tokenizer=dict(type='BertTokenizer', path=folder, enc_token=True)),
            test_dataloader=dict(dataset=dict(pipeline=[
                dict(type='LoadImage'), dict(type='Resize', scale=16), *task, dict(type='PackInputs')]))))
        with DefaultScope.overwrite_default_scope('mmblip2'):
            built = MODELS.build(cfg.model).eval()
        built._config = cfg
        generator = torch.Generator().manual_seed(0)
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.5, generator=generator)
        return built
    return build


def test_captions_with_the_prompt_of_the_config_or_of_the_call(blip):
    model = blip(CAPTION, generation=dict(max_new_tokens=6, min_new_tokens=2))
    caption = ImageCaptionInferencer(model)
    found = caption(images(), batch_size=2)
    batch = caption.prepare(caption.image_rows(images()))
    assert [row['pred_caption'] for row in found] == [s.pred_text for s in model.predict(**batch)]
    assert caption(images(), prompt='a small', batch_size=3) == found
    assert inference_model(model, images()) == found and len({str(row) for row in found}) > 1
    beams = caption(images()[0], num_beams=3, num_captions=2)[0]['pred_caption']
    assert len(beams) == 2 and beams[0] == caption(images()[0], num_beams=3)[0]['pred_caption']
    sampled = [caption(images(), do_sample=True, top_p=0.9, repetition_penalty=1.1, seed=seed, batch_size=size)
               for seed, size in ((0, 1), (0, 3), (1, 1))]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize('task', [VQA, CAPTION])
def test_a_question_is_read_as_it_is(blip, task):
    """With and without a VQAPrompt in the config, whose questions are cleaned."""
    model = blip(task, asks=True, generation=dict(max_new_tokens=9, num_beams=3))
    ask, read = VisualQuestionAnsweringInferencer(model), []
    forward = model.visual_prefix
    model.visual_prefix = lambda pixels, samples: read.extend(s.prompt for s in samples) or forward(pixels, samples)
    found = ask(images(), ['What color is the star?', *QUESTIONS[1:]], batch_size=2)
    assert read == QUESTIONS and [row['question'] for row in found] == ['What color is the star?', *QUESTIONS[1:]]
    assert [ask(image, question)[0] for image, question in zip(images(), QUESTIONS)][1:] == found[1:]
    assert inference_model(model, images()[0], QUESTIONS) == ask(images()[0], QUESTIONS, batch_size=3)


def test_answers_are_chosen_among_the_candidates(blip):
    model = blip(VQA, asks=True, candidates=ANSWERS)
    ask = VisualQuestionAnsweringInferencer(model)
    found = ask(images(), QUESTIONS, batch_size=2)
    assert {row['pred_answer'] for row in found} <= set(ANSWERS)
    assert found == [ask(image, question)[0] for image, question in zip(images(), QUESTIONS)]
    with pytest.raises(ConfigError, match='generation: num_beams=3 has no effect: this model chooses among its '
                                          'candidates; built with candidates=None it generates'):
        ask(images(), QUESTIONS, num_beams=3)


def test_models_are_refused_what_they_were_not_made_for(blip):
    captioner, asked = blip(CAPTION), blip(VQA, asks=True)
    with pytest.raises(ConfigError, match='this BlipGeneration was not made for questions: take a model of question '
                                          'answering, or ImageCaptionInferencer'):
        VisualQuestionAnsweringInferencer(captioner)(images(), QUESTIONS)
    with pytest.raises(ConfigError, match='the test pipeline of this model has no CaptionPrompt, it answers questions'):
        ImageCaptionInferencer(asked)(images())
    with pytest.raises(ConfigError, match=r'a dialogue needs a language model .*\(Blip2Generation\), this is a '
                                          'BlipGeneration: ask single questions with VisualQuestionAnswering'):
        ChatInferencer(asked)
    with pytest.raises(ConfigError, match="generate has no setting 'num_beems'; did you mean 'num_beams'"):
        ImageCaptionInferencer(captioner)(images(), num_beems=3)
