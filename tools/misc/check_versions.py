"""Run the tests under other versions of Python, torch and transformers: python tools/misc/check_versions.py

Each combination gets a virtual environment of its own, made by demo/bootstrap.py, with the newest packages that
requirements/runtime.txt and tests.txt and the combination's pins allow. At the end comes one table; the exit status is
1 when anything failed. Needs Python >= 3.10 and nothing else.

One environment takes about 5 GB. It is removed after its tests have passed, and used again where it was kept.
"""
import argparse
import dataclasses
import glob
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ('torch', 'torchvision', 'transformers', 'mmengine', 'numpy')  # packages whose versions the table has


@dataclasses.dataclass(frozen=True)
class Combination:
    """What is checked together.

    Args:
        name (str): For the table and for ``--only``.
        python (str): Version of the interpreter, ``'3.11'``.
        pins (tuple[str]): Constraints for pip, ``'transformers==4.57.*'``; of the rest the newest.
    """
    name: str
    python: str
    pins: tuple = ()


COMBINATIONS = (
    Combination('python3.10', '3.10'),
    Combination('python3.11', '3.11'),
    Combination('python3.12', '3.12'),
    Combination('python3.13', '3.13'),
    # '===' leaves out local builds such as 2.13.0+cpu, in which the registry's torchvision does not find its operators.
    Combination('transformers4.57-torch2.13', '3.11',
                ('transformers==4.57.*', 'torch===2.13.0', 'torchvision===0.28.0')),
)

# Run by the interpreter that is to be checked, with the folder of bootstrap.py and the home of the environment.
INSTALL = '''
import os, pathlib, sys
sys.path.insert(0, sys.argv[1])
import bootstrap
try:
    bootstrap.Environment(pathlib.Path(sys.argv[2]), bootstrap.CHECKOUT, os.environ).ensure()
except bootstrap.BootstrapError as error:
    sys.exit(f'error: {error}')
'''
# Run by the environment's Python.
VERSIONS = '''
import importlib.metadata, json, platform, sys
print(json.dumps({'python': platform.python_version(), **{n: importlib.metadata.version(n) for n in sys.argv[1:]}}))
'''


@dataclasses.dataclass
class Result:
    """One row of the table; ``failed`` counts errors too, ``outcome`` is ``'passed'`` or says what went wrong."""
    name: str
    versions: dict = dataclasses.field(default_factory=dict)
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.
    outcome: str = 'passed'
    missing: bool = False


def find_python(version, environ=os.environ):
    """Returns the path of an interpreter of ``version`` that can make environments, or None.

    Looks at this Python, at ``pythonX.Y`` on the path and at pyenv's folder; each is started once, since pyenv's
    commands exist for versions that they do not start.
    """
    folder = Path(environ.get('PYENV_ROOT') or Path(environ.get('HOME', '.'), '.pyenv'), 'versions')
    found = [sys.executable, shutil.which(f'python{version}', path=environ.get('PATH', ''))]
    found += sorted(glob.glob(os.path.join(glob.escape(str(folder)), f'{version}.*', 'bin', 'python')), reverse=True)
    probe = ('import sys, venv, importlib.util as u; print("%d.%d" % sys.version_info[:2] '
             'if u.find_spec("ensurepip") or u.find_spec("pip") else "")')
    for python in filter(None, found):
        try:
            done = subprocess.run([python, '-c', probe], check=False, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return python
    return None


def write_pins(combination, home):
    """Write the combination's constraints for pip; an environment that was made with others is removed.

    Returns:
        Path: The file.
    """
    file, text = home / 'constraints.txt', ''.join(f'{pin}\n' for pin in combination.pins)
    if not file.is_file() or file.read_text(encoding='utf-8') != text:
        shutil.rmtree(home / '.venv', ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding='utf-8')
    return file


def read_report(file):
    """Returns (passed, failed, skipped) of pytest's XML report, errors counted as failed; None without a whole one."""
    try:
        suites = list(ElementTree.parse(file).getroot().iter('testsuite'))
    except (OSError, ElementTree.ParseError):
        return None
    count = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in ('tests', 'failures', 'errors', 'skipped')}
    failed = count['failures'] + count['errors']
    return count['tests'] - failed - count['skipped'], failed, count['skipped']


