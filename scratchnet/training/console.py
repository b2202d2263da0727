"""What a run prints: the article's log on standard output, progress on standard error.

On a terminal and in a notebook progress is a bar; where the output goes to a file it is a plain line per
minute, so that the file stays readable. Every line is flushed, so that ``tail -f`` shows it at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from scratchnet.training.observers import Observer
from scratchnet.untrusted import printable

if TYPE_CHECKING:
    from scratchnet.training.trainer import Trainer

SECONDS_BETWEEN_LINES = 60.0


def say(line: str = "") -> None:
    """Print lines on standard output, at once, above a progress bar that is there.

    What comes from a file, such as the name of a class, must be ``printable`` before it is in them.

    >>> say("Epoch 1/15")
    Epoch 1/15
    """
    with tqdm.external_write_mode(sys.stdout):
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Write a time as the article does.

    >>> duration(1177.2)
    '19m 37s'
    """
    return f"{int(seconds // 60)}m {int(seconds % 60)}s"


class Progress(AbstractContextManager):
    """How far an epoch has come: images, loss, images per second, and the time left.

    ``file`` is standard error unless given; ``clock`` returns seconds; ``done`` is how many images were met
    before it began.

    >>> import io
    >>> seconds = iter([0.0, 30.0, 90.0])
    >>> out = io.StringIO()
    >>> with Progress("epoch 1/2", 1000, out, clock=lambda: next(seconds)) as progress:
    ...     progress.update(100, loss=2.3)
    ...     progress.update(100, loss=2.1)
    >>> print(out.getvalue().strip())
    epoch 1/2: 200 of 1,000 images, loss 2.1000, 2.2 images/s, 6m 0s left
    """

    def __init__(
        self,
        title: str,
        total: int,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        done: int = 0,
    ):
        title = printable(title)
        self.title, self.total, self.file, self.clock = title, total, file or sys.stderr, clock
        self.done = self.done_before = done
        self.start = self.last_line = clock()
        self.bar: tqdm | None = None
        if self.file.isatty() or (file is None and _in_notebook()):
            # With no width or height at all tqdm would show nothing.
            size = {"dynamic_ncols": True} if _columns(self.file) else {"ncols": 80, "nrows": 24}
            shown = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images{postfix}, "
            shown += "{rate_noinv_fmt}, {remaining} left"
            texts = {"desc": title, "bar_format": shown, "unit": " images"}
            self.bar = tqdm(total=total, initial=done, file=self.file, leave=False, **size, **texts)

    def update(self, images: int, loss: float | None = None) -> None:
        """Count some more images, and show them where it is time to."""
        self.done += images
        shown = "" if loss is None else f"loss {loss:.4f}"
        if self.bar is not None:
            self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(images)
            return
        now = self.clock()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            rate = (self.done - self.done_before) / (now - self.start)
            left = f"{duration((self.total - self.done) / rate)} left"
            parts = [f"{self.done:,} of {self.total:,} images", shown, f"{rate:.1f} images/s", left]
            print(f"{self.title}: {', '.join(filter(None, parts))}", file=self.file, flush=True)

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


class Console(Observer):
    """Prints the article's log, and how far an epoch has come.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> trainer = SimpleNamespace(log=[{"seconds": 1177.2}], best_accuracy=0.998)
    >>> Console().on_end(trainer)
    Training complete in 19m 37s
    Best val Acc: 0.998000
    """

    def __init__(self) -> None:
        self._of = ""
        self._progress: Progress | None = None

    def on_begin(self, trainer: Trainer, epochs: int) -> None:
        """Remember how many epochs there are."""
        self._of = f"/{epochs}"

    def on_notice(self, trainer: Trainer, sentence: str) -> None:
        """Print it on standard error."""
        with tqdm.external_write_mode(sys.stderr):
            print(f"note: {sentence}", file=sys.stderr, flush=True)

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        """Print the epoch's title."""
        say(f"Epoch {epoch + 1}{self._of}")
        say("-----")
        done = trainer.totals.images  # of an epoch that is taken up
        self._show(Progress(f"epoch {epoch + 1}{self._of}", trainer.train.n_samples, done=done))

    def on_step(self, trainer: Trainer, step: int) -> None:
        """Move the bar on."""
        if self._progress is not None:
            loss, _ = trainer.totals.means
            self._progress.update(trainer.totals.images - self._progress.done, loss)

    def on_validation_begin(self, trainer: Trainer, epoch: int) -> None:
        """Print how training went."""
        self._show(None)
        loss, accuracy = trainer.totals.means
        say(f"train Loss: {loss:.4f} Acc: {accuracy:.4f}")
        self._show(Progress("validating", trainer.validation.n_samples))

    def on_validation_step(self, trainer: Trainer, images: int) -> None:
        """Move the bar on."""
        if self._progress is not None:
            self._progress.update(images)

    def on_epoch_end(self, trainer: Trainer, epoch: int, row: dict[str, float]) -> None:
        """Print how validation went."""
        self._show(None)
        say(f"val Loss: {row['val_loss']:.4f} Acc: {row['val_accuracy']:.4f}")

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        """Take the bar away, before the error is printed."""
        self._show(None)

    def on_end(self, trainer: Trainer) -> None:
        """Print the result."""
        say(f"Training complete in {duration(sum(row['seconds'] for row in trainer.log))}")
        say(f"Best val Acc: {trainer.best_accuracy:.6f}")

    def _show(self, progress: Progress | None) -> None:
        if self._progress is not None:
            self._progress.close()
        self._progress = progress


def _in_notebook() -> bool:
    """Tell whether this runs in a notebook, which shows what is written over a line as a terminal does."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _columns(file: TextIO) -> int:
    """Return the width of a terminal, 0 if it does not say, as in containers and under ``script``."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):
        return 0
