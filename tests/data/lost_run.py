"""One of two processes ends or hangs in a training; prints what the other one says: python lost_run.py FOLDER."""
import os
import signal
import sys
import time
from pathlib import Path

from fault_run import config, write_data
from mmengine.hooks import Hook
from processes import finish, fork

from mmblip2.engine import Runner
from mmblip2.registry import HOOKS


@HOOKS.register_module()
class Lose(Hook):
    """Process 1 ends, or does not go on, in iteration 3."""

    def __init__(self, how):
        self.how = how

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and batch_idx == 2:
            if self.how == 'ends':
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)


def train(rank, cfg, out):
    try:
        Runner.from_cfg(cfg).train()
    except RuntimeError as error:
        out.write_text(str(error))
        raise


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    write_data(folder)
    for how in ('ends', 'hangs'):
        cfg = config(folder, folder / how, 0, 2)
        cfg.merge_from_dict(dict(custom_hooks=[dict(type='Lose', how=how)], env_cfg=dict(dist_cfg=dict(timeout=20))))
        children = fork(2, train, cfg, folder / f'{how}.txt')
        if how == 'ends':  # the other one has to notice by itself
            for child in children:
                os.waitpid(child, 0)
        else:
            finish(children)
