"""Layers: parameters, and what the backward pass needs to remember. The mathematics is in ``functional/``.

A layer has ``forward(x)`` and ``backward(dy)``, which returns the gradient for the layer before and sets
``.grad`` of its own parameters. To write one of your own, derive from ``Layer``::

    class Scale(Layer):
        def __init__(self, channels):
            super().__init__()
            self.weight = Parameter(np.ones(channels, "float32"))

        def forward(self, x):
            return self.save_for_backward(x * self.weight.data, x)

        def backward(self, dy):
            x = self.saved(dy)
            self.weight.grad = (dy * x).sum(axis=(0, 1, 2))
            return dy * self.weight.data
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from scratchnet import functional as F
from scratchnet.backend import Backend, array_module
from scratchnet.backend import get as get_backend
from scratchnet.initialise import INITIALISATIONS, ones, zeros
from scratchnet.parameters import FlatBuffer, Parameter

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Parameter",
    "ReLU",
    "Sequential",
]


class Layer:
    """What all layers and networks have in common.

    Parameters
    ----------
    dtype : {"float32", "float64"}
        Of the parameters. Inputs must have it too, where there are any.
    rng : numpy.random.Generator, optional
        Where random numbers come from; by default a new generator with a fixed seed.

    Attributes
    ----------
    training : bool
        True at first; see ``train`` and ``eval``.
    path : str
        Where the layer stands in its network, as in ``features.0``; error messages name it.

    Examples
    --------
    A layer of one's own needs no more than a forward and a backward pass:

    >>> class Double(Layer):
    ...     def forward(self, x):
    ...         return self.save_for_backward(2 * x, None)
    ...
    ...     def backward(self, dy):
    ...         self.saved(dy)
    ...         return 2 * dy
    >>> layer = Double()
    >>> layer.forward(np.ones(3)), layer.backward(np.ones(3))
    (array([2., 2., 2.]), array([2., 2., 2.]))
    """

    training = True
    path = ""
    buffer_names: tuple[str, ...] = ()  # arrays that belong to the layer's state but are not learned
    skips_input_gradient = False  # whether backward takes need_input_gradient
    _recording = False
    _saved: tuple[Any, tuple[int, ...]] | None = None

    def __init__(self, *, dtype: Any = "float32", rng: np.random.Generator | None = None):
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, not {self.dtype}")
        self._rng = rng if rng is not None else np.random.default_rng(0)

    def forward(self, x: Any) -> Any:
        """Compute the output, and keep what ``backward`` will need (in evaluation: nothing)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Any) -> Any:
        """Set the parameters' gradients; return the gradient with respect to the last forward's input."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __call__(self, x: Any) -> Any:
        """Call ``forward``."""
        return self.forward(x)

    # What a network is made of

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers that are attributes of this one, or in a list that is, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Layer))

    def walk(self, path: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield this layer and all layers within it, each with its path, in the order they were made.

        Examples
        --------
        >>> [path for path, layer in Sequential(ReLU(), Sequential(ReLU())).walk()]
        ['', '0', '1', '1.0']
        """
        yield path, self
        for name, child in self.children():
            yield from child.walk(f"{path}.{name}" if path else name)

    def parameters(self) -> dict[str, Parameter]:
        """Return what is learned, from name to Parameter, in order.

        Raises
        ------
        ValueError
            If one Parameter or one layer stands in two places, or the layers have more than one dtype.

        Examples
        --------
        >>> list(Sequential(Conv2d(3, 8), ReLU()).parameters())
        ['0.weight', '0.bias']
        """
        found: dict[str, Parameter] = {}
        places: dict[int, str] = {}
        for path, layer in self.walk():
            parts = {name: value for name, value in vars(layer).items() if isinstance(value, Parameter)}
            for name, thing in {"": layer, **parts}.items():
                place = f"{path}.{name}".strip(".")
                if id(thing) in places:
                    raise ValueError(
                        f"one {type(thing).__name__} is both {places[id(thing)]!r} and {place!r}: make two"
                    )
                places[id(thing)] = place
            found |= {f"{path}.{name}".lstrip("."): value for name, value in parts.items()}
            # A part of a network may be asked too; the longer path is the one from the root.
            layer.path = max(path, layer.path, key=len)
        if found:
            FlatBuffer.gather(list(found.values()))
        return found

    def buffers(self) -> dict[str, Any]:
        """Return the state that is not learned (running statistics), from name to array, in order."""
        return {
            f"{path}.{name}".lstrip("."): getattr(layer, name)
            for path, layer in self.walk()
            for name in layer.buffer_names
        }

    def generators(self) -> dict[str, np.random.Generator]:
        """Return the generators that forward passes draw from, from the layer's path to its generator."""
        return {path: layer.rng for path, layer in self.walk() if isinstance(layer, Dropout)}

    @property
    def backend(self) -> Backend:
        """Where the parameters are; NumPy if there are none."""
        for _, layer in self.walk():
            for value in vars(layer).values():
                if isinstance(value, Parameter):
                    return value.buffer.backend
        return get_backend("numpy")

    def to(self, backend: str | Backend) -> Layer:
        """Move parameters, gradients and running statistics to another backend, and return this network.

        Parameters
        ----------
        backend : {"numpy", "cupy", "auto"} or Backend

        Raises
        ------
        BackendError
            If that backend cannot compute here. Nothing has been moved then.
        ValueError
            If this is only a part of a network: all of its parameters lie in one array, which moves as one.
        """
        backend = get_backend(backend)
        parameters = list(self.parameters().values())
        if parameters:
            buffer = parameters[0].buffer
            if len(buffer.parameters) > len(parameters):
                raise ValueError(f"{self._label()} is part of a network: call to() of the whole network")
            buffer.to(backend)
        self.clear_saved()
        for _, layer in self.walk():
            for name in layer.buffer_names:
                setattr(layer, name, backend.asarray(getattr(layer, name)))
        return self

    # Training and evaluation

    def train(self, mode: bool = True) -> Layer:
        """Switch to training: dropout drops, batch normalisation uses the batch, backward is possible."""
        for _, layer in self.walk():
            layer.training = mode
        if not mode:
            self.clear_saved()
        return self

    def eval(self) -> Layer:
        """Switch to evaluation: nothing random, running statistics, and nothing kept for backward."""
        return self.train(False)

    @contextmanager
    def recording(self) -> Iterator[Layer]:
        """Within this context ``backward`` is possible in evaluation too.

        Examples
        --------
        >>> layer = ReLU().eval()
        >>> with layer.recording():
        ...     y = layer.forward(np.array([-1.0, 2.0]))
        ...     layer.backward(np.ones(2))
        array([0., 1.])
        """
        layers = [layer for _, layer in self.walk()]
        before = [layer._recording for layer in layers]
        try:
            for layer in layers:
                layer._recording = True
            yield self
        finally:
            for layer, recording in zip(layers, before, strict=True):
                layer._recording = recording
                if not (layer.training or recording):
                    layer._saved = None

    def save_for_backward(self, y: Any, cache: Any) -> Any:
        """Return the output ``y``, and remember ``cache`` for ``saved`` unless this is evaluation."""
        self._saved = (cache, tuple(y.shape)) if self.training or self._recording else None
        return y

    def saved(self, dy: Any) -> Any:
        """Return, once, what ``save_for_backward`` remembered.

        Raises
        ------
        RuntimeError
            If there is nothing: backward came before forward, or twice, or after a forward in evaluation.
        ValueError
            If ``dy`` has not the shape of the output.
        """
        if self._saved is None:
            reason = (
                "call forward first, once for each backward"
                if self.training
                else "evaluation keeps nothing for it; call train(), or use `with net.recording():`"
            )
            raise RuntimeError(f"{self._label()}: backward without a forward before it: {reason}")
        cache, shape = self._saved
        if not hasattr(dy, "shape"):
            raise ValueError(f"{self._label()}: expected an array {shape}, got {type(dy).__name__}")
        if tuple(dy.shape) != shape:
            raise ValueError(f"{self._label()}: the output was {shape}, its gradient is {tuple(dy.shape)}")
        self._saved = None
        return cache

    def clear_saved(self) -> None:
        """Forget what was kept for backward, here and in all layers within."""
        for _, layer in self.walk():
            layer._saved = None

    # Shapes

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output for an input of this shape: the same, by default."""
        return shape

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return how many multiplications and additions a forward pass needs for an input of this shape."""
        return 0

    def check_input(self, x: Any, *axes: str | int, hint: str = "") -> None:
        """Check an input, and raise a ValueError that names this layer, what was expected and what came.

        Parameters
        ----------
        x : array
        *axes : str or int
            For each axis the size that it must have, or a letter where any will do.
        hint : str
            Ends the message.
        """
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise ValueError(f"{self._label()}: expected an array, got {type(x).__name__}")
        wrong = len(x.shape) != len(axes) or any(
            isinstance(axis, int) and axis != size for axis, size in zip(axes, x.shape, strict=True)
        )
        if axes and wrong:
            hint = f": {hint}" if hint else ""
            wanted = ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "")
            raise ValueError(f"{self._label()}: expected ({wanted}), got {tuple(x.shape)}{hint}")
        if 0 in x.shape:
            raise ValueError(f"{self._label()}: the input is empty, {tuple(x.shape)}")
        parameter = next((value for value in vars(self).values() if isinstance(value, Parameter)), None)
        if parameter is not None:
            if x.dtype != self.dtype:
                raise ValueError(f"{self._label()}: expected {self.dtype}, got {x.dtype}")
            if array_module(x) is not parameter.buffer.backend.xp:
                raise ValueError(
                    f"{self._label()}: the network is on {parameter.buffer.backend.name}, the input is not: "
                    "use net.backend.asarray(x)"
                )

    def _label(self) -> str:
        name = type(self).__name__
        return f"{self.path} ({name})" if self.path else name

    def _settings(self) -> str:
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings()})"


