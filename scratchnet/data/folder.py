"""Images of one's own: a folder for each class, at any depth, in any format that Pillow reads."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from math import inf
from typing import Any, NamedTuple

import numpy as np

from scratchnet import checks, workers
from scratchnet.data._common import DataError, ImageData, image_indices
from scratchnet.data.finding import files_in, may_be_image
from scratchnet.data.images import decode_ahead
from scratchnet.data.split import split_validation

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MEMORY = 2_000_000_000  # bytes of resized images that are kept
LeftOut = tuple[str, str]  # a file or folder, and why it is not used


class ImageFiles:
    """Images that are read from their files whenever they are asked for: an array's shape, a batch's memory.

    Indexing returns uint8 arrays, decoded on the worker threads and resized as ``image_to_array`` does.

    Parameters
    ----------
    paths : sequence of path
    size : int
        Height and width of each image.

    Attributes
    ----------
    shape, dtype, nbytes
        Those of the array that would hold them all.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "red.png")
    >>> Image.new("RGB", (640, 480), "red").save(path)
    >>> images = ImageFiles([path, path], size=32)
    >>> images.shape, images[[1]].shape, images[0].shape
    ((2, 32, 32, 3), (1, 32, 32, 3), (32, 32, 3))
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[str], size: int):
        checks.whole(1, size=size)
        self.paths, self.size = list(paths), int(size)
        self.shape = (len(self.paths), self.size, self.size, 3)
        self.nbytes = len(self.paths) * self.size**2 * 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, (int, np.integer)):
            return self[[index]][0]
        chosen = np.arange(len(self))[index] if isinstance(index, slice) else image_indices(index, len(self))
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        decoded = decode_ahead([self.paths[k] for k in chosen], self.size, ahead=2 * workers.size())
        for image, (_, pixels) in zip(images, decoded, strict=True):
            if isinstance(pixels, DataError):
                raise pixels
            image[...] = pixels
        return images


class Listing(NamedTuple):
    """What is in a folder of images, by the names of its files.

    Attributes
    ----------
    class_names : tuple of str
        Sorted.
    files : dict of str to list of (path, label)
        Of each split that there is, ``train``, ``val`` and ``test``; without such folders all are ``train``.
    left_out : list of (path, reason)
    """

    class_names: tuple[str, ...]
    files: dict[str, list[tuple[str, int]]]
    left_out: list[LeftOut]


def list_classes(path: str | os.PathLike[str]) -> Listing:
    """List the images in a folder that has one for each class, or has such folders in ``train`` and ``test``.

    Parameters
    ----------
    path : path
        A folder that holds a single folder stands for that one, as archives are often unpacked.

    Returns
    -------
    Listing
        Files that can be no images, empty classes, and what lies beside the classes are in its ``left_out``.

    Raises
    ------
    DataError
        If it is no folder, or holds no folders with images.

    Examples
    --------
    >>> list_classes("no/such/folder")
    Traceback (most recent call last):
    scratchnet.data._common.DataError: no/such/folder is not a folder of images
    """
    root = os.fsdecode(path)
    if not os.path.isdir(root):
        raise DataError(f"{root} is not a folder of images")
    try:
        left_out: list[LeftOut] = []
        folders = _subfolders(root, left_out)
        while len(folders) == 1 and _subfolders(os.path.join(root, folders[0]), []):
            root = os.path.join(root, folders[0])
            folders = _subfolders(root, left_out)
        splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
        if "train" not in splits.values():
            splits = {}
        found: list[tuple[str, str, str]] = []  # split, class, path
        for name in folders if splits else []:
            folder = os.path.join(root, name)
            if name in splits:
                for kind in _subfolders(folder, left_out):
                    found += _images_of(os.path.join(folder, kind), splits[name], kind, left_out)
            else:
                left_out.append((folder, "lies beside the folder train: neither val nor test"))
        for kind in folders if not splits else []:
            found += _images_of(os.path.join(root, kind), "train", kind, left_out)
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror or error}") from error
    names = sorted({kind for split, kind, _ in found if split == "train"})
    if not names:
        advice = "a folder for each class is expected, with its images in it"
        raise DataError(f"{root} has no folder with images in it: {advice}")
    labels = {name: k for k, name in enumerate(names)}
    files: dict[str, list[tuple[str, int]]] = {split: [] for split in ("train", *splits.values())}
    for split, kind, name in found:
        if kind in labels:
            files[split].append((name, labels[kind]))
        else:
            left_out.append((name, f"its class {kind} has no images in train"))
    return Listing(tuple(_text(name) for name in names), files, left_out)


