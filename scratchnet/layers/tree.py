"""Walks through a network: what it is made of, in which order, and what all of its layers do at once.

Questions (``walk``, ``parameters``, ``leaves``) change nothing; whatever owns a network assembles it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from scratchnet import backend as backends
from scratchnet.backend import Array, Backend
from scratchnet.parameters import FlatBuffer, Parameter

if TYPE_CHECKING:
    from scratchnet.layers.base import Layer

    L = TypeVar("L", bound=Layer)
    T = TypeVar("T")

__all__ = ["assemble", "chain_of", "leaves"]


def assemble(net: L) -> L:
    """Give every layer its path and gather all parameters into one buffer; return the network.

    Networks of this package are assembled when they are built, moved, compiled, trained or loaded; doing it
    again is cheap. In a part of a network it changes nothing: paths from the root and the whole network's
    buffer stay.

    Parameters
    ----------
    net : Layer

    Raises
    ------
    ValueError
        If one Parameter or one layer stands in two places, or twice in a chain, or the layers have more than
        one dtype or backend.

    Examples
    --------
    >>> from scratchnet.layers import Linear, ReLU, Sequential
    >>> net = Sequential(ReLU())
    >>> net.layers.append(Linear(2, 2))
    >>> assemble(net)[1].label
    '1 (Linear)'
    """
    found = list(parameters(net).values())
    for path, layer in net.walk():
        layer.path = max(path, layer.path, key=len)  # the longer path is the one from the root
        rest = {id(part) for _, part in layer.walk() if part is not layer}
        for item in chain_of(layer) or ():
            parts = {id(part) for _, part in item.walk()}
            if not parts <= rest:
                raise ValueError(f"{layer.label}: chain() lists {item.label} twice, or itself: make two")
            rest -= parts
    if found:
        FlatBuffer.gather(found)
    return net


def chain_of(layer: Layer) -> Sequence[Layer] | None:
    """Return the layers that a composite applies one after the other; None if it computes anything else.

    ``layer.chain()`` says so, unless a subclass or the object itself has another ``forward`` or ``backward``
    than the class that says it.

    Parameters
    ----------
    layer : Layer

    Examples
    --------
    >>> from scratchnet.layers import ReLU, Sequential
    >>> class Doubled(Sequential):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> chain_of(Sequential(ReLU())), chain_of(Doubled(ReLU())), chain_of(ReLU())
    ([ReLU()], None, None)
    """
    if "forward" in vars(layer) or "backward" in vars(layer):
        return None
    for kind in type(layer).__mro__:
        if "chain" in vars(kind):
            chain = layer.chain()
            return None if chain is None else listed(layer, chain)
        if "forward" in vars(kind) or "backward" in vars(kind):
            return None
    return None


def listed(layer: Layer, chain: Iterable[Layer]) -> list[Layer]:
    """Return what a layer's ``chain()`` lists, which must be layers."""
    found = list(chain)
    for item in found:
        if not hasattr(item, "chain"):
            raise ValueError(f"{type(layer).__name__}.chain() must return layers, not {type(item).__name__}")
    return found


def leaves(net: Layer, path: str = "") -> list[tuple[str, Layer]]:
    """Return the layers that an input goes through, one after the other, each with its path.

    Chains are opened, and chains within them. A composite that is no chain may do anything in its ``forward``
    and is one layer.

    Parameters
    ----------
    net : Layer
    path : str
        Where the network itself stands.

    Examples
    --------
    >>> from scratchnet.layers import Conv2d, ReLU, Sequential
    >>> [path for path, layer in leaves(Sequential(Conv2d(3, 8), Sequential(ReLU())))]
    ['0', '1.0']
    """
    chain = chain_of(net)
    if chain is None:
        return [(path, net)]
    names = {id(child): _join(path, name) for name, child in net.children()}
    return [leaf for layer in chain for leaf in leaves(layer, names.get(id(layer), layer.path))]


