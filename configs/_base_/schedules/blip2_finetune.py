# Fine-tuning as in the paper (tables 7 to 9): AdamW, 5 epochs, 1,000 iterations of linear warm-up, cosine decay to 0.
optim_wrapper = dict(
    type='AutocastOptimWrapper', dtype='float16', constructor='TrainableOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-5, betas=(0.9, 0.999), weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=1000),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=1000, eta_min=0.),
]
train_cfg = dict(by_epoch=True, max_epochs=5)
