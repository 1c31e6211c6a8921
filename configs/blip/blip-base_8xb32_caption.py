# COCO captions by BLIP with ViT-B, fine-tuned from the pre-training.
#   bash tools/dist_train.sh configs/blip/blip-base_8xb32_caption.py 8
#   python tools/train.py configs/blip/blip-base_8xb32_caption.py --auto-scale-lr
#   python tools/test.py configs/blip/blip-base_8xb32_caption.py work_dirs/blip-base_8xb32_caption
#   python tools/test.py configs/blip/blip-base_8xb32_caption.py blip_coco_caption_base.pth
# Batch size and learning rate are those of 8 processes. With fewer the batch is smaller: add --auto-scale-lr.
# The last is for LAVIS's file of this training, which is got where it is nowhere here (README.md). To start from the
# published pre-training, as it did: --cfg-options load_from=model_base_capfilt_large.pth
# Hardware of the original: 8 A100 GPUs. Expected (paper, table 7), COCO Karpathy test: BLEU-4 39.7, CIDEr 133.3;
# LAVIS's benchmarks say 39.9 and 133.5 of its file, mmpretrain's model zoo 40.12 and 132.82 of val. Published, not run
# here; no figure is published of the names on the Hugging Face hub.
# Recipe (paper, table 14): 5 epochs, 256 samples an update, learning rate 1e-5; LAVIS's config agrees, mmpretrain's has
# 10 epochs. Three beams, 5 to 20 tokens with [DEC] and the prompt, which are four of them.
_base_ = [
    '../_base_/models/blip_vit-b.py', '../_base_/datasets/blip_coco_caption_384.py',
    '../_base_/schedules/blip.py', '../_base_/default_runtime.py'
]

load_from = 'work_dirs/blip-base_32xb90_pretrain'
model = dict(
    type='BlipGeneration',
    text_decoder=dict(type='MED', vision_width=768),
    max_text_len=40,
    generation=dict(num_beams=3, min_new_tokens=1, max_new_tokens=16))

train_dataloader = dict(batch_size=32)  # 8 x 32 = 256
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=5, eta_min=0.)]
train_cfg = dict(by_epoch=True, max_epochs=5)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, save_best='caption/CIDEr'))
log_processor = dict(by_epoch=True)
