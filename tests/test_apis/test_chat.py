"""ChatInferencer: turns are kept, the oldest ones give way to the context, the image is encoded once."""
import logging

import numpy as np
import pytest
from PIL import Image

from mmblip2.apis import ChatInferencer
from mmblip2.apis import chat as chat_module
from mmblip2.errors import ConfigError, DataError

VQA = [dict(type='CleanQuestion'), dict(type='VQAPrompt', template='Q: {} A:', qformer_text='{}')]


def image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def chat(tiny_generator):
    """A dialogue whose language model says 'one', 'two' ... and notes what it was asked."""
    chat = ChatInferencer(tiny_generator([dict(type='CaptionPrompt', prompt='a photo of')]))
    chat.read = []
    chat.settings_seen = []

    def generate(prefix, prompts, **settings):
        chat.read += prompts
        chat.settings_seen.append(settings)
        return [['one', 'two.', 'three', 'four', 'five', 'six', 'seven'][len(chat.history)]]
    chat.model.language_model.generate = generate
    return chat


def test_turns_are_read_again_and_kept(chat):
    chat.max_context = 500  # the language model is not asked
    chat.start(image())
    assert chat('What is it?') == dict(question='What is it?', pred_answer='one', dropped_turns=0)
    chat('and that?')
    chat('why?')
    first, second = 'Question: what is it? Answer:', 'Question: and that? Answer:'
    assert chat.read == [first, f'{first} one. {second}', f'{first} one. {second} two. Question: why? Answer:']
    assert chat.history == [dict(question='What is it?', pred_answer='one'),
                            dict(question='and that?', pred_answer='two.'),
                            dict(question='why?', pred_answer='three')]


def test_a_new_image_or_reset_forgets_the_turns(chat):
    chat('what is it?', image=image())
    chat.reset()
    assert chat.history == [] and chat('and that?')['pred_answer'] == 'one'  # the image stays
    chat('what now?', image(1))
    assert chat.read == [f'Question: {q} Answer:' for q in ('what is it?', 'and that?', 'what now?')]
    assert len(chat.history) == 1


def test_the_image_is_encoded_once(chat):
    calls = []
    chat.model.vision.register_forward_hook(lambda module, args, output: calls.append(args[0].shape))
    chat.start(image())
    for question in ('what?', 'where?', 'why?'):
        chat(question)
    assert calls == [(1, 3, 16, 16)]


@pytest.mark.parametrize('reads_text', [False, True])
def test_a_class_with_a_prefix_of_its_own_is_used_as_it_is(tiny_generator, reads_text):
    from mmblip2.models import Blip2Generation

    class OneToken(Blip2Generation):

        def visual_prefix(self, images, data_samples):
            texts.append(data_samples[0].get('qformer_text'))
            return super().visual_prefix(images, data_samples).mean(1, keepdim=True)
    texts = []
    model = tiny_generator(VQA if reads_text else [dict(type='CaptionPrompt')], reads_text)
    model.__class__ = OneToken
    widths = []
    model.language_model.generate = lambda prefix, prompts, **settings: widths.append(prefix.shape) or ['a']
    chat = ChatInferencer(model).start(image())
    for question in ('what?', 'why?'):
        chat(question)
    assert widths == [(1, 1, 16)] * 2 and texts == (['what?', 'why?'] if reads_text else [None])


def test_the_oldest_turns_give_way_to_the_context(chat, monkeypatch):
    told = []
    monkeypatch.setattr(chat_module, 'say', lambda text, level: told.append((text, level)))
    chat.start(image())
    dropped = [chat(f'is it {word}?', max_new_tokens=5)['dropped_turns'] for word in ('red', 'blue', 'green', 'small')]
    assert dropped[0] == 0 and dropped == sorted(dropped) and dropped[-1] > 0
    lm = chat.model.language_model
    assert lm.max_context == 64
    for text, count in zip(chat.read, dropped):
        turns = text.split('Question: ')[1:]
        shown = len(turns) - 1
        assert turns[-1].split('?')[0] == ['is it red', 'is it blue', 'is it green', 'is it small'][shown + count]
        assert lm.count_context(3, text, 5) <= 64
        if count:  # one turn more would not have fitted
            longer = f'{chat._said[count - 1]} {text}'
            assert lm.count_context(3, longer, 5) > 64
    assert len(chat.history) == 4  # all of them, read or not
    assert len(told) == 1 and 'the 64 tokens' in told[0][0] and told[0][1] == logging.WARNING


def test_max_turns(chat):
    for most, read in ((0, 1), (1, 2), (5, 3)):
        chat.max_turns = most
        chat.start(image())
        found = [chat(question) for question in ('a?', 'b?', 'c?')]
        assert chat.read[-1].count('Question: ') == read and found[-1]['dropped_turns'] == 3 - read
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match='max_turns=.*: expected a number of turns, 0 or more'):
            ChatInferencer(chat.model, max_turns=wrong)


