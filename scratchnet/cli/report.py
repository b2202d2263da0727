"""``scratchnet report``: how a run went, as one page that opens in any browser, offline."""

from __future__ import annotations

import os
import time
from os.path import expanduser

from scratchnet.cli.program import Parser, complain
from scratchnet.report import RunReport
from scratchnet.training import RunError
from scratchnet.untrusted import printable

REFRESH = 10  # seconds after which a browser looks again
POLL = 1.0  # seconds between looks at the log


def main() -> None:
    """Write the page, once or again and again."""
    parser = Parser(description="Show how a run went, as one page that opens in any browser, offline.")
    add = parser.add_argument
    add("run_dir", metavar="RUN_DIR", type=expanduser, help="the folder of a run, such as runs/demo")
    add("--output", metavar="FILE", type=expanduser, help="where to write (default RUN_DIR/report.html)")
    add("--data-dir", metavar="DIR", type=expanduser, help="the folder of CIFAR-10 (default as in training)")
    add("--image", metavar="FILE", type=expanduser, help="follow this image through the network")
    watching = "write it again after each epoch, until the run ends or Ctrl-C"
    add("--watch", action="store_true", help=watching)
    options = parser.parse_args()
    report = RunReport(options.run_dir, options.output, options.data_dir, options.image, complain)
    try:
        if options.watch:
            watch(report)
        else:
            report.write()
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        command = "python -m pip install matplotlib"
        raise ValueError(f"drawing needs matplotlib, which is not installed: {command}") from None
    print(printable(str(report.output)))


def watch(report: RunReport) -> None:
    """Write the page whenever the log has grown, with the newest weights; at the end with the best ones."""
    if hasattr(os, "nice"):
        os.nice(10)  # training comes first
    shown, rest_until = None, 0.0
    try:
        while len(rows := report.run.read_log()) < report.epochs:
            start = time.monotonic()
            if rows and rows[-1] != shown and start >= rest_until:
                complain(f"epoch {len(rows)} of {report.epochs}")
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
