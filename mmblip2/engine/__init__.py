"""The Runner, loops, hooks and optimizer wrappers; importing this registers them."""
from . import bad_samples, dump, ema, hooks, iter_loop, loops, optim, preempt, progress, retrieval_loop, runner
from .autocast import autocast_context
from .optim import AutocastOptimWrapper, TrainableOptimWrapperConstructor
from .runner import Runner

__all__ = ['AutocastOptimWrapper', 'Runner', 'TrainableOptimWrapperConstructor', 'autocast_context', 'bad_samples',
           'dump', 'ema', 'hooks', 'iter_loop', 'loops', 'optim', 'preempt', 'progress', 'retrieval_loop', 'runner']
