"""The self-check of a GPU: whether a plan computes there what the layers compute in NumPy.

Made at the first use of a GPU, once for each version of CuPy, CUDA, driver and this package, device and
precision; the verdict is kept in CuPy's folder of compiled kernels. A small network with every kernel that a
VGG needs goes forward and backward, launched, recorded and replayed, next to NumPy's layers; then four
training steps are made twice, launched and replayed, and must leave the same bits.

It runs in a process of its own, since one illegal access would end all that this process can compute. ::

    python -m scratchnet.plans.cuda.selfcheck tf32      makes it again, and prints what it finds
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from scratchnet import backend, layers
from scratchnet.backend import Array, Backend, BackendError
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.plans.compile import compile
from scratchnet.plans.cuda.training_step import TrainingSteps

SECONDS = 240  # at most; compiling all kernels takes half a minute (estimated, not yet measured)
SHAPE = 4, 8, 8, 3
# Differences as shares of a norm: of outputs, and of gradients, in which a ReLU may decide otherwise.
TOLERANCE = {"fp32": (1e-4, 1e-3), "tf32": (1e-2, 1e-1), "bf16": (6e-2, 3e-1)}


class Verdict(NamedTuple):
    """What the self-check has found: whether plans may be used, a sentence, and whether it is new."""

    ok: bool
    sentence: str
    is_new: bool = True


@cache
def verdict(xp: ModuleType, precision: str) -> Verdict:
    """Return what is known of the current GPU, or make the self-check now, in a process of its own."""
    key, path = _key(xp, precision), cache_file()
    if (known := _read(path).get(key)) is not None:
        return Verdict(bool(known[0]), str(known[1]), is_new=False)
    print("First use of this GPU: plans are compared with NumPy ...", file=sys.stderr, flush=True)
    ok, found = _apart(precision, xp.cuda.runtime.getDevice())
    if ok is None:
        return Verdict(True, f"plans are not checked on this GPU: {found}")
    says = (
        "plans equal the layers" if ok else "plans do not equal the layers on this GPU, so they are not used"
    )
    made = Verdict(ok, f"self-check: {says} ({found})")
    _write(path, {**_read(path), key: made[:2]})
    return made


def cache_file() -> Path:
    """Return where verdicts are kept: with the kernels that CuPy has compiled."""
    folder = os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")
    return Path(folder, "scratchnet-selfcheck.json")


def _key(xp: ModuleType, precision: str) -> str:
    """Return what a verdict is for."""
    runtime, sources = xp.cuda.runtime, hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".cu", ".cuh"):
            sources.update(path.read_bytes())
    versions = xp.__version__, runtime.runtimeGetVersion(), runtime.driverGetVersion()
    name = runtime.getDeviceProperties(runtime.getDevice())["name"]
    gpu = name.decode() if isinstance(name, bytes) else name
    parts = *versions, gpu, xp.cuda.Device().compute_capability, precision, sources.hexdigest()[:16]
    return " ".join(map(str, parts))


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in known.items() if len(value) == 2}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # none yet, or damaged: it is made again


def _write(path: Path, known: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(known, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        pass  # it will be made again next time


def _apart(precision: str, device: int) -> tuple[bool | None, str]:
    """Run ``main`` in another process; return its answer, or how it ended without one."""
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "scratchnet.plans.cuda.selfcheck", precision, str(device), "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, "PYTHONPATH": paths}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, backend.first_line(error)
    try:
        ok, found = json.loads(done.stdout.splitlines()[-1])
        return ok, found
    except (IndexError, ValueError):
        pass
    said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
    how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with {said[0]}"
    return False, f"its process ended {how}"


# What the other process does


def main(arguments: list[str]) -> int:
    """Make the self-check on a GPU: ``[precision[, device[, "--json"]]]``; print what it finds."""
    precision = arguments[0] if arguments else "fp32"
    try:
        gpu = backend.get("cupy")
        gpu.xp.cuda.Device(int(arguments[1]) if len(arguments) > 1 else 0).use()
        ok, found = compare(gpu, precision)
    except MemoryError:
        ok, found = None, "its memory is full"
    except BackendError as error:
        ok, found = (None if backend.ELSEWHERE in str(error) else False), str(error)
    except Exception as error:
        ok, found = False, f"{type(error).__name__}: {backend.first_line(error)}"
    print(json.dumps([ok, found]) if "--json" in arguments else found, flush=True)
    return 0 if ok else 1


def compare(gpu: Backend, precision: str) -> tuple[bool, str]:
    """Return whether a plan equals NumPy's layers on a GPU, and the largest difference."""
    worst: list[float] = [0.0]
    for name, difference, allowed in _differences(gpu, precision):
        if not difference <= allowed:
            return False, f"{name} differs by {difference:.1e}, {allowed:.0e} is allowed, in {precision}"
        worst.append(difference)
    launched, replayed = (_trained(gpu, precision, graphs) for graphs in (False, True))
    for name, values in launched.items():
        if values.tobytes() != replayed[name].tobytes():
            return False, f"{name} has other bits after steps that are replayed, in {precision}"
    return True, f"in {precision}, differences up to {max(worst):.1e}; replayed bit for bit"


