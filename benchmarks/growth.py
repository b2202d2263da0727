"""How do time and memory grow with the batch, the image and the number of threads?

::

    pip install '.[bench]'
    python benchmarks/growth.py --output growth

Every point is a race of its own, in fresh processes: scratchnet's plan and PyTorch channels last, in training
and in inference. Writes ``growth.md`` with the tables and draws them in ``growth.svg``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from command import NETWORK, Parser, at_least_one, new_file, print_result
from race import TITLES, WorkerError, cores, machine, measure
from report import megabytes, ms, speed_ratios, spread, table, where

CONTENDERS = ["scratchnet", "channels_last"]
KINDS = ("training", "inference")
# What grows: its key in the task, its values, and the rest of the task.
AXES: dict[str, tuple[str, list[int], dict[str, int]]] = {
    "batch": ("batch_size", [1, 2, 4, 8, 16, 32, 64, 128, 256], {"image_size": 32}),
    "pixels": ("image_size", [32, 64, 96, 128, 160, 192, 224], {"batch_size": 4}),
    "threads": ("threads", list(range(1, cores() + 1)), {"image_size": 32, "batch_size": 128}),
}
LABELS = {"batch": "images in a batch", "pixels": "side of an image, pixels", "threads": "threads"}


def measure_growth(
    axes: Mapping[str, Sequence[int]], rounds: int, progress: Any, **network: Any
) -> dict[str, Any]:
    """Race at every point of some axes.

    Parameters
    ----------
    axes : dict from name to values
        Names in ``AXES``.
    rounds : int
    progress : tqdm
        Updated once per race.
    **network
        Replaces NETWORK, and what the other axes are set to.

    Returns
    -------
    dict
        ``points``, each with ``axis``, ``kind``, ``value`` and ``race``; ``remarks``; and the machine.
    """
    points, remarks = [], []
    for axis, values in axes.items():
        name, _, rest = AXES[axis]
        for value in values:
            for kind in KINDS:
                what = f"{kind}, {axis} {value}"
                task = {**NETWORK, **rest, **network, "kind": kind, name: value}
                try:
                    race = measure(task, CONTENDERS, rounds, Within(progress, what))
                    points.append({"axis": axis, "kind": kind, "value": value, "race": race})
                except WorkerError as error:  # too little memory, for one
                    remarks.append(f"{what}: {error}")
                progress.update()
    if not points:
        raise WorkerError("; ".join(remarks))
    return {"points": points, "remarks": remarks, **machine()}


class Within:
    """A progress bar inside another: its description is a part of the outer one's."""

    def __init__(self, progress: Any, what: str):
        self.progress, self.what = progress, what

    def set_description(self, text: str) -> None:
        """Show what is going on."""
        self.progress.set_description(f"{self.what}: {text}")

    def update(self) -> None:
        """Leave the bar where it is."""


def curve(result: dict[str, Any], axis: str, kind: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the points of an axis, each a value and a race."""
    return [(p["value"], p["race"]) for p in result["points"] if (p["axis"], p["kind"]) == (axis, kind)]


def fixed(task: Mapping[str, Any], axis: str) -> str:
    """Describe what stays the same along an axis.

    Examples
    --------
    >>> fixed({"arch": "vgg16", "image_size": 32, "batch_size": 4, "threads": 2}, "threads")
    'vgg16, 32 px, batch 4'
    """
    texts = {"arch": "{}", "image_size": "{} px", "batch_size": "batch {}", "threads": "{} threads"}
    return ", ".join(text.format(task[name]) for name, text in texts.items() if name != AXES[axis][0])


def growth_tables(result: dict[str, Any]) -> str:
    """Return a table for each axis, in training and in inference."""
    lines = ["## How time and memory grow", ""]
    titles = [f"{TITLES[c]}, {what}" for what in ("ms", "peak memory") for c in CONTENDERS]
    for axis in AXES:
        for kind in KINDS:
            points = curve(result, axis, kind)
            if not points:
                continue
            rows = [
                [
                    str(value),
                    *(ms(median(race["contenders"][c]["seconds"])) for c in CONTENDERS),
                    *(megabytes(race["contenders"][c]) for c in CONTENDERS),
                    spread(speed_ratios(race, CONTENDERS[1:])),
                ]
                for value, race in points
            ]
            lines += [f"{kind.capitalize()}, {fixed(points[0][1]['task'], axis)}:", ""]
            lines += [*table([LABELS[axis], *titles, "speed against PyTorch's"], rows, left=0), ""]
            if axis == "threads" and len(points) > 1:
                lines += [gain(points), ""]
    first = result["points"][0]["race"]
    rounds = len(first["contenders"]["scratchnet"]["seconds"])
    versions = "; ".join(first["contenders"][c]["versions"] for c in CONTENDERS)
    threads = first["task"]["threads"] if curve(result, "batch", "training") else "1 and more"
    lines += [f"- Medians of {rounds} rounds at every point; {versions}; Python {result['python']}"]
    lines += [f"- {remark}" for remark in result["remarks"]]
    return "\n".join([*lines, *where(result, threads)])


def gain(points: list[tuple[int, dict[str, Any]]]) -> str:
    """Say how much faster more threads are."""
    (fewest, slow), *_, (most, fast) = points
    gains = []
    for contender in CONTENDERS:
        before, after = (median(race["contenders"][contender]["seconds"]) for race in (slow, fast))
        gains.append(f"{TITLES[contender]} {before / after:.2f} times as fast")
    return f"From {fewest} to {most} threads: {', '.join(gains)}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report and draw; return the exit status."""
    parser = Parser(description="Measure how time and memory grow.")
    parser.add_argument("--over", nargs="+", choices=AXES, default=list(AXES), help="what grows (all)")
    parser.add_argument("--rounds", type=at_least_one, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument("--output", type=new_file, metavar="NAME", help="write NAME.md and NAME.svg")
    options = parser.parse_args(arguments)
    axes = {axis: AXES[axis][1] for axis in options.over}

    def run() -> str:
        from tqdm import tqdm

        total = len(KINDS) * sum(map(len, axes.values()))
        with tqdm(total=total, unit="", file=sys.stderr) as progress:
            result = measure_growth(axes, options.rounds, progress)
        if options.output:
            from figures import draw_growth

            draw_growth(result, options.output.with_suffix(".svg"))
        return growth_tables(result)

    return print_result(run, options.output and options.output.with_suffix(".md"))


if __name__ == "__main__":
    sys.exit(main())
