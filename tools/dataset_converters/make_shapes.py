"""Write the embedded data set "shapes": images, official-format annotations, texts and ceilings.

Needs numpy and Pillow only. The same seed gives the same bytes (with the same Pillow); a second call with the
same arguments finds its work done and returns at once.
"""
import argparse
import collections
import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import mmblip2

FORMAT = 4  # raise it when the same seed would give other files, so that old folders are written anew
SPLITS = ('train', 'val', 'test')
PATCHES = 3  # labels stand in a 3 x 3 grid, one patch a region: a ViT with such patches learns them in seconds
UNIQUE_CAPTIONS = 3
CAPTION_PROMPT = 'a photo of'
VQA_TEMPLATE = 'Question: {} Answer:'
ABOUT = {
    'ceiling': 'retrieval: expected recall@1 of exact scene matching, ties broken at random (percent). '
               'caption: CIDEr of one reference against the other four, mean over the five choices of the '
               'one, words split at spaces. vqa: official accuracy of the true answer (percent).',
    'chance': 'retrieval: 100 / images. caption: CIDEr of the captions of another image against the five '
              'references. vqa: accuracy of the most frequent train answer of each question type.'}
INFO = {'description': 'mmblip2 shapes', 'version': str(FORMAT)}


def load_shapes():
    """Load the scene logic by file, because ``mmblip2.datasets`` as a package imports torch."""
    path = Path(mmblip2.__file__).parent / 'datasets' / 'shapes.py'
    spec = importlib.util.spec_from_file_location('mmblip2_shapes', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', default='data/shapes', help='folder to write')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything that is drawn')
    parser.add_argument('--train', type=int, default=4000, help='number of training images, at least 24')
    parser.add_argument('--val', type=int, default=500, help='number of validation images')
    parser.add_argument('--test', type=int, default=500, help='number of test images')
    parser.add_argument('--image-size', type=int, default=72, help='width and height, a multiple of 3')
    args = parser.parse_args(argv)
    if args.train < 24:
        parser.error(f'--train is {args.train}; expected at least 24, to hold every colored shape')
    if min(args.val, args.test) < 2:
        parser.error(f'--val is {args.val} and --test is {args.test}; expected at least 2 each')
    if max(args.train, args.val, args.test) > 6000:
        parser.error('a split of more than 6000 images runs short of captions that fit one image only; '
                     f'--train is {args.train}, --val {args.val}, --test {args.test}; expected at most 6000')
    if args.image_size % PATCHES or not 32 <= args.image_size <= 512:
        parser.error(f'--image-size is {args.image_size}; expected a multiple of {PATCHES} from 32 to 512')
    if args.seed < 0:
        parser.error(f'--seed is {args.seed}; expected 0 or more')
    return args


