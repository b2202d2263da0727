"""CIFAR-10 in its two official layouts, read from disk or downloaded.

The binary version is a folder of six files of 10,000 records: one label byte and 3,072 pixels, channels
first. The Python version is a folder of pickles that hold the same, read as data (``scratchnet/pickles.py``),
since loading a pickle can run any program. (Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet import pickles
from scratchnet.data import download as _network
from scratchnet.data._common import DataError, ImageData, MissingDataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
RECORDS = 10000  # in every file
PIXELS = 3 * 32 * 32

# From a folder and the name of one of its files to the pixels (RECORDS, PIXELS) and labels (RECORDS,).
ReadBatch = Callable[[Path, str], tuple[np.ndarray, np.ndarray]]

BINARY_FOLDER, PYTHON_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
_AGAIN = "delete the folder and it is downloaded again"


def cifar10(root: str | os.PathLike[str], download: bool = True) -> ImageData:
    """Read CIFAR-10, and download it first if it is not there.

    Parameters
    ----------
    root : str or os.PathLike
        The folder that holds ``cifar-10-batches-bin`` or ``cifar-10-batches-py`` (the first is read if both
        are there), or that is to hold the download.
    download : bool
        Whether to download the official binary archive, 170 MB, where `root` has neither.

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
    root = Path(root)
    if root.name in (BINARY_FOLDER, PYTHON_FOLDER) and root.is_dir():
        raise DataError(f"{root} is the folder of CIFAR-10's files itself: give its parent, {root.parent}")
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is not a folder: give the one that holds, or is to hold, {BINARY_FOLDER}")
    binary, python = root / BINARY_FOLDER, root / PYTHON_FOLDER
    if not binary.exists() and python.exists():
        return _read_all(python, _read_pickle, _pickled_class_names(python))
    if not binary.exists():
        if not download:
            raise MissingDataError(
                f"no CIFAR-10 in {root}: it holds neither {BINARY_FOLDER} nor {PYTHON_FOLDER}, "
                "and downloading is off"
            )
        _fetch(binary)
    return _read_all(binary, _read_binary, _listed_class_names(binary))


def _fetch(folder: Path) -> None:
    """Download the binary version and unpack it as `folder`."""
    part = folder.with_name("cifar-10-binary.tar.gz.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        advice = "give a folder that has it with --data-dir, or take the built-in set with --data shapes10"
        _network.download(URL, part, MD5, advice)
        sizes = {f"{name}.bin": RECORDS * (1 + PIXELS) for name in (*TRAIN_BATCHES, "test_batch")}
        _network.unpack(part, folder, {**sizes, "batches.meta.txt": None})
        part.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"CIFAR-10 cannot be written to {folder.parent}: {reason}") from error


def _read_all(folder: Path, read_batch: ReadBatch, class_names: tuple[str, ...]) -> ImageData:
    """Return both splits of `folder`."""

    def read(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(names) * RECORDS, 32, 32, 3), np.uint8)
        labels = np.empty(len(images), np.int64)
        for k, name in enumerate(names):
            here = slice(k * RECORDS, (k + 1) * RECORDS)
            pixels, labels[here] = read_batch(folder, name)  # (RECORDS, PIXELS), (RECORDS,)
            images[here] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, labels

    train_images, train_labels = read(TRAIN_BATCHES)
    test_images, test_labels = read(["test_batch"])
    return ImageData(train_images, train_labels, test_images, test_labels, class_names, "CIFAR-10")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {_AGAIN}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_class_names(path: Path, names: list[str]) -> tuple[str, ...]:
    if len(names) != 10:
        raise DataError(f"{path} names {len(names)} classes, where CIFAR-10 has 10; {_AGAIN}")
    return tuple(names)


def _check_labels(path: Path, labels: np.ndarray) -> None:
    for k in np.flatnonzero((labels < 0) | (labels > 9))[:1]:
        raise DataError(f"{path} is damaged: record {k} has the label {labels[k]}, not 0 to 9; {_AGAIN}")


# ---- the binary version ------------------------------------------------------------------------------------


def _read_binary(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    path = folder / f"{name}.bin"
    content = _read_bytes(path)
    expected = RECORDS * (1 + PIXELS)
    if len(content) != expected:
        raise DataError(f"{path} has {len(content):,} bytes, where CIFAR-10's has {expected:,}; {_AGAIN}")
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, 1 + PIXELS)
    _check_labels(path, records[:, 0])
    return records[:, 1:], records[:, 0]


def _listed_class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "batches.meta.txt"
    lines = _read_bytes(path).decode("utf-8", "replace").splitlines()
    return _check_class_names(path, [line.strip() for line in lines if line.strip()])


# ---- the Python version ------------------------------------------------------------------------------------


def _load_pickle(path: Path) -> dict[str, Any]:
    """Return the dict in `path`, with its keys as str."""
    try:
        content = pickles.load(_read_bytes(path))
    except pickles.PickleError as error:
        raise DataError(f"{path} is not a pickle of NumPy arrays as CIFAR-10's are: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, where CIFAR-10's holds a dict; {_AGAIN}")
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


def _read_pickle(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    path = folder / name
    content = _load_pickle(path)
    wanted = f"data of uint8 ({RECORDS}, {PIXELS})"
    pixels = _integers(path, content.get("data"), wanted, (RECORDS, PIXELS))
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: expected {wanted}, found {pixels.dtype} {pixels.shape}; {_AGAIN}")
    labels = _integers(path, content.get("labels"), f"{RECORDS} whole-number labels", (RECORDS,))
    _check_labels(path, labels)
    return pixels, labels


def _pickled_class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "batches.meta"
    names = _load_pickle(path).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, (str, bytes)) for name in names):
        names = []
    return _check_class_names(path, [_text(name) for name in names])
