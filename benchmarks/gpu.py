"""How fast is VGG16 on a GPU, next to PyTorch and to what the GPU can do?

::

    python benchmarks/gpu.py                    everything; prints one table, and writes it to results/
    python benchmarks/gpu.py --only 32 bf16     what has these words in its name; beside the day's others

A training step of VGG16 and VGG16-BN, and inference, at 32 and 224 pixels, in each precision. scratchnet
makes whole steps as CUDA graphs; PyTorch runs eagerly and compiled with CUDA graphs
(``mode="reduce-overhead"``), both channels last, at the same precision: ``fp32`` with TF32 switched off,
``tf32`` with it, ``bf16`` by autocast with weights in float32. Every contender works in a process of its own,
one after the other, on one batch that lies on the GPU; the losses of the first two steps (or the logits) must
agree.

The floor of a group of layers is the larger of two times: its FLOPs over the speed of a large matrix product,
and the bytes that it has to read and write (maps and weights once, in float32) over the speed of a copy. Both
speeds are measured beside it. The share of the floor says how much of the time could not be saved in any way
that keeps maps in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from command import Parser, at_least_one
from race import HERE, WorkerError, answering, apart, machine, numbers
from report import ms, save, table

CONTENDERS = {
    "scratchnet": "scratchnet",
    "channels_last": "PyTorch eager, channels last",
    "compile": "PyTorch compiled, CUDA graphs",
}
PRECISIONS = ("fp32", "tf32", "bf16")
AGREEMENT = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}  # of the first results, relative to the largest
BATCHES = {32: (128, 512, 1024), 224: (64,)}  # by the size of the images
WARM_UP = 5  # steps: launches, recording, replaying; PyTorch's compiler wants a few, too
TURNS, TURN = 5, 0.5  # how often, and seconds at least
MOST_STEPS = 1 << 20  # that could be made
REPEATS = 10  # of each group, to time it
LARGE = 8192  # rows and columns of the product that is the measure of speed
COPIED = 1 << 30  # bytes of the copy


def all_tasks() -> list[dict[str, Any]]:
    """Return everything that is measured."""
    return [
        {
            "kind": kind,
            "arch": "vgg16",
            "batch_norm": batch_norm,
            "image_size": size,
            "batch_size": batch,
            "precision": precision,
            "width": 1.0,
            "engine": "plan",
            "threads": 1,
        }
        for kind in ("training", "inference")
        for batch_norm in (False, True)
        for size, batches in BATCHES.items()
        for batch in batches
        for precision in PRECISIONS
    ]


def name_of(task: Mapping[str, Any]) -> str:
    """Name a task.

    Examples
    --------
    >>> name_of(all_tasks()[0])
    'training vgg16 32 px batch 128 fp32'
    """
    norm = "-bn" if task["batch_norm"] else ""
    return (
        f"{task['kind']} {task['arch']}{norm} {task['image_size']} px batch {task['batch_size']} "
        f"{task['precision']}"
    )


def chosen(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the tasks that have all these words in their names.

    Examples
    --------
    >>> len(chosen(["training", "224"])), len(chosen([]))
    (6, 48)
    """
    return [task for task in all_tasks() if set(words) <= set(name_of(task).split())]


# Measuring


def measure(task: Mapping[str, Any], contenders: Sequence[str], worker: Callable = apart) -> dict[str, Any]:
    """Let the contenders work, one after the other.

    Returns
    -------
    dict
        ``task``, ``contenders`` (what ``work`` answers of each), ``remarks`` on those that were left out.

    Raises
    ------
    WorkerError
        If scratchnet cannot take part.
    """
    measured, remarks = {}, []
    for contender in contenders:
        try:
            answer = worker("gpu.py", {**task, "contender": contender})
            ours = measured.get("scratchnet", answer)
            check_agreement(ours["first"], answer["first"], AGREEMENT[task["precision"]])
            measured[contender] = answer
        except WorkerError as error:
            if contender == "scratchnet":
                raise WorkerError(f"{name_of(task)}: {error}") from error
            remarks.append(f"{name_of(task)}: {CONTENDERS[contender]} left out: {error}")
    return {"task": dict(task), "contenders": measured, "remarks": remarks}


