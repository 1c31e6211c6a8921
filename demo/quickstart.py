"""Runs a quickstart: data, trainings and their evaluations, one table; of BLIP-2 also one page.

    python demo/quickstart.py [--blip | --flickr8k [--source DIR]] [--short]

BLIP-2 is the default, ``--blip`` the older sibling; data and tokenizers are made once for both. ``--flickr8k`` is the
recipe of configs/flickr8k: real photos, which DIR has (see prepare_flickr8k.py), and real frozen parts. Started by
``demo/bootstrap.py`` inside the virtual environment, in the folder of data/ and work_dirs/. Every step is a call of a
script in tools/. A step whose config, options and inputs are those of the last time is skipped; an interrupted training
goes on at its last checkpoint. To run a step again, remove its folder below work_dirs/. ``--short`` takes a few
iterations on little data: a check that all runs.
"""
import argparse
import ast
import contextlib
import hashlib
import json
import os
import platform
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
STATUS_INTERVAL = 20.0  # seconds between two lines on the remaining time
TASKS = ('retrieval', 'caption', 'vqa')
HEADLINES = {'retrieval': {'i2t/Recall@1': 'image to text, recall@1 (%)',
                           't2i/Recall@1': 'text to image, recall@1 (%)'},
             'caption': {'CIDEr': 'CIDEr (%)'},
             'vqa': {'accuracy': 'accuracy (%)'}}
VQA_FLOORS = {'vqa': 65.0, 'vqa_rank': 55.0, 'vqa_generate': 55.0}  # BLIP has fewer iterations


class Mode(NamedTuple):
    """What differs between the full and the short quickstart."""
    data: str  # the configs read both folders from the environment
    work: str
    sizes: dict  # options of the script that makes the data
    iterations: dict  # step -> iterations of its training; empty: as the config says
    cfg_options: tuple = ()  # of every step with a config


FULL = Mode('data/shapes', 'work_dirs/quickstart', {}, {})
SHORT = Mode('data/shapes-short', 'work_dirs/quickstart-short', {'train': 400, 'val': 50, 'test': 50},
             {'language_model': 60, 'vision_encoder': 40, 'stage1': 30, 'stage2': 30, 'vqa': 20,
              'blip_vision_encoder': 40, 'blip_pretrain': 30, 'blip_caption': 30, 'blip_vqa': 30})


class Step(NamedTuple):
    """One process.

    Args:
        name: Name of the step, of its log and of its folder.
        kind: 'data', 'tokenizers', 'train', 'test', or 'tool', which has ``options`` and ``results``.
        script: Script below tools/.
        expected: Seconds that it takes on two cores (full, short); only to estimate the remaining time.
        config: Config in the folder of the demo, without '.py'; '' when the script takes none.
        needs: Steps whose results it reads; a test reads the checkpoint of the last one.
        shuffled: A test with the images exchanged.
        cfg_options: What it changes in its config.
        options: Of a tool; with {source}, {data} and {work}.
        results: Files that a tool leaves, below the working folder; with {data} and {work}.
    """
    name: str
    kind: str
    script: str
    expected: tuple
    config: str = ''
    needs: tuple = ()
    shuffled: bool = False
    cfg_options: tuple = ()
    options: tuple = ()
    results: tuple = ()


