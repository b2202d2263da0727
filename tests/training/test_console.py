"""The console: a bar on a terminal, plain lines elsewhere."""

import io
import os
import re
import select
import struct
import sys
import time
from types import SimpleNamespace

import pytest

from scratchnet.training import console as training_console
from scratchnet.training.console import Progress

# Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Flushed(io.StringIO):
    """Remembers what had been flushed."""

    seen = ""

    def flush(self):
        self.seen = self.getvalue()


def test_off_a_terminal_progress_is_a_plain_line_a_minute_without_carriage_returns():
    out, clock = Flushed(), Clock()
    with Progress("epoch 3/15", 45_000, out, clock) as progress:
        for second in range(1, 151):
            clock.now = float(second)
            progress.update(100, loss=2.5 - second / 100)
    assert out.getvalue().splitlines() == [
        "epoch 3/15: 6,000 of 45,000 images, loss 1.9000, 100.0 images/s, 6m 30s left",
        "epoch 3/15: 12,000 of 45,000 images, loss 1.3000, 100.0 images/s, 5m 30s left",
    ]
    assert "\r" not in out.getvalue()
    assert out.seen == out.getvalue()


def test_off_a_terminal_an_epoch_of_less_than_a_minute_prints_nothing():
    out, clock = io.StringIO(), Clock()
    with Progress("epoch 1/2", 100, out, clock) as progress:
        clock.now = 59.0
        progress.update(100)
    assert out.getvalue() == ""


def test_on_a_terminal_progress_is_a_bar_with_loss_rate_and_time_left_that_goes_away():
    out = Terminal()
    with Progress("epoch 3/15", 1000, out) as progress:
        progress.bar.mininterval = 0
        for _ in range(4):
            time.sleep(0.01)
            progress.update(100, loss=1.2345)
    shown = out.getvalue()
    assert "\r" in shown and "\n" not in shown
    assert re.search(
        r"epoch 3/15:  40%\|.+\| 400/1000 images, loss 1\.2345, +\d+\.\d+ images/s, 00:0\d left", shown
    )
    assert shown.split("\r")[-2].strip() == "" or shown.endswith("\r")


@pytest.mark.parametrize("columns", [0, 60, 200])
def test_the_bar_is_as_wide_as_the_terminal_and_also_there_where_that_does_not_say(columns, monkeypatch):
    pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    with os.fdopen(terminal, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)  # tqdm asks only the standard streams for their size
        with Progress("epoch 1/1", 1000) as progress:
            progress.bar.mininterval = 0
            progress.update(500, loss=2.0)
    shown = b""
    while select.select([controller], [], [], 0.5)[0]:  # a read may return less than was written
        try:
            shown += os.read(controller, 10_000)
        except OSError:  # how Linux says that the other side is closed
            break
    os.close(controller)
    shown = shown.decode()
    assert "500/1000 images, loss 2.0000" in shown
    lines = [line for line in shown.split("\r") if "images" in line]  # not the blanks that wipe it out
    assert max(map(len, lines)) == pytest.approx(columns or 80, abs=2)


def test_the_bar_goes_away_when_training_stops_with_an_error():
    out = Terminal()
    with pytest.raises(ZeroDivisionError), Progress("epoch 1/1", 10, out):
        raise ZeroDivisionError
    assert out.getvalue().endswith("\r")


def test_every_line_of_the_log_is_flushed(monkeypatch):
    out = Flushed()
    monkeypatch.setattr(sys, "stdout", out)
    training_console.say("Epoch 1/15")
    assert out.seen == "Epoch 1/15\n"


def test_in_a_notebook_progress_is_a_bar(monkeypatch):
    """A notebook is told by its shell, which has a kernel; its standard error is no terminal."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with Progress("epoch 1/2", 1000) as progress:
        progress.update(100)
    assert "epoch 1/2" in out.getvalue() and "images" in out.getvalue()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert Progress("epoch 1/2", 1000).bar is None
