"""Training: the loop, who is told how it goes, and what it leaves on disk."""

from scratchnet.training.console import Console
from scratchnet.training.engine import make_engine
from scratchnet.training.evaluation import confusion_matrix, evaluate, predict
from scratchnet.training.finite import NotFinite
from scratchnet.training.observers import Observer
from scratchnet.training.rundir import RunDirectory, RunError
from scratchnet.training.trainer import Trainer

__all__ = [
    "Console",
    "NotFinite",
    "Observer",
    "RunDirectory",
    "RunError",
    "Trainer",
    "confusion_matrix",
    "evaluate",
    "make_engine",
    "predict",
]
