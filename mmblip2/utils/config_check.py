"""Find what is wrong in a config before anything is built; all problems at once, each with its path."""
import difflib
import inspect
import keyword
import os
import re
from importlib.util import find_spec
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..registry import MODELS, own_arguments
from .config_kinds import KEYS, clip_grad_problem, value_at, wrong_kinds, wrong_values
from .run_config import TOP_LEVEL, each, innermost_datasets

_DEFAULT_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint',
                  'finite_loss', 'history', 'preempt', 'bad_samples')
_LOADER_EXTRAS = ('collate_fn', 'dataset', 'num_batch_per_epoch', 'sampler', 'batch_sampler',
                  'worker_init_fn')
_MIXING_SAMPLERS = ('SeekableInfiniteSampler', 'SeekableSampler')
_BACKEND_PACKAGES = {'TensorboardVisBackend': 'tensorboard', 'WandbVisBackend': 'wandb', 'MLflowVisBackend': 'mlflow',
                     'ClearMLVisBackend': 'clearml', 'NeptuneVisBackend': 'neptune', 'DVCLiveVisBackend': 'dvclive',
                     'AimVisBackend': 'aim'}
_LOAD_FROM = ('checkpoint', 'include', 'exclude')
_PARAMWISE = ('custom_keys', 'layer_decay')
_MULTS = ('lr_mult', 'decay_mult')
_GIVEN_BY_BUILDERS = {'runner', 'dataloader', 'evaluator', 'dataset', 'optimizer', 'params', 'module', 'name',
                      'sampler', 'optim_wrapper_cfg', 'save_dir'}
_RESIZES = ('Resize', 'RandomResizedCrop', 'CenterCrop')
_NESTING = ('EachImage', )  # transforms with a list of transforms
FOREIGN_KEYS = ('init_cfg', 'config')  # what is below belongs to another package


def check_config(cfg, checkpoint=None, training=False):
    """Check names, types, arguments and sizes of a config. Builds nothing.

    Args:
        cfg (Config): The config as the Runner will get it.
        checkpoint (str | None): A file, or a work directory with a checkpoint, that has to exist.
        training (bool): What a training with this config would resume, or else load, has to exist too.

    Raises:
        ConfigError: Every problem found, one a line, with the path of the config entry.
    """
    problems = _Checker(cfg).run()
    if checkpoint is not None:
        problems += _no_checkpoint(checkpoint, 'check the path')
    if training:
        problems += _no_start(cfg)
    if problems:
        name = cfg.filename or 'the config'
        plural = 'problem' if len(problems) == 1 else 'problems'
        raise ConfigError('\n  '.join([f'{len(problems)} {plural} in {name}:', *problems]))


def _no_checkpoint(path, advice):
    """Why ``path`` cannot be a checkpoint, in a list; it is found, or downloaded, and not read."""
    from ..checkpoints.files import FOLDER_FILES, weights_file
    from ..checkpoints.io import find_checkpoints
    from ..checkpoints.sources import find, is_hub_name, is_published, locate
    try:
        found, tried = find(path)
        if found is None and ('://' in str(path) or is_hub_name(path) or is_published(path)):
            found = locate(path)
    except CheckpointError as error:
        return [str(error)]
    if found is None:
        return [f'checkpoint {path} not found: {advice}. Looked in: {"; ".join(tried)}']
    if found.is_file() or find_checkpoints(found) or weights_file(found):
        return []
    return [f'{path} is a folder without a checkpoint (iter_*.pth, epoch_*.pth; {FOLDER_FILES}): {advice}']


