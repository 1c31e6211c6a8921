"""Small files in the layouts that the shipped configs read, below the paths that they and the READMEs of configs/
name."""
import importlib.util
import json
from pathlib import Path

import numpy as np
from PIL import Image

TOOLS = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
CAPTIONS = ['Two green stars above one cross.', 'There are three objects', 'a small red circle']
QUESTIONS = [('What color is the star?', 'other', ['green'] * 8 + ['blue'] * 2),
             ('How many objects?', 'number', ['three'] * 10), ('Is it red?', 'yes/no', ['no'] * 9 + ['yes'])]
PROMPTS = ['a photo of', 'a picture of', 'Question: {} Answer:', 'Question: {} Short answer:',
           'A short image description.']


def load_tool(name):
    """A module of tools/dataset_converters."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_data(root):
    """Fill ``root / 'data'``: a training epoch has eight samples or no end, an evaluation five (VQA, NoCaps: three)."""
    writer = _Writer(root / 'data')
    writer.karpathy_coco()
    writer.official_coco()
    writer.vqa()
    writer.benchmarks()
    writer.flickr()
    writer.nlvr2()
    writer.web()
    load_tool('make_shapes').main(
        ['--out', str(root / 'data' / 'shapes'), '--train', '24', '--val', '5', '--test', '5'])


def write_tokenizers(root):
    """A WordPiece and a byte-level BPE of the generated texts.

    Returns:
        tuple[str, str]: Their folders.
    """
    trainer = load_tool('train_tokenizers')
    texts = [*CAPTIONS, *PROMPTS, *(question for question, _, _ in QUESTIONS)] * 10
    annotations = root / 'data' / 'shapes' / 'annotations'
    for name in ('corpus_train.txt', 'documents_train.txt'):
        texts += (annotations / name).read_text().splitlines()
    for name, train in (('bert', trainer.train_bert), ('language', trainer.train_opt)):
        (root / name).mkdir()
        train(texts, root / name, 400)
    return str(root / 'bert'), str(root / 'language')


class _Writer:

    def __init__(self, root):
        self.root = root
        self.rng = np.random.default_rng(0)

    def images(self, folder, template, number):
        """Write images; their names below ``folder``."""
        names = [template.format(i + 1) for i in range(number)]
        for name in names:
            path = self.root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
        return names

    def write(self, path, content):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(map(json.dumps, content)) if path.suffix == '.jsonl' else json.dumps(content))

    def karpathy_coco(self):
        """LAVIS's lists of COCO: a caption a row in training, all captions of an image in evaluation."""
        names = self.images('coco', 'val2014/COCO_val2014_{:012d}.jpg', 5)
        self.write('coco/annotations/coco_karpathy_train.json', [
            dict(image=name, caption=caption, image_id=f'coco_{i + 1}')
            for i, name in enumerate(names[:4]) for caption in CAPTIONS[:2]])
        for split in ('val', 'test'):
            self.write(f'coco/annotations/coco_karpathy_{split}.json',
                       [dict(image=name, caption=CAPTIONS) for name in names])

    def official_coco(self):
        """COCO's own caption files of 2017."""
        for split, number in (('train', 4), ('val', 5)):
            names = self.images(f'coco/{split}2017', '{:012d}.jpg', number)
            pairs = [(i + 1, caption) for i in range(number) for caption in CAPTIONS[:2]]
            self.write(f'coco/annotations/captions_{split}2017.json', dict(
                info={}, licenses=[],
                images=[dict(id=i + 1, file_name=name, height=20, width=24, license=1, date_captured='',
                             coco_url=f'http://images.cocodataset.org/{split}2017/{name}')
                        for i, name in enumerate(names)],
                annotations=[dict(id=100 + k, image_id=i, caption=caption) for k, (i, caption) in enumerate(pairs)]))

    def vqa(self):
        """VQAv2 as published, without answers for test-dev, and LAVIS's list of Visual Genome."""
        for split, year in (('train', 2014), ('val', 2014), ('test', 2015)):
            self.images('coco', f'{split}{year}/COCO_{split}{year}_' + '{:012d}.jpg', 3)
            name = f'{split}{"-dev" if split == "test" else ""}{year}'
            self.write(f'coco/annotations/v2_OpenEnded_mscoco_{name}_questions.json', dict(
                info={}, task_type='Open-Ended', data_type='mscoco', data_subtype=name, license={},
                questions=[dict(question_id=1000 * (i + 1), image_id=i + 1, question=question)
                           for i, (question, _, _) in enumerate(QUESTIONS)]))
            if split != 'test':
                self.write(f'coco/annotations/v2_mscoco_{name}_annotations.json', dict(
                    info={}, data_type='mscoco', data_subtype=name, license={}, annotations=[
                        dict(question_id=1000 * (i + 1), image_id=i + 1, question_type='what', answer_type=kind,
                             multiple_choice_answer=answers[0], answers=[
                                 dict(answer=answer, answer_confidence='yes', answer_id=k + 1)
                                 for k, answer in enumerate(answers)])
                        for i, (_, kind, answers) in enumerate(QUESTIONS)]))
        genome = self.images('visual_genome', '{}.jpg', 2)
        self.write('visual_genome/annotations/vg_caption.json',
                   [dict(image=name, caption=CAPTIONS[0]) for name in genome])
        self.write('visual_genome/annotations/vg_qa.json', [
            dict(image=name, question=QUESTIONS[1][0], answer='three', dataset='vg') for name in genome])

    def benchmarks(self):
        """OK-VQA and A-OKVQA on images of COCO, GQA, NoCaps: as published."""
        asked = {'train': [QUESTIONS[i % 3] for i in range(8)], 'val': QUESTIONS}
        folder = 'okvqa/annotations'
        for split, questions in asked.items():
            rows = [dict(question_id=10 * (i + 1), image_id=i % 3 + 1, question=question)
                    for i, (question, _, _) in enumerate(questions)]
            self.write(f'{folder}/OpenEnded_mscoco_{split}2014_questions.json', dict(questions=rows))
            self.write(f'{folder}/mscoco_{split}2014_annotations.json', dict(annotations=[
                dict(row, answer_type='other', question_type=kind, answers=[
                    dict(answer=answer, raw_answer=answer, answer_confidence='yes', answer_id=k + 1)
                    for k, answer in enumerate(answers)])
                for i, (row, (_, _, answers)) in enumerate(zip(rows, questions))
                for kind in ['two' if i else 'one']]))
            self.write(f'aokvqa/annotations/aokvqa_v1p0_{split}.json', [
                dict(row, split=split, question_id=f'q{row["question_id"]}', choices=['a', 'b', 'c', 'd'],
                     correct_choice_idx=0, direct_answers=answers, difficult_direct_answer=difficult, rationales=[])
                for row, (_, _, answers), difficult in zip(
                    [*rows, dict(rows[0], question_id=99)], [*questions, questions[0]],
                    [False] * len(rows) + [split == 'val'])][:8])
        for path in ('coco/annotations/answer_list.json', f'{folder}/okvqa_answer_list_train.json',
                     'aokvqa/annotations/specialized_vocab_train.json'):
            self.write(path, ['green', 'blue', 'three', 'yes', 'no'])
        names = self.images('gqa/images', 'n{}.jpg', 3)
        self.write('gqa/annotations/testdev_balanced_questions.json', {
            str(i): dict(imageId=Path(name).stem, question=question, answer=answers[0], fullAnswer='It is so.',
                         isBalanced=True, types=dict(structural=kind, semantic='attr', detailed='color'))
            for i, (name, (question, _, answers), kind) in enumerate(
                zip(names, QUESTIONS, ('query', 'query', 'verify')))})
        names = self.images('nocaps/val', '{:016x}.jpg', 3)
        self.write('nocaps/annotations/nocaps_val_4500_captions.json', dict(
            info={}, licenses=[],
            images=[dict(id=i, file_name=name, open_images_id=Path(name).stem, domain=domain, license=0, height=20,
                         width=24, coco_url=f'https://nocaps.s3.amazonaws.com/val/{name}')
                    for i, (name, domain) in enumerate(zip(names, ('in-domain', 'near-domain', 'out-domain')))],
            annotations=[dict(id=3 * i + k, image_id=i, caption=caption)
                         for i in range(3) for k, caption in enumerate(CAPTIONS)]))

    def flickr(self):
        """Flickr30k's test list as LAVIS's, and Flickr8k as prepare_flickr8k.py leaves it."""
        names = self.images('flickr30k', 'flickr30k-images/{}.jpg', 5)
        for split in ('val', 'test'):
            self.write(f'flickr30k/annotations/flickr30k_{split}.json',
                       [dict(image=name, caption=CAPTIONS) for name in names])
        self.write('flickr30k/annotations/flickr30k_train.json', [
            dict(image=name, caption=caption, image_id=f'flickr_{i}')
            for i, name in enumerate(names[:4]) for caption in CAPTIONS[:2]])
        for split, number in (('train', 4), ('val', 5)):
            names = self.images('flickr8k', f'images/{split}' + '{}_ab.jpg', number)
            rows = [dict(image=name, caption=[f'{text} .' for text in CAPTIONS], image_id=Path(name).stem)
                    for name in names]
            if split == 'train':
                rows = [dict(row, caption=text) for row in rows for text in row['caption']]
            self.write(f'flickr8k/annotations/karpathy_{split}.json', rows)

    def nlvr2(self):
        """NLVR2 as published: two images a sentence, those of train in numbered folders."""
        for split, number in (('train', 8), ('dev', 5), ('test1', 5)):
            rows = []
            for i in range(number):
                folder = f'{split}/{i % 2}' if split == 'train' else split
                for side in (0, 1):
                    self.images(f'nlvr2/{folder}', f'{split}-{i}-0-img{side}.png', 1)
                rows.append(dict(identifier=f'{split}-{i}-0-0', sentence=f'the left image has {CAPTIONS[i % 3]}',
                                 label=('True', 'False')[i % 2], **({'directory': i % 2} if split == 'train' else {})))
            path = self.root / f'nlvr2/annotations/{split}.json'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('\n'.join(map(json.dumps, rows)))

    def web(self):
        """Image-text pairs, one line an image."""
        for name in ('cc3m', 'cc12m', 'sbu', 'laion115m'):
            images = self.images(f'{name}/images', '0/{}.jpg', 2)
            self.write(f'{name}/captions.jsonl', [dict(image=image, caption=CAPTIONS[:2]) for image in images])
