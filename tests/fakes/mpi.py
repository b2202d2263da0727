"""Starts programs in several processes that MPI connects, over loopback and shared memory only."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which(
    "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpi4py and an MPI library: pip install mpi4py mpich",
)


def environment(**more):
    """Return one without a launcher's variables."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI", "SLURM"))}
    return own | {"PYTHONPATH": str(ROOT), "SCRATCHNET_THREADS": "1"} | more


def start(ranks, *arguments, **more):
    """Start a Python program on so many ranks."""
    command = [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, arguments)]
    pipes = {"stdout": more.pop("stdout", subprocess.PIPE), "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=more.pop("cwd", ROOT), env=environment(**more), **pipes)


def mpirun(ranks, *arguments, timeout=300, **more):
    """Run it to its end."""
    process = start(ranks, *arguments, **more)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)
