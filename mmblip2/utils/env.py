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
