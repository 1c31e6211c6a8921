# The 14 M images of BLIP's pre-training (paper, section 4.1) at 224 px: COCO, Visual Genome, CC3M, CC12M, SBU. One
# caption is drawn for each image of the web: captions.jsonl has the texts that were kept of the bootstrapping (CapFilt,
# tools/dataset_converters/capfilt.py), or the original one. Evaluation: retrieval on COCO's 5,000 test images.
# Leave out what you do not have, the files are described in configs/blip/README.md.
train_pipeline = [
    dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.)),  # LAVIS: from 0.5
    dict(type='RandomFlip'), dict(type='RandAugment'), dict(type='CleanCaption'),
    dict(type='CaptionPrompt', prompt=''), dict(type='PackInputs')]
web = dict(
    type='ImageTextPairs', ann_file='captions.jsonl', data_prefix=dict(img_path='images'), pipeline=train_pipeline)

train_dataloader = dict(
    num_workers=8, collate_fn=dict(type='pseudo_collate'), sampler=dict(type='SeekableSampler'),
    drop_last=True,  # a queue is filled by whole batches
    dataset=dict(type='ConcatDataset', datasets=[
        dict(type='COCOCaption', data_root='data/coco', ann_file='annotations/coco_karpathy_train.json',
             pipeline=train_pipeline),
        dict(type='VisualGenomeCaption', data_root='data/visual_genome', ann_file='annotations/vg_caption.json',
             pipeline=train_pipeline),
        dict(data_root='data/cc3m', **web),
        dict(data_root='data/cc12m', **web),
        dict(data_root='data/sbu', **web),
    ]))
test_dataloader = dict(
    batch_size=64, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCORetrieval', data_root='data/coco', ann_file='annotations/coco_karpathy_test.json', test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=224), dict(type='CleanCaption'),
                  dict(type='PackInputs')]))
test_cfg = dict(type='RetrievalTestLoop', k_test=256)
test_evaluator = dict(type='RetrievalRecall')
