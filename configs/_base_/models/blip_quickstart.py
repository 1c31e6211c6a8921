# The parts of the quickstart's BLIP, small enough to be trained on two CPU cores in minutes: the ViT of its BLIP-2 with
# the final norm and the biases of BLIP, and two MEDs, of which the decoder reads patches or the states of the encoder.
quickstart = '{{$MMBLIP2_QUICKSTART:work_dirs/quickstart}}'
shapes = '{{$MMBLIP2_SHAPES:data/shapes}}'
med = dict(
    type='MED', vision_width=128, num_layers=4, width=128, num_heads=4, vocab_size=400, max_positions=64, dropout=0.,
    init_std=0.06)  # 0.02, made for widths of 768, delays the learning of so narrow a model several times over

model = dict(
    data_preprocessor=dict(type='ImageTextPreprocessor'),
    vision=dict(
        type='VisionTransformer', image_size=72, patch_size=24, width=128, depth=4, num_heads=4, qkv_bias='full',
        final_norm=True),
    text_encoder=med,
    text_decoder=med,
    tokenizer=dict(type='BertTokenizer', path=shapes + '/tokenizers/bert', enc_token=True))
del med
