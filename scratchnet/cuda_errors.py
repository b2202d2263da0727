"""Errors of CUDA that CuPy raises while something is computed: what they mean, where, and what to do.

A GPU computes later than Python calls it, so an error shows at whatever waits for it next; and once a kernel
has failed, CUDA refuses everything else that this process asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from scratchnet.backend import ELSEWHERE, BackendError, exclusively_used, first_line

# Parts of the names of errors after which nothing more can be computed in this process.
LOST = (
    "illegaladdress", "launchfail", "misalignedaddress", "illegalinstruction", "invalidpc", "assert",
    "invalidaddressspace", "hardwarestackerror", "launchtimeout", "eccuncorrectable",
)  # fmt: skip
BLOCKING = "CUDA_LAUNCH_BLOCKING"  # in the environment: with 1 every launch waits, and raises its own errors


def explain(error: BaseException, where: str = "") -> BackendError | None:
    """Translate an error of CUDA; return None for any other error, and where only memory was missing.

    Parameters
    ----------
    error : exception
    where : str
        What was being computed, as in ``"features.0 (Conv2d), forward"``.

    Examples
    --------
    >>> explain(ValueError("no error of CUDA")) is None
    True
    """
    library = type(error).__module__.split(".")[0]
    if library not in ("cupy", "cupy_backends") or isinstance(error, MemoryError):
        return None
    line, at = first_line(error), f"{where}: " if where else ""
    if exclusively_used(error):
        return BackendError(f"{at}the GPU is in use by a process that shares it with no other: {ELSEWHERE}")
    name = line.split(":")[0].replace("_", "").lower()
    if not any(lost in name for lost in LOST):
        return BackendError(f"{at}CUDA reports an error ({line}): check nvidia-smi")
    lost = "what was in its memory is lost, what is on disk is not"
    if is_blocking():
        return BackendError(
            f"{at}the GPU failed ({line}); {lost}: go on with --engine layers, and report this sentence"
        )
    noticed = f", noticed at {where}" if where else ""
    return BackendError(
        f"the GPU failed ({line}){noticed}; {lost}: run it again with {BLOCKING}=1 to learn which layer "
        "failed, or with --engine layers"
    )


def is_blocking() -> bool:
    """Tell whether every launch waits, so that an error names the layer which made it.

    Examples
    --------
    >>> is_blocking() == (os.environ.get("CUDA_LAUNCH_BLOCKING") == "1")
    True
    """
    return os.environ.get(BLOCKING) == "1"


@contextmanager
def explained(where: str = "") -> Iterator[None]:
    """Let errors of CUDA that are raised in this context be BackendErrors, which say where.

    Parameters
    ----------
    where : str
        As for ``explain``; a BackendError that is raised here gets it, too.

    Examples
    --------
    >>> with explained("features.0 (Conv2d), forward"):
    ...     raise BackendError("cuBLAS reports error 13: the GPU failed")
    Traceback (most recent call last):
    scratchnet.backend.BackendError: features.0 (Conv2d), forward: cuBLAS reports error 13: the GPU failed
    """
    try:
        yield
    except BackendError as error:
        if not where:
            raise
        raise BackendError(f"{where}: {error}") from error.__cause__
    except Exception as error:
        translated = explain(error, where)
        if translated is None:
            raise
        raise translated from error
