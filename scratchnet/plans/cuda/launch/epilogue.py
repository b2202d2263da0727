"""Launches of ``kernels/epilogue.cu``: what follows a product."""

from __future__ import annotations

import numpy as np

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.common import by_channel, check, check_vectors, macros, or_null, pack_width
from scratchnet.plans.cuda.launch.compiling import launch


def epilogue(
    z: Array,
    y: Array,
    shift: Array | None = None,
    *,
    mean: Array | None = None,
    scale: Array | None = None,
    relu: bool = True,
) -> None:
    """Compute y = (z - mean) * scale + shift for every channel, and with ``relu`` the larger of that and 0.

    With a bias as ``shift`` and nothing else this is what follows a convolution or a linear layer; with
    ``mean`` and ``scale`` it is batch normalisation (see ``norm_finish`` and ``norm_fold``).

    Parameters
    ----------
    z : float32 (..., C)
    y : float32 (..., C)
        Written; may be ``z`` itself.
    shift : float32 (C,), optional
    mean, scale : float32 (C,), optional
        Both or neither.
    relu : bool
    """
    C = z.shape[-1]
    check(z, "float32")
    check(y, "float32", z.shape)
    _check_affine(C, shift, mean, scale)
    wide = pack_width(C, z, y, shift, mean, scale)
    launch(
        "epilogue", "epilogue", macros(wide), *by_channel(z.size // C, C // wide), z, y,
        or_null(shift), or_null(mean), or_null(scale), np.int32(relu), np.int64(z.size // C),
        np.int32(C // wide),
    )  # fmt: skip


def epilogue_pool(
    z: Array,
    y: Array,
    code: Array | None,
    shift: Array | None = None,
    *,
    mean: Array | None = None,
    scale: Array | None = None,
    relu: bool = True,
) -> None:
    """Do what ``epilogue`` does, then 2 x 2 max pooling.

    Parameters
    ----------
    z : float32 (N, H, W, C)
    y : float32 (N, H//2, W//2, C)
        Written.
    code : uint8, shape of y, or None
        Written: which pixel of its window won, 0 to 3 in reading order, of equal ones the first; 4 where no
        gradient passes, since with ``relu`` the largest of the window is not above 0.
    shift, mean, scale, relu
        As in ``epilogue``.
    """
    check(z, "float32", 4)
    N, H, W, C = z.shape
    check(y, "float32", (N, H // 2, W // 2, C))
    if code is not None:
        check(code, "uint8", y.shape)
    _check_affine(C, shift, mean, scale)
    wide = pack_width(C, z, y, shift, mean, scale, code)
    launch(
        "epilogue", "epilogue_pool", macros(wide), *by_channel(y.size // C, C // wide), z, y, or_null(code),
        or_null(shift), or_null(mean), or_null(scale), np.int32(relu), np.int32(N), np.int32(H), np.int32(W),
        np.int32(C // wide),
    )  # fmt: skip


def _check_affine(C: int, shift: Array | None, mean: Array | None, scale: Array | None) -> None:
    if (mean is None) != (scale is None):
        raise ValueError("an epilogue takes mean and scale together")
    check_vectors(C, shift, mean, scale)
