"""The doctor: what a network's own numbers say about why it does not learn."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet.backend import to_numpy
from scratchnet.layers import Dropout, Layer, Parameter, ReLU
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.training.rundir import RunError

FILE = "diagnosis.json"


@dataclass(frozen=True)
class Row:
    """What was measured at one layer with weights, or at a ReLU that follows none.

    Attributes
    ----------
    layer, kind : str
        Its path in the network, as in ``features.0``, and its class.
    std : float
        Standard deviation of all that it puts out, before the ReLU that follows it.
    signal : float
        The part of it that differs from image to image.
    dead : float or None
        Share of the units of the ReLU that follows it which are zero for every image and pixel.
    gradient : float or None
        Norm of the weights' gradient over norm of the weights.
    update : float or None
        Norm of the optimizer's next step over norm of the weights.
    """

    layer: str
    kind: str
    std: float
    signal: float
    dead: float | None = None
    gradient: float | None = None
    update: float | None = None


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong.

    Attributes
    ----------
    name : str
        Such as ``vanishing``.
    where : str
        Path of the layer; empty where it is the whole network, the data or the step.
    reason : str
        A sentence with the number that shows it.
    advice : str
        A sentence that says what to change.
    """

    name: str
    where: str
    reason: str
    advice: str

    def __str__(self) -> str:
        where = f" at {self.where}" if self.where else ""
        return f"{self.name.upper()}{where}: {self.reason} {self.advice}"


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found. ``str()`` is the table.

    Attributes
    ----------
    step : int
        Steps that the network had been trained before.
    loss, accuracy : float
        On the batch.
    classes : int
        Outputs of the network, K.
    rows : list of Row
    verdicts : list of Verdict
        Empty for a healthy network.
    """

    step: int
    loss: float
    accuracy: float
    classes: int
    rows: list[Row]
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.verdicts

    def as_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` reads: numbers, text, lists and dicts that JSON can hold."""
        return _for_json(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Return the diagnosis that ``as_dict`` wrote."""
        values = _from_json(values)
        rows = [Row(**row) for row in values["rows"]]
        verdicts = [Verdict(**verdict) for verdict in values["verdicts"]]
        return cls(**{**values, "rows": rows, "verdicts": verdicts})

    def __str__(self) -> str:
        return "\n".join(str(verdict) for verdict in self.verdicts) or "healthy"


def diagnose(
    net: Layer,
    images: Any,
    labels: Any,
    *,
    optimizer: SGD | None = None,
    lr: float | None = None,
    highest_lr: float | None = None,
    loss: SoftmaxCrossEntropy | None = None,
    step: int = 0,
    losses: Sequence[float] = (),
    epochs: Sequence[Mapping[str, float]] = (),
) -> Diagnosis:
    """Examine a network with one batch, and say what is wrong with it. Nothing of it changes, to the last bit.

    Parameters
    ----------
    net : Layer
        In either mode, at any stage of training.
    images : array (N, ...)
        A batch as the network is trained with, normalised; 64 to 128 images will do, two are the least.
    labels : integer array (N,)
    optimizer : SGD, optional
        What trains the network: it tells the update, the learning rate and the weight decay.
    lr : float, optional
        The learning rate, where there is no optimizer to ask.
    highest_lr : float, optional
        The highest rate of the schedule, so that neither its warm-up nor its end counts as too low; by default
        the rate itself.
    loss : SoftmaxCrossEntropy, optional
        What is trained with; by default without label smoothing.
    step : int
        How many steps the network has been trained.
    losses : sequence of float, optional
        The training loss of each of these steps, or of the last of them.
    epochs : sequence of mapping, optional
        For each epoch that is done ``train_loss``, ``train_accuracy``, ``val_loss`` and ``val_accuracy``, as
        in ``Trainer.log``.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError
        If images and labels do not fit together, or to the network.
    """
    with _undisturbed(net):
        value, logits, heard = _examine(net, images, labels, loss or SoftmaxCrossEntropy(), optimizer, lr)
    rows = [Row(s.path, type(s.layer).__name__, s.std, s.signal, s.dead) for s in heard]
    accuracy = float((to_numpy(logits.argmax(axis=1)) == np.asarray(labels)).mean())
    return Diagnosis(step, value, accuracy, logits.shape[1], rows)


def read(run_path: str | os.PathLike) -> list[Diagnosis]:
    """Return the diagnoses that a run left, in the order of its steps; an empty list where it left none.

    Parameters
    ----------
    run_path : path
        The run directory.

    Raises
    ------
    RunError
        If the file is damaged.
    """
    path = Path(run_path, FILE)
    try:
        return [Diagnosis.from_dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _examine(
    net: Layer,
    images: Any,
    labels: Any,
    criterion: SoftmaxCrossEntropy,
    optimizer: SGD | None,
    lr: float | None,
) -> Any:
    """Run the network forward and back as in training, but with nothing forgotten, and listen."""
    net.train()
    for _, layer in net.walk():
        if isinstance(layer, Dropout):
            layer.training = False
    x = net.backend.asarray(np.asarray(images, next(iter(net.parameters().values())).dtype))
    with _listening(net) as heard:
        logits = net.forward(x)
        loss = float(criterion.forward(logits, labels))
        net.backward(criterion.backward(), need_input_gradient=False)
    return loss, logits, heard


@dataclass
class _Layer:
    """What was heard at one layer: its outputs on the way forward, the gradients on the way back."""

    path: str
    layer: Layer
    std: float = 0.0
    signal: float = 0.0
    input_signal: float = 0.0
    dead: float | None = None
    passed: float | None = None  # rms of dx over rms of dy
    weight: float = 0.0  # norms
    gradient: float | None = None
    step: float | None = None


@contextmanager
def _undisturbed(net: Layer) -> Iterator[None]:
    """Put everything back afterwards: weights, gradients, statistics, generators, mode, and what layers keep.

    Weights and gradients are not copied: while the doctor is there the network has a second array for each.
    """
    parameters = list(net.parameters().values())
    flats = {id(p.buffer): p.buffer for p in parameters}.values()
    for flat in flats:
        flat.fill()
    arrays = [(flat, flat.data, flat.grad, flat.version) for flat in flats]
    has_grad = [p.has_grad for p in parameters]
    layers = [layer for _, layer in net.walk()]
    modes = [(layer, layer.training, layer._kept) for layer in layers]
    statistics = [(array, array.copy()) for array in net.buffers().values()]
    generators = [
        (value.bit_generator, value.bit_generator.state)
        for layer in layers
        for value in vars(layer).values()
        if isinstance(value, np.random.Generator)
    ]
    try:
        with net.recording():
            yield
    finally:
        for flat, data, grad, version in arrays:
            flat.data, flat.grad, flat.version = data, grad, version
        for p, had in zip(parameters, has_grad, strict=True):
            p.has_grad = had
        for layer, training, kept in modes:
            layer.training, layer._kept = training, kept
        for array, before in statistics:
            array[...] = before
        for generator, state in generators:
            generator.state = state


@contextmanager
def _listening(net: Layer) -> Iterator[list[_Layer]]:
    """Yield a list that fills, as the network computes, with what each layer puts out and passes back.

    Works for every network whose layers call each other's ``forward`` and ``backward``, whatever its shape.
    """
    heard: list[_Layer] = []
    listeners = []
    for path, layer in net.walk():
        if _own_parameters(layer) or not list(layer.children()):
            listeners.append((layer, dict(vars(layer))))
            _listen(path, layer, heard)
    try:
        yield heard
    finally:
        for layer, before in listeners:
            for name in ("forward", "backward"):
                vars(layer).pop(name)
                if name in before:
                    setattr(layer, name, before[name])


def _listen(path: str, layer: Layer, heard: list[_Layer]) -> None:
    forward, backward = layer.forward, layer.backward
    sign = _Layer(path, layer)

    def heard_forward(x: Any) -> Any:
        y = forward(x)
        sign.std, sign.signal, sign.input_signal = _std(y), _signal(y), _signal(x)
        if isinstance(layer, ReLU):
            sign.dead = _dead(y)
        heard.append(sign)
        return y

    def heard_backward(dy: Any, *arguments: Any, **keywords: Any) -> Any:
        dx = backward(dy, *arguments, **keywords)
        if dx is not None and dx.shape == dy.shape:
            passed, came = _rms(dx), _rms(dy)
            sign.passed = passed / came if came else None
        return dx

    layer.forward, layer.backward = heard_forward, heard_backward


def _own_parameters(layer: Layer) -> dict[str, Parameter]:
    return {name: value for name, value in vars(layer).items() if isinstance(value, Parameter)}


def _rms(x: Any) -> float:
    """Return the root mean square, of numbers however large."""
    largest = float(abs(x).max())
    if largest == 0.0 or not isfinite(largest):
        return largest
    return largest * sqrt(float(((x / largest) ** 2).mean()))


def _std(x: Any) -> float:
    return _rms(x - x.mean())


def _signal(x: Any) -> float:
    return _rms(x - x.mean(axis=0))


def _dead(y: Any) -> float:
    units = y.reshape(-1, y.shape[-1])
    return float((units.max(axis=0) <= 0).mean())


def _for_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as text."""
    if isinstance(value, dict):
        return {key: _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
