# COCO retrieval fine-tuned from stage 1 with ViT-g: the same losses, vision encoder trained, images of one id
# positives of one another (paper, section 4.4).
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST bash tools/dist_train.sh configs/blip2/blip2_vit-g_16xb14_retrieval-coco.py 8
#   python tools/train.py configs/blip2/blip2_vit-g_16xb14_retrieval-coco.py --auto-scale-lr
#   python tools/test.py \
#       configs/blip2/blip2_vit-g_16xb14_retrieval-coco.py work_dirs/blip2_vit-g_16xb14_retrieval-coco
#   python tools/test.py configs/blip2/blip2_vit-g_16xb14_retrieval-coco.py blip2_finetune_coco.pth
# The first is for two machines of 8 GPUs: NODE_RANK=1 on the second, HOST is the first. Batch size and learning rate
# are those of 16 processes. With fewer (one machine without these variables, or one process) the batch is smaller: add
# --auto-scale-lr; ITC then has fewer negatives, too (half on one machine of 8).
# The last is for LAVIS's file of this training, which is got where it is nowhere here (README.md).
# Hardware of LAVIS's config: 16 GPUs. Expected (paper, table 5), COCO 5K test, recall@1 / 5 / 10:
# image to text 85.4 / 97.0 / 98.5, text to image 68.3 / 87.7 / 92.6.
_base_ = [
    '../_base_/models/blip2_vit-g.py', '../_base_/datasets/coco_retrieval_364.py',
    '../_base_/schedules/blip2_finetune.py', '../_base_/default_runtime.py'
]

load_from = 'work_dirs/blip2_vit-g_stage1'
model = dict(
    type='Blip2Representation',
    vision=dict(image_size=364, grad_checkpointing=True),
    qformer=dict(vocab_size=30523),
    tokenizer=dict(type='BertTokenizer', path='data/pretrained/bert-base-uncased'),
    embed_dim=256,
    max_text_len=32,
    frozen=())

train_dataloader = dict(batch_size=14)  # 16 x 14 = 224
auto_scale_lr = dict(base_batch_size=224)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.95))  # LAVIS's config says so, its code ignores it
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, save_best='i2t/retrieval/Recall@1'))
log_processor = dict(by_epoch=True)
