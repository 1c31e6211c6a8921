# The 129 M images of the pre-training (paper, section 4) at 224 px: COCO, Visual Genome, CC3M, CC12M, SBU, LAION.
# Each caption is prompt '' + target for stage 2; stage 1 reads it as text. LAVIS's configs use COCO and Visual Genome.
# How often each set was drawn is not published; here an image-text pair of any set is as likely as any other.
# Leave out what you do not have, the files are described in configs/blip2/README.md.
train_pipeline = [
    dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.5, 1.)),
    dict(type='RandomFlip'), dict(type='CleanCaption'), dict(type='CaptionPrompt', prompt=''), dict(type='PackInputs')]
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
