"""VisualQuestionAnsweringInferencer: which question goes with which image, templates, and what is refused."""
import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.apis import VisualQuestionAnsweringInferencer
from mmblip2.errors import ConfigError, DataError

VQA = [dict(type='CleanQuestion'), dict(type='VQAPrompt', template='Q: {} A:', qformer_text='{}')]
QUESTIONS = ['what color is the star?', 'how many objects are there?', 'is there a cross?']


def images(count=3):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def vqa(tiny_generator):
    return VisualQuestionAnsweringInferencer(tiny_generator(VQA, reads_text=True))


@pytest.fixture
def zero_shot(tiny_generator):
    return VisualQuestionAnsweringInferencer(
        tiny_generator([dict(type='CaptionPrompt', prompt='a photo of')], generation=dict(min_new_tokens=4)))


def answers(results):
    return [result['pred_answer'] for result in results]


def test_each_image_gets_its_question(vqa):
    alone = [vqa(image, question)[0] for image, question in zip(images(), QUESTIONS)]
    assert [list(result) for result in alone] == [['question', 'pred_answer']] * 3
    assert [result['question'] for result in alone] == QUESTIONS
    for size in (1, 2, 3):
        assert vqa(images(), QUESTIONS, batch_size=size) == alone
    assert vqa(iter(images()), iter(QUESTIONS), batch_size=2) == alone
    batch = vqa.prepare(dict(row, question=question) for row, question in zip(vqa.image_rows(images()), QUESTIONS))
    assert answers(alone) == [sample.pred_text for sample in vqa.model.predict(**batch)]
    assert len(set(answers(alone))) > 1


def test_one_question_for_all_images_and_several_for_one(vqa):
    assert vqa(images(), QUESTIONS[0]) == vqa(images(), [QUESTIONS[0]] * 3)
    assert vqa((image for image in images()), QUESTIONS[0]) == vqa(images(), QUESTIONS[0])
    one = images()[0]
    assert vqa(one, QUESTIONS, batch_size=2) == vqa([one] * 3, QUESTIONS) == vqa(one, iter(QUESTIONS))
    assert vqa([], QUESTIONS[0]) == vqa(one, []) == []


def test_another_number_of_questions_is_refused(vqa):
    with pytest.raises(DataError, match='got 2 questions for 3 images: give one question for each image, or one text'):
        vqa(images(), QUESTIONS[:2])
    with pytest.raises(DataError, match='got 3 questions for 1 images'):
        vqa(images(1), QUESTIONS)
    for some_images, some_questions, message in ((iter(images()), QUESTIONS[:2], 'got 2 questions for 3 images'),
                                                 (images(), iter(QUESTIONS[:1]), 'got 1 questions for 2 images'),
                                                 (iter(images(1)), iter(QUESTIONS), 'got 2 questions for 1 images')):
        with pytest.raises(DataError, match=message):
            vqa(some_images, some_questions)


@pytest.mark.parametrize('question', ['', '  \n', '...'])
def test_an_empty_question_is_refused(vqa, question):
    with pytest.raises(DataError, match='question 1 is empty .*expected a text with at least one word'):
        vqa(images(2), ['a?', question])
    with pytest.raises(DataError, match='question 0 is empty'):
        vqa(images(2), question)


def test_what_is_no_text_is_refused(vqa):
    with pytest.raises(DataError, match='question 1 is 5: expected a text'):
        vqa(images(2), ['a?', 5])
    with pytest.raises(DataError, match='questions are a text, or a list of texts, got None'):
        vqa(images(2), None)


def given(inferencer, *args, **kwargs):
    """(prompt, qformer_text) of what the model was given, and the question that comes back."""
    sample, = inferencer(*args, return_datasamples=True, **kwargs)
    return sample.prompt, sample.get('qformer_text'), sample.question


def test_template_is_that_of_the_config_unless_one_is_given(vqa, zero_shot, tiny_generator):
    asked = 'Is it "Red"?'
    assert given(vqa, images(1), asked) == ('Q: is it red? A:', 'is it red?', asked)
    assert given(vqa, images(1), asked, template='{} Answer:') == ('is it red? Answer:', 'is it red?', asked)
    assert given(zero_shot, images(1), asked) == ('Question: is it red? Answer:', None, asked)
    reader = VisualQuestionAnsweringInferencer(
        tiny_generator([dict(type='CaptionPrompt', prompt='x', qformer_text='y')], reads_text=True))
    assert given(reader, images(1), asked) == ('Question: is it red? Answer:', 'is it red?', asked)
    for template in ('no place', '{} {}'):
        with pytest.raises(ConfigError, match='template of VQAPrompt needs exactly one {} for the question'):
            vqa(images(1), asked, template=template)


def test_zero_shot_answers_are_searched_as_in_the_paper_not_as_captions(zero_shot):
    settings = []
    zero_shot.model.language_model.generate = lambda prefix, prompts, **kwargs: settings.append(kwargs) or ['red']
    zero_shot(images(1), QUESTIONS[0])
    zero_shot(images(1), QUESTIONS[0], num_beams=1)
    paper = dict(num_beams=5, max_new_tokens=10, min_new_tokens=None, length_penalty=-1.)
    assert settings == [paper, dict(paper, num_beams=1)]


def test_question_longer_than_the_context_is_refused(vqa):
    with pytest.raises(ConfigError, match=r'make \d+ tokens, but the language model has 64 positions: shorten the pro'):
        vqa(images(1), 'what is it ' * 20 + '?')


def test_pictures_show_question_and_answer(vqa, tmp_path):
    sample, = vqa(images(1), QUESTIONS[0], return_datasamples=True)
    assert vqa.lines(sample) == [f'question: {QUESTIONS[0]}', f'answer: {sample.pred_text}']
    vqa(images(1)[0], QUESTIONS[:2], show_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['image_000000.png', 'image_000001.png']


def test_a_model_that_writes_no_text_is_refused(vqa):
    model = torch.nn.Linear(1, 1)
    model._config = vqa.config
    with pytest.raises(ConfigError, match='needs a model that writes text .*this is a Linear'):
        VisualQuestionAnsweringInferencer(model)
