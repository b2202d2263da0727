"""What to run the first time that scratchnet meets a GPU, or a GPU of another kind.

::

    python benchmarks/first_contact.py                  all steps, one after the other
    python benchmarks/first_contact.py smoke tests      some of them
    python benchmarks/first_contact.py --list           what they are

The most basic comes first. Each command runs in a process of its own, since one illegal access makes a
process useless; each step has eight minutes, after which what is left of it is stopped. An error ends its
command only. The page in ``results/`` is written after every command, with what it printed last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from command import Parser, above_zero
from gpu import driver
from race import HERE, machine
from report import save, table

MINUTES = 8.0  # of each step
LINES = 40  # of what a command printed, the last ones, on the page
ROOT = HERE.parent
PYTHON = sys.executable


class Command(NamedTuple):
    """A program to run."""

    title: str
    arguments: list[str]
    environment: dict[str, str] = {}


def tests(title: str, *arguments: str, **environment: str) -> Command:
    """Return the tests of some files on the GPU."""
    return Command(title, [PYTHON, "-m", "pytest", "-q", "-m", "gpu", *arguments], environment)


def sanitized(tool: str, *arguments: str) -> Command:
    """Return tests of kernels under a tool of compute-sanitizer, every array with its own allocation."""
    check = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    run = [PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no_pool", *arguments]
    return Command(f"{tool}: {' '.join(arguments)}", [*check, *run], {"PYTHONPATH": str(HERE)})


def steps(small: bool, data_dir: str, folder: str) -> dict[str, tuple[str, list[Command]]]:
    """Return all steps, in order: what each is for, and its commands, which may write into ``folder``."""
    work = [PYTHON, str(HERE / "first_contact_work.py"), *(["--small"] if small else [])]
    selfcheck = [PYTHON, "-m", "scratchnet.plans.cuda.selfcheck"]
    cifar = [PYTHON, "examples/train_cifar.py", "--backend", "cupy", "--data-dir", data_dir]
    kernels = "tests/plans/cuda/launch"
    layers = ("layers", "doctor", "gradcheck", "test_inspection.py")
    return {
        "device": (
            "what there is, and the self-check",
            [
                Command("nvidia-smi", ["nvidia-smi"]),
                Command("CuPy", [PYTHON, "-c", "import cupy; cupy.show_config()"]),
                *(Command(f"self-check, {p}", [*selfcheck, p]) for p in ("fp32", "tf32", "bf16")),
            ],
        ),
        "smoke": ("products, a graph, steps launched and replayed", [Command("smoke", [*work, "smoke"])]),
        "tests": (
            "the tests that a GPU can run",
            [
                tests("kernels", kernels),
                tests("plans and training", "tests/plans/cuda", "tests/training", f"--ignore={kernels}"),
                tests("layers, doctor, gradient checks", *(f"tests/{name}" for name in layers)),
                tests("the rest", "tests", *(f"--ignore=tests/{n}" for n in (*layers, "plans", "training"))),
            ],
        ),
        "demo": (
            "the demo",
            [
                Command("demo", [*cifar, "--demo", "--run-dir", f"{folder}/demo"]),
                Command(
                    "its network",
                    [
                        PYTHON,
                        "examples/evaluate.py",
                        f"{folder}/demo/best.safetensors",
                        "--data",
                        "shapes10",
                        "--backend",
                        "cupy",
                    ],
                ),
            ],
        ),  # fmt: skip
        "sanitizer": (
            "accesses out of bounds, and races in shared memory",
            [
                sanitized("memcheck", kernels),
                sanitized("racecheck", *(f"{kernels}/test_{n}.py" for n in ("norm", "mask", "softmax"))),
            ],
        ),
        "sweep": (
            "milliseconds per step by column buffer and grid",
            [Command(f"sweep, {p}", [*work, "sweep", p]) for p in ("tf32", "bf16", "fp32")],
        ),
        "speed": (
            "next to PyTorch",
            [
                Command(
                    "training, VGG16-BN, batch 512",
                    [PYTHON, "benchmarks/gpu.py", "--only", "training", "vgg16-bn", "512", "--minutes", "7"],
                )
            ],
        ),
        "cifar": (
            "15 epochs of CIFAR-10",
            [
                Command(
                    "VGG16-BN",
                    [
                        *cifar,
                        "--data",
                        "cifar10",
                        "--batch-norm",
                        "--lr",
                        "0.05",
                        "--epochs",
                        "15",
                        "--run-dir",
                        f"{folder}/cifar",
                    ],
                )
            ],
        ),  # fmt: skip
        "record": (
            "ten epochs next to PyTorch, the same images",
            [
                Command(
                    "record",
                    [
                        PYTHON,
                        "benchmarks/record.py",
                        "--seeds",
                        "1",
                        "--epochs",
                        "10",
                        "--data-dir",
                        data_dir,
                    ],
                )
            ],
        ),
    }


def run(command: Command, seconds: float) -> dict[str, Any]:
    """Run a command for so many seconds at most; return how it ended, and what it printed last."""
    if seconds < 1:
        return {"ended": "not run: its step's time was over", "seconds": 0.0, "output": ""}
    if shutil.which(command.arguments[0]) is None:
        return {"ended": f"not run: there is no {command.arguments[0]}", "seconds": 0.0, "output": ""}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
    paths = command.environment.get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command.arguments, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
            ended = "ok" if status == 0 else f"failed with status {status}"
            ended = f"ended by signal {-status}" if status < 0 else ended
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
        finally:
            stop(process)
        output.seek(0)
        lines = output.read().decode(errors="replace").replace("\r", "\n").splitlines()
    took = time.perf_counter() - start
    return {"ended": ended, "seconds": round(took, 1), "output": "\n".join(lines[-LINES:])}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # Windows has none; or they have ended
        process.kill()
    process.wait()


def contact(
    chosen: dict[str, tuple[str, list[Command]]], minutes: float, tell: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Run steps; after every command ``tell`` all results so far."""
    results: list[dict[str, Any]] = []
    for name, (_, commands) in chosen.items():
        until = time.monotonic() + 60 * minutes
        for command in commands:
            print(f"{name}: {command.title} ...", file=sys.stderr, flush=True)
            result = run(command, until - time.monotonic())
            print(f"{name}: {command.title}: {result['ended']}", file=sys.stderr, flush=True)
            results.append({"step": name, "title": command.title, "command": command.arguments, **result})
            tell(results)
    return results


