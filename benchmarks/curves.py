"""Training curves: loss and accuracy, epoch by epoch, from the logs of whole runs.

::

    pip install '.[plot]'
    python benchmarks/curves.py runs/vgg16-bn runs/vgg16 --output curves.svg
"""

from __future__ import annotations

from pathlib import Path

from scratchnet import cli
from scratchnet.report.output import writable_path
from scratchnet.tensorfile import replacing
from scratchnet.training import RunDirectory, RunError

FORMATS = (".svg", ".png", ".pdf", ".jpg", ".webp")


def read_logs(runs: list[Path]) -> dict[str, list[dict[str, float]]]:
    """Return the rows of the runs' ``log.csv``, by a unique name for each run.

    Parameters
    ----------
    runs : list of Path
        Folders of runs, or the ``log.csv`` in them. A run given twice is read once.
    """
    logs = {}
    for run in runs:
        folder = run if run.is_dir() or run.name != "log.csv" else run.parent
        if not folder.is_dir():
            raise RunError(f"{run} is no run: give a run's folder, or its log.csv")
        rows = RunDirectory(folder, read_only=True).read_log()
        if not rows:
            raise RunError(f"{folder} has no log.csv with an epoch in it")
        logs[folder.resolve()] = rows
    return dict(zip(short_names(list(logs)), logs.values(), strict=True))


def short_names(folders: list[Path]) -> list[str]:
    """Return the shortest end of each path that tells it from the others.

    Examples
    --------
    >>> short_names([Path("runs/a/demo"), Path("runs/b/demo"), Path("runs/b/other")])
    ['a/demo', 'b/demo', 'other']
    """

    def short_name(folder: Path) -> str:
        ends = (folder.parts[-n:] for n in range(1, len(folder.parts) + 1))
        alone = (end for end in ends if sum(other.parts[-len(end) :] == end for other in folders) == 1)
        return str(Path(*next(alone)))

    return [short_name(folder) for folder in folders]


def draw(logs: dict[str, list[dict[str, float]]], output: Path) -> None:
    """Draw loss and accuracy of each run, on training (dashed) and validation images, into a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines = []
    for k, rows in enumerate(logs.values()):
        epochs = [row["epoch"] for row in rows]
        for axes, what, scale in ((left, "loss", 1), (right, "accuracy", 100)):
            for part, style in (("train", "--"), ("val", "-")):
                values = [scale * row[f"{part}_{what}"] for row in rows]
                (line,) = axes.plot(epochs, values, style, color=f"C{k}")
        lines.append(line)
    for axes, what in ((left, "loss"), (right, "accuracy, %")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
    # matplotlib leaves out names that begin with an underscore, and reads formulas between dollars.
    names = [f" {name}".replace("$", r"\$") for name in logs]
    title = "solid: validation images\ndashed: training images"
    right.legend(lines, names, title=title, fontsize="small")
    with replacing(writable_path(output)) as temporary:
        figure.savefig(temporary, format=output.suffix[1:].lower())


def main() -> None:
    """Read the logs and draw."""
    parser = cli.Parser(description="Draw loss and accuracy of runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or its log.csv")
    parser.add_argument(
        "--output", type=Path, default=Path("curves.svg"), metavar="FILE", help="(%(default)s)"
    )
    options = parser.parse_args()
    if options.output.suffix.lower() not in FORMATS:
        endings = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise RunError(f"{options.output} cannot be written: its name must end in {endings}")
    writable_path(options.output)
    try:
        draw(read_logs(options.runs), options.output)
    except ModuleNotFoundError:
        raise RunError("drawing needs matplotlib: pip install '.[plot]'") from None


if __name__ == "__main__":
    cli.run(main)
