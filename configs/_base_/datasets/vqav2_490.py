# VQAv2 train + val and Visual Genome's question-answer pairs at 490 px (paper, table 8), the question read by the
# Q-Former, too. test-dev has no public answers: the predictions are for the VQA server. Files: configs/blip2/README.md.
questions = [dict(type='CleanQuestion'), dict(type='VQAPrompt', template='Question: {} Answer:', qformer_text='{}')]
train_pipeline = [
    dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=490, crop_ratio_range=(0.5, 1.)), *questions,
    dict(type='PackInputs')]
test_pipeline = [dict(type='LoadImage'), dict(type='Resize', scale=490), *questions, dict(type='PackInputs')]

train_dataloader = dict(
    num_workers=8, collate_fn=dict(type='pseudo_collate'), sampler=dict(type='SeekableSampler'),
    dataset=dict(type='ConcatDataset', datasets=[
        dict(type='COCOVQA', data_root='data/coco', pipeline=train_pipeline,
             question_file='annotations/v2_OpenEnded_mscoco_train2014_questions.json',
             ann_file='annotations/v2_mscoco_train2014_annotations.json',
             data_prefix=dict(img_path='train2014'), image_template='COCO_train2014_{:012d}.jpg'),
        dict(type='COCOVQA', data_root='data/coco', pipeline=train_pipeline,
             question_file='annotations/v2_OpenEnded_mscoco_val2014_questions.json',
             ann_file='annotations/v2_mscoco_val2014_annotations.json',
             data_prefix=dict(img_path='val2014'), image_template='COCO_val2014_{:012d}.jpg'),
        dict(type='VisualGenomeQA', data_root='data/visual_genome', pipeline=train_pipeline,
             ann_file='annotations/vg_qa.json'),
    ]))
test_dataloader = dict(
    batch_size=16, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCOVQA', data_root='data/coco', test_mode=True, pipeline=test_pipeline,
                 question_file='annotations/v2_OpenEnded_mscoco_test-dev2015_questions.json',
                 data_prefix=dict(img_path='test2015'), image_template='COCO_test2015_{:012d}.jpg'))
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='VQAMetric')
