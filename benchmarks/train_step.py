"""How fast does scratchnet train, next to PyTorch on the same machine?

::

    pip install 'scratchnet[bench]'
    python benchmarks/train_step.py

Every contender is a process of its own that holds the same network, with the same initial weights, and the
same batch. The processes take turns, one training step at a time, so that whatever else the machine does
hits all of them alike; the ratio is taken within each round, and its median and range are what to quote.
Before anything is timed, the losses of the first two steps must agree: those of the second can only if both
sides computed the same gradients and made the same update.

One training step: forward, loss, backward without the gradient of the picture, SGD with momentum 0.9. Dropout
is off on both sides, since they would draw different masks.

Peak memory is what the operating system counted for each process (``ru_maxrss``: kilobytes on Linux, bytes on
macOS, nothing on Windows), libraries included. For that reason this process imports neither NumPy nor
PyTorch: a child begins with its parent's peak.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

NEEDS_TORCH = (
    "this benchmark compares with PyTorch, which is not installed: pip install 'scratchnet[bench]', or, for "
    "a build without CUDA, pip install torch --index-url https://download.pytorch.org/whl/cpu"
)
CONTENDERS = {
    "scratchnet": "scratchnet",
    "eager": "PyTorch eager, contiguous",
    "channels_last": "PyTorch eager, channels last",
    "compile": "PyTorch compiled, channels last",
}
LEARNING_RATE = 1e-3
MOMENTUM = 0.9
WARM_UP = 2  # steps; their losses are compared
AGREEMENT = 1e-3  # of the losses, relative


class WorkerError(RuntimeError):
    """A contender cannot take part. The message says why."""


# The two sides. Each function returns one that makes a training step and returns its loss, and the versions
# of what it computes with. Libraries are imported here, in the worker process, and nowhere else.


def build_network(task: dict[str, Any]) -> Any:
    """Build scratchnet's network for the task: both sides begin with its weights."""
    from scratchnet import models

    return models.VGG(
        task["arch"],
        num_classes=10,
        image_size=task["image_size"],
        batch_norm=task["batch_norm"],
        width=task["width"],
        dropout=0.0,
    )


def make_batch(task: dict[str, Any]) -> tuple[Any, Any]:
    """Draw the batch: pictures (N, H, W, 3), labels (N,)."""
    import numpy as np

    rng = np.random.default_rng(0)
    size = task["image_size"]
    x = rng.standard_normal((task["batch_size"], size, size, 3), dtype=np.float32)
    return x, rng.integers(0, 10, task["batch_size"])


def scratchnet_step(task: dict[str, Any]) -> tuple[Any, str]:
    """Prepare scratchnet, layer by layer or with a plan."""
    import numpy as np

    from scratchnet import __version__, losses, optim

    x, labels = make_batch(task)
    net = build_network(task)
    engine = net
    if task["engine"] == "plan":
        if importlib.util.find_spec("scratchnet.plans") is None:
            raise WorkerError("this scratchnet has no plans yet: use --engine layers")
        from scratchnet import plans

        engine = plans.compile(net, x.shape, training=True)
    loss = losses.SoftmaxCrossEntropy()
    optimizer = optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step() -> float:
        value = loss.forward(engine.forward(x), labels)
        engine.backward(loss.backward(), need_input_gradient=False)
        optimizer.step()
        return float(value)

    return step, f"scratchnet {__version__}, NumPy {np.__version__} ({blas()})"


def blas() -> str:
    """Name the library that NumPy's matrix products come from."""
    from threadpoolctl import threadpool_info

    libraries = [info for info in threadpool_info() if info["user_api"] == "blas"]
    return ", ".join(f"{info['internal_api']} {info['version']}" for info in libraries) or "BLAS unknown"


def torch_step(task: dict[str, Any]) -> tuple[Any, str]:
    """Prepare PyTorch: the same network out of its own layers."""
    import torch

    torch.set_num_threads(task["threads"])
    x, labels = make_batch(task)
    x, labels = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
    net = torch_network(build_network(task))
    if task["contender"] != "eager":  # compiled without it, PyTorch 2.13 computes wrong gradients
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    forward = torch.compile(net) if task["contender"] == "compile" else net
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        value = loss(forward(x), labels)
        value.backward()
        optimizer.step()
        return value.item()

    return step, f"PyTorch {torch.__version__}"


