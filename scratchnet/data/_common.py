"""What every reader of data shares: the error it raises and the tuple it returns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class DataError(Exception):
    """A file, a download or an image cannot be used; the message is one sentence that names it.

    Examples
    --------
    >>> str(DataError("data_batch_1.bin is missing"))
    'data_batch_1.bin is missing'
    """


class MissingDataError(DataError):
    """A data set is not on this machine, and could not be fetched either (or was not to be).

    It says that nothing is there, where a plain `DataError` says that something is there and is damaged.

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
        ``class_names[label]`` is what a person calls the class.
    name : str
        The data set's own name, which logs and saved models quote.

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
