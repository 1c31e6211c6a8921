# Captions of Flickr30K's 1,000 test images by BLIP with ViT-B, fine-tuned on COCO (named as in mmpretrain).
#   python tools/test.py configs/blip/blip-base_8xb32_caption_flickr30k.py \
#       https://download.openmmlab.com/mmclassification/v1/blip/blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth
#   bash tools/dist_test.sh configs/blip/blip-base_8xb32_caption_flickr30k.py CHECKPOINT 8
# Hardware: 8 GPUs, 32 images each at a time, as the name says.
# The first command gets mmpretrain's file where it is nowhere here (places: README.md). CHECKPOINT is that file,
# LAVIS's blip_coco_caption_base.pth, transformers' folder or name on the hub (Salesforce/blip-image-captioning-base),
# or what this package wrote.
# Expected (mmpretrain's model zoo): CIDEr 68.89, SPICE 15.58; published, not run here.
_base_ = ['../_base_/models/blip_vit-b.py', '../_base_/default_runtime.py']

model = dict(
    type='BlipGeneration',
    text_decoder=dict(type='MED', vision_width=768),
    max_text_len=40,
    generation=dict(num_beams=3, min_new_tokens=1, max_new_tokens=16))  # 5 to 20 with [DEC] and the prompt

test_dataloader = dict(
    batch_size=32, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='Flickr30kCaption', data_root='data/flickr30k', ann_file='annotations/flickr30k_test.json', test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=384),
                  dict(type='CaptionPrompt', prompt='a picture of'), dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='COCOCaptionMetric')
