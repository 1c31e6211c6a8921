# Step 2: generative learning, vision encoder and language model frozen; evaluated by captioning.
#   python tools/train.py configs/quickstart/stage2.py --work-dir work_dirs/quickstart/stage2
#   python tools/test.py configs/quickstart/stage2.py work_dirs/quickstart/stage2
# Hardware: 2 CPU cores. Expected (measured by `make demo`, README.md), test split: CIDEr 331.9.
_base_ = [
    '../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py',
    '../_base_/models/blip2_quickstart.py'
]
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'
quickstart = '{{$MMBLIP2_QUICKSTART:work_dirs/quickstart}}'
evaluation_pipeline = [
    dict(type='LoadImage'), dict(type='Resize', scale=72), dict(type='CaptionPrompt', prompt='a photo of'),
    dict(type='PackInputs')]

load_from = quickstart + '/stage1'  # the text half and the heads are dropped, and the log says so
model = dict(
    type='Blip2Generation',
    language_model=dict(
        type='CausalLM',
        config=dict(model_type='opt', hidden_size=128, word_embed_proj_dim=128, ffn_dim=512, num_hidden_layers=4,
                    num_attention_heads=4, max_position_embeddings=96, dropout=0., init_std=0.06),
        weights=quickstart + '/language_model', tokenizer=shapes + '/tokenizers/opt', max_text_len=64,
        attention='eager'),
    frozen=('vision', 'language_model'),
    generation=dict(num_beams=3, max_new_tokens=40))

train_dataloader = dict(
    batch_size=32, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(
        type='COCOCaption', data_root=shapes, ann_file='annotations/karpathy_train.json',
        pipeline=[dict(type='LoadImage'), dict(type='CleanCaption'), dict(type='CaptionPrompt', prompt='a photo of'),
                  dict(type='PackInputs')]))
train_cfg = dict(max_iters=700)

val_dataloader = dict(
    batch_size=100, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCOCaption', data_root=shapes, ann_file='annotations/karpathy_val.json', test_mode=True,
                 pipeline=evaluation_pipeline))
test_dataloader = dict(
    batch_size=100, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCOCaption', data_root=shapes, ann_file='annotations/karpathy_test.json', test_mode=True,
                 pipeline=evaluation_pipeline))
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='COCOCaptionMetric')
test_evaluator = dict(type='COCOCaptionMetric')
