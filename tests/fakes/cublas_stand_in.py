"""cuBLAS for machines without a GPU, for tests only: its calling convention, NumPy's arithmetic.

It takes the arguments that ``scratchnet/plans/cuda/matmul.py`` gives to the library, addresses and all,
reads the matrices as cuBLAS would, columns first, rounds operands as the precision says, and adds up in
float64 (so its sums are better than a GPU's). What it cannot know is which combinations a real cuBLAS
refuses.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import numpy as np

from scratchnet.plans.cuda import matmul
from tests.fakes.cuda_runtime import launch

TYPES = {0: np.float32, 14: np.uint16}  # CUDA_R_32F, CUDA_R_16BF
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77


class Library:
    """What ``ctypes.CDLL`` returns."""

    def __init__(self):
        self.workspace = None

    def cublasCreate_v2(self, handle):  # noqa: N802
        handle._obj.value = 1
        return 0

    def cublasSetStream_v2(self, handle, stream):  # noqa: N802
        self.workspace = None  # it goes back to the library's own, as in cuBLAS
        return 0

    def cublasSetWorkspace_v2(self, handle, address, size):  # noqa: N802
        self.workspace = address
        return 0

    def cublasGemmEx(  # noqa: N802
        self, handle, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc,
        compute, algorithm,
    ):  # fmt: skip
        assert self.workspace is not None, "without a workspace cuBLAS would allocate while it is recorded"
        assert atype == btype and ctype == 0 and algorithm == -1
        assert compute in (COMPUTE_32F, COMPUTE_32F_FAST_TF32) and alpha._obj.value == 1.0
        rounded = tf32 if compute == COMPUTE_32F_FAST_TF32 else double
        add = beta._obj.value
        assert add in (0.0, 1.0)

        def do():
            left = columns_first(a, (k, m) if transa else (m, k), lda, atype)
            right = columns_first(b, (n, k) if transb else (k, n), ldb, btype)
            left, right = left.T if transa else left, right.T if transb else right
            result = columns_first(c, (m, n), ldc, ctype)
            product = rounded(left) @ rounded(right)
            result[...] = product + result if add else product

        launch(do)
        return 0


def columns_first(address, shape, leading, kind):
    """Return the matrix at an address, with columns ``leading`` numbers apart, float32 as a view."""
    rows, columns = shape
    assert leading >= rows
    dtype = np.dtype(TYPES[kind])
    size = (columns - 1) * leading + rows
    flat = np.ctypeslib.as_array(
        ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size * dtype.itemsize,)
    )
    matrix = np.lib.stride_tricks.as_strided(
        flat.view(dtype), shape, (dtype.itemsize, leading * dtype.itemsize)
    )
    return matrix if dtype == np.float32 else bfloat16(matrix)


def bfloat16(bits):
    """Return the float32 numbers that bfloat16's bits stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def double(x):
    """Return the array in float64; ``np.float64(x)`` is a number where the array has one element."""
    return x.astype(np.float64)


def tf32(x):
    """Round float32 numbers to 11 significant bits, the nearest, as tensor cores read them; as float64."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & 0xFFFFE000).view(np.float32).astype(np.float64)


@contextmanager
def installed():
    """Let plans find this library, and nothing else, within this context."""
    before, matmul.load = matmul.load, lambda xp: Library()
    try:
        yield
    finally:
        matmul.load = before
