# InstructBLIP with Vicuna-13B: BLIP-2's stage 2 whose Q-Former reads the instruction, too. Captions of Flickr30K.
#   python tools/test.py \
#       configs/blip2/instructblip-vicuna13b_8xb16_caption-flickr30k.py instruct_blip_vicuna13b_trimmed.pth
#   bash tools/dist_test.sh configs/blip2/instructblip-vicuna13b_8xb16_caption-flickr30k.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, transformers' folder or name on the hub (Salesforce/instructblip-vicuna-13b), or what this package wrote.
# Expected (InstructBLIP paper, arXiv 2305.06500, table 1): CIDEr 82.8 on Flickr30K test, 121.9 on NoCaps; published,
# not run here.
_base_ = ['instructblip-vicuna7b_8xb16_caption-flickr30k.py']

model = dict(
    language_model=dict(
        model='lmsys/vicuna-13b-v1.1',
        config=dict(num_hidden_layers=40, num_attention_heads=40, hidden_size=5120, intermediate_size=13824)))