def format_table(results):
    """Returns the table as lines of text, one row a result."""
    head = ('combination', 'python', *SHOWN, 'passed', 'failed', 'skipped', 'seconds', 'outcome')
    rows = [head]
    for result in results:
        counts = ('-',) * 4 if not result.versions else (
            result.passed, result.failed, result.skipped, round(result.seconds))
        rows.append((result.name, *(result.versions.get(name, '-') for name in ('python', *SHOWN)), *counts,
                     result.outcome))
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(head))]
    return '\n'.join('  '.join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def exit_status(results, allow_missing=False):
    """Returns 0 when all passed, otherwise 1; a missing interpreter passes only with ``allow_missing``."""
    return int(any(result.outcome != 'passed' and not (result.missing and allow_missing) for result in results))


def call(command, log, env):
    """Runs a command in the checkout with all its output in ``log``; returns its exit status."""
    with open(log, 'w', encoding='utf-8') as out:
        return subprocess.run([str(part) for part in command], check=False, stdin=subprocess.DEVNULL, stdout=out,
                              stderr=subprocess.STDOUT, cwd=ROOT, env=env).returncode


def clean_environ(environ, pins):
    """Returns the environment variables of installation and tests: none that lead Python or pip elsewhere."""
    dropped = ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_USER', 'MMBLIP2_HOME')
    env = {key: value for key, value in environ.items() if key not in dropped}
    env.setdefault('OMP_NUM_THREADS', '1')
    # As an address, since pip splits the variable at spaces.
    return dict(env, PYTHONNOUSERSITE='1', PIP_CONSTRAINT=pins.resolve().as_uri())


def check(combination, folder, tests, keep='failed'):
    """Installs and tests one combination.

    Args:
        combination (Combination): What to check.
        folder (Path): Below it stand environments, logs and reports.
        tests (list[str]): What pytest runs, from the root of the checkout.
        keep (str): Which environments stay: ``'all'``, ``'none'``, or ``'failed'``.

    Returns:
        Result: The row of the table.
    """
    result = Result(combination.name)
    python = find_python(combination.python)
    if python is None:
        result.outcome, result.missing = f'not checked: no Python {combination.python} with venv was found', True
        return result
    home = folder / combination.name
    env = clean_environ(os.environ, write_pins(combination, home))
    inside = home / '.venv' / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    log, report = home / 'install.log', home / 'tests.xml'
    report.unlink(missing_ok=True)
    print(f'{combination.name}: installing with {python}; log: {log}', flush=True)
    start = time.time()
    if call([python, '-c', INSTALL, ROOT / 'demo', home], log, env):
        result.outcome = f'installation failed: {log}'
    else:
        seen = subprocess.run([str(inside), '-c', VERSIONS, *SHOWN], check=True, capture_output=True, text=True,
                              env=env)
        result.versions = json.loads(seen.stdout)
        log = home / 'tests.log'
        print(f'{combination.name}: installed in {time.time() - start:.0f} s, testing; log: {log}', flush=True)
        start = time.time()
        status = call([inside, '-m', 'pytest', *tests, '--rootdir', ROOT, '-c', ROOT / 'pyproject.toml', '-o',
                       f'cache_dir={home / ".pytest_cache"}', '--junitxml', report.resolve()], log, env)
        result.seconds = time.time() - start
        counts = read_report(report)
        result.passed, result.failed, result.skipped = counts or (0, 0, 0)
        if status or not counts or result.failed or not result.passed:
            result.outcome = f'failed with exit status {status}: {log}'
    if keep == 'none' or keep == 'failed' and result.outcome == 'passed':
        shutil.rmtree(home / '.venv', ignore_errors=True)
    return result


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Run the tests under other versions of Python, torch and transformers',
        epilog='combinations: ' + '; '.join(f'{c.name} (Python {c.python}, {", ".join(c.pins) or "newest packages"})'
                                            for c in COMBINATIONS))
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'check_versions',
                        help='folder for environments and logs; about 5 GB for each environment that is kept')
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=[c.name for c in COMBINATIONS],
                        help='names of the combinations to check; default: all')
    parser.add_argument('--tests', nargs='+', metavar='PATH', default=['tests'], help='what to test; default: tests')
    parser.add_argument('--allow-missing', action='store_true', help='a Python that is not installed is no failure')
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument('--keep', action='store_const', const='all', dest='keep', default='failed',
                      help='keep every environment; default: only those of which a test failed')
    kept.add_argument('--remove', action='store_const', const='none', dest='keep', help='remove every environment')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    chosen = [c for c in COMBINATIONS if not args.only or c.name in args.only]
    results = []
    try:
        for combination in chosen:
            results.append(check(combination, args.work_dir.resolve(), args.tests, args.keep))
            print(f'{combination.name}: {results[-1].outcome}', flush=True)
    except KeyboardInterrupt:
        print('interrupted: the same command goes on with the environments that are there', file=sys.stderr)
    print(format_table(results))
    return exit_status(results, args.allow_missing) or int(len(results) < len(chosen))


if __name__ == '__main__':
    sys.exit(main())
