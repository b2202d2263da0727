"""Training, compiling and predicting for as long as it is told: nothing grows."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import numpy as np

from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import vgg11
from scratchnet.optim import SGD
from scratchnet.training import make_engine, predict
from tests.attack.registry import Tally, attack
from tests.fakes.runs import prepare

SETTLED = 0.3  # of the time: until then memory may grow, as allocators and caches fill
MEMORY = 24 << 20  # bytes that it may grow by afterwards: allocators are not exact


def memory() -> int:
    """Return what the process has in memory now, in bytes; 0 where that cannot be known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@attack("soak", f"no growth of threads and descriptors; memory within {MEMORY >> 20} MB", 3, 60.0)
def soak(tally: Tally) -> None:
    counts, begun, settled = None, None, 0
    while tally.goes_on():
        begun = begun or time.monotonic()
        with tally.case(f"round {tally.cases}", limit=120.0):
            once(tally, tally.cases)
        gc.collect()
        now = descriptors(), threading.active_count()
        if counts is None and (time.monotonic() - begun > SETTLED * tally.seconds or tally.cases > 30):
            counts, settled = now, memory()
        elif counts is not None and now != counts:
            tally.fail(f"round {tally.cases}: {now} descriptors and threads, where there were {counts}")
            counts = now
    grown = memory() - settled if settled else 0
    tally.outcomes["MB grown"] = grown >> 20
    tally.outcomes["threads"] = threading.active_count()
    if grown > MEMORY:
        tally.fail(f"{grown >> 20} MB more in memory at the end than after {SETTLED:.0%} of the time")


def once(tally: Tally, number: int) -> None:
    """Train and resume a run, compile plans for other shapes, predict from two threads, fail once."""
    folder = tally.folder / "run"
    trainer = prepare(folder, n=16, seed=number)
    trainer.observers = ()
    trainer.run.clear()
    trainer.run.write_config({})
    trainer.fit(1)
    again = prepare(folder, n=16, seed=number)
    again.observers = ()
    again.resume()
    again.fit(2)
    size = 32 + number % 3
    net = vgg11(10, size, width=0.0625, classifier_width=8, batch_norm=bool(number % 2), seed=number)
    engine, loss, optimizer = (
        make_engine(net),
        SoftmaxCrossEntropy(),
        SGD(net.parameters(), 0.01, momentum=0.9),
    )
    for n in (1, 2 + number % 3):
        x = np.ones((n, size, size, 3), "float32")
        if n == 1:
            net.eval()
            engine.forward(x)
            net.train()
            continue
        loss.forward(engine.forward(x), np.zeros(n, int))
        engine.backward(loss.backward())
        optimizer.step()
    threads = [
        threading.Thread(target=predict, args=(net, np.ones((2, size, size, 3), "float32"))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        engine.forward(np.ones((2, 5, 5, 3), "float32"))
    except ValueError:
        pass
