"""A step of a linear probe next to a forward pass and a full step: time and memory.

::

    python benchmarks/probe.py            VGG16, 32 px, batches of 64

Three copies of one network take turns in this process: one only looks (a plan for inference), one trains its
last layer, one trains everything. Each turn of a step is forward, loss, backward, SGD with momentum. Reported
are the medians of the ratios within a round, with their quartiles, and the memory that each plan and the
optimizer's arrays take.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from command import Parser

from scratchnet import plans
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import VGG
from scratchnet.optim import SGD

LAST = "classifier.6"


def contenders(
    batch: int, size: int, arch: str = "vgg16", **settings: Any
) -> dict[str, tuple[Callable, int]]:
    """Return what is timed, by name: a function that computes one batch, and the bytes that it takes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, 3), dtype="float32")
    labels = rng.integers(0, 10, batch)
    made: dict[str, tuple[Callable, int]] = {}
    for name in ("forward", "probe", "full"):
        net = VGG(arch, 10, size, **settings)
        training = name != "forward"
        if name == "probe":
            for path, layer in net.walk():
                if path != LAST and not list(layer.children()) and layer.parameters():
                    net.freeze(path)
        plan = plans.compile(net.train(training), x.shape, training=training)
        loss, optimizer = SoftmaxCrossEntropy(), SGD(net.parameters(), 1e-4, momentum=0.9)

        def step(plan: Any = plan, loss: Any = loss, optimizer: Any = optimizer) -> None:
            loss.forward(plan.forward(x), labels)
            plan.backward(loss.backward())
            optimizer.step()

        run = step if training else (lambda plan=plan: plan.forward(x))
        run()
        learned = sum(p.data.nbytes for p in net.parameters().values() if p.trainable)
        memory = sum(p.data.nbytes for p in net.parameters().values()) + plan.arena.size
        made[name] = run, memory + (2 * learned if training else 0)  # gradients and momentum
    return made


def measure(made: dict[str, tuple[Callable, int]], rounds: int) -> dict[str, list[float]]:
    """Return for each contender its seconds in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, (run, _) in made.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], one: str, other: str) -> tuple[float, float, float]:
    """Return the median of one's time in another's of the same round, and the quartiles."""
    values = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    low, median, high = statistics.quantiles(values, n=4)
    return median, low, high


def main() -> None:
    """Measure, and print a table."""
    parser = Parser(description="Time and memory of a probe's step next to a forward pass and a full step.")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    made = contenders(options.batch_size, options.image_size)
    seconds = measure(made, options.rounds)
    print(f"VGG16, {options.image_size} px, batches of {options.batch_size}, {options.rounds} rounds")
    for name, (_, memory) in made.items():
        median, low, high = ratios(seconds, name, "forward")
        took = statistics.median(seconds[name])
        print(
            f"{name:8} {1e3 * took:7.1f} ms  {median:.2f} ({low:.2f} to {high:.2f}) forward passes  "
            f"{memory / 1e6:,.0f} MB"
        )


if __name__ == "__main__":
    main()
