"""What the benchmarks share: turns, medians, floating-point operations, the machine's matrix rate, peak memory."""
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Lengths in WordPiece tokens ([CLS] and [SEP] included; BERT's uncased vocabulary) of the 795 captions of 159 images of
# COCO val2017, cleaned as for retrieval: tokens to captions.
LENGTHS = {9: 2, 10: 82, 11: 150, 12: 149, 13: 129, 14: 91, 15: 66, 16: 42, 17: 35, 18: 14, 19: 9, 20: 6, 21: 6, 22: 4,
           23: 3, 24: 1, 25: 3, 28: 2, 31: 1}


def machine(device):
    """What the figures were measured on, in one line."""
    import torch
    name = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').is_file():
        models = [line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
                  if line.startswith('model name')]
        name = models[0] if models else name
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    return f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}'


def synchronised(device, clock=time.perf_counter):
    """Seconds, after the device has done all its work."""
    import torch
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return clock()


def matrix_rate(device, dtype, clock=time.perf_counter):
    """Measured floating-point operations a second of one large matrix product, the best of five."""
    import torch
    size = 8192 if device.type == 'cuda' else 1536
    left = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        start = synchronised(device, clock)
        left @ left
        times.append(synchronised(device, clock) - start)
    return 2 * size**3 / min(times)


def take_turns(ways, repeats, device, clock=time.perf_counter, warm_up=True):
    """Seconds of each way, run in turn after one run of each that does not count.

    Args:
        ways (dict[str, callable]): Name to work; work of another process returns its own seconds.
        warm_up (bool): False where each has run before.

    Returns:
        dict[str, list[float]]: Name to seconds.
    """
    seconds = {name: [] for name in ways}
    for turn in range(-warm_up, repeats):
        for name, work in ways.items():
            start = synchronised(device, clock)
            told = work()
            if turn >= 0:
                seconds[name].append(told if isinstance(told, float) else synchronised(device, clock) - start)
    return seconds


def operations(work):
    """Floating-point operations of a call."""
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def summary(seconds, flops, rate, device):
    """Medians, ratio and shares of the matrix rate; the first way is ours."""
    ours, theirs = seconds
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return dict(machine=machine(device), seconds=medians,
                spread={name: [min(values), max(values)] for name, values in seconds.items()},
                ratio=medians[theirs] / medians[ours], flops=flops,
                flop_ratio=flops[theirs] / flops[ours], matrix_rate=rate,
                share_of_matrix_rate={name: flops[name] / medians[name] / rate for name in seconds})


def show(result):
    print(result['machine'])
    for name, value in result['seconds'].items():
        low, high = result['spread'][name]
        print(f'{name:28} {value:8.3f} s ({low:.3f} to {high:.3f})  {result["flops"][name] / 1e9:9.1f} GFLOP  '
              f'{100 * result["share_of_matrix_rate"][name]:5.1f} % of the matrix rate')
    print(f'ratio {result["ratio"]:.2f}, by operations {result["flop_ratio"]:.2f} '
          f'(matrix rate {result["matrix_rate"] / 1e9:.0f} GFLOP/s)')


def word_tokenizer(texts):
    """A tokenizer of the words and punctuation of texts with OPT's special tokens: about as many tokens as OPT's own
    has for common words, and the work depends on their number alone. What a model writes are numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    words = sorted({word for text in texts for word in text.replace('?', ' ?').split()})
    tokens = ['<s>', '<pad>', '</s>', '<unk>', 'Question', 'Answer', ':', *words]
    tokens += [str(i) for i in range(len(tokens), 300)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, '<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single='</s> $A', special_tokens=[('</s>', 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='</s>', eos_token='</s>', pad_token='<pad>',
                                   unk_token='<unk>')


def peak_mib():
    """Of this process; ``ru_maxrss`` would begin with that of its parent."""
    status = Path('/proc/self/status')
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith('VmHWM')) / 1024
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child_peaks(script, argv):
    """MiB before and at the peak of each way, each in a process of its own: what ``script`` prints with ``--only``."""
    return {way: json.loads(subprocess.run([sys.executable, script, *argv, '--only', way], check=True,
                                           capture_output=True, text=True).stdout) for way in ('ours', 'theirs')}
