# COCO retrieval fine-tuned from stage 1 with ViT-L: the same losses, vision encoder trained, images of one id
# positives of one another (paper, section 4.4).
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST bash tools/dist_train.sh configs/blip2/blip2_vit-l_16xb14_retrieval-coco.py 8
#   python tools/train.py configs/blip2/blip2_vit-l_16xb14_retrieval-coco.py --auto-scale-lr
#   python tools/test.py \
#       configs/blip2/blip2_vit-l_16xb14_retrieval-coco.py work_dirs/blip2_vit-l_16xb14_retrieval-coco
# The first is for two machines of 8 GPUs: NODE_RANK=1 on the second, HOST is the first. Batch size and learning rate
# are those of 16 processes. With fewer (one machine without these variables, or one process) the batch is smaller: add
# --auto-scale-lr; ITC then has fewer negatives, too (half on one machine of 8).
# Hardware of LAVIS's config: 16 GPUs. Expected (paper, table 5), COCO 5K test, recall@1 / 5 / 10:
# image to text 83.5 / 96.0 / 98.0, text to image 66.3 / 86.5 / 91.8.
_base_ = [
    '../_base_/models/blip2_vit-l.py', '../_base_/datasets/coco_retrieval_364.py',
    '../_base_/schedules/blip2_finetune.py', '../_base_/default_runtime.py'
]

load_from = 'work_dirs/blip2_vit-l_stage1'
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
optim_wrapper = dict(optimizer=dict(lr=5e-6, betas=(0.9, 0.98)))
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, save_best='i2t/retrieval/Recall@1'))
log_processor = dict(by_epoch=True)
