import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_import_stays_light():
    """Neither torch nor what needs seconds to import comes with the package itself."""
    code = ('import sys; import mmblip2; '
            'print([m for m in ("torch", "mmpretrain", "torchvision", "transformers", "mmcv") if m in sys.modules])')
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'


def test_unknown_name_is_an_attribute_error():
    import mmblip2
    try:
        _ = mmblip2.no_such_name
    except AttributeError as error:
        assert 'no_such_name' in str(error)
    else:
        raise AssertionError('mmblip2.no_such_name exists')
