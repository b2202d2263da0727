"""Parameters, and the two flat arrays that hold all of a network's: one of values, one of gradients.

::

    buffer.data  [ features.0.weight | features.0.bias | features.2.weight | ... | classifier.6.bias ]
    buffer.grad  [ the same places, one gradient for each value                                      ]
                   ^ parameter.data and parameter.grad are views into these

So a step of the optimizer is one pass over memory, and moving to a GPU is one copy. Nothing is allocated
until a value is asked for: a layer declares its parameters' shapes when it is made, the network that it
becomes part of gathers the declarations, and then one buffer is allocated and every parameter filled in its
place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from scratchnet import backend as backends
from scratchnet.backend import Array
from scratchnet.initialise import Fill, zeros


class Parameter:
    """An array that is learned, and its gradient.

    Parameters
    ----------
    data : array_like, optional
        Its first values, copied. Without them ``shape`` must be given.
    shape : tuple of int, optional
    dtype : dtype, optional
        By default that of ``data``, or float32 where there is none or it has whole numbers.
    fill : callable, optional
        ``fill(array)`` writes the first values in place, when they are first asked for. Zeros by default.

    Attributes
    ----------
    buffer : FlatBuffer
        What holds it, and ``span``, a slice, where.
    trainable : bool
        False for a frozen parameter: it gets no gradient and no step. See ``Layer.freeze``.

    Examples
    --------
    >>> weight = Parameter([1.0, 2.0], dtype="float32")
    >>> weight.grad is None
    True
    >>> weight.grad = np.array([0.5, 0.5])
    >>> weight.data - weight.grad
    array([0.5, 1.5], dtype=float32)
    """

    buffer: FlatBuffer
    span: slice

    def __init__(
        self,
        data: ArrayLike | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        fill: Fill = zeros,
    ):
        if data is not None:
            values = np.array(backends.to_numpy(data), dtype=dtype)
            if dtype is None and values.dtype.kind in "biu":
                values = values.astype(np.float32)  # nobody means whole numbers: a step would change nothing
            shape, dtype, fill = values.shape, values.dtype, partial(np.copyto, src=values)
        elif shape is None:
            raise ValueError("a Parameter needs data, or a shape")
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype or np.float32)
        if self.dtype.kind != "f":
            raise ValueError(f"a Parameter has to be floating point, not {self.dtype}")
        self.size = prod(self.shape)
        if self.size * self.dtype.itemsize > sys.maxsize:
            raise MemoryError(f"a parameter of the shape {self.shape} has more numbers than a memory can")
        self.fill: Fill | None = fill
        self.has_grad = False
        self.trainable = True
        FlatBuffer([self])

    @property
    def ndim(self) -> int:
        """How many axes the array has."""
        return len(self.shape)

    @property
    def data(self) -> Array:
        """The values, a view into the network's buffer: write into it, or assign an array to copy it in."""
        if not self.buffer.filled:
            self.buffer.fill()
        self.buffer.handed_out += 1
        return self.view(self.buffer.allocate())

    @data.setter
    def data(self, values: ArrayLike) -> None:
        self.assign(..., self._fitting(values))

    def view(self, flat: Array) -> Array:
        """Return this parameter's part of a flat array that is laid out as its buffer."""
        return flat[self.span].reshape(self.shape)

    def assign(self, where: Any, values: Array) -> None:
        """Copy an array into a part of the values.

        Examples
        --------
        >>> weight = Parameter(shape=(2, 2))
        >>> weight.assign(np.s_[:, 0], np.array([1.0, 2.0]))
        >>> weight.assign(np.s_[:, 1], np.array([3.0, 4.0]))
        >>> weight.data
        array([[1., 3.],
               [2., 4.]], dtype=float32)
        """
        self.view(self.buffer.allocate())[where] = values
        self.fill = None  # so that weights which are loaded are never drawn first
        self.buffer.version += 1

    @property
    def grad(self) -> Array | None:
        """The gradient of the loss, a view into the network's second buffer; None before the first backward.

        Assigning an array copies it in; assigning None forgets it. A frozen parameter has none.
        """
        return self.grad_view if self.has_grad and self.trainable else None

    @grad.setter
    def grad(self, values: ArrayLike | None) -> None:
        if values is None or not self.trainable:
            self.has_grad = False
            return
        self.grad_view[...] = self._fitting(values)
        self.has_grad = True
        if self.buffer.observer is not None:
            self.buffer.observer(self)

    @property
    def grad_view(self) -> Array:
        """Where the gradient lies, whether or not there is one yet: a view into the second buffer."""
        return self.view(self.buffer.allocate_grad())

    def _fitting(self, values: ArrayLike) -> Array:
        """Refuse what NumPy would stretch to fit, or CuPy would silently convert."""
        array: Array = values if hasattr(values, "shape") else np.asarray(values)  # type: ignore[assignment]
        if tuple(array.shape) != self.shape:
            raise ValueError(f"this parameter has the shape {self.shape}, the array {tuple(array.shape)}")
        if backends.array_module(array) is not self.buffer.backend.xp:
            raise ValueError(f"this parameter is on {self.buffer.backend.name}, the array is not")
        return array

    def __repr__(self) -> str:
        return f"Parameter(shape={self.shape}, dtype={self.dtype}, backend={self.buffer.backend.name})"


