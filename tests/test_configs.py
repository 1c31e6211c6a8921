"""Every shipped config passes the check, and its model and pipelines agree."""
from pathlib import Path

import pytest

from mmblip2.utils import config_check

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = config_check.load_config(str(path))
    config_check.check_config(cfg)
    assert f'python tools/train.py configs/{path.relative_to(ROOT / "configs")}' in path.read_text(), \
        'a leaf says how it is run'
