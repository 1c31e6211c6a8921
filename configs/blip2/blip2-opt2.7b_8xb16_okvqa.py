# Zero-shot question answering on OK-VQA val, which is its test, by the published stage 2 with OPT-2.7B.
#   python tools/test.py configs/blip2/blip2-opt2.7b_8xb16_okvqa.py blip2_pretrained_opt2.7b.pth
#   bash tools/dist_test.sh configs/blip2/blip2-opt2.7b_8xb16_okvqa.py CHECKPOINT 8
# Hardware: 8 GPUs, 16 images each at a time, as the name says. Data: docs/dataset_prepare.md.
# The first command gets LAVIS's file where it is nowhere here (places: README.md). CHECKPOINT is that file,
# transformers' folder or name on the hub (Salesforce/blip2-opt-2.7b), or what this package wrote.
# Expected (paper, table 2): accuracy 31.7; published, not run here. LAVIS scores lemmas of the answers: with spaCy and
# its model en_core_web_sm installed, add --cfg-options +test_evaluator.lemmatise=True
_base_ = ['blip2-opt2.7b_8xb16_vqa.py']

test_dataloader = dict(dataset=dict(  # images and their names are those of VQAv2
    question_file='../okvqa/annotations/OpenEnded_mscoco_val2014_questions.json',
    ann_file='../okvqa/annotations/mscoco_val2014_annotations.json'))
