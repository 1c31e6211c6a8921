"""Scenes of the embedded data set "shapes": what they are, what is true of them, how they look.

Pure functions on numpy and Pillow; ``tools/dataset_converters/make_shapes.py`` writes the files. There is no
data set class for it: the files have the official formats and the ordinary classes read them.

A scene is two to four objects on a 3 x 3 grid of regions, kept in reading order. A caption carries the
``Claim`` that it makes, so that ``satisfies`` decides whether it fits a scene, without reading its text.
"""
from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'diamond')
COLORS = {'red': (220, 35, 40), 'green': (30, 150, 55), 'blue': (35, 70, 220), 'yellow': (245, 220, 40),
          'purple': (165, 50, 190), 'cyan': (60, 215, 225), 'white': (250, 250, 250), 'black': (15, 15, 15)}
SIZES = {'small': 5.4 / 64, 'large': 8.8 / 64}  # radius as a share of the image width
REGIONS = ('top left', 'top', 'top right', 'left', 'center', 'right', 'bottom left', 'bottom', 'bottom right')
RELATIONS = ('left of', 'right of', 'above', 'below')
PAIRS = tuple(itertools.product(COLORS, SHAPES))
NUMBERS = {1: 'one', 2: 'two', 3: 'three', 4: 'four'}
OBJECT_COUNTS = {2: 0.2, 3: 0.4, 4: 0.4}  # share of the scenes with so many objects
PLURALS = {shape: shape + ('es' if shape == 'cross' else 's') for shape in SHAPES}
REACH = 1.12  # no point of a shape is farther from its centre than this many radii
SUPERSAMPLING = 4
COVERAGE = 0.15  # least share of a patch that an object covers for the patch to get its labels


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: ``x``, ``y`` (centre), ``radius`` as shares of the image width, ``angle`` in degrees."""
    size: str
    color: str
    shape: str
    cell: int
    x: float
    y: float
    radius: float
    angle: float

    @property
    def pair(self):
        return self.color, self.shape

    @property
    def region(self):
        return REGIONS[self.cell]


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order and a background: grey levels (r, g, b) at the centre and a slope (x, y)."""
    things: tuple
    background: tuple
    slope: tuple

    @property
    def combination(self):
        """The multiset of (color, shape), which no two splits share."""
        return tuple(sorted(thing.pair for thing in self.things))

    @property
    def layout(self):
        """Everything that words can say about the scene; scenes of a split differ in it."""
        return tuple((t.size, t.color, t.shape, t.cell) for t in self.things)


class Mention(NamedTuple):
    """What a caption says about one object; None means that it says nothing."""
    color: str
    shape: str
    size: str | None = None
    region: str | None = None

    def fits(self, thing):
        return (thing.pair == (self.color, self.shape) and self.size in (None, thing.size)
                and self.region in (None, thing.region))


class Claim(NamedTuple):
    """What a caption says: distinct objects, how the first lies to the second, how many there are in all."""
    mentions: tuple
    relation: str | None = None
    number: int | None = None


class Caption(NamedTuple):
    text: str
    claim: Claim


class Question(NamedTuple):
    """``answers`` is the answer space from which a disagreeing annotator draws."""
    text: str
    answer: str
    answer_type: str
    question_type: str
    answers: tuple


# ---------------------------------------------------------------------------------------------- scenes
def sample_scene(rng, required=()):
    """Draw a scene.

    Args:
        rng (numpy.random.Generator): Source of every draw.
        required (sequence): Pairs (color, shape) that the scene must hold, at most two.

    Returns:
        Scene: Two to four objects with distinct (color, shape) in distinct regions.
    """
    count = int(rng.choice(list(OBJECT_COUNTS), p=list(OBJECT_COUNTS.values())))
    pairs = [tuple(pair) for pair in required]
    while len(pairs) < count:
        color, shape = PAIRS[rng.integers(len(PAIRS))]
        if pairs and rng.random() < 0.35:  # share a color or a shape, so that there is something to count
            other = pairs[rng.integers(len(pairs))]
            color, shape = (other[0], shape) if rng.random() < 0.5 else (color, other[1])
        if (color, shape) not in pairs:
            pairs.append((color, shape))
    cells = rng.permutation(9)[:count]
    things = [_place(rng, color, shape, int(cell)) for (color, shape), cell in zip(pairs, cells)]
    grey = rng.uniform(112, 148)
    background = tuple(float(grey + tint) for tint in rng.uniform(-7, 7, 3))
    slope = tuple(float(value) for value in rng.uniform(-12, 12, 2))
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)), background, slope)