def check_agreement(ours: Sequence[float], theirs: Sequence[float], agreement: float) -> None:
    """Refuse a contender that has computed something else."""
    scale = max(map(abs, ours))
    far = max(abs(a - b) / scale for a, b in zip(ours, theirs, strict=True))
    if not far <= agreement:
        raise WorkerError(f"its first results differ by {far:.1e} of the largest, which is too much")


# The worker's side


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Build a contender and time it.

    Returns
    -------
    dict
        ``seconds`` of a step in each turn, ``first`` results, ``memory`` in MB, ``versions``, and of
        scratchnet ``groups`` and the GPU's ``speeds``.
    """
    build = build_scratchnet if task["contender"] == "scratchnet" else build_torch
    step, result, wait, told = build(task)
    first = []
    for k in range(WARM_UP):
        step()
        if k < 2:
            first += numbers(result())
    wait()
    seconds = []
    for _ in range(task.get("turns", TURNS)):
        steps, start = 0, time.perf_counter()
        while steps == 0 or time.perf_counter() - start < task.get("turn", TURN):
            for _ in range(max(1, steps)):  # doubled each time, since looking at the clock means to wait
                step()
            steps += max(1, steps)
            wait()
        seconds.append((time.perf_counter() - start) / steps)
    return {"seconds": seconds, "first": first[:64], **told()}


Built = tuple[Callable[[], None], Callable[[], Any], Callable[[], None], Callable[[], dict[str, Any]]]


def build_scratchnet(task: dict[str, Any]) -> Built:
    """Prepare scratchnet: what makes a step, returns its result, waits, and tells what there is to tell."""
    import numpy as np
    from contenders import LEARNING_RATE, MOMENTUM, build_network, make_batch

    from scratchnet import __version__, backend, losses, optim, plans

    device = backend.get("cupy")
    x, labels = make_batch(task)
    net = build_network(task).to(device)
    if task["kind"] == "training":
        from scratchnet.plans.cuda.training_step import TrainingSteps

        sgd = optim.SGD(net.parameters(), LEARNING_RATE, momentum=MOMENTUM)
        steps = TrainingSteps(net, sgd, losses.SoftmaxCrossEntropy(), len(x), task["precision"])
        steps.begin(np.full(MOST_STEPS, LEARNING_RATE, np.float32))
        there, before = (device.asarray(x), device.asarray(labels)), [0.0]

        def step() -> None:
            steps.step(len(x), *there)

        def result() -> float:
            before.append(steps.totals().loss)
            return (before[-1] - before[-2]) / len(x)

        def plan() -> Any:
            return steps.plan(len(x))

    else:
        inference, there = plans.compile(net, x.shape, precision=task["precision"]), device.asarray(x)
        latest = []

        def step() -> None:
            latest[:] = [inference.forward(there)]

        def result() -> np.ndarray:
            return device.to_numpy(latest[0])

        def plan() -> Any:
            return inference

    def told() -> dict[str, Any]:
        pool = device.xp.get_default_memory_pool()
        memory = pool.total_bytes() / 1e6
        plan().measure(task.get("repeats", REPEATS))
        return {
            "memory": memory,
            "versions": f"scratchnet {__version__}, CuPy {device.xp.__version__}, NumPy {np.__version__}",
            "device": device.device,
            "groups": groups_of(plan()),
            "speeds": speeds(device.xp, task),
        }

    return step, result, device.synchronize, told


def groups_of(plan: Any) -> list[dict[str, Any]]:
    """Return for each group of layers its seconds, FLOPs and bytes, forward and backward together."""
    groups = []
    for i, g in enumerate(plan.groups):
        seconds = {
            direction: plan.clock.seconds.get((i, direction, ""), 0.0)
            / max(1, plan.clock.runs.get(direction, 0))
            for direction in ("forward", "backward")
        }
        weights = sum(p.size for layer in g.layers for p in layer.parameters().values())
        maps = prod(g.input_shape) + prod(g.output_shape)
        # Forward reads x and W and writes y. Backward reads x, W and dy, and writes dx and dW.
        floats, passes = maps + weights, 1
        if plan.training:
            floats += 2 * prod(g.input_shape) + prod(g.output_shape) + 2 * weights
            passes = 3 if i else 2
            floats -= 0 if i else prod(g.input_shape)  # nobody asks for the image's gradient
        groups.append(
            {
                "name": g.name,
                "title": g.title,
                "seconds": seconds,
                "flops": 2 * passes * g.multiply_adds,
                "bytes": 4 * floats,
            }
        )
    return [group for group, g in zip(groups, plan.groups, strict=True) if g.kind != "flatten"]


def speeds(xp: Any, task: Mapping[str, Any]) -> dict[str, float]:
    """Measure the FLOPs a second of a large product, and the bytes a second of a copy (read and written)."""
    from scratchnet.plans.cuda.launch.operands import cast, operand_dtype
    from scratchnet.plans.cuda.matmul import Matmul

    precision, large, copied = task["precision"], task.get("large", LARGE), task.get("copied", COPIED)
    product, out = Matmul(xp, precision), xp.empty((large, large), "float32")
    a, b = (xp.zeros((large, large), operand_dtype(precision)) for _ in range(2))
    for matrix in (a, b):  # not zeros, with which a GPU needs less power and runs faster
        values = xp.asarray(random_matrix(large))
        cast(values, matrix)
    source, target = (xp.zeros(copied // 4, "float32") for _ in range(2))
    return {
        "flops": 2 * large**3 / quickest(xp, lambda: product(a, b, out)),
        "bytes": 2 * copied / quickest(xp, lambda: xp.copyto(target, source)),
    }


def random_matrix(large: int) -> Any:
    """Draw a matrix."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((large, large), dtype=np.float32)


