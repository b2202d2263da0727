"""What a trainer saves and when, how it stops, and how it goes on: beside ``trainer.py``, which is the loop.

After every epoch, every so many minutes within one, and when it is asked to stop, a snapshot is written; the
trainer is then where ``resume`` would put it. In the middle of a step it is nowhere: ``whole`` is False.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from scratchnet.training import config, snapshot
from scratchnet.training.finite import NotFinite
from scratchnet.training.rundir import RunError
from scratchnet.training.stopping import Stop, Stopped

if TYPE_CHECKING:
    from scratchnet.training.trainer import Trainer

MOST_ROLLBACKS = 3
T = TypeVar("T")


class Saving:
    """Saves a trainer's state into its run directory, if it has one, and stops it there."""

    def __init__(self, trainer: Trainer, minutes: float, on_nan: str = "stop"):
        self.trainer, self.minutes, self.on_nan = trainer, minutes, on_nan
        self._good: snapshot.Snapshot | None = None  # in memory, to be rolled back to
        self.epochs = 0  # that the run is to have
        self.whole = True
        self._stop = Stop()
        self._version: tuple[int, ...] = ()  # of the state that this trainer wrote or resumed
        self._last = time.monotonic()
        self._saved: tuple[int, int, int] | None = None  # on disk: epochs, batches of the next, rollbacks

    # Going on

    def resume(self, epochs: int | None) -> tuple[dict[str, Any], list[str]]:
        """Put the trainer where its run stopped; return where that is, and what its reader should know."""
        trainer, run = self.trainer, self.trainer.run
        if run is None:
            raise RunError("this trainer has no run directory to resume from: give it one as run")
        with run.locked():
            edited = run.what_was_edited()
            if not run.has_state and run.is_begun:
                return {}, [f"{run.path} has saved nothing yet: it begins at epoch 1", *edited]
            taken = snapshot.Snapshot(*run.read_state())
            sentences = snapshot.check(taken, trainer, run.state)
            run.check_files(taken.header)
            done = len(taken.header["log"])
            if epochs is not None and done > epochs:
                raise RunError(f"{run.path} has done {done} epochs already, more than {epochs}")
            snapshot.put(taken, trainer)
            run.write_log(trainer.log)  # which may be one row behind
            self._version, self._saved, self.whole = run.version, self._place(), True
        return taken.header, [*sentences, *edited]

    @contextmanager
    def running(self, epochs: int) -> Iterator[None]:
        """Have the run directory and heed signals within this context."""
        trainer, run, self.epochs = self.trainer, self.trainer.run, epochs
        if not self.whole:
            self._tell_of_half_a_step()
        if run is None:
            with self._stop.heeded(trainer.parallel.rank == 0):
                yield
            return
        with run.locked():
            if run.has_results and (not run.has_state or run.version != self._version):
                advice = "call resume() to go on with it" if run.has_state else "remove it"
                raise RunError(
                    f"{run.path} holds another run than this trainer's: {advice}, or choose another folder"
                )
            begun = run.config.exists()
            was = run.read_config() if begun else {}
            ours = not begun or "python" in was  # else the program that trains has written it
            # The identity is asked for here, since the first step would change it.
            if was.get("run", trainer.identity) != trainer.identity and (run.has_results or not ours):
                raise RunError(f"{run.config} is of another run: choose another folder")
            run.header = config.header_of(trainer) | run.header
            if ours:
                run.write_config(config.config_of(trainer, epochs))
            self._last = time.monotonic()
            with self._stop.heeded(trainer.parallel.rank == 0):
                yield

    def _tell_of_half_a_step(self) -> None:
        run = self.trainer.run
        if run is not None and run.has_state:
            raise RunError(
                "training stopped in the middle of a step, and weights or statistics may be half changed: "
                f"call resume() to go back to what {run.state} has"
            )
        self.trainer.notice(
            "training stopped in the middle of a step: weights or statistics may be half changed"
        )

    # Between steps

    def steps(self, steps: Iterator[T]) -> Iterator[T]:
        """Yield what steps yield; after each save if it is time to, and stop if that was asked."""
        self.whole = False
        for made in steps:
            self.whole = True
            yield made
            self.stop_if_asked(save=time.monotonic() - self._last >= 60 * self.minutes)
            self.whole = False
        self.whole = True

    def save(self) -> None:
        """Write the state as it is between two steps, unless it is on disk."""
        self.trainer.parallel.on_writer(self._write_state)
        self.remember()
        self._last = time.monotonic()

    def _write_state(self) -> None:
        trainer, run = self.trainer, self.trainer.run
        if run is not None and self._saved != (now := self._place()):
            taken = snapshot.take(trainer)
            if snapshot.is_finite(taken):  # else what is on disk is better
                run.write_state(*taken)
                self._version, self._saved = run.version, now

    def _place(self) -> tuple[int, int, int]:
        return len(self.trainer.log), self.trainer.batch, self.trainer.rollbacks

    def remember(self) -> None:
        """Keep a copy of where the trainer is, if it may be needed and has no NaN."""
        if self.on_nan == "rollback":
            taken = snapshot.take(self.trainer, copy=True)
            if snapshot.is_finite(taken) or self._good is None:
                self._good = taken

    def roll_back(self, error: NotFinite) -> None:
        """Put the trainer back where all was well, with half the rate; raise the error if it may not."""
        trainer = self.trainer
        if self.on_nan != "rollback" or self._good is None:
            raise error
        if trainer.rollbacks == MOST_ROLLBACKS:
            raise NotFinite(f"{error} (rolled back {MOST_ROLLBACKS} times)") from None
        factor, rollbacks = trainer.rate_factor / 2, trainer.rollbacks + 1
        snapshot.put(self._good, trainer)
        trainer.rate_factor, trainer.rollbacks, self.whole = factor, rollbacks, True
        trainer.notice(
            f"{error}; back to epoch {len(trainer.log) + 1}, step {trainer.batch + 1}, with {factor:g} of "
            f"the schedule's learning rate ({rollbacks} of at most {MOST_ROLLBACKS} times)"
        )

    def after_epoch(self, is_best: bool) -> None:
        """Write what an epoch leaves."""
        trainer, run = self.trainer, self.trainer.run
        if run is not None:
            self.whole = False
            run.write_epoch(trainer.net, *snapshot.take(trainer), is_best)
            self._version, self._saved, self.whole = run.version, self._place(), True
        self._last = time.monotonic()

    # Stopping

    def stop_if_asked(self, save: bool = False) -> None:
        """Save and raise ``Stopped`` if a signal has asked for it, in any process; or only save."""
        number, save = self.trainer.parallel.agree(self._stop.signal or 0, save)
        if number or save:
            self.save()
        if number:
            self._stop.signal = None
            raise self.trainer.parallel.met(self.stopped(number))

    def stopped(self, number: int) -> Stopped:
        """Return the exception that says what is done."""
        trainer, run = self.trainer, self.trainer.run
        epochs, batch, _ = self._saved or (0, 0, 0)
        if run is None:
            epochs, batch = len(trainer.log), trainer.batch
        done = f"after {epochs} of {self.epochs} epochs"
        if batch:
            done += f" and {batch} of {len(trainer.train)} steps"
        return Stopped(done, number, run.path if run is not None and run.has_state else None)
