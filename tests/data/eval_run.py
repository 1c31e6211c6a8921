"""Tests tiny models on one to four processes: python eval_run.py FOLDER.

Writes FOLDER/<task>_<processes>/: metrics.json, dump.json and the predictions. Of retrieval evaluations with a killed
process FOLDER/killed_<processes>/: metrics.json and the predictions after a second start with another number.
"""
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from fault_run import TEXTS, write_data
from mmengine.config import Config
from processes import finish, fork

import mmblip2.datasets
import mmblip2.evaluation
import mmblip2.models  # noqa: F401
from mmblip2.checkpoints import io
from mmblip2.datasets import COCORetrieval
from mmblip2.engine import Runner
from mmblip2.engine.evaluation_blocks import Blocks
from mmblip2.registry import MODELS

IMAGE = [dict(type='LoadImage'), dict(type='Resize', scale=16)]
PACK = [dict(type='PackInputs')]


def write_more(folder):
    """Annotations of 10 images (10, 23 questions and texts of unequal length: no number of processes divides all)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    captions = [[TEXTS[i % 4], TEXTS[(i + 1) % 4], ' and '.join(TEXTS[:1 + i % 3])][:1 + i % 3] for i in range(10)]
    (folder / 'val.json').write_text(json.dumps(
        [dict(image=f'{i}.png', caption=texts) for i, texts in enumerate(captions)]))
    questions = [dict(image=f'{i % 10}.png', question_id=i, answer=['yes', 'no', 'two'][i % 3:],
                      question='what color is ' + 'the large '[:3 + i % 8] + 'star?') for i in range(23)]
    (folder / 'vqa.json').write_text(json.dumps(questions))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=['<s>', '<pad>', '</s>'], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='</s>', eos_token='</s>',
                            pad_token='<pad>').save_pretrained(str(folder / 'opt'))


def configs(folder):
    """The test config of each task."""
    vision = dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=1, num_heads=2)
    qformer = dict(type='QFormer', vision_width=16, num_layers=1, width=16, num_heads=2, num_query=2,
                   max_positions=64, vocab_size=100, init_std=0.3)
    tokenizer = dict(type='BertTokenizer', path=str(folder / 'bert'))
    language_model = dict(type='CausalLM', tokenizer=str(folder / 'opt'), config=dict(
        model_type='opt', hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1, init_std=0.3,
        num_attention_heads=2, max_position_embeddings=96))
    generation = dict(type='Blip2Generation', vision=vision, language_model=language_model, frozen=(),
                      generation=dict(num_beams=2, max_new_tokens=5))
    files = dict(data_root=str(folder), test_mode=True)
    med = dict(type='MED', vision_width=16, num_layers=2, width=16, num_heads=2, max_positions=64, vocab_size=100,
               init_std=0.3)
    retrieval = dict(
        dataset=dict(type='COCORetrieval', ann_file='val.json', **files,
                     pipeline=IMAGE + [dict(type='CleanCaption')] + PACK),
        test_cfg=dict(type='RetrievalTestLoop', k_test=3, text_batch_size=4, block_size=1),
        metric=dict(type='RetrievalRecall'))
    return dict(
        retrieval=dict(
            model=dict(type='Blip2Representation', embed_dim=8, frozen=(), vision=vision, qformer=qformer,
                       tokenizer=tokenizer), **retrieval),
        blip=dict(
            model=dict(type='BlipRepresentation', embed_dim=8, queue_size=8, vision=dict(vision, final_norm=True),
                       text_encoder=med, tokenizer=dict(tokenizer, enc_token=True)), **retrieval),
        caption=dict(
            model=dict(generation, qformer={key: value for key, value in qformer.items() if key != 'vocab_size'}),
            dataset=dict(type='COCOCaption', ann_file='val.json', **files,
                         pipeline=IMAGE + [dict(type='CaptionPrompt')] + PACK),
            test_cfg=dict(type='TestLoop'), metric=dict(type='COCOCaptionMetric', metrics=['CIDEr'])),
        vqa=dict(
            model=dict(generation, qformer=qformer, tokenizer=tokenizer),
            dataset=dict(type='COCOVQA', question_file='vqa.json', **files,
                         pipeline=IMAGE + [dict(type='VQAPrompt')] + PACK),
            test_cfg=dict(type='TestLoop'), metric=dict(type='VQAMetric')))


def die_after_a_part():
    """Kill this process after it has written its first part with scores of pairs."""
    write = Blocks.write

    def write_and_die(self, name, content):
        write(self, name, content)
        if name.startswith('pairs'):
            os.kill(os.getpid(), signal.SIGKILL)
    Blocks.write = write_and_die


def workers_die():
    """Kill the worker of the data loader that reads image 6."""
    read, main = COCORetrieval.__getitem__, os.getpid()

    def read_or_die(self, index):
        if index == 6 and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)
    COCORetrieval.__getitem__ = read_or_die


def test(rank, folder, task, world, name=None, dies=False, workers=0):
    """One process of a test; the last one may die, or the workers of its data loader."""
    parts, work_dir = configs(folder)[task], folder / (name or f'{task}_{world}')
    if dies and rank == world - 1:
        workers_die() if workers else die_after_a_part()
    metrics = [parts['metric']]
    if parts['test_cfg']['type'] == 'TestLoop':  # the other loop writes its predictions itself
        metrics.insert(0, dict(type='DumpPredictions', out_path=str(work_dir / 'dump.json')))
    runner = Runner.from_cfg(Config(dict(
        default_scope='mmblip2', work_dir=str(work_dir), launcher='pytorch' if world > 1 else 'none',
        model=parts['model'], load_from=str(folder / f'{task}.pth'), test_cfg=parts['test_cfg'],
        test_dataloader=dict(batch_size=2, num_workers=workers, collate_fn=dict(type='pseudo_collate'),
                             sampler=dict(type='DefaultSampler', shuffle=False), dataset=parts['dataset']),
        test_evaluator=metrics, randomness=dict(seed=1))))
    try:
        result = runner.test()
    except RuntimeError as error:
        (folder / f'{work_dir.name}.txt').write_text(str(error))
        raise
    if rank == 0:
        (work_dir / 'metrics.json').write_text(json.dumps(result, sort_keys=True))


def main():
    folder = Path(sys.argv[1])
    write_data(folder)
    write_more(folder)
    from mmengine.registry import DefaultScope
    for task, parts in configs(folder).items():
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmblip2'):
            model = MODELS.build(parts['model'])
        io.write_checkpoint(dict(format=io.FORMAT, meta={}, state_dict=io.saved_state(model)), folder / f'{task}.pth')
    for world in (1, 2, 3, 4):
        for task in configs(folder):
            if task == 'blip' and world > 2:
                continue
            assert not any(finish(fork(world, test, folder, task, world))), (task, world)
    assert any(finish(fork(1, test, folder, 'retrieval', 1, 'killed_worker', True, 1)))
    time.sleep(1.1)  # logs are named by the second
    assert not any(finish(fork(1, test, folder, 'retrieval', 1, 'killed_worker', False, 1)))
    for world, later in ((1, 3), (2, 1)):
        name = f'killed_{world}'
        assert any(finish(fork(world, test, folder, 'retrieval', world, name, True)))
        assert list((folder / name).glob('retrieval_blocks/*/pairs*')) and not (folder / name / 'predictions').exists()
        assert not any(finish(fork(later, test, folder, 'retrieval', later, name)))


if __name__ == '__main__':
    main()
