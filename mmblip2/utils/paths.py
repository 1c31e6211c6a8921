"""Where the configs and tools that come with the package are, and the config that a name means."""
import difflib
from pathlib import Path

from ..errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
PREFIX = 'mmblip2::'  # of a shipped config's name, where it must not be taken for a file


def resource_root() -> Path:
    """Folder of ``configs``, ``tools`` and ``model-index.yml``.

    An installed wheel has it inside the package, as OpenMIM expects (``mmblip2/.mim``); a checkout, editable
    installation or not, has the three beside the package.

    Raises:
        ConfigError: They are in neither place.
    """
    roots = (PACKAGE / '.mim', PACKAGE.parent)
    for root in roots:
        if all((root / name).exists() for name in ('configs', 'tools', 'model-index.yml')):
            return root
    raise ConfigError(f'configs, tools and model-index.yml of mmblip2 are neither in {roots[0]} (a wheel) nor in '
                      f'{roots[1]} (a checkout): install the package anew')


def shipped_configs(bases: bool = False) -> list[str]:
    """Names of the configs that can be run, or of the parts below ``_base_``: ``blip2/blip2_vit-g_stage1.py``."""
    root = resource_root() / 'configs'
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob('*.py'))
    return [name for name in names if name.startswith('_base_/') == bases]


def shipped_config(name: str | Path) -> Path | None:
    """The shipped config that a name means, or None.

    Args:
        name: Relative to ``configs`` or to the folder above it, or the last part alone where only one config is called
            so; '.py' may be left out, 'mmblip2::' may stand in front.

    Raises:
        ConfigError: Several configs are called so.
    """
    root, path = resource_root(), Path(str(name).removeprefix(PREFIX))
    text = path.as_posix()
    if path.is_absolute() or '..' in path.parts:
        return None
    for folder in (root / 'configs', root):
        for ending in ('', '.py'):
            file = folder / (text + ending)
            if file.suffix == '.py' and file.is_file() and root / 'configs' in file.parents:
                return file
    same = [config for config in shipped_configs() if Path(config).name in (text, f'{text}.py')]
    if len(same) > 1:
        raise ConfigError(f'config {name} is no file here, and several shipped configs are called so: give one of '
                          f'{", ".join(same)}')
    return root / 'configs' / same[0] if same else None


def find_config(name: str | Path, wanted: str = 'config file') -> Path:
    """The config file that ``name`` means: a file, or else a shipped config.

    Args:
        name: What the user gave.
        wanted: What it could have been, for the error.

    Raises:
        ConfigError: There is neither; says where it looked, and which names are close.
    """
    if Path(name).is_file():
        return Path(name)
    found = shipped_config(name)
    if found is None:
        raise ConfigError(f'{wanted} {name} not found: neither seen from {Path.cwd()} nor among the configs of mmblip2 '
                          f'in {resource_root() / "configs"}; {_close_to(name)}')
    return found


def find_base(name: str) -> Path:
    """The file of ``_base_ = 'mmblip2::NAME'``: a shipped config, or a part of one below ``_base_``.

    Raises:
        ConfigError: There is none.
    """
    found = shipped_config(name)
    if found is None:
        raise ConfigError(f'_base_ {name} is not among the configs of mmblip2 in {resource_root() / "configs"}; '
                          f'{_close_to(name)}')
    return found


def _close_to(name: str | Path) -> str:
    """'did you mean ...?', or where the names are listed."""
    names = {config.removesuffix('.py'): [config] for config in shipped_configs(bases=True)}
    for config in shipped_configs():
        for called in (config.removesuffix('.py'), Path(config).stem):
            names.setdefault(called, []).append(config)
    text = Path(str(name).removeprefix(PREFIX)).as_posix().removeprefix('configs/').removesuffix('.py')
    near = [config for called in difflib.get_close_matches(text, names, 3, 0.6) for config in names[called]]
    return f'did you mean {" or ".join(dict.fromkeys(near))}?' if near else 'python -m mmblip2 lists the latter'
