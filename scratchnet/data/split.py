"""Stratified draws: a validation split, and a subset of what is left.

Stratified: every class is drawn in proportion to how often it occurs, so that a small split is not easier or
harder than the whole only because it holds more of one class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from scratchnet import checks
from scratchnet.backend import Array, to_numpy
from scratchnet.data._common import ImageData, image_indices


def split_validation(labels: ArrayLike, n_validation: int = 5000, seed: int = 0) -> tuple[Array, Array]:
    """Divide the training images into those to train on and those to validate on.

    Parameters
    ----------
    labels : array of int, shape (N,)
        The training images' classes.
    n_validation : int
        How many to set aside, 0 to N - 1.
    seed : int
        Same seed, same split.

    Returns
    -------
    train_indices, validation_indices : ndarray of int64
        Ascending, without overlap, all N together.

    Raises
    ------
    ValueError
        If nothing would be left to train on.

    Examples
    --------
    >>> train, validation = split_validation([0, 0, 0, 0, 1, 1], n_validation=3)
    >>> np.bincount(np.array([0, 0, 0, 0, 1, 1])[validation])
    array([2, 1])
    """
    checks.whole(0, n_validation=n_validation)
    checks.seed(seed)
    labels = to_numpy(labels)
    if not 0 <= n_validation < max(len(labels), 1):
        which = f"{n_validation} of {len(labels)} training images for validation"
        raise ValueError(f"cannot set aside {which}: at least one must be left to train on")
    everything = np.arange(len(labels))
    chosen = _draw(labels, everything, n_validation, seed, purpose=0)
    return np.setdiff1d(everything, chosen, assume_unique=True), chosen


def divide(
    images: ImageData, validation: int | None = None, n: int | None = None, seed: int = 0
) -> tuple[Array, Array]:
    """Divide a data set's training images as a training does: those to train on, those to validate on.

    Parameters
    ----------
    images : ImageData
    validation : int, optional
        How many to validate on, by default a tenth. A data set that sets some aside itself has these: all,
        or so many of them.
    n : int, optional
        Train on so many only, each class in proportion.
    seed : int

    Returns
    -------
    train_indices, validation_indices : ndarray of int64

    Examples
    --------
    >>> pixels, labels = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 2
    >>> learn, validate = divide(ImageData(pixels, labels, pixels, labels, ("cat", "dog")), n=10)
    >>> len(learn), len(validate)
    (10, 4)
    """
    checks.whole(1, validation=1 if validation is None else validation, n=1 if n is None else n)
    labels = images.train_labels
    if images.validation is None:
        learn, validate = split_validation(labels, validation or max(1, len(labels) // 10), seed)
    else:
        validate = images.validation
        learn = np.setdiff1d(np.arange(len(labels)), validate, assume_unique=True)
        if validation is not None:
            validate = subset(labels, validate, validation, seed)
    return learn if n is None else subset(labels, learn, n, seed), validate


def subset(labels: ArrayLike, indices: ArrayLike, n: int, seed: int = 0) -> np.ndarray:
    """Draw n of the given images, each class in proportion.

    Parameters
    ----------
    labels : array of int, shape (N,)
        The classes of all images.
    indices : array of int, shape (M,), or a mask (N,)
        Which of them to draw from, such as the training side of `split_validation`.
    n : int
        How many, 1 to M.
    seed : int
        Same seed, same subset.

    Returns
    -------
    ndarray of int64, shape (n,)
        Some of `indices`, ascending.

    Raises
    ------
    ValueError
        If n is not 1 to M, or the indices are none.

    Examples
    --------
    >>> subset([0, 0, 1, 1], indices=[0, 1, 2], n=3)
    array([0, 1, 2])
    """
    checks.whole(0, n=n)
    checks.seed(seed)
    labels = to_numpy(labels)
    among = image_indices(indices, len(labels))
    if not 1 <= n <= len(among):
        raise ValueError(f"cannot draw a subset of {n} from {len(among)} images: say 1 to {len(among)}")
    return _draw(labels, among, n, seed, purpose=1)


def _draw(labels: np.ndarray, indices: np.ndarray, n: int, seed: int, purpose: int) -> np.ndarray:
    """Return n of `indices`, ascending, in proportion to the classes."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))
    classes, counts = np.unique(labels[indices], return_counts=True)
    # Largest remainders: every class gets its share rounded down, and those that lost most by it one more.
    shares, remainders = np.divmod(n * counts, max(len(indices), 1))
    shares[np.argsort(-remainders, kind="stable")[: n - shares.sum()]] += 1
    drawn = [
        rng.permutation(indices[labels[indices] == label])[:share]
        for label, share in zip(classes, shares, strict=True)
    ]
    return np.sort(np.concatenate([*drawn, np.empty(0, np.int64)]))
