# Zero-shot question answering on VQAv2 val by the published stage 2 with Flan-T5-XXL.
#   python tools/test.py configs/blip2/blip2-flan-t5xxl_8xb16_vqa.py blip2_pretrained_flant5xxl.pth
#   bash tools/dist_test.sh configs/blip2/blip2-flan-t5xxl_8xb16_vqa.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, transformers' folder or name on the hub (Salesforce/blip2-flan-t5-xxl), or what this package wrote.
# Expected (paper, table 2): accuracy 65.2 on val, 65.0 on test-dev, OK-VQA 45.9, GQA 44.7; published, not run here.
_base_ = ['blip2-flan-t5xl_8xb16_vqa.py']

model = dict(language_model=dict(model='google/flan-t5-xxl', config=dict(d_model=4096, num_heads=64, d_ff=10240)))