def image_folder(
    path: str | os.PathLike[str],
    image_size: int = 224,
    *,
    memory: int = MEMORY,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Read a folder of images that has a folder for each class, named after it.

    Every image is decoded once, on the worker threads, so that broken files are known before anything
    begins; none that is left out is left out silently. An image comes as ``load_image`` reads it, its shorter
    side resized to `image_size`, and its centre square cut out.

    Parameters
    ----------
    path : path
        Images may lie at any depth in a class's folder. Where there are ``train``, ``val`` (or ``valid``,
        ``validation``) and ``test``, the classes are in these.
    image_size : int
        Height and width in pixels.
    memory : int
        Bytes. If the resized images take no more, they are kept, as uint8; otherwise they are read from their
        files again in every epoch, a batch ahead of the computation (`ImageFiles`).
    seed : int
        Where there is no ``test``, a tenth of the images, of each class in proportion, is set aside by it.
    progress : callable, optional
        Called with the number of images that were read so far and that of all.

    Returns
    -------
    ImageData
        Its ``validation`` says which training images are those of ``val``, and ``left_out`` which files and
        folders are not used, and why.

    Raises
    ------
    DataError
        If there are fewer than two classes, or a class with fewer than two images that can be read.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> folder = tempfile.TemporaryDirectory()
    >>> for k in range(20):
    ...     kind = os.path.join(folder.name, ["cats", "dogs"][k % 2])
    ...     os.makedirs(kind, exist_ok=True)
    ...     Image.new("RGB", (40 + k, 30), (12 * k, 0, 0)).save(os.path.join(kind, f"{k}.jpg"))
    >>> images = image_folder(folder.name, image_size=32)
    >>> images.class_names, images.train_images.shape, images.test_labels.tolist()
    (('cats', 'dogs'), (18, 32, 32, 3), [0, 1])
    """
    checks.whole(1, image_size=image_size)
    checks.whole(0, inf, memory=memory, seed=seed)
    names, files, left_out = list_classes(path)
    if len(names) < 2:
        raise DataError(
            f"{os.fsdecode(path)} has images of one class only, {names[0]}: nothing can be learnt"
        )
    parts = [files.get(split, []) for split in ("train", "val", "test")]
    in_order = [item for part in parts for item in part]

    fits = len(in_order) * image_size**2 * 3 <= memory
    images = np.empty((len(in_order) if fits else 0, image_size, image_size, 3), np.uint8)
    good: list[int] = []
    decoded = decode_ahead([name for name, _ in in_order], image_size, ahead=2 * workers.size())
    for k, (name, pixels) in enumerate(decoded):
        if isinstance(pixels, DataError):
            left_out.append((os.fsdecode(name), str(pixels).removeprefix(f"{os.fsdecode(name)} ")))
        else:
            if fits:
                images[len(good)] = pixels
            good.append(k)
        if progress is not None:
            progress(k + 1, len(in_order))

    labels = np.array([in_order[k][1] for k in good], np.int64)
    for label, count in enumerate(np.bincount(labels, minlength=len(names)).tolist()):
        if count < 2:
            few = f"{count or 'no'} image{'s' * (count != 1)} that can be read"
            raise DataError(f"class {names[label]} of {os.fsdecode(path)} has {few}: two are the least")
    first_val, first_test = np.searchsorted(good, np.cumsum([len(part) for part in parts[:2]]))
    learn, test = np.arange(first_test), np.arange(first_test, len(good))
    if not len(test):
        learn, test = split_validation(labels[:first_val], max(1, first_val // 10), seed)
        learn = np.concatenate([learn, np.arange(first_val, first_test)])
    train_images: Any = ImageFiles([in_order[good[k]][0] for k in learn], image_size)
    test_images: Any = ImageFiles([in_order[good[k]][0] for k in test], image_size)
    if fits:
        test_images = images[test]  # a copy; the others close up to where they are, as they are most
        for place, k in enumerate(learn):
            images[place] = images[k]
        train_images = images[: len(learn)]
    return ImageData(
        train_images,
        labels[learn],
        test_images,
        labels[test],
        names,
        _text(os.path.basename(os.path.realpath(path))) or "images",
        np.flatnonzero(learn >= first_val) if parts[1] else None,
        tuple(left_out),
        _contents(os.fsdecode(path), names, parts, good),
    )


def _contents(
    root: str, names: Sequence[str], parts: Sequence[Sequence[tuple[str, int]]], good: Sequence[int]
) -> dict[str, str]:
    """Return how many files each class of each split has, and a digest of their names and sizes."""
    used, place = set(good), itertools.count()
    lines: dict[str, list[str]] = {}
    for split, part in zip(("train", "val", "test"), parts, strict=True):
        for file, label in part:
            if next(place) in used:
                line = f"{os.path.relpath(file, root)} {os.path.getsize(file)}"
                lines.setdefault(f"{names[label]} in {split}", []).append(line)
    return {
        name: f"{len(of)} ({sha256(os.fsencode(chr(10).join(sorted(of)))).hexdigest()[:12]})"
        for name, of in lines.items()
    }


def describe_left_out(left_out: Sequence[LeftOut], most: int = 20) -> list[str]:
    """Return a line for each file that is not used, and at the end how many there are.

    Parameters
    ----------
    left_out : sequence of (path, reason)
        Of an ``ImageData``.
    most : int
        So many lines at most, and one that counts the rest.

    Examples
    --------
    >>> print(*describe_left_out([("a/notes.txt", "is no image (.txt)")] * 3, most=2), sep="\\n")
    a/notes.txt is no image (.txt)
    a/notes.txt is no image (.txt)
    and 1 more; not used: 3 (3 is no image (.txt))
    """
    checks.whole(0, most=most)
    lines = [f"{name} {reason}" for name, reason in left_out[:most]]
    if not left_out:
        return lines
    kinds = Counter(reason.partition(":")[0] for _, reason in left_out).most_common(5)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
    more = f"and {len(left_out) - most:,} more; " if len(left_out) > most else ""
    return [*lines, f"{more}not used: {len(left_out):,} ({counts})"]


def _subfolders(folder: str, left_out: list[LeftOut]) -> list[str]:
    """Return the names of the folders in a folder, sorted; what else lies there is left out."""
    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not os.path.isdir(path):
            left_out.append((path, "lies in no class's folder"))
        elif name.startswith(".") or name == "__MACOSX":
            left_out.append((path, "is hidden"))
        else:
            found.append(name)
    return found


def _images_of(folder: str, split: str, kind: str, left_out: list[LeftOut]) -> list[tuple[str, str, str]]:
    found = []
    for path in files_in(folder):
        name = os.path.basename(path)
        if may_be_image(name) and not name.startswith("."):
            found.append((split, kind, path))
        else:
            left_out.append((path, f"is no image ({os.path.splitext(name)[1] or name})"))
    if not found:
        left_out.append((folder, "has no images: no class"))
    return found


def _text(name: str) -> str:
    """Return the name of a folder, which need not be text, as text."""
    return os.fsencode(name).decode("utf-8", "replace")
