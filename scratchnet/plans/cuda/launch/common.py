"""Checks, packs and grids, which all launch wrappers share: the counterpart of ``kernels/common.cuh``."""

from __future__ import annotations

from typing import Any

from scratchnet.backend import Array
from scratchnet.plans.cuda.launch.compiling import address, launch

THREADS = 256  # of a block, unless a kernel says otherwise
WIDE = 4  # numbers in a 16-byte access
# At most this many blocks along the rows, however many rows there are: eight of 256 threads fill each of an
# H100's 132 multiprocessors once. Threads go on to further rows, and fetch what belongs to a channel once.
# (Calculated, as all numbers here; not yet measured on a GPU.)
MAX_BLOCKS = 1056
OPERANDS = ("float32", "uint16")


def check(
    array: Array | None, dtype: str | tuple[str, ...], shape: int | tuple[int, ...] | None = None
) -> None:
    """Raise ValueError unless an array is what a kernel takes it for: it would silently read past its end.

    It must be contiguous, not empty, of (one of) this dtype and shape, where an int is a number of axes and
    None any shape. An array that may be missing passes as None.
    """
    if array is None:
        return
    dtypes = (dtype,) if isinstance(dtype, str) else dtype
    fits = shape is None or (array.ndim == shape if isinstance(shape, int) else array.shape == shape)
    if not fits or array.dtype.name not in dtypes or not array.flags.c_contiguous or array.size == 0:
        wanted = f"{shape} axes" if isinstance(shape, int) else str(shape or "any shape")
        raise ValueError(
            f"a kernel expected contiguous {' or '.join(dtypes)}, {wanted}, and got {array.dtype} "
            f"{array.shape}"
        )


def check_pixels(*maps: tuple[int, ...]) -> None:
    """Raise ValueError unless kernels can count the pixels of maps (N, H, W, ...) in 32 bits."""
    for N, H, W, *_ in maps:
        if N * H * W >= 2**31:
            raise ValueError(
                f"a map of {N} x {H} x {W} pixels has too many of them: take fewer images at a time"
            )


def check_vectors(C: int, *vectors: Array | None) -> None:
    """Raise unless each of these is float32 (C,), or None."""
    for vector in vectors:
        check(vector, "float32", (C,))


def macros(wide: int, *arrays: Array | None) -> tuple[str, ...]:
    """Return the macros of a variant: numbers per access, and whether one of the arrays holds bfloat16."""
    bf16 = any(array is not None and array.dtype.name == "uint16" for array in arrays)
    return (f"-DWIDE={wide}", *(["-DBF16"] if bf16 else []))


def pack_width(length: int, *arrays: Array | None) -> int:
    """Return how many numbers an access may take: WIDE if no row and no array begins between two accesses."""
    aligned = all(array is None or address(array) % (WIDE * array.itemsize) == 0 for array in arrays)
    return WIDE if length % WIDE == 0 and aligned else 1


def by_channel(rows: int, packs: int, partial_sums: int = 0) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return grid and block for a matrix: threads along x have neighbouring packs of channels, along y rows.

    A block is at most a warp wide, so that a wide matrix is cut into tiles of columns, and for a narrow one a
    block has many rows. With ``partial_sums``, each block along the rows makes one of them.
    """
    across = min(32, 1 << max(0, packs - 1).bit_length())
    down = THREADS // across
    return (partial_sums or max(1, min(MAX_BLOCKS, -(-rows // down))), -(-packs // across)), (across, down)


def launch_rows(
    file: str,
    name: str,
    rows: int,
    C: int,
    arrays: tuple[Array | None, ...],
    *numbers: Any,
    partial_sums: int = 0,
) -> None:
    """Launch a kernel on a matrix (rows, C), in packs of channels as wide as all of its arrays allow.

    Its arguments are the arrays, the numbers, and how many packs a row has.
    """
    wide = pack_width(C, *arrays)
    packs = C // wide
    grid = by_channel(rows, packs, partial_sums)
    launch(file, name, macros(wide, *arrays), *grid, *arrays, *numbers, packs)


def by_column(channels: int) -> tuple[tuple[int], tuple[int, int]]:
    """Return grid and block for a kernel that joins partial sums: 32 channels per block, 16 threads each."""
    return (-(-channels // 32),), (32, 16)


def flat(count: int) -> tuple[tuple[int], tuple[int]]:
    """Return grid and block for ``count`` elements in a row."""
    return (max(1, min(MAX_BLOCKS, -(-count // THREADS))),), (THREADS,)
