# COCO captions, Karpathy's split, at 384 px, the prompt of BLIP; annotations/coco_karpathy_*.json are LAVIS's lists.
train_pipeline = [
    dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=384, crop_ratio_range=(0.5, 1.)),
    dict(type='RandomFlip'), dict(type='RandAugment'), dict(type='CleanCaption'),
    dict(type='CaptionPrompt', prompt='a picture of'), dict(type='PackInputs')]
test_pipeline = [
    dict(type='LoadImage'), dict(type='Resize', scale=384), dict(type='CaptionPrompt', prompt='a picture of'),
    dict(type='PackInputs')]

train_dataloader = dict(
    num_workers=8, collate_fn=dict(type='pseudo_collate'), sampler=dict(type='SeekableSampler'),
    dataset=dict(type='COCOCaption', data_root='data/coco', ann_file='annotations/coco_karpathy_train.json',
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=32, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCOCaption', data_root='data/coco', ann_file='annotations/coco_karpathy_val.json',
                 test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=32, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCOCaption', data_root='data/coco', ann_file='annotations/coco_karpathy_test.json',
                 test_mode=True, pipeline=test_pipeline))
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='COCOCaptionMetric')
test_evaluator = dict(type='COCOCaptionMetric')
