"""Draw how full runs went: loss and accuracy, epoch by epoch, out of the logs that training leaves.

::

    pip install 'scratchnet[plot]'
    python benchmarks/curves.py runs/vgg16-bn runs/vgg16 --output curves.svg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scratchnet.training import RunDirectory, RunError


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's ``log.csv``."""
    rows = RunDirectory(folder).read_log()
    if not rows:
        raise RunError(f"{folder} has no epochs")
    return rows


def draw(logs: dict[str, list[dict[str, float]]], output: Path) -> None:
    """Draw loss and accuracy of each run, on training (dashed) and validation images, into a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, rows) in enumerate(logs.items()):
        epochs = [row["epoch"] for row in rows]
        for axes, what, scale in ((left, "loss", 1), (right, "accuracy", 100)):
            for part, style in (("train", "--"), ("val", "-")):
                values = [scale * row[f"{part}_{what}"] for row in rows]
                axes.plot(epochs, values, style, color=f"C{k}", label=name if part == "val" else None)
    for axes, what in ((left, "loss"), (right, "accuracy, %")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
    right.legend(title="solid: validation images\ndashed: training images", fontsize="small")
    figure.savefig(output)


def main(arguments: list[str] | None = None) -> int:
    """Read the logs and draw; return the exit status."""
    parser = argparse.ArgumentParser(description="Draw how runs went.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or its log.csv")
    parser.add_argument("--output", type=Path, default=Path("curves.svg"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    try:
        folders = [run.parent if run.name == "log.csv" else run for run in options.runs]
        draw({folder.name: read_log(folder) for folder in folders}, options.output)
    except ModuleNotFoundError:
        print("drawing needs matplotlib: pip install 'scratchnet[plot]'", file=sys.stderr)
        return 2
    except (OSError, RunError) as error:
        print(f"curves.py: this is no log of a run: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
