"""Training: the loop, what it prints, and what it leaves on disk."""

from scratchnet.training.engine import make_engine
from scratchnet.training.evaluation import confusion_matrix, evaluate, predict
from scratchnet.training.rundir import RunDirectory, RunError
from scratchnet.training.trainer import NotFinite, Trainer

__all__ = [
    "NotFinite",
    "RunDirectory",
    "RunError",
    "Trainer",
    "confusion_matrix",
    "evaluate",
    "make_engine",
    "predict",
]
