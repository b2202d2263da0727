"""A page of plain text that a walk writes: headings, sentences, small matrices, comparisons that can fail."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

WIDTH = 80
MAX_ROWS = 20  # of a matrix; the others are only counted
COLOUR, PLAIN = "\x1b[1;33m", "\x1b[0m"
TOLERANCE = 1e-6  # of a gradient and its central difference, relative to the largest
STEP = 1e-5  # of central differences

Parts: TypeAlias = Sequence[tuple[str, Any]]  # of an array: labels and indices
WHOLE: Parts = (("", ...),)


class Page:
    """A page of plain text, where ``colour`` also colours marked numbers (they are in brackets anyway).

    Its ``right`` says whether everything that was computed twice agreed.

    >>> page = Page()
    >>> page.heading("A sum")
    >>> page.show(page.matrix("x", [[1.0, 2.5], [-3.0, 0.0]], mark={(0, 1)}))
    >>> page.same("the sum of x", 0.5, 1 + 2.5 - 3 + 0)
    >>> print(page)
    A sum
    -----
    <BLANKLINE>
      x  (2, 2)
        1.0 [ 2.5]
       -3.0   0.0
    <BLANKLINE>
      Equal to the sum of x: yes
    """

    def __init__(self, colour: bool = False):
        self.lines: list[str] = []
        self.colour, self.right = colour, True

    def __str__(self) -> str:
        return "\n".join(self.lines).strip("\n")

    def heading(self, text: str) -> None:
        """Begin a step."""
        self.lines += [text, "-" * len(text), ""]

    def say(self, text: str, indent: int = 0) -> None:
        """Write sentences, wrapped."""
        margin = " " * indent
        whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
        text = " ".join(text.split())
        self.lines += [
            *textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin, **whole),
            "",
        ]

    def write(self, *lines: str) -> None:
        """Write lines as they are."""
        self.lines += [*(f"  {line}".rstrip() for line in lines), ""]

    def show(self, *blocks: list[str], between: str = "") -> None:
        """Write matrices beside each other, with a sign between, and below each other if there is no room."""
        gap = f"  {between}  " if between else "    "
        row: list[list[str]] = []
        for block in blocks:
            if row and 2 + sum(_width(b) + len(gap) for b in row) + _width(block) > WIDTH:
                self._write_beside(row, gap)
                row = []
            row.append(block)
        self._write_beside(row, gap)

    def _write_beside(self, blocks: list[list[str]], gap: str) -> None:
        height, middle = max(map(len, blocks)), min(map(len, blocks)) // 2
        lines = []
        for k in range(height):
            cells = [(block[k] if k < len(block) else "") for block in blocks]
            cells = [c + " " * (_width(b) - _visible_width(c)) for c, b in zip(cells, blocks, strict=True)]
            lines.append((gap if k == middle else " " * len(gap)).join(cells))
        self.write(*lines)

    def matrix(
        self,
        name: str,
        values: Any,
        mark: Any = (),
        rows: Sequence[str] = (),
        columns: Sequence[tuple[str, Sequence[Any]]] = (),
        shape: Any = None,
        digits: int | None = None,
    ) -> list[str]:
        """Return the lines of a matrix (or of one row), with its name and shape above.

        What lies at the places ``mark`` is in brackets. ``rows`` labels each row; ``columns`` are lines of
        labels above the columns, each with its own name; ``digits`` after the point are by default the fewest
        that show all numbers exactly, at most four.
        """
        values = np.asarray(values)
        title = f"{name}  {values.shape if shape is None else shape}".rstrip()
        table = np.atleast_2d(values)
        digits = digits_of(table) if digits is None else digits
        texts = [[number(v, digits) for v in row] for row in table[:MAX_ROWS]]
        heads = [[str(c) for c in labels] for _, labels in columns]
        width = max(len(text) for row in [*texts, *heads] for text in row)
        left = max([len(text) for text in [*rows[:MAX_ROWS], *(name for name, _ in columns)]], default=0)
        margin = " " * left + (" " if left else "")
        lines = [title]
        for (label, _), head in zip(columns, heads, strict=True):
            lines.append(f"{label.rjust(left)} " + "".join(f" {text.rjust(width)} " for text in head))
        for r, row in enumerate(texts):
            cells = "".join(self._cell(text.rjust(width), (r, c) in mark) for c, text in enumerate(row))
            lines.append((f"{rows[r].ljust(left)} " if rows else margin) + cells)
        if len(table) > MAX_ROWS:
            lines.append(f"{margin} ... and {len(table) - MAX_ROWS} more rows")
        return [line.rstrip() for line in lines]

    def _cell(self, text: str, marked: bool) -> str:
        if not marked:
            return f" {text} "
        return f"{COLOUR}[{text}]{PLAIN}" if self.colour else f"[{text}]"

    def same(self, name: str, got: Any, expected: Any) -> None:
        """Write whether two ways to the same numbers agree, to the rounding of float64."""
        distance = float(np.abs(np.asarray(got) - np.asarray(expected)).max())
        if distance <= 1e-9 * max(1.0, float(np.abs(expected).max())):
            self.write(f"Equal to {name}: yes")
        else:
            self.right = False
            self.write(f"Equal to {name}: NO, they differ by up to {distance:.3g}")

    def gradients(
        self,
        step: str,
        dy: Any,
        forward: Callable[[], Any],
        arrays: Mapping[str, tuple[np.ndarray, np.ndarray]],
        parts: Mapping[str, Parts] | None = None,
        kinks: np.ndarray | None = None,
    ) -> None:
        """Write the last step: gradients of L = sum(dy * forward()), by name, beside central differences."""
        self.heading(f"{step} gradient, with its central difference")
        self.say("""(L(a + h) - L(a - h)) / 2h, for each number a separately: only forward passes, no
            calculus.""")
        for name, (gradient, array) in arrays.items():
            part = (parts or {}).get(name, WHOLE)
            self.gradient(name, gradient, array, lambda: float(np.sum(dy * forward())), kinks, part)

    def gradient(
        self,
        name: str,
        gradient: np.ndarray,
        array: np.ndarray,
        loss: Callable[[], float],
        kinks: np.ndarray | None = None,
        parts: Parts = WHOLE,
    ) -> None:
        """Show the gradient of the loss with respect to an array, with the central difference beside it.

        At ``kinks`` there is no derivative, and the two may differ. ``parts`` are the matrices to show it as:
        a label and an index for each.
        """
        numeric = central_difference(loss, array)
        kinks = np.zeros(array.shape, bool) if kinks is None else kinks
        for k, (label, index) in enumerate(parts):
            mark = {(int(r), int(c)) for r, c in np.argwhere(np.atleast_2d(kinks[index]))}
            self.show(
                self.matrix(f"d{name}{label}", gradient[index], mark, shape="" if k else str(gradient.shape)),
                self.matrix("central difference", numeric[index], mark, shape="", digits=4),
            )
        distance = float(np.abs(gradient - numeric)[~kinks].max(initial=0.0))
        agrees = distance <= TOLERANCE * max(1.0, float(np.abs(numeric).max()))
        self.right &= agrees
        self.write(f"They agree: {'yes' if agrees else 'NO'}, they differ by at most {distance:.1e}")


def central_difference(loss: Callable[[], float], array: np.ndarray, h: float = STEP) -> np.ndarray:
    """Return (L(a + h) - L(a - h)) / 2h for each element a of an array: its slope, without calculus.

    >>> x = np.array([1.0, 2.0])
    >>> central_difference(lambda: float((x * x).sum()), x).round(6)
    array([2., 4.])
    """
    slopes = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + h
        above = loss()
        array[index] = value - h
        below = loss()
        array[index] = value
        slopes[index] = (above - below) / (2 * h)
    return slopes


def small_integers(rng: np.random.Generator, *shape: int, largest: int = 3) -> np.ndarray:
    """Draw small whole numbers except zero, since a product with zero hides the other factor.

    >>> small_integers(np.random.default_rng(0), 4)
    array([-3., -2., -2., -1.])
    """
    return rng.integers(1, largest + 1, shape) * rng.choice([-1.0, 1.0], shape)


def digits_of(values: Any, most: int = 4) -> int:
    """Return how many digits after the point show all these numbers exactly, at most ``most``.

    >>> digits_of([1.0, -2.0]), digits_of([1.0, 0.5]), digits_of([1 / 3])
    (0, 1, 4)
    """
    values = np.asarray(values, dtype=float)
    return next((d for d in range(most) if np.allclose(values, values.round(d), rtol=0, atol=1e-12)), most)


def number(value: float, digits: int | None = None) -> str:
    """Return a number with this many digits after the point, and never a zero with a sign.

    >>> number(-0.00001, 2), number(2.0), number(2.5)
    ('0.00', '2', '2.5')
    """
    digits = digits_of(value) if digits is None else digits
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def products(pairs: Any, longest: int = 18) -> str:
    """Return a sum of products, shortened in the middle if it is long.

    >>> products([(1, 2), (3, -0.5)])
    '1*2 + 3*(-0.5)'
    """
    terms = [f"{number(a)}*{signed(b)}" for a, b in pairs]
    if len(terms) > longest:
        terms = [*terms[: longest - 2], "...", terms[-1]]
    return " + ".join(terms)


def signed(value: float) -> str:
    """Return a number that follows an operator: in brackets if it is negative."""
    text = number(value)
    return f"({text})" if text.startswith("-") else text


def _visible_width(line: str) -> int:
    """Return the width of a line without its colour codes."""
    return len(re.sub(r"\x1b\[[\d;]*m", "", line))


def _width(block: list[str]) -> int:
    return max(map(_visible_width, block))
