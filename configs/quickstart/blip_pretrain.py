# BLIP, step 1: pre-training (ITC with momentum encoder and queue, ITM, LM), the ViT trained, too; evaluated by
# retrieval.
#   python tools/train.py configs/quickstart/blip_pretrain.py --work-dir work_dirs/quickstart/blip_pretrain
#   python tools/test.py configs/quickstart/blip_pretrain.py work_dirs/quickstart/blip_pretrain
# Hardware: 2 CPU cores. Expected (measured by `make demo-blip`, README.md), test split, recall@1: image to text 34.4,
# text to image 38.6; by ITC alone 17.6 and 27.0; images exchanged at most 0.2.
_base_ = [
    '../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py', '../_base_/models/blip_quickstart.py'
]
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'
quickstart = '{{$MMBLIP2_QUICKSTART:work_dirs/quickstart}}'
evaluation_pipeline = [
    dict(type='LoadImage'), dict(type='Resize', scale=72), dict(type='CleanCaption'), dict(type='PackInputs')]

model = dict(
    type='BlipRepresentation',
    vision=dict(weights=quickstart + '/blip_vision_encoder'),
    embed_dim=128,
    max_text_len=32,
    queue_size=1024,
    momentum=0.99,  # 0.995 is made for trainings of many more iterations
    alpha=0.4,
    alpha_warmup_iters=300)

train_dataloader = dict(
    batch_size=32, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(
        type='COCORetrieval', data_root=shapes, ann_file='annotations/karpathy_train.json',
        pipeline=[dict(type='LoadImage'), dict(type='CleanCaption'), dict(type='PackInputs')]))
train_cfg = dict(max_iters=700)
optim_wrapper = dict(  # at this rate the temperature would run away from its start of 0.07
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(temperature=dict(lr_mult=0.05))))

test_dataloader = dict(
    batch_size=100, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCORetrieval', data_root=shapes, ann_file='annotations/karpathy_test.json', test_mode=True,
                 pipeline=evaluation_pipeline))
test_cfg = dict(type='RetrievalTestLoop', k_test=16)
test_evaluator = dict(type='RetrievalRecall')
