# The parts of the quickstart's BLIP-2, small enough to be trained on two CPU cores in minutes.
# Pictures are 72 px and show a 3 x 3 grid of regions; a patch is a region, so the ViT has ten tokens.
quickstart = '{{$MMBLIP2_QUICKSTART:work_dirs/quickstart}}'
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'

model = dict(
    data_preprocessor=dict(type='ImageTextPreprocessor'),
    vision=dict(
        type='VisionTransformer', image_size=72, patch_size=24, width=128, depth=4, num_heads=4,
        weights=quickstart + '/vision_encoder'),
    qformer=dict(
        type='QFormer', vision_width=128, num_layers=4, width=128, num_heads=4, num_query=12,
        cross_attention_freq=1, max_positions=32, dropout=0.,
        init_std=0.06))  # 0.02, made for widths of 768, delays the learning of so narrow a model several times over
