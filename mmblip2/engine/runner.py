"""mmengine's Runner with checkpoints that hold plain values and trained weights only, exact resume, a quiet
console."""
import inspect
import itertools
import os
import time
from collections import OrderedDict
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process
from mmengine.logging import HistoryBuffer
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as _Runner

from .. import __version__
from ..checkpoints import io
from ..checkpoints.parts import parts_from
from ..compat import log_to_file_only, quiet_console
from ..datasets.web_stream import StreamLoader, is_stream
from ..errors import CheckpointError, ConfigError
from ..registry import LOOPS, METRICS, MODELS, RUNNERS
from ..utils.dist import gather_objects, naming_lost_processes, whole
from ..utils.env import describe_device, environment
from . import fsdp
from .activation_checkpointing import instead_of_mmengines
from .bad_samples import BadSamplesHook
from .cached_features import use_feature_caches
from .compiling import compile_modules, uncompiled
from .ema import EMAHook
from .iter_loop import SeekIterLoop
from .loops import EpochBasedTrainLoop
from .preempt import PreemptHook, ValidationLeft, outlasts_term
from .random_state import get_random_state, random_state_kept, set_random_state

_HISTORY = 1000
_COUNT = itertools.count()
_RANK_VARIABLES = {
    'slurm': dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
    'mpi': dict(RANK='OMPI_COMM_WORLD_RANK', WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
                LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK'),
}


@RUNNERS.register_module()
class Runner(_Runner):
    """mmengine's Runner; what differs:

    - checkpoints (see ``mmblip2.checkpoints.io``): written atomically, loaded with ``weights_only=True``;
    - what ``load_from`` brings, frozen parts and tokenizers too, needs no file of its own (see
      ``mmblip2.checkpoints.parts``);
    - ``resume`` is False, True (the newest whole checkpoint of ``work_dir``) or a path; ``load_from``
      initialises the weights of a new run: a path, or a list of ``dict(checkpoint=, include=[],
      exclude=[])``;
    - resume and test refuse a checkpoint whose frozen parts are not those of the model;
    - several processes work on CPU (gloo);
    - ``fsdp=dict(wrap=[...])`` divides the model among the processes instead of DDP (see ``mmblip2.engine.fsdp``);
    - SIGTERM saves and exits with 143, ``activation_checkpointing`` keeps the gradients behind a frozen part;
    - ``compile`` is for layers by name (see ``mmblip2.engine.compiling``);
    - a parameter schedule without ``end`` ends with the training;
    - bad samples that a data set replaced are counted (``BadSamplesHook``);
    - a model with ``frozen_parts`` initialises itself, the same way on every process;
    - data sets with ``feature_cache`` are given the features of the frozen encoder before the first iteration;
    - the console starts with about a dozen lines, the log file has everything.
    """

    _has_loaded: bool

    def __init__(self, *args, **kwargs):
        self._random_state = None
        self._for_test = False
        self._part_notes: list[str] = []  # which parts come from the checkpoint instead of files of their own
        self.resumed_from: Path | None = None
        self._val_dataloader: Any = None
        self._test_dataloader: Any = None
        super().__init__(*args, **kwargs)

    @classmethod
    def from_cfg(cls, cfg):
        cfg = cfg.copy()
        if cfg.get('default_scope') is None:
            cfg['default_scope'] = 'mmblip2'
        if cfg.get('log_processor') is None:
            cfg['log_processor'] = dict(type='ProgressLogProcessor')
        # mmengine keeps loggers and message hubs by name and second: two runs in one process share none
        stem = cfg.get('experiment_name') or Path(getattr(cfg, 'filename', None) or 'run').stem
        cfg['experiment_name'] = f'{stem}_{next(_COUNT)}'
        wrapper = cfg.get('optim_wrapper')
        if isinstance(wrapper, dict):
            wrapper.setdefault('constructor', 'TrainableOptimWrapperConstructor')
        fsdp.check(cfg)
        notes = _parts_of_checkpoint(cfg)
        runner = super().from_cfg(cfg)
        runner._part_notes = notes
        return runner

    # ------------------------------------------------------------------------------------- environment

    def setup_env(self, env_cfg):
        if self.distributed and not torch.cuda.is_available() and not dist.is_initialized():
            for name, source in _RANK_VARIABLES.get(self._launcher, {}).items():
                os.environ.setdefault(name, os.environ.get(source, ''))
            missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
                       if not os.environ.get(name)]
            if missing:
                raise ConfigError(f'--launcher {self._launcher}: {", ".join(missing)} not set in the '
                                  'environment: start it with tools/dist_train.sh (torchrun), or use '
                                  '--launcher none')
            os.environ.setdefault('LOCAL_RANK', '0')
            seconds = env_cfg.get('dist_cfg', {}).get('timeout')
            timeout = None if seconds is None else timedelta(seconds=seconds)
            dist.init_process_group('gloo', timeout=timeout, **_store_after_restart(self._launcher))
        elif self.distributed and not dist.is_initialized():
            fresh = _store_after_restart(self._launcher)
            env_cfg = {**env_cfg, 'dist_cfg': {**env_cfg.get('dist_cfg', {}), **fresh}} if fresh else env_cfg
        if self.distributed:  # as mmengine does, with a warning for each
            for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
                os.environ.setdefault(name, '1')
        super().setup_env(env_cfg)

    def build_logger(self, log_level='INFO', log_file=None, **kwargs):
        logger = super().build_logger(log_level, log_file, logger_name='mmblip2', **kwargs)
        quiet_console(logger)
        return logger

    def _log_env(self, env_cfg):
        self._config = _plain(self.cfg._cfg_dict)  # for checkpoints
        if is_main_process():
            facts = {**environment(), **env_cfg, 'seed': self.seed, 'processes': self.world_size}
            log_to_file_only(self.logger, '\n'.join(f'{key}: {value}' for key, value in facts.items()))
            log_to_file_only(self.logger, f'Config:\n{self.cfg.pretty_text if self._config else ""}')

    def register_default_hooks(self, hooks=None):
        ours = dict(finite_loss=dict(type='FiniteLossHook'), bad_samples=dict(type='BadSamplesHook'),
                    history=dict(type='ShortHistoryHook', length=_HISTORY), preempt=dict(type='PreemptHook'))
        merged = {**ours, **(hooks or {})}
        super().register_default_hooks({name: hook for name, hook in merged.items()
                                        if hook is not None or name not in ours})
        if fsdp.is_sharded(self.model):
            for hook in fsdp.GatherHook(), fsdp.ReleaseHook():
                self.register_hook(hook)

    # ------------------------------------------------------------------------------------------ building

    def build_model(self, model):
        return MODELS.build(model) if isinstance(model, dict) else super().build_model(model)

    def wrap_model(self, model_wrapper_cfg, model):
        if self.distributed and self.cfg.get('fsdp') is not None:
            return fsdp.shard(model, self.cfg.fsdp.get('wrap', ()))
        if self.distributed and not torch.cuda.is_available() and not is_model_wrapper(model):
            options = dict(model_wrapper_cfg or {})
            options.pop('type', None)
            options.setdefault('broadcast_buffers', False)
            options.setdefault('find_unused_parameters', self.cfg.get('find_unused_parameters', False))
            # frozen weights from a file stay the mapped file, which all processes of a host share: nothing writes there
            model._ddp_params_and_buffers_to_ignore = [
                f'{name}.{key}' for name, part in getattr(model, 'frozen_parts', dict)().items()
                if getattr(part, 'weights_source', None) is not None
                for key, parameter in part.named_parameters() if not parameter.requires_grad]
            return MMDistributedDataParallel(module=model, device_ids=None, **options)
        return super().wrap_model(model_wrapper_cfg, model)

    @property
    def bare_model(self):
        """The model without a wrapper for several processes."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    @property
    def accumulation_window(self):
        """int: Iterations whose gradients make one update."""
        return getattr(self.optim_wrapper, '_accumulative_counts', 1)

    def build_optim_wrapper(self, optim_wrapper):
        wrapper = super().build_optim_wrapper(optim_wrapper)
        if fsdp.is_sharded(self.model):
            fsdp.adapt_clipping(wrapper)
        return wrapper

    def _init_model_weights(self):
        if fsdp.is_sharded(self.model):
            return  # done before it was divided
        if hasattr(self.bare_model, 'frozen_parts'):
            self.bare_model.init_weights()
        else:
            super()._init_model_weights()

    @staticmethod
    def build_dataloader(dataloader, seed=None, diff_rank_seed=False):
        if isinstance(dataloader, dict) and is_stream(dataloader.get('dataset')):
            loader = StreamLoader(dataloader, seed)
        else:
            loader = _Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        if loader.num_workers:
            outlasts_term(loader)
        return loader

    @property
    def eval_autocast(self):
        """Precision of validation and test where their loop does not say: that of the training."""
        wrapper = self.cfg.get('optim_wrapper') or {}
        return wrapper.get('dtype', 'auto') if wrapper.get('type') == 'AutocastOptimWrapper' else None

    def build_train_loop(self, loop):
        if isinstance(loop, dict) and 'type' not in loop:
            loop = dict(loop)
            by_epoch = loop.pop('by_epoch', 'max_epochs' in loop)
            loop['type'] = 'EpochBasedTrainLoop' if by_epoch else 'SeekIterLoop'
        return super().build_train_loop(loop)

    def build_val_loop(self, loop):
        self._val_dataloader = self._in_blocks(self._val_dataloader, self._val_evaluator)
        loop = super().build_val_loop(self._evaluation_loop(loop, 'ValLoop'))
        loop.run = partial(self._validate, loop.run)
        return loop

    def _validate(self, run):
        try:
            compiled = uncompiled() if self.cfg.get('compile') else nullcontext()
            with random_state_kept(), compiled:  # a validation changes no random number of the training
                return run()
        except ValidationLeft as left:
            if fsdp.is_sharded(self.model):
                fsdp.release_weights(self.model)
            left.hook.stop(self)

    def build_test_loop(self, loop):
        self._test_dataloader = self._in_blocks(self._test_dataloader, self._test_evaluator)
        return super().build_test_loop(self._evaluation_loop(loop, 'TestLoop'))

    def _in_blocks(self, loader, evaluator):
        """The config of a data loader, with the batches of one process where the metrics allow it."""
        sampler = loader.get('sampler') if isinstance(loader, dict) else None
        in_order = isinstance(sampler, dict) and sampler.get('type') == 'DefaultSampler' and not sampler.get(
            'shuffle', True)
        configs = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
        if not all(isinstance(config, dict) and isinstance(config.get('type'), str) for config in configs):
            return loader
        kinds = [METRICS.get(config['type']) for config in configs]
        if not in_order or 'batch_size' not in loader or not all(
                getattr(kind, 'gathers_by_index', False) for kind in kinds):
            return loader
        return dict(loader, sampler=dict(type='BlockSampler', batch_size=loader['batch_size']))

    def _evaluation_loop(self, loop, default):
        """Fill in the type, and the precision if the loop can have one."""
        if not isinstance(loop, dict):
            return loop
        loop = {'type': default, **loop}
        kind = LOOPS.get(loop['type']) if isinstance(loop['type'], str) else loop['type']
        if kind is not None and 'autocast' in inspect.signature(kind).parameters:
            loop.setdefault('autocast', self.eval_autocast)
        return loop

    def build_param_scheduler(self, scheduler):
        """As mmengine's, but a schedule without ``end`` ends with the training instead of never."""
        configs = scheduler if isinstance(scheduler, (list, tuple)) else [scheduler]
        if all(isinstance(config, dict) and 'type' in config for config in configs):
            scheduler = with_ends(configs, self.max_epochs, self.max_iters)
        return super().build_param_scheduler(scheduler)

    def train(self):
        with instead_of_mmengines(), naming_lost_processes():
            return super().train()

    def _maybe_compile(self, target):
        """Instead of the whole ``train_step``, with its tokenizer and its lists, the layers that repeat."""
        if self.cfg.get('compile'):
            names = compile_modules(self.bare_model, self.cfg.compile)
            self.logger.info(f'compiled in the first iterations: {len(names)} modules, {names[0]} to {names[-1]}')

    def between_iterations(self):
        """Called by the training loops whenever an iteration is counted: the place to end a training."""
        for hook in self.hooks:
            if isinstance(hook, PreemptHook):
                hook.between_iterations(self)

    def val(self):
        self._for_test = True
        return super().val()

    def test(self):
        self._for_test = True
        return super().test()

    # ---------------------------------------------------------------------------------- what is running

    def _describe(self):
        """The lines before the first iteration."""
        model = self.bare_model
        frozen = io.frozen_record(model)
        total, trained = _count(model)
        lines = [f'{type(model).__name__}: {_millions(total)} parameters, {_millions(trained)} trained']
        for name, part in model.named_children():
            total, trained = _count(part)
            if total:
                state = 'frozen' if not trained else f'{_millions(trained)} trained'
                source = f', from {frozen[name]["source"]}' if name in frozen else ''
                lines.append(f'  {name}: {type(part).__name__} {_millions(total)}, {state}{source}')
        if not self._for_test:
            loader = self.train_dataloader
            window = self.accumulation_window
            batch = loader.batch_size * self.world_size * window
            size = loader.dataset.describe() if isinstance(loader, StreamLoader) else f'{len(loader.dataset)} samples'
            lines.append(f'batch {batch} = {loader.batch_size} x {self.world_size} processes x {window} '
                         f'accumulated; {size}, {self.max_iters} iterations')
        if fsdp.is_sharded(self.model):
            lines.append(fsdp.describe(self.model))
        size = _image_size(self.cfg.get('model'))
        if size:
            lines.append(f'image size {size}')
        lines.append(f'device: {describe_device()}; log and checkpoints: {self.work_dir}')
        return lines

    # ---------------------------------------------------------------------------------------- checkpoints

    def load_or_resume(self):
        if not self._has_loaded:
            self._load_or_resume()
        self._use_feature_caches()

    def _use_feature_caches(self):
        """Of the loops that are about to run; the weights are there now."""
        loops = [(self._train_loop, self.eval_autocast)] if not self._for_test else []
        loops += [(loop, getattr(loop, 'autocast', None)) for loop in (self._val_loop, self._test_loop)]
        for loop, autocast in loops:
            if isinstance(loop, BaseLoop):
                use_feature_caches(loop.dataloader, self.bare_model, autocast, self.logger, self.cfg.get('model'))

    def fill_feature_caches(self, splits):
        """Make the feature caches of the config's data sets, and nothing else.

        Args:
            splits (Sequence[str]): Of 'train', 'val', 'test'; one that the config does not have is passed over.

        Returns:
            int: How many data sets have one.
        """
        number = 0
        for split in splits:
            config = self.cfg.get(f'{split}_dataloader')
            if config is None:
                continue
            autocast = self.eval_autocast
            if split != 'train':
                autocast = self._evaluation_loop(self.cfg[f'{split}_cfg'], f'{split.title()}Loop').get('autocast')
            number += use_feature_caches(self.build_dataloader(config, self.seed), self.bare_model, autocast,
                                         self.logger, self.cfg.get('model'))
        return number

    def _load_or_resume(self):
        for line in self._describe():
            self.logger.info(line)
        if self.distributed:
            fsdp.check_frozen(self.bare_model)
        if self._for_test:
            if self._load_from is None:
                raise CheckpointError('test needs a checkpoint: load_from is None')
            report = io.load_strict(self.bare_model, io.read_checkpoint(self._load_from), self._load_from)
            self._log_report(report)
        elif self._resume and self._resume_checkpoint():
            pass
        elif self._load_from is not None:
            self._log_report(io.load_partial(self.bare_model, self._load_from))
            if hasattr(self.bare_model, 'start_anew'):
                self.bare_model.start_anew()
        self._has_loaded = True

    def _log_report(self, report):
        report.notes = self._part_notes + report.notes
        for line in str(report).splitlines():
            self.logger.info(line)

    def _resume_checkpoint(self):
        """Resume from the path given, or from the newest whole file; False when there is none at all."""
        if not isinstance(self._resume, bool):
            self.resume(self._resume)
            return True
        broken = []
        for path in io.find_checkpoints(self.work_dir):
            try:
                checkpoint = io.read_checkpoint(path, mapped=False)
                _check_resumable(checkpoint, path)
            except CheckpointError as error:
                broken.append(str(error))
                self.logger.warning(f'passed over: {error}')
                continue
            self.resume(path, checkpoint=checkpoint)
            return True
        if broken:
            raise CheckpointError(f'--resume: no whole checkpoint in {self.work_dir}: ' + '; '.join(broken) +
                                  '. Remove these files to start again')
        pointer = io.last_checkpoint(self.work_dir)
        if pointer is not None:
            raise CheckpointError(f'--resume: {Path(self.work_dir, "last_checkpoint")} names {pointer[0]!r}, which is '
                                  'not there, nor is any other checkpoint: put it back, or remove last_checkpoint to '
                                  'start again')
        self.logger.warning(f'--resume: no checkpoint in {self.work_dir}, starting at iteration 0')
        return False

    def resume(self, filename, checkpoint=None):
        """Go on where a checkpoint was written.

        Args:
            filename (str | Path): The checkpoint.
            checkpoint (dict | None): Its content, when it has been read.

        Raises:
            CheckpointError: It is broken, belongs to another model, or was not written by a training of ours.
        """
        checkpoint = checkpoint or io.read_checkpoint(filename, mapped=False)
        _check_resumable(checkpoint, filename)
        meta = checkpoint['meta']
        meta = {**meta, **self._position(meta, filename)}
        was, now = _steps(meta.get('config')), _steps(self.cfg)
        if was and now and was != now:
            raise CheckpointError(f'{filename} was trained with {", ".join(was)}, the config has {", ".join(now)}: '
                                  'resume with the config of the first run, or use load_from to start a new one')
        report = io.load_strict(self.bare_model, checkpoint, filename, adapt=False)
        self._train_loop._epoch = meta['epoch']
        self._train_loop._iter = meta['iter']
        if meta.get('seed') != self.seed:
            self.logger.warning(f'the seed is {self.seed}, it was {meta.get("seed")} in {filename}: the '
                                'order of the data will differ; set randomness.seed')
        before, now = meta.get('num_samples'), self._num_samples()
        if None not in (before, now) and before != now:
            self.logger.warning(f'{filename}: the training data had {before} samples, now there are {now}: they come '
                                'in another order, so that some come again or are left out')
        self._load_message_hub(checkpoint['message_hub'])
        state = _by_index(checkpoint['optimizer'], self.bare_model, self.optim_wrapper, filename)
        if fsdp.is_sharded(self.model):
            state = fsdp.divided_state(state, self.optim_wrapper.optimizer)
        self.optim_wrapper.load_state_dict(state)
        saved = checkpoint.get('param_schedulers', [])
        if len(saved) != len(self.param_schedulers or []):
            raise CheckpointError(f'{filename} has {len(saved)} parameter schedulers, the config has '
                                  f'{len(self.param_schedulers or [])}: resume with the config of the first '
                                  'run')
        for scheduler, state in zip(self.param_schedulers or [], saved):
            scheduler.load_state_dict(state)
        states = checkpoint.get('rng', [])
        if len(states) == self.world_size:
            self._random_state = states[self.rank]
        else:
            self.logger.warning(f'{filename} was written by {len(states)} processes, now there are '
                                f'{self.world_size}: dropout goes on with other random numbers')
        if 'raw' in checkpoint and not any(isinstance(hook, EMAHook) for hook in self.hooks):
            raise CheckpointError(f'{filename} was written with EMAHook, so its weights are averaged ones: put '
                                  "dict(type='EMAHook') into custom_hooks, or start a new run with load_from")
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        self._has_loaded = True
        self.resumed_from = Path(filename)
        self.logger.info(f'resumed from {filename} at iteration {meta["iter"]} ({len(report.matched)} '
                         'tensors)')

    def _position(self, meta, filename):
        """Epoch and iteration to go on at, when an iteration has another number of samples now than it had.

        Raises:
            CheckpointError: The checkpoint is from inside an epoch, whose iterations cannot be told apart then, or
                from a training without epochs.
        """
        before, now = meta.get('samples_per_iter'), self._samples_per_iter()
        by_epoch = isinstance(self._train_loop, EpochBasedTrainLoop)
        if by_epoch and before is not None and 'iters_in_epoch' not in meta:
            raise CheckpointError(f'{filename} was written by a training that counts iterations, this one counts '
                                  'epochs: resume with the config of the first run, or use load_from')
        if before in (None, now):
            return {}
        if not by_epoch:
            self.logger.warning(f'{filename}: an iteration had {before} samples, now it has {now}: the position in '
                                'the data is counted in iterations, so some samples come again or are left out')
            return {}
        if meta.get('iters_in_epoch'):
            raise CheckpointError(f'{filename} was written inside an epoch with {before} samples an iteration, now '
                                  f'there are {now}: resume with the batch size and the processes of the first run, '
                                  'or from the end of an epoch')
        return dict(iter=meta['epoch'] * len(self.train_dataloader))

    def _samples_per_iter(self):
        loader = getattr(self._train_loop, 'dataloader', None)
        return (getattr(loader, 'batch_size', None) or 0) * self.world_size

    def _num_samples(self):
        """Samples of the training data; None of a stream."""
        dataset: Any = getattr(getattr(self._train_loop, 'dataloader', None), 'dataset', None)
        return len(dataset) if hasattr(dataset, '__len__') else None

    def restore_random_state(self):
        """Set the generators to what the resumed checkpoint has; once, and nothing without a resume."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def load_checkpoint(self, filename, **kwargs):
        """Initialise weights from ``filename``; see :func:`mmblip2.checkpoints.io.load_partial`."""
        report = io.load_partial(self.bare_model, filename)
        self._log_report(report)
        self._has_loaded = True
        return report

    def save_checkpoint(self, out_dir, filename, file_client_args=None, save_optimizer=True,
                        save_param_scheduler=True, meta=None, by_epoch=True, backend_args=None):
        """Write a checkpoint; every process has to call this.

        Args:
            out_dir (str): Local folder.
            filename (str): Name in it.
            save_optimizer (bool): Without, the file cannot be resumed.
            save_param_scheduler (bool): As above.
            meta (dict | None): 'epoch' and 'iter' to resume at; default: after the current one.
            by_epoch (bool): Whether the default is counted at the end of an epoch.
        """
        for hook in self.hooks:
            if isinstance(hook, BadSamplesHook):
                hook.gather(self)
        if isinstance(self._train_loop, SeekIterLoop):
            self._train_loop.gather_position()
        states = gather_objects(get_random_state())
        if not is_main_process() and not fsdp.is_sharded(self.model):
            return
        position = dict(epoch=self.epoch + 1, iter=self.iter) if by_epoch else dict(epoch=self.epoch,
                                                                                   iter=self.iter + 1)
        position.update(meta or {})
        model = self.bare_model
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(whole(parameter)).all():
                raise FloatingPointError(f'{name} is not finite at iteration {position["iter"]}: {filename} is not '
                                         'written, earlier checkpoints are untouched. Lower '
                                         'optim_wrapper.optimizer.lr, or set optim_wrapper.clip_grad')
        if isinstance(self._train_loop, EpochBasedTrainLoop):
            position['iters_in_epoch'] = position['iter'] - position['epoch'] * len(self.train_dataloader)
        position['samples_per_iter'] = self._samples_per_iter()
        position['num_samples'] = self._num_samples()
        checkpoint = dict(
            format=io.FORMAT,
            meta=dict(mmblip2_version=__version__, config=self._config, seed=self.seed,
                      cfg_filename=str(self.cfg.filename or ''), experiment_name=self.experiment_name,
                      time=time.strftime('%Y-%m-%d %H:%M:%S'), frozen=io.frozen_record(model),
                      **position),
            state_dict=io.saved_state(model),
            message_hub=self._plain_message_hub(),
            rng=states)
        if save_optimizer:
            checkpoint['optimizer'] = _by_name(self.optim_wrapper.state_dict(), model, self.optim_wrapper)
        if save_param_scheduler:
            checkpoint['param_schedulers'] = [_plain(scheduler.state_dict())
                                              for scheduler in self.param_schedulers or []]
        self.call_hook('before_save_checkpoint', checkpoint=checkpoint)
        if is_main_process():
            io.write_checkpoint(checkpoint, Path(out_dir, filename))

    def _plain_message_hub(self):
        hub = self.message_hub
        scalars = {key: [values[-_HISTORY:].tolist() for values in buffer.data]
                   for key, buffer in hub.log_scalars.items() if hub._resumed_keys.get(key)}
        info = {key: _plain(value) for key, value in hub.runtime_info.items()
                if hub._resumed_keys.get(key) and key not in ('cfg', 'dataset_meta')}
        return dict(scalars=scalars, runtime_info=info)

    def _load_message_hub(self, saved):
        hub = self.message_hub
        for key, (values, counts) in saved['scalars'].items():
            hub._resumed_keys[key] = True
            hub.log_scalars[key] = HistoryBuffer(values, counts, max_length=_HISTORY)
        for key, value in saved['runtime_info'].items():
            hub.update_info(key, value)


def _store_after_restart(launcher):
    """Arguments of ``init_process_group`` for workers that torchrun has started again, else none.

    Their store still has the addresses of the workers before them, and whoever reads one of these finds nobody.
    """
    restarts = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if launcher != 'pytorch' or restarts == '0':
        return {}
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous
    store, rank, world_size = next(rendezvous('env://'))
    return dict(store=PrefixStore(f'restart_{restarts}', store), rank=rank, world_size=world_size)


def _check_resumable(checkpoint, path):
    if checkpoint['format'] != io.FORMAT or 'optimizer' not in checkpoint:
        raise CheckpointError(f'{path} holds weights only, it cannot be resumed: use load_from instead')
    if not {'epoch', 'iter'} <= set(checkpoint['meta']) or 'message_hub' not in checkpoint:
        raise CheckpointError(f'{path} does not say at which iteration it was written: was it changed afterwards?')


def with_ends(schedulers, max_epochs, max_iters):
    """Copies of the configs of parameter schedules; those without ``end`` end with the training."""
    schedulers = [dict(config) for config in schedulers]
    for config in schedulers:
        last = max_epochs if config.get('by_epoch', True) else max_iters
        first = config.get('begin', 0)  # a short run may end before it
        config.setdefault('end', max(last, first + 1))
    return schedulers


def _steps(cfg):
    """Types of the optimizer and of the schedules of a config; empty where it does not name all."""
    wrapper, schedules = (cfg.get(key) for key in ('optim_wrapper', 'param_scheduler')) if cfg else (None, None)
    parts = [wrapper.get('optimizer') if isinstance(wrapper, dict) else None]
    parts += schedules if isinstance(schedules, (list, tuple)) else [schedules] if schedules else []
    names = [part.get('type') if isinstance(part, dict) else None for part in parts]
    return names if all(isinstance(name, str) for name in names) else []


def _parts_of_checkpoint(cfg):
    """Let the parts of ``cfg.model`` come from ``load_from`` where it brings them; notes on what was changed."""
    if cfg.get('load_from') is None or not isinstance(cfg.get('model'), dict):
        return []
    try:
        cfg.model, notes = parts_from(cfg.model, cfg.load_from)
    except CheckpointError:
        if not cfg.get('resume'):
            raise
        return []  # what is resumed has no need of it; a frozen part that came from it is missed when it is built
    return notes


def _plain(value):
    """Containers of plain values and tensors; anything else as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    if hasattr(value, 'item') and not isinstance(value, torch.Tensor):
        return value.item()
    if value is None or isinstance(value, (str, int, float, bool, torch.Tensor)):
        return value
    return str(value)


