# EVA-CLIP's ViT-g/14 without its last block, and a Q-Former that reads it (paper, section 3.1 and 4).
# data/pretrained/eva_vit_g.pth: see configs/blip2/README.md. A leaf adds the type and, in stage 2, a language model.
model = dict(
    data_preprocessor=dict(type='ImageTextPreprocessor'),  # CLIP's mean and standard deviation
    vision=dict(
        type='VisionTransformer', image_size=224, patch_size=14, width=1408, depth=39, num_heads=16, mlp_width=6144,
        eps=1e-6, weights='data/pretrained/eva_vit_g.pth'),
    qformer=dict(
        type='QFormer', vision_width=1408, num_layers=12, width=768, num_heads=12, mlp_width=3072, num_query=32,
        cross_attention_freq=2, max_positions=512, dropout=0.1))
