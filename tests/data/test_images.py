"""Images of every format and mode become RGB squares; everything else becomes one sentence."""

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scratchnet.data import DataError, image_to_array, images_in, load_image
from scratchnet.data import _decoding as decoding
from scratchnet.data import images as module
from scratchnet.data.images import resize_and_crop


def encoded(image, format_="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def noise(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def saved(tmp_path):
    def save(image, format_="PNG", **options):
        path = tmp_path / f"image.{format_.lower()}"
        path.write_bytes(encoded(image, format_, **options))
        return path

    return save


# ---- modes and formats ----


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_an_image_comes_back_as_it_was(saved, kind):
    found = load_image(kind(saved(noise())))
    assert found.mode == "RGB" and np.array_equal(found, noise())


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_common_formats_and_modes(saved, format_, mode):
    colour = {"RGB": (200, 40, 90), "L": 120, "1": 1, "P": 5}[mode]
    image = Image.new(mode, (20, 10), colour)
    if mode == "P":
        image.putpalette([value for k in range(256) for value in (k, 2 * k % 256, 255 - k)])
    if format_ in ("JPEG", "WEBP", "PPM") and mode in ("P", "1"):
        image = image.convert("RGB")
    found = load_image(saved(image, format_))
    assert found.mode == "RGB" and found.size == (20, 10)
    expected = np.asarray(image.convert("RGB"), int)
    assert np.abs(np.asarray(found, int) - expected).max() <= 8


@pytest.mark.parametrize("mode, clear", [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))])
def test_transparent_places_become_white(saved, mode, clear):
    assert load_image(saved(Image.new(mode, (4, 4), clear))).getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_places_are_mixed_with_white(saved):
    found = load_image(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))).getpixel((1, 1))
    assert all(abs(value - 127) <= 1 for value in found)


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_transparent_palette_entries_become_white(saved, format_):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    image.putpixel((3, 3), 1)
    found = load_image(saved(image, format_, transparency=0))
    assert found.getpixel((0, 0)) == (255, 255, 255) and found.getpixel((3, 3)) == (200, 100, 50)


def test_transparent_grey_and_rgb_colours_become_white(saved):
    assert load_image(saved(Image.new("L", (4, 4), 7), transparency=7)).getpixel((0, 0)) == (255,) * 3
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert load_image(saved(image, transparency=(1, 2, 3))).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(saved, format_):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    found = np.asarray(load_image(saved(Image.fromarray(values), format_)))
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("clear", [(0x1234, 0x5678, 0x9ABC), (0x12, 0x56, 0x9A), (0x34FF, 0, 0)])
def test_the_transparent_colour_of_sixteen_bits_becomes_white(tmp_path, clear):
    pixels = [(0x1234, 0x5678, 0x9ABC), (0x12, 0x56, 0x9A), (0x3400, 0, 0), (0x56, 0x1200, 0x9A00)]
    header = struct.pack(">IIBBBBB", len(pixels), 1, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" + b"".join(struct.pack(">3H", *pixel) for pixel in pixels))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", header),
        (b"tRNS", struct.pack(">3H", *clear)),
        (b"IDAT", rows),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "a.png").write_bytes(content)
    found = np.asarray(load_image(tmp_path / "a.png"))[0].tolist()
    shown = [[value >> 8 for value in pixel] for pixel in pixels]  # Pillow keeps the upper bytes
    white = shown.index([value >> 8 for value in clear])
    assert found == [*shown[:white], [255] * 3, *shown[white + 1 :]]


def test_the_transparent_shade_of_sixteen_bits_becomes_white(saved):
    values = np.array([[0, 4660, 65535]], np.uint16)
    found = np.asarray(load_image(saved(Image.fromarray(values), transparency=4660)))
    assert found[0, :, 0].tolist() == [0, 255, 255]


