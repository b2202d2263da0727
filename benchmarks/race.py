"""Contenders that take turns, each in a process of its own, with the same work.

Every contender holds the same network, with the same weights, and the same batch. Before anything is timed,
what they compute must agree: the losses of the first two training steps (those of the second can only if both
sides computed the same gradients and made the same update), or the logits. Then they take turns, so that
whatever else the machine does affects all of them alike. A turn is one step, or as many as fill half a
second, and ratios are taken within each round of turns.

Peak memory is the largest resident set while a contender works, libraries included. Building it does not
count, as all of them are translated from scratchnet's network, which is gone by then; but only Linux can
reset the count, and elsewhere it is the peak of the process's whole life. (Windows counts nothing.)

This file and those that measure with it import neither NumPy nor PyTorch: on some systems a child starts with
its parent's peak. ``contenders.py`` does, in the worker processes.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WARM_UP = 2  # steps, whose results are compared
AGREEMENT = 1e-3  # of results, relative to the largest
TURN = 0.5  # least seconds of a turn
PAUSE = 0.1  # seconds between turns: the previous contender's threads may still spin, waiting for work

TITLES = {
    "scratchnet": "scratchnet",
    "eager": "PyTorch eager, contiguous",
    "channels_last": "PyTorch eager, channels last",
    "compile": "PyTorch compiled, channels last",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "dezero": "DeZero",
    "jax": "JAX",
    "fixed_batch": "one fixed batch",
    "loader": "batches from the loader",
}
PYTORCH = ["eager", "channels_last", "compile"]
NEEDS = {
    **dict.fromkeys(PYTORCH, ["torch"]),
    "onnxruntime": ["onnx", "onnxruntime"],
    "openvino": ["onnx", "openvino"],
    "dezero": ["dezero"],
    "jax": ["jax"],
}
WITHOUT_CUDA = (
    ", or, for a build without CUDA, pip install torch --index-url https://download.pytorch.org/whl/cpu"
)
# Each library's own switch for the instructions that it may use; ONNX Runtime and OpenVINO document none.
AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
WITHOUT_SWITCH = ("onnxruntime", "openvino", "dezero", "jax")
# They decide which kernels the libraries use, and how
SETTINGS_OF_KERNELS = (*AVX2, "NPY_DISABLE_CPU_FEATURES", "OPENBLAS_L2_SIZE")


class WorkerError(RuntimeError):
    """A contender cannot take part. The message says why."""


# The race


def measure(
    task: Mapping[str, Any], contenders: Sequence[str], rounds: int, progress: Any, compare: bool = True
) -> dict[str, Any]:
    """Let contenders take turns.

    Parameters
    ----------
    task : dict
        The input of ``contenders.py``: ``kind`` ("training" or "inference"), ``arch``, ``image_size``,
        ``batch_size``, ``batch_norm``, ``width``, ``engine``, ``threads``.
    contenders : list of str
        The others are compared with the first. One that cannot take part, or computes something else, is left
        out, with a remark.
    rounds : int
    progress : tqdm
        Shows the current stage, and is updated once per contender and once per round.
    compare : bool
        Whether the results of the warm-up must agree.

    Returns
    -------
    dict
        Only what JSON can hold; ``report.py`` makes a table of it.

    Raises
    ------
    WorkerError
        If the first contender fails, or none is left to compare it with.
    """
    first = contenders[0]
    workers: dict[str, Worker] = {}
    remarks: list[str] = []

    def leave_out(contender: str, error: WorkerError) -> None:
        if contender == first:
            raise WorkerError(f"{TITLES[contender]}: {error}") from error
        remarks.append(f"{TITLES[contender]}: left out: {error}")
        if contender in workers:
            workers.pop(contender).close()
        if len(remarks) == len(contenders) - 1:
            raise WorkerError(f"nothing to compare with: {'; '.join(remarks)}") from error

    installed = []
    for contender in contenders:
        try:
            check_installed(contender)
            installed.append(contender)
        except WorkerError as error:
            leave_out(contender, error)
    with ExitStack() as stack:
        for contender in installed:
            progress.set_description(f"warm-up, {TITLES[contender]}")
            worker = stack.enter_context(Worker(contender, task))
            try:
                worker.warm_up()
                if compare:
                    worker.difference = difference(workers.get(first, worker).first, worker.first)
                workers[contender] = worker
            except WorkerError as error:  # no C++ compiler, for one, or results that differ
                worker.close()
                leave_out(contender, error)
            progress.update()
        for n in range(rounds):
            progress.set_description(f"round {n + 1} of {rounds}")
            order = list(workers)
            for contender in order[n % len(order) :] + order[: n % len(order)]:
                time.sleep(PAUSE)
                try:
                    workers[contender].turn()
                except WorkerError as error:
                    leave_out(contender, error)
            progress.update()
    return {
        "task": dict(task),
        "contenders": {name: worker.measured() for name, worker in workers.items()},
        "remarks": remarks,
        **machine(),
    }


def check_installed(contender: str) -> None:
    """Refuse a contender whose libraries are not installed."""
    for library in NEEDS.get(contender, []):
        if importlib.util.find_spec(library) is None:
            advice = "pip install '.[bench]'" + WITHOUT_CUDA * (library == "torch")
            raise WorkerError(f"{library} is not installed: {advice}")


def difference(own: Sequence[float], rival: Sequence[float]) -> float:
    """Return the largest difference of two results, relative to the largest number, if they agree."""
    scale = max(map(abs, own))
    differences = [abs(a - b) / scale for a, b in zip(own, rival, strict=True)]
    if not all(d <= AGREEMENT for d in differences):  # NaN is not
        raise WorkerError(
            f"its first results begin with {listed(rival)}, scratchnet's with {listed(own)}: not the same "
            "work, so there is nothing to compare"
        )
    return max(differences)


def listed(numbers: Sequence[float]) -> str:
    """Return the first few numbers as text."""
    return ", ".join(f"{number:.4f}" for number in numbers[:4])


class Worker:
    """A contender in a process of its own."""

    def __init__(self, contender: str, task: Mapping[str, Any]):
        task = {**task, "contender": contender}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "contenders.py", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(task["threads"]),
        )
        self.seconds: list[float] = []
        self.memory: float | None = None
        self.difference: float | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def warm_up(self) -> None:
        """Wait for the warm-up, which a worker does first."""
        answer = self._read()
        self.versions, self.first = answer["versions"], answer["first"]

    def turn(self) -> None:
        """Have it take a turn."""
        try:
            self.process.stdin.write("turn\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        answer = self._read()
        self.seconds.append(answer["seconds"])
        self.memory = answer["memory"]

    def measured(self) -> dict[str, Any]:
        """Return seconds per step in each round, peak memory in MB, versions, and its agreement."""
        names = "seconds", "memory", "versions", "difference"
        return {**{name: getattr(self, name) for name in names}, "first": self.first[:WARM_UP]}

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"its process ended with status {self.process.wait()}, perhaps out of memory")
        return checked(json.loads(line))


def environment(threads: int) -> dict[str, str]:
    """Return a worker's environment: the number of threads, and the scratchnet beside this folder."""
    variables = ("SCRATCHNET_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    path = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **dict.fromkeys(variables, str(threads)),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }


def apart(program: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """Run a program of this folder with a task, in a process of its own, and return its one answer."""
    done = subprocess.run(
        [sys.executable, HERE / program, "--worker", json.dumps(dict(task))],
        capture_output=True,
        text=True,
        env=environment(task["threads"]),
        check=False,
    )
    if not done.stdout:
        said = done.stderr.strip().splitlines()[-1:]
        why = f": {said[0]}" if said else ", perhaps out of memory"
        raise WorkerError(f"its process ended with status {done.returncode}{why}")
    return checked(json.loads(done.stdout))


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a worker's answer, unless it is an error."""
    if "error" in answer:
        raise WorkerError(answer["error"])
    return answer


# The worker's side: it answers with lines of JSON. First come its versions and the results of the warm-up;
# then, for each line of standard input, the seconds of a step and its peak memory so far.


def work(build: Callable[[dict[str, Any]], tuple[Callable[[], Any], str]], task: dict[str, Any]) -> None:
    """Serve as a worker process until standard input ends.

    Parameters
    ----------
    build : callable
        From the task to a function that makes a step and returns its result, a number or an array, and the
        versions of what it computes with.
    task : dict
    """

    def serve(answer: Callable[..., None]) -> None:
        step, versions = build(task)
        answer(versions=versions, first=[number for _ in range(WARM_UP) for number in numbers(step())])
        gc.collect()
        forget_peak_memory()
        for _ in sys.stdin:
            steps, seconds, start = 0, 0.0, time.perf_counter()
            while seconds < TURN:
                step()
                steps += 1
                seconds = time.perf_counter() - start
            answer(seconds=seconds / steps, memory=peak_memory())

    answering(serve)


def answering(serve: Callable[[Callable[..., None]], None]) -> None:
    """Call ``serve(answer)``, where ``answer(name=value)`` writes a line of JSON; so does an error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the answers

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        serve(answer)
    except Exception as error:  # of any kind: the parent has to know
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer(error=lines[0] if lines else type(error).__name__)


def numbers(result: Any) -> list[float]:
    """Return the result of a step, a number or an array, as a flat list."""
    return result.ravel().tolist() if hasattr(result, "ravel") else [float(result)]


def forget_peak_memory() -> None:
    """Reset the peak, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass


def peak_memory() -> float | None:
    """Return the largest resident set of this process, in MB; None where the system does not count."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes on macOS


# The machine


def machine() -> dict[str, Any]:
    """Describe the machine, the date and the command."""
    return {
        "processor": processor(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "date": str(date.today()),
        "environment": {name: os.environ[name] for name in SETTINGS_OF_KERNELS if name in os.environ},
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def limited_to_avx2() -> dict[str, str]:
    """Return the environment in which libraries use no newer instructions than AVX2, NumPy included.

    NumPy's names of features have changed, so it is asked which of them it would use here.
    """
    code = (
        "from numpy._core._multiarray_umath import __cpu_dispatch__ as names, __cpu_features__ as on; "
        "print(*(name for name in names if name.startswith(('AVX512', 'X86_V4')) and on[name]))"
    )
    clean = {name: value for name, value in os.environ.items() if name != "NPY_DISABLE_CPU_FEATURES"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    newer = done.stdout.strip()
    return AVX2 | ({"NPY_DISABLE_CPU_FEATURES": newer} if newer else {})


def processor() -> str:
    """Name the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
