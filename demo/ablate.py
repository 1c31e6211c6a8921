"""Run a table of short trainings that differ in one thing each, and write it.

    python demo/ablate.py configs/flickr8k/ablations.yml [--rows base queries-8] [--side-by-side 2]

Run it in the folder of data/ and work_dirs/. Every row is a training and its test, by tools/train.py and tools/test.py;
what is done is skipped, what was interrupted goes on. OUT gets a folder a row, table.json and table.md. The file says
what a row is (see configs/flickr8k/ablations.yml). With OMP_NUM_THREADS=2 and ``--side-by-side 2`` two rows run at a
time, with a thread each.
"""
import argparse
import json
import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quickstart as quick

from mmblip2.errors import ConfigError, MMBlip2Error

CHECKOUT = Path(__file__).resolve().parents[1]
KEYS = {'config', 'metrics', 'options', 'rows'}


def needed(row):
    """Returns the names of the rows (tuple) whose results a row reads, those after '{work}/' in its options."""
    return tuple(re.findall(r'\{work\}/([\w.-]+)', ' '.join(map(str, row))))


def read_groups(path):
    """Returns the groups of a file (dict), checked.

    Raises:
        ConfigError: It is no such file.
    """
    try:
        groups = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f'{path} cannot be read: {error}') from None
    expected = 'expected groups with config, metrics, options (a list) and rows (name: list of options)'
    if not isinstance(groups, dict):
        raise ConfigError(f'{path}: {expected}')
    names, unknown = [], set()
    for name, group in groups.items():
        fits = isinstance(group, dict) and set(group) == KEYS
        if not fits or not isinstance(group['rows'], dict) or not all(
                isinstance(row, list) for row in (group['metrics'], group['options'], *group['rows'].values())):
            raise ConfigError(f'{path}, group {name!r}: {expected}')
        unknown |= {other for row in group['rows'].values() for other in needed(row)} - set(names)
        names += group['rows']
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or unknown:
        raise ConfigError(f'{path}: rows that are there twice: {twice}; needed rows that are not there: '
                          f'{sorted(unknown)} (they have to stand in an earlier group)')
    return groups


def make_waves(groups, wanted, work, side_by_side):
    """Returns the steps of the wanted rows, and of what they need, as waves of a Quickstart.

    Args:
        groups (dict): Of :func:`read_groups`.
        wanted (Sequence[str]): Names of rows; empty: all.
        work (str): Folder of the results.
        side_by_side (int): Rows that run at a time.

    Raises:
        ConfigError: There is no such row.
    """
    names = [name for group in groups.values() for name in group['rows']]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ConfigError(f'no rows {unknown}: there are {names}')
    chosen = set(wanted)
    for group in reversed(groups.values()):  # what a needed row needs stands before it
        chosen |= {other for name, row in group['rows'].items() if name in chosen for other in needed(row)}
    waves = []
    for group in groups.values():
        done, rest = [], []
        for name, options in group['rows'].items():
            if wanted and name not in chosen:
                continue
            changes = tuple(str(option).format(work=work) for option in (*group['options'], *options))
            steps = (quick.Step(name, 'train', 'train.py', (480, 480), group['config'], needed(options),
                                cfg_options=changes),
                     quick.Step(f'{name}_test', 'test', 'test.py', (90, 90), group['config'], (name,),
                                cfg_options=changes))
            (done if (Path(work) / f'{name}_test' / 'metrics.json').is_file() else rest).append(steps)
        for rows in (done, rest):  # apart: a row that is skipped gives its place to another one
            for first in range(0, len(rows), side_by_side):
                waves += [tuple(wave) for wave in zip(*rows[first:first + side_by_side], strict=True)]
    return tuple(waves)


def make_table(groups, run):
    """Returns the rows that are done, ``{group: [{'row', 'options', metric: value, ..., 'seconds'}]}``."""
    tables = {}
    for title, group in groups.items():
        tables[title] = rows = []
        for name, options in group['rows'].items():
            path = run.folder(f'{name}_test') / 'metrics.json'
            if path.is_file():
                metrics = quick.read_json(path)
                rows.append({'row': name, 'options': options, **{key: metrics[key] for key in group['metrics']},
                             'seconds': run.stamp(name).get('seconds')})
    return tables


def format_tables(groups, tables):
    """Returns the tables as Markdown; in brackets the difference to the first row of the group."""
    lines = []
    for title, rows in tables.items():
        keys, base = groups[title]['metrics'], next(iter(groups[title]['rows']))
        lines += [f'## {title}', '', f'All rows: `{" ".join(map(str, groups[title]["options"]))}`', '',
                  '| row | ' + ' | '.join(keys) + ' | seconds | options |', '|---' * (len(keys) + 3) + '|']
        first = next((row for row in rows if row['row'] == base), None)
        for row in rows:
            cells = [f'{row[key]:.1f}' + (f' ({row[key] - first[key]:+.1f})' if first and row is not first else '')
                     for key in keys]
            options = ' '.join(f'`{option}`' for option in row['options'])
            lines.append(f'| {row["row"]} | {" | ".join(cells)} | {row["seconds"]:.0f} | {options} |')
        lines.append('')
    return '\n'.join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='groups and rows, YAML')
    parser.add_argument('--rows', nargs='+', default=[], help='only these, and what they need')
    parser.add_argument('--out', default='work_dirs/flickr8k-ablations', help='default: %(default)s')
    parser.add_argument('--side-by-side', type=int, default=1, help='rows at a time; default: %(default)s')
    args = parser.parse_args(argv)
    try:
        groups = read_groups(args.file)
        waves = make_waves(groups, args.rows, args.out, max(1, args.side_by_side))
    except MMBlip2Error as error:
        print(error, file=sys.stderr)
        return 2
    configs = Path(args.file).resolve().parent
    mode = quick.Mode('data/flickr8k', args.out, {}, {})
    demo = quick.FLICKR8K._replace(waves=waves, validate=False, configs=str(configs))
    run = quick.Quickstart(mode, Path.cwd(), CHECKOUT, demo=demo)
    status = 0
    try:
        run.run()
    except quick.StepError as error:
        print(f'error: {error}', file=sys.stderr)
        status = 1
    tables = make_table(groups, run)
    run.work.mkdir(parents=True, exist_ok=True)
    (run.work / 'table.json').write_text(json.dumps(tables, indent=1) + '\n', encoding='utf-8')
    (run.work / 'table.md').write_text(format_tables(groups, tables), encoding='utf-8')
    print(format_tables(groups, tables))
    return status


if __name__ == '__main__':
    sys.exit(main())
