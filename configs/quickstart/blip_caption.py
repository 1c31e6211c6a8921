# BLIP, step 2: captioning, everything trained.
#   python tools/train.py configs/quickstart/blip_caption.py --work-dir work_dirs/quickstart/blip_caption
#   python tools/test.py configs/quickstart/blip_caption.py work_dirs/quickstart/blip_caption
# Hardware: 2 CPU cores. Expected (measured by `make demo-blip`, README.md), test split: CIDEr 435.1, images
# exchanged 78.1.
_base_ = [
    '../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py', '../_base_/models/blip_quickstart.py'
]
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'
quickstart = '{{$MMBLIP2_QUICKSTART:work_dirs/quickstart}}'
prompt = dict(type='CaptionPrompt', prompt='a picture of')

load_from = quickstart + '/blip_pretrain'  # the encoder, the heads and the queues are dropped, and the log says so
model = dict(
    type='BlipGeneration',
    text_encoder=None,
    max_text_len=32,
    generation=dict(num_beams=3, max_new_tokens=24))

train_dataloader = dict(
    batch_size=32, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(
        type='COCOCaption', data_root=shapes, ann_file='annotations/karpathy_train.json',
        pipeline=[dict(type='LoadImage'), dict(type='CleanCaption'), prompt, dict(type='PackInputs')]))
train_cfg = dict(max_iters=300)
optim_wrapper = dict(optimizer=dict(lr=5e-4))

test_dataloader = dict(
    batch_size=100, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCOCaption', data_root=shapes, ann_file='annotations/karpathy_test.json', test_mode=True,
                 pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=72), prompt, dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='COCOCaptionMetric')
