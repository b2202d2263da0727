"""Tables of text with aligned columns, as every program and report prints them."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1, gap: str = "   ") -> list[str]:
    """Return one line per row, with the cells of each column aligned.

    Parameters
    ----------
    rows : sequence of rows
        The first may hold the titles. All rows have the same number of cells.
    left : int
        The number of leading columns that are aligned to the left; the others are numbers.
    gap : str
        Separates two columns.

    Examples
    --------
    >>> print("\\n".join(aligned([["layer", "parameters"], ["features.0", "896"]])))
    layer        parameters
    features.0          896
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
