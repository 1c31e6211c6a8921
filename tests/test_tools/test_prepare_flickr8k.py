"""prepare_flickr8k: what comes out is what went in; nothing leaves the folder, nothing is deleted."""
import importlib.util
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mmblip2.errors import DataError

SCRIPT = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'prepare_flickr8k.py'
COUNTS = {'train': 3, 'val': 2}


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('prepare_flickr8k', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def jpeg(shade):
    buffer = io.BytesIO()
    Image.new('RGB', (4, 4), (shade, 0, 0)).save(buffer, 'JPEG')
    return buffer.getvalue()


def write_tar(path, files):
    with tarfile.open(path, 'w') as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'source'
    folder.mkdir()
    for split, number in COUNTS.items():
        names = [f'{split}{i}_ab' for i in range(number)]
        texts = {name: [f'caption {k} of {name} .' for k in range(5)] for name in names}
        rows = [dict(image=f'images/{name}.jpg', caption=texts[name], image_id=name) for name in names]
        if split == 'train':
            rows = [dict(row, caption=text) for row in rows for text in row['caption']]
        (folder / f'flickr8k_{split}.json').write_text(json.dumps(rows))
        write_tar(folder / f'flickr8k_{split}_images.tar',
                  {f'images/{name}.jpg': jpeg(20 * i) for i, name in enumerate(names)})
    return folder


def edit(path, change):
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_lists_images_and_coco_ground_truth_are_written(tool, source, tmp_path):
    out = tmp_path / 'out'
    assert tool.prepare(source, out, COUNTS) == {'train': (3, 15), 'val': (2, 10)}
    for split in COUNTS:
        rows = json.loads((out / f'annotations/karpathy_{split}.json').read_text())
        assert rows == json.loads((source / f'flickr8k_{split}.json').read_text())
        assert all(Image.open(out / row['image']).size == (4, 4) for row in rows)
    truth = json.loads((out / 'annotations/captions_val.json').read_text())
    assert [image['id'] for image in truth['images']] == ['val0_ab', 'val1_ab']
    assert len({row['id'] for row in truth['annotations']}) == 10
    assert [row['caption'] for row in truth['annotations'] if row['image_id'] == 'val1_ab'] == \
        [f'caption {k} of val1_ab .' for k in range(5)]


def test_the_data_sets_read_what_was_written(tool, source, tmp_path):
    out = tmp_path / 'out'
    tool.prepare(source, out, COUNTS)
    from mmblip2.datasets.coco_caption import COCOCaption
    from mmblip2.datasets.coco_retrieval import COCORetrieval
    train = COCOCaption(ann_file='annotations/karpathy_train.json', data_root=str(out))
    assert len(train) == 15
    from_list, from_coco = (
        COCOCaption(ann_file=f'annotations/{name}_val.json', data_root=str(out), test_mode=True)
        for name in ('karpathy', 'captions'))
    for i in range(2):
        one, two = from_list.get_data_info(i), from_coco.get_data_info(i)
        assert one['gt_caption'] == two['gt_caption'] and one['image_id'] == two['image_id']
        assert Path(one['img_path']).is_file() and one['img_path'] == two['img_path']
    val = COCORetrieval(ann_file='annotations/karpathy_val.json', data_root=str(out), test_mode=True)
    assert len(val) == 2 and len(val.texts) == 10


def test_a_second_run_writes_only_what_is_missing_and_deletes_nothing(tool, source, tmp_path, capsys):
    out = tmp_path / 'out'
    tool.prepare(source, out, COUNTS)
    (out / 'images/train1_ab.jpg').unlink()
    (out / 'images/val0_ab.jpg').write_bytes(b'half')
    (out / 'images/mine.jpg').write_bytes(b'mine')
    capsys.readouterr()
    tool.prepare(source, out, COUNTS)
    assert capsys.readouterr().out == ('flickr8k_train_images.tar: 3 images, 1 written\n'
                                       'flickr8k_val_images.tar: 2 images, 1 written\n')
    assert (out / 'images/val0_ab.jpg').read_bytes() == jpeg(0)
    assert (out / 'images/mine.jpg').read_bytes() == b'mine'
    assert not list(out.rglob('*.part'))


@pytest.mark.parametrize('name', ['../escaped.jpg', 'images/../../escaped.jpg', '/tmp/escaped_flickr.jpg'])
def test_a_path_out_of_the_folder_is_refused(tool, source, tmp_path, name):
    write_tar(source / 'flickr8k_val_images.tar', {name: jpeg(0)})
    with pytest.raises(DataError, match='which is no image of its list: expected images/NAME.jpg only'):
        tool.prepare(source, tmp_path / 'out', COUNTS)
    assert not (tmp_path / 'escaped.jpg').exists() and not Path('/tmp/escaped_flickr.jpg').exists()


def test_a_list_that_names_a_path_out_of_the_folder_is_refused(tool, source, tmp_path):
    edit(source / 'flickr8k_val.json', lambda rows: rows[0].update(image='images/../../escaped.jpg'))
    with pytest.raises(DataError, match=r"'images/../../escaped.jpg' is not of the form images/NAME.jpg"):
        tool.prepare(source, tmp_path / 'out', COUNTS)


def test_a_link_in_the_tar_is_refused(tool, source, tmp_path):
    with tarfile.open(source / 'flickr8k_val_images.tar', 'w') as archive:
        member = tarfile.TarInfo('images/val0_ab.jpg')
        member.type, member.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(member)
    with pytest.raises(DataError, match='images/val0_ab.jpg.*no image of its list'):
        tool.prepare(source, tmp_path / 'out', COUNTS)


def test_incomplete_sources_are_refused(tool, source, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(DataError, match='lists 3 images, the official split has 6000'):
        tool.prepare(source, out)
    whole = (source / 'flickr8k_val.json').read_text()
    edit(source / 'flickr8k_val.json', lambda rows: rows[0]['caption'].pop())
    with pytest.raises(DataError, match='images/val0_ab.jpg has 4 captions, expected 5'):
        tool.prepare(source, out, COUNTS)
    (source / 'flickr8k_val.json').write_text(whole[:-9])
    with pytest.raises(DataError, match='flickr8k_val.json is not a JSON file'):
        tool.prepare(source, out, COUNTS)
    (source / 'flickr8k_val.json').write_text(whole)
    tar = source / 'flickr8k_val_images.tar'
    data = tar.read_bytes()
    write_tar(tar, {'images/val0_ab.jpg': jpeg(0)})
    with pytest.raises(DataError, match='lacks 1 images of its list, first images/val1_ab.jpg'):
        tool.prepare(source, out, COUNTS)
    tar.write_bytes(data[:700])
    with pytest.raises(DataError, match='flickr8k_val_images.tar could not be unpacked'):
        tool.prepare(source, out, COUNTS)


def test_splits_that_share_an_image_are_refused(tool, source, tmp_path):
    edit(source / 'flickr8k_val.json', lambda rows: rows[0].update(image='images/train0_ab.jpg'))
    with pytest.raises(DataError, match='1 images are in every split, first images/train0_ab.jpg'):
        tool.prepare(source, tmp_path / 'out', COUNTS)


def test_a_wrong_folder_is_one_message_and_status_2(tool, tmp_path, capsys):
    assert tool.main(['--source', str(tmp_path), '--out', str(tmp_path / 'out')]) == 2
    assert 'flickr8k_train.json not found: --source must name the folder' in capsys.readouterr().err


def test_first_images_of_lists_of_any_length(tool, source, tmp_path, capsys):
    out = tmp_path / 'out'
    assert tool.main(['--source', str(source), '--out', str(out), '--first', '2', '9']) == 0
    assert 'train: 2 images, 10 captions' in capsys.readouterr().out
    assert sorted(path.name for path in (out / 'images').iterdir()) == [
        'train0_ab.jpg', 'train1_ab.jpg', 'val0_ab.jpg', 'val1_ab.jpg']
    rows = json.loads((out / 'annotations/karpathy_train.json').read_text())
    assert {row['image_id'] for row in rows} == {'train0_ab', 'train1_ab'} and len(rows) == 10
    assert len(json.loads((out / 'annotations/captions_val.json').read_text())['images']) == 2
    assert tool.main(['--source', str(source), '--out', str(out)]) == 2
    assert 'lists 3 images, the official split has 6000' in capsys.readouterr().err
