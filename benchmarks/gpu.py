"""How fast is VGG16 on a GPU, next to PyTorch and to what the GPU can do?

::

    python benchmarks/gpu.py                    everything; prints one table, and writes it to results/
    python benchmarks/gpu.py --only 32 bf16     tasks with these words in their names, added to today's page

A training step of VGG16 and VGG16-BN, and inference, at 32 and 224 pixels, in each precision. scratchnet
runs whole steps as CUDA graphs; PyTorch runs eagerly and compiled with CUDA graphs
(``mode="reduce-overhead"``), both channels last, at the same precision: ``fp32`` with TF32 switched off,
``tf32`` with it, ``bf16`` by autocast with weights in float32. Every contender works in a process of its own,
one after the other, on one batch that lies on the GPU; the losses of the first two steps (or the logits) must
agree.

The floor of a group of layers is the larger of two times: its FLOPs over the speed of a large matrix product,
and the bytes that it has to read and write (maps and weights once, in float32) over the speed of a copy. Both
speeds are measured in the same process. The share of the floor says how much of the time could not be saved
by any implementation that keeps maps in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from command import Parser, above_zero, at_least_one, print_result
from gpu_contenders import TURN, TURNS, WARM_UP, work
from race import HERE, WorkerError, answering, apart, machine
from report import ms, save, table

CONTENDERS = {
    "scratchnet": "scratchnet",
    "channels_last": "PyTorch eager, channels last",
    "compile": "PyTorch compiled, CUDA graphs",
}
PRECISIONS = ("fp32", "tf32", "bf16")
AGREEMENT = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}  # of the first results, relative to the largest
BATCHES = {32: (128, 512, 1024), 224: (64,)}  # by the size of the images


def all_tasks() -> list[dict[str, Any]]:
    """Return all tasks."""
    return [
        {
            "kind": kind,
            "arch": "vgg16",
            "batch_norm": batch_norm,
            "image_size": size,
            "batch_size": batch,
            "precision": precision,
            "width": 1.0,
            "engine": "plan",
            "threads": 1,
        }
        for kind in ("training", "inference")
        for batch_norm in (False, True)
        for size, batches in BATCHES.items()
        for batch in batches
        for precision in PRECISIONS
    ]


def name_of(task: Mapping[str, Any]) -> str:
    """Name a task.

    Examples
    --------
    >>> name_of(all_tasks()[0])
    'training vgg16 32 px batch 128 fp32'
    """
    norm = "-bn" if task["batch_norm"] else ""
    return (
        f"{task['kind']} {task['arch']}{norm} {task['image_size']} px batch {task['batch_size']} "
        f"{task['precision']}"
    )


def chosen(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the tasks with all these words in their names.

    Examples
    --------
    >>> len(chosen(["training", "224"])), len(chosen([]))
    (6, 48)
    """
    return [task for task in all_tasks() if set(words) <= set(name_of(task).split())]


# Measuring


def measure(task: Mapping[str, Any], contenders: Sequence[str], worker: Callable = apart) -> dict[str, Any]:
    """Let the contenders work, one after the other.

    Returns
    -------
    dict
        ``task``, ``contenders`` (the answer of ``work`` for each), ``remarks`` on those left out.

    Raises
    ------
    WorkerError
        If scratchnet cannot take part.
    """
    measured, remarks = {}, []
    for contender in contenders:
        try:
            answer = worker("gpu.py", {**task, "contender": contender})
            own = measured.get("scratchnet", answer)
            check_agreement(own["first"], answer["first"], AGREEMENT[task["precision"]])
            measured[contender] = answer
        except WorkerError as error:
            if contender == "scratchnet":
                raise WorkerError(f"{name_of(task)}: {error}") from error
            remarks.append(f"{name_of(task)}: {CONTENDERS[contender]} left out: {error}")
    return {"task": dict(task), "contenders": measured, "remarks": remarks}


def check_agreement(own: Sequence[float], rival: Sequence[float], agreement: float) -> None:
    """Refuse a contender that has computed something else."""
    scale = max(map(abs, own))
    difference = max(abs(a - b) / scale for a, b in zip(own, rival, strict=True))
    if not difference <= agreement:
        raise WorkerError(f"its first results differ by {difference:.1e} of the largest, which is too much")


# The tables


def floor(group: Mapping[str, Any], speeds: Mapping[str, float]) -> float:
    """Return the least seconds that a group of layers can take.

    Examples
    --------
    >>> floor({"flops": 4e12, "bytes": 1e9}, {"flops": 1e12, "bytes": 1e12})
    4.0
    """
    return max(group["flops"] / speeds["flops"], group["bytes"] / speeds["bytes"])


