"""Errors, the labelled set of images, and indices of images: common to all of ``data/``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scratchnet.untrusted import FileError


class DataError(FileError):
    """A file, a download or an image cannot be used; the message is one sentence that names it.

    Examples
    --------
    >>> str(DataError("data_batch_1.bin is missing"))
    'data_batch_1.bin is missing'
    """


class MissingDataError(DataError):
    """A data set is not on this machine, and could not be downloaded (or must not be).

    A plain `DataError` says that something is there, and damaged.

    Examples
    --------
    >>> issubclass(MissingDataError, DataError)
    True
    """


class ImageData(NamedTuple):
    """A labelled set of images in its two official splits.

    Attributes
    ----------
    train_images, test_images : ndarray of uint8, shape (N, H, W, C)
        Images, channels last, 0 to 255, on the host.
    train_labels, test_labels : ndarray of int64, shape (N,)
        Class indices, 0 to ``len(class_names) - 1``.
    class_names : tuple of str
        ``class_names[label]`` is the name of the class.
    name : str
        The data set's own, which logs and saved models quote.
    validation : ndarray of int64, optional
        Which of the training images the data set itself sets aside for validation.
    left_out : tuple of (path, reason)
        What was found and is not used.
    contents : dict of str to str, optional
        Of a folder: what tells the files of a split and class from others, by their names and sizes.

    Examples
    --------
    >>> images, labels = np.zeros((2, 32, 32, 3), np.uint8), np.array([0, 1])
    >>> ImageData(images, labels, images[:1], labels[:1], ("cat", "dog"), "pets").class_names
    ('cat', 'dog')
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    name: str = "images"
    validation: np.ndarray | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    contents: dict[str, str] | None = None


def image_indices(indices: ArrayLike | None, n: int) -> np.ndarray:
    """Return which of n images are chosen, int64 (M,), by indices or a mask (n,); None chooses all.

    >>> image_indices([True, False, True], 3)
    array([0, 2])
    >>> image_indices([0.0, 2.0], 3)
    Traceback (most recent call last):
    ValueError: indices must be whole numbers, or a mask of 3 truth values, not float64 (2,)
    """
    if indices is None:
        return np.arange(n)
    if isinstance(indices, np.ma.MaskedArray):
        raise ValueError("indices must not be a masked array, whose mask would be ignored")
    chosen = np.asarray(indices)
    if chosen.dtype == bool and chosen.shape == (n,):
        return np.flatnonzero(chosen)
    if chosen.ndim == 1 and not chosen.size:  # np.asarray([]) is of floats
        return np.empty(0, np.int64)
    if chosen.dtype.kind not in "iu" or chosen.ndim != 1:
        got = f"{chosen.dtype} {chosen.shape}"
        raise ValueError(f"indices must be whole numbers, or a mask of {n} truth values, not {got}")
    if chosen.min() < 0 or chosen.max() >= n:
        raise ValueError(f"indices must lie within the {n} images, not {chosen.min()} to {chosen.max()}")
    return chosen.astype(np.int64, copy=False)


def as_images(images: np.ndarray) -> np.ndarray:
    """Return images as (N, H, W, C), uint8 or floats; those of one channel may come as (N, H, W).

    >>> as_images(np.zeros((5, 28, 28), np.uint8)).shape
    (5, 28, 28, 1)
    """
    wanted = "images (N, H, W, C) are expected"
    if isinstance(images, (list, tuple)):
        kind = type(images).__name__
        raise ValueError(f"one array of {wanted}, not a {kind}: numpy.stack makes one of images of one size")
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    if not isinstance(shape, tuple) or not isinstance(dtype, np.dtype):
        raise ValueError(f"one array of {wanted}, not a {type(images).__name__}")
    got, remedy = f"channels are last: {wanted}, not {dtype} {shape}", ""
    if isinstance(images, np.ma.MaskedArray):
        raise ValueError("a mask of images would be ignored: images.filled(0) puts a value in its place")
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        remedy = "; images[None] makes a batch of one image"
    elif len(shape) == 4 and shape[1] in (1, 3, 4) and 4 < shape[2] == shape[3]:
        remedy = "; images.transpose(0, 2, 3, 1) makes them so"
    if remedy or len(shape) not in (3, 4):
        raise ValueError(got + remedy)
    if dtype != np.uint8 and dtype.kind != "f":
        advice = "images.astype('uint8') if they are 0 to 255, otherwise images.astype('float32')"
        raise ValueError(f"uint8 or floats are expected as images, not {dtype} {shape}: take {advice}")
    return images if len(shape) == 4 else images[..., None]
