"""How much time does preparing the data cost?

::

    python benchmarks/data_preparation.py

Two processes take turns at the same training steps: one on batches that the loader picks from 50,000 random
images of CIFAR-10's shape, shuffles, crops, flips and normalises during the step before; the other on one
fixed batch. A turn is a short epoch and includes its first batch, which nothing has prepared.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from command import at_least_one, network_parser, print_result, task_of
from race import TITLES, TURN, measure
from report import footer, heading, megabytes, spread, table, times

CONTENDERS = ["fixed_batch", "loader"]
BATCHES = 5


def measure_data(task: Mapping[str, Any], batches: int, rounds: int, progress: Any) -> dict[str, Any]:
    """Let the two take turns of ``batches`` training steps each."""
    return measure({**task, "batches": batches}, CONTENDERS, rounds, progress, compare=False)


def data_table(result: dict[str, Any]) -> str:
    """Return the table of both, and the cost in per cent."""
    batches = result["task"]["batches"]
    contenders = result["contenders"]
    rows = [
        [TITLES[name], *times([s / batches for s in measured["seconds"]]), megabytes(measured)]
        for name, measured in contenders.items()
    ]
    fixed, fed = (contenders[name]["seconds"] for name in CONTENDERS)
    more = [100 * (b / a - 1) for a, b in zip(fixed, fed, strict=True)]
    lines = [
        f"## What preparing the data costs: {heading(result['task'])}",
        "",
        *table(["", "median ms", "min", "max", "peak memory"], rows),
        "",
        f"- More time for a training step fed by the loader, in per cent: {spread(more, digits=1)}",
        f"- A turn is {batches} training steps, or as many times that as fill {TURN} s",
    ]
    return "\n".join([*lines, *footer(result)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status."""
    parser = network_parser("training", 15, "Measure what preparing the data costs.")
    parser.add_argument(
        "--batches", type=at_least_one, default=BATCHES, metavar="N", help="per turn (%(default)s)"
    )
    options = parser.parse_args(arguments)

    def run() -> str:
        from tqdm import tqdm

        with tqdm(total=len(CONTENDERS) + options.rounds, unit="", file=sys.stderr) as progress:
            return data_table(measure_data(task_of(options), options.batches, options.rounds, progress))

    return print_result(run, options.output)


if __name__ == "__main__":
    sys.exit(main())
