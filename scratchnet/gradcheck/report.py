"""Reports of gradient checks: what was compared, and the sentences and table that say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from scratchnet.tables import aligned

Where: TypeAlias = tuple[int, ...] | int | str  # an element's index, a direction's number, or:
TIES = "equal values"  # a direction in which values that are equal stay equal
HEAD = ["array", "shape", "checked", "kinks", "max rel. error", "worst at", "analytic", "numeric", ""]


class GradientError(AssertionError):
    """A gradient is wrong. The message is the report."""


@dataclass
class Measurement:
    """One comparison."""

    analytic: float  # what backward says
    numeric: float  # what small steps of forward measure
    error: float  # their distance relative to the larger one, where it stands out of the rounding
    ok: bool  # whether they agree
    kink: bool = False  # whether there is one at the point, or so near that the first step crossed it
    visible: bool = True  # whether either value stands out of the rounding at all


@dataclass
class ArrayCheck:
    """What was found for one array, the input or a parameter: a row of the report."""

    name: str  # "input", or the parameter's name
    shape: tuple[int, ...]
    tier: str  # "elements" or "directions", of which:
    checked: int = 0  # so many were compared,
    kinks: int = 0  # so many met a kink,
    wrong: int = 0  # so many disagree, and
    visible: int = 0  # in so many a value stood out of the rounding
    worst: Measurement = field(default_factory=lambda: Measurement(0.0, 0.0, 0.0, True))  # the largest error
    where: Where | None = None  # it was found; None where nothing was compared

    @property
    def ok(self) -> bool:
        """Whether backward and measurement agree everywhere."""
        return self.wrong == 0

    @property
    def error(self) -> float:
        """The largest relative error."""
        return self.worst.error

    def add(self, where: Where, m: Measurement) -> None:
        """Count one comparison."""
        self.checked += 1
        self.kinks += m.kink
        self.wrong += not m.ok
        self.visible += m.visible
        if self.where is None or (not m.ok, m.error) > (not self.worst.ok, self.worst.error):
            self.worst, self.where = m, where

    def cells(self) -> list[str]:
        """Return the row of the table."""
        m = self.worst
        place = f"direction {self.where}" if isinstance(self.where, int) else str(self.where)
        verdict = "WRONG" if self.wrong else "ok" if self.visible else "ok, zero to rounding"
        checked = [f"{self.checked} {self.tier}", f"{self.kinks}", f"{m.error:.1e}", place]
        return [self.name, str(self.shape), *checked, f"{m.analytic:.9g}", f"{m.numeric:.9g}", verdict]

    def sentence(self) -> str:
        """Say what is wrong."""
        array = "the input" if self.name == "input" else self.name
        along = "along direction" if isinstance(self.where, int) else "at"
        place = f"in {self.wrong} of {self.checked} {self.tier}: {along} {self.where}"
        if self.where == TIES:
            place = "where values are equal or zero: as these move together"
        return (
            f"The gradient of {array} is wrong {place}, backward says {self.worst.analytic:.9g}, small steps "
            f"of forward measure {self.worst.numeric:.9g}."
        )


@dataclass
class Report:
    """What a check found. Print it, ask it (``if report:``), or have it raise.

    Attributes
    ----------
    subject : str
        What was checked.
    tolerance : float
        The largest relative error that counts as right.
    rows : list of ArrayCheck
        One for each array.
    problems : list of str
        What else the layer does wrong, in sentences: a gradient that is missing, an input that is written to.
    cause : Exception or None
        What the layer raised, if it did.
    """

    subject: str
    tolerance: float = 1e-6
    rows: list[ArrayCheck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cause: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether everything is right."""
        return not self.problems and all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def worst(self) -> ArrayCheck | None:
        """The row with the largest error, wrong ones first; None where nothing could be compared."""
        return max(self.rows, key=lambda row: (not row.ok, row.error), default=None)

    @property
    def kinks(self) -> int:
        """How many kinks were met."""
        return sum(row.kinks for row in self.rows)

    def raise_for_failure(self) -> Report:
        """Return this report if everything is right, and otherwise raise it as a ``GradientError``."""
        if not self.ok:
            raise GradientError(str(self)) from self.cause
        return self

    def __str__(self) -> str:
        lines = [row.sentence() for row in self.rows if not row.ok] + self.problems
        if self.rows:
            table = [HEAD, *(row.cells() for row in self.rows if row.checked)]
            lines = aligned(table, left=len(HEAD), gap="  ") + lines
        head = f"gradient check of {self.subject}: {'ok' if self.ok else 'FAILED'}"
        return "\n  ".join([head, *lines])
