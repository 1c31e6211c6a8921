# COCO captions fine-tuned from stage 2 with OPT-6.7B: vision encoder and Q-Former trained, language model frozen.
#   bash tools/dist_train.sh configs/blip2/blip2-opt6.7b_16xb16_caption-coco.py 8
#   python tools/train.py configs/blip2/blip2-opt6.7b_16xb16_caption-coco.py
#   python tools/test.py configs/blip2/blip2-opt6.7b_16xb16_caption-coco.py work_dirs/blip2-opt6.7b_16xb16_caption-coco
# Hardware of LAVIS's config: 16 A100. Expected (paper, table 3), COCO Karpathy test: BLEU-4 43.5, CIDEr 145.2.
_base_ = [
    '../_base_/models/blip2-opt6.7b.py', '../_base_/datasets/coco_caption_364.py',
    '../_base_/schedules/blip2_finetune.py', '../_base_/default_runtime.py'
]

load_from = 'work_dirs/blip2-opt6.7b_stage2'
model = dict(
    vision=dict(image_size=364, grad_checkpointing=True),
    frozen=('language_model', ),
    generation=dict(num_beams=5, min_new_tokens=8, max_new_tokens=30))

train_dataloader = dict(batch_size=16)  # 16 x 16 = 256
auto_scale_lr = dict(base_batch_size=256)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.95))
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, save_best='caption/CIDEr'))
log_processor = dict(by_epoch=True)
