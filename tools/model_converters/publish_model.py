"""Make a checkpoint ready to be given away: weights and what explains them, the file's hash in its name.

    python tools/model_converters/publish_model.py work_dirs/X/iter_1000.pth blip2-opt2.7b.pth
    -> blip2-opt2.7b-1f2e3d4c.pth

Optimizer, schedules, random states and loss histories stay behind; the file can be tested and fine-tuned, not resumed.
"""
import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Strip a checkpoint and put its hash into its name')
    parser.add_argument('in_file', help='checkpoint, or the work directory of a training (its newest one)')
    parser.add_argument('out_file', help='name of the new file; -<first 8 digits of its sha256> is added')
    parser.add_argument('--save-keys', nargs='+', default=['format', 'meta', 'state_dict'],
                        help='what is kept of the file (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.checkpoints import io
    from mmblip2.errors import CheckpointError
    checkpoint = io.read_checkpoint(args.in_file)
    missing = [key for key in args.save_keys if key not in checkpoint]
    if missing:
        raise CheckpointError(f'--save-keys: {args.in_file} has no {", ".join(missing)}, only {", ".join(checkpoint)}')
    out = Path(args.out_file if args.out_file.endswith('.pth') else f'{args.out_file}.pth')
    io.write_checkpoint({key: checkpoint[key] for key in args.save_keys}, out)
    final = out.with_name(f'{out.stem}-{hashlib.sha256(out.read_bytes()).hexdigest()[:8]}.pth')
    out.replace(final)
    dropped = [key for key in checkpoint if key not in args.save_keys]
    print(f'{final}: {", ".join(args.save_keys)} of {args.in_file}; left out: {", ".join(dropped) or "nothing"}')


if __name__ == '__main__':
    cli.run(main)
