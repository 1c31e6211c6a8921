# The 129 M images of pretrain_224.py with the web sets in tar shards (docs/web_data.md), each set drawn by a ratio.
# How often each was drawn for the paper is not published. Here: by number of pairs in millions (BLIP paper, table 15),
# so that a pair of any set is as likely as any other, as in pretrain_224.py. Of 10,000 draws COCO gets 44.
# Leave out what you do not have, with its ratio. Bad samples of shards are replaced, and counted by
# default_hooks.bad_samples, which stops a training with more than max_bad of them.
train_pipeline = [
    dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.5, 1.)),
    dict(type='RandomFlip'), dict(type='CleanCaption'), dict(type='CaptionPrompt', prompt=''), dict(type='PackInputs')]
web = dict(type='WebShards', shards='shards/*.tar', pipeline=train_pipeline)

train_dataloader = dict(
    num_workers=8, collate_fn=dict(type='pseudo_collate'), sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(
        type='MixedDataset', ratios=(0.567, 0.769, 3., 10., 0.86, 115.), window=10000, datasets=[
            dict(type='COCOCaption', data_root='data/coco', ann_file='annotations/coco_karpathy_train.json',
                 pipeline=train_pipeline),
            dict(type='ImageTextPairs', data_root='data/visual_genome', ann_file='annotations/vg_caption.json',
                 pipeline=train_pipeline),
            dict(data_root='data/cc3m', **web),
            dict(data_root='data/cc12m', **web),
            dict(data_root='data/sbu', **web),
            dict(data_root='data/laion115m', max_captions=2, **web),  # the two that CLIP ranks first
        ]))
