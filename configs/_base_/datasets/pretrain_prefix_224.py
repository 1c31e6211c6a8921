# The data of pretrain_224.py for encoder-decoder language models: the caption is split at random, its first part is
# read by the encoder beside the image, its second part is the target (paper, section 3.3). LAVIS did not publish this.
train_pipeline = [
    dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.5, 1.)),
    dict(type='RandomFlip'), dict(type='CleanCaption'), dict(type='PrefixSplit'), dict(type='PackInputs')]
web = dict(
    type='ImageTextPairs', ann_file='captions.jsonl', data_prefix=dict(img_path='images'), pipeline=train_pipeline)

train_dataloader = dict(
    num_workers=8, collate_fn=dict(type='pseudo_collate'), sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(type='ConcatDataset', datasets=[
        dict(type='COCOCaption', data_root='data/coco', ann_file='annotations/coco_karpathy_train.json',
             pipeline=train_pipeline),
        dict(type='VisualGenomeCaption', data_root='data/visual_genome', ann_file='annotations/vg_caption.json',
             pipeline=train_pipeline),
        dict(data_root='data/cc3m', **web),
        dict(data_root='data/cc12m', **web),
        dict(data_root='data/sbu', **web),
        dict(data_root='data/laion115m', **web),
    ]))