def overview(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the main table: images per second of every contender, the ratio, memory, share of the floor."""
    rows = []
    for result in results:
        task, contenders = result["task"], result["contenders"]
        seconds = {name: median(contender["seconds"]) for name, contender in contenders.items()}
        rivals = [seconds[name] for name in seconds if name != "scratchnet"]
        ratio = f"**{min(rivals) / seconds['scratchnet']:.2f}**" if rivals else ""
        own = contenders["scratchnet"]
        least = sum(floor(group, own["speeds"]) for group in own["groups"])
        rows.append(
            [
                name_of(task),
                *(
                    f"{task['batch_size'] / seconds[name]:,.0f}" if name in seconds else ""
                    for name in CONTENDERS
                ),
                ratio,
                f"{own['memory']:,.0f}",
                f"{least / seconds['scratchnet']:.0%}",
            ]
        )
    titles = ["", *(f"{title}, images/s" for title in CONTENDERS.values())]
    return table(
        [*titles, "speed, times the best rival's", "scratchnet's memory, MB", "share of the floor"], rows
    )


def by_layer(result: dict[str, Any]) -> list[str]:
    """Return the table of one task's groups of layers."""
    own = result["contenders"]["scratchnet"]
    rows = []
    for group in own["groups"]:
        seconds, least = group["seconds"], floor(group, own["speeds"])
        total = sum(seconds.values())
        limit = "products" if least == group["flops"] / own["speeds"]["flops"] else "bytes"
        rows.append(
            [
                f"{group['name']} {group['title']}",
                limit,
                ms(seconds["forward"]),
                ms(seconds["backward"]),
                ms(least),
                f"{least / total:.0%}" if total else "",
            ]
        )
    titles = ["group", "limit", "ms forward", "ms backward", "floor ms", "share of the floor"]
    speeds = own["speeds"]
    return [
        f"### {name_of(result['task'])}",
        "",
        *table(titles, rows, left=2),
        "",
        f"- Groups launched one by one; products at {speeds['flops'] / 1e12:.1f} TFLOP/s, copies at "
        f"{speeds['bytes'] / 1e12:.2f} TB/s, both measured",
    ]


def page(measured: dict[str, Any]) -> str:
    """Return the whole page as Markdown."""
    results = measured["results"]
    own = [result["contenders"]["scratchnet"] for result in results]
    versions = dict.fromkeys(c["versions"] for result in results for c in result["contenders"].values())
    detailed = [r for r in results if r["task"]["batch_size"] in (512, 64)]
    lines = [
        f"# VGG16 on {own[0]['device']}",
        "",
        *overview(results),
        "",
        f"- Medians of {TURNS} turns of at least {TURN:g} s, after {WARM_UP} steps to warm up",
        *(f"- {remark}" for result in results for remark in result["remarks"]),
        f"- {'; '.join(versions)}; Python {measured['python']}; {measured['system']}; driver "
        f"{measured['driver']}; {measured['date']}",
        f"- `{measured['command']}`",
        "",
        "## Where the time goes",
        *(line for result in detailed for line in ("", *by_layer(result))),
    ]
    return "\n".join(lines) + "\n"


def add_to_page(result: dict[str, Any], path: Path) -> str:
    """Add a result to those of the same day, so that a run can be continued later; return the page."""
    data, name = path.with_suffix(".json"), name_of(result["task"])
    before = json.loads(data.read_text(encoding="utf-8"))["results"] if data.exists() else []
    results = [other for other in before if name_of(other["task"]) != name] + [result]
    order = [name_of(task) for task in all_tasks()]
    results.sort(key=lambda other: order.index(name_of(other["task"])))
    measured = {"results": results, "driver": driver(), **machine()}
    text = page(measured)
    save(json.dumps(measured, indent=1) + "\n", data)
    save(text, path.with_suffix(".md"))
    return text


def driver() -> str:
    """Return the version of NVIDIA's driver, and the GPU's highest clock and power limit."""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
        return done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def measure_all(
    tasks: Iterable[Mapping[str, Any]], contenders: Sequence[str], turns: int, minutes: float | None,
    path: Path, worker: Callable = apart,
) -> str:  # fmt: skip
    """Measure tasks, and return the page, which is written after each; say on stderr which ones fail.

    No task begins after so many minutes. WorkerError is raised if not one could be measured.
    """
    until, text, failed = time.monotonic() + 60 * (minutes or math.inf), "", []
    for task in tasks:
        if time.monotonic() > until:
            print(f"{name_of(task)} and what follows: the time is over", file=sys.stderr)
            break
        try:
            text = add_to_page(measure({**task, "turns": turns}, contenders, worker), path)
        except WorkerError as error:  # that contender's GPU, memory or compiler: others may do
            failed.append(str(error))
            print(error, file=sys.stderr)
    if not text:
        raise WorkerError("; ".join(failed) or "no task was begun in time")
    return text + "".join(f"- {error}\n" for error in failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = Parser(description="Time VGG16 on a GPU next to PyTorch.")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="tasks with all these words in their names"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--turns", type=at_least_one, default=TURNS, help="of measuring (%(default)s)")
    parser.add_argument(
        "--minutes", type=above_zero, help="begin no task after so many (default: all of them)"
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        answering(lambda answer: answer(**work(options.worker)))
        return 0
    tasks = chosen(options.only)
    if not tasks:
        parser.error(f"no task has all of {' '.join(options.only)} in its name")
    if "scratchnet" not in options.contenders:
        parser.error("scratchnet must take part")
    contenders = [name for name in CONTENDERS if name in options.contenders]

    from tqdm import tqdm

    from scratchnet import backend

    def run() -> str:
        backend.get("cupy")
        path = HERE / "results" / f"{machine()['date']}-gpu"
        progress = tqdm(tasks, unit="", file=sys.stderr)
        return measure_all(progress, contenders, options.turns, options.minutes, path)

    return print_result(run, None, backend.BackendError)


if __name__ == "__main__":
    sys.exit(main())
