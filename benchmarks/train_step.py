"""How fast does scratchnet train, next to PyTorch on the same machine?

::

    pip install '.[bench]'
    python benchmarks/train_step.py

One training step: forward, loss, backward without the gradient of the image, SGD with momentum 0.9.
``race.py`` says how it is measured, ``contenders.py`` what is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from command import race


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status."""
    return race("training", 9, "Time training steps of scratchnet and PyTorch, in turns.", arguments)


if __name__ == "__main__":
    sys.exit(main())
