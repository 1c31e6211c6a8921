# Flickr30K retrieval, Karpathy's split (1,000 test images), at 384 px; annotations/flickr30k_*.json are LAVIS's lists.
# The best 128 of each query are re-ranked, as in the original evaluation.
train_pipeline = [
    dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=384, crop_ratio_range=(0.5, 1.)),
    dict(type='RandomFlip'), dict(type='RandAugment'), dict(type='CleanCaption'), dict(type='PackInputs')]
test_pipeline = [
    dict(type='LoadImage'), dict(type='Resize', scale=384), dict(type='CleanCaption'), dict(type='PackInputs')]

train_dataloader = dict(
    num_workers=8, collate_fn=dict(type='pseudo_collate'), sampler=dict(type='SeekableSampler'),
    drop_last=True,  # a queue is filled by whole batches
    dataset=dict(type='Flickr30kRetrieval', data_root='data/flickr30k', ann_file='annotations/flickr30k_train.json',
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Flickr30kRetrieval', data_root='data/flickr30k', ann_file='annotations/flickr30k_val.json',
                 test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=64, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Flickr30kRetrieval', data_root='data/flickr30k', ann_file='annotations/flickr30k_test.json',
                 test_mode=True, pipeline=test_pipeline))
val_cfg = dict(type='RetrievalValLoop', k_test=128)
test_cfg = dict(type='RetrievalTestLoop', k_test=128)
val_evaluator = dict(type='RetrievalRecall')
test_evaluator = dict(type='RetrievalRecall')
