# Stage 2 on Flickr8k: a Q-Former speaks through a frozen SmolLM2-135M-Instruct; evaluated by captioning
# on the val split (1,000 images, five references each).
#   python tools/train.py configs/flickr8k/stage2.py --work-dir work_dirs/flickr8k/stage2
#   python tools/test.py configs/flickr8k/stage2.py work_dirs/flickr8k/stage2
# The Q-Former starts from MiniLM, not from stage 1, after which its 16 queries say the same (README.md). Each of the 8
# images of an iteration is read once for its five captions.
# Hardware: 2 CPU cores, 55 minutes. Expected (measured with the commands above), val split: CIDEr 30.9, BLEU-4 14.5;
# caption.py goes on from there.
_base_ = [
    '../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py',
    '../_base_/models/blip2_flickr8k.py'
]

data_root = '{{$MMBLIP2_FLICKR8K:data/flickr8k}}'
model = dict(
    type='Blip2Generation',
    language_model=dict(
        type='CausalLM', model='data/pretrained/smollm2', dtype='bfloat16', add_special_tokens=False,
        max_text_len=32, attention='eager',
        config=dict(
            model_type='llama', vocab_size=49152, max_position_embeddings=8192, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, hidden_size=576, intermediate_size=1536,
            tie_word_embeddings=True)),
    frozen=('vision', 'language_model'),
    generation=dict(num_beams=5, max_new_tokens=20, length_penalty=0.))  # by val: captions of 1 are too long

train_dataloader = dict(
    batch_size=8, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(
        type='COCOCaption', data_root=data_root, ann_file='annotations/karpathy_train.json',
        captions_per_image=5, feature_cache=dict(dir='data/features', views=4),
        pipeline=[dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=320), dict(type='RandomFlip'),
                  dict(type='CleanCaption'), dict(type='CaptionPrompt', prompt='a photo of'),
                  dict(type='PackInputs')]))
train_cfg = dict(max_iters=1300)
# At 5e-4 the Q-Former's BERT layers forget the image while the projection learns how captions are written.
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(custom_keys={'qformer': dict(lr_mult=0.2), 'cross_attention': dict(lr_mult=1.)}))
default_hooks = dict(checkpoint=dict(interval=200), logger=dict(interval=20))

test_dataloader = dict(
    batch_size=50, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCOCaption', data_root=data_root, ann_file='annotations/karpathy_val.json', test_mode=True,
        feature_cache=dict(dir='data/features'),
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=320),
                  dict(type='CaptionPrompt', prompt='a photo of'), dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='COCOCaptionMetric')
