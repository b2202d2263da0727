"""Diagnoses: rows of numbers, verdicts in words, and both together as a table or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite, log
from pathlib import Path
from typing import Any

from scratchnet import checks
from scratchnet.tables import aligned
from scratchnet.training.rundir import DIAGNOSES, RunError


@dataclass(frozen=True)
class Row:
    """What was measured at one layer with weights, or at a ReLU that follows none.

    Attributes
    ----------
    layer, kind : str
        Its path in the network, as in ``features.0``, and its class.
    std : float
        Standard deviation of all that it puts out, before the ReLU that follows it.
    signal : float
        That of the part which differs from image to image.
    dead : float or None
        Share of the units of the ReLU that follows it which are zero for every image and pixel.
    gradient : float or None
        Norm of the weights' gradient over norm of the weights.
    update : float or None
        Norm of the optimizer's next step over norm of the weights.
    """

    layer: str
    kind: str
    std: float
    signal: float
    dead: float | None = None
    gradient: float | None = None
    update: float | None = None


OPTIONAL = ("dead", "gradient", "update")  # of a row: None where there is nothing to measure


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong.

    Attributes
    ----------
    name : str
        Such as ``vanishing``.
    where : str
        Path of the layer; empty where it is the whole network, the data or the step.
    reason : str
        A sentence with the number that shows it.
    advice : str
        A sentence that says what to change.
    """

    name: str
    where: str
    reason: str
    advice: str

    def __str__(self) -> str:
        where = f" at {self.where}" if self.where else ""
        return f"{self.name.upper()}{where}: {self.reason} {self.advice}"


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found; ``str()`` writes it as a table.

    Attributes
    ----------
    step : int
        How many steps the network had been trained.
    loss, accuracy : float
        On the batch.
    images, classes : int
        How many images the batch had, and how many outputs the network.
    rows : list of Row
    verdicts : list of Verdict
        Empty for a healthy network.
    """

    step: int
    loss: float
    accuracy: float
    images: int
    classes: int
    rows: list[Row]
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.verdicts

    @property
    def verdict(self) -> str:
        """All verdicts in words, a line each."""
        return "\n".join(map(str, self.verdicts)) or "Healthy: nothing stands out."

    def as_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` reads: numbers, text, lists and dicts that JSON can hold."""
        return _converted(asdict(self), _for_json)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Return the diagnosis that ``as_dict`` wrote."""
        values = _converted(values, _from_json)
        checks.whole(0, **{name: values[name] for name in ("step", "images", "classes")})
        for name in ("loss", "accuracy"):
            _check_number(name, values[name])
        for row in values["rows"]:
            for name, value in row.items():
                if name not in ("layer", "kind", *OPTIONAL) or (name in OPTIONAL and value is not None):
                    _check_number(name, value)
        rows, verdicts = [Row(**row) for row in values["rows"]], [Verdict(**v) for v in values["verdicts"]]
        return cls(**{**values, "rows": rows, "verdicts": verdicts})

    def __str__(self) -> str:
        title = (
            f"Diagnosis at step {self.step}: loss {self.loss:.4f} (knowing nothing is ln {self.classes} = "
            f"{log(self.classes):.4f}), {100 * self.accuracy:.1f} % of {self.images} images right"
        )
        table = [("layer", "std", "signal", "dead", "gradient/weight", "update/weight")]
        for row in self.rows:
            dead = "" if row.dead is None else f"{100 * row.dead:.1f} %"
            numbers = [row.std, row.signal, row.gradient, row.update]
            std, signal, gradient, update = ("" if n is None else f"{n:.1e}" for n in numbers)
            table.append((f"{row.layer} {row.kind}".strip(), std, signal, dead, gradient, update))
        columns = [column for column in zip(*table, strict=True) if any(column[1:])]
        return "\n".join([title, *aligned(list(zip(*columns, strict=True))), self.verdict])


def read(run_path: str | os.PathLike[str]) -> list[Diagnosis]:
    """Return the diagnoses that a run left, in the order of its steps; an empty list where it left none.

    Parameters
    ----------
    run_path : path
        The run directory.

    Raises
    ------
    RunError
        If the file is damaged.

    Examples
    --------
    >>> read("no such run")
    []
    """
    path = Path(run_path, DIAGNOSES)
    try:
        return [Diagnosis.from_dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _converted(value: Any, convert: Callable[[Any], Any]) -> Any:
    """Return the same dicts and lists of other leaves."""
    if isinstance(value, dict):
        return {key: _converted(item, convert) for key, item in value.items()}
    if isinstance(value, list):
        return [_converted(item, convert) for item in value]
    return convert(value)


def _check_number(name: str, value: Any) -> None:
    """Refuse what is no number; NaN and infinities are, since a diagnosis may well be of those."""
    if not isinstance(value, float):
        checks.real(-checks.MOST, checks.MOST, **{name: value})


def _for_json(leaf: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as text."""
    return str(leaf) if isinstance(leaf, float) and not isfinite(leaf) else leaf


def _from_json(leaf: Any) -> Any:
    return float(leaf) if leaf in ("nan", "inf", "-inf") else leaf
