"""Launches of ``kernels/epilogue.cu``: what follows a product."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import check, check_pixels, check_vectors, launch_rows


def epilogue(
    z: Array, y: Array, shift: Array | None = None, *,
    mean: Array | None = None, scale: Array | None = None, relu: bool = True,
) -> None:  # fmt: skip
    """Write to y = (z - mean) * scale + shift for every channel, and with ``relu`` the larger of that and 0.

    z and y are (..., C), and may be the same; the others are (C,), mean and scale both or neither. With a
    bias as ``shift`` and nothing else this is what follows a convolution or a linear layer; with ``mean`` and
    ``scale`` it is batch normalisation (see ``norm_finish`` and ``norm_fold``).
    """
    C = z.shape[-1]
    check(z, "float32")
    check(y, "float32", z.shape)
    _check_affine(C, shift, mean, scale)
    rows = z.size // C
    launch_rows("epilogue", "epilogue", rows, C, (z, y, shift, mean, scale), relu, np.int64(rows))


def epilogue_pool(
    z: Array, y: Array, code: Array | None, shift: Array | None = None, *,
    mean: Array | None = None, scale: Array | None = None, relu: bool = True,
) -> None:  # fmt: skip
    """Do what ``epilogue`` does with z (N, H, W, C), then 2 x 2 max pooling: y is (N, H//2, W//2, C).

    To ``code``, uint8 of y's shape, it writes which pixel of its window won, 0 to 3 in reading order, of
    equal ones the first; 4 where no gradient passes, since with ``relu`` the largest of the window is not
    above 0.
    """
    check(z, "float32", 4)
    N, H, W, C = z.shape
    check_pixels(z.shape)
    check(y, "float32", (N, H // 2, W // 2, C))
    check(code, "uint8", y.shape)
    _check_affine(C, shift, mean, scale)
    launch_rows("epilogue", "epilogue_pool", y.size // C, C, (z, y, code, shift, mean, scale), relu, N, H, W)


def _check_affine(C: int, shift: Array | None, mean: Array | None, scale: Array | None) -> None:
    if (mean is None) != (scale is None):
        raise ValueError("an epilogue takes mean and scale together")
    check_vectors(C, shift, mean, scale)
