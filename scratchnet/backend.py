"""The array library that computes: NumPy on the CPU or CuPy on a GPU.

This is the one module that knows. Everything above asks ``array_module(x)`` for the library that made ``x``,
writes its array operations once, and so runs on both. CuPy is imported only when it is asked for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys
import warnings
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from scratchnet.cores import usable_cores

Array: TypeAlias = NDArray[Any]
"""An array of either library, in annotations: CuPy's arrays have the same methods, and CuPy has no types.

A function that takes anything NumPy can read says ``numpy.typing.ArrayLike``.
"""

ON_CPU = "use --backend numpy to compute on the CPU"
ELSEWHERE = "see nvidia-smi; wait, or choose another GPU by the environment variable CUDA_VISIBLE_DEVICES"
PACKAGES = "cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"  # they share one folder of modules
OLDEST_CUPY = 14  # older ones cannot bring CUDA's libraries along (their extra "ctk")
TURING = 75  # 7.5, the oldest compute capability for which CUDA 13 compiles


class BackendError(RuntimeError):
    """The array library that was asked for cannot compute here. The message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Backend:
    """An array library and the device on which it computes.

    Attributes
    ----------
    name : str
        ``"numpy"`` or ``"cupy"``.
    xp : module
        The array library itself: ``numpy`` or ``cupy``.
    device : str
        The device, in words.
    note : str
        Why ``"auto"`` did not take a CuPy that is installed; otherwise empty.

    Examples
    --------
    >>> numpy = get("numpy")
    >>> numpy.asarray([1.0, 2.0], dtype="float32")
    array([1., 2.], dtype=float32)
    """

    name: str
    xp: ModuleType
    device: str
    note: str = ""

    def asarray(self, x: ArrayLike, dtype: DTypeLike | None = None) -> Array:
        """Return an array of either backend, or what NumPy can read, as one of this, copied if it must be."""
        if array_module(x) is not self.xp:
            x = to_numpy(x)
        return self.xp.asarray(x, dtype=dtype)

    def to_numpy(self, x: ArrayLike) -> Array:
        """Return ``x`` as a NumPy array on the host."""
        return to_numpy(x)

    def synchronize(self) -> None:
        """Wait until everything that was started on the device has finished (at once on a CPU)."""
        if self.name == "cupy":
            self.xp.cuda.get_current_stream().synchronize()

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        return self  # a library cannot be copied, and a copied network computes on the same one

    def __reduce__(self) -> tuple[Any, ...]:
        return get, (self.name,)  # nor can it be pickled, but its name can

    def __str__(self) -> str:
        return f"{self.name} on {self.device}{self.note and f'; CuPy passed over: {self.note}'}"


def get(name: str | Backend = "auto") -> Backend:
    """Choose the array library.

    Parameters
    ----------
    name : {"numpy", "cupy", "auto"}
        ``"cupy"`` either works or raises; only ``"auto"`` may choose, and takes CuPy where it can compute. A
        ``Backend`` is returned as it is.

    Returns
    -------
    Backend

    Raises
    ------
    BackendError
        If CuPy was asked for and cannot compute here: it is not installed, broken or too old, there is no
        driver or one that is too old, there is no GPU, or the GPU is too old for this CuPy, in use by others,
        or fails a test product.

    Examples
    --------
    >>> get("numpy").name
    'numpy'
    """
    if isinstance(name, Backend):
        return name
    if name == "numpy":
        return Backend("numpy", np, _cpu())
    if name == "cupy":
        return _cupy()
    if name == "auto":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # CuPy warns about each library that it does not find
                return _cupy()
        except _NotInstalled:
            return get("numpy")
        except BackendError as error:
            reason = str(error).removesuffix(ON_CPU).removesuffix(", or ").removesuffix(": ")
            return replace(get("numpy"), note=reason)
    raise ValueError(f"backend must be 'numpy', 'cupy' or 'auto', not {name!r}")


def array_module(x: Any) -> ModuleType:
    """Return the library of an array: ``cupy`` for CuPy's arrays, ``numpy`` for everything else.

    Never imports CuPy: until it has been imported, nothing can be an array of it.

    Parameters
    ----------
    x : array or anything else

    Raises
    ------
    ValueError
        If it is a masked array: nothing here heeds masks.

    Examples
    --------
    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError("a mask would be ignored: x.filled(0) puts a value in its place")
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(x, getattr(cupy, "ndarray", ())) else np


def to_numpy(x: ArrayLike) -> Array:
    """Return ``x`` as a NumPy array on the host: a copy if it lies on a GPU, itself if it is one already.

    Parameters
    ----------
    x : array or sequence

    Examples
    --------
    >>> to_numpy([1, 2])
    array([1, 2])
    """
    xp = array_module(x)
    return np.asarray(x) if xp is np else xp.asnumpy(x)


@functools.cache
def _cpu() -> str:
    """Name the processor, the cores that this process may use, and NumPy."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or an architecture that does not say
    cores = usable_cores()
    return f"CPU ({model}, {cores} core{'s' if cores > 1 else ''}, NumPy {np.__version__})"


def _cupy() -> Backend:
    """Import CuPy, compute a small product with it, and say precisely what is wrong where that fails."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise _broken(f", since {error.name} is missing") from error
        if _packages():
            raise _broken(", since its files are missing, as after removing another CuPy package") from error
        raise _NotInstalled(
            "CuPy is not installed: install it with pip install 'cupy-cuda13x[ctk]' (NVIDIA driver 580 or "
            f"newer, GPU of 2018 or later) or 'cupy-cuda12x[ctk]' (older ones), or {ON_CPU}"
        ) from error
    except Exception as error:  # a clash of packages or a missing library can raise anything while importing
        # CuPy wraps what is wrong into a page of general advice.
        raise _broken(f" ({first_line(error.__cause__ or error)})") from error

    try:
        runtime = cupy.cuda.runtime
        driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except Exception as error:
        raise _broken(f" ({first_line(error)})") from error
    # CuPy raises the same error for a driver that is absent and one that is too old; the version tells which.
    if driver == 0:
        raise _unusable("CuPy is installed but this machine has no NVIDIA driver: install one")
    try:
        devices = runtime.getDeviceCount()
    except Exception as error:
        if "InsufficientDriver" in str(error):
            newer = f"update it to {'580' if built >= 13000 else '525'} or newer"
            other = f", or {_instead('cupy-cuda12x')}" if driver // 1000 == 12 < built // 1000 else ""
            raise _unusable(
                f"the NVIDIA driver is too old for this CuPy: it supports CUDA {_version(driver)}, CuPy was "
                f"built for {_version(built)}: {newer}{other}"
            ) from error
        if "NoDevice" not in str(error):
            raise _unusable(f"CUDA does not start ({first_line(error)}): check nvidia-smi") from error
        devices = 0
    if devices == 0:
        raise _unusable(
            "there is an NVIDIA driver but no GPU: check nvidia-smi and the environment variable "
            "CUDA_VISIBLE_DEVICES"
        )
    if int(cupy.__version__.split(".")[0]) < OLDEST_CUPY:
        upgrade = f"pip install --upgrade '{_package(built)}[ctk]'"
        raise _unusable(f"CuPy {cupy.__version__} is too old, {OLDEST_CUPY} is needed: {upgrade}")

    # A GPU that is counted may still lack the compiler (NVRTC), cuBLAS or memory: only computing shows it.
    try:
        device = runtime.getDevice()
        model = runtime.getDeviceProperties(device)["name"]
        model = model.decode() if isinstance(model, bytes) else model
        capability = int(cupy.cuda.Device().compute_capability)
        if capability < TURING and built >= 13000:
            raise _unusable(
                f"this GPU ({model}, compute capability {capability // 10}.{capability % 10}) is too old for "
                f"CUDA 13: {_instead('cupy-cuda12x')}"
            )
        twos = cupy.full((2, 2), 2, dtype=np.float32)
        total = float((twos @ twos + twos).sum())
    except BackendError:
        raise
    except Exception as error:
        if exclusively_used(error):
            raise _unusable(
                f"the GPU is in use by a process that shares it with no other: {ELSEWHERE}"
            ) from error
        if isinstance(error, MemoryError):
            raise _unusable(f"the GPU has no memory left, other processes hold it: {ELSEWHERE}") from error
        raise _unusable(
            f"there is a GPU but a test product on it fails ({type(error).__name__}: {first_line(error)}): "
            f"where a CUDA library is missing, pip install '{_package(built)}[ctk]'"
        ) from error
    if total != 40.0:
        what = f"there is a GPU but a test product on it is wrong (40 expected, got {total:g})"
        raise BackendError(f"{what}: {ON_CPU}")
    where = f"{model}, sm_{capability}, CUDA {_version(built)}, CuPy {cupy.__version__}"
    return Backend("cupy", cupy, f"GPU {device} ({where})")


class _NotInstalled(BackendError):
    """There is no CuPy, so that ``auto`` has nothing to say of it."""


def _packages() -> list[str]:
    """Return the CuPy packages that pip takes to be installed, whether or not their files are there."""
    found = []
    for name in PACKAGES:
        try:
            importlib.metadata.distribution(name)
            found.append(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def _package(built: int) -> str:
    """Return the package of a CuPy that was built for this version of CUDA."""
    return f"cupy-cuda{built // 1000}x"


def _instead(package: str) -> str:
    """Say how to put one CuPy package in the place of those that are installed."""
    remove = " ".join(name for name in _packages() if name != package)
    return f"{remove and f'pip uninstall -y {remove}, then '}pip install '{package}[ctk]'"


def _broken(reason: str) -> BackendError:
    found = _packages()
    again = "reinstall it"
    if len(found) > 1:
        remove = f"pip uninstall -y {' '.join(found)}"
        again = f"of {' and '.join(found)} keep one: {remove}, then pip install '{found[-1]}[ctk]'"
    elif found and found != ["cupy"]:  # which pip would compile from its source
        again = f"reinstall it by pip install --force-reinstall --no-deps {found[0]}"
    return _unusable(f"CuPy is installed but broken{reason}: {again}")


def _unusable(reason: str) -> BackendError:
    return BackendError(f"{reason}, or {ON_CPU}")


def exclusively_used(error: BaseException) -> bool:
    """Tell whether an error of CUDA means that another process has the GPU to itself.

    Parameters
    ----------
    error : exception

    Examples
    --------
    >>> exclusively_used(RuntimeError("cudaErrorDevicesUnavailable: all devices are busy"))
    True
    """
    return "DevicesUnavailable" in str(error) or "DEVICE_UNAVAILABLE" in str(error)


def _version(number: int) -> str:
    """Return a version as CUDA prints it: the number 12040 stands for 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def first_line(error: BaseException) -> str:
    """Return what an error says, without the rest of a longer text.

    Parameters
    ----------
    error : exception

    Examples
    --------
    >>> first_line(ImportError("libcublas.so.13: not found.\\n\\nIf you installed CuPy ..."))
    'libcublas.so.13: not found'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip("= \t*")]
    return lines[0].rstrip(".") if lines else type(error).__name__