def _no_start(cfg):
    """What is missing of ``resume`` and ``load_from``; a training that is resumed does not read the latter."""
    from ..checkpoints.io import find_checkpoints
    folder = Path(cfg.get('work_dir') or '.')
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return [f'work_dir: {folder} cannot be written: {there} is {"read-only" if there.is_dir() else "a file"}; '
                'choose another with --work-dir']
    resume = cfg.get('resume')
    if isinstance(resume, str):
        return [f'resume: {problem}' for problem in _no_checkpoint(resume, 'check the path')]
    if resume and (find_checkpoints(folder) or (folder / 'last_checkpoint').is_file()):
        return []
    given = cfg.get('load_from')
    entries = each(given, 'load_from') if isinstance(given, (dict, list, tuple)) else []
    paths = [('load_from', given)] if isinstance(given, (str, Path)) else [
        (f'{path}.checkpoint', item['checkpoint']) for path, item in entries
        if isinstance(item, dict) and isinstance(item.get('checkpoint'), (str, Path))]
    return [f'{where}: {problem}' for where, path in paths
            for problem in _no_checkpoint(path, 'run the training that writes it first, or set load_from')]


def _near(name, names):
    """' (did you mean X?)', or what there is when there is little."""
    names = [str(item) for item in names]
    near = difflib.get_close_matches(str(name), names, 1, 0.6)
    if not near:  # the same letters in another case
        near = [item for item in names if item.lower() == str(name).lower()]
    if near:
        return f'; did you mean {near[0]!r}?'
    return f'; known are {", ".join(sorted(names))}' if 0 < len(names) <= 12 else ''


