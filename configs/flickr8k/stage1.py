# Stage 1 on Flickr8k with real frozen parts; evaluated by retrieval on the val split (1,000 images, 5,000 captions).
#   python tools/dataset_converters/prepare_flickr8k.py --source DIR --out data/flickr8k
#   python tools/model_converters/prepare_real_parts.py
#   python tools/train.py configs/flickr8k/stage1.py --work-dir work_dirs/flickr8k/stage1
#   python tools/test.py configs/flickr8k/stage1.py work_dirs/flickr8k/stage1
# The encoder sees four random versions of each training image, once (docs/feature_cache.md); stage 2 finds them.
# Hardware: 2 CPU cores: features 17 minutes, training 51 (resumed once, tests beside the second half). Expected
# (measured with the commands above), val split, recall@1 by ITC: image to text 21.6, text to image 17.0; retrieval.py
# goes on from there. ITM does not begin to learn in so short a training (README.md), so nothing is re-ranked.
_base_ = [
    '../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py',
    '../_base_/models/blip2_flickr8k.py'
]
data_root = '{{$MMBLIP2_FLICKR8K:data/flickr8k}}'
evaluation_pipeline = [
    dict(type='LoadImage'), dict(type='Resize', scale=320), dict(type='CleanCaption'), dict(type='PackInputs')]

model = dict(
    type='Blip2Representation',
    qformer=dict(vocab_size=30523, dropout=0.1, patch_dropout=0.4, channel_dropout=0.3),  # 6,000 images are few
    itc_dropout=0.3,
    tokenizer=dict(type='BertTokenizer', path='data/pretrained/minilm-bert'),
    embed_dim=256,
    max_text_len=32,
    match_rows=8,  # ITC reads all 128 pairs; ITM and ITG, which cost more, 8 of them
    frozen=('vision', ))

train_dataloader = dict(
    batch_size=128, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(
        type='COCORetrieval', data_root=data_root, ann_file='annotations/karpathy_train.json',
        feature_cache=dict(dir='data/features', views=4),
        pipeline=[dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=320), dict(type='RandomFlip'),
                  dict(type='CleanCaption'), dict(type='PackInputs')]))
train_cfg = dict(max_iters=900, val_interval=150)
optim_wrapper = dict(
    # what starts from BERT learns slower than what starts from nothing, and the temperature would run away
    paramwise_cfg=dict(custom_keys={
        'temperature': dict(lr_mult=0.05),
        'layers': dict(lr_mult=0.05), 'cross_attention': dict(lr_mult=1.),
        'word_embeddings': dict(lr_mult=0.05), 'position_embeddings': dict(lr_mult=0.05)}))
default_hooks = dict(checkpoint=dict(interval=100), logger=dict(interval=20))

test_dataloader = dict(
    batch_size=50, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCORetrieval', data_root=data_root, ann_file='annotations/karpathy_val.json',
                 test_mode=True, feature_cache=dict(dir='data/features'), pipeline=evaluation_pipeline))
test_cfg = dict(type='RetrievalTestLoop', k_test=0)
test_evaluator = dict(type='RetrievalRecall')

val_dataloader = test_dataloader
val_cfg = dict(type='RetrievalValLoop', k_test=0)
val_evaluator = test_evaluator
