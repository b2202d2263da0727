"""Optimizers, and schedules of their learning rate.

=================  ================================================================
``base.py``        whose numbers are changed, in which spans, on which workers
``sgd.py``         stochastic gradient descent with momentum
``adamw.py``       Adam with decoupled weight decay
``schedules.py``   learning rates as functions of the step
=================  ================================================================
"""

from scratchnet.optim.adamw import AdamW
from scratchnet.optim.base import Optimizer, is_bias_or_norm
from scratchnet.optim.schedules import SCHEDULES, Constant, Cosine, OneCycle, Step, schedule
from scratchnet.optim.sgd import SGD

__all__ = ["SCHEDULES", "SGD", "AdamW", "Constant", "Cosine", "OneCycle", "Optimizer", "Step"]
__all__ += ["is_bias_or_norm", "schedule"]
