"""The attacks by name, and what each of them is given: time, a folder, random numbers, and a tally."""

from __future__ import annotations

import importlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

MAX_SECONDS = 10.0  # of one case
PATIENCE = 6.0
KEPT = 20  # failures that are told; all are counted


class NotHere(Exception):
    """What an attack needs is not installed."""


class TooSlow(BaseException):
    """A case has outlasted its time. No handler of Exception may swallow it."""


@dataclass
class Tally:
    """What an attack has to go by, and what came of it.

    An attack goes on ``while tally.goes_on()`` and makes each case ``with tally.case(what)``: whatever that
    raises is a failure of what was attacked, and so is a case that takes longer than ``MAX_SECONDS``.
    """

    seconds: float
    folder: Path
    seed: int = 0
    keep: str | None = None  # a folder for what did harm; by default it is lost with ``folder``
    cases: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0  # seconds of computing of a case
    memory: int = 0  # bytes by which a case raised the process's peak, at most

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.end = 0.0

    def goes_on(self) -> bool:
        """Tell whether there is time left; it runs from the first question."""
        self.end = self.end or time.monotonic() + self.seconds
        return time.monotonic() < self.end

    def fail(self, what: str) -> None:
        self.failed += 1
        if len(self.failures) < KEPT:
            self.failures.append(what)

    @contextmanager
    def case(self, what: str, limit: float = MAX_SECONDS) -> Iterator[None]:
        """Count a case; what is raised within is a failure. ``limit`` is in seconds."""
        self.cases += 1
        before, began = reset_peak(), time.process_time()
        try:
            with alarm(limit):
                yield
        except TooSlow:
            self.fail(f"{what}: longer than {limit:.0f} seconds")
        except (SystemExit, Exception) as error:
            self.fail(f"{what}: {type(error).__name__}: {str(error)[:300]}")
        self.longest = max(self.longest, time.process_time() - began)
        self.memory = max(self.memory, peak() - before)


class Attack(NamedTuple):
    name: str
    run: Callable[[Tally], None]
    bound: str  # in words
    at_least: int  # cases of the long form
    minutes: float  # of the long form


ATTACKS: dict[str, Attack] = {}


def attack(name: str, bound: str, at_least: int, minutes: float = 5.0) -> Callable[[Callable], Callable]:
    """Register an attack: a function of a Tally, which it fills until ``tally.goes_on()`` says no."""

    def register(function: Callable[[Tally], None]) -> Callable[[Tally], None]:
        ATTACKS[name] = Attack(name, function, bound, at_least, minutes)
        return function

    return register


def all_attacks() -> dict[str, Attack]:
    """Import every module of this folder, and return the attacks that they register."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.name.startswith(("test_", "run")):
            importlib.import_module(f"tests.attack.{path.stem}")
    return ATTACKS


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TooSlow within the block after so many seconds of computing, where the system has that.

    What waits for a busy machine is not too slow; what waits for anything is, after ``PATIENCE`` times that.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise TooSlow

    timers = [
        (signal.SIGPROF, signal.ITIMER_PROF, seconds),
        (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE * seconds),
    ]
    before = [signal.signal(number, ring) for number, *_ in timers]
    for _, timer, after in timers:
        signal.setitimer(timer, after)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


# The memory that a case takes, where the system tells (Linux)


def reset_peak() -> int:
    """Forget the largest memory that this process has had so far; return what it has now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return peak()


def peak() -> int:
    """Return the largest memory that this process has had, in bytes; 0 where that cannot be known."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
