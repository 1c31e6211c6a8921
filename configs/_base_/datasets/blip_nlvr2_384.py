# NLVR2, two images a sentence, at 384 px; train, dev and test-P as published. "left" and "right" go with the images.
train_pipeline = [
    dict(type='EachImage', transforms=[
        dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=384, crop_ratio_range=(0.5, 1.)),
        dict(type='RandomFlip'), dict(type='RandAugment')]),
    dict(type='CleanCaption', max_words=40), dict(type='SwapImages'), dict(type='PackInputs')]
test_pipeline = [
    dict(type='EachImage', transforms=[dict(type='LoadImage'), dict(type='Resize', scale=384)]),
    dict(type='CleanCaption', max_words=40), dict(type='PackInputs')]

train_dataloader = dict(
    num_workers=8, collate_fn=dict(type='pseudo_collate'), sampler=dict(type='SeekableSampler'),
    dataset=dict(type='NLVR2', data_root='data/nlvr2', ann_file='annotations/train.json',
                 data_prefix=dict(img_path='train'), pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='NLVR2', data_root='data/nlvr2', ann_file='annotations/dev.json',
                 data_prefix=dict(img_path='dev'), test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=64, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='NLVR2', data_root='data/nlvr2', ann_file='annotations/test1.json',
                 data_prefix=dict(img_path='test1'), test_mode=True, pipeline=test_pipeline))
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='NLVRAccuracy')
test_evaluator = dict(type='NLVRAccuracy')
