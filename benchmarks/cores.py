"""How far would a plan go on more cores than this machine has?

::

    python benchmarks/cores.py --workers 1 2 4 8 16 32 64

A plan is a list of array calls for each worker and each phase, decided before it runs
(``plans/cpu/calls.py``). So a plan for 16 workers can be made on two cores: here one thread runs the calls of
all workers, one after the other, and times each. These times are then replayed by as many simulated cores:

- A call first holds Python's global lock, for as long as NumPy takes for a call on one number; the rest of it
  runs beside the others' calls. Who wants the lock while another has it waits, first come first served, and
  must be woken up.
- At the end of a phase all wait for the last, and must be woken up, one after the other.

So the simulation knows of uneven shares, of the lock and of waking up. It does not know that cores share
caches, memory and a power budget: what it says is what the division of the work allows, at most. It is
checked against the real time with as many workers as this machine has cores.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from command import at_least_one, network_parser, print_result, task_of
from race import answering, apart, cores, machine
from report import heading, ms, table, where
from tqdm import tqdm

WORKERS = (1, 2, 4, 8, 16, 32, 64)
Phases = Sequence[Sequence[Sequence[float]]]  # seconds of each call of each worker of each phase


def simulate(phases: Phases, lock: float, wake: float) -> dict[str, float]:
    """Replay calls on as many cores as there are workers.

    Parameters
    ----------
    phases : list of list of list of float
        The seconds of each call of each worker of each phase.
    lock : float
        The seconds at the beginning of each call that hold the global lock.
    wake : float
        The seconds from when a thread is woken up to when it runs.

    Returns
    -------
    dict
        Seconds: ``total``; the mean over workers of ``computing``, of ``waiting`` for the lock, and of being
        ``idle`` at the ends of phases; and ``waking`` after them.

    Examples
    --------
    Two workers share the lock, so the second begins when the first has let go of it:

    >>> simulate([[[3.0], [3.0]]], lock=1.0, wake=0.0)["total"]
    4.0
    """
    now = computing = waiting = idle = waking = 0.0
    for phase in phases:
        ends, free = [now] * len(phase), now  # when each worker is done, and the lock is free
        queue = [(now, worker, 0) for worker, calls in enumerate(phase) if calls]
        heapq.heapify(queue)
        while queue:
            wanted, worker, k = heapq.heappop(queue)
            begin = wanted if wanted >= free else free + wake
            held = min(lock, phase[worker][k])
            free = begin + held
            end = begin + phase[worker][k]
            waiting += begin - wanted
            computing += end - begin
            ends[worker] = end
            if k + 1 < len(phase[worker]):
                heapq.heappush(queue, (end, worker, k + 1))
        last = max(ends, default=now)
        idle += sum(last - end for end in ends)
        woken = wake + lock * (len(phase) - 1) if len(phase) > 1 else 0.0  # each needs the lock to go on
        waking += woken
        now = last + woken
    workers = max((len(phase) for phase in phases), default=1)
    means = {"computing": computing / workers, "waiting": waiting / workers, "idle": idle / workers}
    return {"total": now, **means, "waking": waking}


def measure_cores(task: Mapping[str, Any], workers: Sequence[int], rounds: int) -> dict[str, Any]:
    """Record and replay a plan for each number of workers, each in a process of its own."""
    rows = []
    for number in tqdm(workers, unit="plan", file=sys.stderr):
        answer = apart("cores.py", {**task, "threads": number, "rounds": rounds, "real": number <= cores()})
        rows.append({"workers": number, **answer})
    return {"rows": rows, "task": dict(task), "rounds": rounds, **machine()}


# The worker's side


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Record a plan's calls and replay them; return the result, beside the real time where that is wanted."""
    from contenders import build_network, make_batch, versions_of_numpy

    from scratchnet import plans

    training = task["kind"] == "training"
    x, _ = make_batch(task)
    plan = plans.compile(build_network(task), x.shape, training=training)
    logits = plan.forward(x)

    def step() -> None:
        plan.forward(x)
        if training:
            plan.backward(logits)

    real = []
    for _ in range(task["rounds"] if task["real"] else 0):
        start = time.perf_counter()
        step()
        real.append(time.perf_counter() - start)
    phases, outside = record(step, task["rounds"])
    lock, wake = lock_seconds(), wake_seconds()
    result = simulate(phases, lock, wake)
    calls = sum(len(worker) for phase in phases for worker in phase)
    return {
        **{name: value + outside * (name == "total") for name, value in result.items()},
        **{"outside": outside, "phases": len(phases), "calls": calls, "lock": lock, "wake": wake},
        **{"real": min(real) if real else None, "versions": versions_of_numpy()},
    }


