# Retrieval fine-tuning on Flickr8k: the losses of stage 1 go on at a low learning rate.
#   python tools/train.py configs/flickr8k/retrieval.py --work-dir work_dirs/flickr8k/retrieval
#   python tools/test.py configs/flickr8k/retrieval.py work_dirs/flickr8k/retrieval
# Hardware: 2 CPU cores. Expected: not measured; two iterations were run with the real parts.
_base_ = ['stage1.py']

load_from = 'work_dirs/flickr8k/stage1'
model = dict(qformer=dict(bert=None))  # stage 1 brings it
train_cfg = dict(max_iters=300)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
