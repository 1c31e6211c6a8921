# InstructBLIP with Vicuna-7B: BLIP-2's stage 2 whose Q-Former reads the instruction, too. Captions of Flickr30K.
#   python tools/test.py \
#       configs/blip2/instructblip-vicuna7b_8xb16_caption-flickr30k.py instruct_blip_vicuna7b_trimmed.pth
#   bash tools/dist_test.sh configs/blip2/instructblip-vicuna7b_8xb16_caption-flickr30k.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is
# that file, transformers' folder or name on the hub (Salesforce/instructblip-vicuna-7b), or what this package wrote.
# Expected (InstructBLIP paper, arXiv 2305.06500, table 1): CIDEr 82.4 on Flickr30K test, 123.1 on NoCaps; published,
# not run here. LAVIS issue 719 measures 83.1 on Flickr30K with the prompt "A short image caption." and 60.9 with a
# colon at the end of the paper's prompt.
_base_ = ['../_base_/models/blip2_vit-g.py', '../_base_/default_runtime.py']
instruction = 'A short image description.'

model = dict(
    type='Blip2Generation',
    qformer=dict(vocab_size=30523),
    tokenizer=dict(type='BertTokenizer', path='data/pretrained/bert-base-uncased'),
    max_text_len=128,  # of what the Q-Former reads; LAVIS cuts a longer one on the left, this on the right
    language_model=dict(
        type='CausalLM', model='lmsys/vicuna-7b-v1.1', dtype='float16', ending='</s>',
        max_text_len=384,  # LAVIS: 128 of the instruction and 256 of the answer
        config=dict(
            model_type='llama', vocab_size=32000, max_position_embeddings=2048, num_hidden_layers=32,
            num_attention_heads=32, hidden_size=4096, intermediate_size=11008)),
    frozen=('vision', 'language_model'),
    generation=dict(num_beams=5, max_new_tokens=256, repetition_penalty=1.5))

test_dataloader = dict(
    batch_size=16, num_workers=8, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='COCOCaption', data_root='data/flickr30k', ann_file='annotations/flickr30k_test.json', test_mode=True,
        pipeline=[dict(type='LoadImage'), dict(type='Resize', scale=224),
                  dict(type='CaptionPrompt', prompt=instruction, qformer_text=instruction), dict(type='PackInputs')]))
test_cfg = dict(type='TestLoop', autocast='float16')
test_evaluator = dict(type='COCOCaptionMetric')
