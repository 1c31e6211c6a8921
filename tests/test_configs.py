"""Every shipped config passes the check, and its model and pipelines agree."""
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmblip2.utils import config_check

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


@pytest.fixture
def real_parts(monkeypatch):
    """A stand-in for the vision package of configs/flickr8k, which the tests do not require."""
    if find_spec('efficientnet_lite_pytorch') is not None:
        yield
        return
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'data' / 'stand_ins')
    yield
    sys.modules.pop('efficientnet_lite_pytorch', None)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_is_valid(path, monkeypatch, real_parts):
    monkeypatch.chdir(ROOT)
    cfg = config_check.load_config(str(path))
    config_check.check_config(cfg)
    assert f'python tools/train.py configs/{path.relative_to(ROOT / "configs")}' in path.read_text(), \
        'a leaf says how it is run'
