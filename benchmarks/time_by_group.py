"""Where does the time of a training step go?

::

    python benchmarks/time_by_group.py

A plan computes a few layers together, as a group, and times each group. The tables add

- GFLOP/s by definition: two operations for each multiply-add in the layer's definition, in the forward pass
  and for each of the two gradients, whatever the algorithm really does;
- the multiply-adds of the matrix products that the plan really makes, transforms included;
- the floor: the time that those would take at this machine's speed with all workers at once, in products that
  stay in the cache; and its share of the measured time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from command import network_parser, print_result, task_of
from race import answering, apart, machine
from report import heading, ms, table, where

SHAPES = (36, 64, 128), (36, 128, 64)  # of the stacks of matrices whose product is the measure of speed
REPEATS, TRIES = 20, 15
WARM_UP = 2


def measure_groups(task: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Train for some steps in a process of its own.

    Returns
    -------
    dict
        ``groups``, each with ``name``, ``title``, ``algorithm``, multiply-adds of all passes by
        ``definition`` and ``phases``; these with ``pass``, ``name``, ``seconds`` and the multiply-adds of
        ``products``. Then the seconds of ``optimizer`` and ``total``, ``peak`` in multiply-adds per second,
        and the machine.
    """
    answer = apart("time_by_group.py", {**task, "steps": steps})
    return {**answer, "task": dict(task), "steps": steps, **machine()}


# The worker's side


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Train, and return what was measured."""
    from contenders import versions_of_numpy

    plan, runs = train(task)
    fast = faster_half(runs)

    groups = []
    for i, (group, kernel) in enumerate(zip(plan.groups, plan.kernels, strict=True)):
        passes = {"forward": plan._weights[i] + plan._forward[i], "backward": plan._backward[i]}
        groups.append(
            {
                "name": group.name,
                "title": group.title,
                "algorithm": kernel.algorithm,
                "definition": group.multiply_adds * (3 if i else 2),  # forward, dW, and dx but for the first
                "phases": [
                    {
                        "pass": direction,
                        "name": name,
                        "seconds": fmean(run["phases"].get((i, direction, name), 0.0) for run in fast),
                        "products": made,
                    }
                    for direction, phases in passes.items()
                    for name, made in products_of(phases).items()
                ],
            }
        )
    return {
        "groups": groups,
        "optimizer": fmean(run["optimizer"] for run in fast),
        "total": fmean(run["total"] for run in fast),
        "averaged": len(fast),
        "peak": peak_speed(task["threads"]),
        "versions": versions_of_numpy(),
    }


def train(task: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Return a plan, and for each step its seconds in total, in the optimizer, and in each phase."""
    from contenders import LEARNING_RATE, MOMENTUM, build_network, make_batch

    from scratchnet import losses, optim, plans

    x, labels = make_batch(task)
    net = build_network(task)
    plan = plans.compile(net, x.shape, training=True)
    loss, optimizer = losses.SoftmaxCrossEntropy(), optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM)
    runs = []
    for _ in range(WARM_UP + task["steps"]):
        plan.clock.reset()
        start = time.perf_counter()
        loss.forward(plan.forward(x), labels)
        plan.backward(loss.backward())
        before = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        runs.append({"total": end - start, "optimizer": end - before, "phases": dict(plan.clock.seconds)})
    return plan, runs[WARM_UP:]


def products_of(phases: Sequence[Any]) -> dict[str, int]:
    """Count the multiply-adds of the matrix products of each phase: K for each number of a result."""
    import numpy as np

    made: dict[str, int] = {}
    for phase in phases:
        if any(phase.workers) and not phase.for_input_gradient:  # which training does not need
            calls = [call for worker in phase.workers for call in worker if call[0] is np.matmul]
            count = sum(out["out"].size * operands[0].shape[-1] for _, operands, out in calls)
            made[phase.name] = made.get(phase.name, 0) + count
    return made


