"""Matrix products in stacks of small blocks, because small is faster.

M, N, K, m, n and k are sizes of matrices here, not those of ``layouts.py``.

OpenBLAS multiplies large matrices by first copying both operands, panel by panel, into the order in which its
inner loop reads them. That pays when every panel is used often. For small matrices, M * N * K up to a
million, its builds for AVX-512 have kernels that read the operands where they lie and copy nothing: on one
core 100 GFLOP/s in place of 50 to 85, with operands that come from the cache.

So a large product is cut into blocks of the result, and one call of ``numpy.matmul`` on stacks of matrices
makes all of them::

            N = q * n                      A [p, 1, m, K]   B [1, q, K, n]   out [p, q, m, n]
           +----+----+----+
    A   m  |    |    |    |                matmul broadcasts over the first two axes, and all three are
    [K] m  |    |    |    |  M = p * m     views: nothing is copied
        m  |    |    |    |
           +----+----+----+

K is never cut, so every number of the result is still one inner product. With a BLAS that has no such kernels
products stay whole; how many columns a block has is measured, see ``measuring.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from scratchnet.plans.cpu.calls import Calls

COLUMNS = 64  # n: four vector registers of 16 numbers
ROWS = 64  # m, at most
FEWEST_ROWS = 12  # with fewer, reading B again for each block costs more than it gains
FEW_ROWS = 16  # up to so many rows of A, reading B is what counts
LONG_ROWS, LONG_COLUMNS = 256, 512  # of a block of B there, at most
ROWS_FOR_ONE, FEWEST_FOR_ONE = 2048, 64  # the same rows, at most and at least, where A has a single row
SMALL = 1_000_000  # the largest M * N * K that OpenBLAS's kernels for small matrices take


class BlockShape(NamedTuple):
    """How a product is cut into blocks."""

    limit: int  # the largest M * N * K of a block; 0 for one whole product
    columns: int = COLUMNS  # of a block, at most


WHOLE = BlockShape(0)


def product(do: Calls, a: np.ndarray, b: np.ndarray, out: np.ndarray, block_shape: BlockShape) -> None:
    """Record out (..., M, N) = a (..., M, K) @ b (..., K, N), of matrices or stacks of them.

    Examples
    --------
    >>> a, b, out = np.ones((100, 30)), np.ones((30, 70)), np.zeros((100, 70))
    >>> do = Calls()
    >>> product(do, a, b, out=out, block_shape=BlockShape(10_000))
    >>> do.run()
    >>> out.min(), out.max(), len(do)
    (np.float64(30.0), np.float64(30.0), 2)
    """
    M, K, N = a.shape[-2], a.shape[-1], b.shape[-1]
    if K == 1:  # nothing is added up, and each number of b is reused while it is in the cache
        do(np.multiply, a, b, out=out)
        return
    limit, n = block_shape.limit, min(N, block_shape.columns)
    while n > 16 and n * K * FEWEST_ROWS > limit:
        n //= 2
    m = rows_of_block(M, limit // max(1, n * K))
    if not m:
        do(np.matmul, a, b, out=out)
        return
    for top, bottom, height in _cuts(M, m):
        rows = slice(top, bottom)
        a_blocks = _split(a[..., rows, :], -2, height)[..., :, None, :, :]  # (..., p, 1, m, K)
        for left, right, width in _cuts(N, n):
            cols = slice(left, right)
            b_blocks = np.moveaxis(_split(b[..., cols], -1, width), -2, -3)  # (..., q, K, n)
            blocks = _split(_split(out[..., rows, cols], -1, width), -3, height)  # (..., p, m, q, n)
            blocks = np.moveaxis(blocks, -2, -3)  # (..., p, q, m, n)
            do(np.matmul, a_blocks, b_blocks[..., None, :, :, :], out=blocks)


def long_block(M: int, K: int, N: int, limit: int) -> tuple[int, int] | None:
    """Return the shape (k, n) of the blocks of b for ``long_product``, None where it would not help.

    A single row is multiplied by a matrix-vector product, which copies nothing, whatever the size. There
    whole rows of b are best, and K is divided only so that not too many numbers are added up one by one,
    which would cost accuracy.

    Examples
    --------
    >>> long_block(8, 25088, 2048, 1_000_000), long_block(8, 4096, 2048, 1_000_000)
    ((224, 512), (128, 512))
    >>> long_block(1, 25088, 2048, 1_000_000)
    (1792, 2048)
    >>> long_block(128, 4096, 2048, 1_000_000)
    """
    if M == 1:
        k = max(k for k in range(1, min(K, ROWS_FOR_ONE) + 1) if K % k == 0)
        return (k, N) if FEWEST_FOR_ONE <= k < K else None
    if M > FEW_ROWS:
        return None
    n = max((n for n in range(1, min(N, LONG_COLUMNS) + 1) if N % n == 0), default=1)
    k = max((k for k in range(1, K + 1) if K % k == 0 and M * k * n <= limit and k <= LONG_ROWS), default=1)
    return (k, n) if k * n >= 4096 and k < K else None


def long_product(
    do: Calls, a: np.ndarray, b: np.ndarray, out: np.ndarray, scratch: np.ndarray, block: tuple[int, int]
) -> None:
    """Record out = a @ b for a few rows and a large b, as of a linear layer with a small batch.

    There every number of b is used only a few times, so that reading b is all that counts, and copying it
    first, as a product of large matrices does, doubles the time. Here b is read once, in blocks (k, n) small
    enough for the kernels that copy nothing, and the results of K/k blocks are added up afterwards::

        out (M, N) = sum over K/k blocks of   a[:, rows] (M, k)   b[rows] (k, N), by n columns at a time

    ``scratch`` has K/k * M * N numbers, or more, and ``block``, (k, n), comes from ``long_block``.
    """
    (M, K), N, (k, n) = a.shape, b.shape[1], block
    p, q = K // k, N // n
    a_blocks = _split(a, -1, k).transpose(1, 0, 2)[:, None]  # (p, 1, M, k)
    b_blocks = _split(_split(b, -1, n), -3, k).transpose(0, 2, 1, 3)  # (p, q, k, n)
    results = scratch[: p * M * N].reshape(p, q, M, n)
    do(np.matmul, a_blocks, b_blocks, out=results)
    do(np.add.reduce, results, 0, None, out=_split(out, -1, n).transpose(1, 0, 2))  # (q, M, n)


def rows_of_block(M: int, most: int) -> int:
    """Return how many rows a block has: ``most`` or fewer, if that leaves none over; 0 for no blocks.

    Examples
    --------
    >>> rows_of_block(128, 30), rows_of_block(49, 30), rows_of_block(128, 5), rows_of_block(8, 30)
    (16, 30, 0, 8)
    """
    most = min(M, ROWS, most)
    if most < min(M, FEWEST_ROWS):
        return 0
    even = max(d for d in range(1, most + 1) if M % d == 0)
    return even if 2 * even > most else most


def _cuts(size: int, block: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, size of a block): first what divides evenly, then the rest."""
    whole = size // block * block
    if whole:
        yield 0, whole, block
    if whole < size:
        yield whole, size, size - whole


