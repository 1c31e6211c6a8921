# CLIP's ViT-L/14 without its last block, and a Q-Former that reads it (paper, section 3.1 and 4).
# data/pretrained/clip_vit_L.pth: see configs/blip2/README.md. A leaf adds the type and, in stage 2, a language model.
model = dict(
    data_preprocessor=dict(type='ImageTextPreprocessor'),  # CLIP's mean and standard deviation
    vision=dict(
        type='VisionTransformer', image_size=224, patch_size=14, width=1024, depth=23, num_heads=16, mlp_width=4096,
        eps=1e-5, activation='quick_gelu', pre_norm=True, qkv_bias='full', patch_bias=False,
        weights='data/pretrained/clip_vit_L.pth'),
    qformer=dict(
        type='QFormer', vision_width=1024, num_layers=12, width=768, num_heads=12, mlp_width=3072, num_query=32,
        cross_attention_freq=2, max_positions=512, dropout=0.1))
