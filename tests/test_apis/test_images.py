"""Every kind of image gives the pixels that LoadImage gives, or an error that names it."""
import functools
import http.server
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmblip2.apis.images import count_images, image_stem, is_image, is_several, iterate_images, load_image
from mmblip2.datasets.transforms import LoadImage
from mmblip2.errors import DataError


def noise(width=6, height=4, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    Image.fromarray(noise()).save(path)
    return path


def pixels(source, index=0):
    image = load_image(source, index)
    assert image.mode == 'RGB'
    return np.asarray(image)


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    Image.fromarray(noise(9, 5)).save(path, exif=exif)


def sixteen_bits(path):
    Image.fromarray(np.array([[0, 128, 257, 32896, 65535]], dtype=np.uint16)).save(path)


def palette(path, transparency=None):
    image = Image.fromarray(noise()).quantize(8)
    image.save(path, **({} if transparency is None else dict(transparency=transparency)))


FILES = {
    'palette.png': palette,
    'palette_transparent.png': functools.partial(palette, transparency=bytes([0, 128, 255])),
    'grey.png': lambda path: Image.fromarray(noise()).convert('L').save(path),
    'grey.jpg': lambda path: Image.fromarray(noise()).convert('L').save(path),
    'bilevel.png': lambda path: Image.fromarray(noise()).convert('1').save(path),
    'grey_alpha.png': lambda path: Image.fromarray(noise(channels=4)).convert('LA').save(path),
    'rgba.png': lambda path: Image.fromarray(noise(channels=4)).save(path),
    'cmyk.jpg': lambda path: Image.fromarray(noise()).convert('CMYK').save(path),
    'rotated.jpg': rotated,
    'wide.png': lambda path: Image.fromarray(noise(10_000, 3)).save(path),
}


@pytest.mark.parametrize('name', FILES)
def test_a_file_gives_pillows_rgb_in_training_and_inference(tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    with Image.open(path) as file:
        expected = np.asarray(file.convert('RGB'))  # what transformers does; the EXIF rotation is not applied
    np.testing.assert_array_equal(pixels(path), expected)
    np.testing.assert_array_equal(np.asarray(LoadImage()({'img_path': str(path)})['image']), expected)
    with Image.open(path) as file:
        np.testing.assert_array_equal(pixels(file), expected)
    with Image.open(path) as file:
        np.testing.assert_array_equal(np.asarray(LoadImage()({'image': file})['image']), expected)


def test_alpha_is_dropped_not_blended():
    red = Image.new('RGBA', (2, 2), (200, 10, 20, 0))
    assert pixels(red)[0, 0].tolist() == [200, 10, 20]


@pytest.mark.parametrize('name', ['grey.png', 'grey.tif'])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    path = tmp_path / name
    sixteen_bits(path)
    expected = [0, 0, 1, 128, 255]
    for image in (pixels(path), np.asarray(LoadImage()({'img_path': path})['image'])):
        assert image[0].tolist() == [[value] * 3 for value in expected]
    as_older_pillow = Image.fromarray(np.array([[0, 128, 257, 32896, 65535]], dtype=np.int32))
    assert as_older_pillow.mode == 'I' and pixels(as_older_pillow)[0, :, 0].tolist() == expected


def test_pixels_without_a_known_range_are_refused():
    assert pixels(Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32)))[0, :, 0].tolist() == [0, 7, 255]
    with pytest.raises(DataError, match=r'image 2 \(PIL.Image\): its pixels are 32-bit integers from -1 to 70000, and '
                                        'nothing says which value is white'):
        load_image(Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)), 2)
    with pytest.raises(DataError, match='floating point'):
        load_image(Image.fromarray(np.zeros((2, 2), dtype=np.float32)))


def test_arrays_are_bgr():
    rgb = noise()
    np.testing.assert_array_equal(pixels(rgb[:, :, ::-1]), rgb)
    bgra = np.concatenate([rgb[:, :, ::-1], noise(channels=1)], axis=2)
    np.testing.assert_array_equal(pixels(bgra), rgb)
    for grey in (rgb[:, :, 0], rgb[:, :, :1]):
        np.testing.assert_array_equal(pixels(grey), np.repeat(rgb[:, :, :1], 3, axis=2))


@pytest.mark.parametrize('array, message', [
    (np.zeros((4, 4, 3), np.float32), r'image 3 \(numpy array of float32, shape \(4, 4, 3\)\).*pixels 0-255'),
    (np.zeros((3, 4, 5), np.uint8), r'expected uint8 of shape .* needs array.transpose\(1, 2, 0\)'),
    (np.zeros((4, 4, 2), np.uint8), 'expected uint8 of shape'),
    (np.zeros((0, 4, 3), np.uint8), 'it has no pixels'),
])
def test_other_arrays_are_refused(array, message):
    with pytest.raises(DataError, match=message):
        load_image(array, 3)


def test_broken_files_are_named_with_their_index(tmp_path, photo):
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'text.jpg').write_text('<html>')
    (tmp_path / 'cut.png').write_bytes(photo.read_bytes()[:60])
    for name, message in (('empty.jpg', r'empty \(0 bytes\)'), ('text.jpg', 'UnidentifiedImageError'),
                          ('cut.png', 'OSError|SyntaxError|UnidentifiedImageError'), ('none.jpg', 'no such file')):
        with pytest.raises(DataError, match=rf'cannot read image 4 \(.*{name}\): .*({message})'):
            load_image(tmp_path / name, 4)
    with pytest.raises(DataError, match=r'cannot read image .*empty.jpg \(sample 7\): the file is empty'):
        LoadImage()({'img_path': str(tmp_path / 'empty.jpg'), 'sample_idx': 7})
    with pytest.raises(DataError, match='it is a directory: give it by itself'):
        load_image(tmp_path)
    with pytest.raises(DataError, match='image 1 is a int: expected a path, an http'):
        load_image(5, 1)


