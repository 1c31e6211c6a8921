"""What the command-line tools share. Imports nothing heavy, so that ``--help`` answers at once."""
import ast
import difflib
import errno
import logging
import os
import select
import sys

from ..errors import ConfigError, MMBlip2Error

CFG_OPTIONS_HELP = ('change config entries: a.b.c=value, list items by number (a.0.b=value). The value is a '
                    'Python literal (dict(...) too), anything else is text, spaces and commas included. A '
                    'key that the config does not have is an error; +a.b.c=value adds it (an item to a list, too)')
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OTHER_LEFT = ('Connection closed by peer', 'Connection reset by peer')  # what gloo says
_PIPE = 141  # what a shell says of a program that wrote to a closed pipe
_SWITCH = {'true': True, 'false': False}


def add_run_options(parser):
    """Add the arguments of every tool that builds a Runner: --cfg-options and how several processes were started."""
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=CFG_OPTIONS_HELP)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how several processes were started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')


def parse_run_args(parser, argv=None):
    """Parse the arguments of such a tool; a --local_rank reaches torch by its variable."""
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def parse_value(text):
    """A Python literal, with ``dict(a=1)`` allowed, or the text itself.

    >>> parse_value('a photo of'), parse_value('[1, 2]'), parse_value('dict(lr=1e-4)')
    ('a photo of', [1, 2], {'lr': 0.0001})
    """
    try:
        return _literal(ast.parse(text.strip(), mode='eval').body)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _literal(node):
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args:
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)


def _convert(text, old):
    """The value of an option, given what the config has now."""
    value = parse_value(text)
    bracketed = text.strip()[:1] in ('(', '[')
    if isinstance(old, str) and isinstance(value, tuple) and not bracketed:
        return text  # 'red, 2 blue' parses as text anyway; '1, 2' is text too where text was
    if isinstance(old, bool) and isinstance(value, str):
        if value.lower() not in _SWITCH:
            raise ValueError(f'expected True or False, got {value!r}')
        return _SWITCH[value.lower()]
    if isinstance(value, str) and not isinstance(old, (str, bool, type(None))) and text.strip()[:1] not in ('"', "'"):
        kinds = {dict: 'dict(a=1)', list: "['a', 'b']", tuple: "('a', 'b')", int: 'a number', float: 'a number'}
        example = next((example for kind, example in kinds.items() if isinstance(old, kind)), None)
        if example is not None:
            raise ValueError(f'it is {old!r} now: expected {example}, got the text {value!r}; put text into quotes '
                             'if it is meant')
    return value


def apply_cfg_options(cfg, options, known=()):
    """Change a config in place.

    Args:
        cfg (Config): mmengine config.
        options (list[str]): ``key=value`` or ``+key=value`` each.
        known (tuple[str]): Top-level keys that may be set although the config does not have them.

    Raises:
        ConfigError: All options that are malformed or name a key that is not there.
    """
    problems = []
    for option in options or []:
        key, equals, text = option.partition('=')
        try:
            if not equals or not key.strip('+ '):
                raise ValueError('expected key=value')
            _assign(cfg, key.strip().lstrip('+').split('.'), text, key.startswith('+'), known)
        except (ValueError, KeyError) as error:
            problems.append(f'--cfg-options {option}: {error.args[0]}')
    if problems:
        raise ConfigError('\n'.join(problems))


def _assign(node, path, text, add, known):
    done: list[str] = []
    parents = []
    for name in path[:-1]:
        parents.append((node, _locate(node, name, done, path, add, ())))
        node = node[parents[-1][1]]
        done.append(name)
    last = _locate(node, path[-1], done, path, add, known if not done else (), last=True)
    if isinstance(node, tuple):  # tuples cannot change: put a new one into the parent
        items = list(node)
        items[last] = _convert(text, items[last])
        for parent, key in reversed(parents):
            if not isinstance(parent, tuple):
                parent[key] = tuple(items)
                break
            inner, items = tuple(items), list(parent)
            items[key] = inner
    else:
        old = node.get(last) if isinstance(last, str) else node[last]
        if path == ['resume'] and text.lower() not in _SWITCH:  # False, True or a path
            old = None
        node[last] = _convert(text, old)


def _locate(node, name, done, path, add, known, last=False):
    """Key or index of ``name`` in ``node``; creates missing dicts when ``add``."""
    here = '.'.join(done) or 'the config'
    if isinstance(node, (list, tuple)):
        if not name.lstrip('-').isdigit():
            raise ValueError(f'{here} is a list of {len(node)}: expected a number, got {name!r}')
        if add and last and isinstance(node, list) and int(name) == len(node):
            node.append(None)
        if not -len(node) <= int(name) < len(node):
            raise ValueError(f'{here} has {len(node)} items, there is no item {name}')
        return int(name)
    if not hasattr(node, 'keys'):
        raise ValueError(f'{here} is {node!r}, it has no keys')
    if name in node or name in known:
        return name
    if add:
        if not last:
            node[name] = {}
        return name
    near = difflib.get_close_matches(name, [str(key) for key in node], 1)
    names = ', '.join(map(str, node.keys())) or 'no keys'
    hint = f'did you mean {near[0]!r}? ' if near else f'it has {names}; '
    raise ValueError(f'{name!r} is not in {here}; {hint}+{".".join(path)}=... adds it')


def run(main):
    """Run a tool: a mistake of the user is one message and exit code 2; the rest keeps its traceback."""
    try:
        main()
    except BrokenPipeError:
        if not _reader_left():
            raise
        _flush()
        _leave(_PIPE)
    except MMBlip2Error as error:
        _flush()
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        _leave(2)
    except FloatingPointError as error:
        _flush()
        print(f'stopped: {error}', file=sys.stderr)
        _leave(1)
    except RuntimeError as error:
        if not any(text in str(error) for text in _OTHER_LEFT):
            raise
        _flush()
        print(f'stopped: another process of this run has ended, and says why ({str(error).splitlines()[0][:200]})',
              file=sys.stderr)
        _leave(1)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _flush()
        print(f'stopped: {error}; make room and go on with --resume. Checkpoints that were written are untouched',
              file=sys.stderr)
        _leave(1)
    except SystemExit as left:
        _flush()
        # A preempted process goes at once: Python would first end the data loaders' workers and report them as killed.
        _leave(left.code, at_once=left.code == 143)
    _flush()
    _leave(0)


def _reader_left():
    """Whether nobody reads the standard output any more, as behind ``| head``; other pipes are no concern of ours."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call on this system, no file behind the output
        return False


def _flush():
    """Write out what was printed; into nothing where nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(status, at_once=False):
    """Exit; with several processes without Python's own way out, on which gloo aborts some short runs."""
    torch = sys.modules.get('torch')
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        at_once = True
    if at_once and isinstance(status, int):
        logging.shutdown()
        _flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        sys.exit(status)
