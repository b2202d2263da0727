"""Normalisation and augmentation of images, a whole batch at a time.

Symbols: N images; H, W their height and width; C channels, last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from scratchnet import checks
from scratchnet.data._common import as_images, image_indices

_CHUNK_BYTES = 64 << 20  # of images that are looked at together


class Normalisation:
    """Scale pixels to [0, 1] and standardise each channel: ``(x / 255 - mean) / std``, as torchvision does.

    Images of floats are not scaled, only standardised: ``(x - mean) / std``.

    Parameters
    ----------
    mean, std : sequence of C floats
        Per channel, on the scale 0 to 1, or on that of the floats.

    Raises
    ------
    ValueError
        If they are not one finite number per channel each, or a standard deviation is not above zero.

    Examples
    --------
    >>> normalise = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> normalise.apply(np.full((1, 2, 2, 3), 255, np.uint8))[0, 0, 0]
    array([2., 2., 2.], dtype=float32)
    """

    def __init__(self, mean: Sequence[float] | np.ndarray, std: Sequence[float] | np.ndarray):
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if len(self.mean) != len(self.std) or not self.mean:
            found = f"{len(self.mean)} and {len(self.std)}"
            raise ValueError(f"normalisation needs a mean and a deviation per channel, not {found}")
        if not np.isfinite(self.mean + self.std).all() or min(self.std) <= 0:
            found = f"{self.mean}, {self.std}"
            raise ValueError(f"normalisation needs finite means and deviations above zero, not {found}")

    @property
    def colour(self) -> tuple[int, ...]:
        """The mean as a colour of whole numbers, 0 to 255: what normalises to zero, to rounding.

        >>> Normalisation(mean=(0.5, 0.0, 1.0), std=(1, 1, 1)).colour
        (128, 0, 255)
        """
        return tuple(int(np.clip(np.floor(255 * value + 0.5), 0, 255)) for value in self.mean)

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift, (C,) each: ``apply`` makes value * scale - shift of a pixel of uint8.

        >>> Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).affine[1]
        array([2., 2., 2.])
        """
        return 1 / (255 * np.array(self.std)), np.array(self.mean) / self.std

    @classmethod
    def of(cls, images: np.ndarray, indices: ArrayLike | None = None) -> Normalisation:
        """Compute the mean and standard deviation of each channel over all pixels.

        Parameters
        ----------
        images : ndarray of uint8 or floats, shape (N, H, W, C) or (N, H, W)
            The training images; never the test images, which must stay unseen.
        indices : array of int, or of bool (N,), optional
            Use only these images, or those where a mask is true.

        Returns
        -------
        Normalisation
            A channel that is constant gets deviation 1.

        Examples
        --------
        >>> Normalisation.of(np.zeros((1, 4, 4, 3), np.uint8)).std
        (1.0, 1.0, 1.0)
        """
        images = as_images(images)
        chosen = image_indices(indices, len(images))
        if not len(chosen):
            raise ValueError("normalisation cannot be computed from no images at all")
        some = _CHUNK_BYTES // max(1, images.nbytes // len(images)) + 1  # a copy of some images, never of all
        chunks = [chosen[start : start + some] for start in range(0, len(chosen), some)]
        C = images.shape[3]
        if images.dtype == np.uint8:
            # A histogram holds everything that is needed, in exact integers.
            counts = np.zeros((C, 256), np.int64)
            for chunk in chunks:
                pixels = images[chunk].reshape(-1, C)
                for channel in range(C):
                    counts[channel] += np.bincount(pixels[:, channel], minlength=256)
            levels = np.arange(256) / 255
            share = counts / counts.sum(axis=1, keepdims=True)  # (C, 256)
            mean = share @ levels  # (C,)
            variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)  # (C,)
        else:
            axes, pixels_each = (0, 1, 2), len(chosen) * images.shape[1] * images.shape[2]
            mean = sum(images[chunk].sum(axes, np.float64) for chunk in chunks) / pixels_each  # (C,)
            squares = (np.square(images[chunk] - mean, dtype=np.float64).sum(axes) for chunk in chunks)
            variance = sum(squares) / pixels_each  # (C,)
        # A constant channel has no deviation (but for rounding) and is left as it is.
        std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
        return cls(mean, std)

    def apply(
        self, images: np.ndarray, out: np.ndarray | None = None, dtype: DTypeLike = "float32"
    ) -> np.ndarray:
        """Normalise a batch.

        Parameters
        ----------
        images : ndarray of uint8 or floats, shape (N, H, W, C) or (N, H, W)
        out : ndarray, shape (N, H, W, C), optional
            Array of floats to write into; its dtype counts. A new one by default.
        dtype : str or dtype
            Of the new array.

        Returns
        -------
        ndarray, shape (N, H, W, C)

        Examples
        --------
        >>> grey = np.full((2, 4, 4, 3), 51, np.uint8)
        >>> Normalisation((0.1, 0.1, 0.1), (1, 1, 1)).apply(grey, dtype="float64")[0, 0, 0].round(6)
        array([0.1, 0.1, 0.1])
        """
        images = as_images(images)
        C = images.shape[3]
        if len(self.mean) != C:
            raise ValueError(f"normalisation of {len(self.mean)} channels, but the images have {C}")
        if out is None:
            out = np.empty(images.shape, dtype)
        elif out.shape != images.shape:
            raise ValueError(f"normalisation writes {images.shape}, but out has the shape {out.shape}")
        # (x / 255 - mean) / std = x * scale - shift. NumPy's inner loop runs over the last axis, and three
        # numbers are too few; so the factors are repeated along a row of pixels: five times as fast.
        height, width = images.shape[1:3]
        rows = (len(images) * height, width * C)
        factors = self.affine
        if images.dtype != np.uint8:
            factors = 255 * factors[0], factors[1]
        scale, shift = (np.tile(factor, width).astype(out.dtype) for factor in factors)  # (W*C,) each
        result = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
        flat = result.reshape(rows)
        np.multiply(images.reshape(rows), scale, out=flat)
        flat -= shift
        if result is not out:
            out[...] = result
        return out

    def __repr__(self) -> str:
        return f"Normalisation(mean={self.mean}, std={self.std})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Normalisation) and (self.mean, self.std) == (other.mean, other.std)

    def __hash__(self) -> int:
        return hash((self.mean, self.std))


