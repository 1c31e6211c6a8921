# AdamW, 100 iterations of linear warm-up, then cosine decay to the end of the training, which the leaf sets.
optim_wrapper = dict(
    type='AutocastOptimWrapper', dtype='auto', constructor='TrainableOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, eta_min=1e-5),
]
train_cfg = dict(type='SeekIterLoop')
