# ViT-g, Q-Former without its text half, frozen Flan-T5-XXL in bfloat16 (T5 overflows in float16).
_base_ = ['blip2_vit-g.py']

model = dict(
    type='Blip2Generation',
    language_model=dict(
        type='Seq2SeqLM', model='google/flan-t5-xxl', dtype='bfloat16', max_text_len=32,
        config=dict(
            model_type='t5', vocab_size=32128, num_layers=24, num_decoder_layers=24, d_kv=64,
            feed_forward_proj='gated-gelu', dense_act_fn='gelu',  # as LAVIS; the hub's has gelu_new
            tie_word_embeddings=False,  # an output layer of its own, without T5's division by sqrt(d_model) before it
            d_model=4096, num_heads=64, d_ff=10240)),
    frozen=('vision', 'language_model'))
