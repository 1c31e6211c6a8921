"""Speed of training steps and captioning against LAVIS and Hugging Face, in one run, on random weights.

    python tools/analysis_tools/benchmark.py stage1 --lavis lavis_env
    python tools/analysis_tools/benchmark.py stage1 --lavis lavis_env --cached --vision g
    python tools/analysis_tools/benchmark.py stage2
    python tools/analysis_tools/benchmark.py caption --new-tokens 5

Same weights, same batch, same precision; the two ways take turns. Prints images a second, seconds, the ratio of the
medians, floating-point operations, the share of the machine's measured matrix rate and the peak memory of each way in a
process of its own.

``stage1``: forward and backward of ITC, ITM and ITG with a frozen vision encoder and the Q-Former of BLIP-2, dropout
0, 224 px. ``--lavis FOLDER``: against LAVIS's own code on CPUs, with gloo and one process; how to install it stands in
requirements/benchmark_lavis.txt. Without: against our own writing of LAVIS's arithmetic, also for GPUs: an image's
keys and values are computed in each of its uses, text is padded to 32 tokens, all rows go through all layers, attention
is two products and a softmax. The negatives are the same, and the losses are compared. ``--cached``: ours reads the
frozen encoder's features, as from a feature cache; the other way runs the encoder.

``stage2``: forward and backward of the language model's loss, vision encoder and language model frozen, against
``Blip2ForConditionalGeneration`` with the same parts frozen and the same padding. ``--captions 5``: five of each image;
ours reads the image and its prefix once for them, theirs has a row for each.

``caption``: beam search against ``Blip2ForConditionalGeneration.generate``; the texts are compared.
"""
import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from measuring import LENGTHS, child_peaks, matrix_rate, operations, peak_mib, show, summary, take_turns, word_tokenizer

from mmblip2.utils import cli

PADDED = 32  # tokens of every text in LAVIS
VISION = dict(
    tiny=dict(patch_size=56, width=32, depth=2, num_heads=2, mlp_width=64),
    b=dict(patch_size=16, width=768, depth=12, num_heads=12, mlp_width=3072),
    l=dict(patch_size=14, width=1024, depth=23, num_heads=16, mlp_width=4096),
    g=dict(patch_size=14, width=1408, depth=39, num_heads=16, mlp_width=6144))
QFORMER = dict(tiny=dict(num_layers=3, width=32, num_heads=2, num_query=4),
               base=dict(num_layers=12, width=768, num_heads=12, num_query=32))
LANGUAGE = {'tiny': (32, 2, 2), 'opt-125m': (768, 12, 12), 'opt-2.7b': (2560, 32, 32)}  # width, layers, heads
CAPTIONS = ['a photo of two men in front of a red bus', 'a dog on a beach',
            'a small white boat under a bridge at night', 'people at a long table in a dark room with many lamps']


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest='kind', required=True)
    for name, text in (('stage1', 'training step of stage 1'), ('stage2', 'training step of stage 2'),
                       ('caption', 'captioning with beams')):
        kind = kinds.add_parser(name, help=text)
        kind.add_argument('--vision', choices=['b', 'l', 'g'], default='b', help='shape of the vision encoder')
        kind.add_argument('--batch-size', type=int, default=8, help='images')
        kind.add_argument('--repeats', type=int, default=5, help='turns of each way')
        kind.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32', help='bfloat16: autocast')
        kind.add_argument('--device', help='default: the GPU if there is one')
        kind.add_argument('--cpu-time', action='store_true', help='count the time of the processors that a process '
                          'used instead of the clock: for a machine that does other work')
        kind.add_argument('--only', choices=['ours', 'theirs'], help='run one way once and print its peak memory')
        kind.add_argument('--tiny', action='store_true', help='a model of toy size, to try the tool')
        kind.add_argument('--out', help='JSON file for the figures')
        if name == 'stage1':
            kind.add_argument('--lavis', metavar='FOLDER', help='folder with LAVIS')
            kind.add_argument('--cached', action='store_true', help='ours has the features of the frozen encoder')
        else:
            kind.add_argument('--language', choices=['opt-125m', 'opt-2.7b'], default='opt-125m',
                              help='shape of the language model')
        if name == 'stage2':
            kind.add_argument('--captions', type=int, default=1, help='captions of each image')
        if name == 'caption':
            kind.add_argument('--new-tokens', type=int, default=20, help='tokens of a caption')
            kind.add_argument('--beams', type=int, default=5, help='beams')
    args = parser.parse_args(argv)
    if args.kind == 'stage1' and args.lavis and not Path(args.lavis, 'lavis', 'models').is_dir():
        parser.error(f'--lavis {args.lavis}: no LAVIS there; pip install --no-deps --target {args.lavis} -r '
                     'requirements/benchmark_lavis.txt')
    if args.kind == 'stage1' and args.lavis and args.device not in (None, 'cpu'):
        parser.error('--lavis runs on CPUs: add --device cpu, or leave --lavis out')
    return args


