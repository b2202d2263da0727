"""Runs that are killed, crowded, and short of a disk: what is left goes on to the same bits."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scratchnet import cli
from scratchnet.training import RunError
from tests.attack.registry import NotHere, Tally, attack
from tests.fakes import tiny
from tests.fakes.runs import FILES, bits
from tests.fakes.writes import dying_at, in_child, watched, within

EPOCHS = 2
GOES_ON = "0 dead ends, 0 wrong bits, 0 files left"


def a_whole_run(tally: Tally) -> dict[str, Any]:
    """What a run leaves that nothing disturbs."""
    if not hasattr(os, "fork"):
        raise NotHere("fork")
    tiny.go_on(tally.folder / "whole", EPOCHS)
    return bits(tally.folder / "whole")


def number_of_calls(folder: Path, **settings: Any) -> int:
    """How many events a run has at which it may die: before and after each call that writes."""
    count = itertools.count()
    with watched(within(folder, lambda *call: next(count))):
        tiny.go_on(folder, EPOCHS, **settings)
    return next(count)


def check(folder: Path, whole: dict[str, Any]) -> None:
    """Go on to the end, and compare."""
    tiny.go_on(folder, EPOCHS)
    assert bits(folder) == whole, "other bits than those of a run without interruption"
    assert set(os.listdir(folder)) == FILES, f"left: {set(os.listdir(folder)) - FILES}"


@attack("kill -9 at every call that writes", GOES_ON, 300, minutes=6.0)
def kills_at_calls(tally: Tally) -> None:
    """A run dies before or after one call, is resumed, dies again; some with states within the epoch."""
    whole = a_whole_run(tally)
    total = [number_of_calls(tally.folder / f"counted{k}", **how) for k, how in enumerate(HOW)]
    moments = [(k, m) for k, calls in enumerate(total) for m in range(calls)]
    tally.rng.shuffle(moments)
    for number, (k, moment) in enumerate(itertools.cycle(moments)):
        if not tally.goes_on():
            break
        folder = tally.folder / f"run{number}"
        with tally.case(f"{HOW[k]}, killed at call {moment} of {total[k]}", limit=60.0):
            for at in (moment, tally.rng.randrange(total[k]), tally.rng.randrange(60)):
                status, told = in_child(partial(die, folder, at, HOW[k]))
                assert status in (0, -signal.SIGKILL), told
                tally.outcomes["killed" if status else "ended before"] += 1
            check(folder, whole)
        shutil.rmtree(folder, ignore_errors=True)
    tally.outcomes["calls at which it may die"] = len(moments)


HOW: list[dict[str, Any]] = [{}, {"save_minutes": 0.0}]  # after epochs only; after every step, too


def die(folder: Path, moment: int, how: dict[str, Any]) -> None:
    with watched(within(folder, dying_at(moment))):
        tiny.go_on(folder, EPOCHS, **how)


@attack("kill -9 at random moments", GOES_ON + ", at most a step lost", 100, minutes=3.0)
def kills_at_random(tally: Tally) -> None:
    whole = a_whole_run(tally)
    began = time.monotonic()
    tiny.go_on(tally.folder / "timed", EPOCHS, save_minutes=0.0)
    length = time.monotonic() - began
    while tally.goes_on():
        folder = tally.folder / f"run{tally.cases}"
        with tally.case("killed at a random moment", limit=60.0):
            for _ in range(2):
                killed_after(1.5 * length * tally.rng.random(), folder, tally)
            check(folder, whole)
        shutil.rmtree(folder, ignore_errors=True)


def killed_after(seconds: float, folder: Path, tally: Tally) -> None:
    """A run that its parent kills; no more than the step that it was making is lost."""
    reader, writer = os.pipe()

    def run() -> None:
        class Steps(tiny.Observer):
            def on_step(self, trainer: Any, step: int) -> None:
                os.write(writer, b"s")

        tiny.go_on(folder, EPOCHS, save_minutes=0.0, observers=[Steps()])

    if not (child := os.fork()):
        os.close(reader)
        try:
            run()
        finally:
            os._exit(0)
    os.close(writer)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as told:
        steps = len(told.read())
    tally.outcomes["killed"] += 1
    if steps > 1 and folder.exists():
        trainer = tiny.prepare(folder)
        trainer.resume()
        done = len(trainer.log) * tiny.STEPS + trainer.batch
        assert done >= steps - 1, f"{steps} steps were made, and {done} are on disk"


@attack("two and three runs in one folder", "0 mixed, one sentence", 100, minutes=3.0)
def crowds(tally: Tally) -> None:
    """Processes begin at almost the same time; one trains, the others are refused or find it done."""
    whole = a_whole_run(tally)
    while tally.goes_on():
        folder, count = tally.folder / f"run{tally.cases}", tally.rng.choice((2, 3))
        delays = [0.05 * tally.rng.random() for _ in range(count)]
        with tally.case(f"{count} processes", limit=60.0):
            children = [started(folder, delay) for delay in delays]
            ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            assert set(ended) <= {0, 2} and 0 in ended, f"statuses {ended}"
            tally.outcomes["refused"] += ended.count(2)
            tally.outcomes["trained, or found it done"] += ended.count(0)
            assert bits(folder) == whole
            assert set(os.listdir(folder)) == FILES
        shutil.rmtree(folder, ignore_errors=True)


def started(folder: Path, delay: float) -> int:
    """Fork a process that trains after some seconds; it ends with 0, with 2 if it was refused, or with 1."""
    if child := os.fork():
        return child
    status = 1
    try:
        time.sleep(delay)
        tiny.go_on(folder, EPOCHS)
        status = 0
    except RunError as error:
        refused = ("is in use by process", "holds another run than this trainer's")
        status = 2 if any(words in str(error) for words in refused) and "\n" not in str(error) else 1
    finally:
        os._exit(status)
    return 0


# Disks


def full(call: str, path: str, *more: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", path)


def read_only(call: str, path: str, *more: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system", path)


def broken(call: str, path: str, *more: Any) -> None:
    raise OSError(errno.EIO, "Input/output error", path)


FAULTS: dict[str, tuple[Callable[..., None], set[str]]] = {
    "full disk": (full, {"write", "open", "mkdir"}),
    "read-only": (read_only, {"open", "rename", "replace", "mkdir", "unlink", "remove", "chmod"}),
    "broken disk": (broken, {"write", "fsync", "replace"}),
}


@attack(
    "full, read-only, broken disks; vanished folders; limits", "status 2, last state whole", 50, minutes=3.0
)
def disks(tally: Tally) -> None:
    whole = a_whole_run(tally)
    total = number_of_calls(tally.folder / "counted", save_minutes=0.0)
    while tally.goes_on():
        folder, fault = (
            tally.folder / f"run{tally.cases}",
            tally.rng.choice([*FAULTS, "vanished", "file size"]),
        )
        moment = tally.rng.randrange(total)
        with tally.case(f"{fault} from call {moment} of {total}", limit=60.0):
            status, told = in_child(partial(cli.run, partial(suffer, folder, fault, moment)))
            assert status in (0, 2), f"status {status}: {told}"
            tally.outcomes[f"{fault}: status {status}"] += 1
            check(folder, whole)
        shutil.rmtree(folder, ignore_errors=True)


def suffer(folder: Path, fault: str, moment: int) -> None:
    """A run whose disk fails from some call on."""
    if fault == "file size":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = random.Random(moment).randrange(100, 20_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        tiny.go_on(folder, EPOCHS, save_minutes=0.0)
        return
    count, rename = itertools.count(), os.rename

    def hook(call: str, path: str, *more: Any) -> None:
        if next(count) < moment or call == "done":
            return
        if fault == "vanished":
            if os.path.isdir(folder):
                rename(folder, f"{folder}-gone")
            return
        fail, calls = FAULTS[fault]
        if call in calls:
            fail(call, path, *more)

    with watched(within(folder, hook)):
        tiny.go_on(folder, EPOCHS, save_minutes=0.0)
