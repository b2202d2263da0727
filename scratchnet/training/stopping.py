"""Ctrl-C and the signals that ask a process to end: noted, and obeyed after the step that is being made."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

# SIGTERM is what schedulers send before they kill, SIGHUP what a terminal sends when it is closed.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

# Under mpirun a Ctrl-C may arrive twice: from the terminal, and passed on
TWICE_SECONDS = 0.5


class Stopped(KeyboardInterrupt):
    """Training was asked to end. The message says what is done.

    Attributes
    ----------
    done : str
        How far it has come: "after 2 of 4 epochs".
    signal : int
        By which signal; a program ends with the status 128 + signal then.
    run : Path or None
        The run directory from which it can be resumed.

    Examples
    --------
    >>> Stopped("after 2 of 4 epochs", signal.SIGINT, Path("runs", "first")).args
    ('after 2 of 4 epochs; --resume --run-dir runs/first goes on from there',)
    """

    def __init__(self, done: str, number: int = signal.SIGINT, run: Path | None = None):
        super().__init__(done if run is None else f"{done}; --resume --run-dir {run} goes on from there")
        self.done, self.signal, self.run = done, int(number), run


class Stop:
    """Whether training was asked to end, and by which signal.

    >>> stop = Stop()
    >>> with stop.heeded():
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.signal == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at = 0.0
        self._speaks = True

    @contextmanager
    def heeded(self, speaks: bool = True) -> Iterator[Stop]:
        """Note signals within this context rather than obey them; the second one raises KeyboardInterrupt.

        The first one prints a line, where ``speaks``: of many processes one does.

        Those that the process ignores (``nohup``) stay ignored, and outside the main thread nothing changes.
        """
        before: dict[int, Any] = {}
        self._speaks = speaks
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if time.monotonic() - self._at < TWICE_SECONDS:
                return
            raise KeyboardInterrupt
        self.signal, self._at = number, time.monotonic()
        if not self._speaks:
            return
        with suppress(
            OSError, ValueError, AttributeError
        ):  # straight to the terminal: a print may be going on
            os.write(sys.stderr.fileno(), b"\nstopping after this step; once more stops at once\n")