# Steps of one tuple depend on none another and run side by side, with half of the cores each.
WAVES = (
    (Step('data', 'data', 'dataset_converters/make_shapes.py', (20, 4)),),
    (Step('tokenizers', 'tokenizers', 'dataset_converters/train_tokenizers.py', (5, 3), needs=('data',)),),
    (Step('language_model', 'train', 'train.py', (75, 15), 'language_model', ('tokenizers',)),),
    (Step('vision_encoder', 'train', 'train.py', (23, 12), 'vision_encoder', ('data',)),),
    (Step('stage1', 'train', 'train.py', (150, 15), 'stage1', ('vision_encoder',)),),
    (Step('stage2', 'train', 'train.py', (66, 15), 'stage2', ('language_model', 'stage1')),),
    (Step('vqa', 'train', 'train.py', (180, 15), 'vqa', ('stage1', 'stage2')),),
    (Step('test_retrieval', 'test', 'test.py', (37, 12), 'stage1', ('stage1',)),
     Step('test_retrieval_shuffled', 'test', 'test.py', (37, 12), 'stage1', ('stage1',), True)),
    (Step('test_caption', 'test', 'test.py', (27, 15), 'stage2', ('stage2',)),
     Step('test_caption_shuffled', 'test', 'test.py', (27, 15), 'stage2', ('stage2',), True)),
    (Step('test_vqa', 'test', 'test.py', (16, 12), 'vqa', ('vqa',)),
     Step('test_vqa_shuffled', 'test', 'test.py', (16, 12), 'vqa', ('vqa',), True)),
)


def tests(task, seconds, training, *cfg_options):
    """Returns the two tests of a task, with its images and with exchanged ones, as a wave."""
    return tuple(Step(f'test_{task}{suffix}', 'test', 'test.py', seconds, training, (training, ), bool(suffix),
                      cfg_options) for suffix in ('', '_shuffled'))


BLIP_WAVES = (
    *WAVES[:2],  # data and tokenizers are those of BLIP-2
    (Step('blip_vision_encoder', 'train', 'train.py', (23, 12), 'blip_vision_encoder', ('data',)),),
    (Step('blip_pretrain', 'train', 'train.py', (180, 20), 'blip_pretrain', ('tokenizers', 'blip_vision_encoder')),),
    (Step('blip_caption', 'train', 'train.py', (60, 15), 'blip_caption', ('blip_pretrain',)),
     Step('blip_vqa', 'train', 'train.py', (180, 15), 'blip_vqa', ('blip_pretrain',))),
    tests('blip_retrieval', (40, 12), 'blip_pretrain'),
    tests('blip_caption', (30, 15), 'blip_caption'),
    tests('blip_vqa_rank', (20, 12), 'blip_vqa'),
    tests('blip_vqa_generate', (20, 12), 'blip_vqa', 'model.candidates=None'),
)


# Expected: measured with the settings of today's configs where their headers say so, else by their iterations.
FLICKR8K_WAVES = (
    (Step('data', 'tool', 'dataset_converters/prepare_flickr8k.py', (20, 5),
          options=('--source', '{source}', '--out', '{data}'), results=('{data}/annotations/captions_val.json',)),
     Step('parts', 'tool', 'model_converters/prepare_real_parts.py', (40, 40), options=('--out', 'data/pretrained'),
          results=('data/pretrained/minilm-bert/config.json', 'data/pretrained/smollm2/config.json'))),
    (Step('features', 'tool', 'dataset_converters/cache_features.py', (1200, 20), 'stage1', ('data', 'parts'),
          options=('--work-dir', '{work}/features'), results=('data/features',)),),
    (Step('stage1', 'train', 'train.py', (3300, 60), 'stage1', ('features',)),),
    (Step('retrieval', 'train', 'train.py', (1500, 60), 'retrieval', ('stage1',)),),
    tests('retrieval', (60, 30), 'retrieval'),
    (Step('stage2', 'train', 'train.py', (3300, 60), 'stage2', ('features',)),),
    (Step('caption', 'train', 'train.py', (2580, 60), 'caption', ('stage2',)),),
    tests('caption', (400, 40), 'caption'),
)
FLICKR8K_FULL = Mode('data/flickr8k', 'work_dirs/flickr8k', {}, {})
FLICKR8K_SHORT = Mode('data/flickr8k-short', 'work_dirs/flickr8k-short', {'first': (48, 12)},
                      {'stage1': 8, 'retrieval': 8, 'stage2': 8, 'caption': 8},
                      ('train_dataloader.batch_size=8', '+train_cfg.val_interval=4',
                       'default_hooks.checkpoint.interval=4'))
