"""What all optimizers have in common: whose numbers they change, in which spans, on which workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import numpy as np

from scratchnet import checks, workers
from scratchnet.backend import Array, Backend
from scratchnet.parameters import FlatBuffer, Parameter

O = TypeVar("O", bound="Optimizer")

# Numbers that one call updates: values, gradients, moments and scratch together stay in the cache.
BLOCK_SIZE = 1 << 15


def is_bias_or_norm(name: str, parameter: Parameter) -> bool:
    """Tell whether a parameter is a bias, or scale or shift of a normalisation: one number per channel.

    Parameters
    ----------
    name, parameter
        As in ``net.parameters()``: for ``SGD(..., no_decay=is_bias_or_norm)``.

    Examples
    --------
    >>> is_bias_or_norm("features.0.bias", Parameter([0.0, 0.0]))
    True
    """
    return parameter.ndim == 1


class Span(NamedTuple):
    """Numbers that lie next to each other in the flat arrays, and are updated alike."""

    buffer: FlatBuffer
    start: int
    stop: int
    kept_from: int  # in what the optimizer keeps of them, such as momentum
    decay: float
    lr_scale: float
    steps: int  # that they have made, this one included, where that counts

    def part(self, start: int, stop: int) -> Span:
        """Return these numbers from ``start`` to ``stop``, which may lie beyond the end."""
        return self._replace(start=start, stop=stop, kept_from=self.kept_from + start - self.start)

    def of(self, kept: Array) -> Array:
        """Return their part of an array that the optimizer keeps."""
        return kept[self.kept_from : self.kept_from + self.stop - self.start]


class Optimizer:
    """The base of ``SGD`` and ``AdamW``, which say what a step does with a span of numbers.

    Parameters
    ----------
    parameters : dict of str to Parameter
        What ``net.parameters()`` returns.
    lr : float
    weight_decay : float
    no_decay : callable, optional
        Tells what weight decay leaves alone, as ``is_bias_or_norm`` does. By default everything decays.
    lr_scales : dict of str to float, optional
        What multiplies the learning rate of some layers, by path. Of several that fit, the longest counts.

    Attributes
    ----------
    keeps : tuple of str
        The names of what it keeps for each trained number from step to step.
    kept : dict of str to array
        That, by name: flat arrays, laid out as ``trainable()``. Empty before the first step.

    Examples
    --------
    >>> from scratchnet.optim import SGD
    >>> isinstance(SGD({"w": Parameter([1.0])}, lr=0.1), Optimizer)
    True
    """

    keeps: tuple[str, ...] = ()
    counts_steps = False

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        lr: float,
        weight_decay: float = 0.0,
        no_decay: Callable[[str, Parameter], bool] | None = None,
        lr_scales: Mapping[str, float] | None = None,
    ):
        if not isinstance(parameters, Mapping) or not parameters:
            kind = type(self).__name__
            raise ValueError(
                f"{kind} takes the dict that net.parameters() returns, with at least one parameter"
            )
        self.parameters = dict(parameters)
        self.lr, self.weight_decay = lr, weight_decay
        self.check_rates()
        self.no_decay = no_decay or (lambda name, parameter: False)
        self.lr_scales = dict(lr_scales or {})
        for path, scale in self.lr_scales.items():
            checks.real(0.0, **{f"lr_scales[{path!r}]": scale})
            if not any(_lies_in(name, path) for name in self.parameters):
                raise ValueError(f"lr_scales names {path!r}, where there are no parameters")
        self.kept: dict[str, Array] = {}
        self._kept_names: list[str] | None = None
        self._steps: dict[str, int] = {}
        _lay_together(list(self.parameters.values()))

    def check_rates(self) -> None:
        """Refuse rates that are none, also those that were assigned since."""
        checks.real(0.0, lr=self.lr, weight_decay=self.weight_decay)

    def like(self: O, parameters: Mapping[str, Parameter]) -> O:
        """Return an optimizer with the same settings for others, such as those of a copy of the network.

        >>> from scratchnet.optim import SGD
        >>> SGD({"w": Parameter([1.0])}, lr=0.1, momentum=0.9).like({"w": Parameter([2.0])}).momentum
        0.9
        """
        twin = copy.copy(self)
        twin.parameters, twin.kept, twin._kept_names, twin._steps = dict(parameters), {}, None, {}
        return twin

    def trainable(self) -> dict[str, Parameter]:
        """Return the parameters that are not frozen, in order: what is ``kept`` is laid out as these."""
        return {name: p for name, p in self.parameters.items() if p.trainable}

    def lr_scale(self, name: str) -> float:
        """Return what multiplies the learning rate of a parameter."""
        path = max((path for path in self.lr_scales if _lies_in(name, path)), key=len, default=None)
        return 1.0 if path is None else self.lr_scales[path]

    # What a resumed run needs

    def state(self) -> dict[str, Array]:
        """Return what a resumed run needs beside the parameters, by name; nothing before the first step."""
        if not self.counts_steps or not self.kept:
            return dict(self.kept)
        return self.kept | {"steps": np.array([self._steps.get(n, 0) for n in self._kept_names or ()], "i8")}

    def state_shapes(self, trained: Collection[str]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype of what ``state`` has after a step in which these parameters are trained.

        >>> from scratchnet.optim import SGD
        >>> SGD({"w": Parameter([1.0, 2.0])}, lr=0.1, momentum=0.9).state_shapes(["w"])
        {'momentum': ((2,), 'float64')}
        """
        sizes = [p.size for name, p in self.parameters.items() if name in trained]
        dtype = str(next(iter(self.parameters.values())).dtype)
        shapes: dict[str, tuple[tuple[int, ...], str]] = {name: ((sum(sizes),), dtype) for name in self.keeps}
        return shapes | ({"steps": ((len(sizes),), "int64")} if self.counts_steps else {})

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Put back what ``state`` returned; the parameters that were trained then must be those that are."""
        backend = next(iter(self.parameters.values())).buffer.backend
        self.kept = {name: backend.asarray(arrays[name]).copy() for name in self.keeps if name in arrays}
        self._kept_names = list(self.trainable())
        counts = backend.to_numpy(arrays["steps"]) if "steps" in arrays else [0] * len(self._kept_names)
        self._steps = dict(zip(self._kept_names, map(int, counts), strict=True))

    # A step

    def step(self) -> None:
        """Change the parameters by one step against their gradients.

        Parameters whose ``.grad`` is None are left alone, as in PyTorch, and so are frozen ones; a
        RuntimeError says that there is no other.
        """
        self.check_rates()
        backend = next(iter(self.parameters.values())).buffer.backend
        if not any(p.has_grad for p in self.trainable().values()):
            kind = type(self).__name__
            raise RuntimeError(f"{kind}.step: no parameter has a gradient: call net.backward() first")
        if self.counts_steps:
            for name, p in self.trainable().items():
                self._steps[name] = self._steps.get(name, 0) + p.has_grad
        spans = self.spans()
        self.lay_out(backend)
        buffers = {id(span.buffer): span.buffer for span in spans}.values()
        for buffer in buffers:
            buffer.fill()
        if backend.name == "numpy":
            # Every number is updated on its own, so it makes no difference which worker has which block.
            blocks = [
                span.part(start, min(start + BLOCK_SIZE, span.stop))
                for span in spans
                for start in range(span.start, span.stop, BLOCK_SIZE)
            ]
            count = min(workers.size(), len(blocks))
            workers.run_parallel([partial(self._update_all, blocks[k::count]) for k in range(count)])
        else:
            self._update_all(spans)
        for buffer in buffers:
            buffer.version += 1

    def _update_all(self, spans: list[Span]) -> None:
        # A new array for the intermediate values of each block would cost more than the arithmetic.
        longest = max(span.stop - span.start for span in spans)
        xp = spans[0].buffer.backend.xp
        scratch = {span.buffer.dtype: xp.empty(longest, span.buffer.dtype) for span in spans}
        for span in spans:
            values, gradients = span.buffer.allocate(), span.buffer.allocate_grad()
            part = slice(span.start, span.stop)
            s = scratch[span.buffer.dtype][: span.stop - span.start]
            self._update(xp, span, values[part], gradients[part], s)

    def _update(self, xp: Any, span: Span, w: Array, g: Array, s: Array) -> None:
        """Apply the formula to these numbers: w changes, g is only read, s is scratch."""
        raise NotImplementedError

    def next_step(self, name: str, p: Parameter, g: Array, lr: float) -> Array:
        """Return the step that a parameter with this gradient is about to make at this rate."""
        raise NotImplementedError

    def kept_of(self, name: str) -> dict[str, Array]:
        """Return what is kept of a parameter, of its shape; nothing if it has made no step."""
        order, p = self._kept_names or [], self.parameters[name]
        if not self.kept or name not in order:
            return {}
        start = sum(self.parameters[other].size for other in order[: order.index(name)])
        asarray = p.buffer.backend.asarray
        return {
            key: asarray(flat[start : start + p.size]).reshape(p.shape) for key, flat in self.kept.items()
        }

    def lay_out(self, backend: Backend) -> None:
        """Make what is kept, or move it with the network, and lay it out as what is trained now.

        What was kept of numbers that are frozen now is dropped; of those that were unfrozen, it is zero.
        """
        if not self.keeps:
            return
        trainable, xp = self.trainable(), backend.xp
        sizes = {name: p.size for name, p in self.parameters.items()}
        if not self.kept:
            dtype = next(iter(trainable.values())).dtype
            total = sum(sizes[name] for name in trainable)
            self.kept = {name: xp.zeros(total, dtype=dtype) for name in self.keeps}
        names = self._kept_names or list(trainable)
        self._kept_names = list(trainable)
        stops = list(accumulate(sizes[name] for name in names))
        for key, kept in self.kept.items():
            flat = self.kept[key] = backend.asarray(kept)
            if names != self._kept_names:
                parts = {n: flat[stop - sizes[n] : stop] for n, stop in zip(names, stops, strict=True)}
                parts |= {n: xp.zeros(sizes[n], flat.dtype) for n in trainable if n not in parts}
                self.kept[key] = xp.concatenate([parts[n] for n in trainable])
        self._steps = {name: count for name, count in self._steps.items() if name in trainable}

    def spans(self) -> list[Span]:
        """Join the parameters that have a gradient into spans; in a plain network there is one."""
        spans: list[Span] = []
        kept_from = 0
        for name, p in self.trainable().items():
            if p.has_grad:
                decay = 0.0 if self.no_decay(name, p) else self.weight_decay
                place = p.buffer, p.span.start, p.span.stop, kept_from
                span = Span(*place, decay, self.lr_scale(name), self._steps.get(name, 0))
                if spans and spans[-1].part(spans[-1].stop, span.stop) == span:
                    spans[-1] = spans[-1]._replace(stop=span.stop)
                else:
                    spans.append(span)
            kept_from += p.size
        return spans


def _lies_in(name: str, path: str) -> bool:
    """Tell whether a parameter is one of the layer of this path, as ``Layer.freeze`` understands it."""
    return not path or f"{name}.".startswith(f"{path}.")


def _lay_together(parameters: list[Parameter]) -> None:
    """Gather parameters of layers that are in no network into one buffer, so that a step is one pass.

    What lies in a buffer with others stays there: it is a part of a network that only some of is trained.
    """
    neighbours = {id(p) for buffer in {p.buffer for p in parameters} for p in buffer.parameters}
    if len({p.dtype for p in parameters}) == 1 and neighbours == {id(p) for p in parameters}:
        FlatBuffer.gather(parameters)
