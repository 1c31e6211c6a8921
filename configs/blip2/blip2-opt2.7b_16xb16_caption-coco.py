# COCO captions fine-tuned from stage 2 with OPT-2.7B: vision encoder and Q-Former trained, language model frozen.
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST bash tools/dist_train.sh configs/blip2/blip2-opt2.7b_16xb16_caption-coco.py 8
#   python tools/train.py configs/blip2/blip2-opt2.7b_16xb16_caption-coco.py --auto-scale-lr
#   python tools/test.py configs/blip2/blip2-opt2.7b_16xb16_caption-coco.py work_dirs/blip2-opt2.7b_16xb16_caption-coco
#   python tools/test.py configs/blip2/blip2-opt2.7b_16xb16_caption-coco.py blip2_caption_opt2.7b.pth
# The first is for two machines of 8 GPUs: NODE_RANK=1 on the second, HOST is the first. Batch size and learning rate
# are those of 16 processes. With fewer (one machine without these variables, or one process) the batch is smaller: add
# --auto-scale-lr.
# The last is for LAVIS's file of this training, which is got where it is nowhere here (README.md).
# Hardware of LAVIS's config: 16 GPUs. Expected (paper, table 3), COCO Karpathy test: BLEU-4 43.7, CIDEr 145.8.
_base_ = [
    '../_base_/models/blip2-opt2.7b.py', '../_base_/datasets/coco_caption_364.py',
    '../_base_/schedules/blip2_finetune.py', '../_base_/default_runtime.py'
]

load_from = 'work_dirs/blip2-opt2.7b_stage2'
model = dict(
    vision=dict(image_size=364, grad_checkpointing=True),
    frozen=('language_model', ),
    generation=dict(num_beams=5, min_new_tokens=8, max_new_tokens=30))

train_dataloader = dict(batch_size=16)  # 16 x 16 = 256
auto_scale_lr = dict(base_batch_size=256)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, save_best='caption/CIDEr'))
log_processor = dict(by_epoch=True)