# Percent. Chance: of 5,000 texts five are right, of 1,000 images one. Ceiling: one of the five captions against the
# other four, averaged. Recall is not bounded that way.
FLICKR8K_BOUNDS = {
    'floor': {'retrieval': {'i2t/Recall@1': 22.0, 't2i/Recall@1': 18.0}, 'caption': {'Bleu_4': 20.0, 'CIDEr': 45.0}},
    'aim': {'retrieval': {'i2t/Recall@1': 30.0, 't2i/Recall@1': 24.0}, 'caption': {'Bleu_4': 23.0, 'CIDEr': 60.0}},
    'chance': {'retrieval': {'i2t/Recall@1': 0.1, 't2i/Recall@1': 0.1}, 'caption': {}},
    'ceiling': {'retrieval': {}, 'caption': {'Bleu_4': 20.9, 'METEOR': 25.0, 'CIDEr': 78.9}}}


class Demo(NamedTuple):
    """What differs between the quickstarts.

    Args:
        waves: Its steps.
        tasks: Row of the table, 'vqa_rank' for example, which begins with the kind of task -> its test.
        summary: File of the results, below the work folder.
        page: Whether demo/report.py writes a page.
        full: The whole quickstart.
        short: The short one.
        configs: Folder of its configs, below configs/.
        data_variable, work_variable: Environment variables by which these find the folders of the mode.
        validate: Whether the trainings evaluate as their configs say, which gives curves.
        bounds: 'chance', 'ceiling', 'floor', 'aim' -> task -> key -> percent; None: ceilings.json of the data has the
            first two, and ``floors`` knows the third.
    """
    waves: tuple
    tasks: dict
    summary: str
    page: bool
    full: Mode = FULL
    short: Mode = SHORT
    configs: str = 'quickstart'
    data_variable: str = 'MMBLIP2_SHAPES'
    work_variable: str = 'MMBLIP2_QUICKSTART'
    validate: bool = False
    bounds: dict | None = None


BLIP2 = Demo(WAVES, {task: f'test_{task}' for task in TASKS}, 'summary.json', True)
BLIP = Demo(BLIP_WAVES, {task: f'test_blip_{task}' for task in ('retrieval', 'caption', 'vqa_rank', 'vqa_generate')},
            'summary_blip.json', False)
FLICKR8K = Demo(FLICKR8K_WAVES, {'retrieval': 'test_retrieval', 'caption': 'test_caption'}, 'summary.json', True,
                FLICKR8K_FULL, FLICKR8K_SHORT, 'flickr8k', 'MMBLIP2_FLICKR8K', 'MMBLIP2_FLICKR8K_WORK', True,
                FLICKR8K_BOUNDS)


class StepError(Exception):
    """A step failed or left no result; the message names the log."""


# ------------------------------------------------------------------------------------------------ configs
def config_files(path):
    """Returns `path` and the files of its ``_base_`` chain (list of Path), each once."""
    path, found = Path(path).resolve(), []
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            bases = ast.literal_eval(node.value)
            for base in [bases] if isinstance(bases, str) else bases:
                found += [file for file in config_files(path.parent / base) if file not in found]
    return [path] + found


# ------------------------------------------------------------------------------------------------ the run
def say(text):
    print(text, flush=True)


