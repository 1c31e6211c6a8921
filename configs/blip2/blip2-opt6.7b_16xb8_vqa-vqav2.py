# VQA fine-tuned from stage 2 with OPT-6.7B: vision encoder and Q-Former trained, language model frozen, the question
# read by the Q-Former, too (paper, section 4.3). LAVIS never published this recipe.
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST bash tools/dist_train.sh configs/blip2/blip2-opt6.7b_16xb8_vqa-vqav2.py 8
#   python tools/train.py configs/blip2/blip2-opt6.7b_16xb8_vqa-vqav2.py --auto-scale-lr
#   python tools/test.py \
#       configs/blip2/blip2-opt6.7b_16xb8_vqa-vqav2.py work_dirs/blip2-opt6.7b_16xb8_vqa-vqav2
# The first is for two machines of 8 GPUs: NODE_RANK=1 on the second, HOST is the first. Batch size and learning rate
# are those of 16 processes. With fewer (one machine without these variables, or one process) the batch is smaller: add
# --auto-scale-lr.
# Hardware: 16 GPUs, as the name says; 16 x 8 is the paper's batch of 128.
# Expected (paper, table 4), from the VQA server: 82.19 on test-dev, 82.30 on test-std.
_base_ = [
    '../_base_/models/blip2-opt6.7b.py', '../_base_/datasets/vqav2_490.py',
    '../_base_/schedules/blip2_finetune.py', '../_base_/default_runtime.py'
]

load_from = [  # the text half of the Q-Former from stage 1, everything else from stage 2
    dict(checkpoint='work_dirs/blip2_vit-g_stage1'),
    dict(checkpoint='work_dirs/blip2-opt6.7b_stage2'),
]
model = dict(
    vision=dict(image_size=490, grad_checkpointing=True),
    qformer=dict(vocab_size=30523),
    tokenizer=dict(type='BertTokenizer', path='data/pretrained/bert-base-uncased'),
    frozen=('language_model', ),
    generation=dict(num_beams=5, max_new_tokens=10, length_penalty=-1.))

train_dataloader = dict(batch_size=8)  # 16 x 8 = 128
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.9))
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1))
log_processor = dict(by_epoch=True)