def test_an_image_opened_by_the_caller_that_is_broken(tmp_path, photo):
    big = tmp_path / 'big.jpg'
    Image.fromarray(noise(200, 200)).save(big)
    big.write_bytes(big.read_bytes()[:2000])
    with pytest.raises(DataError, match=r'cannot read image 1 \(.*big.jpg\): OSError'):
        load_image(Image.open(big), 1)


def test_more_pixels_than_pillow_takes_are_refused(photo, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
    with pytest.raises(DataError, match='photo.png.*DecompressionBombError'):
        load_image(photo)


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()
    thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == '/short.png':
            self.send_response(200)
            self.send_header('Content-Length', '9999')
            self.end_headers()
            self.wfile.write(b'few bytes')
        elif self.path == '/garbage.png':
            self.wfile.write(b'no such protocol\r\n\r\n')
        else:
            super().do_GET()


def test_urls(tmp_path, photo, address):
    (tmp_path / 'empty.png').touch()
    for url in (f'{address}/photo.png', f'{address}/photo.png?size=1', photo.as_uri()):
        np.testing.assert_array_equal(pixels(url), noise())
        assert image_stem(url, 0) == 'photo'
    with pytest.raises(DataError, match=rf'image 2 \({address}/none.png\): the server answers 404'):
        load_image(f'{address}/none.png', 2)
    with pytest.raises(DataError, match='empty'):
        load_image(f'{address}/empty.png')
    with pytest.raises(DataError, match='is the address right'):
        load_image((tmp_path / 'none.png').as_uri())


def test_urls_are_quoted_as_browsers_do(tmp_path, photo, address):
    photo.rename(tmp_path / 'ä photo.png')
    for name in ('ä photo.png', '%C3%A4%20photo.png', 'ä photo.png?a b=ö#c d'):
        np.testing.assert_array_equal(pixels(f'{address}/{name}'), noise())


def test_answers_that_are_no_image_are_said(tmp_path, address):
    (tmp_path / 'page.png').write_text('<html>no</html>')
    for url, message in ((f'{address}/page.png', r"no image that Pillow reads, it begins with b'<html>"),
                         (f'{address}/short.png', 'the connection broke off after 9 of 9999 bytes: try again'),
                         (f'{address}/garbage.png', 'no such protocol: is the address right'),
                         ('http://host:port/a.png', "nonnumeric port: 'port': is the address right")):
        with pytest.raises(DataError, match=re.escape(f'cannot read image 3 ({url}): {message}')):
            load_image(url, 3)


def test_no_server_is_a_clear_error(monkeypatch, address):
    with pytest.raises(DataError, match='Download it by hand and give its path'):
        load_image('http://127.0.0.1:1/a.png')


def test_a_download_that_is_too_large_is_refused(photo, address, monkeypatch):
    monkeypatch.setattr('mmblip2.apis.images._MOST_BYTES', 20)
    with pytest.raises(DataError, match='larger than'):
        load_image(f'{address}/photo.png')


def test_inputs_become_single_images(tmp_path, photo):
    (tmp_path / 'a.JPG').write_bytes(b'')
    (tmp_path / 'notes.txt').touch()
    (tmp_path / 'folder.png').mkdir()
    array = noise()
    assert list(iterate_images(str(photo))) == [str(photo)] and not is_several(photo)
    assert [path.name for path in iterate_images(tmp_path)] == ['a.JPG', 'photo.png']
    assert [path.name for path in iterate_images(str(tmp_path))] == ['a.JPG', 'photo.png']
    assert list(iterate_images(path for path in (photo, photo))) == [photo, photo]
    assert len(list(iterate_images([array, photo]))) == 2
    assert [image.shape for image in iterate_images(np.stack([array, array]))] == [array.shape] * 2
    assert list(iterate_images(array))[0] is array
    counts = [photo, tmp_path, [photo, array], (photo, ), array, np.stack([array] * 3), iter([photo])]
    assert [count_images(item) for item in counts] == [1, 2, 2, 1, 1, 3, None]
    assert [is_several(item) for item in counts] == [False, True, True, True, False, True, True]
    with pytest.raises(DataError, match='has no images'):
        list(iterate_images(tmp_path / 'folder.png'))


def test_generators_are_read_one_by_one(photo):
    taken = []

    def images():
        for i in range(3):
            taken.append(i)
            yield photo
    rows = iterate_images(images())
    next(rows)
    assert taken == [0]


def test_images_and_texts_are_told_apart(photo):
    assert all(map(is_image, ['a.jpg', 'b.PNG', Path('x'), noise(), Image.new('L', (1, 1)), 'https://host/picture']))
    assert not any(map(is_image, ['a red circle', 'e.g. this one', '', 3, None]))


def test_names_of_pictures(photo):
    with Image.open(photo) as file:
        assert image_stem(file, 3) == 'photo'
    assert image_stem(photo, 3) == image_stem(str(photo), 3) == 'photo'
    assert image_stem(noise(), 3) == image_stem(Image.new('L', (1, 1)), 3) == 'image_000003'
