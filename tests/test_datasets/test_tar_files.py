"""An index says what is in a tar; it is made once, again when the tar changes, and wherever it can be written."""
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from tar_shards import write_tar

from mmblip2.datasets import tar_files
from mmblip2.datasets.tar_files import index_tars, open_tar, read_member, split_path
from mmblip2.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv('MMBLIP2_TAR_INDEX', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'mmblip2' / 'tar_index'


def make(path, samples=3, **kwargs):
    write_tar(path, {f'{i:03d}.{ending}': f'{ending} {i}'.encode() for i in range(samples)
                     for ending in ('jpg', 'txt')}, **kwargs)
    return str(path)


def scans(monkeypatch):
    """Tars of which the headers are read from now on."""
    seen, scan = [], tar_files._Scan
    monkeypatch.setattr(tar_files, '_Scan', lambda path, fd, size: seen.append(path) or scan(path, fd, size))
    return seen


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_gives_what_pythons_reader_gives(tmp_path, format):
    long = 'd' * 90 + '/' + 'e' * 60 if format == tarfile.USTAR_FORMAT else 'd' * 150 + 'ä'
    names = ['a/1.jpg', 'a/1.seg.PNG', f'{long}/2.jpg', f'{long}/2.json', 'b/1.jpg', '3.jpg']
    members = {name: os.urandom(size) for name, size in zip(names, (0, 1, 511, 512, 513, 70000))}
    write_tar(tmp_path / 'x.tar', members, format)
    path = str(tmp_path / 'x.tar')
    assert index_tars([path]) == [(4, None)]
    file = open_tar(path)
    assert [(key, list(found)) for key, found in map(file.sample, range(4))] == [
        ('a/1', ['jpg', 'seg.png']), (f'{long}/2', ['jpg', 'json']), ('b/1', ['jpg']), ('3', ['jpg'])]
    with tarfile.open(path) as whole:
        for name in names:
            assert read_member(f'{path}/{name}') == members[name] == whole.extractfile(name).read()


def test_what_is_no_sample_is_left_out(tmp_path):
    with tarfile.open(tmp_path / 'x.tar', 'w') as file:
        for name, kind in (('folder', tarfile.DIRTYPE), ('1.jpg', tarfile.REGTYPE), ('link.jpg', tarfile.SYMTYPE),
                           ('__meta__.json', tarfile.REGTYPE), ('README', tarfile.REGTYPE), ('.hidden.jpg', b'0')):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = '1.jpg' if kind == tarfile.SYMTYPE else ''
            file.addfile(info)
    assert index_tars([str(tmp_path / 'x.tar')]) == [(1, None)]


def test_an_index_is_made_once_and_again_when_the_tar_changes(tmp_path, monkeypatch):
    path = make(tmp_path / 'x.tar')
    seen = scans(monkeypatch)
    for _ in range(2):
        assert index_tars([path]) == [(3, None)]
        assert open_tar(path).read(0) == b'jpg 0'
    assert seen == [path] and (tmp_path / 'x.tar.index').is_file()
    os.utime(path, ns=(10**18, 10**18))
    index_tars([path])
    assert seen == [path, path]
    make(tmp_path / 'x.tar', 5)
    assert index_tars([path]) == [(5, None)] and open_tar(path).sample(4)[0] == '004'
    assert seen == [path] * 3


@pytest.mark.parametrize('damage', [lambda content: content[:len(content) // 2], lambda content: b'{"x": 1}\n',
                                    lambda content: b''])
def test_a_broken_index_is_made_again(tmp_path, damage):
    path = make(tmp_path / 'x.tar')
    index_tars([path])
    index = tmp_path / 'x.tar.index'
    index.write_bytes(damage(index.read_bytes()))
    assert index_tars([path]) == [(3, None)] and open_tar(path).sample(2)[0] == '002'


def test_in_a_folder_that_cannot_be_written_the_index_goes_into_the_cache(tmp_path, cache, monkeypatch):
    path = make(tmp_path / 'data' / 'x.tar')
    write = tar_files._write

    def refuse(place, content):
        if place.startswith(str(tmp_path / 'data')):
            raise PermissionError(13, 'Permission denied', place)
        write(place, content)

    monkeypatch.setattr(tar_files, '_write', refuse)
    seen = scans(monkeypatch)
    assert index_tars([path]) == index_tars([path]) == [(3, None)]
    assert seen == [path] and os.listdir(tmp_path / 'data') == ['x.tar'] and len(os.listdir(cache)) == 1
    monkeypatch.setattr(tar_files, '_write', lambda place, content: refuse(str(tmp_path / 'data'), content))
    other = make(tmp_path / 'data' / 'y.tar')
    with pytest.raises(DataError, match='y.tar can be written nowhere .*Permission denied.*set MMBLIP2_TAR_INDEX'):
        index_tars([other])
    monkeypatch.undo()
    monkeypatch.setenv('MMBLIP2_TAR_INDEX', str(tmp_path / 'chosen'))
    index_tars([other])
    assert len(os.listdir(tmp_path / 'chosen')) == 1 and not (tmp_path / 'data' / 'y.tar.index').exists()


def test_many_at_once_leave_one_whole_index(tmp_path):
    path = make(tmp_path / 'x.tar', 50)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: index_tars([path])[0], range(8))) == {(50, None)}
    assert sorted(os.listdir(tmp_path)) == ['x.tar', 'x.tar.index']


