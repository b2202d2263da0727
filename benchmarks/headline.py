"""README's image: how well VGG16 learns, and how fast, from the newest results.

::

    pip install '.[plot]'
    python benchmarks/headline.py

Measures nothing. It draws the log of the full run ``vgg16-bn`` and the races with the best rivals, both from
``benchmarks/results/``, into that folder.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import median
from typing import Any

from all import summary
from figures import BLUE, GREY, ORANGE, draw_bars, finish, plt
from race import HERE

RESULTS = HERE / "results"


def draw_learning(panel: Any, log: Path) -> None:
    """Draw accuracy epoch by epoch, on training and validation images."""
    with open(log, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    for column, name, colour in (
        ("train_accuracy", "training images", GREY),
        ("val_accuracy", "validation images", BLUE),
    ):
        panel.plot(epochs, [100 * float(row[column]) for row in rows], color=colour, label=name)
    panel.set_title("VGG16 (batch normalisation) learns CIFAR-10", loc="left", fontsize=10)
    panel.set_xlabel("epoch")
    panel.set_ylabel("accuracy, %")
    panel.set_xlim(1, epochs[-1])
    panel.set_ylim(30, 100)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.legend(frameon=False, loc="lower right")
    panel.spines[["top", "right"]].set_visible(False)


def draw_speed(panel: Any, rows: list[dict[str, Any]]) -> None:
    """Draw a bar per race: the median of its rounds, their range, and the best rival's name."""
    ranges = [(min(row["ratios"]), median(row["ratios"]), max(row["ratios"])) for row in rows]
    draw_bars(panel, ranges, [f"vs. {row['rival']}" for row in rows], ORANGE)
    panel.set_yticks(range(len(rows)), [row["label"].removeprefix("vgg16 ") for row in rows])
    panel.invert_yaxis()
    panel.set_title("VGG16's speed on two CPU cores, times the fastest rival's", loc="left", fontsize=10)
    panel.set_xlabel("median of alternating rounds, and their range (more is better)")


def main() -> None:
    """Read the newest results and draw them side by side."""
    page = sorted(RESULTS.glob("20??-??-??.json"))[-1]
    log = sorted(RESULTS.glob("20??-??-??-runs/vgg16-bn/log.csv"))[-1]
    results = json.loads(page.read_text(encoding="utf-8"))
    races = {name: race for name, race in results.items() if not name.startswith("peers")}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.1), width_ratios=(0.9, 1), layout="constrained")
    draw_learning(left, log)
    draw_speed(right, summary(races))
    output = page.with_name(f"{page.stem}-headline.svg")
    finish(figure, output)
    print(output)


if __name__ == "__main__":
    main()