def vision_shape(args):
    return dict(VISION['tiny' if args.tiny else args.vision], image_size=224, eps=1e-6)


def qformer_shape(args):
    return QFORMER['tiny' if args.tiny else 'base']


class Drawn:
    """A tokenizer whose texts are numbers, of drawn tokens: as many as captions of COCO have."""
    dec_id, pad_id, sep_id, enc_id = 30522, 0, 102, None

    def __init__(self, count):
        import torch
        lengths = torch.tensor([length for length, times in LENGTHS.items() for _ in range(times)]).sort().values
        lengths = lengths[((torch.arange(count) + 0.5) * len(lengths) / count).long()]  # evenly
        self.mask = (torch.arange(PADDED) < lengths[:, None]).long()
        self.ids = torch.randint(1000, 30000, self.mask.shape, generator=torch.Generator().manual_seed(0))
        self.ids[:, 0] = 101
        self.ids[torch.arange(count), lengths - 1] = 102
        self.ids *= self.mask

    def __len__(self):
        return 30523

    def __call__(self, texts, max_length, device=None):
        from mmblip2.models.tokenizers import TextBatch
        rows = [int(text) for text in texts]
        return TextBatch(self.ids[rows], self.mask[rows]).trimmed(device)


def stage1_model(args, device):
    import torch

    from mmblip2.models.algorithms import Blip2Representation
    from mmblip2.models.qformer import QFormer
    from mmblip2.models.vision import VisionTransformer
    torch.manual_seed(0)
    vision = VisionTransformer(**vision_shape(args))
    qformer = QFormer(vision.embed_dim, vocab_size=30523, dropout=0., init_std=0.2 if args.tiny else 0.05,
                      **qformer_shape(args))  # so that images and texts differ
    return Blip2Representation(vision, qformer, Drawn(args.batch_size), allow_random=True).to(device).train()


@contextlib.contextmanager
def recorded_negatives(found):
    """Append the drawn images, then the drawn texts, to ``found``."""
    from mmblip2.models.algorithms import representation
    draw = representation.sample_hard_negatives

    def drawn(*args, **kwargs):
        result = draw(*args, **kwargs)
        found.append(result[0])
        return result

    with mock.patch.object(representation, 'sample_hard_negatives', drawn):
        yield


