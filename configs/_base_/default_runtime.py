# What every config shares. Console: one line each `default_hooks.logger.interval` iterations.
default_scope = 'mmblip2'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000, max_keep_ckpts=1),
    bad_samples=dict(type='BadSamplesHook', max_bad=0.001),  # of web shards, where bad samples are replaced
    sampler_seed=dict(type='DistSamplerSeedHook'))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

log_processor = dict(type='ProgressLogProcessor', window_size=20, by_epoch=False)
log_level = 'INFO'

randomness = dict(seed=42)
load_from = None
resume = False