def faster_half(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the faster half of the steps: in the others the machine was busy with something else.

    Examples
    --------
    >>> faster_half([{"total": 3.0}, {"total": 1.0}, {"total": 2.0}])
    [{'total': 1.0}, {'total': 2.0}]
    """
    return sorted(runs, key=lambda run: run["total"])[: (len(runs) + 1) // 2]


def peak_speed(threads: int) -> float:
    """Return the most multiply-adds per second of all workers together, in products within the cache."""
    import numpy as np

    from scratchnet import workers

    def repeat(a: Any, b: Any, out: Any) -> None:
        for _ in range(REPEATS):
            np.matmul(a, b, out=out)

    tasks = []
    for _ in range(threads):
        a, b = (np.ones(shape, np.float32) for shape in SHAPES)
        tasks.append(lambda a=a, b=b, out=a @ b: repeat(a, b, out))
    best = float("inf")
    with workers.one_blas_thread():
        for _ in range(TRIES):
            start = time.perf_counter()
            workers.run_parallel(tasks)
            best = min(best, time.perf_counter() - start)
    (stack, M, K), N = SHAPES[0], SHAPES[1][-1]
    return threads * REPEATS * stack * M * K * N / best


# The table


def groups_table(result: dict[str, Any]) -> str:
    """Return the tables by group and by phase."""
    groups, total, peak, sgd = (result[name] for name in ("groups", "total", "peak", "optimizer"))
    phases = [phase for group in groups for phase in group["phases"]]
    definition = sum(group["definition"] for group in groups)
    within, made = (sum(phase[name] for phase in phases) for name in ("seconds", "products"))
    outside = total - within - sgd

    def columns(seconds: float, made: int) -> list[str]:
        """Return share of the step, multiply-adds made, floor, and floor / time."""
        arithmetic = [f"{made / 1e6:,.0f}", ms(made / peak), f"{made / peak / seconds:.0%}"]
        return [f"{seconds / total:.1%}", *(arithmetic if made else [""] * 3)]

    def row(name: str, phases: Sequence[dict[str, Any]], definition: int) -> list[str]:
        forward, backward = (
            sum(phase["seconds"] for phase in phases if phase["pass"] == direction)
            for direction in ("forward", "backward")
        )
        speed = f"{2 * definition / (forward + backward) / 1e9:.0f}" if definition else ""
        share, *rest = columns(forward + backward, sum(phase["products"] for phase in phases))
        return [name, ms(forward), ms(backward), share, speed, *rest]

    share, *rest = columns(total, made)
    task = result["task"]
    lines = [
        f"## Where the time goes: {heading(task)}",
        "",
        *table(
            ["group", "ms forward", "ms backward", "share", "GFLOP/s", *ARITHMETIC],
            [
                *(row(name_of(g), g["phases"], g["definition"]) for g in groups if g["phases"]),
                row("all groups", phases, definition),
                ["SGD", ms(sgd), "", *columns(sgd, 0)[:1], *[""] * 4],
                ["loss, and between the groups", ms(outside), "", *columns(outside, 0)[:1], *[""] * 4],
                ["**a step**", ms(total), "", share, f"{2 * definition / total / 1e9:.0f}", *rest],
            ],
        ),
        "",
        *table(
            ["algorithm, pass, phase", "ms", "share", *ARITHMETIC],
            [[name, ms(seconds), *columns(seconds, made)] for name, seconds, made in by_phase(groups)],
        ),
        "",
        f"Of {ms(total)} ms per step the matrix products would take {ms(made / peak)} ms "
        f"({made / peak / total:.0%}) at {2 * peak / 1e9:.0f} GFLOP/s, which this machine reaches in "
        f"products of stacks {SHAPES[0]} x {SHAPES[1]}. That leaves {ms(total - made / peak)} ms: "
        f"{ms(within - made / peak)} ms within the groups, {ms(sgd)} ms in SGD, and {ms(outside)} ms in the "
        "loss and between the groups.",
        "",
        f"- Means of the faster {result['averaged']} of {result['steps']} steps, after {WARM_UP} to warm up",
        f"- {result['versions']}; Python {result['python']}",
        *where(result, task["threads"]),
    ]
    return "\n".join(lines)


ARITHMETIC = ["M multiply-adds made", "floor ms", "floor / time"]


def name_of(group: dict[str, Any]) -> str:
    """Name a group by its layers and its algorithm."""
    return ", ".join(filter(None, [f"{group['name']} {group['title']}", group["algorithm"]]))


def by_phase(groups: Sequence[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """Add up seconds and multiply-adds by algorithm, pass and phase; the longest first."""
    sums: dict[str, tuple[float, int]] = {}
    for group in groups:
        for phase in group["phases"]:
            name = f"{group['algorithm'] or group['title']}, {phase['pass']}, {phase['name']}"
            seconds, made = sums.get(name, (0.0, 0))
            sums[name] = seconds + phase["seconds"], made + phase["products"]
    return sorted(((name, *sum_) for name, sum_ in sums.items()), key=lambda row: -row[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status."""
    parser = network_parser("training", 12, "Show where the time of a training step goes.")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        answering(lambda answer: answer(**work(options.worker)))
        return 0
    return print_result(
        lambda: groups_table(measure_groups(task_of(options), options.rounds)), options.output
    )


if __name__ == "__main__":
    sys.exit(main())