def naive_losses(model, pixels, text, negatives):
    """Losses of stage 1 by the arithmetic of LAVIS, in our own writing.

    Args:
        pixels: (B, 3, H, W).
        text (TextBatch): (B, 32).
        negatives: For each text an image, for each image a text, int64 (B,).
    """
    import torch
    import torch.nn.functional as F
    from benchmark_eval import plain_attention

    from mmblip2.models.layers import attention, self_attention_mask
    from mmblip2.models.losses import token_loss
    from mmblip2.models.vision import vit
    qformer = model.qformer
    with mock.patch.object(attention, 'scaled_attention', plain_attention), \
            mock.patch.object(vit, 'scaled_attention', plain_attention):
        with torch.no_grad():
            patches = model.vision(pixels)
        patches = model.vision_norm(patches.float())
        queries, cache = qformer.forward_queries(qformer.project_image(patches))
        image_feats = model.itc_head.image_features(queries)  # (B, Q, C)
        text_feats = model.itc_head.text_features(qformer.forward_text_tokens(*text)[:, 0])  # (B, C)
        similarity = (image_feats[:, None] @ text_feats[None, :, :, None])[..., 0].amax(-1) / model.itc_head.temperature
        target = torch.arange(len(pixels), device=pixels.device)
        loss_itc = (F.cross_entropy(similarity, target, label_smoothing=0.1)
                    + F.cross_entropy(similarity.T, target, label_smoothing=0.1)) / 2
        wrong_image, wrong_text = negatives
        x = torch.cat([qformer._embed_queries(3 * len(pixels)), qformer._embed_text(
            torch.cat([text.input_ids, text.input_ids, text.input_ids[wrong_text]]))], dim=1)
        mask = self_attention_mask('bidirectional', qformer.num_query,
                                   torch.cat([text.mask, text.mask, text.mask[wrong_text]]))
        images = torch.cat([patches, patches[wrong_image], patches])  # (3B, P, E)
        for layer in qformer.layers:
            image_kv = layer.cross_attention.project_kv(images) if layer.cross_attention is not None else None
            x, _ = layer(x, image_kv, mask, num_query=qformer.num_query)
        loss_itm = F.cross_entropy(model.itm_head(x[:, :qformer.num_query]), (torch.arange(len(x)) < len(pixels)).long(
        ).to(x.device))
        written = text.begin_with(model.tokenizer.dec_id)
        logits = model.itg_head(qformer.forward_causal(*written, cache), qformer.word_embeddings.weight)
        total, count = token_loss(logits, written.input_ids.masked_fill(written.mask == 0, -100), 0.1)
    return dict(loss_itc=loss_itc, loss_itm=loss_itm, loss_itg=total / count)