# Methods of Layer


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def walk(net: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield this layer and all layers within it, each with its path, in the order they were made."""
    yield path, net
    for name, child in net.children():
        yield from child.walk(_join(path, name))


def _places(net: Layer) -> list[tuple[str, Layer]]:
    """Return what ``walk`` yields; refuse what stands in two places, or in none, where nothing finds it."""
    found = list(net.walk())
    places: dict[int, str] = {}
    known = {id(layer) for _, layer in found}
    for path, layer in found:
        own = {name: value for name, value in vars(layer).items() if isinstance(value, Parameter)}
        for name, item in {"": layer, **own}.items():
            place = f"{path}.{name}".strip(".")
            first = places.setdefault(id(item), place)
            if first != place:
                raise ValueError(f"one {type(item).__name__} is both {first!r} and {place!r}: make two")
    for path, layer in found:
        label = f"{path} ({type(layer).__name__})" if path else type(layer).__name__
        for item in chain_of(layer) or ():
            if id(item) not in known:
                where = "is no attribute, nor in a list, tuple or dict that is one: it would not be learned"
                raise ValueError(f"{label}: chain() lists {item!r}, which {where}")
        for name, value in vars(layer).items():
            items = value.values() if isinstance(value, dict) else value
            if isinstance(value, (list, tuple, dict)) and any(isinstance(item, Parameter) for item in items):
                raise ValueError(f"{label}: {name} holds Parameters, which are found only as attributes")
    return found


def _held(net: Layer, kind: type[T]) -> Iterator[tuple[str, str, T]]:
    """Yield the attributes of this kind that the layers have: the layer's path, the name and the value."""
    for path, layer in _places(net):
        yield from ((path, name, value) for name, value in vars(layer).items() if isinstance(value, kind))


def parameters(net: Layer) -> dict[str, Parameter]:
    """Return what is learned, from name to Parameter, in order; refuse one that stands in two places."""
    return {_join(path, name): value for path, name, value in _held(net, Parameter)}


def buffers(net: Layer) -> dict[str, Array]:
    """Return the state that is not learned (running statistics), from name to array, in order."""
    return {_join(path, n): getattr(layer, n) for path, layer in _places(net) for n in layer.buffer_names}


def generators(net: Layer) -> dict[str, np.random.Generator]:
    """Return the generators of all layers: ``rng`` by the layer's path, others with their name after it."""
    found = _held(net, np.random.Generator)
    return {path if name == "rng" else _join(path, name): value for path, name, value in found}


def output_shape(net: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the output for an input of this shape: the chain's, or else the same."""
    for layer in net.chain() or ():
        shape = layer.output_shape(shape)
    return shape


def multiply_adds(net: Layer, shape: tuple[int, ...]) -> int:
    """Return how many multiplications and additions a forward pass needs for an input of this shape."""
    total = 0
    for layer in net.chain() or ():
        total += layer.multiply_adds(shape)
        shape = layer.output_shape(shape)
    return total


def backend_of(net: Layer) -> Backend:
    """Return the backend of the parameters; NumPy if there are none."""
    held = (value for _, layer in net.walk() for value in vars(layer).values())
    first = next((value for value in held if isinstance(value, Parameter)), None)
    return first.buffer.backend if first is not None else backends.get("numpy")


def to(net: L, backend: str | Backend) -> L:
    """Move parameters, gradients and statistics to "numpy", "cupy" or "auto"; return this network.

    Raises
    ------
    BackendError
        If that backend cannot compute here. Nothing has been moved then.
    ValueError
        If this is only a part of a network: all of its parameters lie in one array, which moves as one.
    """
    backend = backends.get(backend)
    found = list(assemble(net).parameters().values())
    if found:
        buffer = found[0].buffer
        if len(buffer.parameters) > len(found):
            raise ValueError(f"{net.label} is part of a network: call to() of the whole network")
        buffer.to(backend)
    net.clear_saved()
    for _, layer in net.walk():
        for name in layer.buffer_names:
            setattr(layer, name, backend.asarray(getattr(layer, name)))
    return net


def train(net: L, mode: bool = True) -> L:
    """Switch to training: dropout drops, batch normalisation uses the batch, backward is possible."""
    for _, layer in net.walk():
        layer.training = mode
    if not mode:
        net.clear_saved()
    return net


def set_trainable(net: L, prefix: str, trainable: bool) -> L:
    """Freeze or unfreeze the parameters whose names begin with ``prefix``, a layer's path; "" takes all."""
    start = f"{prefix}." if prefix else ""
    found = [p for name, p in parameters(net).items() if f"{name}.".startswith(start)]
    if prefix and not found:
        raise ValueError(f"{net.label} has no parameters in {prefix!r}: give a path, as in 'features.0'")
    for p in found:
        p.trainable = trainable
        if not trainable:
            p.grad = None
    return net


@contextmanager
def recording(net: L) -> Iterator[L]:
    """Within this context ``backward`` is possible in evaluation too.

    Examples
    --------
    >>> from scratchnet.layers import ReLU
    >>> layer = ReLU().eval()
    >>> with layer.recording():
    ...     y = layer.forward(np.array([-1.0, 2.0]))
    ...     layer.backward(np.ones(2))
    array([0., 1.])
    """
    before = [(layer, layer._recording) for _, layer in net.walk()]
    try:
        for layer, _ in before:
            layer._recording = True
        yield net
    finally:
        for layer, was_recording in before:
            layer._recording = was_recording
            if not (layer.training or was_recording):
                layer._saved = None


def clear_saved(net: Layer) -> None:
    """Forget what was saved for backward, here and in all layers within."""
    for _, layer in net.walk():
        layer._saved = None
