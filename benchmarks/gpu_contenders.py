"""Contenders on a GPU: scratchnet's CUDA graphs, and PyTorch eager or compiled with CUDA graphs.

This is the worker's side of ``gpu.py``. Each ``build_...`` returns four functions: one makes a step, one
returns its result, one waits for the GPU, and one returns what else there is to report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from race import WorkerError, numbers

WARM_UP = 5  # steps: launch, record, replay; PyTorch's compiler needs a few, too
TURNS, TURN = 5, 0.5  # how many turns, and their least seconds
MAX_STEPS = 1 << 20  # in one process
REPEATS = 10  # of each group, to time it
MATRIX_SIZE = 8192  # rows and columns of the product that measures speed
COPY_BYTES = 1 << 30

Built = tuple[Callable[[], None], Callable[[], Any], Callable[[], None], Callable[[], dict[str, Any]]]


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Build a contender and time it.

    Returns
    -------
    dict
        ``seconds`` of a step in each turn, ``first`` results, ``memory`` in MB, ``versions``, and of
        scratchnet ``groups`` and the GPU's ``speeds``.
    """
    build = build_scratchnet if task["contender"] == "scratchnet" else build_torch
    step, result, wait, details = build(task)
    first = []
    for k in range(WARM_UP):
        step()
        if k < 2:
            first += numbers(result())
    wait()
    seconds = []
    for _ in range(task.get("turns", TURNS)):
        steps, start = 0, time.perf_counter()
        while steps == 0 or time.perf_counter() - start < task.get("turn", TURN):
            for _ in range(max(1, steps)):  # doubled each time, since reading the clock means waiting
                step()
            steps += max(1, steps)
            wait()
        seconds.append((time.perf_counter() - start) / steps)
    return {"seconds": seconds, "first": first[:64], **details()}


def build_scratchnet(task: dict[str, Any]) -> Built:
    """Prepare scratchnet: whole steps as CUDA graphs."""
    import numpy as np
    from contenders import LEARNING_RATE, MOMENTUM, build_network, make_batch

    from scratchnet import __version__, backend, losses, optim, plans

    device = backend.get("cupy")
    x, labels = make_batch(task)
    net = build_network(task).to(device)
    if task["kind"] == "training":
        from scratchnet.plans.cuda.training_step import TrainingSteps

        sgd = optim.SGD(net.parameters(), LEARNING_RATE, momentum=MOMENTUM)
        steps = TrainingSteps(net, sgd, losses.SoftmaxCrossEntropy(), len(x), task["precision"])
        steps.begin(np.full(MAX_STEPS, LEARNING_RATE, np.float32))
        batch, totals = (device.asarray(x), device.asarray(labels)), [0.0]

        def step() -> None:
            steps.step(len(x), *batch)

        def result() -> float:
            totals.append(steps.totals().loss)
            return (totals[-1] - totals[-2]) / len(x)

        def plan() -> Any:
            return steps.plan(len(x))

    else:
        inference, batch = plans.compile(net, x.shape, precision=task["precision"]), device.asarray(x)
        latest = []

        def step() -> None:
            latest[:] = [inference.forward(batch)]

        def result() -> np.ndarray:
            return device.to_numpy(latest[0])

        def plan() -> Any:
            return inference

    def details() -> dict[str, Any]:
        pool = device.xp.get_default_memory_pool()
        memory = pool.total_bytes() / 1e6
        plan().measure(task.get("repeats", REPEATS))
        return {
            "memory": memory,
            "versions": f"scratchnet {__version__}, CuPy {device.xp.__version__}, NumPy {np.__version__}",
            "device": device.device,
            "groups": groups_of(plan()),
            "speeds": speeds(device.xp, task),
        }

    return step, result, device.synchronize, details