def record(step: Any, rounds: int) -> tuple[Phases, float]:
    """Return the least seconds of each call in ``step``, run by this thread alone, and of what is outside."""
    from scratchnet import workers

    runs: list[list[list[list[float]]]] = []
    outside = []

    def run_phases(phases: Any, ended: Any) -> None:
        for k, tasks in enumerate(phases):
            seconds: list[list[float]] = [[] for _ in tasks]
            for times, run in zip(seconds, tasks, strict=True):
                for function, arguments, options in run.__self__ if run is not None else ():
                    start = time.perf_counter()
                    function(*arguments, **options)
                    times.append(time.perf_counter() - start)
            runs[-1].append(seconds)
            ended(k)

    original, workers.run_phases = workers.run_phases, run_phases
    try:
        for _ in range(rounds):
            runs.append([])
            start = time.perf_counter()
            step()
            within = sum(t for phase in runs[-1] for worker in phase for t in worker)
            outside.append(time.perf_counter() - start - within)
    finally:
        workers.run_phases = original
    phases = [
        [[min(times) for times in zip(*calls, strict=True)] for calls in zip(*of_a_phase, strict=True)]
        for of_a_phase in zip(*runs, strict=True)
    ]
    calls = sum(len(worker) for phase in phases for worker in phase)
    return phases, max(0.0, min(outside) - calls * clock_seconds())


def clock_seconds() -> float:
    """Return what it costs to time a call."""
    start = time.perf_counter()
    for _ in range(10_000):
        time.perf_counter()
        time.perf_counter()
    return (time.perf_counter() - start) / 10_000


def lock_seconds() -> float:
    """Return the seconds that NumPy takes for a call on one number: little but what holds the lock."""
    import numpy as np

    a, out = np.ones((1, 1), np.float32), np.empty((1, 1), np.float32)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(1000):
            np.add(a, a, out=out)
        best = min(best, (time.perf_counter() - start) / 1000)
    return best


def wake_seconds() -> float:
    """Return the seconds from a lock's release to when the thread that waits for it runs."""
    import threading

    there, back, times = threading.Lock(), threading.Lock(), []
    there.acquire()
    back.acquire()

    def answer() -> None:
        for _ in range(500):
            there.acquire()
            back.release()

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(500):
        start = time.perf_counter()
        there.release()
        back.acquire()
        times.append((time.perf_counter() - start) / 2)
    thread.join()
    return median(times)


# The table


def cores_table(result: Mapping[str, Any]) -> str:
    """Return the table."""
    rows, task = result["rows"], result["task"]
    alone = rows[0]["total"] * rows[0]["workers"] if rows[0]["workers"] == 1 else rows[0]["total"]

    def cells(row: Mapping[str, Any]) -> list[str]:
        total, speed_up = row["total"], alone / row["total"]
        lost = [f"{row[name] / total:.1%}" for name in ("waiting", "idle", "waking", "outside")]
        real, error = (
            ("", "") if row["real"] is None else (ms(row["real"]), f"{total / row['real'] - 1:+.1%}")
        )
        shares = [f"{speed_up:.2f}", f"{speed_up / row['workers']:.2f}"]
        return [
            str(row["workers"]),
            f"{row['calls']:,}",
            str(row["phases"]),
            ms(total),
            *shares,
            *lost,
            real,
            error,
        ]

    lines = [
        f"## More cores, simulated: {heading(task)}",
        "",
        *table(
            [
                "workers",
                "calls",
                "phases",
                "ms",
                "speed-up",
                "efficiency",
                "global lock",
                "idle",
                "waking up",
                "outside phases",
                "real ms",
                "error",
            ],
            [cells(row) for row in rows],
        ),
        "",
        "- Shares are of the time: of a worker's waiting for the global lock, for others at the end of a "
        "phase, for being woken up then; and of what is done outside phases, on one core.",
        f"- A call holds the lock for {1e6 * rows[0]['lock']:.2f} us, waking up takes "
        f"{1e6 * rows[0]['wake']:.0f} us; the least of {result['rounds']} rounds. Shared caches, "
        "memory and clock rates are not simulated.",
        f"- {rows[0]['versions']}; Python {result['python']}",
        *where(result, task["threads"]),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status."""
    parser = network_parser("training", 7, "Simulate a plan on more cores than there are.")
    parser.add_argument(
        "--inference", dest="kind", action="store_const", const="inference", help="not training"
    )
    parser.add_argument("--workers", nargs="+", type=at_least_one, default=list(WORKERS), metavar="N")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        answering(lambda answer: answer(**work(options.worker)))
        return 0
    return print_result(
        lambda: cores_table(measure_cores(task_of(options), options.workers, options.rounds)), options.output
    )


if __name__ == "__main__":
    sys.exit(main())
