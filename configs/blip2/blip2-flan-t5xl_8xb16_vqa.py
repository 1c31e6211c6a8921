# Zero-shot question answering on VQAv2 val by the published stage 2 with Flan-T5-XL.
#   python tools/test.py configs/blip2/blip2-flan-t5xl_8xb16_vqa.py blip2_pretrained_flant5xl.pth
#   bash tools/dist_test.sh configs/blip2/blip2-flan-t5xl_8xb16_vqa.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, transformers' folder or name on the hub (Salesforce/blip2-flan-t5-xl), or what this package wrote.
# Expected (paper, table 2): accuracy 63.1 on val, 63.0 on test-dev, OK-VQA 40.7, GQA 44.2; a comment in LAVIS's config
# says 63.13 on val. Published, not run here.
_base_ = ['../_base_/models/blip2-flan-t5xl.py', '../_base_/default_runtime.py']

model = dict(generation=dict(num_beams=5, max_new_tokens=10, length_penalty=-1.))

test_dataloader = dict(
    batch_size=16, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCOVQA', data_root='data/coco', test_mode=True,
        question_file='annotations/v2_OpenEnded_mscoco_val2014_questions.json',
        ann_file='annotations/v2_mscoco_val2014_annotations.json', data_prefix=dict(img_path='val2014'),
        image_template='COCO_val2014_{:012d}.jpg',
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=224), dict(type='CleanQuestion'),
                  dict(type='VQAPrompt', template='Question: {} Short answer:', qformer_text=None),
                  dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop', autocast='bfloat16')
test_evaluator = dict(type='VQAMetric')