class Conv2d(Layer):
    """Convolution (``functional/conv.py``).

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    kernel_size : int
        The side of the square kernel.
    stride, padding : int
        Padding is with zeros, on every side; the output size is rounded down.
    bias : bool
    dtype, rng
        As of every ``Layer``.
    init : {"he", "pytorch", "normal"}
        How the weights begin, see ``initialise.py``.

    Attributes
    ----------
    weight : Parameter (kernel_size, kernel_size, in_channels, out_channels)
    bias : Parameter (out_channels,), or None

    Examples
    --------
    >>> Conv2d(3, 64).forward(np.zeros((8, 32, 32, 3), "float32")).shape
    (8, 32, 32, 64)
    """

    skips_input_gradient = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        rng: np.random.Generator | None = None,
        init: str = "he",
    ):
        super().__init__(dtype=dtype, rng=rng)
        _at_least(
            1, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride
        )
        _at_least(0, padding=padding)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        fill_weight, fill_bias = _initialisation(init)(kernel_size * kernel_size * in_channels, self._rng)
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.weight = Parameter(shape=shape, dtype=self.dtype, fill=fill_weight)
        self.bias = Parameter(shape=(out_channels,), dtype=self.dtype, fill=fill_bias) if bias else None
        self.parameters()

    def forward(self, x: Any) -> Any:
        """Convolve (N, H, W, in_channels) to (N, OH, OW, out_channels)."""
        self.check_input(x, "N", "H", "W", self.in_channels, hint="images are channels last")
        if min(x.shape[1:3]) + 2 * self.padding < self.kernel_size:
            raise ValueError(
                f"{self._label()}: a kernel of {self.kernel_size} does not fit into {tuple(x.shape)}"
            )
        bias = None if self.bias is None else self.bias.data
        return self.save_for_backward(*F.conv2d_forward(x, self.weight.data, bias, self.stride, self.padding))

    def backward(self, dy: Any, need_input_gradient: bool = True) -> Any:
        """Set the gradients of weight and bias; return dx, or None if it is not needed."""
        dx, dweight, dbias = F.conv2d_backward(dy, self.saved(dy), need_input_gradient)
        _set_gradients(self, dweight, dbias)
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        N, H, W, _ = shape
        size = [F.conv_output_size(s, self.kernel_size, self.stride, self.padding) for s in (H, W)]
        return (N, *size, self.out_channels)

    def multiply_adds(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        N, OH, OW, O = self.output_shape(shape)
        return N * OH * OW * O * self.kernel_size**2 * self.in_channels

    def _settings(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}" + (", bias=False" if self.bias is None else "")
        )


