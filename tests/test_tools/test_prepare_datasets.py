"""Every prepare_*.py on small archives with the published names; configs and the page of the docs read them."""
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmblip2.utils.prepare_data import Images

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'dataset_converters'
PAGE = (ROOT / 'docs' / 'dataset_prepare.md').read_text(encoding='utf-8')
NAMES = ('coco', 'vqav2', 'okvqa', 'aokvqa', 'gqa', 'visual_genome', 'nocaps', 'flickr30k', 'textvqa', 'nlvr2')
HOMES = {'vqav2': 'coco'}  # the folder below data, where it is not the name
# Names of two images in each folder; COCO's follow from the folder.
PHOTOS = {**{f'{split}{year}': [f'COCO_{split}{year}_{i:012d}.jpg' if year < 2017 else f'{i:012d}.jpg' for i in (1, 2)]
             for split in ('train', 'val', 'test') for year in (2014, 2015, 2017)},
          'images': ['n1.jpg', '2.jpg'], 'VG_100K': ['1.jpg'], 'VG_100K_2': ['2.jpg'], 'val': ['01a.jpg', '02b.jpg'],
          'test': ['03c.jpg', '04d.jpg'], 'flickr30k-images': ['1.jpg', '2.jpg'],
          'train_images': ['01a.jpg', '02b.jpg'], 'test_images': ['03c.jpg', '04d.jpg'],
          **{split: [f'{split}-7-0-img{side}.png' for side in (0, 1)] for split in ('train', 'dev', 'test1')}}
LINES = ['one star', 'a red circle']
ANSWERS = [dict(answer='red', answer_id=i) for i in range(1, 11)]


def questions(**more):
    return [dict(question_id=10 * i, image_id=i, question='what is it?', **more) for i in (1, 2)]


def lavis(names, **more):
    return [dict(image=name, **more) for name in names]


def coco(names, annotated=True):
    content = dict(images=[dict(id=i + 1, file_name=name, coco_url=f'https://there/val/{name}', domain='in-domain')
                           for i, name in enumerate(names)])
    if annotated:
        content['annotations'] = [dict(id=i, image_id=i % 2 + 1, caption=line) for i, line in enumerate(LINES * 2)]
    return content


def karpathy(names, **more):
    return dict(images=[dict(filename=name, split='test', sentences=[dict(raw=line) for line in LINES], **more)
                        for name in names])


def content_of(name):
    """A small annotation file of that name, in its published layout."""
    split = re.search(r'train|val|test', name)
    split = split[0] if split else None
    year = re.search(r'20\d\d', name)
    photos = PHOTOS[f'{split}{year[0]}'] if split and year else []
    if name.startswith('nlvr_'):
        folder = dict(train='train/3', test='test1').get(split, 'dev')
        pair = [f'{folder}/{photo}' for photo in PHOTOS[folder.split('/')[0]]]
        return [dict(images=pair, sentence=line, label='True') for line in LINES]
    if name in ('train.json', 'dev.json', 'test1.json'):
        return [dict(identifier=f'{name[:-5]}-7-0-{i}', sentence=line, label='False', directory=3)
                for i, line in enumerate(LINES)]
    if name.startswith('coco_karpathy'):
        return lavis([f'val2014/{photo}' for photo in PHOTOS['val2014']], caption=LINES)
    if name.startswith(('captions', 'image_info')):
        return coco(photos, name.startswith('captions'))
    if name.startswith('nocaps'):
        return coco(PHOTOS[split], split == 'val')
    if name == 'dataset_coco.json':
        return karpathy(PHOTOS['val2014'], filepath='val2014')
    if name == 'dataset_flickr30k.json':
        return karpathy(PHOTOS['flickr30k-images'])
    if name.startswith('flickr30k'):
        return lavis([f'flickr30k-images/{photo}' for photo in PHOTOS['flickr30k-images']], caption=LINES)
    if name.endswith('2014_annotations.json'):
        return dict(annotations=questions(answers=ANSWERS, answer_type='other', question_type='what'))
    if 'OpenEnded' in name:
        return dict(questions=questions())
    if name.startswith('vqa_'):
        return [dict(row, image=f'val2014/{photo}', answer=['red'])
                for row, photo in zip(questions(), PHOTOS['val2014'])]
    if name.startswith('aokvqa'):
        return questions(direct_answers=['red'] * 10, difficult_direct_answer=False)
    if 'balanced' in name:
        return {str(i): dict(imageId=photo[:-4], question='is it?', answer='yes', types=dict(structural='verify'))
                for i, photo in enumerate(PHOTOS['images'])}
    if name.startswith('TextVQA'):
        photos = PHOTOS['test_images' if split == 'test' else 'train_images']
        return dict(data=[dict(row, image_id=photo[:-4], answers=['red'] * 10)
                          for row, photo in zip(questions(), photos)])
    if name == 'answer_list.json':
        return ['yes', 'no', 'two stars']
    genome = ['VG_100K/1.jpg', 'VG_100K_2/2.jpg']
    return {'vg_caption.json': lavis(genome, caption='a star'),
            'vg_qa.json': lavis(genome, question='what is it?', answer='a star', dataset='vg'),
            'region_descriptions.json': [dict(id=i, regions=[dict(image_id=i, phrase=line) for line in LINES])
                                         for i in (1, 2)],
            'question_answers.json': [dict(id=i, qas=[dict(qa_id=i, image_id=i, question='what?', answer='a star.')])
                                      for i in (1, 2)]}[name]


