# BLIP, step 0: the small ViT of vision_encoder.py, with the final norm and the biases of BLIP's.
#   python tools/train.py configs/quickstart/blip_vision_encoder.py --work-dir work_dirs/quickstart/blip_vision_encoder
# Hardware: 2 CPU cores. Expected: the accuracy of its patches is logged; no figure of it.
_base_ = ['vision_encoder.py']

model = dict(vision=dict(qkv_bias='full', final_norm=True))
