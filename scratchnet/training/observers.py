"""Observers: what is told how training goes, and changes nothing about it.

The progress bar (``console.py``), the doctor (``scratchnet.doctor``) and whatever a user wants to plot are
observers. The trainer knows this class and none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scratchnet.training.trainer import Trainer


class EpochTotals(NamedTuple):
    """What has been added up since an epoch began.

    Attributes
    ----------
    loss : float
        The sum of the losses of all images.
    correct : int
        How many images had their largest logit at their label.
    images : int
    """

    loss: float = 0.0
    correct: int = 0
    images: int = 0

    def plus(self, loss: float, correct: int, images: int) -> EpochTotals:
        """Return them with one more batch, of this mean loss."""
        return EpochTotals(self.loss + loss * images, self.correct + correct, self.images + images)

    @property
    def means(self) -> tuple[float, float]:
        """The mean loss, and the share of images that were named correctly."""
        return self.loss / self.images, self.correct / self.images


NOTHING = EpochTotals()


class Observer:
    """Base class of observers: every method does nothing until a subclass says otherwise.

    Steps and epochs are counted from 0, over the whole run.

    Examples
    --------
    >>> class Losses(Observer):
    ...     def __init__(self):
    ...         self.values = []
    ...
    ...     def on_loss(self, trainer, step, loss):
    ...         self.values.append(loss)
    """

    def on_begin(self, trainer: Trainer, epochs: int) -> None:
        """Take note that training begins, until so many epochs are done."""

    def on_resume(self, trainer: Trainer) -> None:
        """Take note that ``trainer.log`` and the weights are now those of an earlier run."""

    def on_notice(self, trainer: Trainer, sentence: str) -> None:
        """Take note of what a reader of the log should know, such as that other bits may follow."""

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        """Take note that an epoch begins."""

    def on_loss(self, trainer: Trainer, step: int, loss: float) -> None:
        """Take note of a batch's loss, before the backward pass; not with ``trainer.device_epochs``."""

    def on_step(self, trainer: Trainer, step: int) -> None:
        """Take note of a step, or on a GPU of some; ``trainer.totals`` is that of the epoch so far."""

    def on_validation_begin(self, trainer: Trainer, epoch: int) -> None:
        """Take note that all steps of the epoch are done, and ``trainer.totals`` complete."""

    def on_validation_step(self, trainer: Trainer, images: int) -> None:
        """Take note that so many more validation images were looked at."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, row: dict[str, float]) -> None:
        """Take note of the epoch's row of ``trainer.log``; everything is on disk."""

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        """Take note that training stops by an error, or by Ctrl-C."""

    def on_end(self, trainer: Trainer) -> None:
        """Take note that all epochs are done."""
