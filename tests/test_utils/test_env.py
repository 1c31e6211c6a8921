"""What the machine can do."""
import os
import subprocess
import sys

import torch

from mmblip2.utils.env import cpu_has_bf16, describe_device, environment


def test_device_line_says_what_runs():
    assert torch.__version__ in describe_device()
    assert isinstance(cpu_has_bf16(), bool)


def test_environment_names_versions_and_imports_nothing_for_them():
    code = ('import sys, torch; from mmblip2.utils.env import environment; facts = environment(); '
            'assert facts["torch"] == torch.__version__.split("+")[0] or facts["torch"] == torch.__version__, facts; '
            'assert facts["transformers"] and facts["mmpretrain"], facts; '
            'assert not {"torchvision", "transformers", "cv2", "mmpretrain"} & set(sys.modules)')
    subprocess.run([sys.executable, '-c', code], check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert environment()['OMP_NUM_THREADS'] == os.environ['OMP_NUM_THREADS']