def _place(rng, color, shape, cell):
    size = 'small' if rng.random() < 0.5 else 'large'
    radius = SIZES[size] + rng.uniform(-0.3, 0.3) / 64
    play = min(3 / 64, 1 / 6 - REACH * radius)
    x, y = (np.array([cell % 3, cell // 3]) + 0.5) / 3 + rng.uniform(-play, play, 2)
    return Thing(size, color, shape, cell, float(x), float(y), float(radius), float(rng.uniform(-6, 6)))


def holds(relation, first, second):
    """Whether ``first`` is e.g. 'left of' ``second``, judged by the columns and rows of their regions."""
    columns, rows = second.cell % 3 - first.cell % 3, second.cell // 3 - first.cell // 3
    return {'left of': columns > 0, 'right of': columns < 0, 'above': rows > 0, 'below': rows < 0}[relation]


def satisfies(scene, claim):
    """Whether everything that a caption claims is true of a scene."""
    if claim.number not in (None, len(scene.things)):
        return False
    for chosen in itertools.permutations(scene.things, len(claim.mentions)):
        if (all(mention.fits(thing) for mention, thing in zip(claim.mentions, chosen))
                and (claim.relation is None or holds(claim.relation, *chosen[:2]))):
            return True
    return False


def matching_scenes(scenes, claims):
    """For each claim the scenes that satisfy it.

    Args:
        scenes (list[Scene]): The gallery.
        claims (iterable[Claim]): The claims.

    Returns:
        list[list[int]]: Indices into ``scenes``, ascending, one list a claim.
    """
    having: dict[tuple, set[int]] = {pair: set() for pair in PAIRS}
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            having[thing.pair].add(index)
    matches = []
    for claim in claims:
        candidates = set.intersection(*(having[mention.color, mention.shape] for mention in claim.mentions))
        matches.append(sorted(index for index in candidates if satisfies(scenes[index], claim)))
    return matches


# ------------------------------------------------------------------------------------------------ words
def _say(mention):
    words = ['a', mention.size, mention.color, mention.shape]
    if mention.region:
        words += ['at the', mention.region]
    return ' '.join(word for word in words if word)


def _listing(mentions):
    said = [_say(mention) for mention in mentions]
    return ' '.join(said[:-1]) + ' and ' + said[-1]


def captions(scene):
    """Five captions in five wordings, each a fixed function of the scene.

    Returns:
        list[Caption]: Lower-case ASCII without punctuation; objects in reading order, except in the last.
    """
    things, count = scene.things, len(scene.things)
    sized = tuple(Mention(t.color, t.shape, t.size) for t in things)
    named = sized if count == 2 else tuple(Mention(t.color, t.shape) for t in things)
    placed = tuple(Mention(t.color, t.shape, region=t.region) for t in (things[0], things[-1]))
    forward = 'above' if holds('above', *things[:2]) else 'left of'
    backward = 'below' if holds('below', things[-1], things[-2]) else 'right of'
    rest = {2: 'nothing else', 3: 'one other object', 4: 'two other objects'}[count]
    number = NUMBERS[count]
    ending = sized[-1], sized[-2]
    return [
        Caption(_listing(sized), Claim(sized)),
        Caption(f'there are {number} objects {_listing(named)}', Claim(named, number=count)),
        Caption(f'{_say(sized[0])} {forward} {_say(sized[1])} and {rest}', Claim(sized[:2], forward, count)),
        Caption(_listing(placed), Claim(placed)),
        Caption(f'{number} objects with {_say(ending[0])} {backward} {_say(ending[1])}',
                Claim(ending, backward, count)),
    ]


def description(scene):
    """Everything that words can say of a scene: region, size, color and shape of each object in reading order.

    Returns:
        str: For example ``'top left small red circle bottom large white star'``.
    """
    return ' '.join(f'{thing.region} {thing.size} {thing.color} {thing.shape}' for thing in scene.things)


def questions(scene, rng):
    """Four questions with their answers: yes/no, number, and two of type other.

    Args:
        scene (Scene): What is asked about.
        rng (numpy.random.Generator): Source of every draw.

    Returns:
        list[Question]: Four questions with distinct texts; yes and no are equally likely.
    """
    yes_no = _existence(scene, rng) if rng.random() < 0.65 else _relation(scene, rng)
    asked = [yes_no, _number(scene, rng)]
    others = _others(scene)
    while len(asked) < 4:
        kind = rng.choice(list(others), p=_shares(others))
        question = others[kind][rng.integers(len(others[kind]))]
        if question not in asked:
            asked.append(question)
    return asked


_YES_NO = ('yes', 'no')
_DIGITS = ('0', '1', '2', '3', '4')
_OTHER_WEIGHTS = {'color': 0.28, 'shape': 0.28, 'size': 0.17, 'where': 0.17, 'relation': 0.10}


def _shares(others):
    weights = np.array([_OTHER_WEIGHTS[kind] for kind in others])
    return weights / weights.sum()


def _existence(scene, rng):
    answer = _YES_NO[rng.integers(2)]
    present = [thing.pair for thing in scene.things]
    if rng.random() < 0.3:
        colors = {color for color, _ in present}
        fitting = [color for color in COLORS if (color in colors) == (answer == 'yes')]
        name = f'{fitting[rng.integers(len(fitting))]} object'
    else:
        pool = present
        if answer == 'no':  # at least half of them share their color or shape with an object that is there
            pool = [pair for pair in PAIRS if pair not in present]
            near = [pair for pair in pool if any(pair[0] == p[0] or pair[1] == p[1] for p in present)]
            pool = near if rng.random() < 0.5 else pool
        name = ' '.join(pool[rng.integers(len(pool))])
    return Question(f'is there a {name}?', answer, 'yes/no', 'is there a', _YES_NO)


def _relation(scene, rng):
    answer = _YES_NO[rng.integers(2)]
    first, second = (scene.things[index] for index in rng.permutation(len(scene.things))[:2])
    true = [relation for relation in RELATIONS if holds(relation, first, second)]
    relation = true[rng.integers(len(true))]
    if answer == 'no':
        relation = RELATIONS[RELATIONS.index(relation) ^ 1]  # the opposite
    text = f'is the {first.color} {first.shape} {relation} the {second.color} {second.shape}?'
    return Question(text, answer, 'yes/no', 'is the', _YES_NO)


def _number(scene, rng):
    if rng.random() < 0.35:
        number = str(len(scene.things))
        return Question('how many objects are there?', number, 'number', 'how many', ('2', '3', '4'))
    names = [(f'{color} objects', sum(t.color == color for t in scene.things)) for color in COLORS]
    names += [(PLURALS[shape], sum(t.shape == shape for t in scene.things)) for shape in SHAPES]
    wanted = rng.choice(4, p=(0.25, 0.3, 0.3, 0.15))
    pool = [item for item in names if item[1] == wanted] or [item for item in names if item[1] == 1] or names
    name, number = pool[rng.integers(len(pool))]
    return Question(f'how many {name} are there?', str(number), 'number', 'how many', _DIGITS)


def _others(scene):
    """Every question of type other that has one answer, by kind."""
    things = scene.things
    found: dict[str, list[Question]] = {kind: [] for kind in _OTHER_WEIGHTS}

    def add(kind, start, rest, answer, answers):
        found[kind].append(Question(f'{start} {rest}?', answer, 'other', start, tuple(answers)))

    for thing in things:
        color, shape = thing.pair
        if sum(t.shape == shape for t in things) == 1:
            add('color', 'what color is the', shape, color, COLORS)
        if sum(t.color == color for t in things) == 1:
            add('shape', 'what shape is the', f'{color} object', shape, SHAPES)
        add('size', 'what size is the', f'{color} {shape}', thing.size, SIZES)
        add('where', 'where is the', f'{color} {shape}', thing.region, REGIONS)
        for relation in RELATIONS:
            there = [other for other in things if other is not thing and holds(relation, other, thing)]
            if len(there) == 1:
                add('relation', 'what shape is', f'{relation} the {color} {shape}', there[0].shape, SHAPES)
    return {kind: asked for kind, asked in found.items() if asked}


def human_answers(question, rng):
    """Ten answers as in VQAv2: eight to ten agree, the others are other answers of the same kind.

    Returns:
        list[dict]: ``answer``, ``answer_confidence`` ('yes' or 'maybe') and ``answer_id`` 1 to 10.
    """
    wrong = set(rng.permutation(10)[:rng.choice(3, p=(0.5, 0.3, 0.2))].tolist())
    pool = [answer for answer in question.answers if answer != question.answer]
    return [{'answer': pool[rng.integers(len(pool))] if index in wrong else question.answer,
             'answer_confidence': 'maybe' if index in wrong else 'yes', 'answer_id': index + 1}
            for index in range(10)]


# ----------------------------------------------------------------------------------------------- pixels
def _outline(shape):
    """Corners of a shape of radius 1 around the origin (y points down); None for the circle."""
    if shape == 'square':
        return [(-.79, -.79), (.79, -.79), (.79, .79), (-.79, .79)]
    if shape == 'diamond':
        return [(0, -1.12), (1.12, 0), (0, 1.12), (-1.12, 0)]
    if shape == 'triangle':
        return [(0, -1.05), (0.97, 0.56), (-0.97, 0.56)]
    if shape == 'star':
        turns = [(k * math.pi / 5, 0.48 if k % 2 else 1.12) for k in range(10)]
        return [(radius * math.sin(turn), -radius * math.cos(turn)) for turn, radius in turns]
    if shape == 'cross':
        a, b = 0.36, 1.05
        return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
                (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    return None


def _draw(draw, thing, width, fill):
    x, y, radius = thing.x * width, thing.y * width, thing.radius * width
    corners = _outline(thing.shape)
    if corners is None:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    cos, sin = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    draw.polygon([(x + radius * (cos * u - sin * v), y + radius * (sin * u + cos * v)) for u, v in corners],
                 fill=fill)


def render(scene, image_size=72):
    """Paint a scene with smooth edges.

    Args:
        scene (Scene): What to paint.
        image_size (int): Width and height in pixels.

    Returns:
        PIL.Image.Image: RGB image, ``image_size`` x ``image_size``.
    """
    ramp = np.linspace(-1, 1, image_size)
    slope = scene.slope[0] * ramp[None, :] + scene.slope[1] * ramp[:, None]
    pixels = np.asarray(scene.background)[None, None, :] + slope[:, :, None]
    ground = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    width = image_size * SUPERSAMPLING
    image = ground.resize((width, width), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw(draw, thing, width, COLORS[thing.color])
    return image.resize((image_size, image_size), Image.Resampling.BOX)


def label_patches(scene, image_size=72, patch_size=24):
    """Attributes of the object that covers most of each patch.

    Args:
        scene (Scene): The scene.
        image_size (int): Width and height of its image in pixels, a multiple of ``patch_size``.
        patch_size (int): Width and height of a patch in pixels.

    Returns:
        list[list[int]]: Four rows (shape, color, size, region) of one number a patch, row by row; 0 is
        background, other numbers count from 1 in the order of SHAPES, COLORS, SIZES and REGIONS. An encoder
        that need not tell the region forgets the place of what it sees.
    """
    width, side = image_size * SUPERSAMPLING, patch_size * SUPERSAMPLING
    canvas = Image.new('L', (width, width))
    draw = ImageDraw.Draw(canvas)
    for index, thing in enumerate(scene.things, 1):
        _draw(draw, thing, width, index)
    patches = np.asarray(canvas).reshape(width // side, side, width // side, side)
    shares = np.stack([(patches == index).mean((1, 3)).ravel() for index in range(1, len(scene.things) + 1)])
    owner = np.where(shares.max(0) >= COVERAGE, shares.argmax(0) + 1, 0)
    names = (SHAPES, tuple(COLORS), tuple(SIZES), REGIONS)
    values = [(thing.shape, thing.color, thing.size, thing.region) for thing in scene.things]
    return [[0 if index == 0 else names[row].index(values[index - 1][row]) + 1 for index in owner.tolist()]
            for row in range(len(names))]
