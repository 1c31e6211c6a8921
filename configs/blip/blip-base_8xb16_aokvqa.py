# A-OKVQA, direct answers, by BLIP with ViT-B, fine-tuned from VQAv2; at test the answers of a list are ranked.
#   bash tools/dist_train.sh configs/blip/blip-base_8xb16_aokvqa.py 8
#   python tools/train.py configs/blip/blip-base_8xb16_aokvqa.py --auto-scale-lr
#   python tools/test.py configs/blip/blip-base_8xb16_aokvqa.py work_dirs/blip-base_8xb16_aokvqa
#   python tools/test.py configs/blip/blip-base_8xb16_aokvqa.py blip_aokvqa.pth
# Batch size and learning rate are those of 8 processes. With fewer the batch is smaller: add --auto-scale-lr.
# The last is for LAVIS's file of this training, which is got where it is nowhere here (README.md); the list of
# answers, too.
# Hardware of LAVIS's config: 8 GPUs. Data: docs/dataset_prepare.md. Expected (LAVIS's benchmarks): accuracy 56.2 on
# val; published, not run here.
# Recipe (LAVIS's config; the paper has none): 7 epochs, learning rate 2e-5 to 1e-5, weight decay 0.02.
_base_ = ['blip-base_8xb32_vqa.py']

load_from = 'work_dirs/blip-base_8xb32_vqa'
model = dict(candidates='data/aokvqa/annotations/specialized_vocab_train.json')

questions = [
    dict(type='CleanQuestion'), dict(type='VQAPrompt', template='{}', qformer_text=None, every_answer=True)]
train_dataloader = dict(batch_size=16, dataset=dict(  # 8 x 16 = 128
    _delete_=True, type='AOKVQA', data_root='data/aokvqa', ann_file='annotations/aokvqa_v1p0_train.json',
    data_prefix=dict(img_path='../coco/train2017'),
    pipeline=[dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=480, crop_ratio_range=(0.5, 1.)),
              dict(type='RandomFlip'), dict(type='RandAugment'), *questions, dict(type='PackInputs')]))
test_dataloader = dict(dataset=dict(
    _delete_=True, type='AOKVQA', data_root='data/aokvqa', test_mode=True, ann_file='annotations/aokvqa_v1p0_val.json',
    data_prefix=dict(img_path='../coco/val2017'), skip_difficult=True,  # as the benchmark's own program
    pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=480), *questions, dict(type='PackInputs')]))
test_evaluator = dict(_delete_=True, type='AOKVQAMetric')
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=0.02))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=7, eta_min=1e-5)]
train_cfg = dict(max_epochs=7)
