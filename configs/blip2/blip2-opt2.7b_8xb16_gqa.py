# Zero-shot question answering on GQA test-dev by the published stage 2 with OPT-2.7B (named as in mmpretrain).
#   python tools/test.py configs/blip2/blip2-opt2.7b_8xb16_gqa.py blip2_pretrained_opt2.7b.pth
#   bash tools/dist_test.sh configs/blip2/blip2-opt2.7b_8xb16_gqa.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says. Data: docs/dataset_prepare.md.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is that file,
# transformers' folder or name on the hub (Salesforce/blip2-opt-2.7b), or what this package wrote.
# Expected (paper, table 2): accuracy 34.6; published, not run here. The prompt is the paper's for OPT; LAVIS and
# mmpretrain ask 'Question: {} Short answer:'. As they do, answers are normalised before they are compared; GQA's own
# program wants equal texts: variant='official'.
_base_ = ['blip2-opt2.7b_8xb16_vqa.py']

test_dataloader = dict(
    dataset=dict(
        _delete_=True, type='GQA', data_root='data/gqa', test_mode=True,
        ann_file='annotations/testdev_balanced_questions.json', data_prefix=dict(img_path='images'),
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=224), dict(type='CleanQuestion'),
                  dict(type='VQAPrompt', template='Question: {} Answer:', qformer_text=None),
                  dict(type='PackInputs')]))
test_evaluator = dict(_delete_=True, type='GQAMetric', variant='normalised')