def photo(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, 'JPEG')
    return buffer.getvalue()


def download(parts, folder):
    """Write what the parts want, as it is published."""
    archives = {}
    for part in parts:
        if isinstance(part, Images):
            files = {f'{part.inside}/{name}': photo(i) for i, name in enumerate(PHOTOS[part.target])}
        else:
            content = content_of(part.file)
            text = '\n'.join(map(json.dumps, content)) + '\n' if part.lines else json.dumps(content)
            files = {f'{"published/" if part.archive else ""}{part.file}': text.encode()}
        archives.setdefault(part.archive, {}).update(files)
    for archive, files in archives.items():
        if archive is None:
            for name, data in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        elif archive.endswith('.zip'):
            with zipfile.ZipFile(folder / archive, 'w') as packed:
                for name, data in files.items():
                    packed.writestr(name, data)
        else:
            with tarfile.open(folder / archive, 'w:gz') as packed:
                for name, data in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    packed.addfile(member, io.BytesIO(data))


def load(name):
    spec = importlib.util.spec_from_file_location(f'prepare_{name}', TOOLS / f'prepare_{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = {name: load(name) for name in NAMES}


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A checkout whose data/ the tools filled, and the lines of each tool."""
    folder = tmp_path_factory.mktemp('checkout')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    lines = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, tool in TABLES.items():
            source = folder / 'downloads' / name
            source.mkdir(parents=True)
            download(tool.PARTS, source)
            printed = io.StringIO()
            patch.setattr(sys, 'stdout', printed)
            assert tool.main(['--source', str(source), '--subset']) == 0, printed.getvalue()
            lines[name] = printed.getvalue().splitlines()
    for title, text in re.findall(r'^```python title=(\S+)\n(.*?)^```$', PAGE, re.M | re.S):
        (folder / title).parent.mkdir(exist_ok=True)
        (folder / title).write_text(text)
    return folder, lines


def test_all_tools_are_tried_here():
    assert {path.stem for path in TOOLS.glob('prepare_*.py')} == {f'prepare_{name}' for name in (*NAMES, 'flickr8k')}


@pytest.mark.parametrize('name', NAMES)
def test_what_was_downloaded_is_where_the_tool_says(name, project, monkeypatch):
    folder, lines = project
    parts = TABLES[name].PARTS
    assert [line.split()[:2] for line in lines[name][:-1]] == [['ok', f'{part.target}:'] for part in parts]
    home = folder / 'data' / HOMES.get(name, name)
    assert lines[name][-1].endswith(f'{len(parts)} of {len(parts)} parts are ready in {home.relative_to(folder)}')
    for part in parts:
        if isinstance(part, Images):
            assert sorted(path.name for path in (home / part.target).iterdir()) == sorted(PHOTOS[part.target])
        else:
            text = (home / part.target).read_text()
            assert (list(map(json.loads, text.splitlines())) if part.lines else json.loads(text)
                    ) == content_of(part.file)
    monkeypatch.chdir(folder)
    before = {path: path.lstat().st_mtime_ns for path in (folder / 'data').rglob('*')}
    assert TABLES[name].main(['--source', f'downloads/{name}', '--subset']) == 0
    assert {path: path.lstat().st_mtime_ns for path in (folder / 'data').rglob('*')} == before
    assert TABLES[name].main(['--source', f'downloads/{name}']) == 1, 'it is not the whole set'


PIPELINE = [dict(type='LoadImage'), dict(type='PackInputs')]
READ = [  # class, folder, annotations, more settings, rows
    ('COCOCaption', 'coco', 'captions_val2014.json', dict(data_prefix=dict(img_path='val2014'), test_mode=True), 2),
    ('COCOCaption', 'coco', 'captions_train2017.json', dict(data_prefix=dict(img_path='train2017')), 4),
    ('COCOCaption', 'coco', 'image_info_test2014.json', dict(data_prefix=dict(img_path='test2014'), test_mode=True), 2),
    ('COCOCaption', 'coco', 'dataset_coco.json', dict(split='test', test_mode=True), 2),
    ('COCORetrieval', 'coco', 'coco_karpathy_train.json', {}, 4),
    ('COCOVQA', 'coco', 'v2_mscoco_train2014_annotations.json', dict(
        question_file='annotations/v2_OpenEnded_mscoco_train2014_questions.json',
        data_prefix=dict(img_path='train2014')), 2),
    ('COCOVQA', 'coco', None, dict(question_file='annotations/v2_OpenEnded_mscoco_test-dev2015_questions.json',
                                   data_prefix=dict(img_path='test2015'), test_mode=True), 2),
    ('COCOVQA', 'coco', None, dict(question_file='annotations/vqa_train.json'), 2),
    ('COCOVQA', 'okvqa', 'mscoco_train2014_annotations.json', dict(
        question_file='annotations/OpenEnded_mscoco_train2014_questions.json',
        data_prefix=dict(img_path='../coco/train2014')), 2),
    ('AOKVQA', 'aokvqa', 'aokvqa_v1p0_train.json', dict(data_prefix=dict(img_path='../coco/train2017')), 2),
    ('AOKVQA', 'aokvqa', 'aokvqa_v1p0_test.json', dict(
        data_prefix=dict(img_path='../coco/test2017'), test_mode=True), 2),
    ('GQA', 'gqa', 'train_balanced_questions.json', dict(data_prefix=dict(img_path='images')), 2),
    ('VisualGenomeCaption', 'visual_genome', 'vg_caption.json', {}, 2),
    ('VisualGenomeQA', 'visual_genome', 'vg_qa.json', {}, 2),
    ('VisualGenomeQA', 'visual_genome', 'question_answers.json', {}, 2),
    ('Flickr30kCaption', 'flickr30k', 'flickr30k_train.json', {}, 4),
    ('TextVQA', 'textvqa', 'TextVQA_0.5.1_test.json', dict(
        data_prefix=dict(img_path='test_images'), test_mode=True), 2)]
PAIRS = [('train.json', 'train'), ('dev.json', 'dev'), ('test1.json', 'test1'), ('nlvr_train.json', ''),
         ('nlvr_dev.json', ''), ('nlvr_test.json', '')]


@pytest.mark.parametrize('kind, folder, file, settings, rows', READ, ids=[f'{row[0]}-{row[2]}' for row in READ])
def test_the_data_sets_read_what_was_prepared(kind, folder, file, settings, rows, project):
    from mmblip2 import datasets
    dataset = getattr(datasets, kind)(data_root=str(project[0] / 'data' / folder),
                                      **(dict(ann_file=f'annotations/{file}') if file else {}),
                                      pipeline=PIPELINE, **settings)
    assert len(dataset) == rows
    assert tuple(dataset[0]['inputs'].shape) == (3, 20, 24)


@pytest.mark.parametrize('file, prefix', PAIRS)
def test_nlvr2_reads_what_was_prepared(file, prefix, project):
    from mmblip2.datasets import NLVR2
    dataset = NLVR2(data_root=str(project[0] / 'data/nlvr2'), ann_file=f'annotations/{file}',
                    data_prefix=dict(img_path=prefix),
                    pipeline=[dict(type='EachImage', transforms=[dict(type='LoadImage')]), dict(type='PackInputs')])
    assert len(dataset) == 2 and tuple(dataset[0]['inputs'].shape) == (2, 3, 20, 24)


def build(path):
    """The data set of a config that evaluates, or trains."""
    from mmengine.registry import DATASETS, DefaultScope

    import mmblip2.datasets  # noqa: F401
    from mmblip2.utils import run_config
    cfg = run_config.load_config(str(path))
    with DefaultScope.overwrite_default_scope('mmblip2'):
        return cfg, DATASETS.build((cfg.get('test_dataloader') or cfg.train_dataloader).dataset)


LEAVES = [*re.findall(r'\]\(\.\./(configs/blip2?/\S+?\.py)\)', PAGE),
          *re.findall(r'^```python title=(\S+)', PAGE, re.M)]


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_config_of_the_page_reads_what_was_prepared(leaf, project, monkeypatch, real_parts):
    from mmengine.registry import DefaultScope

    import mmblip2.evaluation  # noqa: F401
    from mmblip2.registry import METRICS
    from mmblip2.utils import config_check
    monkeypatch.chdir(project[0])
    cfg, dataset = build(project[0] / leaf)
    assert len(dataset) in (2, 4)
    assert dataset[0]['inputs'].shape[-3] == 3
    config_check.check_config(cfg)
    if 'test_evaluator' in cfg:
        with DefaultScope.overwrite_default_scope('mmblip2'):
            METRICS.build(cfg.test_evaluator)


def test_the_page_has_every_file_address_and_command():
    assert len(LEAVES) == 11
    for name, tool in TABLES.items():
        section = PAGE[PAGE.rindex(f'\npython tools/dataset_converters/prepare_{name}.py --source DIR\n'):]
        tree = section[section.index(f'\ndata/{HOMES.get(name, name)}/'):]
        tree = tree[:tree.index('```')]
        for part in tool.PARTS:
            address = part.url.partition(', see')[0]
            got = part.archive or (part.file if not isinstance(part, Images) else f'folder {part.inside}')
            assert re.search(rf'^\| {re.escape(got)}(, optional)? \| {re.escape(address)} \|', PAGE, re.M), got
            assert re.search(rf'\s{re.escape(Path(part.target).name)}(/|\s)', tree), part.target


def test_the_page_lists_the_addresses_of_nocaps(project):
    command, = re.findall(r'^(python -c .*) < \S+ > \S+$', PAGE, re.M)
    listed = (project[0] / 'downloads/nocaps/nocaps_val_4500_captions.json').read_bytes()
    run = subprocess.run([sys.executable, *shlex.split(command)[1:]], input=listed, capture_output=True, check=True)
    assert run.stdout.decode().splitlines() == [f'https://there/val/{name}' for name in PHOTOS['val']]


@pytest.mark.parametrize('path', [*(f'dataset_converters/prepare_{name}' for name in NAMES),
                                  'analysis_tools/verify_dataset', 'visualizations/browse_dataset'])
def test_help_answers_without_torch(path, tmp_path):
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    result = subprocess.run([sys.executable, str(ROOT / 'tools' / f'{path}.py'), '--help'], capture_output=True,
                            text=True, env={'PYTHONPATH': str(tmp_path), 'PATH': ''})
    assert result.returncode == 0 and 'usage: ' in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 130
