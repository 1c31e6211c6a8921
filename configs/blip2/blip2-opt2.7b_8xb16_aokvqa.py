# Zero-shot question answering on A-OKVQA val, direct answers, by the published stage 2 with OPT-2.7B.
#   python tools/test.py configs/blip2/blip2-opt2.7b_8xb16_aokvqa.py blip2_pretrained_opt2.7b.pth
#   bash tools/dist_test.sh configs/blip2/blip2-opt2.7b_8xb16_aokvqa.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says. Data: docs/dataset_prepare.md.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is that file,
# transformers' folder or name on the hub (Salesforce/blip2-opt-2.7b), or what this package wrote.
# Expected: the paper has no figure.
_base_ = ['blip2-opt2.7b_8xb16_vqa.py']

test_dataloader = dict(
    dataset=dict(
        _delete_=True, type='AOKVQA', data_root='data/aokvqa', test_mode=True,
        ann_file='annotations/aokvqa_v1p0_val.json', data_prefix=dict(img_path='../coco/val2017'),
        skip_difficult=True,  # as the benchmark's own program
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=224), dict(type='CleanQuestion'),
                  dict(type='VQAPrompt', template='Question: {} Answer:', qformer_text=None),
                  dict(type='PackInputs')]))
test_evaluator = dict(_delete_=True, type='AOKVQAMetric')
