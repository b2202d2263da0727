"""``python -m scratchnet.explain conv --backward``: a walk through one operation, in the terminal."""

from scratchnet.cli import run
from scratchnet.cli.explain import main

if __name__ == "__main__":
    run(main)
