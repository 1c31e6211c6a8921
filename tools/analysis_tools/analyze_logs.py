"""Curves and times of trainings, from the scalars that mmengine writes.

    python tools/analysis_tools/analyze_logs.py plot_curve work_dirs/A work_dirs/B --keys loss_itc loss_itm --out a.png
    python tools/analysis_tools/analyze_logs.py print work_dirs/A --keys loss caption/CIDEr
    python tools/analysis_tools/analyze_logs.py cal_train_time work_dirs/A

A log is a work directory (its newest run), or a file vis_data/scalars.json.
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.errors import DataError
from mmblip2.utils import cli


def read_scalars(path):
    """Lines of a log.

    Args:
        path (str): ``vis_data/scalars.json``, or a work directory, whose newest run is taken.

    Returns:
        list[dict]: One a logged iteration or validation, in the order of the file.

    Raises:
        DataError: No log there, or not one of mmengine's.
    """
    file = Path(path)
    if file.is_dir():
        runs = sorted(file.glob('**/vis_data/scalars.json'), key=lambda run: run.stat().st_mtime)
        if not runs:
            raise DataError(f'{path} has no vis_data/scalars.json below it: give the work directory of a training')
        file = runs[-1]
    if not file.is_file():
        raise DataError(f'log {path} not found: give a work directory or its vis_data/scalars.json')
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f'{file} is not a log of scalars: {error}') from error
    if not lines or not all(isinstance(line, dict) and 'step' in line for line in lines):
        raise DataError(f'{file} is not a log of scalars: expected lines such as {{"loss": 1.2, "step": 20}}')
    return lines


def curve(lines, key, path):
    """Steps and values of a key.

    Raises:
        DataError: With the keys that the log has.
    """
    points = [(line['step'], line[key]) for line in lines if isinstance(line.get(key), (int, float))]
    if not points:
        names = sorted({name for line in lines for name, value in line.items() if isinstance(value, (int, float))})
        raise DataError(f'{path} has no {key!r}, it has: {", ".join(names)}')
    return tuple(zip(*points))


def plot_curve(args):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    if args.legend and len(args.legend) != len(args.logs) * len(args.keys):
        raise DataError(f'--legend has {len(args.legend)} names for {len(args.logs)} logs x {len(args.keys)} keys: '
                        'give one for each curve, logs first')
    names = iter(args.legend or [f'{Path(log).name} {key}' for log in args.logs for key in args.keys])
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for log in args.logs:
        lines = read_scalars(log)
        for key in args.keys:
            axes.plot(*curve(lines, key, log), label=next(names), linewidth=1)
    axes.set_xlabel('iteration')
    axes.set_title(args.title or '')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.out, dpi=120, bbox_inches='tight')
    pyplot.close(figure)
    print(f'written: {args.out}')


def print_values(args):
    for log in args.logs:
        lines = read_scalars(log)
        for key in args.keys:
            steps, values = curve(lines, key, log)
            order = sorted(range(len(values)), key=values.__getitem__)
            shown = zip(('first', 'last', 'lowest', 'highest'), (0, -1, order[0], order[-1]))
            print(f'{log} {key}: {len(values)} values, ' + ', '.join(
                f'{what} {values[i]:.6g} at {steps[i]}' for what, i in shown))


def cal_train_time(args):
    for log in args.logs:
        _, times = curve([line for line in read_scalars(log) if 'loss' in line], 'time', log)
        kept = times if args.include_outliers or len(times) == 1 else times[1:]  # the first has the start in it
        print(f'{log}: {sum(kept) / len(kept):.4f} s an iteration, fastest {min(kept):.4f}, slowest {max(kept):.4f} '
              f'({len(kept)} logged windows{"" if len(kept) == len(times) else ", the first left out"})')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Curves and times of trainings')
    tasks = parser.add_subparsers(dest='task', required=True)
    for name, run, text in (('plot_curve', plot_curve, 'draw curves into a picture'),
                            ('print', print_values, 'first, last, lowest and highest value'),
                            ('cal_train_time', cal_train_time, 'average time of an iteration')):
        task = tasks.add_parser(name, help=text)
        task.set_defaults(run=run)
        task.add_argument('logs', nargs='+', help='work directories, or files vis_data/scalars.json')
        if name != 'cal_train_time':
            task.add_argument('--keys', nargs='+', default=['loss'], help='what to show (default: loss)')
    plot, times = tasks.choices['plot_curve'], tasks.choices['cal_train_time']
    plot.add_argument('--legend', nargs='+', help='a name for each curve, logs first, keys within')
    plot.add_argument('--title')
    plot.add_argument('--out', default='curves.png', help='picture (default: %(default)s)')
    times.add_argument('--include-outliers', action='store_true', help='count the first logged window, too')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.run(args)


if __name__ == '__main__':
    cli.run(main)
