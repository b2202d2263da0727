"""What every layer has: a forward and a backward pass, and what the one saves for the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import DTypeLike

from scratchnet.backend import Array, Backend
from scratchnet.layers import checking, summary, tree

if TYPE_CHECKING:
    from typing_extensions import Self


class Layer:
    """What all layers and networks have in common.

    Parameters
    ----------
    dtype : {"float32", "float64"}
        Of the parameters. Inputs must have it too, where there are any.
    rng : numpy.random.Generator, optional
        For layers that draw: they keep it as an attribute, and so a run saves and resumes it.

    Attributes
    ----------
    training : bool
        True at first; see ``train`` and ``eval``.
    path : str
        Where the layer stands in its network, as in ``features.0``; ``assemble`` sets it.

    Examples
    --------
    >>> from scratchnet.layers import Parameter
    >>> class Scale(Layer):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.weight = Parameter(np.ones(channels, "float32"))
    ...
    ...     def forward(self, x):
    ...         return self.save_for_backward(x * self.weight.data, x)
    ...
    ...     def backward(self, dy):
    ...         self.weight.grad = (dy * self.saved(dy)).sum(axis=(0, 1, 2))
    ...         return dy * self.weight.data
    >>> Scale(2).forward(np.ones((8, 4, 4, 2), "float32")).shape
    (8, 4, 4, 2)
    """

    training = True
    path = ""
    buffer_names: tuple[str, ...] = ()  # arrays that belong to the layer's state but are not learned
    skips_input_gradient = False  # whether backward takes need_input_gradient
    _recording = False
    _saved: tuple[Any, tuple[int, ...]] | None = None

    def __init__(self, *, dtype: DTypeLike = "float32", rng: np.random.Generator | None = None):
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, not {self.dtype}")

    def forward(self, x: Array) -> Array:
        """Compute the output, and save what ``backward`` will need (in evaluation: nothing)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Array) -> Any:
        """Set the parameters' gradients; return the gradient with respect to the last forward's input."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __call__(self, x: Array) -> Array:
        """Call ``forward``."""
        return self.forward(x)

    def save_for_backward(self, y: Array, cache: Any) -> Array:
        """Return the output ``y``, and keep ``cache`` for ``saved`` unless this is evaluation."""
        self._saved = (cache, tuple(y.shape)) if self.training or self._recording else None
        return y

    def saved(self, dy: Array) -> Any:
        """Return, once, what ``save_for_backward`` kept for a ``dy`` of the output's shape."""
        cache, self._saved = checking.check_gradient(self, self._saved, dy), None
        return cache

    check_input = checking.check_input

    @property
    def label(self) -> str:
        """The layer's name in messages: ``features.0 (Conv2d)``."""
        return f"{self.path} ({type(self).__name__})" if self.path else type(self).__name__

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as they are now: ``type(layer)(**settings)`` builds its like."""
        return {}

    def chain(self) -> Sequence[Layer] | None:
        """Return the layers that this one applies one after the other; None if it does anything else."""
        return None

    output_shape = tree.output_shape  # the chain's, or else that of the input
    multiply_adds = tree.multiply_adds  # the chain's, or else none

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers that are attributes of this one, or in a list or dict that is one, by name."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, (list, tuple, dict)):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                yield from ((f"{name}.{k}", item) for k, item in items if isinstance(item, Layer))

    # What concerns this layer and all layers within it: see tree.py. Asking changes nothing.
    walk = tree.walk
    parameters = tree.parameters
    buffers = tree.buffers
    generators = tree.generators
    to = tree.to
    train = tree.train
    recording = tree.recording
    clear_saved = tree.clear_saved

    def eval(self) -> Self:
        """Switch to evaluation: nothing random, running statistics, and nothing saved for backward."""
        return self.train(False)

    def freeze(self, prefix: str = "") -> Self:
        """Train the parameters within ``prefix`` no more: no gradients, no steps, no new statistics."""
        return tree.set_trainable(self, prefix, False)

    def unfreeze(self, prefix: str = "") -> Self:
        """Train the parameters within ``prefix`` again."""
        return tree.set_trainable(self, prefix, True)

    @property
    def backend(self) -> Backend:
        """The backend of the parameters; NumPy if there are none."""
        return tree.backend_of(self)

    def summary(self, image_size: int | tuple[int, ...] | None = None, file: TextIO | None = None) -> None:
        """Print a table of the layers, for square RGB images of this size or one input of this shape."""
        summary.show(self, image_size, file=file)

    def __setattr__(self, name: str, value: Any) -> None:
        checking.check_attribute(self, name, value)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"
