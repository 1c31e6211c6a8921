# ViT-B/16 of BLIP (paper, section 4.1): a full bias, a final norm. A leaf adds the type and BLIP's text transformers.
# data/pretrained/...: see configs/blip/README.md.
model = dict(
    data_preprocessor=dict(type='ImageTextPreprocessor'),  # CLIP's mean and standard deviation
    vision=dict(
        type='VisionTransformer', image_size=384, patch_size=16, width=768, depth=12, num_heads=12, mlp_width=3072,
        eps=1e-6, qkv_bias='full', final_norm=True),
    tokenizer=dict(type='BertTokenizer', path='data/pretrained/bert-base-uncased', enc_token=True))