def test_processes_begin_at_different_places(tmp_path, monkeypatch):
    paths = [make(tmp_path / f'{i}.tar') for i in range(4)]
    monkeypatch.setattr(tar_files, 'world', lambda: (1, 2))
    seen = scans(monkeypatch)
    index_tars(paths, workers=1)
    assert seen == [*paths[2:], *paths[:2]]


def test_ten_thousand_members_are_indexed_from_their_headers(tmp_path, monkeypatch):
    path = make(tmp_path / 'x.tar', 5000)
    read = []
    pread = os.pread
    monkeypatch.setattr(os, 'pread', lambda fd, size, place: read.append(size) or pread(fd, size, place))
    assert index_tars([path]) == [(5000, None)]
    assert len(read) == 10001 and set(read) == {512}, 'one header a member, and the end'
    file = open_tar(path)
    assert file.find('004999.jpg') is None and file.name(file.find('4999.txt')) == '4999.txt'
    assert file.read(file.sample(4999)[1]['txt']) == b'txt 4999'


def test_a_cut_shard_is_noted_with_its_whole_samples(tmp_path):
    path = tmp_path / 'x.tar'
    write_tar(path, {f'{i}.{ending}': bytes(1000) for i in range(3) for ending in ('jpg', 'txt')})  # 1,536 bytes each
    content = path.read_bytes()
    for length, samples, cut in ((5 * 1536 + 700, 2, 5 * 1536),  # inside of the second member of sample 2
                                 (4 * 1536 + 700, 2, 4 * 1536),  # inside of its first
                                 (4 * 1536 + 100, 2, 4 * 1536),  # inside of its header
                                 (6 * 1536, 3, 6 * 1536)):  # only the end is missing
        path.write_bytes(content[:length])
        assert index_tars([str(path)]) == [(samples, cut)]
        assert [open_tar(str(path)).sample(i)[0] for i in range(samples)] == ['0', '1', '2'][:samples]
    broken = bytearray(content)
    broken[2 * 1536 + 20] ^= 255
    path.write_bytes(broken)
    assert index_tars([str(path)]) == [(1, 2 * 1536)]


@pytest.mark.parametrize('names, message', [
    (['1.jpg', '2.jpg', '1.txt'], "members of sample '1' do not stand together, or it is there twice.*--sort=name"),
    (['1.jpg', '1.txt', '1.jpg'], "'1.jpg' twice"),
    (['a\nb.jpg'], 'name with a line break'),
])
def test_shards_that_cannot_be_read_by_sample_are_refused(tmp_path, names, message):
    with tarfile.open(tmp_path / 'x.tar', 'w') as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match=message):
        index_tars([str(tmp_path / 'x.tar')])


def test_what_is_no_tar_is_named_with_all_others(tmp_path):
    (tmp_path / 'text.tar').write_text('x' * 600)
    (tmp_path / 'empty.tar').touch()
    (tmp_path / 'x.tar.gz').touch()
    paths = [make(tmp_path / 'good.tar'), *(str(tmp_path / name) for name in ('text.tar', 'empty.tar', 'x.tar.gz',
                                                                              'none.tar'))]
    with pytest.raises(DataError, match=r'4 of 5 shards.*text.tar is no tar file; .*empty.tar is empty \(0 bytes\); '
                                        r'.*x.tar.gz is compressed.*unpack it.*none.tar cannot be opened'):
        index_tars(paths)
    with pytest.raises(DataError, match="good.tar has no member '7.jpg'"):
        read_member(f'{paths[0]}/7.jpg')


def test_a_path_into_a_tar_is_told_from_others():
    assert split_path('a/00.tar/b/1.jpg') == ('a/00.tar', 'b/1.jpg')
    assert split_path('a/00.tar') is split_path('a/1.jpg') is split_path('a.tar/') is None
