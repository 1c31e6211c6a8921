"""A dialogue about an image.

    python demo/chat_demo.py photo.jpg                                              ask and read, line by line
    python demo/chat_demo.py photo.jpg --question "what is it?" --question "why?"   for scripts

At the prompt: a question, ':image PATH' for another image, ':reset' to forget what was said, ':quit' or the end of the
input to leave. Earlier turns are read with every question; where they are longer than the context of the language
model, the oldest ones are left out first, and that is said.

Without --model the quickstart's model for questions is used, so that this runs without a network after `make demo` (in
the folder in which work_dirs/ and data/ are). It was trained on single questions, so --max-turns is 0 for it.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from image_demo import (
    QUICKSTART,
    add_model_arguments,
    add_text_arguments,
    example_image,
    model_arguments,
    text_arguments,
)

from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', nargs='?', help='file or URL; default: a test image of the quickstart')
    parser.add_argument('--question', action='append', metavar='TEXT', help='ask this, and do not wait for input; may '
                                                                            'be repeated')
    parser.add_argument('--template', help="a turn, with {} for the question; default: the config's, or "
                                           "'Question: {} Answer:'")
    parser.add_argument('--max-turns', type=int, metavar='N', help='most earlier turns that are read; default: all, '
                                                                   'for the quickstart none')
    parser.add_argument('--max-context', type=int, metavar='TOKENS', help='most tokens that are read and written; '
                                                                          "default: the language model's limit")
    parser.add_argument('--show-dir', metavar='DIR', help='write a picture of the dialogue into this folder; no file '
                                                          'is overwritten')
    parser.add_argument('--resize', type=int, metavar='PIXELS', help='shorter side of the image in the picture')
    add_model_arguments(parser, f'{QUICKSTART}/vqa')
    add_text_arguments(parser)
    return parser.parse_args(argv)


def questions(args, chat):
    """What is asked: the arguments, or line by line what is typed."""
    from mmblip2.apis.images import load_image
    from mmblip2.errors import MMBlip2Error
    if args.question:
        yield from args.question
        return
    print("ask about the image; ':image PATH', ':reset', ':quit'")
    while True:
        try:
            line = input('> ').strip()
        except EOFError:
            print()
            return
        command, _, rest = line.partition(' ')
        if command == ':quit':
            return
        try:
            if command == ':reset':
                finish(args, chat)
                chat.reset()
            elif command == ':image':
                load_image(rest.strip())  # a wrong name leaves the dialogue as it is
                finish(args, chat)
                chat.start(rest.strip())
            elif command.startswith(':'):
                print(f"no command {command}: ':image PATH', ':reset', ':quit'")
            elif line:
                yield line
        except MMBlip2Error as error:
            print(error)


def finish(args, chat):
    """Write the picture of the dialogue."""
    if args.show_dir and chat.history:
        print(f'picture: {chat.draw(show_dir=args.show_dir, resize=args.resize)}')


def main(argv=None):
    args = parse_args(argv)
    image = args.image or example_image()
    model = model_arguments(args, 'vqa')
    max_turns = 0 if args.model is None and args.max_turns is None else args.max_turns
    from mmblip2.apis import ChatInferencer
    from mmblip2.errors import MMBlip2Error
    chat = ChatInferencer(template=args.template, max_context=args.max_context, max_turns=max_turns, **model)
    chat.start(image)
    for question in questions(args, chat):
        try:
            turn = chat(question, **text_arguments(args))
        except MMBlip2Error as error:
            if args.question:
                raise
            print(error)  # of one question; the dialogue goes on
            continue
        dropped = turn['dropped_turns'] if max_turns is None else 0
        print(f'{question} ' * bool(args.question) + turn['pred_answer'] +
              f'  ({dropped} earlier turns not read)' * bool(dropped))
    finish(args, chat)


if __name__ == '__main__':
    cli.run(main)
