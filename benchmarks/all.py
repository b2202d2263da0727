"""All benchmarks with one command.

::

    pip install '.[bench]'
    python benchmarks/all.py

Writes to ``benchmarks/results/``, named after the day: a Markdown file with a summary and every table, a
JSON file with all numbers, a figure of the summary and one of how costs grow. Every section is
saved as soon as it is measured; ``--only NAME ...`` measures some of them, into the same day's files. An
interrupted run prints the command that continues it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from command import NETWORK, PEERS, RIVALS, Parser, at_least_one
from data_preparation import BATCHES, data_table, measure_data
from growth import AXES, Within, growth_tables, measure_growth
from quick import measure_quick
from race import HERE, TITLES, WorkerError, measure
from report import heading, memory_ratio, race_table, save, sentence, speed_ratios, spread, table
from time_by_group import groups_table, measure_groups

TINY = {"arch": "vgg11", "width": 0.0625, "batch_size": 2}
TINY_AXES = {"batch": [1, 2], "pixels": [32, 64], "threads": AXES["threads"][1]}

# Races against rivals: kind, side of an image, batch, batch normalisation, rivals, rounds.
RACES: dict[str, tuple[str, int, int, bool, list[str], int]] = {
    "training-32": ("training", 32, 128, False, RIVALS["training"], 9),
    "training-32-norm": ("training", 32, 128, True, RIVALS["training"], 9),
    "training-224": ("training", 224, 8, False, RIVALS["training"], 9),
    "inference-32": ("inference", 32, 128, False, RIVALS["inference"], 15),
    "inference-224-1": ("inference", 224, 1, False, RIVALS["inference"], 15),
    "inference-224-8": ("inference", 224, 8, False, RIVALS["inference"], 15),
    "peers-training": ("training", 32, 128, False, PEERS, 3),
    "peers-inference": ("inference", 32, 128, False, PEERS, 3),
}
ROUNDS = {"threads": 5, "time-by-group": 12, "data-preparation": 15, "growth": 5, "quick": 5}
SECTIONS = [*RACES, *ROUNDS]


def measure_section(name: str, rounds: int | None, tiny: bool, progress: Any) -> dict[str, Any]:
    """Measure one section.

    Parameters
    ----------
    name : str
        One of SECTIONS.
    rounds : int or None
        None: each section's own number.
    tiny : bool
        With a tiny network, to see quickly that everything works.
    progress : tqdm
        Told what is going on.
    """
    small = TINY if tiny else {}
    if name in RACES:
        kind, size, batch, norm, rivals, default = RACES[name]
        task = {**NETWORK, "kind": kind, "image_size": size, "batch_size": batch, "batch_norm": norm, **small}
        return measure(task, ["scratchnet", *rivals], rounds or default, progress)
    rounds = rounds or ROUNDS[name]
    task = {**NETWORK, "kind": "training", "image_size": 32, "batch_size": 128, **small}
    if name == "time-by-group":
        progress.set_description("training")
        return measure_groups(task, rounds)
    if name == "data-preparation":
        return measure_data(task, BATCHES, rounds, progress)
    if name == "quick":
        return measure_quick(progress, rounds, **small)
    wanted = ["threads"] if name == "threads" else ["batch", "pixels"]
    axes = {axis: TINY_AXES[axis] if tiny else AXES[axis][1] for axis in wanted}
    return measure_growth(axes, rounds, progress, **{k: small[k] for k in ("arch", "width") if tiny})


# What is written


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a summary of each race; the best rival is the one with the shortest median.

    Returns
    -------
    list of dict
        ``task``, ``label`` (the same, in short), ``rate`` (images per second), ``rival``, ``ratios`` (of
        speed, in each round), ``lowest_rival``, ``memory_ratio`` (None where memory was not measured).
    """
    rows = []
    for name in RACES:
        if name not in results:
            continue
        race = results[name]
        rivals = [rival for rival in race["contenders"] if rival != "scratchnet"]
        best = min(rivals, key=lambda rival: median(race["contenders"][rival]["seconds"]))
        lowest, ratio = memory_ratio(race, rivals)
        rows.append(
            {
                "task": sentence(heading(race["task"])).removesuffix(", float32"),
                "label": label(race["task"]),
                "rate": race["task"]["batch_size"] / median(race["contenders"]["scratchnet"]["seconds"]),
                "rival": TITLES[best],
                "ratios": speed_ratios(race, [best]),
                "lowest_rival": TITLES[lowest] if lowest else "",
                "memory_ratio": ratio if lowest else None,
            }
        )
    return rows


def label(task: dict[str, Any]) -> str:
    """Name a task in few words, for a figure."""
    norm = ", batch norm" * task["batch_norm"]
    return f"{task['arch']} {task['kind']}, {task['image_size']} px, batch {task['batch_size']}{norm}"


def summary_table(results: dict[str, Any]) -> list[str]:
    """Return the summary as a Markdown table."""
    titles = [
        "task",
        "best rival",
        "images/s",
        "speed, times the rival's",
        "peak memory, times the lowest rival's",
    ]
    rows = [
        [
            row["task"],
            row["rival"],
            f"{row['rate']:.1f}",
            spread(row["ratios"]),
            f"{row['memory_ratio']:.2f} ({row['lowest_rival']})" if row["memory_ratio"] else "unknown",
        ]
        for row in summary(results)
    ]
    return table(titles, rows, left=2)


def document(results: dict[str, Any], day: str) -> str:
    """Return everything that was measured as one Markdown page."""
    lines = [f"# Benchmarks, {day}", ""]
    if any(result.get("tiny") for result in results.values()):
        lines += ["With a tiny network, to see that everything works: these figures mean nothing.", ""]
    if any(name in results for name in RACES):
        lines += [f"![Speed and memory next to the best rivals]({day}.svg)", ""]
        lines += ["float32; images/s are scratchnet's; median of the rounds, with their range.", ""]
        lines += [*summary_table(results), ""]
    missing = [name for name in SECTIONS if name not in results]
    if missing:
        lines += [f"Not measured: {', '.join(missing)}.", ""]
    writers = {"threads": growth_tables, "growth": growth_tables, "time-by-group": groups_table}
    writers |= {"data-preparation": data_table} | dict.fromkeys(RACES, race_table)
    for name in SECTIONS:
        if name in results and name in writers:
            lines += [writers[name](results[name]), ""]
    if "growth" in results:
        lines += [f"![How time and memory grow]({day}-growth.svg)", ""]
    return "\n".join(lines)


def write(results: dict[str, Any], folder: Path, day: str) -> None:
    """Write numbers and tables. (``quick.py`` records its own reference.)"""
    save(json.dumps(results, indent=1) + "\n", folder / f"{day}.json")
    save(document(results, day), folder / f"{day}.md")


def draw(results: dict[str, Any], folder: Path, day: str) -> None:
    """Draw the figures, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no figures: matplotlib is not installed", file=sys.stderr)
        return
    from figures import draw_growth, draw_summary

    # The bars against DeZero and JAX are ten times as long: beside them the others would look alike.
    if rows := summary({name: result for name, result in results.items() if "peers" not in name}):
        draw_summary(rows, folder / f"{day}.svg")
    grown = [results[name] for name in ("growth", "threads") if name in results]
    if grown:
        points = [point for result in grown for point in result["points"]]
        draw_growth({"points": points}, folder / f"{day}-growth.svg")


# The command


def read(folder: Path, day: str) -> dict[str, Any]:
    """Return what was measured earlier on that day."""
    path = folder / f"{day}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def again(sections: Sequence[str], options: Sequence[str]) -> str:
    """Return the command that measures some sections."""
    return shlex.join(["python", "benchmarks/all.py", "--only", *sections, *options])


def a_day(text: str) -> str:
    """Read a date."""
    try:
        return str(date.fromisoformat(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a date such as 2026-01-31, not {text!r}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; return the exit status."""
    parser = Parser(description="Run all benchmarks.")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument(
        "--rounds", type=at_least_one, metavar="N", help="per section (each has its own default)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to (benchmarks/results)")
    parser.add_argument(
        "--date", type=a_day, default=str(date.today()), help="add to this day's files (today)"
    )
    parser.add_argument("--tiny", action="store_true", help="with a tiny network, only to see that it works")
    options = parser.parse_args(arguments)
    if options.tiny and not options.output:
        parser.error("--tiny needs a folder of its own, with --output: its figures mean nothing")
    folder, day = options.output or HERE / "results", options.date
    wanted = [name for name in SECTIONS if name in (options.only or SECTIONS)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results = read(folder, day)
    except (OSError, ValueError) as error:
        parser.error(f"cannot use {folder}: {error}")

    from tqdm import tqdm

    same = ["--rounds", str(options.rounds)] * bool(options.rounds) + ["--tiny"] * options.tiny
    rest, failed = list(wanted), []
    try:
        with tqdm(total=len(wanted), unit=" section", file=sys.stderr) as progress:
            for name in wanted:
                try:
                    result = measure_section(name, options.rounds, options.tiny, Within(progress, name))
                    results[name] = {**result, "tiny": options.tiny, "command": again([name], same)}
                    write(results, folder, day)
                except WorkerError as error:
                    failed.append(f"{name}: {error}")
                rest.remove(name)
                progress.update()
    except KeyboardInterrupt:
        same += ["--date", day] + ["--output", str(options.output)] * bool(options.output)
        print(f"stopped; go on with: {again(rest, same)}", file=sys.stderr)
    draw(results, folder, day)
    if summary(results):
        print("\n".join(summary_table(results)))
    for reason in failed:
        print(reason, file=sys.stderr)
    return 1 if failed else 130 if rest else 0


if __name__ == "__main__":
    sys.exit(main())
