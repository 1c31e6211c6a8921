# Training of BLIP: AdamW in float32 (paper, table 14; the betas are torch's, which the paper does not name). A leaf has
# the learning rate over time: a cosine that goes down in a step an epoch, without warm-up, in fine-tuning.
optim_wrapper = dict(
    type='AutocastOptimWrapper', dtype='float32', constructor='TrainableOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-5, betas=(0.9, 0.999), weight_decay=0.05))
