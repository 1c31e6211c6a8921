# Zero-shot question answering on VQAv2 val by the published stage 2 with OPT-6.7B.
#   python tools/test.py configs/blip2/blip2-opt6.7b_8xb16_vqa.py blip2_pretrained_opt6.7b.pth
#   bash tools/dist_test.sh configs/blip2/blip2-opt6.7b_8xb16_vqa.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, transformers' folder or name on the hub (Salesforce/blip2-opt-6.7b), or what this package wrote.
# Expected (paper, table 2): accuracy 54.3 on val, 52.6 on test-dev, OK-VQA 36.4, GQA 36.4; published, not run here.
_base_ = ['blip2-opt2.7b_8xb16_vqa.py']

model = dict(
    language_model=dict(
        model='facebook/opt-6.7b', config=dict(hidden_size=4096, word_embed_proj_dim=4096, ffn_dim=16384)))
