"""Errors, the labelled set of images, and indices of images: common to all of ``data/``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class DataError(Exception):
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
    train_images, test_images : ndarray of uint8, shape (N, H, W, 3)
        Images, channels last, 0 to 255, on the host.
    train_labels, test_labels : ndarray of int64, shape (N,)
        Class indices, 0 to ``len(class_names) - 1``.
    class_names : tuple of str
        ``class_names[label]`` is the name of the class.
    name : str
        The data set's own, which logs and saved models quote.

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


def check_images(images: np.ndarray) -> None:
    """Check that an array holds images, uint8 (N, H, W, 3)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        got = f"{images.dtype} {images.shape}"
        raise ValueError(f"expected uint8 images (N, H, W, 3), got {got}: channels are last")
