"""The benchmark for every change: has scratchnet become much slower, relative to PyTorch?

::

    python benchmarks/quick.py            compare with the recorded ratios
    python benchmarks/quick.py --record   record

A small network, in training and in inference, against PyTorch eager in the better of its two memory formats;
the fastest turn of each counts, since a busy machine only ever adds time. It fails only if scratchnet's
speed, as a share of PyTorch's, is less than half of that in ``benchmarks/results/quick.json``. Takes less
than a minute.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command import Parser
from race import HERE, PYTORCH, WorkerError, cores, machine, measure
from report import save

RECORD = HERE / "results" / "quick.json"
ENOUGH = 0.5  # of the recorded ratio
LOST = f": less than {ENOUGH:g} times as much"
RIVALS = PYTORCH[:2]
ROUNDS = 5
TASK = {
    "arch": "vgg11",
    "width": 0.5,
    "image_size": 32,
    "batch_size": 32,
    "batch_norm": False,
    "engine": "plan",
}


def measure_quick(progress: Any, rounds: int = ROUNDS, **network: Any) -> dict[str, Any]:
    """Return the ratio of each kind, and how they were measured."""
    ratios, versions = {}, {}
    for kind in ("training", "inference"):
        task = {**TASK, "threads": cores(), "kind": kind, **network}
        race = measure(task, ["scratchnet", *RIVALS], rounds, progress)
        fastest = {name: min(contender["seconds"]) for name, contender in race["contenders"].items()}
        own = fastest.pop("scratchnet")
        ratios[kind] = min(fastest.values()) / own
        versions |= {name: contender["versions"] for name, contender in race["contenders"].items()}
    return {"ratios": ratios, "task": task, "versions": versions, **machine()}


def verdict(result: dict[str, Any], recorded: dict[str, Any]) -> tuple[str, bool]:
    """Say how the ratios compare with the recorded ones, and whether that is good enough."""
    lines, good = [], True
    for kind, ratio in result["ratios"].items():
        before = recorded["ratios"][kind]
        enough = ratio >= ENOUGH * before
        good = good and enough
        lines.append(
            f"{kind}: {ratio:.2f} times PyTorch's speed, recorded {before:.2f}" + LOST * (not enough)
        )
    return "\n".join(lines), good


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and compare; return the exit status."""
    parser = Parser(description="Compare a small network's speed, next to PyTorch's, with a recorded one.")
    parser.add_argument("--record", action="store_true", help="write the file instead of comparing")
    parser.add_argument("--file", type=Path, default=RECORD, help="(benchmarks/results/quick.json)")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("torch") is None:
        print("quick benchmark skipped: torch is not installed")
        return 0
    try:
        recorded = None if options.record else json.loads(options.file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        parser.error(f"there is no recorded ratio in {options.file}: record one with --record")

    from tqdm import tqdm

    try:
        with tqdm(total=2 * (1 + len(RIVALS) + ROUNDS), unit="", file=sys.stderr) as progress:
            result = measure_quick(progress)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 2
    text, good = verdict(result, recorded or result)
    print(text)
    if options.record:
        save(json.dumps(result, indent=1) + "\n", options.file)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
