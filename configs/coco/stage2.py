# Stage 2 on COCO captions, with the pre-trained parts of configs/flickr8k; see configs/coco/stage1.py for the data.
#   python tools/train.py configs/coco/stage2.py --work-dir work_dirs/coco/stage2
#   python tools/test.py configs/coco/stage2.py work_dirs/coco/stage2
# Hardware: 2 CPU cores. Expected: nothing published, and not measured; a few steps and an evaluation were run on
# 80 and 159 photos, to see that the files are read.
# Without the feature cache of configs/flickr8k: of the training images it would take 55 GiB.
_base_ = ['../flickr8k/stage2.py']
coco = '{{$MMBLIP2_COCO:data/coco}}'

load_from = 'work_dirs/coco/stage1'
train_dataloader = dict(dataset=dict(
    data_root=coco, ann_file='annotations/captions_train2017.json', data_prefix=dict(img_path='train2017'),
    feature_cache=None))
test_dataloader = dict(dataset=dict(
    data_root=coco, ann_file='annotations/captions_val2017.json', data_prefix=dict(img_path='val2017'),
    feature_cache=None))
