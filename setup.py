"""Packaging of mmblip2; the requirement lists live in requirements/*.txt."""
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version():
    """Returns ``__version__`` of mmblip2/version.py without importing the package."""
    scope = {}
    exec((ROOT / 'mmblip2' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def read_requirements(name):
    """Returns the requirement lines of requirements/<name>.txt, comments left out."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


tests, optional = read_requirements('tests'), read_requirements('optional')

setup(
    name='mmblip2',
    version=read_version(),
    description='BLIP-2 pre-training, fine-tuning and evaluation on MMEngine',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_namespace_packages(include=['mmblip2', 'mmblip2.*']),
    package_data={'mmblip2': ['**/*.json', '**/*.txt', '**/*.yaml']},
    python_requires='>=3.10',
    install_requires=read_requirements('runtime'),
    extras_require={'tests': tests, 'optional': optional, 'all': tests + optional},
    classifiers=[
        *(f'Programming Language :: Python :: {version}' for version in ('3', '3.10', '3.11', '3.12', '3.13')),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    zip_safe=False,
)
