# Step 0a: a small language model of the OPT architecture learns the texts of the train split, without pictures.
# Each text stands behind a description of its scene, so that the model learns to heed what is before a text.
#   python tools/train.py configs/quickstart/language_model.py --work-dir work_dirs/quickstart/language_model
# Hardware: 2 CPU cores. Expected: no metric of its own, it is judged by what stage2.py and vqa.py reach with it.
_base_ = ['../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine_iter.py']
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'

model = dict(
    type='LanguagePretraining',
    language_model=dict(
        type='CausalLM',
        config=dict(model_type='opt', hidden_size=128, word_embed_proj_dim=128, ffn_dim=512, num_hidden_layers=4,
                    num_attention_heads=4, max_position_embeddings=96, dropout=0., init_std=0.06),
        tokenizer=shapes + '/tokenizers/opt', max_text_len=64, attention='eager'))

train_dataloader = dict(
    batch_size=32, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(type='TextCorpus', data_root=shapes, ann_file='annotations/documents_train.txt',
                 pipeline=[dict(type='PackInputs')]))
train_cfg = dict(max_iters=1000)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
