"""Random small networks: plans against layers against float64, with 1 to 8 workers."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np

from scratchnet import layers, plans, workers
from scratchnet.layers import Layer, Sequential
from tests.attack.registry import Tally, attack

EXACT = 1e-9  # of float64, relative to the largest number of an array, or of all gradients of parameters
ROUNDED = 2e-3  # of float32


def some_network(rng: random.Random, dtype: str) -> tuple[Sequential, tuple[int, ...]]:
    """Return a network and the shape of its input; both fit, and are small."""
    N, H, W, C = (
        rng.choice([1, 2, 3, 5, 9]),
        rng.randrange(1, 15),
        rng.randrange(1, 15),
        rng.choice([1, 2, 3, 4, 8]),
    )
    shape: tuple[int, ...] = (N, H, W, C)
    chain: list[Layer] = []
    how: dict[str, Any] = {"dtype": dtype, "rng": np.random.default_rng(rng.randrange(2**32))}

    def add(layer: Layer) -> None:
        nonlocal after
        try:
            after = layer.output_shape(after)
        except ValueError:
            return
        if min(after) > 0:
            chain.append(layer)
        else:
            after = chain_shape(chain, shape)

    after = shape
    for _ in range(rng.randrange(1, 7)):
        if len(after) == 4:
            match rng.randrange(10):
                case 0 | 1 | 2 | 3:
                    kernel = rng.choice([1, 2, 3, 3, 3, 3, 4, 5])
                    stride, padding = rng.choice([1, 1, 1, 2, 3]), rng.choice([0, 1, 1, 2, 3])
                    outputs, bias = rng.choice([1, 2, 4, 5, 16]), rng.random() < 0.8
                    add(layers.Conv2d(after[3], outputs, kernel, stride, padding, bias, **how))
                case 4:
                    add(layers.MaxPool2d(rng.choice([1, 2, 2, 3]), rng.choice([None, 1, 2, 3]), dtype=dtype))
                case 5 if after[0] * after[1] * after[2] > 3:
                    add(layers.BatchNorm2d(after[3], dtype=dtype))
                case 6:
                    add(layers.GlobalAvgPool2d(dtype=dtype))
                case 7:
                    add(layers.Flatten(dtype=dtype))
                case _:
                    add(layers.ReLU(dtype=dtype))
        else:
            match rng.randrange(4):
                case 0 | 1:
                    add(layers.Linear(after[1], rng.choice([1, 3, 8, 17]), **how))
                case 2:
                    add(layers.Dropout(rng.choice([0.0, 0.5]), **how))
                case _:
                    add(layers.ReLU(dtype=dtype))
    return Sequential(*(chain or [layers.ReLU(dtype=dtype)]), dtype=dtype), shape


def chain_shape(chain: list[Layer], shape: tuple[int, ...]) -> tuple[int, ...]:
    for layer in chain:
        shape = layer.output_shape(shape)
    return shape


def largest_of(*arrays: Any) -> float:
    return max((float(np.abs(array).max(initial=0.0)) for array in arrays), default=0.0)


def close(one: Any, other: Any, tolerance: float, what: str, largest: float = 1e-3) -> None:
    assert one.shape == other.shape, f"{what} has the shape {one.shape}, not {other.shape}"
    scale = max(largest_of(other), largest)
    off = float(np.abs(one - other).max(initial=0.0))
    assert off <= tolerance * scale, f"{what} is off by {off:.2g}, of {scale:.2g}"


@attack("networks", f"plans = layers to {EXACT:g} in float64, {ROUNDED:g} in float32", 10_000, 10.0)
def networks(tally: Tally) -> None:
    warnings.simplefilter("ignore")
    before = workers.size
    try:
        while tally.goes_on():
            number = tally.cases
            rng = random.Random(f"{tally.seed} {number}")
            threads = rng.choice([1, 1, 2, 2, 3, 4, 5, 8])
            workers.size = lambda threads=threads: threads  # type: ignore[assignment]
            with tally.case(f"network {number} of seed {tally.seed}, {threads} workers"):
                told = f"{threads} workers" if compare(rng) else "decided by rounding"
                tally.outcomes[told] += 1
    finally:
        workers.size = before


def decided(net: Sequential, x: Any) -> bool:
    """Tell whether rounding alone decides at no ReLU whether it lets a number pass.

    The mean of a normalised map is zero but for rounding, say: behind it the derivative is 0 or 1 by chance.
    """
    largest = float(np.abs(x).max(initial=0.0))
    for layer in net:
        if isinstance(layer, layers.ReLU) and np.any((x != 0) & (np.abs(x) < EXACT * largest)):
            return False
        x = layer.forward(x)
        largest = max(largest, float(np.abs(x).max(initial=0.0)))
    return True


def compare(rng: random.Random) -> bool:
    """Run a network by its layers and by plans, in float64; what is computed in float32 is near.

    Return False if there is nothing to compare: see ``decided``.
    """
    seed = rng.randrange(2**32)
    planned, shape = some_network(random.Random(seed), "float64")
    layered, _ = some_network(random.Random(seed), "float64")
    single, _ = some_network(random.Random(seed), "float32")
    for net in (planned, layered, single):
        for p, q in zip(net.parameters().values(), planned.parameters().values(), strict=True):
            p.data[...] = q.data
    numbers = np.random.default_rng(seed)
    x = numbers.standard_normal(shape)
    twin, _ = some_network(random.Random(seed), "float64")  # its statistics change
    if not decided(twin, x):
        return False
    plan = plans.compile(planned, shape, training=True)
    y = layered.forward(x)
    dy = numbers.standard_normal(y.shape)
    close(plan.forward(x), y, EXACT, "the output")
    close(plan.backward(dy, need_input_gradient=True), layered.backward(dy), EXACT, "the input's gradient")
    ours, theirs = planned.parameters(), layered.parameters()
    # A bias before a normalisation has the gradient zero, of which nothing remains but rounding.
    largest = largest_of(1e-3, *(q.grad for q in theirs.values()))
    for (name, p), q in zip(ours.items(), theirs.values(), strict=True):
        close(p.grad, q.grad, EXACT, f"the gradient of {name}", largest)
    for (name, a), b in zip(planned.buffers().items(), layered.buffers().values(), strict=True):
        close(a, b, EXACT, name)
    for a, b in zip(single.buffers().values(), layered.buffers().values(), strict=True):
        a[...] = b
    layered.eval(), planned.eval(), single.eval()
    y = layered.forward(x)
    close(plans.compile(planned, shape).forward(x), y, EXACT, "the output in evaluation")
    close(plans.compile(single, shape).forward(x.astype("float32")), y, ROUNDED, "the output in float32")
    return True
