# blip2_vit-g_stage1.py with the web sets in tar shards, for what is too much for single files: ITC + ITM + ITG, the
# vision encoder frozen. Trained parameters: 186.71 M (paper: 188 M). The shards: docs/web_data.md.
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST bash tools/dist_train.sh configs/blip2/blip2_vit-g_stage1-shards.py 8
#   python tools/train.py configs/blip2/blip2_vit-g_stage1-shards.py --auto-scale-lr
#   python tools/test.py configs/blip2/blip2_vit-g_stage1-shards.py work_dirs/blip2_vit-g_stage1-shards
# The first is for two machines of 8 GPUs: NODE_RANK=1 on the second, HOST is the first. Batch size and learning rate
# are those of 16 processes. With fewer (one machine without these variables, or one process) the batch is smaller: add
# --auto-scale-lr; ITC then has fewer negatives, too (half on one machine of 8).
# Hardware of the paper: 16 A100 40G, less than 6 days. Expected: the paper has no metric of stage 1 alone; retrieval is
# reported after fine-tuning on COCO (table 5), see blip2_vit-g_16xb14_retrieval-coco.py.
_base_ = [
    '../_base_/models/blip2_vit-g.py', '../_base_/datasets/pretrain_shards_224.py',
    '../_base_/schedules/blip2_pretrain.py', '../_base_/default_runtime.py'
]

model = dict(
    type='Blip2Representation',
    qformer=dict(vocab_size=30523, bert='data/pretrained/bert-base-uncased'),  # 30522 of BERT and [DEC]
    tokenizer=dict(type='BertTokenizer', path='data/pretrained/bert-base-uncased'),
    embed_dim=256,
    max_text_len=32,
    frozen=('vision', ))

train_dataloader = dict(batch_size=105)  # 16 x 105 = 1680; LAVIS's config: 16 x 100
auto_scale_lr = dict(base_batch_size=1680)
train_cfg = dict(max_iters=250000)

test_dataloader = dict(
    batch_size=32, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCORetrieval', data_root='data/coco', ann_file='annotations/coco_karpathy_test.json', test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=224), dict(type='CleanCaption'),
                  dict(type='PackInputs')]))
test_cfg = dict(type='RetrievalTestLoop', k_test=128)
test_evaluator = dict(type='RetrievalRecall')
