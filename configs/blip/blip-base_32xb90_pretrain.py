# BLIP's pre-training with ViT-B: ITC with momentum encoder and queue, ITM with hard negatives, LM.
#   NNODES=4 NODE_RANK=0 MASTER_ADDR=HOST bash tools/dist_train.sh configs/blip/blip-base_32xb90_pretrain.py 8
#   python tools/train.py configs/blip/blip-base_32xb90_pretrain.py --auto-scale-lr
#   python tools/test.py configs/blip/blip-base_32xb90_pretrain.py work_dirs/blip-base_32xb90_pretrain
#   python tools/test.py configs/blip/blip-base_32xb90_pretrain.py model_base_capfilt_large.pth
# The first is for four machines of 8 GPUs: NODE_RANK=1, 2, 3 on the others, HOST is the first. Batch size and learning
# rate are those of 32 processes. With fewer (one machine without these variables, or one process) the batch is smaller:
# add --auto-scale-lr. ITM's negatives are of each process alone, so they stay as many.
# The last is for the authors' file of this training with 129 M images, the captions by the large captioner and filter;
# it is got where it is nowhere here (README.md), as are model_base.pth and model_base_14M.pth.
# Hardware of the paper: two machines of 16 GPUs. Expected: the paper has no metric of the pre-training alone; retrieval
# is reported after fine-tuning (table 5), see blip-base_8xb32_retrieval.py.
# Recipe (paper, section 4.1): 20 epochs, 2880 samples an update, learning rate 3e-4 times 0.85 an epoch (the authors'
# and LAVIS's configs: 75 a GPU, times 0.9); from their configs 3,000 iterations of warm-up from 1e-6.
_base_ = [
    '../_base_/models/blip_vit-b.py', '../_base_/datasets/blip_pretrain_224.py',
    '../_base_/schedules/blip.py', '../_base_/default_runtime.py'
]

model = dict(
    type='BlipRepresentation',
    vision=dict(image_size=224, weights='data/pretrained/deit_base_patch16_224-b5f2ef4d.pth'),
    text_encoder=dict(type='MED', vision_width=768, bert='data/pretrained/bert-base-uncased'),
    text_decoder=dict(type='MED', vision_width=768, bert='data/pretrained/bert-base-uncased'),
    embed_dim=256,
    max_text_len=30,
    queue_size=57600,
    momentum=0.995,
    alpha=0.4,
    alpha_warmup_iters=10600,  # 2 epochs of 15.2 M rows
    negative_all_rank=False,
    negative_floor=1e-4)

train_dataloader = dict(batch_size=90)  # 32 x 90 = 2880
auto_scale_lr = dict(base_batch_size=2880)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 3e-4, by_epoch=False, end=3000),
    dict(type='ExponentialLR', gamma=0.85, by_epoch=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1))
log_processor = dict(by_epoch=True)
