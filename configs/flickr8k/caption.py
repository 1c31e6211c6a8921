# Caption fine-tuning on Flickr8k: stage 2 goes on at a low learning rate.
#   python tools/train.py configs/flickr8k/caption.py --work-dir work_dirs/flickr8k/caption
#   python tools/test.py configs/flickr8k/caption.py work_dirs/flickr8k/caption
# Hardware: 2 CPU cores. Expected: not measured; two iterations were run with the real parts.
_base_ = ['stage2.py']

load_from = '{{$MMBLIP2_FLICKR8K_WORK:work_dirs/flickr8k}}/stage2'
model = dict(qformer=dict(bert=None))  # stage 2 brings it
train_cfg = dict(max_iters=400)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