class Lavis:
    """The other process; see ``benchmark_lavis.py``."""

    def __init__(self, folder, model, pixels, negatives, args):
        import torch

        from mmblip2.checkpoints.layouts import to_write
        state = {name: tensor for name, tensor in model.state_dict().items() if name != 'num_steps'}
        converted, left = to_write('LAVIS', state).from_ours(state)
        if left:
            raise SystemExit(f'LAVIS has no place for {left[:3]}')
        self.folder = tempfile.TemporaryDirectory()
        inputs = Path(self.folder.name, 'inputs.pth')
        torch.save(dict(
            state={name: tensor.contiguous() for name, tensor in converted.items()}, vision=vision_shape(args),
            qformer=qformer_shape(args), pixels=pixels, input_ids=model.tokenizer.ids, mask=model.tokenizer.mask,
            negatives=torch.cat(list(negatives)), threads=torch.get_num_threads(), cpu_time=args.cpu_time,
            bfloat16=args.dtype == 'bfloat16'), inputs)
        environment = {**os.environ, 'PYTHONPATH': ''}  # its packages come before those of this environment
        self.process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', str(Path(__file__).with_name('benchmark_lavis.py')), folder, str(inputs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def ask(self, command):
        """The answer of the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f'{command}\n')
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f'LAVIS failed:\n{self.process.stderr.read()[-2000:]}')
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def stage1_ways(args, device, dtype):
    """Name to work; and what both found: losses by name of the way, and LAVIS's process if there is one."""
    import torch

    from mmblip2.engine.autocast import autocast_context
    from mmblip2.models.tokenizers import TextBatch
    from mmblip2.structures import DataSample
    model = stage1_model(args, device)
    pixels = torch.randn(args.batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    samples = [DataSample(text=str(i)) for i in range(args.batch_size)]
    text = TextBatch(model.tokenizer.ids.to(device), model.tokenizer.mask.to(device))
    precision = str(dtype).removeprefix('torch.')
    found: dict = {}
    encoder = model.vision
    with torch.no_grad(), autocast_context(precision):
        features = encoder(pixels) if args.cached and args.only != 'theirs' else None

    def backward(name, losses):
        total = losses['loss_itc'] + losses['loss_itm'] + losses['loss_itg']
        total.backward()
        model.zero_grad(set_to_none=True)
        found[name] = {key: float(losses[key].detach()) for key in ('loss_itc', 'loss_itm', 'loss_itg')}

    def ours():
        model.num_steps.zero_()  # the same draws in every turn
        with autocast_context(precision):
            if features is None:
                losses = model.loss(pixels, samples)
            else:
                with mock.patch.object(model, '_see', lambda images: images):
                    losses = model.loss(features, samples)
        backward('ours', losses)

    negatives: list = []
    with recorded_negatives(negatives), torch.no_grad(), autocast_context(precision):
        model.num_steps.zero_()
        model.loss(pixels, samples)
    lavis = Lavis(args.lavis, model, pixels, negatives, args) if args.lavis and args.only != 'ours' else None

    def theirs():
        if lavis is None:
            with autocast_context(precision):
                losses = naive_losses(model, pixels, text, negatives)
            return backward('theirs', losses)
        answer = lavis.ask('step')
        found['theirs'] = {key: value for key, value in answer.items() if key != 'seconds'}
        return answer['seconds']

    return dict(ours=ours, theirs=theirs), found, lavis


def generation_models(args, device):
    """Ours and the same as a ``Blip2ForConditionalGeneration``, frozen alike, with the tokenizer."""
    import torch
    import transformers

    from mmblip2.checkpoints.layouts import to_write
    from mmblip2.models.algorithms import Blip2Generation
    from mmblip2.models.language import CausalLM
    from mmblip2.models.qformer import QFormer
    from mmblip2.models.vision import VisionTransformer
    torch.manual_seed(0)
    width, depth, heads = LANGUAGE['tiny' if args.tiny else args.language]
    tokenizer = word_tokenizer([*CAPTIONS, 'a photo of'])
    language = dict(vocab_size=300 if args.tiny else 50272, hidden_size=width, word_embed_proj_dim=width,
                    num_hidden_layers=depth, num_attention_heads=heads, ffn_dim=4 * width, init_std=0.1, dropout=0.,
                    attention_dropout=0., tie_word_embeddings=False, pad_token_id=1, bos_token_id=2, eos_token_id=2)
    shape, reader = vision_shape(args), qformer_shape(args)
    ours = Blip2Generation(
        VisionTransformer(**shape), QFormer(shape['width'], dropout=0., init_std=0.2 if args.tiny else 0.05, **reader),
        CausalLM(config=dict(language, model_type='opt'), tokenizer=tokenizer, max_text_len=PADDED, ending='</s>'),
        vision_norm_eps=1e-6, allow_random=True, generation=dict(num_beams=getattr(args, 'beams', 1), **dict.fromkeys(
            ('max_new_tokens', 'min_new_tokens'), getattr(args, 'new_tokens', 20))))
    with torch.no_grad():  # so that a text depends on the image
        ours.language_projection.weight.normal_(std=1.)
        ours.vision.pos_embed.normal_(std=0.1)
    config = transformers.Blip2Config(
        vision_config=dict(hidden_size=shape['width'], intermediate_size=shape['mlp_width'],
                           patch_size=shape['patch_size'], num_hidden_layers=shape['depth'],
                           num_attention_heads=shape['num_heads'], image_size=224, layer_norm_eps=1e-6,
                           attention_dropout=0.),
        qformer_config=dict(hidden_size=reader['width'], num_hidden_layers=reader['num_layers'], vocab_size=30523,
                            num_attention_heads=reader['num_heads'], intermediate_size=4 * reader['width'],
                            encoder_hidden_size=shape['width'], hidden_dropout_prob=0.,
                            attention_probs_dropout_prob=0.),
        text_config=dict(language, model_type='opt'), num_query_tokens=reader['num_query'],
        image_token_index=language['vocab_size'] - 1)
    with torch.device('meta'):
        theirs = transformers.Blip2ForConditionalGeneration(config)
    state = ours.state_dict()
    converted, left = to_write('transformers', state).from_ours(state)
    converted = {name: tensor.clone() for name, tensor in converted.items()}
    found = theirs.load_state_dict(converted, strict=False, assign=True)
    if left or found.unexpected_keys or any(not name.endswith('position_ids') for name in found.missing_keys):
        raise SystemExit(f'the weights do not fit transformers: left {left[:3]}, {found}')
    for name, buffer in list(theirs.named_buffers()):
        if buffer.is_meta:
            owner, _, last = name.rpartition('.')
            setattr(theirs.get_submodule(owner), last, torch.arange(buffer.size(-1))[None])
    theirs.requires_grad_(True)
    for part in (theirs.vision_model, theirs.language_model):
        part.requires_grad_(False)
    theirs.vision_model.post_layernorm.requires_grad_(True)
    return ours.to(device), theirs.to(device), tokenizer


def generation_ways(args, device, dtype):
    """Name to work, and what both found: losses or texts."""
    import torch

    from mmblip2.engine.autocast import autocast_context
    from mmblip2.structures import DataSample
    ours, theirs, tokenizer = generation_models(args, device)
    if args.kind == 'caption':
        ours.requires_grad_(False)
        theirs.requires_grad_(False)
    if args.only:
        ours, theirs = (ours, None) if args.only == 'ours' else (None, theirs)
    pixels = torch.randn(args.batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    precision = str(dtype).removeprefix('torch.')
    image_token = [(300 if args.tiny else 50272) - 1] * qformer_shape(args)['num_query']
    found: dict = {}

    def padded(rows, value):
        longest = max(map(len, rows))
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows], device=device)

    if args.kind == 'stage2':
        of_image = [[CAPTIONS[(i + j) % len(CAPTIONS)] for j in range(args.captions)] for i in range(args.batch_size)]
        targets = [target for of_one in of_image for target in of_one]
        rows = [tokenizer(target).input_ids + [2] for target in targets]
        ids = padded([image_token + row for row in rows], 1)
        mask = padded([[1] * (len(image_token) + len(row)) for row in rows], 0)
        labels = padded([[-100] * len(image_token) + row for row in rows], -100)
        samples = [DataSample(prompt='', target=of_one if args.captions > 1 else of_one[0]) for of_one in of_image]
        repeated = pixels.repeat_interleave(args.captions, dim=0)

        def step(name, model, loss):
            model.train() if name == 'ours' else model.eval()  # no dropout either way
            with autocast_context(precision):
                value = loss()
            value.backward()
            model.zero_grad(set_to_none=True)
            found[name] = float(value.detach())

        return dict(
            ours=lambda: step('ours', ours, lambda: ours.loss(pixels, samples)['loss_lm']),
            theirs=lambda: step('theirs', theirs, lambda: theirs(
                pixel_values=repeated, input_ids=ids, attention_mask=mask, labels=labels).loss)), found

    prompt = image_token + tokenizer('a photo of').input_ids
    ids = torch.tensor([prompt] * args.batch_size, device=device)

    @torch.no_grad()
    def write_ours():
        ours.eval()
        with autocast_context(precision):
            samples = ours.predict(pixels, [DataSample(prompt='a photo of') for _ in range(args.batch_size)])
        found['ours'] = [sample.pred_text for sample in samples]

    @torch.no_grad()
    def write_theirs():
        theirs.eval()
        with autocast_context(precision):
            rows = theirs.generate(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids),
                                   num_beams=args.beams, max_new_tokens=args.new_tokens, do_sample=False,
                                   min_new_tokens=args.new_tokens, eos_token_id=2, pad_token_id=1, length_penalty=1.)
        found['theirs'] = [text.strip() for text in tokenizer.batch_decode(
            rows[:, -args.new_tokens:], skip_special_tokens=True, clean_up_tokenization_spaces=False)]

    return dict(ours=write_ours, theirs=write_theirs), found