def torch_network(net: Any) -> Any:
    """Translate a scratchnet VGG, layer by layer, weights included.

    Weights: (KH, KW, C, O) to (O, C, KH, KW), and (in, out) to (out, in). PyTorch flattens a feature map in
    the order (c, h, w) and scratchnet in (h, w, c), so the feature map is turned before that.
    """
    import torch
    from torch import nn

    from scratchnet import layers

    class TurnAndFlatten(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1).flatten(1)

    def translate(layer: layers.Layer) -> nn.Module:
        match layer:
            case layers.Conv2d():
                module = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
                weight = layer.weight.data.transpose(3, 2, 0, 1)
            case layers.Linear():
                module = nn.Linear(layer.in_features, layer.out_features)
                weight = layer.weight.data.T
            case layers.BatchNorm2d():
                return nn.BatchNorm2d(layer.num_features)  # both begin with scale 1 and shift 0
            case layers.ReLU():
                return nn.ReLU(inplace=True)
            case layers.MaxPool2d():
                return nn.MaxPool2d(layer.kernel_size, layer.stride)
            case layers.Flatten():
                return TurnAndFlatten()
            case layers.Dropout(p=0.0):
                return nn.Identity()
            case _:
                raise TypeError(f"no translation for {layer}")
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(layer.bias.data))
        return module

    return nn.Sequential(*(translate(layer) for layer in net.layers))


# A worker answers with lines of JSON: first, unasked, with what it is and the losses of the warm-up, then to
# each line of its standard input with the seconds of one step and its peak memory so far.


def work(task: dict[str, Any]) -> None:
    """Be a worker process, until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        step, versions = (scratchnet_step if task["contender"] == "scratchnet" else torch_step)(task)
        answer(versions=versions, losses=[step() for _ in range(WARM_UP)])
        for _ in sys.stdin:
            start = time.perf_counter()
            step()
            answer(seconds=time.perf_counter() - start, memory=peak_memory())
    except Exception as error:  # whatever it is, the parent has to be told
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer(error=lines[0] if lines else type(error).__name__)


def peak_memory() -> float | None:
    """Return the largest amount of memory that this process ever held, in MB; None where nobody counts."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes on macOS, kilobytes elsewhere


class Worker:
    """A contender in a process of its own."""

    def __init__(self, contender: str, task: dict[str, Any]):
        threads = str(task["threads"])
        variables = ("SCRATCHNET_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        path = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            **dict.fromkeys(variables, threads),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),  # measure the tree that this file lies in
        }
        task = {**task, "contender": contender}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.seconds: list[float] = []
        self.memory: float | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def warm_up(self) -> None:
        """Wait for the warm-up, which is the first thing that a worker does."""
        first = self._read()
        self.versions, self.losses = first["versions"], first["losses"]

    def step(self) -> None:
        """Have it make one training step."""
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        result = self._read()
        self.seconds.append(result["seconds"])
        self.memory = result["memory"]

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"its process ended with status {self.process.wait()}, perhaps out of memory")
        result = json.loads(line)
        if "error" in result:
            raise WorkerError(result["error"])
        return result


def measure(task: dict[str, Any], rounds: int, compiled: bool) -> tuple[dict[str, Worker], list[str]]:
    """Let the contenders take turns.

    Returns
    -------
    workers : dict from contender to Worker, which has what was measured
    remarks : list of str
    """
    from tqdm import tqdm

    workers: dict[str, Worker] = {}
    remarks: list[str] = []
    with ExitStack() as stack, tqdm(total=len(CONTENDERS) + rounds, unit="", file=sys.stderr) as progress:
        for contender, title in CONTENDERS.items():
            progress.set_description(f"warm-up, {title}")
            if contender != "compile" or compiled:
                worker = stack.enter_context(Worker(contender, task))
                try:
                    worker.warm_up()
                    check_agreement(workers.get("scratchnet", worker), worker)
                    workers[contender] = worker
                except WorkerError as error:
                    if contender != "compile":
                        raise WorkerError(f"{title}: {error}") from error
                    # It needs a C++ compiler, for one; and what computes something else is no rival.
                    remarks.append(f"{title}: left out: {error}")
            progress.update()
        for n in range(rounds):
            progress.set_description(f"round {n + 1} of {rounds}")
            for worker in workers.values():
                time.sleep(0.1)  # threads of the one before may still spin, waiting for work
                worker.step()
            progress.update()
    return workers, remarks


