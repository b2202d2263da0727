"""A network's state, saved and put back: so that whatever looks at a network leaves it as it was.

::

    with preserved(net):
        net.eval()
        with net.recording():
            net.backward(net.forward(x))
    # mode, statistics, gradients and generators are as before
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from scratchnet.backend import array_module
from scratchnet.layers import Layer


class Attributes:
    """The attributes of layers (all that ``walk`` yields), the contents of arrays and generators among them.

    Examples
    --------
    >>> from scratchnet.layers import Dropout
    >>> layer = Dropout(0.5)
    >>> before = Attributes([layer])
    >>> first = layer.forward(np.ones(8))
    >>> before.restore()
    >>> bool((layer.forward(np.ones(8)) == first).all())
    True
    """

    def __init__(self, layers: Iterable[Any]):
        self._attributes = [(vars(layer), dict(vars(layer))) for layer in layers]
        values = [value for _, before in self._attributes for value in before.values()]
        self._arrays = [(v, v.copy()) for v in values if isinstance(v, array_module(v).ndarray)]
        generators = [v.bit_generator for v in values if isinstance(v, np.random.Generator)]
        self._generators = [(g, g.state) for g in generators]

    def restore(self) -> None:
        """Put everything back; this may be done any number of times."""
        for now, before in self._attributes:
            own = {name: value for name, value in now.items() if name == "_recording"}  # has its own context
            now.clear()
            now.update(before | own)
        for array, values in self._arrays:
            array[...] = values
        for generator, state in self._generators:
            generator.state = state


@contextmanager
def preserved(net: Layer, values: bool = False) -> Iterator[Layer]:
    """Within this context do anything with a network but move it; afterwards it is as it was.

    That is its mode, what it has saved for a backward pass, running statistics, generators and gradients. The
    context begins without gradients, and those of before are not copied: they lie aside until it ends. With
    ``values`` the parameters may change too: the network computes with a copy of them meanwhile.

    Examples
    --------
    >>> from scratchnet.layers import Linear
    >>> net = Linear(2, 2)
    >>> with preserved(net):
    ...     dx = net.backward(net.forward(np.ones((1, 2), "float32")))
    ...     net.eval().weight.grad is None
    False
    >>> net.training, net.weight.grad is None
    (True, True)
    """
    flats = {id(p.buffer): p.buffer for p in net.parameters().values()}.values()
    for flat in flats:
        flat.fill()
    before = [(flat, flat.data, flat.grad, flat.version) for flat in flats]
    gradients = [(p, p.has_grad) for flat in flats for p in flat.parameters]
    attributes = Attributes(layer for _, layer in net.walk())
    try:
        for flat in flats:
            flat.grad = None
            if values:
                flat.data = flat.allocate().copy()
        for p, _ in gradients:
            p.has_grad = False
        yield net
    finally:
        for flat, data, grad, version in before:
            flat.data, flat.grad, flat.version = data, grad, version
        for p, had in gradients:
            p.has_grad = had
        attributes.restore()
