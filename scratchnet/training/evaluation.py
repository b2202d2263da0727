"""Evaluation: loss, accuracy, probabilities and confusions on images that a network does not learn from."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scratchnet import checks
from scratchnet import functional as F
from scratchnet.backend import Array, array_module, to_numpy
from scratchnet.data import Loader
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.tables import aligned
from scratchnet.training.alone import Alone
from scratchnet.training.engine import Layers, Plans, make_engine

VIEWS = (1, 2, 10)  # of how many views of each image the mean may be taken, see views_of


@dataclass
class _Shared:
    """Evaluations of one network that go on at the same time."""

    users: int
    modes: list[tuple[Layer, bool]]  # of the layers, before the first of them


_lock = threading.Lock()
_evaluations: weakref.WeakKeyDictionary[Layer, _Shared] = weakref.WeakKeyDictionary()


class Evaluation(NamedTuple):
    """The result of ``evaluate``.

    Attributes
    ----------
    loss, accuracy : float
        Means over all images.
    predictions : array (N,)
        The likeliest class of each image, in the loader's order.
    labels : array (N,)
        The correct ones.
    """

    loss: float
    accuracy: float
    predictions: np.ndarray
    labels: np.ndarray


def evaluate(
    net: Layer,
    loader: Loader,
    engine: Layers | Plans | None = None,
    views: int = 1,
    progress: Callable[[int], None] | None = None,
    parallel: Alone | None = None,
) -> Evaluation:
    """Return mean loss and accuracy over a data set, in evaluation mode; the mode is restored afterwards.

    Parameters
    ----------
    net : Layer
    loader : Loader
        Without shuffling, if predictions are to be matched with images.
    engine : Layers or Plans, optional
        What computes the logits, see ``make_engine``; by default a new one.
    views : {1, 2, 10}
        Take the mean of the logits of so many views of each image: 2 are the image and its mirror image,
        10 are these and four shifted pairs, see ``views_of``.
    progress : callable, optional
        Called after each batch with its number of images, such as a ``Progress``'s ``update``.
    parallel : Alone, optional
        As of ``Trainer``: among which processes the images are divided. All get the same result.

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
    criterion, engine, parallel = SoftmaxCrossEntropy(), engine or make_engine(net), parallel or Alone()
    loader, losses, predictions, labels = parallel.shard(loader), [], [], []
    with _evaluating(net, views):
        for batch, (x, y) in enumerate(loader.epoch(0)):
            if len(y):  # a shard may have none
                logits = _logits(engine, net.backend.asarray(x), views)
                losses.append(np.array([float(criterion.forward(logits, y)) * len(y)]))
                predictions.append(to_numpy(logits.argmax(axis=1)))
            else:
                losses.append(np.zeros(1))
                predictions.append(y)
            labels.append(y)
            if progress is not None:
                progress(loader.rows(batch).total)
    predicted, correct = (np.concatenate(parallel.gather(parts)) for parts in (predictions, labels))
    loss = sum(float(part) for parts in parallel.gather(losses) for part in parts)
    return Evaluation(loss / len(correct), float((predicted == correct).mean()), predicted, correct)


def views_of(x: Array) -> Iterator[Array]:
    """Yield ten views of each image: itself, shifted towards each of its corners, and all five mirrored.

    They are the ten crops of Krizhevsky et al. 2012, sec. 4.1, here out of an image with a border of a 32nd
    of its height. The border is zero, the mean colour, as in training (see ``data.Augmentation``).

    Both x and the views are (N, H, W, 3).

    >>> image = np.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    >>> itself, mirrored, lower_right, *others = views_of(image)
    >>> lower_right[0, :, :, 0]
    array([[0., 0.],
           [0., 1.]])
    """
    xp = array_module(x)
    _, H, W, _ = x.shape
    border = max(1, round(H / 32))
    yield x
    yield xp.ascontiguousarray(x[:, :, ::-1])
    bordered = xp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))  # (N, H + 2b, W + 2b, 3)
    for top in (0, 2 * border):
        for left in (0, 2 * border):
            shifted = bordered[:, top : top + H, left : left + W]
            yield xp.ascontiguousarray(shifted)
            yield xp.ascontiguousarray(shifted[:, :, ::-1])


@contextmanager
def _evaluating(net: Layer, views: int) -> Iterator[None]:
    """Put a network in evaluation mode; the last thread to leave restores each layer's own."""
    if not isinstance(views, Integral) or views not in VIEWS:
        raise ValueError(f"views must be one of {', '.join(map(str, VIEWS))}, not {checks.shown(views)}")
    with _lock:
        evaluation = _evaluations.setdefault(
            net, _Shared(0, [(part, part.training) for _, part in net.walk()])
        )
        evaluation.users += 1
        net.eval()
    try:
        yield
    finally:
        with _lock:
            evaluation.users -= 1
            if not evaluation.users:  # else another thread still evaluates the same network
                del _evaluations[net]
                for part, training in evaluation.modes:
                    part.training = training


def _logits(engine: Layer | Layers | Plans, x: Array, views: int) -> Array:
    """Return the mean over the views, (N, K)."""
    logits = engine.forward(x)
    for view in islice(views_of(x), 1, views):
        logits = logits + engine.forward(view)
    return logits / views if views > 1 else logits


def predict(net: Layer, x: np.ndarray, engine: Layers | Plans | None = None, views: int = 1) -> np.ndarray:
    """Return the probabilities of each class, in evaluation mode; the mode is restored afterwards.

    Parameters
    ----------
    net : Layer
    x : array (N, H, W, 3)
        Normalised images, on the host.
    engine : Layers or Plans, optional
        What computes, see ``make_engine``; by default the layers, which need no preparation.
    views : {1, 2, 10}
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
    with _evaluating(net, views):
        return to_numpy(F.softmax(_logits(engine or net, net.backend.asarray(x), views)))


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """Count how often each class (row) was taken for each (column).

    Parameters
    ----------
    labels, predictions : integer array (N,)
    num_classes : int

    Raises
    ------
    ValueError
        If they are not equally many whole numbers, or one is not a class.

    Examples
    --------
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=2)
    array([[1, 1],
           [0, 1]])
    """
    checks.whole(1, num_classes=num_classes)
    both = []
    for name, given in (("labels", labels), ("predictions", predictions)):
        values = to_numpy(given) if array_module(given) is not np else np.asarray(given)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise ValueError(f"{name} must be whole numbers (N,), not {values.dtype} {values.shape}")
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            lowest, highest = values.min(), values.max()
            raise ValueError(f"{name} must be classes 0 to {num_classes - 1}, not {lowest} to {highest}")
        both.append(values.astype(np.int64))  # smaller types would overflow below
    correct, named = both
    if len(correct) != len(named):
        raise ValueError(f"{len(correct)} labels and {len(named)} predictions are not of the same images")
    return np.bincount(correct * num_classes + named, minlength=num_classes**2).reshape(num_classes, -1)


def confusion_table(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Write a confusion matrix as text, with the accuracy of each class.

    >>> print(confusion_table(np.array([[8, 2], [1, 9]]), ["cat", "dog"]))
    right \\ named   cat   dog   accuracy
    cat               8     2     80.0 %
    dog               1     9     90.0 %
    """
    rows = [["right \\ named", *class_names, "accuracy"]]
    for i, (name, row) in enumerate(zip(class_names, matrix, strict=True)):
        share = f"{100 * row[i] / row.sum():.1f} %" if row.sum() else "-"
        rows.append([name, *map(str, row), share])
    return "\n".join(aligned(rows))
