# COCO captions by BLIP with ViT-L, fine-tuned from the pre-training.
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST bash tools/dist_train.sh configs/blip/blip-large_16xb16_caption.py 8
#   python tools/train.py configs/blip/blip-large_16xb16_caption.py --auto-scale-lr
#   python tools/test.py configs/blip/blip-large_16xb16_caption.py work_dirs/blip-large_16xb16_caption
#   python tools/test.py configs/blip/blip-large_16xb16_caption.py model_large_caption.pth
# The first is for two machines of 8 GPUs: NODE_RANK=1 on the second, HOST is the first. Batch size and learning rate
# are those of 16 processes. With fewer (one machine without these variables, or one process) the batch is smaller: add
# --auto-scale-lr.
# The last is for the authors' file of this training, which is got where it is nowhere here (README.md).
# Hardware: 16 GPUs, as the name says; 16 x 16 is the paper's batch of 256 (the authors' and LAVIS's configs: 8 x 16).
# Expected (paper, table 7), COCO Karpathy test: BLEU-4 40.4, CIDEr 136.7; published, not run here; no figure is
# published of the name on the Hugging Face hub. Recipe (paper, table 14): 5 epochs, learning rate 2e-6.
_base_ = [
    '../_base_/models/blip_vit-l.py', '../_base_/datasets/blip_coco_caption_384.py',
    '../_base_/schedules/blip.py', '../_base_/default_runtime.py'
]

load_from = 'work_dirs/blip-large_32xb75_pretrain'
model = dict(
    type='BlipGeneration',
    vision=dict(grad_checkpointing=True),
    text_decoder=dict(type='MED', vision_width=1024),
    max_text_len=40,
    generation=dict(num_beams=3, min_new_tokens=1, max_new_tokens=16))  # 5 to 20 with [DEC] and the prompt

train_dataloader = dict(batch_size=16)  # 16 x 16 = 256
auto_scale_lr = dict(base_batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=2e-6))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=5, eta_min=0.)]
train_cfg = dict(by_epoch=True, max_epochs=5)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, save_best='caption/CIDEr'))
log_processor = dict(by_epoch=True)
