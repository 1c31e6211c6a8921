# Zero-shot captioning of NoCaps val by the published OPT-2.7B fine-tuned on COCO.
#   python tools/test.py configs/blip2/blip2-opt2.7b_8xb32_caption-nocaps.py blip2_caption_opt2.7b.pth
#   bash tools/dist_test.sh configs/blip2/blip2-opt2.7b_8xb32_caption-nocaps.py CHECKPOINT 8
# Hardware: 8 GPUs, 32 images each at a time, as the name says. Data: docs/dataset_prepare.md.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is that file,
# transformers' folder or name on the hub (Salesforce/blip2-opt-2.7b-coco), or what this package wrote.
# Expected (paper, table 3): CIDEr 119.7 overall, 123.0 in, 117.8 near and 123.4 out of domain; published, not run here.
# The paper's come from the server, whose file ServerSubmission(task='nocaps', split='val') writes as test_evaluator.
# One domain alone: --cfg-options +test_dataloader.dataset.domain=out-domain
_base_ = ['blip2-opt2.7b_8xb32_caption.py']

model = dict(generation=dict(min_new_tokens=8))  # as on COCO; LAVIS's config of out-domain: 10 to 80

test_dataloader = dict(dataset=dict(
    type='NoCaps', data_root='data/nocaps', ann_file='annotations/nocaps_val_4500_captions.json',
    data_prefix=dict(img_path='val')))
