# ViT-g, Q-Former without its text half, frozen OPT-6.7B in float16 (its end of text is a new line).
_base_ = ['blip2_vit-g.py']

model = dict(
    type='Blip2Generation',
    language_model=dict(
        type='CausalLM', model='facebook/opt-6.7b', dtype='float16', max_text_len=32,
        config=dict(
            model_type='opt', vocab_size=50272, max_position_embeddings=2048, num_hidden_layers=32,
            num_attention_heads=32, hidden_size=4096, word_embed_proj_dim=4096, ffn_dim=16384)),
    frozen=('vision', 'language_model'))