def test_floats_of_both_habits(saved):
    for scale in (1, 255):
        values = np.array([[0, 0.2, 1]], np.float32) * scale
        assert np.asarray(load_image(saved(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [
            0,
            51,
            255,
        ]


def test_cmyk(saved):
    found = load_image(saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)).getpixel(
        (8, 8)
    )
    assert found[0] < 20 and found[1] > 200 and found[2] > 200


def test_first_frame_of_an_animation(saved):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "orientation, turn",
    [
        (1, None),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_270),
        (8, Image.Transpose.ROTATE_90),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_exif_orientation_is_obeyed(saved, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = load_image(saved(noise(), "PNG", exif=exif))
    assert np.array_equal(found, noise() if turn is None else noise().transpose(turn))


def test_malformed_exif_does_not_matter(saved):
    assert load_image(saved(noise(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")).size == (40, 30)


# ---- to an array ----


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 70))
@settings(deadline=None, max_examples=40)
def test_any_size_becomes_the_asked_square(width, height, size):
    array = image_to_array(noise(width, height), size)
    assert array.shape == (size, size, 3) and array.dtype == np.uint8 and array.flags.writeable


def test_the_right_size_is_unchanged():
    assert np.array_equal(image_to_array(noise(32, 32), 32), noise(32, 32))


def test_the_centre_square_is_kept_and_nothing_squeezed():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    assert (image_to_array(Image.fromarray(wide), 20) == 255).all()
    assert (image_to_array(Image.fromarray(wide.transpose(1, 0, 2)), 20) == 255).all()


def test_shrinking_averages():
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    array = image_to_array(Image.fromarray(board.astype(np.uint8)), 32)
    assert np.abs(array.astype(int) - 127).max() <= 2


def test_other_modes_are_converted():
    assert (image_to_array(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), 4) == 255).all()


def test_an_impossible_size_is_refused():
    with pytest.raises(ValueError, match="size must be a whole number of at least 1, not 0"):
        image_to_array(noise(), 0)


# ---- what is no image ----


def refused(path, message=None):
    with pytest.raises(DataError, match=message) as caught:
        load_image(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and " object at 0x" not in text
    return text


def test_missing_empty_and_folder(tmp_path):
    refused(tmp_path / "missing.png", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", "is empty")
    refused("")
    refused("x" * 5000)


def test_a_name_with_a_null_character():
    with pytest.raises(DataError):
        load_image("cat\0.png")


@pytest.mark.parametrize(
    "content", [b"hello, world\n", bytes(1000), b"<html></html>", b"\x89PNG\r\n\x1a\n", b"GIF89a"]
)
def test_a_file_that_is_no_image(tmp_path, content):
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_images_are_refused_wherever_they_end(tmp_path, format_):
    whole = encoded(noise(64, 64), format_)
    for share in (0.02, 0.3, 0.6, 0.9):
        path = tmp_path / "cut"
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_random_damage_never_ends_in_another_error(tmp_path, format_):
    whole, rng = encoded(noise(16, 16), format_), np.random.default_rng(0)
    path = tmp_path / "damaged"
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=4):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            load_image(path)
        except DataError:
            pass


def test_a_decompression_bomb(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    for side in (11_000, 20_000, 60_000):  # Pillow itself says nothing, warns, and refuses
        content = bytearray(encoded(noise()))
        content[16:24] = struct.pack(
            ">II", side, side
        )  # width and height in the PNG's header, then its checksum
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
        refused(path, "too large")
    path.write_bytes(encoded(noise()))
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    refused(path, "larger than")


def test_postscript_is_not_run(tmp_path):
    path = tmp_path / "image.eps"
    path.write_bytes(encoded(noise(), "EPS"))
    refused(path, "PostScript")


def test_other_addresses_are_refused():
    for address in ("ftp://127.0.0.1/cat.png", "file:///etc/hostname", "s3://bucket/cat.png"):
        refused(address, "neither a file nor an http or https address")


def test_images_in_subfolders_are_found_each_once_and_hidden_files_are_not(tmp_path):
    for name in ("b/c/2.jpg", "b/1.PNG", "a.webp", "b/notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    found = [str(Path(path).relative_to(tmp_path)) for path in images_in(tmp_path)]
    assert found == ["a.webp", "b/1.PNG", "b/c/2.jpg"]


# ---- memory ----


def test_threads_together_decode_no_more_than_is_allowed(tmp_path, monkeypatch):
    names = []
    for k in range(12):
        names.append(tmp_path / f"{k}.png")
        Image.new("L", (500, 400), k).save(names[-1])
    most, taken = 2 * 500 * 400 * decoding.BYTES_PER_PIXEL, []

    class Watched(decoding._Memory):
        @contextmanager
        def taken(self, size, name):
            with super().taken(size, name):
                taken.append(self._taken)
                yield

    monkeypatch.setattr(module, "MEMORY", Watched())
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", most)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: module.load_array(name, 8), names))
    assert [int(pixels[0, 0, 0]) for pixels in found] == list(range(12))
    assert max(taken) <= most and module.MEMORY._taken == 0
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 1)  # each alone, then
    assert load_image(names[3]).size == (500, 400)


def test_an_image_that_needs_more_memory_than_there_is_is_refused_before_it_is_decoded(saved, monkeypatch):
    path = saved(Image.new("1", (9000, 9000)))
    monkeypatch.setattr(decoding.system, "available_bytes", lambda: 500 << 20)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    refused(path, r"too large for this machine: decoding it takes 1.3 GB, of which 0.5 GB are free")


def test_warnings_come_back_when_threads_have_decoded(saved):
    path, before = saved(noise(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load_image, [path] * 100))
    assert warnings.filters == before


# ---- from a server ----


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        image = encoded(noise())
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a%20cat.png")
        elif self.path == "/to-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
        elif self.path in ("/a%20cat.png", "/k%C3%A4tzchen.png?x=1"):
            self.send_response(200)
        elif self.path == "/page":
            self.send_response(200)
            image = b"<html>Not an image</html>"
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", str(len(image)))
            image = image[: len(image) // 2]
        elif self.path == "/large":
            self.send_response(200)
            image = bytes(5000)
        elif self.path == "/empty":
            self.send_response(200)
            image = b""
        else:
            self.send_error(404)
            return
        self.end_headers()
        self.wfile.write(image)


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/a%20cat.png", "/a cat.png", "/kätzchen.png?x=1", "/moved"])
def test_an_image_from_an_address(server, path):
    assert np.array_equal(load_image(server + path), noise())


@pytest.mark.parametrize(
    "path, message",
    [
        ("/nothing", "answered 404"),
        ("/page", "is not an image"),
        ("/short", "truncated"),
        ("/empty", "is empty"),
        ("/to-file", "cannot be fetched"),
    ],
)
def test_an_address_without_an_image(server, path, message):
    refused(server + path, message)


def test_an_endless_address(server, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    refused(server + "/large", "larger than")


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/cat.png", "http://", "http://[::1/cat.png", "https://a b/"]
)
def test_an_address_that_cannot_be_reached(address):
    refused(address, "cannot be fetched")


def test_images_are_decoded_ahead_in_order_and_errors_stay_in_their_place(tmp_path):
    from scratchnet.data import decode_ahead

    names = []
    for k in range(12):
        names.append(tmp_path / f"{k}.png")
        Image.new("RGB", (9, 7), (20 * k, 0, 0)).save(names[-1])
    names[5].write_text("hello")
    started = []

    def watched():
        for name in names:
            started.append(name)
            yield name

    results = decode_ahead(watched(), 4, ahead=3)
    first = next(results)
    assert first[0] == names[0] and len(started) == 4  # no more than asked for
    rest = [first, *results]
    assert [name for name, _ in rest] == names
    assert isinstance(rest[5][1], DataError)
    assert [int(pixels[0, 0, 0]) for name, pixels in rest if name != names[5]] == [
        20 * k for k in range(12) if k != 5
    ]


@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_a_batch_is_resized_and_cut_as_an_image_is(crop):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 52, 3), np.uint8)
    one_by_one = [image_to_array(Image.fromarray(image), 32, crop) for image in pixels]
    assert (resize_and_crop(pixels, 32, crop) == np.stack(one_by_one)).all()
    square = pixels[:, :32, :32]
    unchanged = (resize_and_crop(square, 32, crop) == square).all()
    assert unchanged == (crop == 1)
