# Captions of COCO's 5,000 test images (Karpathy's split) at 224 px without a prompt, as LAVIS's stage 2 writes them.
test_dataloader = dict(
    batch_size=16, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCOCaption', data_root='data/coco', ann_file='annotations/coco_karpathy_test.json', test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=224), dict(type='CaptionPrompt', prompt=''),
                  dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='COCOCaptionMetric')
