# Captions of NoCaps val by BLIP with ViT-B, fine-tuned on COCO (named as in mmpretrain).
#   python tools/test.py configs/blip/blip-base_8xb32_nocaps.py \
#       https://download.openmmlab.com/mmclassification/v1/blip/blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth
#   bash tools/dist_test.sh configs/blip/blip-base_8xb32_nocaps.py CHECKPOINT 8
# Hardware: 8 GPUs, 32 images each at a time, as the name says. Data: docs/dataset_prepare.md.
# The first command gets mmpretrain's file where it is nowhere here (places: README.md). CHECKPOINT is that file,
# LAVIS's blip_coco_caption_base.pth, transformers' folder or name on the hub (Salesforce/blip-image-captioning-base),
# or what this package wrote.
# Expected (mmpretrain's model zoo): CIDEr 109.12, SPICE 14.69; the paper (table 7) says 109.6 and 14.7, from the
# server, whose file ServerSubmission(task='nocaps', split='val') writes as test_evaluator. Published, not run here.
_base_ = ['blip-base_8xb32_caption_flickr30k.py']

test_dataloader = dict(dataset=dict(
    type='NoCaps', data_root='data/nocaps', ann_file='annotations/nocaps_val_4500_captions.json',
    data_prefix=dict(img_path='val')))
