"""Show how a run went, as one page that opens in any browser, offline.

python examples/report.py RUN_DIR writes RUN_DIR/report.html; --watch keeps it new while the run trains.
"""

from scratchnet.cli import run
from scratchnet.cli.report import main

if __name__ == "__main__":
    run(main)
