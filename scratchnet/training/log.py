"""What a run says while it works: the article's log on standard output, progress on standard error.

On a terminal progress is a bar; where the output goes to a file it is a plain line a minute, so that the file
stays readable. Every line is flushed, so that ``tail -f`` shows it at once.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


def say(line: str = "") -> None:
    """Print a line on standard output, at once, above a progress bar that is there.

    Parameters
    ----------
    line : str

    Examples
    --------
    >>> say("Epoch 1/15")
    Epoch 1/15
    """
    with tqdm.external_write_mode(sys.stdout):
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Write a time as the article does.

    Parameters
    ----------
    seconds : float

    Examples
    --------
    >>> duration(1177.2)
    '19m 37s'
    """
    return f"{int(seconds // 60)}m {int(seconds % 60)}s"


class Progress:
    """How far an epoch has come: images, loss, images a second, and the time left.

    Parameters
    ----------
    title : str
        Such as ``"epoch 3/15"``.
    total : int
        Images in all.
    file : text file, optional
        By default standard error.
    clock : callable, optional
        Returns seconds.

    Examples
    --------
    >>> import io
    >>> seconds = iter([0.0, 30.0, 90.0])
    >>> out = io.StringIO()
    >>> with Progress("epoch 1/2", 1000, out, clock=lambda: next(seconds)) as progress:
    ...     progress.update(100, loss=2.3)
    ...     progress.update(100, loss=2.1)
    >>> print(out.getvalue().strip())
    epoch 1/2: 200 of 1,000 images, loss 2.1000, 2.2 images/s, 6m 0s left
    """

    def __init__(self, title: str, total: int, file: TextIO | None = None, clock=time.monotonic):
        self.title, self.total, self.file, self.clock = title, total, file or sys.stderr, clock
        self.done = 0
        self.start = self.last_line = clock()
        self.bar = None
        if self.file.isatty():
            has_width = _columns(self.file) > 0
            self.bar = tqdm(
                total=total,
                desc=title,
                file=self.file,
                leave=False,
                dynamic_ncols=has_width,
                # With no width or height at all tqdm would show nothing.
                ncols=None if has_width else 80,
                nrows=None if has_width else 24,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images{postfix}, "
                "{rate_noinv_fmt}, {remaining} left",
                unit=" images",
            )

    def update(self, images: int, loss: float | None = None) -> None:
        """Count some more images, and show it where it is time to."""
        self.done += images
        shown = "" if loss is None else f"loss {loss:.4f}"
        if self.bar is not None:
            self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(images)
            return
        now = self.clock()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            rate = self.done / (now - self.start)
            parts = [f"{self.done:,} of {self.total:,} images", shown, f"{rate:.1f} images/s"]
            parts.append(f"{duration((self.total - self.done) / rate)} left")
            print(f"{self.title}: {', '.join(filter(None, parts))}", file=self.file, flush=True)

    def __enter__(self) -> Progress:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def _columns(file: TextIO) -> int:
    """Return the width of a terminal, 0 if it does not say, as in containers and under ``script``."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):
        return 0
