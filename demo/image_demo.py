"""Captions, answers and searches for images of one's own.

    python demo/image_demo.py photo.jpg                                    caption
    python demo/image_demo.py photo.jpg --question "what is on the table?"  answer
    python demo/image_demo.py photo.jpg --texts "a cat" "two dogs"          the texts that fit best
    python demo/image_demo.py photo.jpg --texts "a cat" --task matching     whether each text belongs to it
    python demo/image_demo.py photos/ --find "a cat on a sofa"              the images that fit best

Without --model the weights of the quickstart are used, so that all of this runs without a network after `make demo`
(in the folder in which work_dirs/ and data/ are). Without an image, one of its test images is.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmblip2.utils import cli

QUICKSTART = Path('work_dirs/quickstart')
WEIGHTS = {'caption': 'stage2', 'vqa': 'vqa', 'retrieval': 'stage1', 'matching': 'stage1'}
IMAGE = Path('data/shapes/test/000000004501.jpg')


def add_model_arguments(parser, default):
    """Arguments that say which model, shared with chat_demo.py."""
    group = parser.add_argument_group('model')
    group.add_argument('--model', metavar='NAME|PATH',
                       help='name (python -c "import mmblip2; print(mmblip2.list_models())"), config, checkpoint, work '
                            f'directory, or Hugging Face folder; default: {default}')
    group.add_argument('--pretrained', metavar='PATH|URL', help='with a config: its weights')
    group.add_argument('--device', help='cuda, cuda:1, cpu; default: the GPU if there is one')
    group.add_argument('--dtype', choices=['auto', 'float32', 'bfloat16', 'float16'],
                       help='type of computation; default: what the config says. Never float16 for Flan-T5')


def add_text_arguments(parser):
    """Arguments that say how text is generated, shared with chat_demo.py."""
    group = parser.add_argument_group('text', 'beam search as in the config of the model, unless something is given')
    group.add_argument('--num-beams', type=int, help='1 is greedy search')
    group.add_argument('--max-new-tokens', type=int, help='longest text')
    group.add_argument('--sample', action='store_true', help='draw the words at random')
    group.add_argument('--top-p', type=float, help='with --sample: draw from the likeliest words that have this '
                                                   'probability together')
    group.add_argument('--temperature', type=float, help='with --sample: below 1 less random, above 1 more')
    group.add_argument('--seed', type=int, help='with --sample: the same seed gives the same text')


def text_arguments(args):
    """Keyword arguments of an inferencer, of those that were given."""
    found = dict(num_beams=args.num_beams, max_new_tokens=args.max_new_tokens, do_sample=args.sample or None,
                 top_p=args.top_p, temperature=args.temperature, seed=args.seed)
    return {key: value for key, value in found.items() if value is not None}


def model_arguments(args, step):
    """Keyword arguments of an inferencer that say which model; without --model that of a step of the quickstart.

    Raises:
        ConfigError: There is none: the quickstart was not run here.
    """
    from mmblip2.errors import ConfigError
    found = dict(pretrained=args.pretrained, device=args.device, dtype=args.dtype)
    if args.model is None and not (QUICKSTART / step / 'last_checkpoint').is_file():
        raise ConfigError(f'no --model given, and the quickstart has no weights in {QUICKSTART / step}, seen from '
                          f'{Path.cwd()}: run `make demo` once, and this in the folder that has its work_dirs, or give '
                          '--model')
    return dict(model=args.model or str(QUICKSTART / step),
                **{key: value for key, value in found.items() if value is not None})


def example_image():
    """A test image of the quickstart.

    Raises:
        DataError: It is not there.
    """
    from mmblip2.errors import DataError
    if not IMAGE.is_file():
        raise DataError(f'no image given, and the test image of the quickstart ({IMAGE}) is not there, seen from '
                        f'{Path.cwd()}: run `make demo` once, and this in the folder that has its data, or name an '
                        'image')
    return IMAGE


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='*', metavar='IMAGE', help='files, URLs, or one directory; default: a test '
                                                                   'image of the quickstart')
    parser.add_argument('--task', choices=list(WEIGHTS),
                        help='default: vqa with --question, retrieval with --texts or --find, otherwise caption')
    parser.add_argument('--question', help='about each image')
    parser.add_argument('--prompt', help="text that the captions continue; default: the config's")
    parser.add_argument('--template', help="prompt with {} for the question; default: the config's, or "
                                           "'Question: {} Answer:'")
    parser.add_argument('--texts', nargs='+', metavar='TEXT', help='texts to rank by how well they fit each image')
    parser.add_argument('--find', metavar='TEXT', help='rank the images by how well they fit this text')
    parser.add_argument('--topk', type=int, help='results of a search (default: 5)')
    parser.add_argument('--num-captions', type=int, default=1, help='captions an image (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=1, help='images at once (default: %(default)s)')
    parser.add_argument('--show-dir', metavar='DIR', help='write a picture of each result into this folder; no file is '
                                                          'overwritten')
    parser.add_argument('--show', action='store_true', help='open a window with each picture')
    parser.add_argument('--resize', type=int, metavar='PIXELS', help='shorter side of the image in the pictures')
    add_model_arguments(parser, f'{QUICKSTART}/{{stage1,stage2,vqa}}, by the task')
    add_text_arguments(parser)
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def check(parser, args):
    """Settle the task, and refuse arguments that it would not read."""
    if args.task is None:
        args.task = 'vqa' if args.question is not None else 'retrieval' if args.texts or args.find else 'caption'
    needed = {'caption': [], 'vqa': ['question'], 'retrieval': ['texts', 'find'], 'matching': ['texts']}[args.task]
    given = [name for name in needed if getattr(args, name) is not None]
    if needed and len(given) != 1:
        parser.error(f'--task {args.task} needs ' + ' or '.join(f'--{name}' for name in needed) +
                     (', not both' if given else ''))
    readers = {'question': ['vqa'], 'template': ['vqa'], 'prompt': ['caption'], 'texts': ['retrieval', 'matching'],
               'find': ['retrieval']}
    for name, tasks in readers.items():
        if getattr(args, name) is not None and args.task not in tasks:
            parser.error(f'--{name} is for --task {" or ".join(tasks)}, this is {args.task}')
    if args.task in ('retrieval', 'matching') and text_arguments(args):
        parser.error(f'--task {args.task} writes no text: leave {", ".join(text_arguments(args))} out')
    if args.topk is not None and args.task != 'retrieval':
        parser.error(f'--topk is for --task retrieval, this is {args.task}')
    args.topk = 5 if args.topk is None else args.topk
    if args.num_captions != 1 and args.task != 'caption':
        parser.error(f'--num-captions is for --task caption, this is {args.task}')


def run(args, images):
    """The lines to print, of one task."""
    from mmblip2 import apis
    from mmblip2.apis.images import iterate_images
    model = model_arguments(args, WEIGHTS[args.task])
    common = dict(batch_size=args.batch_size, show=args.show, show_dir=args.show_dir, resize=args.resize)
    names = [str(image) for image in iterate_images(images)]
    if args.task == 'caption':
        results = apis.ImageCaptionInferencer(**model)(images, args.prompt, args.num_captions, **common,
                                                       **text_arguments(args))
        for name, result in zip(names, results):
            texts = result['pred_caption']
            yield from [f'{name}: {text}' for text in ([texts] if isinstance(texts, str) else texts)]
    elif args.task == 'vqa':
        results = apis.VisualQuestionAnsweringInferencer(**model)(images, args.question, args.template, **common,
                                                                  **text_arguments(args))
        yield from [f'{name}: {result["question"]} {result["pred_answer"]}' for name, result in zip(names, results)]
    elif args.task == 'matching':
        inferencer = apis.ImageTextMatchingInferencer(**model)
        for image, name in zip(iterate_images(images), names):
            for text, score in zip(args.texts, inferencer(image, args.texts, **common)):
                yield f'{name}: matches {score["itm_score"]:6.1%}, cosine {score["itc_score"]:.3f}  {text}'
    elif args.find is not None:
        inferencer = apis.TextToImageRetrievalInferencer(prototype=images, **model)
        for row in inferencer(args.find, args.topk, **common)[0]:
            yield f'{row["match_score"]:8.3f}  {row["sample"]["img_path"]}'
    else:
        inferencer = apis.ImageToTextRetrievalInferencer(prototype=args.texts, **model)
        for name, rows in zip(names, inferencer(images, args.topk, **common)):
            yield from [f'{name}: {row["match_score"]:8.3f}  {row["text"]}' for row in rows]


def main(argv=None):
    args = parse_args(argv)
    images = args.images or [example_image()]
    images = images[0] if len(images) == 1 and Path(images[0]).is_dir() else images
    if args.model is None:
        model_arguments(args, WEIGHTS[args.task])  # said before torch is imported, which takes seconds
    for line in run(args, images):
        print(line)
    if args.show_dir:
        print(f'pictures: {args.show_dir}')


if __name__ == '__main__':
    cli.run(main)
