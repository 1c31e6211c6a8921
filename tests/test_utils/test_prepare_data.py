"""The driver of prepare_*.py: what comes out is what went in; nothing leaves the folder, nothing is deleted."""
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from mmblip2.errors import DataError
from mmblip2.utils import prepare_data
from mmblip2.utils.prepare_data import Annotations, Images, prepare, run

PHOTOS = Images('val.zip', 'val2014', 'val2014', 3, 'https://there/val.zip')
LIST = Annotations('list.json', 'annotations/list.json', ('image', 'caption'), 2, 'https://there/list.json')
INSIDE = Annotations('inside.json', 'annotations/inside.json', ('id', ), 2, 'https://there/both.tar.gz', 'images',
                     'both.tar.gz')
ROWS = [dict(image='a.jpg', caption='one'), dict(image='b.jpg', caption='two')]
FILES = {f'val2014/{name}.jpg': name.encode() * 100 for name in 'abc'}


def write_zip(path, files, links=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = ((stat.S_IFLNK if name in links else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, data)


def write_tar(path, files, links=(), hard=()):
    with tarfile.open(path, 'w:gz' if path.suffix == '.gz' else 'w') as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name in links or name in hard:
                member.type, member.linkname = tarfile.SYMTYPE if name in links else tarfile.LNKTYPE, '/etc/passwd'
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'downloads'
    write_zip(folder / 'val.zip', {'val2014/': b'', **FILES})
    (folder / 'list.json').write_text(json.dumps(ROWS))
    write_tar(folder / 'both.tar.gz', {'x/other.json': b'{}', 'x/inside.json': b'{"images": [{"id": 1}, {"id": 2}]}'})
    return folder


def prepared(parts, source, out, **options):
    """(state, text) of each part."""
    return [(state, text) for _, state, text in prepare(parts, source, out, **options)]


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_archives_and_files_are_arranged_and_checked(source, tmp_path, capsys):
    out = tmp_path / 'out'
    before = tree(source)
    assert prepared([PHOTOS, LIST, INSIDE], source, out) == [
        ('ok', '3 images, 3 of them new'), ('ok', '2 rows'), ('ok', '2 images')]
    assert tree(out) == {**FILES, 'annotations/list.json': json.dumps(ROWS).encode(),
                         'annotations/inside.json': b'{"images": [{"id": 1}, {"id": 2}]}'}
    assert tree(source) == before
    assert capsys.readouterr().out.splitlines()[0] == 'ok      val2014: 3 images, 3 of them new'


def test_a_second_run_reads_no_archive_and_changes_nothing(source, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    prepare([PHOTOS, INSIDE], source, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    monkeypatch.setattr(prepare_data, '_members', lambda archive: pytest.fail(f'{archive} was opened'))
    assert prepared([PHOTOS, INSIDE], source, out) == [('ok', '3 images, 0 of them new'), ('ok', '2 images')]
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == times


@pytest.mark.parametrize('number', [3, None])
def test_a_stopped_run_goes_on(source, tmp_path, number, monkeypatch):
    out = tmp_path / 'out'
    (out / 'val2014').mkdir(parents=True)
    (out / 'val2014/a.jpg').write_bytes(FILES['val2014/a.jpg'])
    (out / 'val2014/mine.txt').write_bytes(b'mine')
    (out / 'val2014/b.jpg.part').write_bytes(b'half')
    if number is None:  # then the sizes tell
        (out / 'val2014/b.jpg').write_bytes(b'half')
    opened, read = [], zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, 'open', lambda self, info, *args: (
        opened.append(info.filename), read(self, info, *args))[1])
    assert prepared([PHOTOS._replace(number=number)], source, out) == [('ok', '3 images, 2 of them new')]
    assert opened == ['val2014/b.jpg', 'val2014/c.jpg'], 'what is there is not read again'
    assert tree(out) == {**FILES, 'val2014/mine.txt': b'mine'}


def test_downloads_in_folders_and_unpacked_ones_are_found(source, tmp_path):
    nested = tmp_path / 'nested'
    (nested / 'a').mkdir(parents=True)
    (source / 'list.json').rename(nested / 'a' / 'list.json')
    for name, data in FILES.items():
        path = nested / 'a/images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (nested / 'inside.json').write_text('{"images": [{"id": 1}, {"id": 2}]}')
    out = tmp_path / 'out'
    where = nested / 'a/images/val2014'
    for _ in range(2):
        assert prepared([PHOTOS, LIST, INSIDE], nested, out) == [
            ('ok', f'3 images, 0 of them new, a link to {where}'), ('ok', '2 rows'), ('ok', '2 images')]
    assert (out / 'val2014').is_symlink() and tree(where).keys() == {'a.jpg', 'b.jpg', 'c.jpg'}
    # what is linked is not written to
    (where / 'c.jpg').unlink()
    write_zip(nested / 'val.zip', FILES)
    (state, text), = prepared([PHOTOS], nested, out)
    assert state == 'wrong' and '2 images, published are 3' in text and not (where / 'c.jpg').exists()


def test_a_folder_with_a_common_name_is_taken_only_where_it_was_meant(tmp_path):
    other = tmp_path / 'downloads' / 'flickr8k' / 'images'
    other.mkdir(parents=True)
    (other / 'x.jpg').write_bytes(b'x')
    part = Images(None, 'images', 'images', None, 'URL')
    assert prepared([part], other.parents[1], tmp_path / 'out')[0][0] == 'missing'
    assert prepared([part], other.parent, tmp_path / 'out')[0][0] == 'ok'
    (tmp_path / 'other' / 'images').mkdir(parents=True)  # without an image it is something else
    assert prepared([part], tmp_path / 'other', tmp_path / 'new')[0][0] == 'missing'
    assert not (tmp_path / 'new').exists()


def test_source_and_output_may_be_one_folder(source):
    for new in (3, 0):
        assert prepared([PHOTOS, LIST, INSIDE], source, source) == [
            ('ok', f'3 images, {new} of them new'), ('ok', '2 rows'), ('ok', '2 images')]
    assert not (source / 'val2014').is_symlink()
    os.remove(source / 'val.zip')
    assert prepared([PHOTOS], source, source) == [('ok', '3 images, 0 of them new')]


def test_what_is_missing_is_said_with_its_address(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    states = prepared([PHOTOS, LIST._replace(needed=False), INSIDE, Images(None, 'val', 'val', 3, 'the form at URL')],
                      tmp_path / 'empty', tmp_path / 'out')
    into = f'into {tmp_path / "empty"}; from'
    assert states == [
        ('missing', f'put val.zip (or its folder val2014) {into} https://there/val.zip'),
        ('missing', f'optional, put list.json {into} https://there/list.json'),
        ('missing', f'put both.tar.gz (or inside.json of it) {into} https://there/both.tar.gz'),
        ('missing', f'put a folder val {into} the form at URL')]
    assert capsys.readouterr().out.count('missing ') == 4
    assert not (tmp_path / 'out').exists()


# -------------------------------------------------------------------------------------- hostile and broken

@pytest.mark.parametrize('name', ['../escaped.jpg', 'val2014/../../escaped.jpg', '/tmp/escaped_prepare.jpg',
                                  'val2014/..\\escaped.jpg', '\\escaped.jpg'])
@pytest.mark.parametrize('pack', [write_zip, write_tar])
def test_a_path_out_of_the_archive_is_refused(source, tmp_path, pack, name):
    part = PHOTOS._replace(archive='x.zip' if pack is write_zip else 'x.tar')
    pack(source / part.archive, {name: b'x'})
    (state, text), = prepared([part], source, tmp_path / 'out')
    assert state == 'wrong' and re.search(r"x\.(zip|tar) holds '.*escaped.*', a path out of the archive: it is not the "
                                          'published archive', text)
    assert not list(tmp_path.rglob('*escaped*')) and not Path('/tmp/escaped_prepare.jpg').exists()


@pytest.mark.parametrize('pack, kind', [(write_zip, 'links'), (write_tar, 'links'), (write_tar, 'hard')])
def test_a_link_in_an_archive_is_refused(source, tmp_path, pack, kind):
    part = PHOTOS._replace(archive='x.zip' if pack is write_zip else 'x.tar')
    pack(source / part.archive, {'val2014/a.jpg': b'/etc/passwd'}, **{kind: ['val2014/a.jpg']})
    (state, text), = prepared([part], source, tmp_path / 'out')
    assert state == 'wrong' and "holds 'val2014/a.jpg', a link or device" in text and not (tmp_path / 'out').exists()


def test_only_images_of_the_folder_are_taken(source, tmp_path):
    write_zip(source / 'val.zip', {**FILES, 'val2014/._a.jpg': b'mac', '__MACOSX/val2014/x/._b.jpg': b'mac',
                                   'other/d.jpg': b'd', 'val2014/run.sh': b'rm', 'deep/val2014/e.JPEG': b'e'})
    assert prepared([PHOTOS], source, tmp_path / 'out', subset=True) == [('ok', '4 images, 4 of them new')]
    assert tree(tmp_path / 'out').keys() == {*FILES, 'val2014/e.JPEG'}


def test_one_name_in_two_folders_is_refused(source, tmp_path):
    write_zip(source / 'val.zip', {**FILES, 'again/val2014/a.jpg': b'other'})
    (state, text), = prepared([PHOTOS], source, tmp_path / 'out')
    assert state == 'wrong' and 'val.zip has a.jpg twice: it is not the published archive' in text
    assert tree(tmp_path / 'out') == FILES, 'the first is not written over'


@pytest.mark.parametrize('name', ['val.zip', 'val.tar', 'val.tar.gz'])
@pytest.mark.parametrize('cut', [0.02, 0.5, 0.9])
def test_a_cut_archive_is_said_and_leaves_no_half_file(source, tmp_path, name, cut):
    files = {f'val2014/{i}.jpg': os.urandom(3000) for i in range(3)}
    path = source / name
    (write_zip if name == 'val.zip' else write_tar)(path, files)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(cut * len(whole.rstrip(b'\0')))])
    (state, text), = prepared([PHOTOS._replace(archive=name)], source, tmp_path / 'out')
    assert state == 'wrong' and f'{name} cannot be unpacked (' in text and 'download it again' in text
    assert name != 'val.zip' or 'File is not a zip file' in text
    assert all(files[found] == data for found, data in tree(tmp_path / 'out').items())
    path.write_bytes(whole)
    assert prepared([PHOTOS._replace(archive=name)], source, tmp_path / 'out')[0][0] == 'ok'
    assert tree(tmp_path / 'out') == files


def test_damage_inside_a_zip_is_said(source, tmp_path):
    data = bytearray((source / 'val.zip').read_bytes())
    data[data.index(b'bbb')] ^= 1
    (source / 'val.zip').write_bytes(data)
    (state, text), = prepared([PHOTOS], source, tmp_path / 'out')
    assert state == 'wrong' and 'val.zip cannot be unpacked (Bad CRC-32' in text
    assert tree(tmp_path / 'out').keys() == {'val2014/a.jpg'}


def test_a_locked_zip_is_said(source, tmp_path):
    data = bytearray((source / 'val.zip').read_bytes())
    for start, offset in ((b'PK\3\4', 6), (b'PK\1\2', 8)):  # the flags of every member, twice
        for found in re.finditer(re.escape(start), bytes(data)):
            data[found.start() + offset] |= 1
    (source / 'val.zip').write_bytes(data)
    (state, text), = prepared([PHOTOS], source, tmp_path / 'out')
    assert state == 'wrong' and 'val.zip cannot be unpacked (' in text and 'encrypted' in text


def test_an_archive_of_another_set_is_refused(source, tmp_path):
    write_zip(source / 'val.zip', {'train2014/a.jpg': b'a'})
    write_tar(source / 'both.tar.gz', {'x/other.json': b'{}'})
    (one, first), (two, second) = prepared([PHOTOS, INSIDE], source, tmp_path / 'out')
    assert one == two == 'wrong'
    assert 'val.zip has no images in a folder val2014: is it another data set?' in first
    assert 'both.tar.gz has no inside.json: it is not the published archive' in second
    assert tree(tmp_path).keys() == {f'downloads/{name}' for name in tree(source)}


@pytest.mark.parametrize('content, message', [
    ('{"questions": []}', 'list.json has no rows with image, caption each: is it the file of another task? If so, '
                          'download list.json again'),
    ('[{"image": "a.jpg"}, {"image": "b.jpg"}]', 'has no rows with image, caption each'),
    ('[]', 'has no rows with'), ('[1, 2]', 'has no rows with'),
    ('[{"image": "a.jpg", "cap', 'list.json is not JSON'), ('\0\x81', 'list.json is not JSON'),
    (json.dumps(ROWS + ROWS), 'list.json has 4 rows, published are 2: is it another version? If so, download list.json '
                              'again; --subset accepts it')])
def test_a_wrong_annotation_file_is_refused_and_not_copied(source, tmp_path, content, message):
    (source / 'list.json').write_bytes(content.encode('latin1'))
    (state, text), = prepared([LIST], source, tmp_path / 'out')
    assert state == 'wrong' and message in text
    assert tree(tmp_path / 'out') == {}
    # there already, it is said and left
    target = tmp_path / 'out' / LIST.target
    target.write_bytes(content.encode('latin1'))
    (state, text), = prepared([LIST], source, tmp_path / 'out')
    assert state == 'wrong' and f'remove {target} and download it again' in text and target.is_file()


def test_rows_below_a_key_or_as_values_of_an_object_are_counted(source, tmp_path):
    (source / 'list.json').write_text(json.dumps(dict(enumerate(ROWS))))
    assert prepared([LIST], source, tmp_path / 'out') == [('ok', '2 rows')]
    (source / 'list.json').write_text(json.dumps(ROWS))
    (state, text), = prepared([LIST._replace(key='images')], source, tmp_path / 'other')
    assert state == 'wrong' and 'has no images with image, caption each' in text


def test_the_published_checksum_decides(source, tmp_path):
    data = (source / 'list.json').read_bytes()
    right = LIST._replace(md5=hashlib.md5(data).hexdigest())
    assert prepared([right], source, tmp_path / 'out') == [('ok', 'md5 as published')]
    (source / 'list.json').write_bytes(data + b' ')
    (state, text), = prepared([right], source, tmp_path / 'other')
    assert state == 'wrong' and f'published is {right.md5}: download list.json again' in text
    assert prepared([right], source, tmp_path / 'other', subset=True) == [('ok', '2 rows')]


def test_numbers_are_those_published_unless_a_subset_is_wanted(source, tmp_path):
    more = PHOTOS._replace(number=4)
    (state, text), = prepared([more], source, tmp_path / 'out')
    assert (state, text) == ('wrong', '3 images, published are 4: is val.zip (or its folder val2014) whole? --subset '
                                      'accepts it')
    assert prepared([more], source, tmp_path / 'out', subset=True) == [('ok', '3 images, 0 of them new')]


def test_a_full_disk_leaves_no_half_file(source, tmp_path, monkeypatch):
    def full(content, side, archive):
        side.write(b'half')
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(prepare_data, '_copy', full)
        states = prepared([PHOTOS, LIST, INSIDE], source, tmp_path / 'out')
    for (state, text), part in zip(states[::2], (PHOTOS, INSIDE)):
        assert state == 'wrong' and text == (f'{tmp_path / "out" / part.target} cannot be written ([Errno 28] No space '
                                             'left on device)')
    assert states[1][0] == 'ok', 'a part that fails stops no other'
    assert tree(tmp_path / 'out').keys() == {LIST.target}
    assert [state for state, _ in prepared([PHOTOS, LIST, INSIDE], source, tmp_path / 'out')] == ['ok'] * 3


def test_a_file_or_a_dangling_link_in_the_way_is_said(source, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'val2014').write_text('mine')
    (out / 'annotations').write_text('mine')
    (one, first), (two, second) = prepared([PHOTOS._replace(number=None), LIST], source, out)
    assert one == two == 'wrong' and f'{out / "val2014"} cannot be written' in first and 'cannot be written' in second
    assert (out / 'val2014').read_text() == (out / 'annotations').read_text() == 'mine'
    (tmp_path / 'linked').mkdir()
    (tmp_path / 'linked/val2014').symlink_to(tmp_path / 'gone')
    (state, text), = prepared([PHOTOS], source, tmp_path / 'linked')
    assert state == 'wrong' and f'it is a link to {tmp_path / "gone"}, which is not there' in text
    with pytest.raises(DataError, match=f'{out}/val2014 is a file: give a folder as --out'):
        prepare([LIST], source, out / 'val2014')
    with pytest.raises(DataError, match='source folder .*nowhere not found: give the folder with the downloaded'):
        prepare([LIST], tmp_path / 'nowhere', out)


# ---------------------------------------------------------------------------------------------- command line

def test_the_exit_status_says_whether_all_that_is_needed_is_there(source, tmp_path, capsys):
    def status(parts, *options):
        return run(parts, 'Set', str(tmp_path / 'out'), 'About.', ['--source', str(source), *options])

    absent = LIST._replace(file='absent.json', target='annotations/absent.json')
    assert status([PHOTOS, LIST]) == 0
    assert capsys.readouterr().out.endswith(f'Set: 2 of 2 parts are ready in {tmp_path / "out"}\n')
    assert status([PHOTOS, absent]) == 1
    assert capsys.readouterr().out.endswith('; missing or wrong: annotations/absent.json\n')
    assert status([PHOTOS, absent._replace(needed=False)]) == 0
    assert status([absent._replace(needed=False)]) == 1, 'nothing is ready'
    assert status([PHOTOS._replace(number=9), absent], '--only', 'val', 'x') == 1
    assert status([PHOTOS._replace(number=9), absent], '--only', 'val', '--subset') == 0
    with pytest.raises(DataError, match='--only words leaves nothing of val2014, annotations/list.json'):
        status([PHOTOS, LIST], '--only', 'words')


def test_images_in_folders_of_a_linked_folder_are_counted(source, tmp_path):
    for number, name in enumerate('ab'):
        (source / 'train' / str(number)).mkdir(parents=True)
        (source / 'train' / str(number) / f'{name}.png').write_bytes(b'x')
    part = Images('train.zip', 'train', 'train', None, 'https://there/train.zip')
    assert prepared([part], source, tmp_path / 'flat')[0][0] == 'missing'
    state, text = prepared([part._replace(nested=True)], source, tmp_path / 'out')[0]
    assert state == 'ok' and text.startswith('2 images, 0 of them new, a link to ')


def test_rows_that_are_lines_are_checked(source, tmp_path):
    (source / 'lines.json').write_text('{"id": 1}\n{"id": 2}\n')
    part = Annotations('lines.json', 'lines.json', ('id', ), 2, 'https://there/lines.json', lines=True)
    assert prepared([part], source, tmp_path / 'out') == [('ok', '2 rows')]
    (source / 'lines.json').write_text('{"id": 1}\n{"id"')
    state, text = prepared([part], source, tmp_path / 'again')[0]
    assert state == 'wrong' and 'lines.json is not JSON' in text


def test_rows_that_are_texts_are_checked(source, tmp_path):
    part = Annotations('answers.json', 'ann/answers.json', (), 2, 'URL')
    for content, state, message in (
            ('["yes", "no"]', 'ok', '2 rows'), ('["yes", 3]', 'wrong', 'answers.json has no rows that are texts: is'),
            ('["yes"]', 'wrong', 'answers.json has 1 rows, published are 2')):
        (source / 'answers.json').write_text(content)
        (found, text), = prepared([part], source, tmp_path / f'out{len(content)}')
        assert found == state and message in text