class Progress:
    """A bar with the remaining time on stderr; without a terminal, a line every quarter."""

    def __init__(self, title, total):
        self.title, self.total, self.done, self.start, self.shown = title, total, 0, time.monotonic(), 0

    def step(self):
        self.done += 1
        share, spent = self.done / self.total, time.monotonic() - self.start
        live = sys.stderr.isatty()
        stage = int(share * (100 if live else 4))
        if stage == self.shown and self.done < self.total:
            return
        self.shown = stage
        bar = '#' * int(share * 30)
        left = spent / share - spent
        text = f'{self.title} [{bar:<30}] {self.done}/{self.total}, {spent:.0f} s, {left:.0f} s left'
        end = '' if live and self.done < self.total else '\n'
        print(('\r' if live else '') + text, end=end, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ scenes
def make_scenes(shapes, seed, sizes):
    """Draw the scenes of all splits.

    Args:
        shapes (module): The scene logic.
        seed (int): Seed.
        sizes (dict[str, int]): Number of scenes by split.

    Returns:
        dict[str, list]: Scenes by split: no combination in two splits, all layouts of a split distinct, every
        (color, shape) in train, and at least three captions of each scene fit no other scene of its split.
    """
    owner = {}  # combination -> split
    drawn = {}
    for split in reversed(SPLITS):  # train last: it takes what the small splits left
        drawn[split] = _make_split(shapes, seed, split, sizes[split], owner)
    return {split: drawn[split] for split in SPLITS}


def _make_split(shapes, seed, split, size, owner):
    import numpy as np
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    scenes, layouts = [None] * size, set()
    missing = list(range(size))
    while missing:
        for index in missing:
            if scenes[index] is not None:
                layouts.discard(scenes[index].layout)
            required = shapes.PAIRS[2 * index:2 * index + 2] if split == 'train' else ()
            while True:
                scene = shapes.sample_scene(rng, required)
                if owner.get(scene.combination, split) == split and scene.layout not in layouts:
                    break
            scenes[index] = scene
            layouts.add(scene.layout)
        unique = collections.Counter()
        claims = [(index, caption.claim) for index, scene in enumerate(scenes)
                  for caption in shapes.captions(scene)]
        matches = shapes.matching_scenes(scenes, [claim for _, claim in claims])
        for (index, _), found in zip(claims, matches):
            unique[index] += len(found) == 1
        missing = [index for index in range(size) if unique[index] < UNIQUE_CAPTIONS]
    owner.update((scene.combination, split) for scene in scenes)
    return scenes


# ------------------------------------------------------------------------------------------- annotations
def write_json(path, value):
    path.write_text(json.dumps(value, separators=(',', ':')), encoding='utf-8')


def coco_captions(split, ids, texts, image_size):
    """Captions in COCO's layout."""
    images = [{'id': i, 'file_name': f'{i:012d}.jpg', 'width': image_size, 'height': image_size, 'license': 1}
              for i in ids]
    annotations = [{'id': i * 10 + k, 'image_id': i, 'caption': text}
                   for i, five in zip(ids, texts) for k, text in enumerate(five)]
    return {'info': dict(INFO, split=split), 'licenses': [{'id': 1, 'name': 'Apache-2.0', 'url': ''}],
            'images': images, 'annotations': annotations}


def karpathy_captions(split, ids, texts):
    """Captions as LAVIS lists them: one row a caption in training, one row an image otherwise."""
    rows = [{'image': f'{split}/{i:012d}.jpg', 'caption': five, 'image_id': i} for i, five in zip(ids, texts)]
    if split != 'train':
        return rows
    return [dict(row, caption=text) for row in rows for text in row['caption']]


def vqa_files(split, asked):
    """Questions and annotations in VQAv2's layout.

    Args:
        split (str): Split.
        asked (list[tuple]): (image id, question id, shapes.Question, ten answers).

    Returns:
        tuple[dict, dict]: The two files.
    """
    head = {'info': dict(INFO, split=split), 'license': {'name': 'Apache-2.0', 'url': ''},
            'data_type': 'shapes', 'data_subtype': split}
    questions = [{'image_id': image, 'question': question.text, 'question_id': number}
                 for image, number, question, _ in asked]
    annotations = [{'question_id': number, 'image_id': image, 'question_type': question.question_type,
                    'answer_type': question.answer_type, 'multiple_choice_answer': question.answer,
                    'answers': answers} for image, number, question, answers in asked]
    return (dict(head, task_type='Open-Ended', questions=questions), dict(head, annotations=annotations))


# ---------------------------------------------------------------------------------------------- ceilings
def recall_ceiling(matches, scenes):
    """Expected recall@1 of exact scene matching, ties broken at random.

    Args:
        matches (list[list[int]]): Scenes that satisfy each caption, five captions a scene in order.
        scenes (int): Number of scenes.

    Returns:
        dict[str, float]: Percent, image to text and text to image.
    """
    fitting = collections.Counter(scene for found in matches for scene in found)
    return {'i2t/Recall@1': 100 * sum(5 / fitting[scene] for scene in range(scenes)) / scenes,
            't2i/Recall@1': 100 * sum(1 / len(found) for found in matches) / len(matches)}


def cider(references, predictions):
    """CIDEr by pycocoevalcap, None without it; captions are plain lower-case words and need no tokenizer."""
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError:
        return None
    return float(Cider().compute_score(dict(enumerate(references)),
                                       {index: [text] for index, text in enumerate(predictions)})[0])


def caption_ceiling(texts):
    """Mean CIDEr of one reference against the other four, over the five choices of the one."""
    scores = [cider([five[:k] + five[k + 1:] for five in texts], [five[k] for five in texts])
              for k in range(5)]
    return None if None in scores else sum(scores) / len(scores)


def caption_chance(texts):
    """Mean CIDEr of the captions of another image (the next one) against all five references."""
    scores = [cider(texts, [five[k] for five in texts[1:] + texts[:1]]) for k in range(5)]
    return None if None in scores else sum(scores) / len(scores)


def vqa_accuracy(answer, answers):
    """The official leave-one-out accuracy; the texts here need no normalisation."""
    scores = [min(1, sum(other['answer'] == answer for other in answers if other is not one) / 3)
              for one in answers]
    return sum(scores) / len(scores)


def percent(values):
    return 100 * sum(values) / len(values)


def most_frequent(asked):
    """The most frequent answer of each question type (ties: the first in alphabet)."""
    counts = collections.defaultdict(collections.Counter)
    for _, _, question, _ in asked:
        counts[question.question_type][question.answer] += 1
    return {kind: min(count, key=lambda answer: (-count[answer], answer)) for kind, count in counts.items()}


# -------------------------------------------------------------------------------------------------- main
def prepare(out, meta):
    """Return whether ``out`` holds this data set already; otherwise empty the folders to be written."""
    record = out / 'meta.json'
    if record.is_file():
        try:
            if json.loads(record.read_text(encoding='utf-8')) == dict(meta, complete=True):
                return True
        except ValueError:
            pass
    elif any((out / name).exists() for name in (*SPLITS, 'annotations')):
        sys.exit(f'{out} holds folders that make_shapes.py did not write (there is no meta.json). '
                 'Expected an empty or new folder, or one of an earlier call. Choose another --out.')
    for name in (*SPLITS, 'annotations'):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    write_json(record, dict(meta, complete=False))
    return False


def ask(shapes, scene, image_id, split, seed):
    """Questions about one image: four in train, three of the four kinds elsewhere.

    Returns:
        list[tuple]: (image id, question id, shapes.Question, ten answers).
    """
    import numpy as np
    rng = np.random.default_rng((seed, 100, image_id))
    questions = shapes.questions(scene, rng)
    if split != 'train':
        del questions[rng.integers(len(questions))]
    return [(image_id, image_id * 1000 + k, question, shapes.human_answers(question, rng))
            for k, question in enumerate(questions)]


def label_file(shapes, split, scenes, ids, image_size):
    """Attributes of every patch of every image of a split."""
    names = {'shape': shapes.SHAPES, 'colour': shapes.COLORS, 'size': shapes.SIZES, 'region': shapes.REGIONS}
    items = [{'image': f'{split}/{i:012d}.jpg',
              'patch_labels': shapes.label_patches(scene, image_size, image_size // PATCHES)}
             for i, scene in zip(ids, scenes)]
    return {'patch_size': image_size // PATCHES, 'image_size': image_size,
            'attributes': {key: ['background', *values] for key, values in names.items()}, 'items': items}


def said_of(texts, asked):
    """All texts about each image of a split, as the language model meets them: captions, questions with answers.

    Returns:
        list[list[str]]: One list an image.
    """
    said = [list(five) for five in texts]
    first = asked[0][0]
    for image_id, _, question, _ in asked:
        said[image_id - first].append(f'{VQA_TEMPLATE.format(question.text)} {question.answer}')
    return said


def corpus(said):
    """The texts of a split, one a line."""
    return ''.join(f'{text}\n' for texts in said for text in texts)


def documents(shapes, scenes, said):
    """Each text behind a description of its scene, one line each: what is read, a tab, what is to be said.

    From these a language model learns to take from what stands before a text what the text is about; later the
    visual prefix stands there. Large language models bring this along from their own training.
    """
    lines = []
    for scene, texts in zip(scenes, said):
        for text in texts:
            question, answers, answer = text.partition(' Answer: ')
            prompt, target = (f'{question} Answer:', answer) if answers else (CAPTION_PROMPT, text)
            lines.append(f'{shapes.description(scene)}</s>{prompt}\t{target}\n')
    return ''.join(lines)


def measure(shapes, scenes, texts, asked, guesses):
    """What is reachable and what chance reaches on a split.

    Returns:
        tuple[dict, dict]: Ceiling and chance, each with ``retrieval``, ``caption`` and ``vqa``.
    """
    claims = [caption.claim for scene in scenes for caption in shapes.captions(scene)]
    blind = 100 / len(scenes)
    ceiling = {'retrieval': recall_ceiling(shapes.matching_scenes(scenes, claims), len(scenes)),
               'caption': {'CIDEr': caption_ceiling(texts)},
               'vqa': {'accuracy': percent([vqa_accuracy(q.answer, given) for _, _, q, given in asked])}}
    guessed = [vqa_accuracy(guesses.get(q.question_type), given) for _, _, q, given in asked]
    chance = {'retrieval': {'i2t/Recall@1': blind, 't2i/Recall@1': blind},
              'caption': {'CIDEr': caption_chance(texts)}, 'vqa': {'accuracy': percent(guessed)}}
    return ceiling, chance


def main(argv=None):
    args = parse_args(argv)
    out, sizes = Path(args.out), {'train': args.train, 'val': args.val, 'test': args.test}
    meta = {'version': FORMAT, 'seed': args.seed, 'image_size': args.image_size, 'sizes': sizes}
    if prepare(out, meta):
        print(f'{out} is up to date')
        print((out / 'ceilings.json').read_text(encoding='utf-8'), end='')
        return
    shapes = load_shapes()
    print('drawing scenes (some 10 s) ...', file=sys.stderr)
    drawn = make_scenes(shapes, args.seed, sizes)
    annotations = out / 'annotations'
    ceiling, chance, guesses, first_id = {}, {}, None, 1
    for split, scenes in drawn.items():
        ids = range(first_id, first_id + len(scenes))
        first_id += len(scenes)
        texts = [[caption.text for caption in shapes.captions(scene)] for scene in scenes]
        bar, asked = Progress(f'{split:<5}', len(scenes)), []
        for image_id, scene in zip(ids, scenes):
            image = shapes.render(scene, args.image_size)
            image.save(out / split / f'{image_id:012d}.jpg', quality=92, subsampling=0)
            asked += ask(shapes, scene, image_id, split, args.seed)
            bar.step()
        questions, answers = vqa_files(split, asked)
        files = {'captions': coco_captions(split, ids, texts, args.image_size),
                 'karpathy': karpathy_captions(split, ids, texts), 'questions': questions, 'answers': answers}
        if split != 'test':
            files['scene_labels'] = label_file(shapes, split, scenes, ids, args.image_size)
        for name, content in files.items():
            write_json(annotations / f'{name}_{split}.json', content)
        if split == 'train':
            said = said_of(texts, asked)
            (annotations / 'corpus_train.txt').write_text(corpus(said), encoding='utf-8')
            (annotations / 'documents_train.txt').write_text(documents(shapes, scenes, said), encoding='utf-8')
            guesses = most_frequent(asked)
        else:
            ceiling[split], chance[split] = measure(shapes, scenes, texts, asked, guesses)
    if ceiling['test']['caption']['CIDEr'] is None:
        print('pycocoevalcap is not installed: the CIDEr figures are null (pip install pycocoevalcap, remove '
              f'{out / "meta.json"} and the folders beside it, run again)', file=sys.stderr)
    text = json.dumps({'about': ABOUT, 'ceiling': ceiling, 'chance': chance}, indent=1) + '\n'
    (out / 'ceilings.json').write_text(text, encoding='utf-8')
    write_json(out / 'meta.json', dict(meta, complete=True))
    print(f'wrote {out}')
    print(text, end='')


if __name__ == '__main__':
    main()
