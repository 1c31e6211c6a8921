import json

import numpy as np
import pytest

from mmblip2.datasets import Draw, ImageTextPairs
from mmblip2.datasets.transforms import CaptionPrompt, CleanCaption, CleanQuestion, PrefixSplit, VQAPrompt
from mmblip2.datasets.transforms.text import clean_caption, clean_question, is_empty
from mmblip2.errors import ConfigError, DataError


@pytest.mark.parametrize('raw, clean', [
    ('A Man.', 'a man'),
    ('A man,on-the "red" bike?!', 'a man,on-the red bike?'),
    ("It's (a) #1: dog;cat*~x", "it's a 1 dog cat x"),
    ('two  spaces\n\nand lines\n', 'two spaces and lines'),
    ('one\tkept', 'one\tkept'),
])
def test_captions_are_cleaned_as_lavis_does(raw, clean):
    assert clean_caption(raw) == clean


@pytest.mark.parametrize('raw, clean', [
    ('What is on the table?', 'what is on the table?'),
    ('Is it "red"  (or #1)?!  ', 'is it red  or 1?'),
    ("What's a.b?", "what's ab?"),
])
def test_questions_are_cleaned_as_lavis_does(raw, clean):
    assert clean_question(raw) == clean


def test_texts_are_cut_at_fifty_words():
    words = ' '.join(f'w{i}' for i in range(60))
    assert clean_caption(words).split() == clean_question(words).split() == words.split()[:50]
    assert CleanCaption(max_words=2)({'caption': 'a b c'}) == {'caption': 'a b'}


@pytest.mark.parametrize('text', ['', ' \n', '...', '( ! )'])
def test_a_text_is_empty_when_cleaning_leaves_nothing(text):
    assert is_empty(text) and clean_caption(text) == ''
    assert not is_empty('?') and not is_empty('été')


def test_references_of_the_metric_stay_raw():
    results = CleanCaption()({'text': 'A.', 'texts': ['B!', 'C'], 'gt_caption': ['D.']})
    assert results == {'text': 'a', 'texts': ['b', 'c'], 'gt_caption': ['D.']}


def test_clean_question_changes_the_question_only():
    assert CleanQuestion()({'question': 'Why?', 'caption': 'A.'}) == {'question': 'why?', 'caption': 'A.'}


def test_caption_prompt_makes_prompt_and_target():
    results = CaptionPrompt()({'caption': 'a dog'})
    assert results == {'caption': 'a dog', 'prompt': 'a photo of', 'target': 'a dog'}
    assert CaptionPrompt(prompt='')({}) == {'prompt': ''}


def test_caption_prompt_of_instructblip_is_read_by_the_qformer_too():
    assert CaptionPrompt('Describe it.', qformer_text='Describe it.')({}) == {
        'prompt': 'Describe it.', 'qformer_text': 'Describe it.'}


@pytest.mark.parametrize('words, most', [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_prefix_split_is_uniform_from_the_first_word_to_the_middle(words, most):
    rng = np.random.default_rng(0)
    caption = [f'w{i}' for i in range(words)]
    counts = np.zeros(words + 1, int)
    for _ in range(1000):
        results = PrefixSplit()({'caption': ' '.join(caption), 'rng': rng})
        prompt, target = results['prompt'].split(), results['target'].split()
        assert prompt + target == caption
        counts[len(prompt)] += 1
    drawn = range(1, most + 1) if most else [0]
    assert counts[list(drawn)].sum() == 1000
    assert all(abs(counts[i] - 1000 / len(drawn)) < 60 for i in drawn)  # 4 standard deviations


def test_prefix_split_depends_on_the_seed_and_the_position_only(tmp_path):
    (tmp_path / 'a.jpg').touch()
    (tmp_path / 'pairs.json').write_text(json.dumps([dict(image='a.jpg', caption='one two three four five six')]))
    dataset = ImageTextPairs(ann_file='pairs.json', data_root=str(tmp_path),
                             pipeline=[dict(type='mmblip2.PrefixSplit')])

    def splits(seed):
        return [dataset[Draw(0, seed=seed, pos=pos)]['prompt'] for pos in range(40)]
    first = splits(1)
    np.random.seed(0)
    assert splits(1) == first and splits(2) != first and len(set(first)) == 3


def test_prefix_split_without_random_numbers_or_caption_says_what_to_use():
    with pytest.raises(ConfigError, match=r"PrefixSplit needs random numbers in results\['rng'\].* use CaptionPrompt"):
        PrefixSplit()({'caption': 'a dog'})
    with pytest.raises(DataError, match=r"needs a training caption, the sample has only \['rng'\]: use CaptionPrompt"):
        PrefixSplit()({'rng': np.random.default_rng(0)})
    with pytest.raises(DataError, match='PrefixSplit splits one caption, the sample has several: take captions_per_im'):
        PrefixSplit()({'rng': np.random.default_rng(0), 'caption': ['a dog', 'a cat']})


def test_vqa_prompt_without_random_numbers_takes_the_most_frequent_answer():
    results = VQAPrompt()({'question': 'is {} red?', 'gt_answer': ['no', 'yes', 'yes', ' ']})
    assert results['prompt'] == 'Question: is {} red? Answer:' and results['qformer_text'] == 'is {} red?'
    assert results['target'] == 'yes'


def test_vqa_prompt_draws_answers_as_often_as_people_gave_them():
    rng = np.random.default_rng(0)
    prompt = VQAPrompt(qformer_text=None)
    sample = {'question': 'q', 'gt_answer': ['a'] * 7 + ['b'] * 3, 'rng': rng}
    drawn = [prompt(dict(sample))['target'] for _ in range(1000)]
    assert 650 < drawn.count('a') < 750 and drawn.count('a') + drawn.count('b') == 1000
    assert 'qformer_text' not in prompt({'question': 'q'})


def test_vqa_prompt_without_answers_has_no_target():
    assert 'target' not in VQAPrompt()({'question': 'q', 'rng': np.random.default_rng(0)})
    assert not {'target', 'targets'} & VQAPrompt(every_answer=True)({'question': 'q', 'gt_answer': [' ']}).keys()


def test_vqa_prompt_gives_every_answer_with_its_share():
    """Of VQAv2's ten a count of 3 is 0.3, as in BLIP; an answer of Visual Genome, which has one, is 0.2."""
    prompt = VQAPrompt(template='{}', qformer_text=None, every_answer=True)
    results = prompt({'question': 'is it red?', 'gt_answer': ['no'] * 6 + ['yes'] * 3 + ['dark red']})
    assert results['prompt'] == 'is it red?' and results['target'] == 'no'
    assert results['targets'] == pytest.approx({'no': 0.6, 'yes': 0.3, 'dark red': 0.1})
    assert list(results['targets']) == ['no', 'yes', 'dark red']
    assert prompt({'question': 'q', 'gt_answer': ['left'], 'answer_weight': 0.2})['targets'] == {'left': 0.2}
    assert 'targets' not in VQAPrompt()({'question': 'q', 'gt_answer': ['left']})


def test_template_without_question_is_refused():
    with pytest.raises(ConfigError, match=r"template of VQAPrompt needs exactly one {} .* got 'Answer:'"):
        VQAPrompt(template='Answer:')
    with pytest.raises(ConfigError, match='qformer_text of VQAPrompt'):
        VQAPrompt(qformer_text='')


def test_sample_without_question_is_refused():
    with pytest.raises(DataError, match=r"VQAPrompt needs a question, the sample has only \['caption'\]"):
        VQAPrompt()({'caption': 'x'})