def check_agreement(ours: Worker, rival: Worker) -> None:
    """Refuse to compare contenders that do not do the same work."""
    for loss, theirs in zip(ours.losses, rival.losses, strict=True):
        if not abs(loss - theirs) <= AGREEMENT * abs(theirs):
            raise WorkerError(
                f"its first losses are {rival.losses}, scratchnet's are {ours.losses}: not the same work, "
                "so there is nothing to compare"
            )


def report(task: dict[str, Any], workers: dict[str, Worker], remarks: list[str]) -> str:
    """Write what was measured, as Markdown."""
    ours = workers["scratchnet"]
    eager = [workers["eager"], workers["channels_last"]]
    rounds = len(ours.seconds)
    lines = [
        f"## A training step of {task['arch']}{' with batch normalisation' if task['batch_norm'] else ''}, "
        f"{task['image_size']} px, batch {task['batch_size']}, float32",
        "",
        "| | median ms | min | max | images/s | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for contender, worker in workers.items():
        title = CONTENDERS[contender] + (f", {task['engine']}" if worker is ours else "")
        milliseconds = [1e3 * f(worker.seconds) for f in (median, min, max)]
        memory = f"{worker.memory:.0f} MB" if worker.memory else "unknown"
        lines.append(
            f"| {title} | {' | '.join(f'{ms:.0f}' for ms in milliseconds)} | "
            f"{1e3 * task['batch_size'] / milliseconds[0]:.1f} | {memory} |"
        )
    best = [min(times) for times in zip(*(worker.seconds for worker in eager), strict=True)]
    lines += ["", speed_ratio("PyTorch eager, the better format of each round", ours.seconds, best)]
    if "compile" in workers:
        lines.append(speed_ratio("PyTorch compiled", ours.seconds, workers["compile"].seconds))
    if ours.memory:
        less = min(worker.memory for worker in eager)
        lines.append(
            f"- Peak memory against PyTorch eager, the thriftier format: **{ours.memory / less:.2f}**"
        )
    agreed = ", ".join(f"{loss:.4f}" for loss in ours.losses)
    lines += [
        f"- {rounds} round{'s' * (rounds > 1)} of alternating steps, after {WARM_UP} to warm up, whose "
        f"losses agree: {agreed}",
        *(f"- {remark}" for remark in remarks),
        f"- {ours.versions}; {eager[0].versions}; Python {platform.python_version()}",
        f"- {processor()}; {task['threads']} threads; {platform.system()}; {date.today()}",
        f"- `{' '.join(['python benchmarks/train_step.py', *sys.argv[1:]])}`",
    ]
    return "\n".join(lines)


def speed_ratio(rival: str, ours: list[float], theirs: list[float]) -> str:
    """Write how fast we are, as a share of the rival's speed, with the range over the rounds."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return f"- Speed against {rival}: **{median(ratios):.2f}** (from {min(ratios):.2f} to {max(ratios):.2f})"


def processor() -> str:
    """Name the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_least_one(text: str) -> int:
    """Read a whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above zero, not {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; return the exit status."""
    parser = argparse.ArgumentParser(description="Time training steps of scratchnet and PyTorch, in turns.")
    parser.add_argument(
        "--arch", default="vgg16", help="a name in scratchnet.models.ARCHITECTURES (%(default)s)"
    )
    parser.add_argument("--image-size", type=at_least_one, default=32, help="pixels (%(default)s)")
    parser.add_argument("--batch-size", type=at_least_one, default=128, help="images (%(default)s)")
    parser.add_argument("--batch-norm", action="store_true", help="with batch normalisation")
    parser.add_argument("--width", type=float, default=1.0, help="scales the channels (%(default)s)")
    parser.add_argument(
        "--rounds", type=at_least_one, default=9, help="steps of each contender (%(default)s)"
    )
    parser.add_argument("--engine", choices=("layers", "plan"), default="layers", help="(%(default)s)")
    parser.add_argument(
        "--threads", type=at_least_one, default=cores(), help="of each contender (%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="let torch.compile take part too, if it works")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table to this file too")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker)
        return 0
    if importlib.util.find_spec("torch") is None:
        print(NEEDS_TORCH, file=sys.stderr)
        return 2
    names = ("arch", "image_size", "batch_size", "batch_norm", "width", "engine", "threads")
    task = {name: getattr(options, name) for name in names}
    try:
        workers, remarks = measure(task, options.rounds, options.compile)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 2
    text = report(task, workers, remarks)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
