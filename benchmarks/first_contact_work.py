"""The work of two steps of ``first_contact.py``, each in a process of its own.

::

    python benchmarks/first_contact_work.py smoke           the most basic thing first, a line for each
    python benchmarks/first_contact_work.py sweep tf32      ms per step by size of column buffer and by grid
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from scratchnet import backend, cuda_errors
from scratchnet.layers import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import vgg11, vgg16
from scratchnet.optim import SGD
from scratchnet.plans.cuda import capability, conv
from scratchnet.plans.cuda.graphs import Replayed
from scratchnet.plans.cuda.launch import common, sums
from scratchnet.plans.cuda.launch.epilogue import epilogue
from scratchnet.plans.cuda.launch.operands import cast, operand_dtype
from scratchnet.plans.cuda.matmul import Matmul
from scratchnet.plans.cuda.training_step import TrainingSteps

SHAPES = (5, 7, 3), (256, 27, 8), (2048, 27, 64), (2048, 576, 64), (512, 512, 10)  # M, K, N
MEBIBYTES = 16, 24, 32, 48, 64, 128, 256
GRIDS = (528, 512), (1056, 512), (2112, 512), (1056, 1024), (2112, 2048)  # blocks, partial sums


def smoke(small: bool) -> int:
    """Print a line for each of the most basic things: ok, or what is wrong; return how many are wrong."""
    wrong = 0

    def step(name: str, call: Callable[[], Any]) -> None:
        nonlocal wrong
        start = time.perf_counter()
        try:
            said = call()
            print(f"ok    {name:50s} {time.perf_counter() - start:6.2f} s  {said or ''}", flush=True)
        except Exception as error:
            wrong += 1
            text = str(cuda_errors.explain(error) or error)
            print(f"FAIL  {name}: {type(error).__name__}: {text[:400]}", flush=True)
            if "the GPU failed" in text:  # nothing more can be computed in this process
                sys.exit(1)

    step("the backend", lambda: backend.get("cupy"))
    if wrong:
        return wrong
    gpu = backend.get("cupy")
    precisions = [p for p in ("fp32", "tf32", "bf16") if not capability.too_old(gpu.xp, p)]
    step("cuBLAS loads, a handle, a workspace", lambda: Matmul(gpu.xp, "fp32") and None)
    # The error of tf32 tells what is done: 2.9e-4 rounds, above 6e-4 truncates, 1e-7 uses no tensor cores.
    for precision in precisions:
        for shape in SHAPES[:2] if small else SHAPES:
            for ta, tb in ((False, False), (True, False), (False, True)):
                step(
                    f"{precision} product {shape} T{ta:d}{tb:d}, its error",
                    lambda p=precision, s=shape, a=ta, b=tb: f"{product_error(gpu, p, s, a, b):.1e}",
                )
    step("a graph of one kernel", lambda: one_graph(gpu))
    for precision in precisions:
        step(f"{precision}: four steps", lambda p=precision: f"loss {losses(gpu, p, True, small)[-1]:.4f}")
        step(
            f"{precision}: the same bits, launched one by one",
            lambda p=precision: same(losses(gpu, p, False, small), losses(gpu, p, True, small)),
        )
    return wrong


def product_error(gpu: backend.Backend, precision: str, shape: tuple[int, ...], ta: bool, tb: bool) -> float:
    """Return the error of a product, as a share of its norm."""
    rng, (M, K, N) = np.random.default_rng(0), shape
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    operands = []
    for matrix in (a.T if ta else a, b.T if tb else b):
        there = gpu.asarray(np.ascontiguousarray(matrix))
        operands.append(gpu.xp.empty(there.shape, operand_dtype(precision)))
        cast(there, operands[-1])
    out = gpu.asarray(np.full((M, N), np.nan, np.float32))
    Matmul(gpu.xp, precision)(*operands, out, transpose_a=ta, transpose_b=tb)
    exact = a.astype(np.float64) @ b
    error = float(np.linalg.norm(gpu.to_numpy(out) - exact) / np.linalg.norm(exact))
    if not error < 2e-2:
        raise ArithmeticError(f"it is {error:.1e}")
    return error


def one_graph(gpu: backend.Backend) -> None:
    """Launch, record and replay one kernel."""
    x, y = gpu.asarray(np.arange(8, dtype=np.float32).reshape(2, 4)), gpu.xp.empty((2, 4), np.float32)
    replayed = Replayed(gpu.xp, lambda: epilogue(x, y, relu=False), lambda: 0)
    for _ in range(3):
        y.fill(0)
        replayed()
        if (gpu.to_numpy(y) != gpu.to_numpy(x)).any():
            raise ArithmeticError("the graph computes something else")


def losses(gpu: backend.Backend, precision: str, graphs: bool, small: bool) -> list[float]:
    """Return the totals after each of four steps."""
    net = tiny() if small else vgg11(10, 32, batch_norm=True, width=0.25, classifier_width=64)
    net, size = net.to(gpu), 8 if small else 32
    sgd = SGD(net.parameters(), 1.0, momentum=0.9)
    steps = TrainingSteps(net, sgd, SoftmaxCrossEntropy(), 4, precision, graphs=graphs)
    steps.begin(np.full(4, 0.01))
    rng, seen = np.random.default_rng(0), []
    x, labels = rng.standard_normal((4, size, size, 3), np.float32), rng.integers(0, 10, 4)
    for _ in range(4):
        steps.step(4, x, labels)
        seen.append(steps.totals().loss)
    return seen


def tiny() -> Sequential:
    """Return a network with every kernel, for images of 8 pixels."""
    blocks = Conv2d(3, 8), BatchNorm2d(8), ReLU(), MaxPool2d(2), Conv2d(8, 8), ReLU(), MaxPool2d(2)
    return Sequential(*blocks, Flatten(), Linear(32, 10))


def same(launched: list[float], replayed: list[float]) -> None:
    """Raise unless the bits are the same."""
    if launched != replayed:
        raise ArithmeticError(f"{replayed}, launched {launched}")


def sweep(precision: str, small: bool) -> int:
    """Print milliseconds per step of VGG16-BN at 32 px by size of the column buffer and by grid."""
    gpu, batch = backend.get("cupy"), 4 if small else 512
    capability.require(gpu.xp, precision)
    chosen = conv.column_bytes(gpu.xp) >> 20
    print(f"{gpu}; {precision}, batch {batch}; columns of {chosen} MiB are chosen", flush=True)
    print("columns, MiB   ms/step   images/s   host, ms", flush=True)
    for mebibytes in MEBIBYTES[2:3] if small else MEBIBYTES:
        conv.COLUMN_BYTES = mebibytes << 20
        step, host, _ = milliseconds(gpu, precision, batch, small)
        print(f"{mebibytes:12d} {step:9.3f} {1e3 * batch / step:10.0f} {host:10.2f}", flush=True)
    conv.COLUMN_BYTES = None
    print("blocks   partial sums   ms/step", flush=True)
    for blocks, parts in GRIDS[1:2] if small else GRIDS:
        common.MAX_BLOCKS, sums.MAX_PARTIAL_SUMS = blocks, parts
        step, _, plan = milliseconds(gpu, precision, batch, small)
        print(f"{blocks:6d} {parts:14d} {step:9.3f}", flush=True)
    plan.measure(1 if small else 10)
    print(plan.describe(), flush=True)
    return 0


def milliseconds(gpu: backend.Backend, precision: str, batch: int, small: bool) -> tuple[float, float, Any]:
    """Return the milliseconds of a step, and those of the host; and the plan."""
    net = (tiny() if small else vgg16(10, 32, batch_norm=True, dropout=0.0)).to(gpu)
    size = 8 if small else 32
    sgd = SGD(net.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    steps = TrainingSteps(net, sgd, SoftmaxCrossEntropy(), batch, precision)
    steps.begin(np.full(256, 1e-3))
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((batch, size, size, 3), np.float32), rng.integers(0, 10, batch)
    x, labels = gpu.asarray(x), gpu.asarray(labels)
    for _ in range(3):  # launched, recorded, replayed
        steps.step(batch, x, labels)
    gpu.synchronize()
    best, host, count = float("inf"), 0.0, 1 if small else 20
    for _ in range(1 if small else 3):
        start = time.perf_counter()
        for _ in range(count):
            steps.step(batch, x, labels)
        host = (time.perf_counter() - start) / count
        gpu.synchronize()
        best = min(best, (time.perf_counter() - start) / count)
    return 1e3 * best, 1e3 * host, steps.plan(batch)


def main(arguments: list[str]) -> int:
    """Do one of the two; return the exit status."""
    small = "--small" in arguments
    name, *rest = [argument for argument in arguments if argument != "--small"]
    try:
        return min(1, smoke(small)) if name == "smoke" else sweep(rest[0], small)
    except backend.BackendError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
