"""VGG16 from first principles, in NumPy and CuPy: no framework underneath, every gradient written by hand.

Submodules are imported at first use, so importing the package costs next to nothing:

>>> import scratchnet as sn
>>> sn.losses.SoftmaxCrossEntropy
<class 'scratchnet.losses.SoftmaxCrossEntropy'>
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for mypy, pyright and editors, which do not run __getattr__
    from . import (
        backend,
        checkpoint,
        cli,
        data,
        doctor,
        explain,
        functional,
        gradcheck,
        inspection,
        interop,
        layers,
        lessons,
        losses,
        models,
        optim,
        plans,
        report,
        training,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "backend",
    "checkpoint",
    "cli",
    "data",
    "doctor",
    "explain",
    "functional",
    "gradcheck",
    "inspection",
    "interop",
    "layers",
    "lessons",
    "losses",
    "models",
    "optim",
    "plans",
    "report",
    "training",
]


def __getattr__(name: str) -> Any:
    """Import a submodule at its first use (PEP 562)."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the submodules too, those not yet imported among them."""
    return sorted({*globals(), *__all__})
