"""Weights are found where they are, downloaded whole or not at all, and an error says what to do."""
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmblip2.checkpoints import sources
from mmblip2.checkpoints.sources import is_hub_name, locate
from mmblip2.errors import CheckpointError

CONTENT = b'weights' * 1000
HASH = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Empty caches, no network, a working directory of its own."""
    monkeypatch.delenv('MMBLIP2_WEIGHTS', raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/served; ``asked`` has what it was asked for."""
    (tmp_path / 'served').mkdir()

    class Handler(SimpleHTTPRequestHandler):

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

        def copyfile(self, source, outputfile):
            content = source.read()
            outputfile.write(content[:len(content) // 2] if 'short' in self.path else content)

    asked = []
    running = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(tmp_path / 'served')))
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    running.asked, running.folder = asked, tmp_path / 'served'
    running.url = f'http://127.0.0.1:{running.server_port}'
    yield running
    running.shutdown()
    running.server_close()


def write(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_path_comes_before_everything_else(places, monkeypatch):
    monkeypatch.setenv('MMBLIP2_WEIGHTS', str(places / 'mine'))
    write(places / 'mine' / 'eva_vit_g.pth')
    own = write(places / 'here' / 'data' / 'pretrained' / 'eva_vit_g.pth', b'own')
    assert locate('data/pretrained/eva_vit_g.pth').read_bytes() == own.read_bytes()
    own.unlink()
    assert locate('data/pretrained/eva_vit_g.pth') == places / 'mine' / 'eva_vit_g.pth'


def test_the_folders_of_the_variable_come_before_the_caches(places, monkeypatch, server):
    cached = write(places / 'torch' / 'hub' / 'checkpoints' / 'blip2_pretrained.pth', b'cache')
    url = f'{server.url}/blip2_pretrained.pth'
    assert locate(url) == cached
    second = write(places / 'two' / 'blip2_pretrained.pth', b'own')
    monkeypatch.setenv('MMBLIP2_WEIGHTS', f'{places / "one"}{sources.os.pathsep}{places / "two"}')
    assert locate(url) == second
    assert locate('blip2_pretrained.pth') == second
    assert not server.asked


def test_models_of_the_hub_are_found_in_the_variable_and_in_the_cache(places, monkeypatch):
    snapshot = places / 'hub' / 'models--owner--model' / 'snapshots' / 'a1'
    write(snapshot.parents[1] / 'refs' / 'main', b'a1')
    write(snapshot / 'config.json', b'{}')
    index = dict(weight_map=dict(a='model-1.safetensors', b='model-2.safetensors'))
    write(snapshot / 'model.safetensors.index.json', json.dumps(index).encode())
    write(snapshot / 'model-1.safetensors')
    # the cache is read by its module, which has its own copy of the constant
    monkeypatch.setattr('huggingface_hub.file_download.constants.HF_HUB_CACHE', str(places / 'hub'))
    with pytest.raises(CheckpointError, match='owner/model not found'):
        locate('owner/model')  # a part is missing
    for broken in (b'{"weight_m', b'[]'):
        write(snapshot / 'model.safetensors.index.json', broken)
        with pytest.raises(CheckpointError, match='owner/model not found'):
            locate('owner/model')
    write(snapshot / 'model.safetensors.index.json', json.dumps(index).encode())
    write(snapshot / 'model-2.safetensors')
    assert locate('owner/model') == snapshot
    (places / 'mine' / 'model').mkdir(parents=True)
    monkeypatch.setenv('MMBLIP2_WEIGHTS', str(places / 'mine'))
    assert locate('owner/model') == places / 'mine' / 'model'
    (places / 'mine' / 'owner' / 'model').mkdir(parents=True)
    assert locate('owner/model') == places / 'mine' / 'owner' / 'model'


def test_a_download_is_kept_with_its_hash_checked(places, server):
    name = f'blip2_3rdparty_pretrain_20230505-{HASH}.pth'
    write(server.folder / name)
    found = locate(f'{server.url}/{name}?download=true')
    assert found == places / 'torch' / 'hub' / 'checkpoints' / name and found.read_bytes() == CONTENT
    (server.folder / name).unlink()
    assert locate(f'{server.url}/{name}?download=true') == found
    assert len(server.asked) == 1
    found.write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match=rf'{name} is not the file that its name says.*expected {HASH}.*delete'):
        locate(f'{server.url}/{name}?download=true')


@pytest.mark.parametrize('name, message', [
    ('model-12345678.pth', r'sha256 \w{8}\.\.\., its name says 12345678'),
    ('short.pth', 'ended after 3500 of 7000 bytes|IncompleteRead'),
    ('missing.pth', 'HTTP Error 404'),
    ('page.pth', 'what came is a web page'),
    ('folder/..', 'the address does not end in the name of a file'),
])
def test_what_is_not_whole_gets_no_name(places, server, name, message):
    if name not in ('missing.pth', 'folder/..'):
        write(server.folder / name, b'\n<!DOCTYPE html>' if name == 'page.pth' else CONTENT)
    (places / 'torch' / 'hub' / 'checkpoints').mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f'could not be downloaded from {server.url}/{name}.*({message})'):
        locate(f'{server.url}/{name}')
    left = {path.name for path in (places / 'torch' / 'hub' / 'checkpoints').iterdir()}
    assert left <= {f'{name}.lock'}


