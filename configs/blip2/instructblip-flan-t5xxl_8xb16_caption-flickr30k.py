# InstructBLIP with Flan-T5-XXL: BLIP-2's stage 2 whose Q-Former reads the instruction, too. Captions of Flickr30K.
#   python tools/test.py \
#       configs/blip2/instructblip-flan-t5xxl_8xb16_caption-flickr30k.py instruct_blip_flanxxl_trimmed.pth
#   bash tools/dist_test.sh configs/blip2/instructblip-flan-t5xxl_8xb16_caption-flickr30k.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, transformers' folder or name on the hub (Salesforce/instructblip-flan-t5-xxl), or what this package wrote.
# Expected (InstructBLIP paper, arXiv 2305.06500, table 1): CIDEr 83.5 on Flickr30K test, 120.0 on NoCaps; published,
# not run here.
_base_ = ['instructblip-flan-t5xl_8xb16_caption-flickr30k.py']

model = dict(language_model=dict(model='google/flan-t5-xxl', config=dict(d_model=4096, num_heads=64, d_ff=10240)))