class Linear(Layer):
    """Fully connected layer (``functional/linear.py``).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype, rng
        As of every ``Layer``.
    init : {"he", "pytorch", "normal"}
        How the weights begin, see ``initialise.py``.

    Attributes
    ----------
    weight : Parameter (in_features, out_features)
    bias : Parameter (out_features,), or None

    Examples
    --------
    >>> Linear(512, 10).forward(np.zeros((8, 512), "float32")).shape
    (8, 10)
    """

    skips_input_gradient = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        rng: np.random.Generator | None = None,
        init: str = "he",
    ):
        super().__init__(dtype=dtype, rng=rng)
        _at_least(1, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        fill_weight, fill_bias = _initialisation(init)(in_features, self._rng)
        self.weight = Parameter(shape=(in_features, out_features), dtype=self.dtype, fill=fill_weight)
        self.bias = Parameter(shape=(out_features,), dtype=self.dtype, fill=fill_bias) if bias else None
        self.parameters()

    def forward(self, x: Any) -> Any:
        """Multiply (N, in_features) to (N, out_features)."""
        self.check_input(
            x, "N", self.in_features, hint="put Flatten() before it" if getattr(x, "ndim", 2) > 2 else ""
        )
        bias = None if self.bias is None else self.bias.data
        return self.save_for_backward(*F.linear_forward(x, self.weight.data, bias))

    def backward(self, dy: Any, need_input_gradient: bool = True) -> Any:
        """Set the gradients of weight and bias; return dx, or None if it is not needed."""
        dx, dweight, dbias = F.linear_backward(dy, self.saved(dy), need_input_gradient)
        _set_gradients(self, dweight, dbias)
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        return (shape[0], self.out_features)

    def multiply_adds(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        return shape[0] * self.in_features * self.out_features

    def _settings(self) -> str:
        return f"{self.in_features}, {self.out_features}" + (", bias=False" if self.bias is None else "")


class ReLU(Layer):
    """max(x, 0), for arrays of any shape (``functional/relu.py``).

    Parameters
    ----------
    dtype, rng
        As of every ``Layer``.

    Examples
    --------
    >>> ReLU().forward(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def forward(self, x: Any) -> Any:
        """Set what is negative to zero."""
        self.check_input(x)
        return self.save_for_backward(*F.relu_forward(x))

    def backward(self, dy: Any) -> Any:
        """Return dy where the input was positive, zero elsewhere."""
        return F.relu_backward(dy, self.saved(dy))


class MaxPool2d(Layer):
    """The largest value of each window (``functional/pool.py``).

    Parameters
    ----------
    kernel_size : int
        The side of the square window, at most 16.
    stride : int, optional
        By default ``kernel_size``.
    dtype, rng
        As of every ``Layer``.

    Examples
    --------
    >>> MaxPool2d(2).forward(np.zeros((8, 32, 32, 64), "float32")).shape
    (8, 16, 16, 64)
    """

    def __init__(self, kernel_size: int = 2, stride: int | None = None, **common: Any):
        super().__init__(**common)
        stride = kernel_size if stride is None else stride
        _at_least(1, kernel_size=kernel_size, stride=stride)
        if kernel_size > 16:
            raise ValueError(f"kernel_size must be at most 16, not {kernel_size}")
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Any) -> Any:
        """Pool (N, H, W, C) to (N, OH, OW, C)."""
        self.check_input(x, "N", "H", "W", "C")
        if min(x.shape[1:3]) < self.kernel_size:
            raise ValueError(
                f"{self._label()}: a window of {self.kernel_size} does not fit into {tuple(x.shape)}"
            )
        return self.save_for_backward(*F.max_pool2d_forward(x, self.kernel_size, self.stride))

    def backward(self, dy: Any) -> Any:
        """Give each dy to the largest value of its window, of equal ones to the first."""
        return F.max_pool2d_backward(dy, self.saved(dy))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        N, H, W, C = shape
        return (N, *(F.conv_output_size(s, self.kernel_size, self.stride) for s in (H, W)), C)

    def _settings(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class GlobalAvgPool2d(Layer):
    """The mean of each channel over the image, (N, H, W, C) to (N, C) (``functional/pool.py``).

    Parameters
    ----------
    dtype, rng
        As of every ``Layer``.

    Examples
    --------
    >>> GlobalAvgPool2d().forward(np.ones((8, 7, 7, 512), "float32")).shape
    (8, 512)
    """

    def forward(self, x: Any) -> Any:
        """Average (N, H, W, C) to (N, C)."""
        self.check_input(x, "N", "H", "W", "C")
        return self.save_for_backward(*F.global_avg_pool2d_forward(x))

    def backward(self, dy: Any) -> Any:
        """Give every pixel its share."""
        return F.global_avg_pool2d_backward(dy, self.saved(dy))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        return (shape[0], shape[3])


class Flatten(Layer):
    """Everything of an image in a row: (N, H, W, C) to (N, H*W*C).

    Parameters
    ----------
    dtype, rng
        As of every ``Layer``.

    Examples
    --------
    >>> Flatten().forward(np.zeros((8, 7, 7, 512))).shape
    (8, 25088)
    """

    def forward(self, x: Any) -> Any:
        """Reshape (N, ...) to (N, everything else)."""
        self.check_input(x)
        if not x.shape:
            raise ValueError(f"{self._label()}: expected (N, ...), got ()")
        return self.save_for_backward(x.reshape(x.shape[0], -1), x.shape)

    def backward(self, dy: Any) -> Any:
        """Reshape back."""
        x_shape = self.saved(dy)
        return dy.reshape(x_shape)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        return (shape[0], int(np.prod(shape[1:])))


class Dropout(Layer):
    """In training forget a random part of the activations, in evaluation nothing (``functional/dropout.py``).

    Parameters
    ----------
    p : float
        The share that is dropped, in [0, 1].
    dtype : as of every ``Layer``
    rng : numpy.random.Generator, optional
        The layer's own: it draws one number for each activation of the batch, on the host.

    Examples
    --------
    >>> Dropout(0.5).eval().forward(np.ones(3))
    array([1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, **common: Any):
        super().__init__(**common)
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p must be between 0 and 1, not {p}")
        self.p = p
        self.rng = self._rng

    def forward(self, x: Any) -> Any:
        """Drop each activation with probability p, and scale the others."""
        self.check_input(x)
        if not self.training or self.p == 0.0:
            return self.save_for_backward(x, None)
        keep = array_module(x).asarray(self.draw(x.shape))
        return self.save_for_backward(*F.dropout_forward(x, keep, self.p))

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a new mask, True for what is kept, from the layer's generator."""
        return self.rng.random(shape, dtype=np.float32) >= self.p

    def backward(self, dy: Any) -> Any:
        """Pass the gradient through what was kept."""
        cache = self.saved(dy)
        return dy if cache is None else F.dropout_backward(dy, cache)

    def _settings(self) -> str:
        return f"p={self.p}"


class BatchNorm2d(Layer):
    """Batch normalisation (``functional/norm.py``).

    In training it normalises with the batch's own mean and (biased) variance, and tracks both for evaluation:
    running = (1 - momentum) * running + momentum * batch, with the unbiased variance, as PyTorch does.

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Added to the variance.
    momentum : float
        How much of each batch goes into the running statistics.
    dtype, rng
        As of every ``Layer``.

    Attributes
    ----------
    weight, bias : Parameter (num_features,)
    running_mean, running_var : array (num_features,)

    Examples
    --------
    >>> BatchNorm2d(64).forward(np.zeros((8, 4, 4, 64), "float32")).shape
    (8, 4, 4, 64)
    """

    buffer_names = ("running_mean", "running_var")

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, **common: Any):
        super().__init__(**common)
        _at_least(1, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(shape=(num_features,), dtype=self.dtype, fill=ones)
        self.bias = Parameter(shape=(num_features,), dtype=self.dtype, fill=zeros)
        self.running_mean = np.zeros(num_features, self.dtype)
        self.running_var = np.ones(num_features, self.dtype)
        self.parameters()

    def forward(self, x: Any) -> Any:
        """Normalise (N, H, W, num_features), channel by channel."""
        self.check_input(x, "N", "H", "W", self.num_features, hint="images are channels last")
        if not self.training:
            statistics = self.running_mean, self.running_var
            return self.save_for_backward(
                *F.batch_norm_forward(x, self.weight.data, self.bias.data, *statistics, eps=self.eps)
            )
        M = x.size // self.num_features
        if M == 1:
            raise ValueError(
                f"{self._label()}: one value a channel has no variance to train with: {tuple(x.shape)}"
            )
        y, cache = F.batch_norm_forward(x, self.weight.data, self.bias.data, eps=self.eps)
        self.running_mean += self.momentum * (cache.mean - self.running_mean)
        self.running_var += self.momentum * (cache.var * (M / (M - 1)) - self.running_var)
        self.weight.buffer.version += 1  # plans fold the statistics into weights
        return self.save_for_backward(y, cache)

    def backward(self, dy: Any) -> Any:
        """Set the gradients of weight and bias; return dx."""
        dx, self.weight.grad, self.bias.grad = F.batch_norm_backward(dy, self.saved(dy))
        return dx

    def _settings(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class Sequential(Layer):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
    dtype, rng
        As of every ``Layer``; the layers bring their own.

    Examples
    --------
    >>> net = Sequential(Conv2d(3, 8), ReLU(), GlobalAvgPool2d(), Linear(8, 10))
    >>> net.forward(np.zeros((2, 32, 32, 3), "float32")).shape
    (2, 10)
    >>> net[3]
    Linear(8, 10)
    """

    skips_input_gradient = True

    def __init__(self, *layers: Layer, **common: Any):
        super().__init__(**common)
        for layer in layers:
            if not isinstance(layer, Layer):
                raise ValueError(
                    f"Sequential takes layers, not {type(layer).__name__}: Sequential(Conv2d(3, 8), ReLU())"
                )
        self.layers = list(layers)
        self.parameters()

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers, named by their index."""
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def forward(self, x: Any) -> Any:
        """Run all layers, first to last."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy: Any, need_input_gradient: bool = True) -> Any:
        """Run all layers back, last to first.

        Parameters
        ----------
        dy : array, shape of the output
        need_input_gradient : bool
            False spares the work that only the gradient of the image needs; then None is returned.
        """
        return backward_through(self.layers, dy, need_input_gradient)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def multiply_adds(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        total = 0
        for layer in self.layers:
            total += layer.multiply_adds(shape)
            shape = layer.output_shape(shape)
        return total

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        lines = [f"  ({name}): " + repr(layer).replace("\n", "\n  ") for name, layer in self.children()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def backward_through(layers: list[Layer], dy: Any, need_input_gradient: bool = True) -> Any:
    """Run layers back, last to first, and leave out what only the gradient of the first input would need."""
    first = 0
    if not need_input_gradient:
        first = next((i for i, layer in enumerate(layers) if layer.parameters()), len(layers))
    for i in reversed(range(len(layers))):
        layer = layers[i]
        if need_input_gradient or i > first:
            dy = layer.backward(dy)
        elif i == first:
            layer.backward(dy, need_input_gradient=False) if layer.skips_input_gradient else layer.backward(
                dy
            )
        else:
            layer.clear_saved()
    return dy if need_input_gradient else None


def _set_gradients(layer: Conv2d | Linear, dweight: Any, dbias: Any) -> None:
    layer.weight.grad = dweight
    if layer.bias is not None:
        layer.bias.grad = dbias


def _initialisation(name: str) -> Any:
    if name not in INITIALISATIONS:
        raise ValueError(f"init must be one of {', '.join(INITIALISATIONS)}, not {name!r}")
    return INITIALISATIONS[name]


def _at_least(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
