# Zero-shot question answering on VQAv2 val by the published stage 2 with OPT-2.7B (named as in mmpretrain).
#   python tools/test.py configs/blip2/blip2-opt2.7b_8xb16_vqa.py \
#       https://download.openmmlab.com/mmclassification/v1/blip2/blip2-opt2.7b_3rdparty_pretrain_20230505-b51db4e1.pth
#   bash tools/dist_test.sh configs/blip2/blip2-opt2.7b_8xb16_vqa.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets mmpretrain's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, LAVIS's blip2_pretrained_opt2.7b.pth, transformers' folder or name on the hub (Salesforce/blip2-opt-2.7b),
# or what this package wrote.
# Expected (paper, table 2): accuracy 53.5 on val, 52.3 on test-dev, OK-VQA 31.7, GQA 34.6; a comment in LAVIS's config
# says 51.88 on val (its length penalty is 0). Published, not run here.
_base_ = ['../_base_/models/blip2-opt2.7b.py', '../_base_/default_runtime.py']

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
                  dict(type='VQAPrompt', template='Question: {} Answer:', qformer_text=None),
                  dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop', autocast='float16')
test_evaluator = dict(type='VQAMetric')
