"""CIFAR-10 and CIFAR-100 in their official layouts, read from disk, unpacked or downloaded.

A binary version is a folder of files of records: one label byte (CIFAR-100: two, coarse and fine) and 3,072
pixels, channels first. A Python version is a folder of pickles that hold the same, read as data
(``scratchnet/pickles.py``), since loading a pickle can run any program. (Krizhevsky 2009;
https://www.cs.toronto.edu/~kriz/cifar.html.)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchnet import pickles
from scratchnet.data import download as _network
from scratchnet.data._common import DataError, ImageData, MissingDataError
from scratchnet.locks import InUse, Lock

RECORDS = 10000  # of test images; of training images there are five times as many
PIXELS = 3 * 32 * 32
_AGAIN = "delete the folder and it is downloaded again"


class _Layout(NamedTuple):
    """What tells the two data sets apart."""

    name: str
    url: str  # of the binary version
    md5: str
    binary: str  # its folder
    python: str
    train: tuple[str, ...]  # files, without ending
    test: str
    label_bytes: int  # the last counts
    label_key: str
    names_file: str  # of the binary version
    meta_file: str
    names_key: str
    class_names: tuple[str, ...]  # where the files' own list is missing


_SITE = "https://www.cs.toronto.edu/~kriz/"
CIFAR10 = _Layout(
    "CIFAR-10",
    _SITE + "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    tuple(f"data_batch_{k}" for k in range(1, 6)),
    "test_batch",
    1,
    "labels",
    "batches.meta.txt",
    "batches.meta",
    "label_names",
    tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
)
CIFAR100 = _Layout(
    "CIFAR-100",
    _SITE + "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-binary",
    "cifar-100-python",
    ("train",),
    "test",
    2,
    "fine_labels",
    "fine_label_names.txt",
    "meta",
    "fine_label_names",
    tuple(
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
        "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach "
        "couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster "
        "house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree "
        "motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
        "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket "
        "rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
        "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip "
        "turtle wardrobe whale willow_tree wolf woman worm".split()
    ),
)

# From a folder and the name of one of its files to the pixels (n, PIXELS) and labels (n,).
ReadFile = Callable[[_Layout, Path, str], tuple[np.ndarray, np.ndarray]]


def cifar10(root: str | os.PathLike[str], download: bool = True) -> ImageData:
    """Read CIFAR-10, unpacking or downloading it first if need be.

    Parameters
    ----------
    root : str or os.PathLike
        The folder that holds ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, itself or in folders within
        (the first is read if both are there), or the archive of either; or that is to hold the download.
    download : bool
        Whether to download the official binary archive, 170 MB, where `root` has none of these.

    Returns
    -------
    ImageData
        50,000 training and 10,000 test images, uint8 (N, 32, 32, 3), labels int64 (N,), the ten class names
        as the files give them, and the name ``"CIFAR-10"``.

    Raises
    ------
    MissingDataError
        If there is no CIFAR-10 in `root`, and `download` is False or fails.
    DataError
        If a file is missing from its folder, short or altered; the message names it. A damaged folder is
        never mended by downloading over it.

    Examples
    --------
    >>> cifar10("no/such/folder", download=False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    scratchnet.data._common.MissingDataError: no CIFAR-10 in no/such/folder: it holds neither ...
    """
    return _load(CIFAR10, root, download)


def cifar100(root: str | os.PathLike[str], download: bool = True) -> ImageData:
    """Read CIFAR-100 with its 100 fine labels, unpacking or downloading it first if need be.

    Parameters
    ----------
    root : str or os.PathLike
        As for ``cifar10``; the folders are ``cifar-100-binary`` and ``cifar-100-python``.
    download : bool

    Returns
    -------
    ImageData
        As ``cifar10``, with the name ``"CIFAR-100"``.

    Raises
    ------
    MissingDataError, DataError
        As ``cifar10``.

    Examples
    --------
    >>> cifar100("no/such/folder", download=False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    scratchnet.data._common.MissingDataError: no CIFAR-100 in no/such/folder: it holds neither ...
    """
    return _load(CIFAR100, root, download)


def _load(layout: _Layout, root: str | os.PathLike[str], download: bool) -> ImageData:
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is not a folder: give the one that holds, or is to hold, {layout.binary}")
    if root.name in (layout.binary, layout.python) and root.is_dir():
        root = root.parent
    folder = _find(layout, root)
    if folder is not None:
        if _leftovers(layout, root):
            _tidy(layout, root)
    elif download or _archive(layout, root):
        folder = _fetch(layout, root)
    if folder is None:
        raise MissingDataError(
            f"no {layout.name} in {root}: it holds neither {layout.binary} nor {layout.python} nor an "
            "archive of either, and downloading is off"
        )
    return _read_all(layout, folder)


def _find(layout: _Layout, root: Path) -> Path | None:
    """Return the folder of the files, in `root` or up to two folders deeper; of the binary version first."""
    for name in (layout.binary, layout.python):
        first = f"{layout.train[0]}.bin" if name == layout.binary else layout.train[0]
        found = [path for depth in ("", "*/", "*/*/") for path in sorted(root.glob(depth + name))]
        for path in found:
            if (path / first).exists():
                return path
        if found:  # damaged, and to be named
            return found[0]
    return None


def _archive(layout: _Layout, root: Path) -> Path | None:
    stem = layout.name.lower()
    names = [f"{stem}-{kind}.{end}" for kind in ("binary", "python") for end in ("tar.gz", "tgz")]
    return next((root / name for name in names if (root / name).is_file()), None)


def _fetch(layout: _Layout, root: Path) -> Path | None:
    """Unpack the archive that lies in `root`, or the binary version, downloaded; return the folder."""
    part = root / (layout.url.rpartition("/")[2] + ".part")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with Lock(_lock(layout, root), f"the {layout.name} in {root}", _say):
            if (folder := _find(layout, root)) is not None:  # another process has done it meanwhile
                return folder
            _remove_leftovers(layout, root)
            archive = _archive(layout, root)
            if archive is None:
                advice = (
                    "give a folder that has it with --data-dir, or take what is built in with --data shapes10"
                )
                _network.download(layout.url, part, layout.md5, advice)
            whole = PIXELS + layout.label_bytes
            most = 1 << 20
            if archive is not None and "-python" in archive.name:
                most = _network.MAX_MEMBER
                folder = root / layout.python
                sizes: dict[str, int | None] = dict.fromkeys([*layout.train, layout.test, layout.meta_file])
            else:
                folder = root / layout.binary
                each = 5 * RECORDS // len(layout.train)
                sizes = {f"{name}.bin": each * whole for name in layout.train}
                sizes |= {f"{layout.test}.bin": RECORDS * whole, layout.names_file: None}
            _network.unpack(archive or part, folder, sizes, most)
            if archive is None:
                part.unlink()
            return folder
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{layout.name} cannot be written to {root}: {reason}") from error


def _say(sentence: str) -> None:
    print(f"{sentence}: waiting", file=sys.stderr, flush=True)


def _lock(layout: _Layout, root: Path) -> Path:
    return root / f".{layout.name.lower()}.lock"


def _leftovers(layout: _Layout, root: Path) -> list[Path]:
    """Return the folders in which an unpacking was killed, or is at work."""
    return [path for name in (layout.binary, layout.python) for path in root.glob(f".{name}-*")]


def _remove_leftovers(layout: _Layout, root: Path) -> None:
    for path in _leftovers(layout, root):
        shutil.rmtree(path, ignore_errors=True)


def _tidy(layout: _Layout, root: Path) -> None:
    try:
        with Lock(_lock(layout, root)):  # else they are in use
            _remove_leftovers(layout, root)
    except (InUse, OSError):
        pass


def _read_all(layout: _Layout, folder: Path) -> ImageData:
    """Return both splits of `folder`."""
    binary = folder.name == layout.binary
    read: ReadFile = _read_binary if binary else _read_pickle
    class_names = _listed_class_names(layout, folder) if binary else _pickled_class_names(layout, folder)
    images = np.empty((5 * RECORDS, 32, 32, 3), np.uint8)
    labels = np.empty(len(images), np.int64)
    each = len(images) // len(layout.train)
    for k, name in enumerate(layout.train):
        here = slice(k * each, (k + 1) * each)
        pixels, labels[here] = read(layout, folder, name)  # (each, PIXELS), (each,)
        images[here] = _channels_last(pixels)
    pixels, test_labels = read(layout, folder, layout.test)
    test = _channels_last(pixels), test_labels.astype(np.int64)
    return ImageData(images, labels, *test, class_names, layout.name)


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _records(layout: _Layout, name: str) -> int:
    """Return how many images a file has."""
    return RECORDS if name == layout.test else 5 * RECORDS // len(layout.train)


def _read_bytes(path: Path) -> bytes:
    """Return a file's bytes, if they are those that were unpacked here."""
    try:
        content = path.read_bytes()
        recorded = _network.recorded_digest(path)
        if recorded is not None and recorded != hashlib.sha256(content).hexdigest():
            raise DataError(f"{path} is damaged: it has changed since it was unpacked; {_AGAIN}")
        return content
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {_AGAIN}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_class_names(layout: _Layout, path: Path, names: list[str]) -> tuple[str, ...]:
    wanted = len(layout.class_names)
    if len(names) != wanted:
        raise DataError(f"{path} names {len(names)} classes, where {layout.name} has {wanted}; {_AGAIN}")
    return tuple(names)


def _check_labels(layout: _Layout, path: Path, labels: np.ndarray) -> None:
    last = len(layout.class_names) - 1
    for k in np.flatnonzero((labels < 0) | (labels > last))[:1]:
        found = f"record {k} has the label {labels[k]}, not 0 to {last}"
        raise DataError(f"{path} is damaged: {found}; {_AGAIN}")


# ---- the binary version ------------------------------------------------------------------------------------


def _read_binary(layout: _Layout, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    path = folder / f"{name}.bin"
    content, n = _read_bytes(path), _records(layout, name)
    expected = n * (layout.label_bytes + PIXELS)
    if len(content) != expected:
        found = f"{len(content):,} bytes, where {layout.name}'s has {expected:,}"
        raise DataError(f"{path} has {found}; {_AGAIN}")
    records = np.frombuffer(content, np.uint8).reshape(n, layout.label_bytes + PIXELS)
    labels = records[:, layout.label_bytes - 1]
    _check_labels(layout, path, labels)
    return records[:, layout.label_bytes :], labels


def _listed_class_names(layout: _Layout, folder: Path) -> tuple[str, ...]:
    path = folder / layout.names_file
    if not path.exists():
        return layout.class_names
    lines = _read_bytes(path).decode("utf-8", "replace").splitlines()
    return _check_class_names(layout, path, [line.strip() for line in lines if line.strip()])


# ---- the Python version ------------------------------------------------------------------------------------


def _load_pickle(path: Path) -> dict[str, Any]:
    """Return the dict in `path`, with its keys as str."""
    try:
        content = pickles.load(_read_bytes(path))
    except pickles.PickleError as error:
        raise DataError(f"{path} is not a pickle of NumPy arrays as CIFAR-10's are: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, where CIFAR's holds a dict; {_AGAIN}")
    return {_text(key): value for key, value in content.items()}


def _text(value: str | bytes | int) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _integers(path: Path, value: Any, wanted: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the whole numbers that a pickle holds as an array or a list, if they have this shape."""
    try:
        listed = isinstance(value, list) and all(type(v) is int for v in value)  # np.array is for flat lists
        array = np.array(value) if listed else pickles.to_array(value)
    except pickles.PickleError as error:
        raise DataError(f"{path}: expected {wanted}, but {error}; {_AGAIN}") from error
    if array.shape != shape or array.dtype.kind not in "iu":
        raise DataError(f"{path}: expected {wanted}, found {array.dtype} {array.shape}; {_AGAIN}")
    return array


def _read_pickle(layout: _Layout, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    path, n = folder / name, _records(layout, name)
    content = _load_pickle(path)
    wanted = f"data of uint8 ({n}, {PIXELS})"
    pixels = _integers(path, content.get("data"), wanted, (n, PIXELS))
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: expected {wanted}, found {pixels.dtype} {pixels.shape}; {_AGAIN}")
    labels = _integers(path, content.get(layout.label_key), f"{n} whole-number labels", (n,))
    _check_labels(layout, path, labels)
    return pixels, labels


def _pickled_class_names(layout: _Layout, folder: Path) -> tuple[str, ...]:
    path = folder / layout.meta_file
    if not path.exists():
        return layout.class_names
    names = _load_pickle(path).get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(name, (str, bytes)) for name in names):
        names = []
    return _check_class_names(layout, path, [_text(name) for name in names])
