"""Show how a run went, as one page that opens in any browser, offline.

python examples/report.py RUN_DIR writes RUN_DIR/report.html; --watch keeps it new while the run trains.
"""

import os
import sys
import time

from scratchnet.report import RunReport
from scratchnet.training import RunError, cli

REFRESH = 10  # seconds after which a browser looks again
POLL = 1.0  # seconds between looks at the log


def main() -> None:
    """Write the page, once or again and again."""
    parser = cli.Parser(description="Show how a run went, as one page that opens in any browser, offline.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a run, such as runs/demo")
    parser.add_argument("--output", metavar="FILE", help="where to write (default RUN_DIR/report.html)")
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of CIFAR-10 (default as in training)")
    parser.add_argument("--image", metavar="FILE", help="follow this image through the network")
    parser.add_argument(
        "--watch", action="store_true", help="write it anew after each epoch, until the run ends or Ctrl-C"
    )
    options = parser.parse_args()
    report = RunReport(options.run_dir, options.output, options.data_dir, options.image, say)
    try:
        if options.watch:
            watch(report)
        else:
            report.write()
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        command = 'python -m pip install --editable ".[plot]"'
        raise ValueError(f"drawing needs matplotlib, which is not installed: {command}") from None
    print(report.output)


def watch(report: RunReport) -> None:
    """Write the page whenever the log has grown, with the newest weights; at the end with the best ones."""
    if hasattr(os, "nice"):
        os.nice(10)  # whoever trains comes first
    shown, rest_until = None, 0.0
    try:
        while len(rows := report.run.read_log()) < report.epochs:
            start = time.monotonic()
            if rows and rows[-1] != shown and start >= rest_until:
                say(f"epoch {len(rows)} of {report.epochs}")
                report.write(newest=True, refresh=REFRESH)
                shown = rows[-1]
                rest_until = start + 5 * (time.monotonic() - start)  # a fifth of the time at most
            time.sleep(POLL)
            if not report.run.path.is_dir():
                raise RunError(f"the run is gone: {report.run.path} is no folder any more")
        report.write()
    except KeyboardInterrupt:
        if shown is None:
            raise KeyboardInterrupt("before a page was written") from None
        report.stop_refreshing()


def say(line: str) -> None:
    """Say on standard error what is being done."""
    print(f"report.py: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
