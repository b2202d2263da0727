"""What a GPU can do: whether it runs plans, and in which precision.

==================  ================  =====================================================================
compute capability  as in             what runs
==================  ================  =====================================================================
8.0 and newer       Ampere, Hopper    plans in tf32 (unless told otherwise), fp32, bf16
7.5                 Turing            plans in fp32: its tensor cores know neither tf32 nor bfloat16
older               Pascal, Volta     no plan: the layers, with CuPy for CUDA 12
==================  ================  =====================================================================

PyTorch, too, convolves in tf32 on the GPUs that have it.
"""

from __future__ import annotations

from types import ModuleType

from scratchnet.backend import TURING, BackendError

AMPERE = 80


def default_precision(xp: ModuleType) -> str:
    """Return the fastest precision in which the current GPU trains as well as in float32."""
    return "tf32" if _capability(xp) >= AMPERE else "fp32"


def too_old(xp: ModuleType, precision: str) -> str:
    """Say so if the current GPU is too old for a plan at this precision; otherwise nothing."""
    found = _capability(xp)
    needed, what = (TURING, "plans need 7.5 (Turing)")
    if precision != "fp32" and found >= TURING:
        needed, what = (AMPERE, f"{precision} needs 8.0 (Ampere)")
    has = f"this GPU has compute capability {found // 10}.{found % 10}"
    return "" if found >= needed else f"{has}, and {what} or newer"


def require(xp: ModuleType, precision: str) -> None:
    """Raise BackendError on a GPU that is too old for a plan at this precision."""
    if reason := too_old(xp, precision):
        advice = "--engine layers" if _capability(xp) < TURING else "--precision fp32"
        raise BackendError(f"{reason}: use {advice}")


def _capability(xp: ModuleType) -> int:
    return int(xp.cuda.Device().compute_capability)
