# Retrieval on COCO's 5,000 test images by the published ViT-g fine-tuned on COCO (named as in mmpretrain).
#   python tools/test.py configs/blip2/blip2_8xb32_retrieval.py \
#       https://download.openmmlab.com/mmclassification/v1/blip2/blip2_3rdparty_pretrain_20230505-f7ef4390.pth
#   bash tools/dist_test.sh configs/blip2/blip2_8xb32_retrieval.py CHECKPOINT 8
# Hardware: 8 GPUs, 32 images each at a time, as the name says.
# The first command gets mmpretrain's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, LAVIS's blip2_finetune_coco.pth, transformers' folder or name on the hub
# (Salesforce/blip2-itm-vit-g-coco), or what this package wrote.
# Expected (paper, table 5), recall@1 / 5 / 10: image to text 85.4 / 97.0 / 98.5, text to image 68.3 / 87.7 / 92.6.
_base_ = ['../_base_/models/blip2_vit-g.py', '../_base_/default_runtime.py']

model = dict(
    type='Blip2Representation',
    vision=dict(image_size=364, weights=None),  # the checkpoint brings the fine-tuned vision encoder
    qformer=dict(vocab_size=30523),
    tokenizer=dict(type='BertTokenizer', path='data/pretrained/bert-base-uncased'),
    embed_dim=256,
    max_text_len=35,  # as LAVIS's evaluation; 32 in training
    frozen=())

test_dataloader = dict(
    batch_size=32, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCORetrieval', data_root='data/coco', ann_file='annotations/coco_karpathy_test.json', test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=364), dict(type='CleanCaption'),
                  dict(type='PackInputs')]))
test_cfg = dict(type='RetrievalTestLoop', k_test=128, autocast='float16')  # LAVIS evaluates in float32
test_evaluator = dict(type='RetrievalRecall')
