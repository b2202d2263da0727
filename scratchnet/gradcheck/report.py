"""Reports of gradient checks: what was compared, and the sentences and table that say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from scratchnet.tables import aligned

Where: TypeAlias = tuple[int, ...] | int | str  # an element's index, a direction's number, or:
TIES = "equal values"  # a direction in which values that are equal stay equal


class GradientError(AssertionError):
    """A gradient is wrong. The message is the report."""


@dataclass
class Measurement:
    """One comparison.

    Attributes
    ----------
    analytic, numeric : float
        What backward says, and what small steps of forward measure.
    error : float
        The relative error: their distance, divided by the larger one. What rounding alone may do is taken
        into account, so that two values which are both nearly zero agree.
    ok : bool
        Whether they agree.
    kink : bool
        Whether there is a kink at the point, or so near that the first step crossed it.
    visible : bool
        Whether either value stands out of the rounding at all.
    """

    analytic: float
    numeric: float
    error: float
    ok: bool
    kink: bool = False
    visible: bool = True


@dataclass
class ArrayCheck:
    """What was found for one array, the input or a parameter: a row of the report.

    Attributes
    ----------
    name : str
        ``"input"``, or the parameter's name.
    shape : tuple of int
    tier : {"elements", "directions"}
    checked, kinks, wrong : int
        How many elements (or directions) were compared, met a kink, disagree.
    visible : int
        In how many a value stood out of the rounding.
    worst : Measurement or None
        The comparison with the largest error.
    where : tuple of int, int, str or None
        Its index, the number of its direction, or ``"equal values"`` for a direction that keeps ties.
    """

    name: str
    shape: tuple[int, ...]
    tier: str
    checked: int = 0
    kinks: int = 0
    wrong: int = 0
    visible: int = 0
    worst: Measurement | None = None
    where: Where | None = None

    @property
    def ok(self) -> bool:
        """Whether backward and measurement agree everywhere."""
        return self.wrong == 0

    @property
    def error(self) -> float:
        """The largest relative error."""
        return self.worst.error if self.worst else 0.0

    @property
    def verdict(self) -> str:
        """The last column of the report."""
        return "WRONG" if self.wrong else "ok" if self.visible else "ok, zero to rounding"

    def add(self, where: Where, m: Measurement) -> None:
        """Count one comparison."""
        self.checked += 1
        self.kinks += m.kink
        self.wrong += not m.ok
        self.visible += m.visible
        if self.worst is None or (not m.ok, m.error) > (not self.worst.ok, self.worst.error):
            self.worst, self.where = m, where


@dataclass
class Report:
    """What a check found. Print it, ask it (``if report:``), or have it raise.

    Attributes
    ----------
    subject : str
        What was checked.
    rows : list of ArrayCheck
        One for each array.
    problems : list of str
        What else the layer does wrong, in sentences: a gradient that is missing, an input that is written to.
    tolerance : float
        The largest relative error that counts as right.
    cause : Exception or None
        What the layer raised, if it did.
    """

    subject: str
    rows: list[ArrayCheck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tolerance: float = 1e-6
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
        """Return this report if everything is right.

        Raises
        ------
        GradientError
            An AssertionError with this report as its message, if not.
        """
        if not self.ok:
            raise GradientError(str(self)) from self.cause
        return self

    def __str__(self) -> str:
        lines = [f"gradient check of {self.subject}: {'ok' if self.ok else 'FAILED'}"]
        if self.rows:
            head = "array,shape,checked,kinks,max rel. error,worst at,analytic,numeric,".split(",")
            table = [head] + [
                [
                    row.name,
                    str(row.shape),
                    f"{row.checked} {row.tier}",
                    str(row.kinks),
                    f"{row.error:.1e}",
                    f"direction {row.where}" if isinstance(row.where, int) else str(row.where),
                    f"{row.worst.analytic:.9g}",
                    f"{row.worst.numeric:.9g}",
                    row.verdict,
                ]
                for row in self.rows
                if row.worst
            ]
            lines += [f"  {line}" for line in aligned(table, left=len(head), gap="  ")]
        for row in self.rows:
            if not row.ok:
                lines.append("  " + self._sentence(row))
        lines += [f"  {problem}" for problem in self.problems]
        return "\n".join(lines)

    def _sentence(self, row: ArrayCheck) -> str:
        array = "the input" if row.name == "input" else row.name
        place = f"in {row.wrong} of {row.checked} {row.tier}: at {row.where}"
        if isinstance(row.where, int):
            place = f"in {row.wrong} of {row.checked} {row.tier}: along direction {row.where}"
        elif row.where == TIES:
            place = "where values are equal or zero: as these move together"
        values = (row.worst.analytic, row.worst.numeric) if row.worst else (0.0, 0.0)
        return (
            f"The gradient of {array} is wrong {place}, backward says {values[0]:.9g}, small steps of "
            f"forward measure {values[1]:.9g}."
        )
