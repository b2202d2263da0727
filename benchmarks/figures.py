"""Figures of the benchmarks, drawn by matplotlib, which imports NumPy: draw after everything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams |= {"svg.hashsalt": "scratchnet", "font.size": 9, "axes.axisbelow": True}
from growth import AXES, CONTENDERS, KINDS, LABELS, curve, fixed  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: E402
from race import TITLES  # noqa: E402

# Okabe and Ito's colours, safe for colour-blind readers
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
COLOURS = dict(zip(CONTENDERS, (BLUE, ORANGE), strict=True))
MARKERS = dict(zip(CONTENDERS, "os", strict=True))
LINES = dict(zip(KINDS, ("-", "--"), strict=True))


def draw_growth(result: dict[str, Any], path: Path) -> None:
    """Draw time and peak memory along each axis that was measured, both on logarithmic scales.

    Parameters
    ----------
    result : dict
        From ``growth.measure_growth``.
    path : Path
        ``.svg`` or ``.png``.
    """
    axes = [axis for axis in AXES if any(curve(result, axis, kind) for kind in KINDS)]
    figure, panels = plt.subplots(
        2, len(axes), figsize=(3.3 * len(axes) + 0.6, 5.8), squeeze=False, sharex="col", layout="constrained"
    )
    for column, axis in zip(panels.T, axes, strict=True):
        task = next(p["race"]["task"] for p in result["points"] if p["axis"] == axis)
        ticks = sorted({value for kind in KINDS for value, _ in curve(result, axis, kind)})
        for panel, quantity in zip(column, ("time of a step, ms", "peak memory, MB"), strict=True):
            for kind in KINDS:
                for contender in CONTENDERS:
                    draw_curve(panel, curve(result, axis, kind), kind, contender, quantity)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(ticks, tick_labels(ticks))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.grid(color="#dddddd", linewidth=0.6)
            panel.tick_params(labelsize=8)
        column[1].set_xlabel(f"{LABELS[axis]}\n({fixed(task, axis)})")
    panels[0, 0].set_ylabel("time of a step, ms")
    panels[1, 0].set_ylabel("peak memory, MB")
    lines = panels[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper center", ncols=2, frameon=False)
    finish(figure, path)


def tick_labels(ticks: Sequence[int]) -> list[str]:
    """Return a label for each tick of a logarithmic axis, but none where the next one would overlap it.

    Examples
    --------
    >>> tick_labels([160, 192, 224])
    ['160', '', '224']
    """
    following = [*ticks[1:], float("inf")]
    return [str(tick) if after > 1.18 * tick else "" for tick, after in zip(ticks, following, strict=True)]


def draw_curve(panel: Any, points: Sequence, kind: str, contender: str, quantity: str) -> None:
    """Draw one line of one panel: the median, and a bar from minimum to maximum where it is a time."""
    if not points:
        return
    x = [value for value, _ in points]
    measured = [race["contenders"][contender] for _, race in points]
    style = {
        "color": COLOURS[contender],
        "linestyle": LINES[kind],
        "marker": MARKERS[contender],
        "markersize": 4,
        "label": f"{TITLES[contender]}, {kind}",
    }
    if quantity.startswith("time"):
        y = [1e3 * median(m["seconds"]) for m in measured]
        below = [middle - 1e3 * min(m["seconds"]) for middle, m in zip(y, measured, strict=True)]
        above = [1e3 * max(m["seconds"]) - middle for middle, m in zip(y, measured, strict=True)]
        panel.errorbar(x, y, yerr=[below, above], elinewidth=0.8, **style)
    else:
        panel.plot(x, [m["memory"] or float("nan") for m in measured], **style)


def draw_summary(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw scratchnet's speed and memory at each task, next to its best rival.

    Parameters
    ----------
    rows : list of dict
        From ``all.summary``.
    path : Path
    """
    figure, (speed, memory) = plt.subplots(
        1, 2, figsize=(11, 0.45 * len(rows) + 1.4), sharey=True, layout="constrained"
    )
    ranges = [(min(row["ratios"]), median(row["ratios"]), max(row["ratios"])) for row in rows]
    shares = [(row["memory_ratio"] or float("nan"),) * 3 for row in rows]
    draw_bars(speed, ranges, [row["rival"] for row in rows], BLUE)
    draw_bars(memory, shares, [row["lowest_rival"] for row in rows], ORANGE)
    speed.set_xlabel("speed, times the fastest rival's (more is better)")
    memory.set_xlabel("peak memory, times the lowest rival's (less is better)")
    speed.set_yticks(range(len(rows)), [row["label"] for row in rows])
    speed.invert_yaxis()
    finish(figure, path)


def draw_bars(panel: Any, ranges: Sequence[tuple[float, ...]], names: Sequence[str], colour: str) -> None:
    """Draw a bar for each (minimum, median, maximum), and beside it the median and a name."""
    low, middle, high = zip(*ranges, strict=True)
    errors = [
        [m - a for a, m in zip(low, middle, strict=True)],
        [b - m for m, b in zip(middle, high, strict=True)],
    ]
    panel.barh(range(len(names)), middle, height=0.6, color=colour)
    if low != high:
        style = {"fmt": "none", "ecolor": GREY, "elinewidth": 1, "capsize": 3}
        panel.errorbar(middle, range(len(names)), xerr=errors, **style)
    panel.axvline(1, color=GREY, linewidth=1, linestyle=":")
    for y, name in enumerate(names):
        if name:
            end = max(1, high[y]), y
            style = {"textcoords": "offset points", "va": "center", "fontsize": 7.5}
            panel.annotate(f"{middle[y]:.2f}  {name}", end, (5, 0), **style)
    panel.set_xlim(0, 2.4 * max(1, *(b for b, name in zip(high, names, strict=True) if name), 1))
    panel.spines[["top", "right"]].set_visible(False)


def finish(figure: Any, path: Path) -> None:
    """Write the file; the same figures make the same bytes."""
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    plt.close(figure)