def _split(x: np.ndarray, axis: int, block: int) -> np.ndarray:
    """Return a view in which an axis has become two: which block, and where in it."""
    axis += x.ndim
    shape = x.shape[:axis] + (x.shape[axis] // block, block) + x.shape[axis + 1 :]
    view = x.reshape(shape)
    assert view.size == 0 or np.may_share_memory(view, x)
    return view


def small_matmul(do: Calls, matrix: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """Record out (..., M, L) = matrix (M, K) @ x (..., K, L), for a tiny matrix and long vectors.

    As a matrix product it makes four to six billion numbers a second on one core, many times as many as one
    addition after the other, and in a single call. Vectors are cut where M * K * L would exceed SMALL.

    Examples
    --------
    >>> out = np.zeros((1, 50000))
    >>> do = Calls()
    >>> small_matmul(do, np.array([[1.0, -1.0]]), np.arange(100000.0).reshape(2, 50000), out=out)
    >>> do.run()
    >>> out.min(), out.max()
    (np.float64(-50000.0), np.float64(-50000.0))
    """
    M, K = matrix.shape
    L = x.shape[-1]
    longest = 1 << (SMALL // (M * K)).bit_length() - 1  # a power of two
    for start, stop, length in _cuts(L, min(L, longest)):
        if stop - start == length:
            do(np.matmul, matrix, x[..., start:stop], out=out[..., start:stop])
        else:
            vectors = np.moveaxis(_split(x[..., start:stop], -1, length), -2, -3)  # (..., q, K, length)
            results = np.moveaxis(_split(out[..., start:stop], -1, length), -2, -3)  # (..., q, M, length)
            do(np.matmul, matrix, vectors, out=results)