class _Checker:

    def __init__(self, cfg):
        self.cfg = cfg
        self.problems = []
        self.unread = set()  # sections that are no dicts: nothing more is said of them

    def run(self):
        from mmengine import registry as root
        from mmengine.registry import DefaultScope

        import mmblip2.datasets
        import mmblip2.engine
        import mmblip2.evaluation
        import mmblip2.models
        for path, problem in wrong_kinds(self.cfg):
            self.add(path, problem)
            if problem.startswith('expected a dict,'):
                self.unread.add(path)
        self.cfg = self.cfg.copy()
        for path in self.unread:
            self.cfg[path] = {}
        cfg, get = self.cfg, self.cfg.get
        with DefaultScope.overwrite_default_scope('mmblip2'):
            self.top_level()
            self.model(get('model'), 'model', root.MODELS)
            for split in ('train', 'val', 'test'):
                self.dataloader(get(f'{split}_dataloader'), f'{split}_dataloader', root)
            self.loop('train_cfg', self._train_loop(), root)
            self.loop('val_cfg', 'ValLoop', root)
            self.loop('test_cfg', 'TestLoop', root)
            for name in ('val_evaluator', 'test_evaluator'):
                for path, item in self.entries(get(name), name):
                    self.item(item, path, root.METRICS)
            self.optim_wrapper(get('optim_wrapper'), root)
            for path, item in self.entries(get('param_scheduler'), 'param_scheduler'):
                self.item(item, path, root.PARAM_SCHEDULERS)
            self.hooks(root)
            self.load_from()
            if get('visualizer'):
                self.item(cfg.visualizer, 'visualizer', root.VISUALIZERS)
                for path, item in self.entries(cfg.visualizer.get('vis_backends'), 'visualizer.vis_backends'):
                    self.item(item, path, root.VISBACKENDS)
                    if not isinstance(item, dict):
                        continue
                    package = _BACKEND_PACKAGES.get(str(item.get('type')))
                    if package is not None and find_spec(package) is None:
                        self.add(path, f'{item["type"]} needs the package {package}: pip install {package}')
            if isinstance(get('log_processor'), dict):
                self.item({'type': 'LogProcessor', **cfg.log_processor}, 'log_processor', root.LOG_PROCESSORS)
            self.parts(_dict(get('model')))
            self.image_sizes()
            for path, problem in mmblip2.engine.fsdp.problems(self.cfg):
                self.add(path, problem)
            self.save_best(root)
        return self.problems

    def add(self, path, message):
        if path.split('.')[0] in self.unread:
            return
        self.problems.append(f'{path}: {message}')

    def top_level(self):
        cfg = self.cfg
        if not isinstance(cfg.get('model'), dict):
            self.add('model', f'expected a dict with a type, got {cfg.get("model")!r}')
        for key in cfg:
            near = difflib.get_close_matches(key, TOP_LEVEL, 1, 0.8)
            if key not in TOP_LEVEL and not key.endswith('_pipeline') and near:
                self.add(key, f'unknown key; did you mean {near[0]!r}?')
        for names in (('train_dataloader', 'train_cfg', 'optim_wrapper'),
                      ('val_dataloader', 'val_cfg', 'val_evaluator'),
                      ('test_dataloader', 'test_cfg', 'test_evaluator')):
            missing = [name for name in names if cfg.get(name) is None]
            if 0 < len(missing) < len(names):
                self.add(missing[0], f'missing; {", ".join(names)} belong together (all or none)')
        for place, known in KEYS.items():
            for key in set(_dict(value_at(cfg, place))) - set(known):
                self.add(f'{place}.{key}', 'unknown key' + _near(key, known))
        scope = cfg.get('default_scope')
        if scope not in (None, 'mmengine', 'mmblip2') and MODELS.root._search_child(scope) is None:
            self.add('default_scope', f"there are no registries of {scope!r}; did you mean 'mmblip2'?")
        self.keywords(dict(cfg.items()), '')

    def keywords(self, node, path):
        for key, value in (node.items() if isinstance(node, dict) else
                           enumerate(node) if isinstance(node, (list, tuple)) else ()):
            here = f'{path}.{key}' if path else str(key)
            if isinstance(key, str) and keyword.iskeyword(key):
                self.add(here, f'{key!r} is a Python keyword, such a config cannot be written to a file')
            self.keywords(value, here)

    # One entry: is its type known, does it take these arguments?

    def item(self, item, path, registry, skip=()):
        """Check ``type`` and arguments; returns the class, or None when it is not known."""
        if not isinstance(item, dict):
            if isinstance(item, (str, int, float, list, tuple)):
                example = item if isinstance(item, str) else '...'
                self.add(path, f"expected a dict with a type, such as dict(type='{example}'), got {item!r}")
            return None
        if 'type' not in item:
            self.add(path, f'expected a dict with a type, got {dict(item)!r}')
            return None
        kind = self.resolve(item['type'], path, registry)
        if kind is not None:
            given = {key for key in item if key not in ('type', '_scope_', *skip)}
            own = own_arguments(kind)
            if own is not None:
                self.forwarded(kind, item, own, given - own, path)
                given &= own
            self.arguments(kind, given, path, item['type'])
            self.values(kind, {key: item[key] for key in given}, path)
        return kind

    def values(self, kind, given, path):
        told = {problem.split(':')[0] for problem in self.problems}
        for key, problem in wrong_values(kind, given).items():
            if f'{path}.{key}' not in told:
                self.add(f'{path}.{key}', problem)

    def entries(self, value, path, always_list=False):
        """(path, item) of a dict, or of a list of dicts; anything else is a problem."""
        if value is not None and not isinstance(value, (list, tuple) if always_list else (dict, list, tuple)):
            what = 'a list of dicts' if always_list else 'a dict with a type, or a list of them'
            self.add(path, f'expected {what}, got {dict(value) if isinstance(value, dict) else value!r}')
        return each(value, path, always_list)

    def forwarded(self, kind, item, own, given, path):
        """Check the arguments that a class hands on to another package."""
        try:
            target, name = kind.forwards_to(item)
        except ConfigError as error:
            self.add(path, str(error))
            return
        if target is not None:
            self.arguments(target, given, path, name, own)

    def resolve(self, name, path, registry):
        if not isinstance(name, str):
            return name
        if name.startswith('mmpretrain.'):
            from ..compat import import_mmpretrain
            try:
                import_mmpretrain()
            except ConfigError as error:
                self.add(f'{path}.type', str(error))
                return None
        try:
            kind = _child(registry).get(name)
        except Exception:  # mmengine raises several kinds for a name with dots
            kind = None
        if kind is None:
            package = name.split('.')[0]
            if package not in ('', name) and find_spec(package) is None:
                self.add(f'{path}.type', f'{name!r} needs the package {package}, which is not installed: pip install '
                                         f'it (requirements/real.txt has those of the shipped configs)')
                return None
            names = [name for part in _lineage(_child(registry)) for name in part.module_dict]
            self.add(f'{path}.type', f'{name!r} is not a known {registry.name}{_near(name, names)}')
        return kind

    def arguments(self, kind, given, path, name, others=()):
        allowed, needed, is_open = _signature(kind)
        for key in sorted(given - allowed if not is_open else ()):
            self.add(f'{path}.{key}', f'{name} has no argument {key!r}{_near(key, allowed.union(others))}')
        for key in sorted(needed - given - _GIVEN_BY_BUILDERS):
            self.add(path, f'{name} needs the argument {key!r}')

    # The parts of a config

    def model(self, node, path, registry):
        if not isinstance(node, (dict, list, tuple)):
            return
        own = None
        if isinstance(node, dict):
            foreign = isinstance(node.get('type'), str) and '.' in node['type']
            if 'type' in node:
                own = own_arguments(self.item(node, path, registry, skip=() if foreign else ('init_cfg',)))
            if foreign:
                return
            self.hugging_face(node, path, registry)
            for key, value in node.items():
                if isinstance(value, str) and key != 'type' and value in _child(registry).module_dict:
                    self.add(f'{path}.{key}', f'expected dict(type={value!r}, ...), got {value!r}')
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key not in FOREIGN_KEYS and (own is None or key in own):
                self.model(value, f'{path}.{key}', registry)

    def hugging_face(self, node, path, registry):
        """What goes on to transformers: the config of a model, the settings of a generation."""
        from ..models.hub import settings_that_run_code, unknown_settings
        from ..models.language.base import LanguageModel, generation_problems
        config, generation = _dict(node.get('config')), _dict(node.get('generation'))
        problems = settings_that_run_code(config)
        if config and node.get('model') is None:
            problems = {**unknown_settings(config), **problems}
        for place, problem in problems.items():
            self.add(f'{path}.config.{place}', problem)
        if generation:
            name = _dict(node.get('language_model')).get('type')
            kind = _child(registry).get(name) if isinstance(name, str) else name
            generate = getattr(kind, 'generate', LanguageModel.generate)
            for place, problem in generation_problems(generation, generate).items():
                self.add(f'{path}.generation.{place}', problem)

    def dataloader(self, loader, path, root):
        from ..datasets.web_stream import is_stream
        if not isinstance(loader, dict):
            return
        import torch
        allowed = set(inspect.signature(torch.utils.data.DataLoader).parameters) | set(_LOADER_EXTRAS)
        for key in loader:
            if key not in allowed:
                self.add(f'{path}.{key}', f'a dataloader has no option {key!r}{_near(key, allowed)}')
        if 'dataset' not in loader:
            self.add(path, 'has no dataset')
        if 'batch_size' not in loader and 'batch_sampler' not in loader:
            self.add(path, 'has no batch_size')
        if is_stream(loader.get('dataset')):
            self.stream(loader, path)
        elif 'sampler' not in loader:
            self.add(path, "has no sampler; use dict(type='SeekableInfiniteSampler') for training by "
                           "iterations, dict(type='DefaultSampler', shuffle=False) for evaluation")
        for key in ('sampler', 'batch_sampler'):
            self.item(loader.get(key), f'{path}.{key}', root.DATA_SAMPLERS)
        self.values(torch.utils.data.DataLoader, loader, path)
        if isinstance(loader.get('collate_fn'), dict):
            self.resolve(loader['collate_fn'].get('type'), f'{path}.collate_fn', root.FUNCTIONS)
        elif isinstance(loader.get('collate_fn'), str):
            self.add(f'{path}.collate_fn', f'expected dict(type={loader["collate_fn"]!r}), got the text')
        self.dataset(loader.get('dataset'), f'{path}.dataset', root)
        self.mix(loader, path)

    def stream(self, loader, path):
        """What a stream cannot do."""
        from ..datasets.web_stream import WITHOUT_PACKAGE
        if loader.get('sampler') or loader.get('batch_sampler'):
            self.add(f'{path}.sampler', 'a stream comes in its own order; leave sampler out')
        if path != 'train_dataloader' or self._train_loop() != 'SeekIterLoop':
            self.add(f'{path}.dataset', 'a stream is for training by iterations (train_cfg=dict(max_iters=...)); use '
                                        'WebShards')
        if loader['dataset'].get('type') in ('WebStream', 'MixedStream') and find_spec('webdataset') is None:
            self.add(f'{path}.dataset', WITHOUT_PACKAGE)

    def mix(self, loader, path):
        """The ratios of a mix are the sampler's work, which asks the outermost data set."""
        dataset, sampler = _dict(loader.get('dataset')), _dict(loader.get('sampler')).get('type')
        if dataset.get('type') == 'MixedDataset' and sampler not in _MIXING_SAMPLERS and isinstance(sampler, str):
            self.add(f'{path}.sampler', f'{sampler} knows nothing of the ratios of MixedDataset; use '
                                        f'{" or ".join(_MIXING_SAMPLERS)}')

    def dataset(self, dataset, path, root, around='MixedDataset'):
        self.item(dataset, path, root.DATASETS)
        if not isinstance(dataset, dict):
            return
        if dataset.get('type') == 'MixedDataset' and around != 'MixedDataset':
            self.add(path, f'the ratios of a MixedDataset inside of {around} would be lost; make it the outermost data '
                           'set')
        kind = str(dataset.get('type'))
        self.pipeline(dataset.get('pipeline'), f'{path}.pipeline', root)
        self.dataset(dataset.get('dataset'), f'{path}.dataset', root, kind)
        for key in ('datasets', 'streams'):
            for where, item in self.entries(dataset.get(key), f'{path}.{key}', always_list=True):
                self.dataset(item, where, root, kind)

    def pipeline(self, steps, path, root):
        for where, item in self.entries(steps, path, always_list=True):
            self.item(item, where, root.TRANSFORMS)
            if isinstance(item, dict) and item.get('type') in _NESTING:
                self.pipeline(item.get('transforms'), f'{where}.transforms', root)

    def _train_loop(self):
        train_cfg = self.cfg.get('train_cfg') or {}
        by_epoch = train_cfg.get('by_epoch', 'max_epochs' in train_cfg)
        return 'EpochBasedTrainLoop' if by_epoch else 'SeekIterLoop'

    def loop(self, path, default, root):
        loop = self.cfg.get(path)
        if isinstance(loop, dict):
            skip = () if 'type' in loop else ('by_epoch', )
            self.item({'type': default, **loop}, path, root.LOOPS, skip)

    def optim_wrapper(self, wrapper, root):
        if not isinstance(wrapper, dict):
            return
        path = 'optim_wrapper'
        self.item({'type': 'OptimWrapper', **wrapper}, path, root.OPTIM_WRAPPERS,
                  skip=('constructor', 'paramwise_cfg'))
        if not isinstance(wrapper.get('optimizer'), dict):
            self.add(f'{path}.optimizer', "missing; write dict(type='AdamW', lr=1e-4, weight_decay=0.05)")
        self.item(wrapper.get('optimizer'), f'{path}.optimizer', root.OPTIMIZERS)
        constructor = wrapper.get('constructor') or 'TrainableOptimWrapperConstructor'
        self.resolve(constructor, f'{path}.constructor', root.OPTIM_WRAPPER_CONSTRUCTORS)
        if constructor == 'TrainableOptimWrapperConstructor':
            self.paramwise(wrapper.get('paramwise_cfg'), f'{path}.paramwise_cfg')
        if wrapper.get('clip_grad') is not None and (problem := clip_grad_problem(wrapper['clip_grad'])):
            self.add(f'{path}.clip_grad', problem)
        if 'dtype' in wrapper and wrapper.get('type') == 'AutocastOptimWrapper':
            from ..engine.autocast import resolve_dtype
            try:
                resolve_dtype(wrapper['dtype'])
            except ConfigError as error:
                self.add(f'{path}.dtype', str(error))

    def paramwise(self, paramwise, path):
        example = 'expected dict(custom_keys=dict(<part of a name>=dict(lr_mult=0.1, decay_mult=0.)), layer_decay=0.9)'
        if paramwise is not None and not isinstance(paramwise, dict):
            self.add(path, f'{example}, got {paramwise!r}')
        paramwise = _dict(paramwise)
        for key in set(paramwise) - set(_PARAMWISE):
            self.add(f'{path}.{key}', 'unknown key' + _near(key, _PARAMWISE))
        decay = paramwise.get('layer_decay')
        if decay is not None and not isinstance(decay, (int, float)):
            self.add(f'{path}.layer_decay', f'expected a number, got {decay!r}')
        custom = paramwise.get('custom_keys')
        if custom is not None and not isinstance(custom, dict):
            self.add(f'{path}.custom_keys', f'{example}, got {custom!r}')
        for name, options in _dict(custom).items():
            if not isinstance(options, dict):
                self.add(f'{path}.custom_keys.{name}', f'expected dict(lr_mult=..., decay_mult=...), got {options!r}')
            for key, value in _dict(options).items():
                if key not in _MULTS:
                    self.add(f'{path}.custom_keys.{name}.{key}', 'unknown key' + _near(key, _MULTS))
                elif not isinstance(value, (int, float)):
                    self.add(f'{path}.custom_keys.{name}.{key}', f'expected a number, got {value!r}')

    def hooks(self, root):
        for name, hook in (self.cfg.get('default_hooks') or {}).items():
            if name not in _DEFAULT_HOOKS:
                self.add(f'default_hooks.{name}', f'unknown default hook{_near(name, _DEFAULT_HOOKS)} '
                                                  '(further hooks belong into custom_hooks)')
            self.item(hook, f'default_hooks.{name}', root.HOOKS)
        for path, hook in self.entries(self.cfg.get('custom_hooks'), 'custom_hooks', always_list=True):
            self.item(hook, path, root.HOOKS, skip=('priority',))

    def load_from(self):
        given = self.cfg.get('load_from')
        if given is None or isinstance(given, (str, Path)):
            return
        entries = each(given, 'load_from') or [('load_from', given)]
        for path, item in entries:
            if not isinstance(item, dict) or not isinstance(item.get('checkpoint'), (str, Path)):
                self.add(path, 'expected a path or a list of dict(checkpoint=<path>, include=[...], exclude=[...]), '
                               f'got {item!r}')
                continue
            for key in set(item) - set(_LOAD_FROM):
                self.add(f'{path}.{key}', 'unknown key' + _near(key, _LOAD_FROM))

    def parts(self, model):
        """Parts of the model that other entries name."""
        frozen = model.get('frozen')
        if isinstance(frozen, str):
            self.add('model.frozen', f'expected a list of names, got {frozen!r}; write ({frozen!r},)')
        named = [('model.frozen', name) for name in (frozen if isinstance(frozen, (list, tuple)) else ())]
        compile = self.cfg.get('compile')
        compiled = compile.get('modules') or () if isinstance(compile, dict) else ()
        for key, patterns in (('activation_checkpointing', self.cfg.get('activation_checkpointing') or ()),
                              ('compile.modules', compiled)):
            named += [(key, name.split('.')[0]) for name in ([patterns] if isinstance(patterns, str) else patterns)]
        names = [key for key, value in model.items() if isinstance(value, dict)]
        for path, name in named:
            if name not in names and difflib.get_close_matches(name, names, 1):
                self.add(path, f'the model has no part {name!r}{_near(name, names)}')

    def image_sizes(self):
        found = _find_size(self.cfg.get('model'), 'model')
        if found is None:
            return
        where, size = found
        for split in ('train', 'val', 'test'):
            loader = self.cfg.get(f'{split}_dataloader')
            if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict):
                continue
            for path, dataset in innermost_datasets(loader['dataset'], f'{split}_dataloader.dataset'):
                sizes = [(step, item['scale']) for step, item in _steps(dataset.get('pipeline'), f'{path}.pipeline')
                         if item.get('type') in _RESIZES and 'scale' in item]
                if sizes and _pair(sizes[-1][1]) != _pair(size):
                    step, scale = sizes[-1]
                    self.problems.append(
                        f'image size of the model ({_show(size)}) and of {split}_pipeline ({_show(scale)}) '
                        f'differ: set both to one value ({where}, {step}.scale)')

    def save_best(self, root):
        hook = (self.cfg.get('default_hooks') or {}).get('checkpoint')
        best = hook.get('save_best') if isinstance(hook, dict) else None
        best = [best] if isinstance(best, str) else best or []
        prefixes, known = set(), []
        for _, item in each(self.cfg.get('val_evaluator'), ''):
            if not isinstance(item, dict):
                return
            kind = _child(root.METRICS).get(item['type']) if isinstance(item.get('type'), str) else None
            prefix = item.get('prefix') or getattr(kind, 'default_prefix', None)
            if prefix is None:
                return  # its keys are not known in advance
            prefixes.add(prefix)
            known += [key if prefix in key.split('/') else f'{prefix}/{key}' for key in getattr(kind, 'known_keys', ())]
        if best and self.cfg.get('val_cfg') is None:
            self.add('default_hooks.checkpoint.save_best', 'there is no validation: set it to None')
        for key in best if prefixes else ():
            if key != 'auto' and not set(key.split('/')) & {prefix.split('/')[0] for prefix in prefixes}:
                self.add('default_hooks.checkpoint.save_best', f'no val_evaluator gives {key!r}; their keys '
                                                               f'start with {", ".join(sorted(prefixes))}')
            elif _unnumbered(key) not in map(_unnumbered, known) and difflib.get_close_matches(key, known, 1, 0.85):
                self.add('default_hooks.checkpoint.save_best', f'no val_evaluator gives {key!r}{_near(key, known)}')


