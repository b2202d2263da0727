"""Markdown from what ``race.measure`` returned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from race import PYTORCH, TITLES, WARM_UP, listed

FAMILIES = {"PyTorch": PYTORCH} | {TITLES[c]: [c] for c in ("onnxruntime", "openvino", "dezero", "jax")}


def race_table(result: dict[str, Any]) -> str:
    """Write a race between scratchnet and others: times, ratios, memory, and where that was measured."""
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
            f"- Speed against {whom}: {spread(speed_ratios(result, names))}"
            for whom, names in present_families(result)
        ),
    ]
    for whom, names in present_families(result):
        name, ratio = memory_ratio(result, names)
        if name:
            whom = whom.replace("best of each round", "thriftiest")
            lines.append(f"- Peak memory against {whom}: **{ratio:.2f}**")
    return "\n".join([*lines, *footer(result)])


def heading(task: dict[str, Any]) -> str:
    """Say what the work is."""
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
    """Yield whom scratchnet was compared with, and the contenders which that means."""
    for family, names in FAMILIES.items():
        present = [name for name in names if name in result["contenders"]]
        if present:
            yield family + ", the best of each round" * (family == "PyTorch"), present


def speed_ratios(result: dict[str, Any], rivals: Sequence[str]) -> list[float]:
    """Return scratchnet's speed as a share of the quickest rival's, in each round."""
    contenders = result["contenders"]
    best = map(min, zip(*(contenders[rival]["seconds"] for rival in rivals), strict=True))
    return [theirs / ours for ours, theirs in zip(contenders["scratchnet"]["seconds"], best, strict=True)]


def memory_ratio(result: dict[str, Any], rivals: Sequence[str]) -> tuple[str | None, float]:
    """Return the thriftiest rival, None where nobody counts, and scratchnet's peak as a share of its."""
    contenders = result["contenders"]
    if not contenders["scratchnet"]["memory"]:
        return None, float("nan")
    thriftiest = min(rivals, key=lambda rival: contenders[rival]["memory"])
    return thriftiest, contenders["scratchnet"]["memory"] / contenders[thriftiest]["memory"]


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
    """Write a table; the first ``left`` columns are text, the others numbers.

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
    """Write median, minimum and maximum in milliseconds."""
    return [ms(f(seconds)) for f in (median, min, max)]


def ms(seconds: float) -> str:
    """Write a time in milliseconds, with three figures or all before the point.

    Examples
    --------
    >>> ms(1.2345), ms(0.012345), ms(0.0012345)
    ('1234', '12.3', '1.23')
    """
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write a median with its range.

    Examples
    --------
    >>> spread([2.0, 1.0, 3.0])
    '**2.00** (from 1.00 to 3.00)'
    """
    middle, low, high = (f"{f(values):.{digits}f}" for f in (median, min, max))
    return f"**{middle}** (from {low} to {high})"


def megabytes(measured: dict[str, Any]) -> str:
    """Write the peak memory."""
    return f"{measured['memory']:.0f} MB" if measured["memory"] else "unknown"


def save(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