def quickest(xp: Any, do: Callable[[], None], tries: int = 10) -> float:
    """Return the seconds of the quickest of some tries, by the GPU's clock."""
    seconds = []
    for _ in range(tries + 1):
        start, end = xp.cuda.Event(), xp.cuda.Event()
        start.record()
        do()
        end.record()
        end.synchronize()
        seconds.append(xp.cuda.get_elapsed_time(start, end) / 1e3)
    return min(seconds[1:])


def build_torch(task: dict[str, Any]) -> Built:
    """Prepare PyTorch, on a GPU (or, to try this program without one, on the CPU)."""
    import torch
    from contenders import LEARNING_RATE, MOMENTUM, build_network, channels_first, make_batch, torch_network

    where, precision = task.get("torch_device", "cuda"), task["precision"]
    if where == "cuda" and not torch.cuda.is_available():
        raise WorkerError("PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    training = task["kind"] == "training"
    x, labels = make_batch(task)
    x = torch.from_numpy(channels_first(x)).to(where).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels).to(where)
    net = torch_network(build_network(task)).to(where).to(memory_format=torch.channels_last).train(training)
    lower = torch.autocast(where, torch.bfloat16, enabled=precision == "bf16")
    forward = torch.compile(net, mode="reduce-overhead") if task["contender"] == "compile" else net
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, momentum=MOMENTUM, fused=where == "cuda")
    latest = []

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with lower:
            value = criterion(forward(x), labels)
        value.backward()
        optimizer.step()
        latest[:] = [value.detach()]

    def infer() -> None:
        with torch.inference_mode(), lower:
            latest[:] = [forward(x)]

    def result() -> Any:
        return latest[0].float().cpu().numpy()

    def wait() -> None:
        if where == "cuda":
            torch.cuda.synchronize()

    def told() -> dict[str, Any]:
        memory = torch.cuda.max_memory_reserved() / 1e6 if where == "cuda" else None
        versions = f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
        return {"memory": memory, "versions": versions}

    return (train if training else infer), result, wait, told


# The tables


def floor(group: Mapping[str, Any], speeds: Mapping[str, float]) -> float:
    """Return the seconds below which nobody comes.

    Examples
    --------
    >>> floor({"flops": 4e12, "bytes": 1e9}, {"flops": 1e12, "bytes": 1e12})
    4.0
    """
    return max(group["flops"] / speeds["flops"], group["bytes"] / speeds["bytes"])


def overview(results: Sequence[dict[str, Any]]) -> list[str]:
    """Write the one table: images a second of everybody, the ratio, memory, and the share of the floor."""
    rows = []
    for result in results:
        task, contenders = result["task"], result["contenders"]
        seconds = {name: median(contender["seconds"]) for name, contender in contenders.items()}
        ours = seconds["scratchnet"]
        rivals = [seconds[name] for name in seconds if name != "scratchnet"]
        ratio = f"**{min(rivals) / ours:.2f}**" if rivals else ""
        own = contenders["scratchnet"]
        least = sum(floor(group, own["speeds"]) for group in own["groups"])
        rows.append(
            [
                name_of(task),
                *(
                    f"{task['batch_size'] / seconds[name]:,.0f}" if name in seconds else ""
                    for name in CONTENDERS
                ),
                ratio,
                f"{own['memory']:,.0f}",
                f"{least / ours:.0%}",
            ]
        )
    titles = ["", *(f"{title}, images/s" for title in CONTENDERS.values())]
    return table([*titles, "times the best", "our memory, MB", "share of the floor"], rows)