class FlatBuffer:
    """The values and gradients of all parameters of one network, each in one flat array.

    Parameters
    ----------
    parameters : iterable of Parameter
        In the order in which they lie. They leave the buffers that they were in, and take their values along.

    Attributes
    ----------
    data, grad : array (size,) or None
        None until they are needed.
    version : int
        Grows whenever values change through ``SGD.step``, loading, ``to`` or assignment, and when batch
        normalisation tracks its statistics, so that whatever was derived from them (a plan's transformed
        weights) can tell that it is stale.
    handed_out : int
        How often ``Parameter.data`` gave an array to be read or written. What follows from the values is
        derived again after that, too: so ``p.data[...] *= 0.5`` is noticed.
    derived : dict
        What others derive from the values, and keep as long as these; copies begin without.
    observer : callable or None
        During a backward pass, told of each parameter when its gradient is final: by a layer that assigns
        ``grad``, or by a plan. What adds up gradients of many processes need not wait for the end then.

    Examples
    --------
    >>> weight, bias = Parameter([1.0, 2.0]), Parameter([3.0])
    >>> buffer = FlatBuffer([weight, bias])
    >>> buffer.fill()
    >>> buffer.data
    array([1., 2., 3.])
    >>> bias.data = np.array([4.0])
    >>> buffer.data
    array([1., 2., 4.])
    """

    def __init__(self, parameters: Iterable[Parameter]):
        self.parameters = list(parameters)
        self.data: Array | None = None
        self.grad: Array | None = None
        self.filled = False
        self.derived: dict[Any, Any] = {}
        self.observer: Callable[[Parameter], None] | None = None
        self.version = self.handed_out = 0
        self.size = 0
        moved = [p for p in self.parameters if hasattr(p, "buffer")]  # all but a new one, alone in its first
        self.backend: backends.Backend = moved[0].buffer.backend if moved else backends.get("numpy")
        self.dtype = self.parameters[0].dtype if self.parameters else np.dtype(np.float32)
        dtypes = sorted({str(p.dtype) for p in self.parameters})
        if len(dtypes) > 1:
            names = " and ".join(dtypes)
            raise ValueError(f"the layers of one network must have one dtype, and these have {names}")
        if any(p.buffer.backend.xp is not self.backend.xp for p in moved):
            raise ValueError(
                "the layers of one network must be on one backend: build it first, then call to()"
            )

        values = [(p, p.data, p.grad) for p in moved if p.buffer.data is not None]
        for p in self.parameters:
            p.buffer, p.span = self, slice(self.size, self.size + p.size)
            self.size += p.size
        for p, data, grad in values:
            p.view(self.allocate())[...] = data
            p.grad = grad

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "derived": {}}

    @property
    def state(self) -> tuple[int, int]:
        """What differs once values have changed, or may have."""
        return self.version, self.handed_out

    @classmethod
    def gather(cls, parameters: list[Parameter]) -> FlatBuffer:
        """Return the buffer that holds all these parameters, made now unless they lie together already."""
        buffers = {id(p.buffer): p.buffer for p in parameters}
        return next(iter(buffers.values())) if len(buffers) == 1 else cls(parameters)

    def allocate(self) -> Array:
        """Return the array of values, made now, and not yet filled, if there is none."""
        if self.data is None:
            self.data = self.backend.xp.empty(self.size, dtype=self.dtype)
        return self.data

    def fill(self) -> None:
        """Give first values to all parameters that have none yet."""
        on_host = self.backend.name == "numpy"
        flat = self.allocate()
        for p in self.parameters:
            if p.fill is not None:
                values = p.view(flat) if on_host else np.empty(p.shape, p.dtype)
                p.fill(values)  # random numbers are drawn on the host
                if not on_host:
                    p.view(flat)[...] = self.backend.asarray(values)
                p.fill = None
        self.filled = True

    def allocate_grad(self) -> Array:
        """Return the array of gradients, made now if there is none. On a CPU, frozen parts take no memory."""
        if self.grad is None:
            self.grad = self.backend.xp.zeros(self.size, dtype=self.dtype)
        return self.grad

    def cast(self, dtype: DTypeLike) -> None:
        """Give both arrays, and with them all parameters, another element type."""
        self.fill()
        self.dtype = np.dtype(dtype)
        self.data = self.allocate().astype(self.dtype)
        self.grad = None if self.grad is None else self.grad.astype(self.dtype)
        for p in self.parameters:
            p.dtype = self.dtype
        self.version += 1

    def to(self, backend: backends.Backend) -> None:
        """Move both arrays to another backend, one copy each."""
        if backend.xp is self.backend.xp:
            return
        self.fill()
        self.data = backend.asarray(self.allocate())
        self.grad = None if self.grad is None else backend.asarray(self.grad)
        self.backend = backend
        self.version += 1