class Quickstart:
    """Runs the steps of a mode and skips those that are done.

    Args:
        mode (Mode): FULL or SHORT.
        home (Path): Folder that holds data/ and work_dirs/.
        checkout (Path): Root of the checkout.
        waves (tuple, optional): Tuples of steps; those of one tuple run side by side. Default: those of the demo.
        demo (Demo): BLIP2, BLIP or FLICKR8K.
        source (str): Folder that tools read.
    """

    def __init__(self, mode, home, checkout=CHECKOUT, waves=None, demo=BLIP2, source=''):
        self.mode, self.home, self.checkout, self.demo = mode, Path(home), Path(checkout), demo
        self.source = source
        waves = self.waves = demo.waves if waves is None else waves
        self.steps = {step.name: step for wave in waves for step in wave}
        self.work, self.data = self.home / mode.work, self.home / mode.data
        self.cores = int(os.environ.get('OMP_NUM_THREADS') or os.cpu_count() or 1)
        self.start = time.monotonic()
        self.measured, self.guessed = 0.0, 0.0  # seconds of the waves run in this call, and their estimate

    # ---- what a step leaves behind
    def folder(self, name):
        return self.work / name

    def stamp(self, name):
        """Returns ``{'hash', 'finished', 'run', 'seconds'}`` of the step's last start, or {}."""
        try:
            return json.loads((self.work / 'stamps' / f'{name}.json').read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}

    def write_stamp(self, name, **values):
        path = self.work / 'stamps' / f'{name}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix('.part')
        part.write_text(json.dumps(values), encoding='utf-8')
        os.replace(part, path)

    def checkpoint(self, name):
        """Returns the newest checkpoint of a training (Path), or None."""
        pointer = self.folder(name) / 'last_checkpoint'
        if not pointer.is_file():
            return None
        written = self.home / pointer.read_text(encoding='utf-8').strip()
        # The second: the folder has been moved since.
        return next((path for path in (written, self.folder(name) / written.name) if path.exists()), None)

    def has_results(self, step):
        """Returns whether the results of a step are there."""
        if step.kind == 'data':
            return (self.data / 'meta.json').is_file()
        if step.kind == 'tokenizers':
            return all((self.data / 'tokenizers' / name).is_dir() for name in ('bert', 'opt'))
        if step.kind == 'tool':
            return all((self.home / self.filled(path)).exists() for path in step.results)
        if step.kind == 'train':
            return self.checkpoint(step.name) is not None
        return (self.folder(step.name) / 'metrics.json').is_file()

    def step_hash(self, step):
        """Returns a hash of what decides a step's result: config, options, data script, input runs."""
        digest = hashlib.sha256(json.dumps([step.config, step.shuffled, *self.options(step)]).encode())
        files = config_files(self.config(step)) if step.config else [self.checkout / 'tools' / step.script]
        for file in files:
            digest.update(file.read_bytes())
        for name in step.needs:
            digest.update(f'{name} {self.stamp(name).get("run")}'.encode())
        return digest.hexdigest()

    def is_done(self, step):
        """Returns whether a step was finished with today's config and inputs and has kept its results."""
        stamp = self.stamp(step.name)
        return (bool(stamp.get('finished')) and stamp['hash'] == self.step_hash(step)
                and self.has_results(step))

    # ---- the command of a step
    def config(self, step):
        return self.checkout / 'configs' / self.demo.configs / f'{step.config}.py'

    def filled(self, text, source=''):
        """Returns a text of a step with the folders put in."""
        return text.format(source=source, data=self.mode.data, work=self.mode.work)

    def options(self, step, source=''):
        """Returns the options of a step (list of str); all paths but `source` are relative to the working folder."""
        sizes = [str(part) for name, size in self.mode.sizes.items()
                 for part in (f'--{name}', *(size if isinstance(size, tuple) else (size,)))]
        changes = [*step.cfg_options, *(self.mode.cfg_options if step.config else ())]
        if step.kind == 'data':
            return ['--out', self.mode.data, *sizes]
        if step.kind == 'tool':
            return [*(self.filled(text, source) for text in step.options), *(sizes if step.name == 'data' else []),
                    *(['--cfg-options', *changes] if changes else [])]
        if step.kind == 'tokenizers':
            return ['--corpus', f'{self.mode.data}/annotations/corpus_train.txt',
                    '--out', f'{self.mode.data}/tokenizers']
        options = ['--work-dir', f'{self.mode.work}/{step.name}']
        if step.kind == 'test':
            return options + ['--out', f'{self.mode.work}/{step.name}/metrics.json',
                              *(['--shuffle-images'] if step.shuffled else []),
                              *(['--cfg-options', *changes] if changes else [])]
        if not self.demo.validate:
            options.append('--no-validate')  # the test split follows
        if step.name in self.mode.iterations:  # too few for a warm-up
            changes = ['default_hooks.logger.interval=2', 'param_scheduler=None',
                       f'train_cfg.max_iters={self.mode.iterations[step.name]}', *changes]
        return options + (['--cfg-options', *changes] if changes else [])

    def command(self, step, resume=False):
        """Returns the command line of a step (list of str).

        Raises:
            StepError: a test's checkpoint is missing.
        """
        command = [sys.executable, str(self.checkout / 'tools' / step.script)]
        if step.config:
            command.append(str(self.config(step)))
        if step.kind == 'test':
            checkpoint = self.checkpoint(step.needs[-1])
            if checkpoint is None:
                raise StepError(f'{step.name} finds no checkpoint in {self.folder(step.needs[-1])}')
            command.append(str(checkpoint))
        if '{source}' in step.options and not self.source:
            raise StepError(f'{step.name} needs the folder of the photos: make flickr8k DATA=DIR, where DIR has '
                            'flickr8k_train.json, flickr8k_val.json and their *_images.tar')
        return command + (['--resume'] if resume else []) + self.options(step, self.source)

    # ---- running
    def run(self):
        """Runs or skips every step.

        Raises:
            StepError: a step failed.
        """
        position = 0
        for wave in self.waves:
            todo = [step for step in wave if not self.is_done(step)]
            for step in wave:
                if step not in todo:
                    position += 1
                    say(f'[{position}/{len(self.steps)}] {step.name}: done before, skipped')
            if todo:
                numbers = '-'.join(str(n) for n in sorted({position + 1, position + len(todo)}))
                position += len(todo)
                self.run_wave(todo, f'[{numbers}/{len(self.steps)}] {", ".join(step.name for step in todo)}')

    def expected(self, steps):
        """Returns the seconds that steps take side by side on two cores, by the table of steps."""
        return max((step.expected[bool(self.mode.iterations)] for step in steps), default=0)

    def remaining(self, wave, elapsed):
        """Returns the estimated seconds to the end; this wave (steps) has run for `elapsed` seconds."""
        speed = self.measured / self.guessed if self.guessed else 1.0
        now = max(self.expected(wave) * speed - elapsed, 0.1 * elapsed)
        pending, later = set(), 0.0
        for others in self.waves:
            ahead = [step for step in others if step not in wave
                     and (pending & set(step.needs) or not self.is_done(step))]
            pending.update(step.name for step in (*ahead, *(step for step in others if step in wave)))
            later += self.expected(ahead)
        return now + later * speed

    def run_wave(self, wave, title):
        """Runs steps side by side; prints and logs their lines, with the remaining time in between."""
        say(f'\n=== {title} | {self.elapsed():.0f} s gone, about {self.remaining(wave, 0):.0f} s to go ===')
        env = dict(os.environ, OMP_NUM_THREADS=str(max(1, self.cores // len(wave))), PYTHONUNBUFFERED='1',
                   **{self.demo.data_variable: self.mode.data, self.demo.work_variable: self.mode.work})
        steps = {step.name: step for step in wave}
        start = shown = time.monotonic()
        lines, running = queue.Queue(), {}
        try:
            for step in wave:
                running[step.name] = self.begin(step, env, lines)
            while running:
                with contextlib.suppress(queue.Empty):
                    name, line = lines.get(timeout=1.0)
                    if line is None:
                        self.end(steps[name], running.pop(name))
                    else:
                        say(f'{name} | {line}' if len(wave) > 1 else line)
                now = time.monotonic()
                if running and now - shown >= STATUS_INTERVAL:
                    shown, left = now, self.remaining(wave, now - start)
                    say(f'--- {title} | {self.elapsed():.0f} s gone, about {left:.0f} s to go ---')
        finally:
            for name, process in running.items():
                process.stop()
                self.write_stamp(name, **dict(self.stamp(name), seconds=process.seconds()))
        self.measured += time.monotonic() - start
        self.guessed += self.expected(wave)

    def elapsed(self):
        return time.monotonic() - self.start

    def begin(self, step, env, lines):
        """Starts a step's process: at its last checkpoint if it was interrupted, else in an empty folder."""
        stamp, code = self.stamp(step.name), self.step_hash(step)
        resume = (step.kind == 'train' and stamp.get('hash') == code and not stamp.get('finished')
                  and self.checkpoint(step.name) is not None)
        if resume:
            say(f'{step.name} was interrupted: it goes on at its last checkpoint')
        elif step.kind in ('train', 'test'):
            shutil.rmtree(self.folder(step.name), ignore_errors=True)
        command = self.command(step, resume)
        seconds = stamp.get('seconds', 0.0) if resume else 0.0
        self.write_stamp(step.name, hash=code, finished=False, run=time.time_ns(), seconds=seconds)
        return Process(step.name, command, self.home, env, self.log(step.name), 'a' if resume else 'w', lines,
                       seconds)

    def end(self, step, process):
        """Records a step whose process has ended.

        Raises:
            StepError: the process failed, or its results are not there.
        """
        status = process.child.wait()
        log = f'Its output: {self.log(step.name)}. Once mended, the same command goes on from here.'
        if status:
            raise StepError(f'{step.name} failed with exit status {status}. {log}')
        if not self.has_results(step):
            folder = (self.data if step.kind in ('data', 'tokenizers') else self.folder(step.name)
                      if step.kind != 'tool' else ', '.join(map(self.filled, step.results)))
            raise StepError(f'{step.name} ended well, but its results are not in {folder}. {log}')
        self.write_stamp(step.name, **dict(self.stamp(step.name), finished=True, seconds=process.seconds()))

    def log(self, name):
        return self.work / 'logs' / f'{name}.log'

    # ---- results
    def seconds(self):
        """Returns the seconds of the installation, of each step, and of the run with its parallel steps."""
        steps = {name: round(self.stamp(name).get('seconds', 0.0), 1) for name in self.steps}
        run = sum(max(steps[step.name] for step in wave) for wave in self.waves)
        installation = float(os.environ.get('MMBLIP2_INSTALL_SECONDS') or 0)
        return {'installation': installation, 'run': round(run, 1), **steps}

    def summary(self):
        """Returns the content of summary.json."""
        metrics = {step.name: read_json(self.folder(step.name) / 'metrics.json')
                   for step in self.steps.values() if step.kind == 'test'}
        if self.demo.bounds:
            return make_bounded_summary(metrics, self.demo.bounds, self.seconds(), machine(), self.demo.tasks)
        figures = read_json(self.data / 'ceilings.json')
        return make_summary(metrics, figures, self.seconds(), machine(), self.demo.tasks)

    def results(self):
        """Returns the files that the run ends with (list of Path)."""
        return [self.work / self.demo.summary, *([self.work / 'index.html'] if self.demo.page else [])]


class Process:
    """A child process whose lines go to a log file and, as (name, line), to a queue; (name, None) is its end.

    Args:
        name (str): Name of the step.
        command (list[str]): Command line.
        cwd (Path): Working folder.
        env (dict): Environment variables.
        log (Path): Log file.
        mode (str): 'w' starts the log anew, 'a' adds to it.
        lines (queue.Queue): Receives the lines.
        before (float): Seconds that the step has taken before, when this is a continuation.
    """

    def __init__(self, name, command, cwd, env, log, mode, lines, before=0.0):
        self.name, self.lines, self.before, self.start = name, lines, before, time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        self.child = subprocess.Popen(
            command, cwd=cwd, env=env, text=True, encoding='utf-8', errors='replace',
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True)  # so that stop() reaches its children too
        threading.Thread(target=self.forward, args=(log, mode, shlex.join(command)), daemon=True).start()

    def forward(self, log, mode, command):
        with open(log, mode, encoding='utf-8') as file:
            file.write(f'$ {command}\n')
            for line in self.child.stdout:
                file.write(line)
                file.flush()
                self.lines.put((self.name, line.rstrip()))
        self.lines.put((self.name, None))

    def seconds(self):
        return self.before + time.monotonic() - self.start

    def stop(self):
        """Ends the process and its children."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(timeout=5)
                return


# ------------------------------------------------------------------------------------------------ results
def read_json(path):
    return json.loads(Path(path).read_text(encoding='utf-8'))


def machine():
    """Returns a description of this machine."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
        cpu = next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), cpu)
    versions = {}
    for package in ('torch', 'transformers', 'mmengine'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {'system': platform.platform(), 'cpu': cpu, 'cores': os.cpu_count(),
            'threads': int(os.environ.get('OMP_NUM_THREADS') or os.cpu_count() or 1),
            'python': platform.python_version(), **versions}


def task_metrics(task, metrics):
    """Returns a task's part of what tools/test.py wrote, keys as in summary.json.

    'i2t/retrieval/Recall@1' (re-ranked) becomes 'i2t/Recall@1', 'caption/CIDEr' becomes 'CIDEr'; retrieval by
    the contrastive score alone keeps its name, 'i2t/itc/Recall@1'.
    """
    if task == 'retrieval':
        return {key.replace('/retrieval/', '/'): value for key, value in metrics.items()
                if key.startswith(('i2t/', 't2i/'))}
    return {key[len(task) + 1:]: value for key, value in metrics.items() if key.startswith(f'{task}/')}


def make_summary(metrics, figures, seconds, machine, tasks=BLIP2.tasks):
    """Returns the content of summary.json; every score is in percent.

    Args:
        metrics (dict): Test step ('test_vqa', 'test_vqa_shuffled', ...) -> what tools/test.py wrote.
        figures (dict): Content of ceilings.json, ``{'ceiling' and 'chance': {split: {task: {key: value}}}}``;
            CIDEr as pycocoevalcap prints it (0 to 10).
        seconds (dict): Step -> seconds.
        machine (dict): Description of the machine.
        tasks (dict): Row -> test step, of a Demo.
    """
    def bounds(bound):
        return {task: {key: value * 100 if key == 'CIDEr' and value is not None else value
                       for key, value in figures[bound]['test'][kind_of(task)].items()} for task in tasks}

    return make_bounded_summary(metrics, {bound: bounds(bound) for bound in ('chance', 'ceiling')}, seconds, machine,
                                tasks)


def make_bounded_summary(metrics, bounds, seconds, machine, tasks):
    """Returns the content of summary.json, with ``bounds`` as they are; other arguments as of ``make_summary``."""
    def scores(suffix):
        return {task: task_metrics(kind_of(task), metrics[test + suffix]) for task, test in tasks.items()}

    return {**scores(''), 'shuffled': scores('_shuffled'), **bounds, 'seconds': seconds, 'machine': machine}


def kind_of(task):
    """Returns 'vqa' for a row 'vqa_rank'."""
    return task.partition('_')[0]


def floors(summary):
    """Returns the least acceptable value of each headline, ``{(task, key): percent}``."""
    if 'floor' in summary:
        return {(task, key): value for task, values in summary['floor'].items() for key, value in values.items()}
    least = {}
    for task, shuffled in summary['shuffled'].items():
        kind = kind_of(task)
        if kind == 'retrieval':
            least.update({(task, key): 15.0 for key in HEADLINES[kind]})
        elif kind == 'caption':
            ceiling = summary['ceiling'][task]['CIDEr'] or 0.0
            least[task, 'CIDEr'] = max(0.6 * ceiling, 3 * shuffled['CIDEr'])
        else:
            least[task, 'accuracy'] = max(VQA_FLOORS[task], shuffled['accuracy'] + 20)
    return least


def table(summary):
    """Returns the rows (task, metric, result, shuffled, chance, ceiling, floor); numbers or None."""
    least, rows = floors(summary), []
    for task in summary['shuffled']:
        names = HEADLINES[kind_of(task)]
        for key in sorted(summary[task], key=lambda k: (k not in names, k)):
            parts = (summary[task], *(summary[bound][task] for bound in ('shuffled', 'chance', 'ceiling')))
            rows.append((task, names.get(key, key), *(part.get(key) for part in parts), least.get((task, key))))
    return rows


def format_table(rows):
    """Returns the rows of table() as text."""
    def cell(value):
        return '-' if value is None else value if isinstance(value, str) else f'{value:.1f}'

    lines = [('task', 'metric', 'result', 'shuffled', 'chance', 'ceiling', 'floor')]
    lines += [tuple(cell(value) for value in row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return '\n'.join('  '.join(text.ljust(width) if i < 2 else text.rjust(width)
                               for i, (text, width) in enumerate(zip(line, widths))) for line in lines)


def missed_floors(summary):
    """Returns a sentence for every headline below its floor."""
    return [f'{task} {key} is {summary[task][key]:.1f}, its floor is {floor:.1f}'
            for (task, key), floor in floors(summary).items() if not summary[task][key] >= floor]


def loss_values(folder):
    """Returns the values of 'loss' that a training logged, in order.

    Args:
        folder (Path): Work folder of the training; mmengine writes <time>/vis_data/scalars.json into it.
    """
    values = []
    for path in sorted(Path(folder).glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            with contextlib.suppress(ValueError):  # the last line of an interrupted run
                row = json.loads(line)
                values += [row['loss']] if 'loss' in row else []
    return values


def loss_complaint(name, values):
    """Returns why logged losses (list of float) do not look like training, or None when they fall."""
    if len(values) < 4:
        return f'{name} logged only {len(values)} losses'
    part = max(1, len(values) // 4)
    first, last = sum(values[:part]) / part, sum(values[-part:]) / part
    return None if last < first else f'the loss of {name} did not fall: first {first:.3f}, last {last:.3f}'


def short_complaints(quickstart):
    """Returns what is wrong with the results of the short quickstart (list of str)."""
    trained = [name for name, step in quickstart.steps.items() if step.kind == 'train']
    found = [loss_complaint(name, loss_values(quickstart.folder(name))) for name in trained]
    found += [f'{path} is missing' for path in quickstart.results() if not path.is_file()]
    return [complaint for complaint in found if complaint]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--blip', action='store_true', help='BLIP in the place of BLIP-2')
    which.add_argument('--flickr8k', action='store_true', help='real photos and real frozen parts')
    parser.add_argument('--source', default='', help='folder of the photos, for --flickr8k')
    parser.add_argument('--short', action='store_true', help='a few steps on little data')
    args = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    demo = BLIP if args.blip else FLICKR8K if args.flickr8k else BLIP2
    quickstart = Quickstart(demo.short if args.short else demo.full, Path.cwd(), demo=demo, source=args.source)
    say(f'quickstart in {quickstart.work}, {quickstart.cores} threads')
    try:
        quickstart.run()
    except StepError as error:
        say(f'\nerror: {error}')
        return 1
    except KeyboardInterrupt:
        say('\ninterrupted: the same command goes on from here')
        return 130
    summary, results = quickstart.summary(), quickstart.results()
    results[0].write_text(json.dumps(summary, indent=1) + '\n', encoding='utf-8')
    if quickstart.demo.page:
        report = subprocess.run([sys.executable, str(CHECKOUT / 'demo' / 'report.py'),
                                 '--work', quickstart.mode.work, '--data', quickstart.mode.data,
                                 *(['--flickr8k'] if args.flickr8k else [])])
        if report.returncode:
            say(f'error: the page could not be written (exit status {report.returncode})')
            return 1
    say('\n' + format_table(table(summary)))
    seconds = summary['seconds']
    say(f'\ninstallation {seconds["installation"]:.0f} s, run {seconds["run"]:.0f} s (this call '
        f'{quickstart.elapsed():.0f} s)\n' + '\n'.join(map(str, results)))
    complaints = short_complaints(quickstart) if args.short else missed_floors(summary)
    for complaint in complaints:
        say(f'MISSED: {complaint}')
    return 1 if complaints else 0


if __name__ == '__main__':
    sys.exit(main())
