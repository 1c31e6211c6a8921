# Step 1: representation learning (ITC + ITM + ITG), vision encoder frozen; evaluated by retrieval.
#   python tools/train.py configs/quickstart/stage1.py --work-dir work_dirs/quickstart/stage1
#   python tools/test.py configs/quickstart/stage1.py work_dirs/quickstart/stage1
# Hardware: 2 CPU cores. Expected (measured by `make demo`, README.md), test split, recall@1: image to text 60.1,
# text to image 46.6; by ITC alone 63.1 and 52.8.
_base_ = [
    '../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py',
    '../_base_/models/blip2_quickstart.py'
]
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'
evaluation_pipeline = [
    dict(type='LoadImage'), dict(type='Resize', scale=72), dict(type='CleanCaption'), dict(type='PackInputs')]

model = dict(
    type='Blip2Representation',
    qformer=dict(vocab_size=400),
    tokenizer=dict(type='BertTokenizer', path=shapes + '/tokenizers/bert'),
    embed_dim=128,
    frozen=('vision', ))

train_dataloader = dict(
    batch_size=32, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(
        type='COCORetrieval', data_root=shapes, ann_file='annotations/karpathy_train.json',
        pipeline=[dict(type='LoadImage'), dict(type='CleanCaption'), dict(type='PackInputs')]))
train_cfg = dict(max_iters=700)
optim_wrapper = dict(  # at this rate the temperature would run away from its start of 0.07
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(temperature=dict(lr_mult=0.05))))

val_dataloader = dict(
    batch_size=100, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCORetrieval', data_root=shapes, ann_file='annotations/karpathy_val.json', test_mode=True,
                 pipeline=evaluation_pipeline))
test_dataloader = dict(
    batch_size=100, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCORetrieval', data_root=shapes, ann_file='annotations/karpathy_test.json', test_mode=True,
                 pipeline=evaluation_pipeline))
val_cfg = dict(type='RetrievalValLoop', k_test=16)
test_cfg = dict(type='RetrievalTestLoop', k_test=16)
val_evaluator = dict(type='RetrievalRecall')
test_evaluator = dict(type='RetrievalRecall')
