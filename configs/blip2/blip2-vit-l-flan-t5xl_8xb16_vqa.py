# Zero-shot question answering on VQAv2 val by the published stage 2 with ViT-L and Flan-T5-XL.
#   python tools/test.py configs/blip2/blip2-vit-l-flan-t5xl_8xb16_vqa.py blip2_pretrained_flant5xl_vitL.pth
#   bash tools/dist_test.sh configs/blip2/blip2-vit-l-flan-t5xl_8xb16_vqa.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, or what this package wrote.
# Expected (paper, table 2): accuracy 62.6 on val, 62.3 on test-dev, OK-VQA 39.4, GQA 44.4; published, not run here.
_base_ = ['blip2-flan-t5xl_8xb16_vqa.py']

model = dict(
    vision=dict(  # as in _base_/models/blip2_vit-l.py
        width=1024, depth=23, mlp_width=4096, eps=1e-5, activation='quick_gelu', pre_norm=True, qkv_bias='full',
        patch_bias=False, weights='data/pretrained/clip_vit_L.pth'),
    qformer=dict(vision_width=1024))