def _parameter_names(model, optim_wrapper):
    """Names of the optimizer's parameters in the order of its groups, None for one that is not the
    model's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optim_wrapper.optimizer.param_groups
    return [names.get(id(parameter)) for group in groups for parameter in group['params']]


def _by_name(state, model, optim_wrapper):
    """Optimizer state with parameter names instead of numbers, so that another grouping can read it."""
    names = _parameter_names(model, optim_wrapper)
    state = dict(state)
    scalars = getattr(model, 'sharded_scalars', ())
    values = {names[number]: value for number, value in state['state'].items()}
    if fsdp.is_sharded(model):
        values = {name: fsdp.whole_state(value, name in scalars) for name, value in values.items()}
    state['state'] = {name: _plain(value) for name, value in values.items()}
    state['param_groups'] = [{**_plain(group), 'params': [names[number] for number in group['params']]}
                             for group in state['param_groups']]
    return _cpu(state)


def _by_index(state, model, optim_wrapper, path):
    """The reverse of :func:`_by_name` for the optimizer as it is built now.

    Raises:
        CheckpointError: The parameters or their groups are others.
    """
    names = _grouped_names(model, optim_wrapper)
    saved = [group['params'] for group in state['param_groups']]
    if names != saved:
        flat = [name for group in names for name in group]
        old = [name for group in saved for name in group]
        other = [name for name in flat if name not in old] + [name for name in old if name not in flat]
        what = ', '.join(map(str, other[:5])) or 'they are grouped otherwise'
        raise CheckpointError(
            f'{path}: the optimizer trained {len(old)} parameters in {len(saved)} groups, the config gives '
            f'{len(flat)} in {len(names)}; first differences: {what}. Resume with the config of the first '
            'run, or use load_from to start a new one')
    numbers = {name: number for number, name in enumerate(sum(names, []))}
    return {**state, 'state': OrderedDict((numbers[name], value) for name, value in state['state'].items()),
            'param_groups': [{**group, 'params': [numbers[name] for name in group['params']]}
                             for group in state['param_groups']]}


def _grouped_names(model, optim_wrapper):
    names = iter(_parameter_names(model, optim_wrapper))
    return [[next(names) for _ in group['params']] for group in optim_wrapper.optimizer.param_groups]


def _cpu(value):
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _cpu(item) for key, item in value.items()}
    return [_cpu(item) for item in value] if isinstance(value, (list, tuple)) else value


def _count(module):
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _millions(count):
    return f'{count / 1e6:.2f} M' if count >= 1e5 else str(count)


def _image_size(model_cfg):
    """The first ``image_size`` in a model config."""
    if not isinstance(model_cfg, dict):
        return None
    if 'image_size' in model_cfg:
        return model_cfg['image_size']
    return next((size for size in map(_image_size, model_cfg.values()) if size), None)