def test_what_a_killed_process_left_is_overwritten(places, server):
    left = write(places / 'torch' / 'hub' / 'checkpoints' / 'model.pth.part', b'half')
    write(server.folder / 'model.pth')
    assert locate(f'{server.url}/model.pth').read_bytes() == CONTENT and not left.exists()


def test_a_date_is_no_hash(server):
    write(server.folder / 'model-20230505.pth')
    assert locate(f'{server.url}/model-20230505.pth').read_bytes() == CONTENT


def test_two_files_of_one_name_are_two_files(server):
    write(server.folder / 'a' / 'model.pth', b'first')
    write(server.folder / 'b' / 'model.pth', b'second')
    assert locate(f'{server.url}/a/model.pth').read_bytes() == b'first'
    assert locate(f'{server.url}/b/model.pth').read_bytes() == b'second'


def test_one_of_several_downloads_and_the_others_wait(server):
    write(server.folder / 'model.pth')
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(locate, [f'{server.url}/model.pth'] * 6))
    assert len(set(found)) == 1 and found[0].read_bytes() == CONTENT
    assert server.asked == ['/model.pth']


def test_file_urls(places):
    path = write(places / 'a folder' / f'model-{HASH}.pth')
    assert locate(path.as_uri()) == locate(path.as_uri().replace('file:', 'FILE:')) == path
    path.write_bytes(b'other')
    with pytest.raises(CheckpointError, match='is not the file that its name says'):
        locate(path.as_uri())
    path.unlink()
    with pytest.raises(CheckpointError, match='model-.*not found: there is no address'):
        locate(path.as_uri())


def test_without_network_the_error_says_what_is_wanted_and_where_to_put_it(places, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError('Network is unreachable')

    monkeypatch.setattr('urllib.request.urlopen', refuse)
    with pytest.raises(CheckpointError) as caught:
        locate('data/pretrained/clip_vit_L.pth', 'weights of the vision encoder')
    message = str(caught.value)
    for said in ('weights of the vision encoder data/pretrained/clip_vit_L.pth not found',
                 f'could not be downloaded from {sources.LAVIS}BLIP2/clip_vit_L.pth (Network is unreachable)',
                 'MMBLIP2_WEIGHTS (not set)', str(places / 'torch' / 'hub' / 'checkpoints'), str(places / 'mmengine'),
                 str(places / 'here' / 'data' / 'pretrained'),
                 'Give the path of clip_vit_L.pth, or put it into a folder and set MMBLIP2_WEIGHTS=FOLDER'):
        assert said in message, said
    monkeypatch.setenv('MMBLIP2_WEIGHTS', str(places / 'mine'))
    with pytest.raises(CheckpointError, match=f'Looked in: .*{places / "mine"}'):
        locate('owner/model')


def test_what_no_one_published_has_no_address(places, monkeypatch):
    monkeypatch.setenv('MMBLIP2_WEIGHTS', str(places / 'mine'))
    write(places / 'mine' / 'iter_10.pth')
    with pytest.raises(CheckpointError, match='checkpoint work_dirs/a/iter_10.pth not found: .*no address'):
        locate('work_dirs/a/iter_10.pth')  # the variable's is that of another training
    with pytest.raises(CheckpointError, match='s3:// is none of https://, http://, file://'):
        locate('s3://bucket/model.pth')


def test_a_name_that_many_files_have_is_published_in_its_folder_only(places, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, '_blocks', lambda url, name: asked.append(url) or iter([b'["yes"]']))
    for path in ('answer_list.json', 'data/mine/answer_list.json', str(places / 'answer_list.json')):
        assert not sources.is_published(path)
        with pytest.raises(CheckpointError, match='there is no address to download it from'):
            locate(path)
    assert not asked
    for path in ('data/coco/annotations/answer_list.json', str(places / 'coco' / 'annotations' / 'answer_list.json')):
        assert sources.is_published(path)
        assert locate(path).read_bytes() == b'["yes"]'
        with pytest.raises(CheckpointError, match='no address'):  # nor is the one that came
            locate('data/mine/answer_list.json')
    assert asked == [sources.PUBLISHED['coco/annotations/answer_list.json']]
    write(places / 'mine' / 'answer_list.json')
    monkeypatch.setenv('MMBLIP2_WEIGHTS', str(places / 'mine'))
    assert locate('data/other/answer_list.json') == places / 'mine' / 'answer_list.json'


def test_names_on_the_hub(places):
    assert is_hub_name('Salesforce/blip2-opt-2.7b') and is_hub_name('google/flan-t5-xl')
    (places / 'here' / 'runs').mkdir()
    for name in ('work_dirs/blip2_vit-g_stage1', 'a/b.pth', 'a/b/c', 'a', '../a', './a', 'runs/stage1', '/a/b', ''):
        assert not is_hub_name(name), name


def test_transformers_gets_a_folder_or_a_name_on_the_hub(places, monkeypatch):
    assert sources.local_or_hub('data/pretrained/bert-base-uncased') == 'google-bert/bert-base-uncased'
    assert sources.local_or_hub('facebook/opt-2.7b') == 'facebook/opt-2.7b'
    monkeypatch.setenv('MMBLIP2_WEIGHTS', str(places / 'mine'))
    for name, given in (('bert-base-uncased', 'data/pretrained/bert-base-uncased'), ('opt-2.7b', 'facebook/opt-2.7b')):
        (places / 'mine' / name).mkdir(parents=True)
        assert sources.local_or_hub(given) == str(places / 'mine' / name)
