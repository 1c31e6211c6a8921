# InstructBLIP with Flan-T5-XL: BLIP-2's stage 2 whose Q-Former reads the instruction, too. Captions of Flickr30K.
#   python tools/test.py \
#       configs/blip2/instructblip-flan-t5xl_8xb16_caption-flickr30k.py instruct_blip_flanxl_trimmed.pth
#   bash tools/dist_test.sh configs/blip2/instructblip-flan-t5xl_8xb16_caption-flickr30k.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, transformers' folder or name on the hub (Salesforce/instructblip-flan-t5-xl), or what this package wrote.
# Expected (InstructBLIP paper, arXiv 2305.06500, table 1): CIDEr 84.5 on Flickr30K test, 119.9 on NoCaps; published,
# not run here.
_base_ = ['../_base_/models/blip2-flan-t5xl.py', '../_base_/default_runtime.py']
instruction = 'A short image description.'

model = dict(
    qformer=dict(vocab_size=30523),
    tokenizer=dict(type='BertTokenizer', path='data/pretrained/bert-base-uncased'),
    max_text_len=128,  # of what the Q-Former reads; LAVIS cuts a longer one on the left, this on the right
    language_model=dict(max_text_len=256),  # LAVIS: 128 of the instruction and 256 of the answer
    generation=dict(num_beams=5, max_new_tokens=256, repetition_penalty=1.5))

test_dataloader = dict(
    batch_size=16, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCOCaption', data_root='data/flickr30k', ann_file='annotations/flickr30k_test.json', test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=224),
                  dict(type='CaptionPrompt', prompt=instruction, qformer_text=instruction), dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop', autocast='bfloat16')
test_evaluator = dict(type='COCOCaptionMetric')
