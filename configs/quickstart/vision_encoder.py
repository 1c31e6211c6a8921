# Step 0b: a small ViT learns which object each of its patches shows, and where that is (labels derived from the
# train scenes).
#   python tools/train.py configs/quickstart/vision_encoder.py --work-dir work_dirs/quickstart/vision_encoder
# Hardware: 2 CPU cores. Expected: the accuracy of its patches is logged; no figure of it stands in README.md.
_base_ = ['../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py']
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'

model = dict(
    type='VisionPretraining',
    vision=dict(type='VisionTransformer', image_size=72, patch_size=24, width=128, depth=4, num_heads=4),
    num_classes=dict(shape=7, colour=9, size=3, region=10))

train_dataloader = dict(
    batch_size=32, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(type='SceneLabels', data_root=shapes, ann_file='annotations/scene_labels_train.json',
                 pipeline=[dict(type='LoadImage'), dict(type='PackInputs')]))
train_cfg = dict(max_iters=500)
optim_wrapper = dict(optimizer=dict(lr=2e-3))

val_dataloader = dict(
    batch_size=100, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='SceneLabels', data_root=shapes, ann_file='annotations/scene_labels_val.json',
                 pipeline=[dict(type='LoadImage'), dict(type='PackInputs')], test_mode=True))
val_cfg = dict(type='ValLoop')
val_evaluator = dict(type='PatchAccuracy')
