"""Images from files and addresses, as a network takes them."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from scratchnet import checks, workers
from scratchnet.backend import Array
from scratchnet.data import web
from scratchnet.data._common import DataError
from scratchnet.data._decoding import BYTES_PER_ODD_PIXEL, BYTES_PER_PIXEL, MEMORY, WITHOUT_WARNINGS

MAX_BYTES = 64 << 20  # of a file from a URL
MAX_PIXELS = 100_000_000  # of any image: more is a decompression bomb, or at least not a photograph
Name: TypeAlias = str | os.PathLike[str]  # of a file, or an address
Decoded: TypeAlias = np.ndarray | DataError


def load_image(path_or_url: Name) -> Image.Image:
    """Read an image of any format and mode that Pillow knows.

    Parameters
    ----------
    path_or_url : str or os.PathLike
        A file, or an http or https address.

    Returns
    -------
    PIL.Image.Image
        In mode RGB and upright, as the camera's EXIF note says. Transparent places become white, 16 bits
        become 8, and of an animation it is the first frame.

    Raises
    ------
    DataError
        If there is no such file, or it is empty, truncated, too large or no image; one sentence that names
        it.

    Examples
    --------
    >>> load_image("no/such/cat.png")
    Traceback (most recent call last):
    scratchnet.data._common.DataError: no/such/cat.png does not exist
    """
    content, name = _content(path_or_url)
    with ExitStack() as held:
        return _decode(content, name, held)


def load_array(path_or_url: Name, size: int, crop: float = 1.0) -> np.ndarray:
    """Read an image as ``load_image`` does, and resize it as ``image_to_array`` does.

    However many threads do so, together they hold no more decoded pixels than MAX_DECODED_BYTES, or those of
    one image, and no image that this machine has not the memory for.

    Parameters
    ----------
    path_or_url : str or os.PathLike
    size : int
    crop : float

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)

    Raises
    ------
    DataError
        As ``load_image``.

    Examples
    --------
    >>> load_array("no/such/cat.png", 32)
    Traceback (most recent call last):
    scratchnet.data._common.DataError: no/such/cat.png does not exist
    """
    content, name = _content(path_or_url)
    with ExitStack() as held:
        return image_to_array(_decode(content, name, held), size, crop)


def _content(path_or_url: Name) -> tuple[bytes, str]:
    """Return the bytes of a file or address, and its name as messages show it."""
    name = os.fsdecode(path_or_url)
    scheme, separator, _ = name.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        content, name = _fetch(name), web.shown(name)
    elif separator:
        raise DataError(f"{web.shown(name)} is neither a file nor an http or https address")
    else:
        content = _read(name)
    if not content:
        raise DataError(f"{name} is empty")
    return content, name


def _decode(content: bytes, name: str, held: ExitStack) -> Image.Image:
    """Return an image in RGB; its memory counts as taken until ``held`` is closed."""
    try:
        with WITHOUT_WARNINGS, Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                found = f"{width} x {height} pixels"
                raise DataError(f"{name} is too large: {found}, where {MAX_PIXELS:,} are allowed")
            if image.format == "EPS":  # a program rather than an image: Pillow would start Ghostscript
                raise DataError(f"{name} is PostScript, not an image: export it as PNG first")
            plain = image.mode in ("RGB", "L", "1", "P", "CMYK", "YCbCr") and "transparency" not in image.info
            pixels = width * height
            held.enter_context(
                MEMORY.taken(pixels * (BYTES_PER_PIXEL if plain else BYTES_PER_ODD_PIXEL), name)
            )
            clear = image.info.get("transparency")
            if [tile[3] for tile in image.tile] == ["RGB;16B"] and isinstance(clear, tuple):
                # Pillow keeps the upper bytes of such pixels, and would compare them with a whole colour.
                image.info["transparency"] = tuple(value >> 8 for value in clear)
            image.load()
            return _to_rgb(_upright(image))
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(f"{name} is not an image that can be read") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name} is too large: more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # decoders of damaged files raise anything
        reason = error or type(error).__name__
        raise DataError(f"{name} cannot be decoded, it may be truncated: {reason}") from error


def image_to_array(image: Image.Image, size: int, crop: float = 1.0) -> np.ndarray:
    """Cut the centre square out of an image and resize it.

    The largest centred square is resized (bilinear, with Pillow's smoothing when it shrinks): nothing is
    squeezed, and an image that has the right size already is handed out unchanged.

    Parameters
    ----------
    image : PIL.Image.Image
        Any size; modes other than RGB are converted as `load_image` does.
    size : int
        Height and width of the result in pixels.
    crop : float
        The part of the shorter side that the square takes. Below 1 the image is resized first, its shorter
        side to ``size / crop``, and then cut, as torchvision does for its networks, with 224 / 256.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)

    Raises
    ------
    ValueError
        If `size` is no whole number of at least 1, or `crop` not between 0.1 and 1.

    Examples
    --------
    >>> image_to_array(Image.new("RGB", (640, 480), "red"), 32)[0, 0]
    array([255,   0,   0], dtype=uint8)
    """
    checks.whole(1, size=size)
    checks.real(0.1, 1.0, crop=crop)
    return np.array(_centre_square(_to_rgb(image), size, crop))


def resize_and_crop(images: np.ndarray, size: int, crop: float = 1.0) -> np.ndarray:
    """Do with a batch what ``image_to_array`` does with an image; of the right size it is handed out itself.

    Parameters
    ----------
    images : ndarray of uint8 or floats, shape (N, H, W, C)
    size : int
    crop : float

    Returns
    -------
    ndarray, shape (N, size, size, C), dtype of the images
        Floats are resized in float32.

    Examples
    --------
    >>> resize_and_crop(np.zeros((2, 28, 40, 1), np.float32), 14).shape
    (2, 14, 14, 1)
    """
    checks.whole(1, size=size)
    checks.real(0.1, 1.0, crop=crop)
    N, H, W, C = images.shape
    if (H, W) == (size, size) and crop == 1:
        return images
    result = np.empty((N, size, size, C), images.dtype)
    together = C == 3 and images.dtype == np.uint8  # Pillow knows no other pixels of several channels
    for image, out in zip(images, result, strict=True):
        if together:
            out[...] = _centre_square(Image.fromarray(image), size, crop)
            continue
        for channel in range(C):
            plane = image[..., channel]
            plane = plane if images.dtype == np.uint8 else plane.astype(np.float32)
            out[..., channel] = _centre_square(Image.fromarray(plane), size, crop)
    return result


def _centre_square(image: Image.Image, size: int, crop: float = 1.0) -> Image.Image:
    """Resize an image, its shorter side to ``size / crop``, and cut off what is beyond the centred square."""
    least = min(image.size)
    square: list[tuple[float, float]]
    if crop == 1:
        square = [((side - least) // 2, (side - least) // 2 + least) for side in image.size]
    else:
        square, shorter = [], int(size / crop)
        for side in image.size:
            resized = int(shorter * side / least)
            start = round((resized - size) / 2)
            # in the image's own pixels, so that nothing is resized that is cut off
            square.append((start * side / resized, (start + size) * side / resized))
    (left, right), (top, bottom) = square
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def decode_ahead(
    names: Iterable[Name], size: int, ahead: int, crop: float = 1.0
) -> Iterator[tuple[Name, Decoded]]:
    """Read images in order, some of them ahead on worker threads, while the caller computes.

    Parameters
    ----------
    names : iterable of path or address
    size : int
        Height and width of the results, see ``image_to_array``.
    ahead : int
        How many to read ahead.
    crop : float
        The part of the shorter side that is seen, see ``image_to_array``.

    Yields
    ------
    name
        As it was given.
    pixels : ndarray of uint8, shape (size, size, 3), or DataError
        What was wrong, where one cannot be read; the others go on.

    Examples
    --------
    >>> [(name, str(error)) for name, error in decode_ahead(["no/such/cat.png"], 32, ahead=2)]
    [('no/such/cat.png', 'no/such/cat.png does not exist')]
    """
    checks.whole(1, size=size)
    checks.whole(0, ahead=ahead)
    checks.real(0.1, 1.0, crop=crop)

    def decode(name: Name) -> Decoded:
        try:
            return load_array(name, size, crop)
        except DataError as error:
            return error

    def first() -> tuple[Name, Decoded]:
        name, future = waiting.popleft()
        # An image that no worker has begun is decoded here: the pool may be busy, or the caller in it.
        return name, decode(name) if future.cancel() else future.result()

    waiting: deque[tuple[Name, Future[Decoded]]] = deque()
    try:
        for name in names:
            # What is fetched over a network is fetched by the caller, whom Ctrl-C can interrupt.
            remote = "://" in os.fsdecode(name)
            waiting.append((name, Future() if remote else workers.submit(decode, name)))
            if len(waiting) > ahead:
                yield first()
        while waiting:
            yield first()
    finally:  # also where the caller stops midway
        for _, future in waiting:
            future.cancel()


def _read(name: str) -> bytes:
    path = Path(name)
    try:
        if path.is_dir():
            raise DataError(f"{name} is a folder without images")
        if not path.exists():
            raise DataError(f"{name} does not exist")
        if not path.is_file():
            raise DataError(f"{name} is not a regular file")  # a pipe would wait forever, a device never end
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{name} is larger than {MAX_BYTES >> 20} MB")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"{name!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _fetch(url: str) -> bytes:
    name, content = web.shown(url), bytearray()
    try:
        with web.request(url) as (answer, _):
            if answer.status != 200:
                reason = f"the server answered {answer.status} {answer.reason}"
                raise DataError(f"{name} cannot be fetched: {reason}")
            while block := answer.read1(1 << 16):
                content += block
                if len(content) > MAX_BYTES:
                    raise DataError(f"{name} is larger than {MAX_BYTES >> 20} MB")
    except web.ERRORS as error:
        raise DataError(f"{name} cannot be fetched: {web.reason(error)}") from error
    return bytes(content)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # malformed metadata is no reason to refuse an image
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip every value above 255 to white. 65535 becomes 255 if divided by 257.
        values: Array = np.asarray(image).astype(np.int64)
        clear = values == image.info.get("transparency", -1)  # in a PNG, one shade of grey
        if image.mode != "I" or values.max(initial=0) > 255:
            values = (values + 128) // 257
        values[clear] = 255
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        scale = 255 if values.max(initial=0) <= 1 else 1  # the two habits of writing light as floats
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layers = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")
