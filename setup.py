"""Packaging of mmblip2; the requirement lists live in requirements/*.txt."""
import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
RESOURCES = ('configs/**/*.py', 'configs/**/*.md', 'configs/**/*.yml', 'tools/**/*.py', 'tools/**/*.sh',
             'requirements/real.txt', 'model-index.yml')


class BuildWithResources(build_py):
    """Puts configs, tools and the model index into the package as ``mmblip2/.mim``, where OpenMIM looks for them.

    An editable installation has no copy: mmblip2/utils/paths.py finds the folders of the checkout.
    """

    def resources(self):
        """(source, target) of every file."""
        target = Path(self.build_lib, 'mmblip2', '.mim')
        return [] if self.editable_mode else [
            (path.relative_to(ROOT), target / path.relative_to(ROOT))
            for pattern in RESOURCES for path in sorted(ROOT.glob(pattern))]

    def run(self):
        super().run()
        for source, target in self.resources():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(target) for _, target in self.resources()]


def read_version():
    """Returns ``__version__`` of mmblip2/version.py without importing the package."""
    scope = {}
    exec((ROOT / 'mmblip2' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def read_requirements(name):
    """Returns the requirement lines of requirements/<name>.txt, comments left out."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


def build_options():
    """Returns the options that keep what a build writes out of the checkout: it may be read-only, and files of an
    earlier build would be packed again. An sdist needs its egg-info in the checkout.
    """
    if 'sdist' in sys.argv:
        return {}
    folder = tempfile.mkdtemp(prefix='mmblip2-build-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {'build': {'build_base': folder}, 'egg_info': {'egg_base': folder}}


extras = {name: read_requirements(name) for name in ('tests', 'optional', 'dev')}

setup(
    name='mmblip2',
    version=read_version(),
    description='BLIP-2 pre-training, fine-tuning and evaluation on MMEngine',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['mmblip2', 'mmblip2.*']),
    package_data={'mmblip2': ['**/*.json', '**/*.txt', '**/*.yaml']},
    python_requires='>=3.10',
    install_requires=read_requirements('runtime'),
    extras_require={**extras, 'all': extras['tests'] + extras['optional']},
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        *(f'Programming Language :: Python :: {version}' for version in ('3', '3.10', '3.11', '3.12', '3.13')),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    options=build_options(),
    cmdclass={'build_py': BuildWithResources},
    zip_safe=False,
)
