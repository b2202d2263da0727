"""How far are a network's gradients from exact ones, next to PyTorch's in float32?

::

    pip install '.[bench]'
    python benchmarks/rounding.py

The reference is PyTorch in float64 on the same weights and images; the distance is that of all gradients
together, |g - reference| / |reference|. A single ReLU or pooling that decides differently, because two
numbers were closer than rounding, outweighs all rounding and is a matter of luck; so the table has both the
median over several networks, which is almost rounding alone, and the root mean square, which includes luck.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import sqrt
from statistics import median
from typing import Any

from command import NETWORK, Parser, at_least_one
from contenders import build_network, channels_first, make_batch
from report import table
from translations import torch_network

ENGINES = {"plan": "auto", "plan, im2col": "im2col", "layers": ""}
MEMORY_FORMATS = {"PyTorch, contiguous": "contiguous_format", "PyTorch, channels last": "channels_last"}


def torch_gradients(net: Any, x: Any, labels: Any, dtype: str, memory_format: str) -> list[Any]:
    """Return PyTorch's gradients of all parameters, in float64 and scratchnet's layout."""
    import torch

    memory_format = getattr(torch, memory_format)
    twin = torch_network(net).to(getattr(torch, dtype)).to(memory_format=memory_format)
    images = torch.tensor(channels_first(x)).to(getattr(torch, dtype)).to(memory_format=memory_format)
    torch.nn.functional.cross_entropy(twin(images), torch.tensor(labels)).backward()
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    return [p.grad.double().numpy().transpose(axes[p.ndim]) for p in twin.parameters()]


def scratchnet_gradients(net: Any, x: Any, labels: Any, algorithm: str) -> list[Any]:
    """Return scratchnet's gradients by a plan with this algorithm or, if it is empty, by the layers."""
    from scratchnet import plans
    from scratchnet.losses import SoftmaxCrossEntropy

    engine = plans.compile(net, x.shape, training=True, algorithm=algorithm) if algorithm else net
    loss = SoftmaxCrossEntropy()
    loss.forward(engine.forward(x), labels)
    engine.backward(loss.backward(), need_input_gradient=False)
    return [p.grad.astype("float64") for p in net.parameters().values()]


def distance(gradients: list[Any], reference: list[Any]) -> float:
    """Return |gradients - reference| / |reference|, all parameters together."""
    squares = sum(((a - b) ** 2).sum() for a, b in zip(gradients, reference, strict=True))
    return sqrt(squares / sum((b**2).sum() for b in reference))


def distances(task: dict[str, Any]) -> dict[str, float]:
    """Return the distance of each contender, for one network and one batch."""
    net = build_network(task)
    x, labels = make_batch(task)
    reference = torch_gradients(net, x, labels, "float64", "contiguous_format")
    found = {
        name: torch_gradients(net, x, labels, "float32", MEMORY_FORMATS[name]) for name in MEMORY_FORMATS
    }
    return {name: distance(gradients, reference) for name, gradients in found.items()} | {
        name: distance(scratchnet_gradients(net, x, labels, ENGINES[name]), reference) for name in ENGINES
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status."""
    parser = Parser(description="Compare the rounding of whole networks' gradients with PyTorch's.")
    parser.add_argument("--arch", default="vgg16", help="(%(default)s)")
    parser.add_argument("--batch-size", type=at_least_one, default=16, help="(%(default)s)")
    parser.add_argument("--networks", type=at_least_one, default=10, help="how many (%(default)s)")
    options = parser.parse_args(arguments)

    from tqdm import trange

    found = []
    for seed in trange(options.networks, file=sys.stderr):
        task = {**NETWORK, "kind": "training", "arch": options.arch, "batch_size": options.batch_size}
        found.append(distances({**task, "image_size": 32, "batch_norm": False, "seed": seed}))
    print(
        f"Distance from float64 of the gradients of {options.arch}, 32 px, batch {options.batch_size}, over "
        f"{options.networks} networks:\n"
    )
    rows = []
    for name in found[0]:
        values = [one[name] for one in found]
        mean_square = sum(value**2 for value in values) / len(values)
        rows.append([name, f"{median(values):.1e}", f"{sqrt(mean_square):.1e}"])
    print("\n".join(table(["", "median", "root mean square"], rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
