"""How fast does scratchnet compute logits, next to PyTorch, ONNX Runtime and OpenVINO on the same machine?

::

    pip install '.[bench]'
    python benchmarks/inference.py --image-size 224 --batch-size 1

All in float32. ``race.py`` says how it is measured, ``contenders.py`` what is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from command import race


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status."""
    what = "Time inference of scratchnet, PyTorch, ONNX Runtime and OpenVINO, in turns."
    return race("inference", 15, what, arguments)


if __name__ == "__main__":
    sys.exit(main())
