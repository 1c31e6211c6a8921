# Step 3: visual question answering, language model frozen, the question read by the Q-Former, too.
#   python tools/train.py configs/quickstart/vqa.py --work-dir work_dirs/quickstart/vqa
#   python tools/test.py configs/quickstart/vqa.py work_dirs/quickstart/vqa
# Hardware: 2 CPU cores. Expected (measured by `make demo`, README.md), test split: accuracy 69.2.
_base_ = [
    '../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py',
    '../_base_/models/blip2_quickstart.py'
]
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'
quickstart = '{{$MMBLIP2_QUICKSTART:work_dirs/quickstart}}'
question = [dict(type='CleanQuestion'), dict(type='VQAPrompt', template='Question: {} Answer:', qformer_text='{}')]

load_from = [  # the text half of the Q-Former from stage 1, everything else from stage 2
    dict(checkpoint=quickstart + '/stage1'),
    dict(checkpoint=quickstart + '/stage2'),
]
model = dict(
    type='Blip2Generation',
    qformer=dict(vocab_size=400),
    tokenizer=dict(type='BertTokenizer', path=shapes + '/tokenizers/bert'),
    language_model=dict(
        type='CausalLM',
        config=dict(model_type='opt', hidden_size=128, word_embed_proj_dim=128, ffn_dim=512, num_hidden_layers=4,
                    num_attention_heads=4, max_position_embeddings=96, dropout=0., init_std=0.06),
        weights=quickstart + '/language_model', tokenizer=shapes + '/tokenizers/opt', max_text_len=64,
        attention='eager'),
    frozen=('vision', 'language_model'),
    generation=dict(num_beams=3, max_new_tokens=8, length_penalty=-1.))

train_dataloader = dict(
    batch_size=32, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(
        type='COCOVQA', data_root=shapes, question_file='annotations/questions_train.json',
        ann_file='annotations/answers_train.json', data_prefix=dict(img_path='train'),
        pipeline=[dict(type='LoadImage'), *question, dict(type='PackInputs')]))
train_cfg = dict(max_iters=1700)
optim_wrapper = dict(optimizer=dict(lr=5e-4))

val_dataloader = dict(
    batch_size=200, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCOVQA', data_root=shapes, question_file='annotations/questions_val.json',
        ann_file='annotations/answers_val.json', data_prefix=dict(img_path='val'), test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=72), *question, dict(type='PackInputs')]))
test_dataloader = dict(
    batch_size=200, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCOVQA', data_root=shapes, question_file='annotations/questions_test.json',
        ann_file='annotations/answers_test.json', data_prefix=dict(img_path='test'), test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=72), *question, dict(type='PackInputs')]))
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='VQAMetric')
test_evaluator = dict(type='VQAMetric')
