"""Kernels on the CPU: ``cupy.RawModule`` for the stand-in, made with a C++ compiler in place of NVRTC.

The very source that NVRTC compiles for a GPU is compiled here after ``cuda_emu.h``, which says what this
can and cannot show, and run by ``cuda_emu.cpp``. Arguments are checked as strictly as a GPU is blind: CuPy
passes on whatever bytes it gets, so a Python integer where a kernel takes an int would be a silent
error.

Compiled kernels are kept in ``__pycache__`` under the hash of all that went into them. With
``EMULATOR_SANITIZE=1`` in the environment they are compiled with the address and undefined-behaviour
sanitizers; Python must then have been started with their libraries loaded (see ``sanitized_environment``).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import cupy_stand_in
from tests.fakes.cuda_runtime import launch

HERE = Path(__file__).parent
BUILT = HERE / "__pycache__"
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')
SCALARS = {
    "float": (np.float32, ctypes.c_float),
    "int": (np.int32, ctypes.c_int),
    "long long": (np.int64, ctypes.c_longlong),
    "unsigned long long": (np.uint64, ctypes.c_ulonglong),
}
ELEMENTS = {
    "float": "float32",
    "double": "float64",
    "int": "int32",
    "long long": "int64",
    "unsigned char": "uint8",
}


class EmulatorError(RuntimeError):
    """A kernel went wrong in a way that the emulator noticed."""


class CompileException(EmulatorError):
    """What CuPy raises when NVRTC does not compile a kernel."""

    __module__ = "cupy.cuda.compiler"


class Order:
    """In which order threads run: the seed of the next launch's. Zero is first to last."""

    def __init__(self):
        self.set(1)

    def set(self, seed):
        """Begin a new row of seeds, or with 0 the plain order."""
        self._random = np.random.default_rng(seed) if seed else None

    def draw(self):
        """Return a seed for one launch."""
        return 0 if self._random is None else int(self._random.integers(1, 2**31))


order = Order()


class RawModule:
    """CuPy's class, as far as ``plans/cuda/launch/compiling.py`` uses it."""

    def __init__(self, *, code, options=(), backend="nvrtc"):
        if backend != "nvrtc":
            raise ValueError(f"the emulator stands for NVRTC, not for {backend!r}")
        self.kernels = {name: _parameters(text) for name, text in KERNEL.findall(code)}
        operand = "uint16" if "-DBF16" in options else "float32"
        self.elements = {**ELEMENTS, "operand": operand}
        self.library = ctypes.CDLL(str(_build(code, tuple(options), self.kernels)))

    def get_function(self, name):
        """Return a kernel; it is launched by calling it, ``kernel(grid, block, arguments)``."""
        parameters = self.kernels[name]
        function = getattr(self.library, f"launch_{name}")
        function.restype = ctypes.c_char_p
        sizes = ctypes.c_uint * 3

        def kernel(grid, block, arguments, only_block=-1):
            values = self._convert(name, parameters, arguments)
            grid, block = (sizes(*shape, *[1] * (3 - len(shape))) for shape in (grid, block))

            def run():
                wrong = function(grid, block, order.draw(), ctypes.c_longlong(only_block), *values)
                if wrong:
                    raise EmulatorError(f"{name}: {wrong.decode()}")

            launch(run)

        return kernel

    def _convert(self, name, parameters, arguments):
        """Return the arguments as C takes them, or say what a GPU would have misread."""
        if len(arguments) != len(parameters):
            raise TypeError(f"{name} takes {len(parameters)} arguments, not {len(arguments)}")
        values = []
        for (kind, parameter), argument in zip(parameters, arguments, strict=True):
            what = f"{name}, argument {parameter}"
            if not kind.endswith("*"):
                dtype, c = SCALARS[kind]
                if type(argument) is not dtype:
                    raise TypeError(
                        f"{what}: a kernel's {kind} must be np.{dtype.__name__}, not {argument!r}"
                    )
                values.append(c(argument.item()))
            elif isinstance(argument, np.uintp):
                if argument != 0:
                    raise TypeError(f"{what}: the only number that is a pointer is 0")
                values.append(ctypes.c_void_p(0))
            else:
                if not isinstance(argument, cupy_stand_in.ndarray):
                    raise TypeError(f"{what}: expected a device array, got {type(argument).__name__}")
                dtype = self.elements[kind.rstrip("*")]
                if argument.dtype != dtype or not argument.flags.c_contiguous:
                    raise TypeError(
                        f"{what}: expected contiguous {dtype}, got {argument.dtype} {argument.shape}"
                    )
                values.append(ctypes.c_void_p(argument._host.ctypes.data))
        return values