def by_layer(result: dict[str, Any]) -> list[str]:
    """Write where the time of one task goes."""
    own = result["contenders"]["scratchnet"]
    rows = []
    for group in own["groups"]:
        seconds, least = group["seconds"], floor(group, own["speeds"])
        total = sum(seconds.values())
        limit = "products" if least == group["flops"] / own["speeds"]["flops"] else "bytes"
        rows.append(
            [
                f"{group['name']} {group['title']}",
                limit,
                ms(seconds["forward"]),
                ms(seconds["backward"]),
                ms(least),
                f"{least / total:.0%}" if total else "",
            ]
        )
    titles = ["group", "limit", "ms forward", "ms backward", "floor ms", "share of the floor"]
    speeds = own["speeds"]
    return [
        f"### {name_of(result['task'])}",
        "",
        *table(titles, rows, left=2),
        "",
        f"- Groups launched one by one; products at {speeds['flops'] / 1e12:.1f} TFLOP/s, copies at "
        f"{speeds['bytes'] / 1e12:.2f} TB/s, both measured",
    ]


def page(measured: dict[str, Any]) -> str:
    """Write everything."""
    results = measured["results"]
    own = [result["contenders"]["scratchnet"] for result in results]
    versions = dict.fromkeys(c["versions"] for result in results for c in result["contenders"].values())
    detailed = [r for r in results if r["task"]["batch_size"] in (512, 64)]
    lines = [
        f"# VGG16 on {own[0]['device']}",
        "",
        *overview(results),
        "",
        f"- Medians of {TURNS} turns of at least {TURN:g} s, after {WARM_UP} steps to warm up",
        *(f"- {remark}" for result in results for remark in result["remarks"]),
        f"- {'; '.join(versions)}; Python {measured['python']}; {measured['system']}; driver "
        f"{measured['driver']}; {measured['date']}",
        f"- `{measured['command']}`",
        "",
        "## Where the time goes",
        *(line for result in detailed for line in ("", *by_layer(result))),
    ]
    return "\n".join(lines) + "\n"


def keep(result: dict[str, Any], path: Path) -> str:
    """Write a result beside those that this day has already, so that a run may go on another time.

    Returns the page of all of them.
    """
    data, name = path.with_suffix(".json"), name_of(result["task"])
    before = json.loads(data.read_text(encoding="utf-8"))["results"] if data.exists() else []
    results = [other for other in before if name_of(other["task"]) != name] + [result]
    order = [name_of(task) for task in all_tasks()]
    results.sort(key=lambda other: order.index(name_of(other["task"])))
    measured = {"results": results, "driver": driver(), **machine()}
    text = page(measured)
    save(json.dumps(measured, indent=1) + "\n", data)
    save(text, path.with_suffix(".md"))
    return text


def driver() -> str:
    """Return the version of NVIDIA's driver, and the clocks that it lets the GPU have."""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
        return done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    parser = Parser(description="Time VGG16 on a GPU next to PyTorch.")
    words = "what has all of these in its name"
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help=words)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--turns", type=at_least_one, default=TURNS, help="of measuring (%(default)s)")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        answering(lambda answer: answer(**work(options.worker)))
        return 0
    tasks = chosen(options.only)
    if not tasks:
        parser.error(f"nothing has all of {' '.join(options.only)} in its name")
    if "scratchnet" not in options.contenders:
        parser.error("scratchnet has to take part")
    contenders = [name for name in CONTENDERS if name in options.contenders]

    from tqdm import tqdm

    from scratchnet import backend

    try:
        backend.get("cupy")
        path = HERE / "results" / f"{machine()['date']}-gpu"
        for task in tqdm(tasks, unit="", file=sys.stderr):
            text = keep(measure({**task, "turns": options.turns}, contenders), path)
    except (WorkerError, backend.BackendError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
