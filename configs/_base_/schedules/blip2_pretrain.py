# Pre-training as in the paper: AdamW, 2,000 iterations of linear warm-up, then cosine decay to the end of the training,
# which the leaf sets. LAVIS's configs have beta2 0.999, 10 epochs and, in stage 1, 5,000 iterations of warm-up.
optim_wrapper = dict(
    type='AutocastOptimWrapper', dtype='float16', constructor='TrainableOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=2000),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=2000, eta_min=1e-5),
]