def _parameters(text):
    """Return [(type, name)] of a parameter list, types without const and __restrict__: "float*", "int"."""
    found = []
    for parameter in text.split(","):
        words = re.sub(r"\b(const|__restrict__)\b", "", parameter).replace("*", " * ").split()
        found.append((" ".join(words[:-1]).replace(" *", "*"), words[-1]))
    return found


def _build(code, options, kernels):
    """Compile, unless that was done before; return the path of the library."""
    sanitize = os.environ.get("EMULATOR_SANITIZE") == "1"
    flags = "-std=c++17 -O1 -fPIC -ffp-contract=off -fno-strict-aliasing -fvisibility=hidden -w".split()
    flags.append(f"-I{HERE}")
    if sanitize:
        flags += ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    macros = [option for option in options if option.startswith("-D")]
    text = "\n".join(['#include "cuda_emu.h"', code, *map(_launcher, kernels, kernels.values())])
    runtime = _compile(["-c"], flags, (HERE / "cuda_emu.cpp").read_text(), ".o")
    return _compile(["-shared"], flags + macros, text, ".so", [str(runtime)])


def _launcher(name, parameters):
    """Return the C++ that Python calls: it packs the arguments, and unpacks them for every thread."""
    names = ", ".join(parameter for _, parameter in parameters)
    fields = " ".join(f"{kind} {parameter};" for kind, parameter in parameters)
    listed = ", ".join(f"{kind} {parameter}" for kind, parameter in parameters)
    each = ", ".join(f"a.{parameter}" for _, parameter in parameters)
    return f"""
struct Arguments_{name} {{ {fields} }};
static void thread_{name}(const void* p) {{ auto& a = *(const Arguments_{name}*)p; {name}({each}); }}
extern "C" __attribute__((visibility("default"))) const char* launch_{name}(
    const unsigned* emu_grid, const unsigned* emu_block, unsigned emu_seed, long long emu_only, {listed}) {{
    Arguments_{name} arguments = {{{names}}};
    return emu::launch(emu_grid, emu_block, emu_seed, emu_only, thread_{name}, &arguments);
}}"""


def _compile(what, flags, text, suffix, objects=()):
    compiler = _compiler()
    header = (HERE / "cuda_emu.h").read_text()
    parts = [compiler, *what, *flags, text, header, *objects]
    path = BUILT / f"emulated-{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}{suffix}"
    if not path.exists():
        BUILT.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}{suffix}")
        command = [compiler, *what, *flags, "-x", "c++", "-", "-x", "none", *objects, "-o", str(unfinished)]
        plain = {
            name: value for name, value in os.environ.items() if name != "LD_PRELOAD"
        }  # no sanitizer in g++
        result = subprocess.run(command, input=text, text=True, capture_output=True, env=plain)
        if result.returncode:
            raise CompileException(f"the kernels do not compile:\n{result.stderr}")
        unfinished.replace(path)
    return path


@cache
def _compiler():
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("kernels are emulated with g++ on Linux, and it is not here")
    return compiler


def sanitized_environment():
    """Return the environment for a Python that runs kernels with the sanitizers: they are loaded first."""
    libraries = [
        subprocess.run(
            [_compiler(), f"-print-file-name={name}.so"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan", "libubsan")
    ]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip("g++ has no sanitizers here")
    return {
        **os.environ,
        "EMULATOR_SANITIZE": "1",
        "LD_PRELOAD": " ".join(libraries),
        # Python itself leaks; fibers return on other stacks than they were called on.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }
