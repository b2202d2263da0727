"""Markdown of the results of ``race.measure``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from race import PYTORCH, TITLES, WARM_UP, listed

FAMILIES = {"PyTorch": PYTORCH} | {TITLES[c]: [c] for c in ("onnxruntime", "openvino", "dezero", "jax")}


def race_table(result: dict[str, Any]) -> str:
    """Return the table of a race: times, ratios, memory, and the machine that measured them."""
    contenders = result["contenders"]
    rows = []
    for name, measured in contenders.items():
        rate = result["task"]["batch_size"] / median(measured["seconds"])
        rows.append(
            [title(name, result["task"]), *times(measured["seconds"]), f"{rate:.1f}", megabytes(measured)]
        )
    lines = [
        f"## {sentence(heading(result['task']))}",
        "",
        *table(["", "median ms", "min", "max", "images/s", "peak memory"], rows),
        "",
        *(
            f"- Speed against {family}: {spread(speed_ratios(result, names))}"
            for family, names in present_families(result)
        ),
    ]
    for family, names in present_families(result):
        name, ratio = memory_ratio(result, names)
        if name:
            family = family.replace("best of each round", "lowest")
            lines.append(f"- Peak memory against {family}: **{ratio:.2f}**")
    return "\n".join([*lines, *footer(result)])


def heading(task: dict[str, Any]) -> str:
    """Describe the task."""
    what = "a training step of" if task["kind"] == "training" else "inference with"
    norm = " with batch normalisation" * task["batch_norm"]
    width = f" of width {task['width']:g}" * (task["width"] != 1.0)
    return f"{what} {task['arch']}{width}{norm}, {task['image_size']} px, batch {task['batch_size']}, float32"


def sentence(text: str) -> str:
    """Begin with a capital letter."""
    return text[:1].upper() + text[1:]


def title(contender: str, task: dict[str, Any]) -> str:
    """Name a contender."""
    return TITLES[contender] + f", {task['engine']}" * (contender == "scratchnet")


def present_families(result: dict[str, Any]) -> Iterable[tuple[str, list[str]]]:
    """Yield the libraries that scratchnet was compared with, each with its contenders."""
    for family, names in FAMILIES.items():
        present = [name for name in names if name in result["contenders"]]
        if present:
            yield family + ", the best of each round" * (family == "PyTorch"), present


def speed_ratios(result: dict[str, Any], rivals: Sequence[str]) -> list[float]:
    """Return scratchnet's speed as a share of the fastest rival's, in each round."""
    contenders = result["contenders"]
    best = map(min, zip(*(contenders[rival]["seconds"] for rival in rivals), strict=True))
    return [rival / own for own, rival in zip(contenders["scratchnet"]["seconds"], best, strict=True)]


def memory_ratio(result: dict[str, Any], rivals: Sequence[str]) -> tuple[str | None, float]:
    """Return the rival with the lowest peak, None if unknown, and scratchnet's peak as a share of it."""
    contenders = result["contenders"]
    if not contenders["scratchnet"]["memory"]:
        return None, float("nan")
    lowest = min(rivals, key=lambda rival: contenders[rival]["memory"])
    return lowest, contenders["scratchnet"]["memory"] / contenders[lowest]["memory"]


def footer(result: dict[str, Any]) -> list[str]:
    """Say how, with what, where and when it was measured."""
    contenders = list(result["contenders"].values())
    n = len(contenders[0]["seconds"])
    differences = [c["difference"] for c in contenders if c["difference"] is not None]
    agree = ""
    if differences and result["task"]["kind"] == "training":
        agree = f", whose losses agree: {listed(contenders[0]['first'])}"
    elif differences:
        agree = ", whose logits agree"
    if agree:
        agree += f" (largest relative difference {max(differences):.0e})"
    warm_up = WARM_UP * result["task"].get("batches", 1)
    versions = "; ".join(dict.fromkeys(c["versions"] for c in contenders))
    return [
        f"- {n} round{'s' * (n > 1)} of alternating turns, after {warm_up} steps to warm up{agree}",
        *(f"- {remark}" for remark in result["remarks"]),
        f"- {versions}; Python {result['python']}",
        *where(result, result["task"]["threads"]),
    ]


def where(result: dict[str, Any], threads: int | str) -> list[str]:
    """Say on which machine, when, and with which command."""
    settings = "".join(f"; {name}={value}" for name, value in result["environment"].items())
    plural = "" if threads == 1 else "s"
    return [
        f"- {result['processor']}, {result['cores']} cores; {threads} thread{plural}; {result['system']}; "
        f"{result['date']}{settings}",
        f"- `{result['command']}`",
    ]


# Figures


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Return a Markdown table whose first ``left`` columns are text and the others numbers.

    Examples
    --------
    >>> print("\\n".join(table(["what", "ms"], [["a step", "12"]])))
    | what | ms |
    | --- | ---: |
    | a step | 12 |
    """
    marks = ["---"] * left + ["---:"] * (len(titles) - left)
    return [f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in row)}|" for row in (titles, marks, *rows)]


def times(seconds: Sequence[float]) -> list[str]:
    """Return median, minimum and maximum in milliseconds."""
    return [ms(f(seconds)) for f in (median, min, max)]


def ms(seconds: float) -> str:
    """Return a time in milliseconds, with three significant figures or all before the point.

    Examples
    --------
    >>> ms(1.2345), ms(0.012345), ms(0.0012345)
    ('1234', '12.3', '1.23')
    """
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return a median with its range.

    Examples
    --------
    >>> spread([2.0, 1.0, 3.0])
    '**2.00** (from 1.00 to 3.00)'
    """
    middle, low, high = (f"{f(values):.{digits}f}" for f in (median, min, max))
    return f"**{middle}** (from {low} to {high})"


def megabytes(measured: dict[str, Any]) -> str:
    """Return the peak memory as text."""
    return f"{measured['memory']:.0f} MB" if measured["memory"] else "unknown"


def save(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
