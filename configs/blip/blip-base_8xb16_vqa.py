# VQAv2 by BLIP with ViT-B for GPUs of half the memory: the training of blip-base_8xb32_vqa.py, two batches an update.
# At test answers are written freely, three beams, instead of ranked; the paper does not report it.
#   bash tools/dist_train.sh configs/blip/blip-base_8xb16_vqa.py 8
#   python tools/train.py configs/blip/blip-base_8xb16_vqa.py --auto-scale-lr
#   python tools/test.py configs/blip/blip-base_8xb16_vqa.py work_dirs/blip-base_8xb16_vqa
# Batch size and learning rate are those of 8 processes. With fewer the batch is smaller: add --auto-scale-lr.
# Hardware: 8 GPUs, as the name says; 2 x 8 x 16 is the paper's batch of 256.
# Expected: there is no figure of written answers.
_base_ = ['blip-base_8xb32_vqa.py']

model = dict(candidates=None)

train_dataloader = dict(batch_size=16)  # 8 x 16 = 128, twice an update
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(accumulative_counts=2)