class Augmentation:
    """Random changes that leave an image's class alone, drawn for every image in every epoch.

    Parameters
    ----------
    crop : int
        Pad every side by this many pixels and cut the original size out at a random place; 0 for none. (He et
        al. 2015, sec. 4.2, pad by 4.)
    flip : bool
        Mirror every second image, left to right.
    cutout : int
        Paint over one square of this side, its centre anywhere, so that part of it may fall outside; 0 for
        none. (DeVries and Taylor 2017, sec. 3: 16 for CIFAR-10.)

    Raises
    ------
    ValueError
        If a size is no whole number of at least 0.

    Notes
    -----
    Padding and cutout need a colour. It is `fill` of `apply`, which the loader sets to the mean colour of the
    training images: that becomes zero by normalisation (to rounding: a colour is three whole numbers), and
    zero is what a convolution's own padding adds as well, so the network sees no edge that is not in the
    image.

    Examples
    --------
    >>> augmentation = Augmentation.named("crop-flip-cutout8")
    >>> augmentation
    Augmentation(crop=4, flip=True, cutout=8)
    >>> images = np.zeros((5, 32, 32, 3), np.uint8)
    >>> augmentation.apply(images, np.random.default_rng(0)).shape
    (5, 32, 32, 3)
    """

    def __init__(self, crop: int = 0, flip: bool = False, cutout: int = 0):
        checks.whole(0, crop=crop, cutout=cutout)
        self.crop, self.flip, self.cutout = int(crop), bool(flip), int(cutout)

    @classmethod
    def named(cls, name: str) -> Augmentation:
        """Make an augmentation from its name.

        Parameters
        ----------
        name : str
            ``"none"``, or one or more of ``crop``, ``flip`` and ``cutout`` joined by dashes. A number after
            ``crop`` or ``cutout`` is its size in pixels (else 4 and 16): ``"crop-flip"``,
            ``"crop2-cutout8"``.

        Returns
        -------
        Augmentation

        Raises
        ------
        ValueError
            If the name is none of these.

        Examples
        --------
        >>> Augmentation.named("crop-flip")
        Augmentation(crop=4, flip=True, cutout=0)
        >>> Augmentation.named("none")
        Augmentation(crop=0, flip=False, cutout=0)
        """
        sizes = {"crop": 4, "flip": 1, "cutout": 16}
        chosen: dict[str, int] = {}
        for word in [] if name == "none" else name.split("-"):
            match = re.fullmatch(r"(crop|cutout)([0-9]{1,4})|(crop|cutout|flip)", word)
            option = (match[1] or match[3]) if match else ""
            if not option or option in chosen:
                raise ValueError(
                    f"unknown augmentation {name!r}: say none, or join crop, flip and cutout by dashes, "
                    "as in crop-flip or crop4-flip-cutout16"
                )
            chosen[option] = int(match[2]) if match and match[2] else sizes[option]
        return cls(chosen.get("crop", 0), "flip" in chosen, chosen.get("cutout", 0))

    def draw(self, n: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the changes of a batch of n images of this size: integers (n, 5).

        For each image: top and left of the window in the padded image, whether to mirror it (0 or 1), top and
        left of the hole, which may begin outside.

        >>> Augmentation(flip=True).draw(3, 32, 32, np.random.default_rng(0))[:, 2]
        array([0, 1, 1])
        """
        # Numbers for the whole batch come first, so that each option draws the same ones in every batch.
        tops, lefts = rng.integers(0, 2 * self.crop + 1, (2, n)) if self.crop else np.zeros((2, n), int)
        flipped = rng.random(n) < 0.5 if self.flip else np.zeros(n, bool)
        first = np.zeros((2, n), int)
        if self.cutout:
            # The square covers [centre - size // 2, centre - size // 2 + size), as far as that lies within.
            first = rng.integers(0, [[height], [width]], (2, n)) - self.cutout // 2
        return np.stack([tops, lefts, flipped, *first], axis=1)

    def apply(
        self, images: np.ndarray, rng: np.random.Generator, fill: float | Sequence[float] = 128
    ) -> np.ndarray:
        """Change a batch; the argument itself is left as it was.

        Parameters
        ----------
        images : ndarray of uint8 or floats, shape (N, H, W, C)
        rng : numpy.random.Generator
            Where the random numbers come from: the same generator state gives the same images.
        fill : number or sequence of C numbers
            Colour of padding and cutout; see the notes above.

        Returns
        -------
        ndarray, shape (N, H, W, C), dtype of the images
            A new array.

        Examples
        --------
        >>> white = np.full((1, 4, 4, 3), 255, np.uint8)
        >>> cut = Augmentation(cutout=2).apply(white, np.random.default_rng(0), fill=(0, 0, 0))
        >>> bool((cut == 0).any() and (cut == 255).any())
        True
        """
        images = as_images(images)
        N, H, W, _ = images.shape
        return self.change(images, self.draw(N, H, W, rng), fill)

    def change(
        self, images: np.ndarray, changes: np.ndarray, fill: float | Sequence[float] = 128
    ) -> np.ndarray:
        """Make the changes, integers (N, 5), that ``draw`` returned, to images (N, H, W, C).

        >>> images = np.arange(3, dtype=np.uint8).reshape(1, 1, 3, 1).repeat(3, axis=3)
        >>> Augmentation(flip=True).change(images, np.array([[0, 0, 1, 0, 0]]))[0, 0, :, 0]
        array([2, 1, 0], dtype=uint8)
        """
        images = as_images(images)
        N, H, W, C = images.shape
        padded, c = images, self.crop
        if c:
            padded = np.empty((N, H + 2 * c, W + 2 * c, C), images.dtype)
            padded[:] = np.asarray(fill, images.dtype)
            padded[:, c : c + H, c : c + W] = images
        # One slice per image: a gather of the whole batch moves single pixels and takes several times longer.
        result = np.empty_like(images)
        for i, (top, left, flipped, hole_top, hole_left) in enumerate(changes):
            window = padded[i, top : top + H, left : left + W]  # (H, W, 3)
            result[i] = window[:, ::-1] if flipped else window
            if self.cutout:
                bottom, right = hole_top + self.cutout, hole_left + self.cutout
                result[i, max(hole_top, 0) : bottom, max(hole_left, 0) : right] = fill
        return result

    def __repr__(self) -> str:
        return f"Augmentation(crop={self.crop}, flip={self.flip}, cutout={self.cutout})"