def _network() -> layers.Sequential:
    return layers.Sequential(
        layers.Conv2d(3, 32), layers.BatchNorm2d(32), layers.ReLU(), layers.MaxPool2d(2),
        layers.Conv2d(32, 32), layers.ReLU(), layers.MaxPool2d(2),
        layers.Flatten(), layers.Linear(128, 64), layers.ReLU(), layers.Linear(64, 10),
    )  # fmt: skip


def _differences(gpu: Backend, precision: str) -> Iterator[tuple[str, float, float]]:
    """Yield what was compared, the difference as a share of the right norm, and how much is allowed."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal(SHAPE, np.float32), rng.standard_normal((SHAPE[0], 10), np.float32)
    of_outputs, of_gradients = TOLERANCE[precision]
    here, there = _network(), _network().to(gpu)
    plan = compile(there, SHAPE, training=True, precision=precision)
    for how in ("launched", "recorded", "replayed"):
        y, right = plan.forward(gpu.asarray(x)), here.forward(x)
        yield f"the output, {how},", _share(gpu.to_numpy(y), right), of_outputs
        plan.backward(gpu.asarray(dy))
        here.backward(dy)
        largest = max(float(np.linalg.norm(_grad(p))) for p in here.parameters().values())
        for (name, p), q in zip(there.parameters().items(), here.parameters().values(), strict=True):
            difference = _share(gpu.to_numpy(_grad(p)), _grad(q), 0.02 * largest)
            yield f"the gradient of {name}, {how},", difference, of_gradients
    for (name, a), b in zip(there.buffers().items(), here.buffers().values(), strict=True):
        yield name, _share(gpu.to_numpy(a), b), of_outputs
    plan = compile(there.eval(), SHAPE, precision=precision)
    y, right = plan.forward(gpu.asarray(x)), here.eval().forward(x)
    yield "the output in evaluation", _share(gpu.to_numpy(y), right), 2 * of_outputs


def _share(found: Array, right: Array, least: float = 0.0) -> float:
    return float(np.linalg.norm(found - right) / max(float(np.linalg.norm(right)), least))


def _grad(parameter: layers.Parameter) -> Array:
    assert parameter.grad is not None  # after a backward pass
    return parameter.grad


def _trained(gpu: Backend, precision: str, graphs: bool) -> dict[str, Array]:
    """Return losses and parameters after four steps."""
    net = _network().to(gpu)
    sgd = SGD(net.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    steps = TrainingSteps(net, sgd, SoftmaxCrossEntropy(), SHAPE[0], precision, graphs=graphs)
    steps.begin(np.full(4, 0.01))
    rng, losses = np.random.default_rng(1), []
    for _ in range(4):
        x, labels = rng.standard_normal(SHAPE, np.float32), rng.integers(0, 10, SHAPE[0])
        steps.step(SHAPE[0], gpu.asarray(x), gpu.asarray(labels))
        losses.append(steps.totals().loss)
    values = {name: gpu.to_numpy(p.data) for name, p in net.parameters().items()}
    return {"the loss": np.array(losses), **values}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
