"""Batches of images, the next one prepared while the caller computes with this one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from scratchnet import checks, workers
from scratchnet.data._common import as_images, image_indices
from scratchnet.data.augment import Augmentation, Normalisation
from scratchnet.data.images import resize_and_crop


class Rows(NamedTuple):
    """Which rows of a batch are handed out: all of them, or a shard's.

    Attributes
    ----------
    start, stop : int
    total : int
        How many the batch has.
    """

    start: int
    stop: int
    total: int


class Loader:
    """Hand out a data set in batches, epoch after epoch.

    Parameters
    ----------
    images : ndarray of uint8 or floats, shape (N, H, W, C) or (N, H, W)
        Or what has their shape and dtype, and gives images when indexed, as ``image_folder``'s does.
    labels : ndarray of int, shape (N,)
    batch_size : int
        Images per batch. The last batch of an epoch is as short as it must be and is never dropped.
    shuffle : bool
        Go through the images in a new random order each epoch.
    augmentation : Augmentation, optional
        Applied before resizing.
    normalisation : Normalisation, optional
        Without one, pixels of uint8 are scaled to [0, 1] and no more.
    seed : int
        The order follows from (seed, epoch) and the augmentation from (seed, epoch, batch), so neither
        preparing ahead nor resuming at a later epoch changes a bit.
    dtype : str or dtype
        Of the images that are handed out.
    image_size : int, optional
        Resize each image, its shorter side to this, and cut out the centre square (``resize_and_crop``).
    indices : array of int, or of bool (N,), optional
        Use only these images, or those where a mask is true. `images` is neither copied nor changed.
    crop : float
        The part of the shorter side that is seen where images are resized, see ``image_to_array``.

    Raises
    ------
    ValueError
        If images and labels do not fit together, or a size is impossible.

    Examples
    --------
    >>> images, labels = np.zeros((5, 32, 32, 3), np.uint8), np.arange(5)
    >>> loader = Loader(images, labels, batch_size=2, shuffle=False)
    >>> len(loader)
    3
    >>> [(x.shape, y.tolist()) for x, y in loader.epoch(0)][-1]
    ((1, 32, 32, 3), [4])
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: ArrayLike,
        batch_size: int,
        *,
        shuffle: bool,
        augmentation: Augmentation | None = None,
        normalisation: Normalisation | None = None,
        seed: int = 0,
        dtype: DTypeLike = "float32",
        image_size: int | None = None,
        indices: ArrayLike | None = None,
        crop: float = 1.0,
    ):
        images = as_images(images)
        labels = _check_labels(labels, len(images))
        checks.whole(1, batch_size=batch_size, image_size=1 if image_size is None else image_size)
        checks.seed(seed)
        self.images, self.labels = images, labels
        self.indices = image_indices(indices, len(images))
        self.batch_size, self.shuffle, self.seed = int(batch_size), shuffle, seed
        C = images.shape[3]
        self.normalisation = Normalisation([0] * C, [1] * C) if normalisation is None else normalisation
        if len(self.normalisation.mean) != C:
            found = f"of {len(self.normalisation.mean)} channels, but the images have {C}"
            raise ValueError(f"normalisation {found}")
        self.augmentation = augmentation
        checks.real(0.1, 1.0, crop=crop)
        self.dtype, self.image_size, self.crop = np.dtype(dtype), image_size, crop
        self._shard = 0, 1

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.indices) // self.batch_size)

    @property
    def n_samples(self) -> int:
        """How many images an epoch hands out, all shards together."""
        return len(self.indices)

    def shard(self, rank: int, ranks: int) -> Loader:
        """Return a loader of the same batches that hands out, and prepares, only one process's rows of each.

        Together the shards hand out what this loader does, to the bit. Sizes differ by one image at most; of
        a batch with fewer images than processes, some shards have none.

        Parameters
        ----------
        rank, ranks : int
            Which of how many processes.

        Examples
        --------
        >>> loader = Loader(np.zeros((5, 8, 8, 3), np.uint8), np.arange(5), 4, shuffle=False)
        >>> [[y.tolist() for x, y in loader.shard(rank, 2).epoch(0)] for rank in range(2)]
        [[[0, 1], [4]], [[2, 3], []]]
        """
        checks.whole(0, rank=rank, ranks=ranks - 1 - rank)
        part = copy.copy(self)
        part._shard = rank, ranks
        return part

    def rows(self, batch: int) -> Rows:
        """Return which rows of a batch, counted from 0 within its epoch, ``epoch`` hands out."""
        rank, ranks = self._shard
        total = max(0, min(self.batch_size, len(self.indices) - batch * self.batch_size))
        return Rows(-(-rank * total // ranks), -(-(rank + 1) * total // ranks), total)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Go once through the data set, or through what is left of it.

        Parameters
        ----------
        epoch : int
            Which epoch this is, from 0: it decides order and augmentation.
        first : int
            The batch to begin with: those before it are left out, and the others are what they always are.

        Yields
        ------
        x : ndarray, shape (N, H, W, 3)
            Images, normalised, of the loader's dtype. Each batch is a new array that the caller may keep.
        y : ndarray of int64, shape (N,)
            Their labels.

        Examples
        --------
        >>> loader = Loader(np.zeros((3, 8, 8, 3), np.uint8), np.arange(3), 3, shuffle=True)
        >>> x, y = next(loader.epoch(4))
        >>> x.dtype.name, sorted(y.tolist())
        ('float32', [0, 1, 2])
        """
        order = self._order(epoch)
        ahead = None
        try:
            for batch in range(first, len(self)):
                # A batch that no worker has begun yet is prepared here and now: waiting for other work to end
                # would only lose time, and would never end if the caller were itself the only worker.
                if ahead is None or ahead.cancel():
                    prepared = self._prepare(order, epoch, batch)
                else:
                    prepared = ahead.result()
                more = batch + 1 < len(self)
                ahead = workers.submit(self._prepare, order, epoch, batch + 1) if more else None
                yield prepared
        finally:  # also where the caller stops midway
            if ahead is not None:
                ahead.cancel()

    def choices(self, epoch: int) -> np.ndarray:
        """Return what ``epoch`` draws, so that the same images can be prepared elsewhere (on a GPU).

        It is int32 (n_samples, 6): for each image, in order, its index in ``images``, then what
        ``Augmentation.draw`` returns.

        >>> loader = Loader(np.zeros((3, 8, 8, 3), np.uint8), np.arange(3), 2, shuffle=False)
        >>> loader.choices(0)[:, 0]
        array([0, 1, 2], dtype=int32)
        """
        order, (height, width) = self._order(epoch), self.images.shape[1:3]
        chosen = np.zeros((len(order), 6), np.int32)
        chosen[:, 0] = order
        if self.augmentation is not None:
            for batch in range(len(self)):
                rows = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
                generator = self._generator(1, epoch, batch)
                chosen[rows, 1:] = self.augmentation.draw(len(order[rows]), height, width, generator)
        return chosen

    def _order(self, epoch: int) -> np.ndarray:
        return self._generator(0, epoch).permutation(self.indices) if self.shuffle else self.indices

    def _generator(self, purpose: int, *when: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(purpose, *when)))

    def _prepare(self, order: np.ndarray, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        whole, rows = order[batch * self.batch_size :][: self.batch_size], self.rows(batch)
        chosen = whole[rows.start : rows.stop]
        images = self.images[chosen]
        if (augmentation := self.augmentation) is not None:
            generator, mean = self._generator(1, epoch, batch), self.normalisation
            fill = mean.colour if images.dtype == np.uint8 else mean.mean
            if len(chosen) == len(whole):
                images = augmentation.apply(images, generator, fill=fill)
            elif type(augmentation).apply is Augmentation.apply:  # drawn for the whole batch, made to a part
                height, width = images.shape[1:3]
                changes = augmentation.draw(len(whole), height, width, generator)
                images = augmentation.change(images, changes[rows.start : rows.stop], fill=fill)
            else:  # a subclass's own, which may draw as it likes
                everything = augmentation.apply(self.images[whole], generator, fill=fill)
                images = everything[rows.start : rows.stop]
        if self.image_size is not None and len(images):
            images = resize_and_crop(images, self.image_size, self.crop)
        return self.normalisation.apply(images, dtype=self.dtype), self.labels[chosen]


def _check_labels(labels: ArrayLike, n: int) -> np.ndarray:
    """Return n labels as int64 (n,), or say how to make that of what was given."""
    try:
        found = np.asarray(labels)
    except ValueError:  # a list of lists of unequal length
        found = np.empty(0, object)
    remedy = ""
    if found.shape == (n, 1) and n != 1:
        remedy = ": labels.ravel() makes that of them"
    elif found.ndim == 2 and len(found) == n:
        remedy = ": labels.argmax(axis=1) makes that of one-hot labels"
    elif found.shape == (n,) and found.dtype.kind == "f" and (found == np.floor(found)).all():
        remedy = ": labels.astype('int64') makes that of them"
    elif found.shape == (n,) and found.dtype.kind in "US":
        remedy = ": names, labels = numpy.unique(labels, return_inverse=True) makes that of names"
    if isinstance(labels, np.ma.MaskedArray):
        remedy = ": a mask would be ignored"
    elif found.shape == (n,) and found.dtype.kind in "iu":
        return found.astype(np.int64, copy=False)
    raise ValueError(f"expected {n} whole-number labels ({n},), got {found.dtype} {found.shape}{remedy}")
