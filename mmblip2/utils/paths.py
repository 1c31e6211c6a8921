"""Where the configs and tools that come with the package are, and the config that a name means."""
import difflib
from pathlib import Path

from ..errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]


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


def shipped_configs() -> list[str]:
    """Names of the configs that can be run: relative to ``configs``, ``blip2/blip2_vit-g_stage1.py``."""
    root = resource_root() / 'configs'
    return sorted(path.relative_to(root).as_posix() for path in root.rglob('*.py')
                  if '_base_' not in path.relative_to(root).parts)


def shipped_config(name: str | Path) -> Path | None:
    """The shipped config that a name means, or None.

    Args:
        name: Relative to ``configs`` or to the folder above it, or the last part alone where only one config is called
            so; '.py' may be left out.

    Raises:
        ConfigError: Several configs are called so.
    """
    root, text = resource_root(), Path(name).as_posix()
    if Path(name).is_absolute() or '..' in Path(name).parts:
        return None
    for folder in (root / 'configs', root):
        for ending in ('', '.py'):
            path = folder / (text + ending)
            if path.suffix == '.py' and path.is_file() and root / 'configs' in path.parents:
                return path
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
    if found is not None:
        return found
    names: dict[str, list[str]] = {}
    for config in shipped_configs():
        for called in (config.removesuffix('.py'), Path(config).stem):
            names.setdefault(called, []).append(config)
    text = Path(name).as_posix().removeprefix('configs/').removesuffix('.py')
    near = [config for called in difflib.get_close_matches(text, names, 3, 0.6) for config in names[called]]
    hint = f'did you mean {" or ".join(dict.fromkeys(near))}?' if near else 'python -m mmblip2 lists the latter'
    raise ConfigError(f'{wanted} {name} not found: neither seen from {Path.cwd()} nor among the configs of mmblip2 '
                      f'in {resource_root() / "configs"}; {hint}')
