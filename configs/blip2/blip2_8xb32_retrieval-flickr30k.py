# Zero-shot retrieval on Flickr30K's 1,000 test images by the published ViT-g fine-tuned on COCO.
#   python tools/test.py configs/blip2/blip2_8xb32_retrieval-flickr30k.py blip2_finetune_coco.pth
#   bash tools/dist_test.sh configs/blip2/blip2_8xb32_retrieval-flickr30k.py CHECKPOINT 8
# Hardware: 8 GPUs, 32 images each at a time, as the name says. Data: docs/dataset_prepare.md.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is that file,
# transformers' folder or name on the hub (Salesforce/blip2-itm-vit-g-coco), or what this package wrote.
# Expected (paper, table 5), recall@1 / 5 / 10: image to text 97.6 / 100.0 / 100.0, text to image 89.7 / 98.1 / 98.9.
_base_ = ['blip2_8xb32_retrieval.py']

test_dataloader = dict(dataset=dict(
    type='Flickr30kRetrieval', data_root='data/flickr30k', ann_file='annotations/flickr30k_test.json'))
