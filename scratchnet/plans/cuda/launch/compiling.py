"""Compiling and caching of CUDA kernels, and the launch itself."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from scratchnet.backend import Array, BackendError, array_module, first_line

FOLDER = Path(__file__).parent.parent / "kernels"
# Without -use_fast_math, which approximates division and square root. CuPy itself adds -ftz=true, and that
# cannot be undone: on a GPU arithmetic takes and returns zeros in place of numbers below 1.2e-38.
OPTIONS = ("--std=c++17",)


def launch(
    file: str,
    name: str,
    macros: tuple[str, ...],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *arguments: Any,
) -> None:
    """Launch the kernel NAME of ``kernels/FILE.cu`` on the current stream.

    ``macros`` say which variant (see ``common.macros``), grid and block how many blocks and threads there are
    along x and y. Arguments are arrays, the first of them, and NumPy scalars of exactly the kernel's types;
    an int becomes an ``int`` of the kernel, and None a null pointer.
    """
    kernel(array_module(arguments[0]), file, name, macros)(grid, block, tuple(map(_passed, arguments)))


def _passed(argument: Any) -> Any:
    """Return an argument as a kernel takes it."""
    if argument is None:
        return np.uintp(0)
    return np.int32(argument) if isinstance(argument, int) else argument


def kernel(cupy: ModuleType, file: str, name: str, macros: tuple[str, ...]) -> Any:
    """Return one variant of a kernel for the current GPU, compiled at first use.

    BackendError is raised if it does not compile.
    """
    return _kernel(cupy, file, name, macros, cupy.cuda.runtime.getDevice())


@cache
def _kernel(cupy: ModuleType, file: str, name: str, macros: tuple[str, ...], device: int) -> Any:
    try:
        return module(cupy, file, macros, device).get_function(name)
    except Exception as error:
        if type(error).__name__ not in ("CompileException", "NVRTCError"):
            raise
        lines = str(error).splitlines()
        line = next((line.strip() for line in lines if "error" in line), first_line(error))
        version = cupy.cuda.runtime.runtimeGetVersion()
        raise BackendError(
            f"kernels/{file}.cu does not compile for this GPU (sm_{cupy.cuda.Device().compute_capability}, "
            f"CUDA {version // 1000}.{version % 1000 // 10}): {line}: use --engine layers, and report this "
            "sentence"
        ) from error


@cache
def module(cupy: ModuleType, file: str, macros: tuple[str, ...], device: int) -> Any:
    """Return all kernels of a file, compiled with these macros."""
    return cupy.RawModule(code=source(file), options=OPTIONS + macros, backend="nvrtc")


def source(name: str) -> str:
    """Return the CUDA source of ``kernels/NAME.cu``, with the headers that it includes in their places.

    It is one text, since CuPy caches compiled kernels by their text and would not notice a changed header.
    """
    lines = []
    for number, line in enumerate((FOLDER / f"{name}.cu").read_text(encoding="utf-8").splitlines(), 1):
        include = re.fullmatch(r'#include "(\w+\.cuh)"', line)
        if include:
            header = (FOLDER / include[1]).read_text(encoding="utf-8")
            line = f'#line 1 "{include[1]}"\n{header}\n#line {number + 1} "{name}.cu"'
        lines.append(line)
    return "\n".join([f'#line 1 "{name}.cu"', *lines, ""])


def address(array: Array) -> int:
    """Return where an array begins in device memory."""
    device_array: Any = array  # CuPy has no types
    return int(device_array.data.ptr)
