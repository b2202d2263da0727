"""What a network thinks of pictures it does not learn from: loss, accuracy, probabilities, confusions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchnet import functional as F
from scratchnet.backend import array_module, to_numpy
from scratchnet.data import Loader
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.training.engine import make_engine
from scratchnet.training.log import Progress


class Evaluation(NamedTuple):
    """The result of ``evaluate``.

    Attributes
    ----------
    loss, accuracy : float
        Means over all images.
    predictions : array (N,)
        The likeliest class of each image, in the loader's order.
    labels : array (N,)
        The right ones.
    """

    loss: float
    accuracy: float
    predictions: np.ndarray
    labels: np.ndarray


def evaluate(
    net: Layer, loader: Loader, title: str = "evaluating", engine: Any = None, mirror: bool = False
) -> Evaluation:
    """Return mean loss and accuracy over a data set, in evaluation mode; the mode is restored afterwards.

    Parameters
    ----------
    net : Layer
    loader : Loader
        Without shuffling, if predictions are to be matched with images.
    title : str
        For the progress bar.
    engine : Layers or Plans, optional
        What computes the logits, see ``make_engine``; by default a new one.
    mirror : bool
        Take the mean of the logits of each picture and of its mirror image (Krizhevsky et al. 2012, sec. 4.1,
        average over ten crops and reflections).

    Returns
    -------
    Evaluation

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> loader = Loader(np.zeros((4, 32, 32, 3), np.uint8), np.arange(4), batch_size=3, shuffle=False)
    >>> print(f"{evaluate(net, loader).accuracy:.2f}")
    0.25
    """
    if not loader.n_samples:
        raise ValueError("there are no images to evaluate on")
    was_training = net.training
    net.eval()
    loss, predictions, labels = 0.0, [], []
    criterion, engine = SoftmaxCrossEntropy(), engine or make_engine(net)
    try:
        with Progress(title, loader.n_samples) as progress:
            for x, y in loader.epoch(0):
                logits = _logits(engine, net.backend.asarray(x), mirror)
                loss += float(criterion.forward(logits, y)) * len(y)
                predictions.append(to_numpy(logits.argmax(axis=1)))
                labels.append(y)
                progress.update(len(y))
    finally:
        net.train(was_training)
    guessed, right = np.concatenate(predictions), np.concatenate(labels)
    return Evaluation(loss / len(right), float((guessed == right).mean()), guessed, right)


def _logits(engine: Any, x: Any, mirror: bool) -> Any:
    logits = engine.forward(x)
    if not mirror:
        return logits
    mirrored = array_module(x).ascontiguousarray(x[:, :, ::-1])
    return 0.5 * (logits + engine.forward(mirrored))


def predict(net: Layer, x: np.ndarray, engine: Any = None, mirror: bool = False) -> np.ndarray:
    """Return the probabilities of each class, in evaluation mode; the mode is restored afterwards.

    Parameters
    ----------
    net : Layer
    x : array (N, H, W, 3)
        Normalised pictures, on the host.
    engine : Layers or Plans, optional
        What computes, see ``make_engine``; by default the layers, which need no preparation.
    mirror : bool
        As for ``evaluate``.

    Returns
    -------
    numpy array (N, K)

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> p = predict(net, np.zeros((2, 32, 32, 3), "float32"))
    >>> p.shape, p.sum(axis=1).round(4).tolist()
    ((2, 10), [1.0, 1.0])
    """
    was_training = net.training
    net.eval()
    try:
        return to_numpy(F.softmax(_logits(engine or net, net.backend.asarray(x), mirror)))
    finally:
        net.train(was_training)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Count how often each class (row) was taken for each (column).

    Parameters
    ----------
    labels, predictions : integer array (N,)
    num_classes : int

    Examples
    --------
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=2)
    array([[1, 1],
           [0, 1]])
    """
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, -1)


def confusion_table(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Write a confusion matrix as text, with the accuracy of each class.

    Parameters
    ----------
    matrix : integer array (K, K)
        From ``confusion_matrix``.
    class_names : sequence of str

    Examples
    --------
    >>> print(confusion_table(np.array([[8, 2], [1, 9]]), ["cat", "dog"]))
    right \\ named   cat   dog   accuracy
    cat               8     2     80.0 %
    dog               1     9     90.0 %
    """
    corner = "right \\ named"
    left = max(len(corner), *(len(name) for name in class_names))
    counts_width = [len(str(column.max())) for column in matrix.T]
    widths = [max(len(name), width) for name, width in zip(class_names, counts_width, strict=True)]
    titles = [name.rjust(width) for name, width in zip(class_names, widths, strict=True)]
    lines = ["   ".join([corner.ljust(left), *titles, "accuracy"])]
    for i, (name, row) in enumerate(zip(class_names, matrix, strict=True)):
        counts = [str(n).rjust(width) for n, width in zip(row, widths, strict=True)]
        share = f"{100 * row[i] / row.sum():.1f} %" if row.sum() else "-"
        lines.append("   ".join([name.ljust(left), *counts, share.rjust(len("accuracy"))]))
    return "\n".join(lines)
