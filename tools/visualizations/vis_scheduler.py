"""Draw the learning rate of a config: python tools/visualizations/vis_scheduler.py CONFIG -s lr.png

With layer decay or custom_keys the parameters have several learning rates: each is a curve, or, where they are more
than eight, the highest and the lowest. Weights and data are not needed; a config of epochs needs --dataset-size.
"""
import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli


def training_length(cfg, dataset_size, ngpus):
    """Iterations and iterations an epoch.

    Raises:
        ConfigError: The config counts epochs and the size of the data set was not given.
    """
    from mmblip2.errors import ConfigError
    batch = cfg.train_dataloader.batch_size * ngpus
    epoch = math.ceil(dataset_size / batch) if dataset_size else None
    if 'max_epochs' not in cfg.train_cfg:
        return cfg.train_cfg.max_iters, epoch or cfg.train_cfg.max_iters
    if epoch is None:
        raise ConfigError(f'{cfg.filename} trains for {cfg.train_cfg.max_epochs} epochs: give --dataset-size, the '
                          'number of training samples, to say how long they are')
    return cfg.train_cfg.max_epochs * epoch, epoch


def learning_rates(cfg):
    """Starting learning rates of the parameter groups, highest first, each with the names of its parameters."""
    from mmblip2.engine.optim import TrainableOptimWrapperConstructor
    from mmblip2.utils.meta import build_on_meta
    model = build_on_meta(cfg.model)
    wrapper = {key: value for key, value in cfg.optim_wrapper.items() if key != 'paramwise_cfg'}
    groups = TrainableOptimWrapperConstructor(wrapper, cfg.optim_wrapper.get('paramwise_cfg')).groups(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        found.setdefault(group['lr'], []).extend(names[id(parameter)] for parameter in group['params'])
    return {rate: found[rate] for rate in sorted(found, reverse=True)}


def curves(cfg, rates, max_iters, epoch_length):
    """Learning rate of each group at each iteration.

    Returns:
        list[list[float]]: One list of ``max_iters`` values a group.
    """
    import torch
    from mmengine.registry import PARAM_SCHEDULERS, DefaultScope

    from mmblip2.engine.runner import with_ends
    optimizer = torch.optim.SGD([dict(params=[torch.nn.Parameter(torch.zeros(()))], lr=rate) for rate in rates], lr=1.)
    configs = cfg.get('param_scheduler') or []
    configs = with_ends(configs if isinstance(configs, (list, tuple)) else [configs],
                        math.ceil(max_iters / epoch_length), max_iters)
    with DefaultScope.overwrite_default_scope('mmblip2'):
        schedulers = [PARAM_SCHEDULERS.build(config, default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
                      for config in configs]
    optimizer.step()  # or mmengine warns about the order
    values = [[] for _ in rates]
    for step in range(1, max_iters + 1):
        for row, group in zip(values, optimizer.param_groups):
            row.append(group['lr'])
        for scheduler in schedulers:
            if not scheduler.by_epoch or step % epoch_length == 0:
                scheduler.step()
    return values


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Draw the learning rate of a config')
    parser.add_argument('config', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('-d', '--dataset-size', type=int, help='training samples; for configs that count epochs')
    parser.add_argument('-n', '--ngpus', type=int, default=1, help='processes of the training (default: %(default)s)')
    parser.add_argument('-s', '--save-path', help='picture; default: <config name>_lr.png here')
    parser.add_argument('--title', help='default: the name of the config')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=cli.CFG_OPTIONS_HELP)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.utils import run_config
    cfg = run_config.load_config(args.config, args.cfg_options)
    run_config.require(cfg, ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'))
    max_iters, epoch_length = training_length(cfg, args.dataset_size, args.ngpus)
    rates = learning_rates(cfg)
    shown = list(rates) if len(rates) <= 8 else [list(rates)[0], list(rates)[-1]]
    values = curves(cfg, shown, max_iters, epoch_length)

    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for rate, row in zip(shown, values):
        names = rates[rate]
        label = f'{rate:.3g}: {names[0]}' + (f' and {len(names) - 1} more' if len(names) > 1 else '')
        axes.plot(range(1, max_iters + 1), row, label=label)
        print(f'{label}: starts at {row[0]:.3g}, highest {max(row):.3g} at iteration {row.index(max(row)) + 1}, ends '
              f'at {row[-1]:.3g} after {max_iters} iterations')
    axes.set_xlabel('iteration')
    axes.set_ylabel('learning rate')
    axes.set_title(args.title or Path(args.config).name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    path = Path(args.save_path or f'{Path(args.config).stem}_lr.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches='tight')
    pyplot.close(figure)
    print(f'written: {path}')


if __name__ == '__main__':
    cli.run(main)
