"""Speed of an evaluation against the way LAVIS and mmpretrain do it, in one run, on random weights.

    python tools/analysis_tools/benchmark_eval.py vqa

``vqa``: questions about shared images. The other way: a pass of the vision encoder and the Q-Former for every question.
Same weights, same number of questions a batch, same greedy search; the two take turns. Prints seconds, the ratio of the
medians, whether the answers agree, floating-point operations and the share of the machine's measured matrix rate.
"""
import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli

QUESTIONS = ['what color is the bus?', 'how many people are in the picture?', 'is it raining?',
             'what is the man in the middle holding in his hand?', 'where was this photo taken?']


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest='kind', required=True)
    vqa = kinds.add_parser('vqa', help='questions about shared images')
    vqa.add_argument('--images', type=int, default=8, help='images')
    vqa.add_argument('--questions', type=int, default=5, help='questions an image')
    vqa.add_argument('--batch-size', type=int, default=20, help='questions a batch, both ways')
    vqa.add_argument('--new-tokens', type=int, default=5, help='tokens of an answer')
    vqa.add_argument('--tiny', action='store_true', help='a model of toy size, to try the tool')
    for kind in (vqa, ):
        kind.add_argument('--repeats', type=int, default=5, help='turns of each way')
        kind.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32', help='bfloat16: autocast')
        kind.add_argument('--device', help='default: the GPU if there is one')
        kind.add_argument('--out', help='JSON file for the figures')
    return parser.parse_args(argv)


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


def synchronised(device):
    """Seconds, after the device has done all its work."""
    import torch
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_rate(device, dtype):
    """Measured floating-point operations a second of one large matrix product, the best of five."""
    import torch
    size = 8192 if device.type == 'cuda' else 1536
    left = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        start = synchronised(device)
        left @ left
        times.append(synchronised(device) - start)
    return 2 * size**3 / min(times)


def take_turns(ways, repeats, device):
    """Seconds of each way, run in turn after one run of each that does not count.

    Args:
        ways (dict[str, callable]): Name to work.

    Returns:
        dict[str, list[float]]: Name to seconds.
    """
    seconds = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            start = synchronised(device)
            work()
            if turn:
                seconds[name].append(synchronised(device) - start)
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


def word_tokenizer():
    """A tokenizer of words and punctuation with OPT's special tokens: about as many tokens as OPT's own has for these
    questions of common words, and the work depends on their number alone. What a model writes are numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    words = sorted({word for question in QUESTIONS for word in question.replace('?', ' ?').split()})
    tokens = ['<s>', '<pad>', '</s>', '<unk>', 'Question', 'Answer', ':', *words]
    tokens += [str(i) for i in range(len(tokens), 300)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, '<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single='</s> $A', special_tokens=[('</s>', 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='</s>', eos_token='</s>', pad_token='<pad>',
                                   unk_token='<unk>')


def vqa_model(args, device):
    """ViT-B/16 at 224 px, Q-Former base, the shape of OPT-125M; all of it random."""
    import torch

    import mmblip2.models  # noqa: F401
    from mmblip2.registry import MODELS
    width, depth = (32, 1) if args.tiny else (768, 12)
    heads = 2 if args.tiny else 12
    torch.manual_seed(0)
    words = 300 if args.tiny else 50272
    model = MODELS.build(dict(
        type='mmblip2.Blip2Generation', allow_random=True,
        vision=dict(type='mmblip2.VisionTransformer', image_size=224, patch_size=16, width=width, depth=depth,
                    num_heads=heads),
        qformer=dict(type='mmblip2.QFormer', vision_width=width, num_layers=depth, width=width, num_heads=heads),
        language_model=dict(
            type='mmblip2.CausalLM', tokenizer=word_tokenizer(), max_text_len=64, ending='</s>',
            config=dict(model_type='opt', vocab_size=words, hidden_size=width, word_embed_proj_dim=width,
                        num_hidden_layers=depth, num_attention_heads=heads, ffn_dim=4 * width, init_std=0.1,
                        tie_word_embeddings=False)),
        generation=dict(max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens)))
    with torch.no_grad():  # so that an answer depends on the image
        model.language_projection.weight.normal_(std=1.)
    return model.to(device).eval()


def run_vqa(args, device, dtype):
    import torch

    from mmblip2.engine.autocast import autocast_context
    from mmblip2.structures import DataSample
    model = vqa_model(args, device)
    pixels = torch.randn(args.images, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    asked = [(image, QUESTIONS[k % len(QUESTIONS)]) for image in range(args.images) for k in range(args.questions)]
    answers = {}

    @torch.no_grad()
    def answer(name, shared):
        """Answer all questions; the files' names tell which questions share an image."""
        with autocast_context(str(dtype).removeprefix('torch.')):
            texts = []
            for start in range(0, len(asked), args.batch_size):
                rows = asked[start:start + args.batch_size]
                samples = [DataSample(prompt=f'Question: {question} Answer:', **(
                    dict(img_path=str(image)) if shared else {})) for image, question in rows]
                texts += [sample.pred_text for sample in model.predict(pixels[[image for image, _ in rows]], samples)]
        answers[name] = texts

    ways = {'an image once': lambda: answer('an image once', True),
            'a pass a question': lambda: answer('a pass a question', False)}
    seconds = take_turns(ways, args.repeats, device)
    same = sum(a == b for a, b in zip(*answers.values()))
    flops = {name: operations(work) for name, work in ways.items()}
    result = summary(seconds, flops, matrix_rate(device, dtype), device)
    result.update(questions=len(asked), images=args.images, same_answers=same, different_answers=len(set(
        answers['an image once'])))
    print(f'VQA, {args.images} images, {args.questions} questions each, {args.batch_size} a batch, '
          f'{args.new_tokens} new tokens, {args.dtype}')
    show(result)
    print(f'{same} of {len(asked)} answers are the same, {result["different_answers"]} different texts among them')
    return result


def main(argv=None):
    args = parse_args(argv)
    import torch
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    result = run_vqa(args, device, getattr(torch, args.dtype))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    cli.run(main)