def _unnumbered(key):
    """A metric without its numbers: Recall@20 is none of the known, but follows from topk."""
    return re.sub(r'\d+', '', key)


def _dict(value):
    return value if isinstance(value, dict) else {}


def _steps(pipeline, path):
    """(path, transform) of a pipeline, in the order in which they are applied, also of transforms inside others."""
    for where, item in each(pipeline, path):
        if isinstance(item, dict):
            yield where, item
            if item.get('type') in _NESTING:
                yield from _steps(item.get('transforms'), f'{where}.transforms')


def _child(registry):
    """Our registry below one of mmengine's roots, or the root itself where we have none."""
    return registry._search_child('mmblip2') or registry


def _lineage(registry):
    while registry is not None:
        yield registry
        registry = registry.parent


def _signature(kind):
    """What a class or function takes.

    Returns:
        tuple: Names allowed, names needed, and whether it takes any name (kwargs that do not end in a base
            class).
    """
    import torch
    if not inspect.isclass(kind):
        taken = inspect.signature(kind).parameters.values()
        return ({p.name for p in taken}, set(), any(p.kind is p.VAR_KEYWORD for p in taken))
    allowed: set[str] = set()
    needed: set[str] = set()
    first = True
    for base in kind.__mro__:
        if base in (object, torch.nn.Module):
            return allowed, needed, not first
        if '__init__' not in vars(base):
            continue
        parameters = [p for p in inspect.signature(vars(base)['__init__']).parameters.values() if p.name != 'self']
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        allowed.update(p.name for p in named)
        if first:
            needed = {p.name for p in named if p.default is p.empty}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return allowed, needed, False
        first = False
    return allowed, needed, not first


def _find_size(node, path):
    """Path and value of the first ``image_size`` below ``node``."""
    if not isinstance(node, dict):
        return None
    if node.get('image_size') is not None:
        return f'{path}.image_size', node['image_size']
    below = (_find_size(value, f'{path}.{key}') for key, value in node.items())
    return next((found for found in below if found), None)


def _pair(size):
    return (size, size) if isinstance(size, (int, float)) else tuple(size)


def _show(size):
    pair = _pair(size)
    return str(pair[0]) if len(set(pair)) == 1 else 'x'.join(map(str, pair))
