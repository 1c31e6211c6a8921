# Zero-shot captioning of COCO at 364 px by the published stage 2 with OPT-2.7B (named as in mmpretrain).
#   python tools/test.py configs/blip2/blip2-opt2.7b_8xb32_caption.py \
#       https://download.openmmlab.com/mmclassification/v1/blip2/blip2-opt2.7b_3rdparty_pretrain_20230505-b51db4e1.pth
#   bash tools/dist_test.sh configs/blip2/blip2-opt2.7b_8xb32_caption.py CHECKPOINT 8
# Hardware: 8 GPUs, 32 images each at a time, as the name says.
# The first command gets mmpretrain's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, LAVIS's blip2_pretrained_opt2.7b.pth, transformers' folder or name on the hub (Salesforce/blip2-opt-2.7b),
# or what this package wrote.
# Expected (mmpretrain's model zoo, blip2-opt2.7b_3rdparty-zeroshot_caption), COCO: BLEU-4 32.90, CIDEr 111.10.
_base_ = ['../_base_/models/blip2-opt2.7b.py', '../_base_/default_runtime.py']

model = dict(
    vision=dict(image_size=364),
    generation=dict(num_beams=5, max_new_tokens=30))

test_dataloader = dict(
    batch_size=32, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCOCaption', data_root='data/coco', ann_file='annotations/coco_karpathy_val.json', test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=364),
                  dict(type='CaptionPrompt', prompt='a photo of'), dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop', autocast='float16')
test_evaluator = dict(type='COCOCaptionMetric')