def page(results: Sequence[dict[str, Any]], measured: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    rows = [[r["step"], r["title"], r["ended"], f"{r['seconds']:.1f}"] for r in results]
    lines = [
        f"# First contact with a GPU, {measured['date']}",
        "",
        *table(["step", "command", "how it ended", "s"], rows, left=3),
        "",
        f"- Driver {measured['driver']}; Python {measured['python']}; {measured['system']}",
        f"- `{measured['command']}`",
    ]
    for r in results:
        fence = "~~~~"
        shown = " ".join("python" if part == PYTHON else part for part in r["command"])
        lines += ["", f"## {r['step']}: {r['title']}", "", f"`{shown}`", "", fence, r["output"], fence]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; return 1 if a command failed."""
    parser = Parser(description="Run everything that the first contact with a GPU takes, step by step.")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="which of them (default all)")
    parser.add_argument("--list", action="store_true", help="print what they are, and stop")
    parser.add_argument(
        "--minutes", type=above_zero, default=MINUTES, help="for each step at most (%(default)g)"
    )
    parser.add_argument("--data-dir", default="data", help="of CIFAR-10 (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the page")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        every = steps(options.small, str(Path(options.data_dir).absolute()), folder)
        if options.list:
            print("\n".join(f"{name:10s} {text}" for name, (text, _) in every.items()))
            return 0
        if unknown := [name for name in options.steps if name not in every]:
            parser.error(f"there is no step {unknown[0]!r}, but {', '.join(every)}")
        measured = {**machine(), "driver": driver()}
        path = options.results / f"{measured['date']}-first-contact"
        options.results.mkdir(parents=True, exist_ok=True)

        def tell(results: list[dict[str, Any]]) -> None:
            save(json.dumps({"results": results, **measured}, indent=1) + "\n", path.with_suffix(".json"))
            save(page(results, measured), path.with_suffix(".md"))

        chosen = {name: every[name] for name in every if name in (options.steps or every)}
        try:
            results = contact(chosen, options.minutes, tell)
        except KeyboardInterrupt:
            print(f"stopped; what there is lies in {path.with_suffix('.md')}", file=sys.stderr)
            return 130
    print(path.with_suffix(".md"))
    return 0 if all(r["ended"] == "ok" for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
