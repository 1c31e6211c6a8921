# BLIP-2 stage 2 with ViT-g and OPT-6.7B: captions from images,
# vision encoder and language model frozen. Trained parameters: 108.31 M (paper: 108 M).
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST bash tools/dist_train.sh configs/blip2/blip2-opt6.7b_stage2.py 8
#   python tools/train.py configs/blip2/blip2-opt6.7b_stage2.py --auto-scale-lr
#   python tools/test.py configs/blip2/blip2-opt6.7b_stage2.py work_dirs/blip2-opt6.7b_stage2
#   python tools/test.py configs/blip2/blip2-opt6.7b_stage2.py blip2_pretrained_opt6.7b.pth
# The first is for two machines of 8 GPUs: NODE_RANK=1 on the second, HOST is the first. Batch size and learning rate
# are those of 16 processes. With fewer (one machine without these variables, or one process) the batch is smaller: add
# --auto-scale-lr.
# The last is for LAVIS's file of this training, which is got where it is nowhere here (README.md). The test captions
# COCO without a prompt; the paper has nothing to compare with.
# Hardware of the paper: 16 A100 40G.
# Expected (paper, table 2), zero-shot with this checkpoint: VQAv2 54.3 on val and 52.6 on test-dev, OK-VQA 36.4,
# GQA 36.4 (accuracy in percent; prompt "Question: {} Answer:", 5 beams, length penalty -1).
_base_ = [
    '../_base_/models/blip2-opt6.7b.py', '../_base_/datasets/pretrain_224.py',
    '../_base_/datasets/coco_caption_test_224.py', '../_base_/schedules/blip2_pretrain.py',
    '../_base_/default_runtime.py'
]

model = dict(generation=dict(num_beams=5, max_new_tokens=30))  # of LAVIS's generate
load_from = 'work_dirs/blip2_vit-g_stage1'  # the text half and the heads are dropped, and the log says so
train_dataloader = dict(batch_size=120)  # 16 x 120 = 1920; LAVIS's config: 16 x 64
auto_scale_lr = dict(base_batch_size=1920)
train_cfg = dict(max_iters=80000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=2000),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=2000, eta_min=5e-5),  # LAVIS's config: 1e-5
]
