"""Tables of text with aligned columns, as every program and report prints them."""

from __future__ import annotations

from collections.abc import Sequence

from scratchnet.untrusted import printable


def aligned(rows: Sequence[Sequence[str]], left: int = 1, gap: str = "   ") -> list[str]:
    """Return one line per row: the first ``left`` columns are aligned to the left, the others to the right.

    A cell is always on one line: what a terminal would obey is spelt out.

    >>> print("\\n".join(aligned([["layer", "parameters"], ["features.0", "896"]])))
    layer        parameters
    features.0          896
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    cells = [zip(pads, row, widths, strict=True) for row in rows]
    return [gap.join(pad(cell, width) for pad, cell, width in line).rstrip() for line in cells]