def test_the_real_language_model_takes_a_full_context(tiny_generator):
    chat = ChatInferencer(tiny_generator(VQA, reads_text=True)).start(image())
    found = [chat('is it a star?', max_new_tokens=12, min_new_tokens=12) for _ in range(4)]
    assert [list(turn) for turn in found] == [['question', 'pred_answer', 'dropped_turns']] * 4
    assert found[-1]['dropped_turns'] > 0


def test_a_question_that_does_not_fit_alone_is_refused_and_leaves_the_dialogue_as_it_was(chat):
    chat('what is it?', image())
    with pytest.raises(ConfigError, match=r'image, question and max_new_tokens=6 together make \d+ tokens, but the '
                                          'context has 64: shorten the question'):
        chat('is it red or blue or green ' * 5 + '?')
    assert len(chat.history) == 1
    assert chat('and that?')['question'] == 'and that?'


def test_max_context(tiny_generator):
    model = tiny_generator(VQA, reads_text=True)
    assert ChatInferencer(model).max_context == 64
    with pytest.raises(ConfigError, match=r'make \d+ tokens, but the context has 10'):
        ChatInferencer(model, max_context=10)('what is it?', image())
    for wrong in (65, 0, 1.5):
        with pytest.raises(ConfigError, match='max_context=.*: expected a number of tokens, at most the 64'):
            ChatInferencer(model, max_context=wrong)


def test_the_qformer_reads_the_newest_question_and_the_image_matters(tiny_generator):
    chat = ChatInferencer(tiny_generator(VQA, reads_text=True))
    texts = []
    tokenizer = chat.model.tokenizer
    chat.model.tokenizer = lambda given, *args: texts.append(given) or tokenizer(given, *args)
    found = set()
    for seed in range(4):
        chat.start(image(seed))
        found.add(chat('what is it?')['pred_answer'])
    chat('and that?')
    assert texts == [['what is it?']] * 4 + [['and that?']] and len(found) > 1


def test_the_first_turn_is_an_answer_to_the_question(tiny_generator):
    """The first turn of a dialogue is visual question answering."""
    from mmblip2.apis import VisualQuestionAnsweringInferencer
    model = tiny_generator(VQA, reads_text=True)
    answer, = VisualQuestionAnsweringInferencer(model)(image(), 'what is it?')
    assert ChatInferencer(model)('what is it?', image()) == dict(answer, dropped_turns=0)


def test_a_seed_fixes_a_dialogue(tiny_generator):
    chat = ChatInferencer(tiny_generator(VQA, reads_text=True)).start(image())
    runs = []
    for seed in (0, 0, 1, 2, 3):
        chat.reset()
        runs.append([chat('what?', do_sample=True, seed=seed)['pred_answer'] for _ in range(2)])
    assert runs[0] == runs[1] and len({tuple(run) for run in runs}) > 1


def test_template_and_settings(chat, tiny_generator):
    other = ChatInferencer(chat.model, template='{} Answer:')
    other('What is it?', image(), num_beams=2)
    assert chat.read == ['what is it? Answer:'] and chat.settings_seen[0]['num_beams'] == 2
    assert chat.settings_seen[0]['min_new_tokens'] is None  # of captions
    with pytest.raises(ConfigError, match='temperature=1.5 has an effect only with do_sample=True'):
        other('and?', temperature=1.5)


def test_bad_input(chat, tmp_path):
    with pytest.raises(ConfigError, match='has no image yet: call start'):
        chat('what is it?')
    with pytest.raises(ConfigError, match='has no image yet: call start'):
        chat.draw(show_dir=tmp_path)
    with pytest.raises(DataError, match='a dialogue is about one image, got several'):
        chat.start([image()])
    with pytest.raises(DataError, match='none.png'):
        chat.start(tmp_path / 'none.png')
    chat.start(image())
    for wrong in ('', '  ', '!'):
        with pytest.raises(DataError, match='question 0 is empty'):
            chat(wrong)
    with pytest.raises(DataError, match='question 0 is 3: expected a text'):
        chat(3)
    assert chat.history == []


def test_a_picture_of_the_dialogue(chat, tmp_path):
    image().save(tmp_path / 'cat.png')
    chat.start(tmp_path / 'cat.png')
    chat('what is it?')
    chat('and that?')
    assert chat.lines() == ['question: what is it?', 'answer: one', 'question: and that?', 'answer: two.']
    path = chat.draw(show_dir=tmp_path / 'shown')
    assert path == tmp_path / 'shown' / 'cat.png'
    with Image.open(path) as picture:
        assert picture.width >= 320 and picture.height > 16 + 4 * 18
