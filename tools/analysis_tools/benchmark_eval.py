"""Speed of an evaluation against the way LAVIS and mmpretrain do it, in one run, on random weights.

    python tools/analysis_tools/benchmark_eval.py vqa
    python tools/analysis_tools/benchmark_eval.py retrieval --patches 677

``vqa``: questions about shared images. The other way: a pass of the vision encoder and the Q-Former for every question.
Same weights, same number of questions a batch, same greedy search; the two take turns. Prints seconds, the ratio of the
medians, whether the answers agree, floating-point operations and the share of the machine's measured matrix rate.

``retrieval``: ITM re-ranking with the Q-Former of BLIP-2 (12 layers, width 768, patches 1408 wide), by the code of the
retrieval loop. The other way is our own writing of the arithmetic of LAVIS and mmpretrain: every pair computes the
cross-attention keys and values of its image, whose patches are repeated for the rows of a batch; texts are padded to 35
tokens; all rows go through all layers; attention is two products and a softmax; what both directions want is computed
twice. Same precision and at most the same rows a batch. Every image is scored with every text. Prints also the largest
difference of the scores, the peak memory of each way in a process of its own, and both times at the size of COCO's test
split: 5,000 images, 25,010 captions, k = 128.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from measuring import (
    LENGTHS,
    child_peaks,
    matrix_rate,
    operations,
    peak_mib,
    show,
    summary,
    take_turns,
    word_tokenizer,
)

from mmblip2.utils import cli

QUESTIONS = ['what color is the bus?', 'how many people are in the picture?', 'is it raining?',
             'what is the man in the middle holding in his hand?', 'where was this photo taken?']

PADDED = 35  # tokens of every text in LAVIS
# Flickr8k val, ITC of configs/flickr8k/stage1.py, k = 26 of 1,000 images (as 128 of 5,000): 25,705 of 130,295 pairs
BOTH = 0.197
COCO = dict(images=5000, texts=25010, k=128)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest='kind', required=True)
    vqa = kinds.add_parser('vqa', help='questions about shared images')
    vqa.add_argument('--images', type=int, default=8, help='images')
    vqa.add_argument('--questions', type=int, default=5, help='questions an image')
    vqa.add_argument('--batch-size', type=int, default=20, help='questions a batch, both ways')
    vqa.add_argument('--new-tokens', type=int, default=5, help='tokens of an answer')
    vqa.add_argument('--tiny', action='store_true', help='a model of toy size, to try the tool')
    retrieval = kinds.add_parser('retrieval', help='re-ranking of image-text pairs')
    retrieval.add_argument('--images', type=int, default=6, help='images')
    retrieval.add_argument('--texts', type=int, default=128, help='texts, all of them scored with every image')
    retrieval.add_argument('--patches', type=int, default=257, help='257: 224 px, 677: 364 px')
    retrieval.add_argument('--rows', type=int, default=128, help='pairs a batch: all of the other way, most of ours')
    retrieval.add_argument('--both', type=float, default=BOTH, metavar='SHARE',
                           help=f'share of the pairs that both directions want; default {BOTH}, see the report')
    retrieval.add_argument('--ann-file', help='captions (COCO JSON) whose lengths are used, instead of built-in ones')
    retrieval.add_argument('--tokenizer', help='BERT folder for --ann-file')
    retrieval.add_argument('--kept', type=int, help='images whose patches are kept while the peak memory is measured; '
                           "default: the 5,000 of COCO's test split, or fewer, so that the other way fits into half of "
                           'the free memory')
    retrieval.add_argument('--memory-gib', type=float, help='memory_gib of our way then; default: 2 for 5,000 images, '
                           'in proportion for fewer')
    retrieval.add_argument('--attention', choices=['plain', 'sdpa'], default='plain', help="the other way's: plain, as "
                           "LAVIS and mmpretrain write it, or torch's scaled_dot_product_attention, as ours")
    retrieval.add_argument('--only', choices=['ours', 'theirs'], help='run one way once and print its peak memory')
    retrieval.add_argument('--tiny', action='store_true', help='a model of toy size, to try the tool')
    for kind in (vqa, retrieval):
        kind.add_argument('--cpu-time', action='store_true', help='count the time of the processors that this process '
                          'used instead of the clock: for a machine that does other work')
        kind.add_argument('--repeats', type=int, default=5, help='turns of each way')
        kind.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32', help='bfloat16: autocast')
        kind.add_argument('--device', help='default: the GPU if there is one')
        kind.add_argument('--out', help='JSON file for the figures')
    args = parser.parse_args(argv)
    if args.kind == 'retrieval' and bool(args.ann_file) != bool(args.tokenizer):
        parser.error('--ann-file and --tokenizer go together')
    if args.kind == 'retrieval' and min(args.images, args.texts, args.patches, args.rows) < 1:
        parser.error('--images, --texts, --patches and --rows are at least 1')
    return args


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
            type='mmblip2.CausalLM', tokenizer=word_tokenizer(QUESTIONS), max_text_len=64, ending='</s>',
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
    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds = take_turns(ways, args.repeats, device, clock)
    same = sum(a == b for a, b in zip(*answers.values()))
    flops = {name: operations(work) for name, work in ways.items()}
    result = summary(seconds, flops, matrix_rate(device, dtype, clock), device)
    result.update(questions=len(asked), images=args.images, same_answers=same, different_answers=len(set(
        answers['an image once'])))
    print(f'VQA, {args.images} images, {args.questions} questions each, {args.batch_size} a batch, '
          f'{args.new_tokens} new tokens, {args.dtype}')
    show(result)
    print(f'{same} of {len(asked)} answers are the same, {result["different_answers"]} different texts among them')
    return result


def caption_lengths(args):
    """Tokens of ``args.texts`` captions, drawn from those of ``--ann-file`` or from the built-in histogram, and where
    they are from."""
    import torch
    counts = LENGTHS
    source = 'of 795 captions of COCO val2017'
    if args.ann_file:
        from mmblip2.datasets.caption_file import read_captions
        from mmblip2.datasets.transforms.text import clean_caption
        from mmblip2.models.tokenizers import BertTokenizer
        captions = [clean_caption(text) for image in read_captions(args.ann_file, '') for text in image.captions]
        found = BertTokenizer(args.tokenizer)(captions, PADDED).mask.sum(dim=1)
        counts = {length: int((found == length).sum()) for length in found.unique().tolist()}
        source = f'of {len(captions)} captions in {args.ann_file}'
    lengths = torch.tensor([length for length, count in counts.items() for _ in range(count)])
    places = (torch.arange(args.texts) + 0.5) * len(lengths) / args.texts  # evenly, so that few texts are like all
    lengths = lengths.sort().values[places.long()]
    return lengths[torch.randperm(args.texts, generator=torch.Generator().manual_seed(0))], source


def retrieval_model(args, device):
    """The Q-Former of BLIP-2 with its matching head, random; the vision encoder is left out."""
    import torch

    from mmblip2.models.algorithms import Blip2Representation
    from mmblip2.models.qformer import QFormer
    from mmblip2.models.tokenizers import SizeOnlyTokenizer
    torch.manual_seed(0)
    size = dict(num_layers=3, width=32, num_heads=2, num_query=4) if args.tiny else {}
    qformer = QFormer(32 if args.tiny else 1408, vocab_size=30523, **size)
    vision = torch.nn.Identity()
    vision.embed_dim = qformer.vision_width
    return Blip2Representation(vision, qformer, SizeOnlyTokenizer(30523), max_text_len=PADDED,
                               allow_random=True).to(device).eval()


def plain_attention(query, key, value, mask=None, dropout=0.):
    """Attention as LAVIS and mmpretrain write it, arguments of ``scaled_attention``."""
    scores = query @ key.transpose(-1, -2) / query.size(-1)**0.5
    if mask is not None:
        scores = scores + (~mask) * -10000.
    return scores.softmax(dim=-1).to(value.dtype) @ value


def score_as_lavis(model, patches, text):
    """ITM logits of rows that share nothing.

    Args:
        patches: (B, P, E), of each row's image.
        text (TextBatch): (B, 35).

    Returns:
        torch.Tensor: (B,).
    """
    import torch

    from mmblip2.models.layers import self_attention_mask
    qformer = model.qformer
    x = torch.cat([qformer._embed_queries(len(patches)), qformer._embed_text(text.input_ids)], dim=1)
    mask = self_attention_mask('bidirectional', qformer.num_query, text.mask)
    for layer in qformer.layers:
        image_kv = layer.cross_attention.project_kv(patches) if layer.cross_attention is not None else None
        x, _ = layer(x, image_kv, mask, num_query=qformer.num_query)
    return model.itm_head(x[:, :qformer.num_query])[:, 1].float()


def retrieval_ways(args, device, dtype):
    """Both ways of scoring ``args.images`` x ``args.texts`` pairs, name to work that returns logits (I, N)."""
    import logging
    from types import SimpleNamespace

    import torch

    from mmblip2.engine.autocast import autocast_context
    from mmblip2.engine.evaluation_blocks import Blocks, Shelf
    from mmblip2.engine.retrieval_loop import RetrievalTestLoop
    from mmblip2.models.layers import attention as layers
    from mmblip2.models.tokenizers import TextBatch
    model = retrieval_model(args, device)
    generator = torch.Generator().manual_seed(0)
    lengths, _ = caption_lengths(args)
    mask = (torch.arange(PADDED) < lengths[:, None]).long()
    texts = TextBatch(torch.randint(1000, 30000, mask.shape, generator=generator) * mask, mask)
    patches = torch.randn(args.images, args.patches, model.qformer.vision_width, generator=generator)
    pairs = [(image, text) for image in range(args.images) for text in range(args.texts)]
    again = torch.randperm(len(pairs), generator=generator)[:round(args.both * len(pairs))]
    asked = torch.tensor(pairs + sorted((pairs[i] for i in again.tolist()), key=lambda pair: pair[1]))
    precision = str(dtype).removeprefix('torch.')

    def evaluation_loop():
        loop = RetrievalTestLoop.__new__(RetrievalTestLoop)  # only its re-ranking: no data, no config
        loop._runner = SimpleNamespace(model=model, logger=logging.getLogger('benchmark'))
        loop.text_batch_size, loop.block_size = args.rows, 0
        return loop

    others, shape = None, patches.shape[1:]  # patches of images that are not scored
    if args.only == 'theirs':
        others = torch.full((args.kept, *shape), 0.5)
    elif args.only == 'ours':
        others = Shelf(args.memory_gib * 2**30, Path(tempfile.gettempdir())).rows(args.kept, shape, dtype)
        for image in range(args.kept):
            others[torch.tensor([image])] = torch.full((1, *shape), 0.5, dtype=dtype)

    @torch.no_grad()
    def ours():
        kept = dict(enumerate(patches.to(dtype).split(1)))
        wanted = {image: torch.arange(args.texts) for image in range(args.images)}
        with autocast_context(precision):
            found = evaluation_loop()._rerank(wanted, {}, kept, texts, Shelf(2**31, Path()), Blocks(None))
        return torch.stack([found[image][1] for image in range(args.images)])

    @torch.no_grad()
    def theirs():
        logits = torch.empty(args.images, args.texts)
        attention = plain_attention if args.attention == 'plain' else layers.scaled_attention
        with autocast_context(precision), mock.patch.object(layers, 'scaled_attention', attention):
            for rows in asked.split(args.rows):
                text = TextBatch(*(part.to(device) for part in texts.rows(rows[:, 1])))
                logits[rows[:, 0], rows[:, 1]] = score_as_lavis(model, patches[rows[:, 0]].to(device), text).cpu()
        return logits

    return {'ours': ours, 'theirs': theirs}, len(asked), others


def free_gib():
    """Memory that a new process can have; 16 where the system does not say."""
    facts = Path('/proc/meminfo')
    lines = facts.read_text().splitlines() if facts.is_file() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith('MemAvailable')), 16.)


def run_retrieval(args, device, dtype, argv):
    import torch
    if args.kept is None:
        args.kept = max(1, min(COCO['images'], int(free_gib() / 2 * 2**30 / (args.patches * 1408 * 4))))
    if args.memory_gib is None:
        args.memory_gib = 2 * args.kept / COCO['images']
    argv = [*argv, '--kept', str(args.kept), '--memory-gib', str(args.memory_gib)]
    before = peak_mib()
    peaks = None if args.only else child_peaks(__file__, argv)
    ways, asked, _kept = retrieval_ways(args, device, dtype)
    if args.only:
        ways[args.only]()
        gpu = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == 'cuda' else 0.
        print(json.dumps(dict(before=before, peak=peak_mib(), gpu=gpu, images=args.kept)))
        return None
    scores = {}
    flops = {name: operations(lambda name=name: scores.update({name: ways[name]()})) for name in ways}
    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds = take_turns(ways, args.repeats, device, clock, warm_up=False)
    result = summary(seconds, flops, matrix_rate(device, dtype, clock), device)
    pairs = args.images * args.texts
    per = dict(ours=result['seconds']['ours'] / pairs, theirs=result['seconds']['theirs'] / asked)
    wanted = COCO['k'] * (COCO['images'] + COCO['texts'])
    coco = dict(ours=wanted / (1 + args.both) * per['ours'], theirs=wanted * per['theirs'])
    difference = (scores['ours'] - scores['theirs']).abs().max().item()
    result.update(
        images=args.images, texts=args.texts, patches=args.patches, rows=args.rows, dtype=args.dtype, both=args.both,
        clock='processor time' if args.cpu_time else 'wall clock', lengths=caption_lengths(args)[1],
        ratio_a_pair=per['theirs'] / per['ours'], difference=difference, peak_mib=peaks,
        peak_ratio=peaks['ours']['peak'] / peaks['theirs']['peak'], coco_seconds=coco,
        coco_patches_gib=COCO['images'] * args.patches * 1408 * 4 / 2**30)
    print(f'Re-ranking, {args.images} images x {args.texts} texts (lengths {result["lengths"]}), {args.patches} '
          f'patches, at most {args.rows} rows a batch, {args.dtype}, {result["clock"]}; attention of theirs: '
          f'{args.attention}')
    print(f'theirs scores {asked} pairs, ours {pairs}: {args.both:.0%} are wanted by both directions')
    show(result)
    print(f'ratio {result["ratio_a_pair"]:.2f} where no pair is wanted twice; largest difference of the scores '
          f'{difference:.1e}')
    for way, peak in peaks.items():
        print(f'peak memory {way}: {peak["peak"]:.0f} MiB ({peak["before"]:.0f} of them Python and torch), with the '
              f'patches of {peak["images"]} images' + (f'; GPU {peak["gpu"]:.0f} MiB' if peak['gpu'] else ''))
    print(f'peak memory, ours of theirs: {result["peak_ratio"]:.2f} (memory_gib={args.memory_gib:g})')
    print(f'COCO, {COCO["images"]} images, {COCO["texts"]} captions, k = {COCO["k"]}: '
          f'ours {coco["ours"] / 3600:.1f} h, theirs {coco["theirs"] / 3600:.1f} h')
    print(f'there, theirs keeps {result["coco_patches_gib"]:.1f} GiB of patches in memory, ours 2 unless set')
    return result


def main(argv=None):
    args = parse_args(argv)
    import torch
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if args.kind == 'retrieval':
        result = run_retrieval(args, device, getattr(torch, args.dtype), sys.argv[1:] if argv is None else argv)
    else:
        result = run_vqa(args, device, getattr(torch, args.dtype))
    if args.out and result:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    cli.run(main)