def describe(args):
    what = dict(stage1='Stage-1 step', stage2='Stage-2 step', caption='Captioning')[args.kind]
    other = ('LAVIS' if args.lavis else "our own writing of LAVIS's arithmetic") if args.kind == 'stage1' else (
        'transformers')
    parts = [f'{what} against {other}', f'{args.batch_size} images', f'vision {"tiny" if args.tiny else args.vision}',
             args.dtype, 'processor time' if args.cpu_time else 'wall clock']
    if args.kind == 'stage1' and args.cached:
        parts.append('ours from cached features')
    if args.kind == 'stage2':
        parts.append(f'{args.captions} captions an image')
    if args.kind == 'caption':
        parts.append(f'{args.beams} beams, {args.new_tokens} tokens')
    return ', '.join(parts)


def main(argv=None):
    args = parse_args(argv)
    import torch
    lavis_wanted = args.kind == 'stage1' and args.lavis
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() and not lavis_wanted else 'cpu'))
    dtype = getattr(torch, args.dtype)
    before = peak_mib()
    given = sys.argv[1:] if argv is None else list(argv)
    peaks = None if args.only else child_peaks(__file__, given)
    lavis = None
    if args.kind == 'stage1':
        ways, found, lavis = stage1_ways(args, device, dtype)
    else:
        ways, found = generation_ways(args, device, dtype)
    if args.only:
        ways[args.only]()
        memory = lavis.ask('memory') if lavis else dict(before=before, peak=peak_mib())
        gpu = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == 'cuda' else 0.
        print(json.dumps(dict(memory, gpu=gpu)))
        if lavis:
            lavis.close()
        return
    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds = take_turns(ways, args.repeats, device, clock)
    flops = dict(ours=operations(ways['ours']),
                 theirs=lavis.ask('operations') if lavis else operations(ways['theirs']))
    result = summary(seconds, flops, matrix_rate(device, dtype, clock), device)
    if lavis:
        lavis.close()
    result.update(what=describe(args), images_per_second={
        name: args.batch_size / value for name, value in result['seconds'].items()}, found=found, peak_mib=peaks,
        peak_ratio=peaks['ours']['peak'] / peaks['theirs']['peak'])
    print(describe(args))
    show(result)
    print('images a second: ' + ', '.join(f'{name} {rate:.2f}' for name, rate in result['images_per_second'].items()))
    for way, peak in peaks.items():
        print(f'peak memory {way}: {peak["peak"]:.0f} MiB ({peak["before"]:.0f} of them Python and torch)'
              + (f'; GPU {peak["gpu"]:.0f} MiB' if peak['gpu'] else ''))
    compare(args, found, result)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + '\n')


def compare(args, found, result):
    """Print what both ways found, and refuse losses that differ by more than 1e-4 in float32."""
    ours, theirs = found['ours'], found['theirs']
    if args.kind == 'caption':
        result['same_texts'] = sum(a == b for a, b in zip(ours, theirs))
        print(f'{result["same_texts"]} of {len(ours)} texts are the same, {len(set(ours))} different ones among them')
        return
    if args.kind == 'stage2':
        ours, theirs = dict(loss_lm=ours), dict(loss_lm=theirs)
    result['difference'] = max(abs(ours[name] - theirs[name]) for name in ours)
    print('losses: ' + ', '.join(f'{name} {ours[name]:.5f} {theirs[name]:.5f}' for name in ours)
          + f'; largest difference {result["difference"]:.1e}')
    if args.dtype == 'float32' and result['difference'] > 1e-4:
        raise SystemExit('the losses differ: the two ways do not compute the same')


if __name__ == '__main__':
    cli.run(main)
