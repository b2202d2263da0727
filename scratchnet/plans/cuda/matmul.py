"""Matrix products by cuBLAS, which is called directly, since CuPy will not let a CUDA graph record it.

CuPy's own calls (``cupy.matmul``, ``cupy_backends.cuda.libs.cublas``) raise NotImplementedError while a
stream is being recorded (https://github.com/cupy/cupy/issues/6290). cuBLAS itself allows it, if it has a
workspace beforehand. So CuPy finds and loads the library, and here it is called through ctypes, with handles
and workspaces of our own, one for each GPU and thread. A fixed workspace also gives its sums the same bits
every time.

cuBLAS counts columns first: what it takes for a matrix (m, n) is in memory our (n, m). So our C = A B is
asked for as C^T = B^T A^T, which moves no number: the operands only change places, and an operand that we
want transposed is one that it must transpose.

==========  =======================================  ====================================================
precision   what goes into a product                 in what it adds up
==========  =======================================  ====================================================
``fp32``    float32, 24 significant bits             float32
``tf32``    float32, of which it takes 11 bits       float32, on tensor cores
``bf16``    bfloat16, 8 significant bits             float32, on tensor cores
==========  =======================================  ====================================================
"""

from __future__ import annotations

import ctypes
import os
import threading
from types import ModuleType
from typing import Any

import numpy as np

from scratchnet.backend import Array, BackendError
from scratchnet.plans.cuda.launch.compiling import address

# From cuBLAS's and CUDA's headers (cublas_api.h, library_types.h).
OP_N, OP_T = 0, 1
R_32F, R_16BF = 0, 14
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77
GEMM_DEFAULT = -1

WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for Hopper, and more than enough before


class Matmul:
    """Matrix products at one precision. BackendError says that cuBLAS cannot be loaded, or does not start."""

    def __init__(self, xp: ModuleType, precision: str):
        self.xp = xp
        self.workspaces: dict[int, Array] = {}  # whatever thread they are of, graphs that use them need them
        _started(xp)
        self.compute = COMPUTE_32F_FAST_TF32 if precision == "tf32" else COMPUTE_32F

    def __call__(
        self, a: Array, b: Array, out: Array, *,
        transpose_a: bool = False, transpose_b: bool = False, accumulate: bool = False,
    ) -> None:  # fmt: skip
        """Compute out = a b, or with ``accumulate`` out += a b, on the current stream.

        a (M, K), or (K, M) with ``transpose_a``, and b (K, N), or (N, K) with ``transpose_b``, are operands;
        out is float32 (M, N). Each row is contiguous; a matrix may be the first columns of a wider one.
        """
        M, K = a.shape[::-1] if transpose_a else a.shape
        rows, N = b.shape[::-1] if transpose_b else b.shape
        if rows != K or out.shape != (M, N):
            raise ValueError(f"a product of {a.shape} and {b.shape} does not fit {out.shape}")
        one, beta = ctypes.c_float(1.0), ctypes.c_float(1.0 if accumulate else 0.0)
        transposes = OP_T if transpose_b else OP_N, OP_T if transpose_a else OP_N
        cublas, handle, workspace = _started(self.xp)
        self.workspaces[address(workspace)] = workspace
        _check(cublas.cublasSetStream_v2(handle, self.xp.cuda.get_current_stream().ptr))
        # Setting a stream gives cuBLAS's own workspace back to the handle, so ours is set after it.
        _check(cublas.cublasSetWorkspace_v2(handle, address(workspace), workspace.nbytes))
        _check(cublas.cublasGemmEx(
            handle, *transposes, N, M, K, ctypes.byref(one), *_matrix(b), *_matrix(a),
            ctypes.byref(beta), *_matrix(out), self.compute, GEMM_DEFAULT,
        ))  # fmt: skip


def _matrix(array: Array) -> tuple[int, int, int]:
    """Return address, type and leading dimension, as cuBLAS takes them."""
    leading = array.shape[1]
    if not array.flags.c_contiguous:
        leading = array.strides[0] // array.itemsize
        if array.strides[1] != array.itemsize or leading < array.shape[1]:
            raise ValueError("a product takes matrices whose rows are contiguous")
    return address(array), R_16BF if array.dtype == np.uint16 else R_32F, leading


_of_thread = threading.local()


def _started(xp: ModuleType) -> tuple[Any, ctypes.c_void_p, Array]:
    """Return the library, and this thread's handle and workspace on the current GPU, made at first use.

    A handle remembers a stream and a workspace from one call to the next: two threads must not share it.
    """
    started: dict[Any, tuple[Any, ctypes.c_void_p, Array]] = vars(_of_thread)
    key = f"{id(xp)} {xp.cuda.runtime.getDevice()}"
    if key not in started:
        library = load(xp)
        handle = ctypes.c_void_p()
        _check(library.cublasCreate_v2(ctypes.byref(handle)))
        started[key] = library, handle, xp.empty(WORKSPACE, np.uint8)
    return started[key]


def load(xp: ModuleType) -> Any:
    """Return cuBLAS as a ctypes library, of the same major version as CuPy's CUDA, or raise BackendError."""
    major = xp.cuda.runtime.runtimeGetVersion() // 1000
    try:
        # CuPy knows where pip, conda or the system put it. Once it is in the process, its bare name will do.
        from cupy_backends.cuda.libs import cublas  # noqa: F401

        library = ctypes.CDLL(f"cublas64_{major}.dll" if os.name == "nt" else f"libcublas.so.{major}")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"cuBLAS for CUDA {major} cannot be loaded: pip install 'cupy-cuda{major}x[ctk]', or use "
            "--engine layers"
        ) from error
    for name, arguments in SIGNATURES.items():
        getattr(library, name).argtypes = arguments
    return library


_pointer, _int = ctypes.c_void_p, ctypes.c_int
SIGNATURES = {
    "cublasCreate_v2": [_pointer],
    "cublasSetStream_v2": [_pointer, _pointer],
    "cublasSetWorkspace_v2": [_pointer, _pointer, ctypes.c_size_t],
    # handle, transposes, m, n, k, alpha, A, type, leading dimension, B, ..., beta, C, ..., compute, algorithm
    "cublasGemmEx": [
        *(_pointer, _int, _int, _int, _int, _int, _pointer),
        *(_pointer, _int, _int, _pointer, _int, _int),
        *(_pointer, _pointer, _int, _int, _int, _int),
    ],
}


def _check(status: int) -> None:
    """Raise if cuBLAS reports an error."""
    if status:
        meanings = {1: "it is not initialised", 3: "no memory is left", 7: "an argument is wrong",
                    8: "this GPU cannot do it", 13: "the GPU failed", 15: "it is not supported"}  # fmt: skip
        error = MemoryError if status == 3 else BackendError
        raise error(f"cuBLAS reports error {status}: {meanings.get(status, 'see its manual')}")
