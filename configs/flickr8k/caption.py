# Caption fine-tuning on Flickr8k: stage 2 goes on, and the language model, whose weights stay frozen, learns low-rank
# matrices beside them (LoRA, needs peft).
#   python tools/train.py configs/flickr8k/caption.py --work-dir work_dirs/flickr8k/caption
#   python tools/test.py configs/flickr8k/caption.py work_dirs/flickr8k/caption
# Hardware: 2 CPU cores, 43 minutes. Expected (measured with the commands above), val split: CIDEr 39.6, BLEU-4 16.7.
_base_ = ['stage2.py']

load_from = '{{$MMBLIP2_FLICKR8K_WORK:work_dirs/flickr8k}}/stage2'
model = dict(
    qformer=dict(bert=None),  # stage 2 brings it
    language_model=dict(lora=dict(
        r=16, alpha=32, targets=['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'])))
train_cfg = dict(max_iters=900)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, eta_min=1e-5),
]
