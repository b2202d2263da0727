"""Matrix products by cuBLAS."""

import sys
import threading

import numpy as np
import pytest

from scratchnet import backend
from scratchnet.plans.cuda import matmul
from scratchnet.plans.cuda.launch.operands import cast, operand_dtype
from tests.fakes import cublas_stand_in
from tests.fakes.comparing import assert_close, batch

real_load = matmul.load  # the stand-in puts its own in its place


# In tf32 sizes that tensor cores take, multiples of 8 from 64 on: elsewhere cuBLAS may compute in float32.
# Some GPUs cut operands off where others round them.
@pytest.mark.parametrize(
    "precision, tolerance, sizes",
    [("fp32", 1e-6, (5, 7, 3)), ("tf32", 2e-3, (64, 72, 128)), ("bf16", 1e-2, (5, 7, 3))],
)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_products(device, precision, tolerance, sizes, transposed):
    M, K, N = sizes
    a, b, c = batch(M, K, seed=1), batch(K, N, seed=2), batch(M, N, seed=3)
    product = matmul.Matmul(device.xp, precision)
    given = []
    for matrix, turned in zip((a, b), transposed, strict=True):
        array = device.asarray(np.ascontiguousarray(matrix.T if turned else matrix))
        operands = device.xp.empty(array.shape, operand_dtype(precision))
        cast(array, operands)
        given.append(operands)
    turned = {"transpose_a": transposed[0], "transpose_b": transposed[1]}
    for accumulate in (False, True):
        out = device.asarray(c)
        product(*given, out, **turned, accumulate=accumulate)
        assert_close(device.to_numpy(out), a @ b + c * accumulate, tolerance)


def test_a_product_that_does_not_fit_is_refused(device):
    product = matmul.Matmul(device.xp, "fp32")
    a, b = (device.asarray(batch(*shape)) for shape in ((5, 7), (7, 3)))
    for out in ((3, 5), (5, 4)):
        with pytest.raises(ValueError, match="does not fit"):
            product(a, b, device.xp.empty(out, "float32"))
    with pytest.raises(ValueError, match="does not fit"):
        product(a, a, device.xp.empty((5, 7), "float32"))
    with pytest.raises(ValueError, match="contiguous"):
        product(a[:, ::2], device.asarray(batch(4, 3)), device.xp.empty((5, 3), "float32"))


def test_how_the_stand_in_rounds():
    x = np.array([1.0, 1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, 1.0 + 2.0**-10, -3.14159274], "float32")
    expected = [1.0, 1.0, 1.0 + 2.0**-9, 1.0 + 2.0**-10, -3.140625]
    np.testing.assert_array_equal(cublas_stand_in.tf32(x), expected)


def test_cublas_that_is_missing(stand_in, monkeypatch):
    monkeypatch.setattr(matmul, "load", real_load)
    monkeypatch.setitem(sys.modules, "cupy_backends", None)
    with pytest.raises(backend.BackendError, match=r"cuBLAS for CUDA 13 .*cupy-cuda13x\[ctk\]"):
        matmul.load(stand_in)


def test_the_real_cublas_has_these_names_and_numbers():
    """No GPU is needed for it, only CuPy and NVIDIA's library."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        library = real_load(cupy)
    except backend.BackendError as error:
        pytest.skip(str(error))
    assert all(hasattr(library, name) for name in matmul.SIGNATURES)
    from cupy_backends.cuda.libs import cublas

    runtime = cupy.cuda.runtime
    theirs = {
        "OP_N": cublas.CUBLAS_OP_N,
        "OP_T": cublas.CUBLAS_OP_T,
        "R_32F": runtime.CUDA_R_32F,
        "R_16BF": runtime.CUDA_R_16BF,
        "COMPUTE_32F": cublas.CUBLAS_COMPUTE_32F,
        "COMPUTE_32F_FAST_TF32": cublas.CUBLAS_COMPUTE_32F_FAST_TF32,
        "GEMM_DEFAULT": cublas.CUBLAS_GEMM_DEFAULT,
    }
    assert {name: getattr(matmul, name) for name in theirs} == theirs


def test_each_gpu_and_thread_has_its_own_handle_and_workspace(stand_in, monkeypatch):
    """A handle remembers its stream and workspace between two calls, which another thread would exchange."""
    products = []

    def multiply():
        product = matmul.Matmul(stand_in, "fp32")
        product(*(stand_in.ones((2, 2), "float32") for _ in range(2)), stand_in.zeros((2, 2), "float32"))
        products.append(product)

    multiply()
    multiply()
    thread = threading.Thread(target=multiply)
    thread.start()
    thread.join()
    monkeypatch.setattr(stand_in.cuda.runtime, "getDevice", lambda: 1)
    multiply()
    first, again, threads, devices = (set(product.workspaces) for product in products)
    assert first == again and len(first | threads | devices) == 3


def test_cublas_that_fails():
    with pytest.raises(MemoryError, match="no memory is left"):
        matmul._check(3)
    with pytest.raises(backend.BackendError, match="cuBLAS reports error 15: it is not supported"):
        matmul._check(15)
