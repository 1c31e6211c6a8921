"""Laws of the embedded data set: its scene logic and the files that make_shapes.py writes."""
import collections
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'dataset_converters' / 'make_shapes.py'
SIZES = {'train': 60, 'val': 20, 'test': 20}
PER_QUESTION = {'train': 4, 'val': 3, 'test': 3}


def _load():
    spec = importlib.util.spec_from_file_location('make_shapes', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_shapes = _load()
shapes = make_shapes.load_shapes()


def _run(out, *arguments, **environment):
    command = [sys.executable, str(SCRIPT), '--out', str(out)]
    for split, size in SIZES.items():
        command += [f'--{split}', str(size)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120,
                          env=dict(os.environ, **environment))


def _digests(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def _read(data, name):
    return json.loads((data / 'annotations' / name).read_text())


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes data') / 'shapes'  # a path with a space
    done = _run(out, PYTHONHASHSEED='1')
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope='module')
def scenes():
    return make_shapes.make_scenes(shapes, 0, SIZES)


@pytest.fixture(scope='module')
def crowded():
    """Scenes of nine kinds of objects only, so that collisions are frequent and the laws have work to do."""
    everything = shapes.PAIRS
    shapes.PAIRS = tuple(itertools.product(('red', 'green', 'blue'), ('circle', 'square', 'triangle')))
    try:
        return make_shapes.make_scenes(shapes, 0, SIZES)
    finally:
        shapes.PAIRS = everything


# A second reading of the captions, from their words alone.
_OBJECT = (f'(?:(small|large) )?({"|".join(shapes.COLORS)}) ({"|".join(shapes.SHAPES)})'
           '(?: at the ((?:top|bottom) (?:left|right)|top|bottom|left|right|center))?')


def _fits(text, scene):
    """Whether a caption, read as text, is true of a scene."""
    things = scene.things
    count = re.search(r'(two|three|four) objects', text)
    rest = re.search(r' and (nothing else|one other object|two other objects)$', text)
    if count and not rest and len(things) != ['two', 'three', 'four'].index(count[1]) + 2:
        return False
    if rest:
        text = text[:rest.start()]
        if len(things) != {'nothing else': 2, 'one other object': 3, 'two other objects': 4}[rest[1]]:
            return False
    said = [match.groups() for match in re.finditer(_OBJECT, text)]
    relation = re.search(r' (left of|right of|above|below) a ', text)
    for chosen in itertools.permutations(things, len(said)):
        if not all((color, shape) == t.pair and size in (None, t.size) and region in (None, t.region)
                   for (size, color, shape, region), t in zip(said, chosen)):
            continue
        if relation:
            (ax, ay), (bx, by) = ((t.x, t.y) for t in chosen[:2])
            gap = 0.1  # of the image width: more than any jitter inside a row or column, less than a region
            if not {'left of': bx - ax > gap, 'right of': ax - bx > gap,
                    'above': by - ay > gap, 'below': ay - by > gap}[relation[1]]:
                continue
        return True
    return False


@pytest.mark.parametrize('drawn', ['scenes', 'crowded'])
def test_no_combination_is_in_two_splits(drawn, request):
    combinations = {split: {scene.combination for scene in found}
                    for split, found in request.getfixturevalue(drawn).items()}
    for one, other in itertools.combinations(combinations, 2):
        assert not combinations[one] & combinations[other]


def test_the_smallest_train_split_holds_every_colored_shape():
    drawn = make_shapes.make_scenes(shapes, 5, {'train': 24, 'val': 2, 'test': 2})['train']
    assert {pair for scene in drawn for pair in scene.combination} == set(shapes.PAIRS)


def test_scenes_of_a_split_are_distinct_and_hold_two_to_four_objects(scenes):
    for drawn in scenes.values():
        assert len({scene.layout for scene in drawn}) == len(drawn)
        assert {len(scene.things) for scene in drawn} <= {2, 3, 4}


@pytest.mark.parametrize('split', SIZES)
@pytest.mark.parametrize('drawn', ['scenes', 'crowded'])
def test_every_caption_is_true_and_at_least_three_fit_their_image_only(drawn, split, request):
    gallery = request.getfixturevalue(drawn)[split]
    for index, scene in enumerate(gallery):
        texts = [caption.text for caption in shapes.captions(scene)]
        assert len(set(texts)) == 5
        fitting = [[i for i, other in enumerate(gallery) if _fits(text, other)] for text in texts]
        assert all(index in found for found in fitting), texts
        assert sum(found == [index] for found in fitting) >= 3, texts


def test_the_claim_of_a_caption_says_what_its_words_say(crowded):
    for scene in crowded['train'][:30]:
        nearly = [dataclasses.replace(scene, things=scene.things[:-1]), dataclasses.replace(
            scene, things=tuple(dataclasses.replace(t, x=1 - t.x, cell=t.cell // 3 * 3 + 2 - t.cell % 3)
                                for t in scene.things))]  # one object less; mirrored
        for caption in shapes.captions(scene):
            for other in crowded['train'] + nearly:
                assert shapes.satisfies(other, caption.claim) == _fits(caption.text, other)


def test_matching_scenes_finds_exactly_those_that_satisfy(scenes):
    gallery = scenes['train']
    claims = [caption.claim for scene in gallery[:10] for caption in shapes.captions(scene)]
    expected = [[i for i, scene in enumerate(gallery) if shapes.satisfies(scene, claim)] for claim in claims]
    assert shapes.matching_scenes(gallery, claims) == expected


def test_captions_are_short_plain_and_from_a_small_vocabulary(data):
    texts = [row['caption'] for row in _read(data, 'karpathy_train.json')]
    assert all(re.fullmatch(r'[a-z]+( [a-z]+)*', text) for text in texts)
    assert all(8 <= len(text.split()) <= 17 for text in texts)
    assert len({word for text in texts for word in text.split()}) <= 100


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(data, tmp_path):
    assert _run(tmp_path / 'same', PYTHONHASHSEED='2').returncode == 0
    assert _digests(tmp_path / 'same') == _digests(data)
    assert _run(tmp_path / 'other', '--seed', '1').returncode == 0
    other, first = _digests(tmp_path / 'other'), _digests(data)
    assert all(other[name] != first[name] for name in first if name.endswith('.jpg'))


def test_second_call_writes_nothing_and_another_request_replaces_all(tmp_path):
    out = tmp_path / 'shapes'
    assert _run(out).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    done = _run(out)
    assert 'is up to date' in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before
    assert _run(out, '--train', '30').returncode == 0
    assert len(list((out / 'train').iterdir())) == 30


def test_an_interrupted_folder_is_written_again(data, tmp_path):
    out = tmp_path / 'shapes'
    assert _run(out).returncode == 0
    meta = json.loads((out / 'meta.json').read_text())
    (out / 'meta.json').write_text(json.dumps(dict(meta, complete=False)))
    next((out / 'train').iterdir()).unlink()
    assert _run(out).returncode == 0
    assert _digests(out) == _digests(data)


def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'mine.jpg').write_bytes(b'1')
    done = _run(tmp_path)
    assert done.returncode != 0
    assert 'there is no meta.json' in done.stderr and 'Choose another --out' in done.stderr
    assert (tmp_path / 'train' / 'mine.jpg').is_file()


@pytest.mark.parametrize('arguments, message', [
    (('--train', '10'), '--train is 10; expected at least 24'),
    (('--val', '1'), '--val is 1 and --test is 20; expected at least 2'),
    (('--image-size', '61'), '--image-size is 61; expected a multiple of 3'),
    (('--train', '7000'), 'expected at most 6000'),
    (('--seed', '-1'), '--seed is -1; expected 0 or more')])
def test_impossible_requests_are_refused_before_anything_is_written(tmp_path, arguments, message):
    done = _run(tmp_path / 'shapes', *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / 'shapes').exists()


@pytest.mark.parametrize('module', ['torch', 'mmengine', 'transformers'])
def test_make_shapes_imports_no_heavy_package(tmp_path, module):
    (tmp_path / f'{module}.py').write_text('raise SystemExit("a heavy package was imported")')
    done = _run(tmp_path / 'shapes', PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_without_pycocoevalcap_the_cider_figures_are_null_and_it_is_said(tmp_path):
    (tmp_path / 'pycocoevalcap').mkdir()
    (tmp_path / 'pycocoevalcap' / '__init__.py').write_text('raise ImportError')
    done = _run(tmp_path / 'shapes', PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert 'pycocoevalcap is not installed: the CIDEr figures are null' in done.stderr
    figures = json.loads((tmp_path / 'shapes' / 'ceilings.json').read_text())
    assert figures['ceiling']['test']['caption']['CIDEr'] is None


def test_image_ids_are_unique_over_splits_and_name_existing_images(data):
    seen = set()
    for split, size in SIZES.items():
        images = _read(data, f'captions_{split}.json')['images']
        ids = {image['id'] for image in images}
        assert len(ids) == size and not ids & seen
        seen |= ids
        assert {image['file_name'] for image in images} == {path.name for path in (data / split).iterdir()}
        assert all(image['file_name'] == f'{image["id"]:012d}.jpg' for image in images)
        with Image.open(data / split / images[0]['file_name']) as image:
            assert (image.format, image.mode, image.size) == ('JPEG', 'RGB', (72, 72))


def test_caption_files_load_with_pycocotools_and_agree_with_the_karpathy_lists(data, capsys):
    coco = pytest.importorskip('pycocotools.coco')
    for split, size in SIZES.items():
        loaded = coco.COCO(str(data / 'annotations' / f'captions_{split}.json'))
        assert len(loaded.getImgIds()) == size and len(loaded.getAnnIds()) == 5 * size
        official = {(f'{split}/{loaded.loadImgs(a["image_id"])[0]["file_name"]}', a['image_id'], a['caption'])
                    for a in loaded.anns.values()}
        rows = _read(data, f'karpathy_{split}.json')
        assert len(rows) == (5 * size if split == 'train' else size)
        listed = {(row['image'], row['image_id'], text) for row in rows
                  for text in ([row['caption']] if split == 'train' else row['caption'])}
        assert listed == official


@pytest.mark.parametrize('split', SIZES)
def test_vqa_files_have_the_official_fields_and_answers(data, split):
    questions, answers = _read(data, f'questions_{split}.json'), _read(data, f'answers_{split}.json')
    assert set(questions) == {'info', 'license', 'data_type', 'data_subtype', 'task_type', 'questions'}
    assert set(answers) == {'info', 'license', 'data_type', 'data_subtype', 'annotations'}
    assert len(questions['questions']) == PER_QUESTION[split] * SIZES[split]
    assert [(q['question_id'], q['image_id']) for q in questions['questions']] \
        == [(a['question_id'], a['image_id']) for a in answers['annotations']]
    assert len({q['question_id'] for q in questions['questions']}) == len(questions['questions'])
    assert {a['answer_type'] for a in answers['annotations']} == {'yes/no', 'number', 'other'}
    for question, row in zip(questions['questions'], answers['annotations']):
        assert set(question) == {'image_id', 'question', 'question_id'}
        assert set(row) == {'question_id', 'image_id', 'question_type', 'answer_type',
                            'multiple_choice_answer', 'answers'}
        assert question['question'].startswith(row['question_type']) and question['question'].endswith('?')
        assert [a['answer_id'] for a in row['answers']] == list(range(1, 11))
        given = collections.Counter(a['answer'] for a in row['answers'])
        assert given[row['multiple_choice_answer']] >= 8
        assert all(a['answer_confidence'] in ('yes', 'maybe') for a in row['answers'])
    assert any(len({a['answer'] for a in row['answers']}) > 1 for row in answers['annotations'])


def _answer(question, scene):
    """A second way to answer, from the words of the question."""
    things = scene.things
    named = [t for t in things if re.search(rf'\b{t.color} {t.shape}\b', question)]
    if match := re.fullmatch(r'is there a (\w+) (\w+)\?', question):
        color, shape = match.groups()
        return 'yes' if any(t.color == color and shape in ('object', t.shape) for t in things) else 'no'
    if match := re.fullmatch(r'how many (?:(\w+) )?(\w+?)(?:es|s) are there\?', question):
        color, shape = match.groups()
        return str(sum(color in (None, t.color) and shape in ('object', t.shape) or t.shape[:-1] == shape
                       for t in things))
    if match := re.fullmatch(r'what color is the (\w+)\?', question):
        return ' '.join(t.color for t in things if t.shape == match[1])
    if match := re.fullmatch(r'what shape is the (\w+) object\?', question):
        return ' '.join(t.shape for t in things if t.color == match[1])
    if question.startswith('what size'):
        return named[0].size
    if question.startswith('where is'):
        return named[0].region
    order = {'left of': lambda a, b: a.cell % 3 < b.cell % 3,
             'right of': lambda a, b: a.cell % 3 > b.cell % 3,
             'above': lambda a, b: a.cell // 3 < b.cell // 3,
             'below': lambda a, b: a.cell // 3 > b.cell // 3}
    relation = order[re.search('left of|right of|above|below', question)[0]]
    if question.startswith('what shape is'):
        return ' '.join(t.shape for t in things if relation(t, named[0]))
    first, second = sorted(named, key=lambda t: question.index(f'{t.color} {t.shape}'))
    return 'yes' if relation(first, second) else 'no'


def test_every_question_has_the_answer_that_its_words_ask_for(scenes):
    for index, scene in enumerate(scenes['train']):
        for seed in range(5):
            asked = shapes.questions(scene, np.random.default_rng((index, seed)))
            assert len({question.text for question in asked}) == 4
            for question in asked:
                assert question.answer == _answer(question.text, scene), question
                assert question.answer in question.answers


def test_yes_and_no_are_balanced_for_each_kind_of_question(scenes):
    counts = collections.defaultdict(collections.Counter)
    for index, scene in enumerate(scenes['train']):
        for seed in range(20):
            question = shapes.questions(scene, np.random.default_rng((index, seed)))[0]
            counts[question.question_type][question.answer] += 1
    assert set(counts) == {'is there a', 'is the'}
    for count in counts.values():
        assert abs(count['yes'] / (count['yes'] + count['no']) - 0.5) < 0.08


def test_objects_do_not_overlap_and_stay_inside_the_image():
    rng = np.random.default_rng(3)
    for _ in range(200):
        scene = shapes.sample_scene(rng)
        for thing in scene.things:
            column, row = thing.cell % 3, thing.cell // 3
            reach = 1.12 * thing.radius
            assert column / 3 - 1e-9 <= thing.x - reach and thing.x + reach <= (column + 1) / 3 + 1e-9
            assert row / 3 - 1e-9 <= thing.y - reach and thing.y + reach <= (row + 1) / 3 + 1e-9


@pytest.mark.parametrize('image_size', [64, 96])
def test_patch_labels_name_the_object_whose_color_the_pixels_show(image_size):
    rng = np.random.default_rng(4)
    for _ in range(40):
        scene = shapes.sample_scene(rng)
        pixels = np.asarray(shapes.render(scene, image_size)).astype(int)
        rows = shapes.label_patches(scene, image_size, patch_size=8)
        side = image_size // 8
        assert [len(row) for row in rows] == [side * side] * 4
        seen = set()
        for index, (shape, color, size, region) in enumerate(zip(*rows)):
            assert len({shape == 0, color == 0, size == 0, region == 0}) == 1
            top, left = index // side * 8, index % side * 8
            patch = pixels[top:top + 8, left:left + 8].reshape(-1, 3)
            near = {name: (abs(patch - rgb).max(1) < 6).mean() for name, rgb in shapes.COLORS.items()}
            if color == 0:
                assert max(near.values()) < shapes.COVERAGE + 0.01
                continue
            name = tuple(shapes.COLORS)[color - 1]
            assert near[name] == max(near.values()) and near[name] > 0
            seen.add((tuple(shapes.SIZES)[size - 1], name, shapes.SHAPES[shape - 1],
                      shapes.REGIONS[region - 1]))
        assert seen == {(t.size, t.color, t.shape, t.region) for t in scene.things}


def test_an_object_is_at_its_place_and_large_ones_cover_more_than_small_ones():
    def covered(scene):
        pixels = np.asarray(shapes.render(scene)).astype(int)
        return abs(pixels - shapes.COLORS[scene.things[0].color]).max(2) < 40

    for shape, cell in itertools.product(shapes.SHAPES, range(9)):
        areas = []
        for size, radius in shapes.SIZES.items():
            x, y = (cell % 3 + 0.5) / 3, (cell // 3 + 0.5) / 3
            thing = shapes.Thing(size, 'red', shape, cell, x, y, radius, 0.0)
            mask = covered(shapes.Scene((thing,), (128.0, 128.0, 128.0), (0.0, 0.0)))
            ys, xs = np.nonzero(mask)
            assert abs(xs.mean() - 72 * x) < 1.5 and abs(ys.mean() - 72 * y) < 1.5
            areas.append(mask.sum())
        assert areas[1] > 2 * areas[0]


def test_scene_label_files_cover_train_and_val_images_with_the_rendered_labels(data, scenes):
    assert not (data / 'annotations' / 'scene_labels_test.json').exists()
    for split in ('train', 'val'):
        file = _read(data, f'scene_labels_{split}.json')
        assert (file['patch_size'], file['image_size']) == (24, 72)
        assert list(file['attributes']) == ['shape', 'colour', 'size', 'region']
        assert all(names[0] == 'background' for names in file['attributes'].values())
        assert file['attributes']['size'] == ['background', 'small', 'large']
        assert [item['image'] for item in file['items']] \
            == list(dict.fromkeys(row['image'] for row in _read(data, f'karpathy_{split}.json')))
        for item, scene in zip(file['items'], scenes[split]):
            assert item['patch_labels'] == shapes.label_patches(scene)


def test_corpus_holds_the_train_texts_only_in_the_form_the_language_model_sees(data):
    lines = (data / 'annotations' / 'corpus_train.txt').read_text().splitlines()
    captions = [row['caption'] for row in _read(data, 'karpathy_train.json')]
    questions = _read(data, 'questions_train.json')['questions']
    answers = _read(data, 'answers_train.json')['annotations']
    asked = [f'Question: {question["question"]} Answer: {row["multiple_choice_answer"]}'
             for question, row in zip(questions, answers)]
    assert lines == [text for i in range(len(captions) // 5)
                     for text in captions[5 * i:5 * i + 5] + asked[4 * i:4 * i + 4]]
    assert all(q['question'] == re.sub(r'[.!"()*#:;~]', '', q['question'].lower()) for q in questions)


def test_documents_are_the_corpus_behind_descriptions_of_the_scenes(data, scenes):
    lines = (data / 'annotations' / 'documents_train.txt').read_text().splitlines()
    texts = (data / 'annotations' / 'corpus_train.txt').read_text().splitlines()
    assert len(lines) == len(texts)
    for i, (line, text) in enumerate(zip(lines, texts)):
        read, said = line.split('\t')
        told, asked = read.split('</s>')
        assert told == shapes.description(scenes['train'][i // 9])
        assert f'{asked} {said}' == (text if i % 9 > 4 else f'a photo of {text}')


def test_ceilings_are_printed_and_lie_above_chance(data):
    text = (data / 'ceilings.json').read_text()
    figures = json.loads(text)
    assert text in _run(data).stdout
    for split in ('val', 'test'):
        ceiling, chance = figures['ceiling'][split], figures['chance'][split]
        for name in ('i2t/Recall@1', 't2i/Recall@1'):
            assert 60 < ceiling['retrieval'][name] <= 100
            assert chance['retrieval'][name] == pytest.approx(100 / 20)
        assert ceiling['vqa']['accuracy'] == pytest.approx(100)
        assert 10 < chance['vqa']['accuracy'] < 60


def test_recall_ceiling_breaks_ties_at_random():
    # Scene 0 alone fits its five captions; scene 1 fits its own five and the first two of scene 0.
    matches = [[0, 1], [0, 1], [0], [0], [0], [1], [1], [1], [1], [1]]
    figures = make_shapes.recall_ceiling(matches, 2)
    assert figures['i2t/Recall@1'] == pytest.approx(100 * (1 + 5 / 7) / 2)
    assert figures['t2i/Recall@1'] == pytest.approx(100 * (8 + 2 / 2) / 10)


@pytest.mark.parametrize('agreeing, accuracy', [(10, 1.0), (4, 1.0), (3, 0.9), (2, 0.6), (1, 0.3), (0, 0.0)])
def test_vqa_accuracy_is_the_official_leave_one_out_mean(agreeing, accuracy):
    answers = [{'answer': 'red' if i < agreeing else 'blue', 'answer_id': i} for i in range(10)]
    assert make_shapes.vqa_accuracy('red', answers) == pytest.approx(accuracy)


def test_most_frequent_answer_is_taken_for_each_question_type():
    asked = [(0, 0, shapes.Question('', answer, 'other', kind, ()), [])
             for kind, answer in [('a', 'x'), ('a', 'y'), ('a', 'y'), ('b', 'z'), ('b', 'w')]]
    assert make_shapes.most_frequent(asked) == {'a': 'y', 'b': 'w'}
