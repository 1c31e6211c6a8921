"""Run a tool that comes with the package, wherever that is installed: python -m mmblip2 TOOL [ARGUMENTS]

Without a tool: lists the tools and the configs.
"""
import ast
import difflib
import os
import runpy
import shutil
import sys
from pathlib import Path

from .errors import ConfigError
from .utils import cli
from .utils.paths import resource_root, shipped_configs


def tools() -> dict[str, Path]:
    """Every shipped tool by its path below ``tools``, without the ending."""
    root = resource_root() / 'tools'
    return {path.relative_to(root).with_suffix('').as_posix(): path
            for path in sorted(root.rglob('*')) if path.suffix in ('.py', '.sh')}


def find_tool(name: str) -> Path:
    """The tool of a name: its path below ``tools``, or the last part of it; the ending may be given.

    Raises:
        ConfigError: No tool is called so, or several are.
    """
    known = tools()
    text = Path(name).as_posix().removeprefix('tools/').removesuffix('.py').removesuffix('.sh')
    found = [text] if text in known else [tool for tool in known if Path(tool).name == text]
    if len(found) == 1:
        return known[found[0]]
    names = {Path(tool).name: tool for tool in known}
    near = found or [names.get(match, match) for match in difflib.get_close_matches(text, [*names, *known], 3, 0.6)]
    hint = f'did you mean {" or ".join(dict.fromkeys(near))}?' if near else f'there are {", ".join(known)}'
    raise ConfigError(f'{name} is {"several tools" if found else "no tool"} of mmblip2 in '
                      f'{resource_root() / "tools"}; {hint}')


def describe(path: Path) -> str:
    """One line on a tool: the start of its docstring, or the usage in the first comment of a script."""
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.sh':
        return text.splitlines()[1].removeprefix('# bash tools/')
    return (ast.get_docstring(ast.parse(text)) or '').partition('\n')[0].partition(': python ')[0].rstrip('.:')


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help'):
        print('usage: python -m mmblip2 TOOL [ARGUMENTS]     (python -m mmblip2 TOOL --help explains a tool)\n')
        width = max(map(len, tools())) + 2
        print('tools:', *(f'  {name:<{width}}{describe(path)}' for name, path in tools().items()), sep='\n')
        print('\nconfigs:', *(f'  {name}' for name in shipped_configs()), sep='\n')
        return
    tool = find_tool(argv[0])
    if tool.suffix == '.py':
        sys.argv = [str(tool), *argv[1:]]
        runpy.run_path(str(tool), run_name='__main__')
        return
    bash = shutil.which('bash')
    if bash is None:
        raise ConfigError(f'{tool.name} is a script for bash, which is not installed')
    sys.stdout.flush()
    os.execve(bash, ['bash', str(tool), *argv[1:]], {'PYTHON': sys.executable, **os.environ})


if __name__ == '__main__':
    cli.run(main)
