# BLIP, step 3 with ranked answers: the weights of blip_vqa.py, and the 32 answers of the train split to choose from.
#   python tools/test.py configs/quickstart/blip_vqa_rank.py work_dirs/quickstart/blip_vqa
# Hardware: 2 CPU cores.
_base_ = ['blip_vqa.py']

model = dict(
    candidates=[
        'yes', 'no', '0', '1', '2', '3', '4', 'small', 'large', 'circle', 'square', 'triangle', 'star', 'cross',
        'diamond', 'red', 'green', 'blue', 'yellow', 'purple', 'cyan', 'white', 'black', 'top left', 'top',
        'top right', 'left', 'center', 'right', 'bottom left', 'bottom', 'bottom right'],
    rank_topk=8)