def groups_of(plan: Any) -> list[dict[str, Any]]:
    """Return for each group of layers its seconds per direction, and its FLOPs and bytes in both."""
    groups = []
    for i, g in enumerate(plan.groups):
        seconds = {
            direction: plan.clock.seconds.get((i, direction, ""), 0.0)
            / max(1, plan.clock.runs.get(direction, 0))
            for direction in ("forward", "backward")
        }
        weights = sum(p.size for layer in g.layers for p in layer.parameters().values())
        maps = prod(g.input_shape) + prod(g.output_shape)
        # Forward reads x and W and writes y. Backward reads x, W and dy, and writes dx and dW.
        floats, passes = maps + weights, 1
        if plan.training:
            floats += 2 * prod(g.input_shape) + prod(g.output_shape) + 2 * weights
            passes = 3 if i else 2
            floats -= 0 if i else prod(g.input_shape)  # the image needs no gradient
        groups.append(
            {
                "name": g.name,
                "title": g.title,
                "seconds": seconds,
                "flops": 2 * passes * g.multiply_adds,
                "bytes": 4 * floats,
            }
        )
    return [group for group, g in zip(groups, plan.groups, strict=True) if g.title != "Flatten"]


def speeds(xp: Any, task: Mapping[str, Any]) -> dict[str, float]:
    """Measure FLOPs per second in a large product, and bytes per second (read and written) in a copy."""
    import numpy as np

    from scratchnet.plans.cuda.launch.operands import cast, operand_dtype
    from scratchnet.plans.cuda.matmul import Matmul

    precision = task["precision"]
    size, n_bytes = task.get("matrix_size", MATRIX_SIZE), task.get("copy_bytes", COPY_BYTES)
    free, _ = xp.cuda.runtime.memGetInfo()
    while size**2 * 12 + 2 * n_bytes > free / 2 and n_bytes > 1 << 24:  # a card of 8 GB, or one in use
        size, n_bytes = size // 2, n_bytes // 4
    product, out = Matmul(xp, precision), xp.empty((size, size), "float32")
    a, b = (xp.zeros((size, size), operand_dtype(precision)) for _ in range(2))
    for matrix in (a, b):  # a GPU needs less power for zeros, and runs faster
        values = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
        cast(xp.asarray(values), matrix)
    source, target = (xp.zeros(n_bytes // 4, "float32") for _ in range(2))
    return {
        "flops": 2 * size**3 / fastest(xp, lambda: product(a, b, out)),
        "bytes": 2 * n_bytes / fastest(xp, lambda: xp.copyto(target, source)),
    }


def fastest(xp: Any, call: Callable[[], None], tries: int = 10) -> float:
    """Return the seconds of the fastest of some calls, by the GPU's clock."""
    seconds = []
    for _ in range(tries + 1):
        start, end = xp.cuda.Event(), xp.cuda.Event()
        start.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(xp.cuda.get_elapsed_time(start, end) / 1e3)
    return min(seconds[1:])


def build_torch(task: dict[str, Any]) -> Built:
    """Prepare PyTorch, on a GPU (or, to try this program without one, on the CPU)."""
    import torch
    from contenders import LEARNING_RATE, MOMENTUM, build_network, channels_first, make_batch
    from translations import torch_network

    device, precision = task.get("torch_device", "cuda"), task["precision"]
    if device == "cuda" and not torch.cuda.is_available():
        raise WorkerError("PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    training = task["kind"] == "training"
    x, labels = make_batch(task)
    x = torch.from_numpy(channels_first(x)).to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels).to(device)
    net = torch_network(build_network(task)).to(device).to(memory_format=torch.channels_last).train(training)
    lower = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
    forward = torch.compile(net, mode="reduce-overhead") if task["contender"] == "compile" else net
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, momentum=MOMENTUM, fused=device == "cuda")
    latest = []

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with lower:
            value = criterion(forward(x), labels)
        value.backward()
        optimizer.step()
        latest[:] = [value.detach()]

    def infer() -> None:
        with torch.inference_mode(), lower:
            latest[:] = [forward(x)]

    def result() -> Any:
        return latest[0].float().cpu().numpy()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def details() -> dict[str, Any]:
        memory = torch.cuda.max_memory_reserved() / 1e6 if device == "cuda" else None
        versions = f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
        return {"memory": memory, "versions": versions}

    return (train if training else infer), result, wait, details
