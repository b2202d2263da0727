"""A plan: a network compiled for one input shape and one mode. See the package's text for the ideas."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np

from scratchnet import checks
from scratchnet.backend import Array, array_module
from scratchnet.layers import Layer, Parameter, assemble, leaves
from scratchnet.plans.describe import Clock, describe, fallback_warning
from scratchnet.plans.grouping import group
from scratchnet.plans.kernel import Fallback, Group, PlanContext
from scratchnet.plans.memory import Arena, Buffer, Workspace
from scratchnet.plans.registry import algorithms

CHANGEABLE = dict, list, tuple, np.ndarray  # kinds of settings that may be changed in place


class Plan:
    """A network compiled for one input shape and one mode; ``compile`` makes it.

    Here is what plans have in common wherever they compute: what they look at, when they are stale, their
    memory, and what they tell. ``cpu/plan.py`` and ``cuda/plan.py`` say how they run.

    Attributes
    ----------
    net : Layer
    input_shape, output_shape : tuple of int
    training : bool
    precision, algorithm : str
        As they were given to ``compile``.
    groups : list of Group
        What is computed together.
    kernels : list
        For each group, what computes it.
    maps : list
        What goes into each group, then what comes out of the last one.
    lowest : int
        The first group with trainable parameters: backward ends there.

    Examples
    --------
    >>> from scratchnet.layers import Flatten, Linear, ReLU, Sequential
    >>> from scratchnet.plans import compile
    >>> plan = compile(Sequential(Flatten(), Linear(12, 5), ReLU()), (4, 2, 2, 3), training=True)
    >>> plan.forward(np.zeros((4, 2, 2, 3), "float32")).shape
    (4, 5)
    >>> [group.title for group in plan.groups]
    ['Flatten', 'Linear+ReLU']
    """

    device: ClassVar[str] = ""
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def __init__(
        self, net: Layer, input_shape: tuple[int, ...], training: bool, precision: str, algorithm: str
    ):
        shape = _shape_of_batch(input_shape)
        if precision not in self.precisions:
            choice = f"one of {', '.join(self.precisions)}" if len(self.precisions) > 1 else "fp32 on a CPU"
            raise ValueError(f"precision must be {choice}, not {precision!r}")
        known = ["auto", *algorithms(self.device)]
        if algorithm not in known:
            raise ValueError(f"algorithm must be one of {', '.join(known)}, not {algorithm!r}")
        self.net, self.input_shape, self.training = net, shape, bool(training)
        self.precision, self.algorithm = precision, algorithm
        self._remember()
        modes = ("evaluation", "training") if self.training else ("training", "evaluation")
        call = "train" if self.training else "eval"
        for layer in self._layers:
            if layer.training != self.training:
                raise ValueError(
                    f"{layer.label} is in {modes[0]} mode, but this plan is for {modes[1]}: call "
                    f"net.{call}() first, or compile with training={not self.training}; a part is kept as it "
                    "is by net.freeze(path)"
                )
        self.dtype = np.dtype(self._parameters[0].dtype if self._parameters else net.dtype)
        self.common = PlanContext(self.training, self.dtype, self.algorithm)
        self.groups = self._group()
        if not self.groups:
            raise ValueError(f"{net.label} has no layers: there is nothing to compile")
        self.output_shape = self.groups[-1].output_shape
        learning = [i for i, g in enumerate(self.groups) if g.learns]
        self.lowest = learning[0] if learning else len(self.groups)
        self.clock = Clock()
        self.kernels: list[Any] = []
        self.maps: list[Any] = []
        self._compile()
        self._reserve_memory()
        self.workspace = Workspace.of(net)

    # What a plan consists of; the first three are each device's own

    def _compile(self) -> None:
        """Make ``kernels`` and ``maps``."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Do what has to be done once all buffers have their arrays."""

    def describe_device(self) -> str:
        """Say in a few words on what this plan runs."""
        raise NotImplementedError

    def _group(self) -> list[Group]:
        return group(self.net, self.input_shape, self.device, self.common)

    def _reserve_memory(self) -> None:
        """Give each map, gradient and scratch buffer its steps, and a place."""
        self.arena = Arena()
        G = len(self.kernels)

        def back(i: int) -> int:
            return 2 * G - 1 - i

        # Map i is what group i reads and group i - 1 makes; the last one is the output. back(i) is the step
        # of group i's backward pass.
        for i, m in enumerate(self.maps):
            if m.is_view:
                continue
            # A view of the map may stand between it and the group that reads it.
            last = next((k for k in range(i, G) if not self.kernels[k].is_view), G - 1)
            first_use = max(0, i - 1)
            until = back(first_use if self.kernels[first_use].keeps_output else min(i, G - 1))
            m.reserve(self.arena, f"map {i}", first_use, until if self.training else last)
            if self.training:
                m.reserve(self.arena, f"gradient {i}", back(last), back(first_use), grad=True)
        self.scratch: list[list[Buffer]] = []  # of each kernel
        for i, kernel in enumerate(self.kernels):
            before = len(self.arena.buffers)
            kernel.reserve(self.arena, i, back(i) if self.training else None)
            self.scratch.append(self.arena.buffers[before:])
        self.arena.assign_offsets()

    def bind(self) -> None:
        """Take (or move to) the network's block of memory."""
        with self.workspace.lock:  # no plan of this network runs meanwhile
            self._block: Any = None  # until all is done: whatever interrupts this, it will be done again
            self._derived_from: tuple[int, int] | None = None
            self._last_forward = 0
            self.workspace.reserve(self.arena.size, self.net.backend.xp)
            self.arena.bind(self.workspace.block)
            self.workspace.tenants.add(self)
            self._prepare()
            self._block = self.workspace.block

    def release(self) -> None:
        """Let go of the network's block of memory, until the next forward pass."""
        self._block = None
        self.arena.release()

    # Running

    def forward(self, x: Array) -> Array:
        """Compute the output, as ``net.forward`` does.

        Parameters
        ----------
        x : array, the shape that the plan was compiled for
            It is copied; nothing holds on to it.

        Returns
        -------
        array
            The caller's own.

        Raises
        ------
        RuntimeError
            If the network has changed since: its layers, its mode, or where its parameters are.
        ValueError
            If x has another shape or dtype.
        """
        self._check_current()
        xp = self.net.backend.xp
        if array_module(x) is not xp or tuple(getattr(x, "shape", ())) != self.input_shape:
            library, given = array_module(x), type(x).__name__
            if hasattr(x, "shape"):
                given = str(x.shape) if library is xp else f"{library.__name__}.{given}"
            wanted = f"{'NumPy' if xp is np else 'CuPy'} array of shape {self.input_shape}"
            raise ValueError(f"this plan is for a {wanted}, not {given}: compile one for each shape")
        if x.dtype != self.dtype:
            raise ValueError(f"this plan computes in {self.dtype}, got {x.dtype}")
        with self.workspace.lock:
            if self.workspace.block is not self._block:
                self.bind()
            self._last_forward = 0
            mine = self.workspace.take()
            state = self._state_of_values()
            derive = self.training or self._derived_from != state or self._statistics_changed()
            self._derived_from = None
            y = self._run_forward(x, derive)
            self._derived_from = self._state_of_values()  # layers within it have only read their own
            self.clock.count("forward")
            self._last_forward = mine
            return y

    def __call__(self, x: Array) -> Array:
        """Call ``forward``."""
        return self.forward(x)

    def backward(self, dy: Array, need_input_gradient: bool = False) -> Array | None:
        """Set the gradients of all parameters, and return None unless asked for the input's.

        Parameters
        ----------
        dy : array, shape of the output
            Gradient of the loss with respect to it.
        need_input_gradient : bool
            Whether to return the gradient of the network's input, too, as ``net.backward`` does unasked.

        Returns
        -------
        array, shape of the input, or None
            The caller's own.

        Raises
        ------
        RuntimeError
            If forward was not called before, once for each backward, or another plan of the same network has
            run since, or a larger one was compiled, or the network has changed.
        ValueError
            If dy has not the shape of the output.
        """
        if not self.training:
            raise RuntimeError("this plan is for inference: compile one with training=True")
        self._check_current()
        with self.workspace.lock:
            if not self._last_forward:
                raise RuntimeError(
                    "backward without a forward before it: call forward first, once for each backward"
                )
            if self.workspace.owner != self._last_forward:
                raise RuntimeError(
                    "another plan of this network has run since this one's forward, in the same memory, or a "
                    "larger one was compiled: call forward again, directly before backward"
                )
            array_module(dy)  # refuses masks
            if tuple(getattr(dy, "shape", ())) != self.output_shape:
                given = getattr(dy, "shape", type(dy).__name__)
                raise ValueError(f"the output was {self.output_shape}, its gradient is {given}")
            self._last_forward = 0
            if self.lowest == len(self.groups) and not need_input_gradient:
                return None  # nothing learns
            if self._buffer is not None:
                self._buffer.allocate_grad()
            dx = self._run_backward(dy, need_input_gradient)
            self.clock.count("backward")
            for kernel in self.kernels:
                for layer in kernel.group.layers if not isinstance(kernel, Fallback) else ():
                    for parameter in layer.parameters().values():
                        parameter.has_grad = parameter.trainable
            return dx

    def refresh(self) -> None:
        """Derive everything again that follows from the parameters.

        Call it after writing into an array that ``.data`` gave before the last forward pass, on one plan of
        the network, for all of them. All else is noticed: steps of an optimizer, loading, assignment, and
        ``parameter.data[...] *= 0.5``.
        """
        self._derived_from = None
        if self._buffer is not None:
            self._buffer.version += 1

    def _state_of_values(self) -> tuple[int, int]:
        return (0, 0) if self._buffer is None else self._buffer.state

    # How it runs: each device's own

    def _statistics_changed(self) -> bool:
        """Tell whether what follows from the statistics of batch normalisations has to be derived again."""
        return False

    def _run_forward(self, x: Array, derive: bool) -> Array:
        """Return the output; ``derive`` what follows from the parameters again, or use what there is."""
        raise NotImplementedError

    def _run_backward(self, dy: Array, need_input_gradient: bool) -> Array | None:
        """Set the gradients; return the one of the input, or None."""
        raise NotImplementedError

    def _gradients_final(self, group: int) -> None:
        """Tell the buffer's observer of the gradients that a group has set; layers do it by themselves."""
        observer = None if self._buffer is None else self._buffer.observer
        if observer is not None and not isinstance(self.kernels[group], Fallback):
            for layer in self.groups[group].layers:
                for parameter in layer.parameters().values():
                    observer(parameter)

    # Staleness

    def _remember(self) -> None:
        """Note what this plan holds on to, to notice when it changes."""
        self._parameters = list(assemble(self.net).parameters().values())
        self._layers = [layer for _, layer in leaves(self.net)]
        self._of_layers = [p for layer in self._layers for p in _own_parameters(layer)]
        self._settings = [_settings(layer) for layer in self._layers]
        self._buffer = self._parameters[0].buffer if self._parameters else None
        for parameter in self._parameters:
            parameter.data  # noqa: B018  (the first values are made when first asked for)
        self._values = self._buffer.data if self._buffer is not None else None

    def _check_current(self) -> None:
        """Raise if this plan is stale."""
        now = [layer for _, layer in leaves(self.net)]
        reason = ""
        if [*map(id, now)] != [*map(id, self._layers)]:
            reason = "its layers have changed"
        elif any(layer.training != self.training for layer in now):
            reason = f"it is no longer in {'training' if self.training else 'evaluation'} mode"
        elif others := [x for x, old in zip(now, self._settings, strict=True) if _settings(x) != old]:
            reason = f"{others[0].label} has other settings"
        elif self._buffer is not None and (
            self._buffer.data is not self._values
            or any(p.buffer is not self._buffer for p in self._parameters)
            or [p for layer in now for p in _own_parameters(layer)] != self._of_layers
        ):
            reason = "its parameters have moved"
        if reason:
            reason = f"the network has changed: {reason}"
            raise RuntimeError(f"this plan is stale, since {reason}; compile it again")

    # Telling

    def describe(self, buffers: bool = False) -> str:
        """Return a table: for each group algorithm, layout, memory, multiply-adds, and its share of the time.

        Parameters
        ----------
        buffers : bool
            Whether to list every buffer under its group, too, with its first and last use and its place in
            the workspace (``memory.py``).

        Returns
        -------
        str
            The memory of a group is that of its input map with its gradient, and that of its scratch buffers,
            most of which share their place with those of other groups. Times are those since the plan was
            compiled (on a GPU, those that ``measure`` took); GFLOP/s counts two operations for each
            multiply-add of the layer's definition, and once there was a backward pass three passes (two for
            the first group, whose input gradient is rarely asked for), whatever the algorithm really does.
        """
        return describe(self, buffers)

    def warn_of_fallback(self, stacklevel: int) -> None:
        """Warn if layers run by their own forward and backward, and name them with their share."""
        message = fallback_warning(self.groups, [isinstance(kernel, Fallback) for kernel in self.kernels])
        if message:
            warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)

    def __repr__(self) -> str:
        return f"Plan({type(self.net).__name__}, {self.input_shape}, training={self.training})"


def _shape_of_batch(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(shape)
        checks.whole(**{str(i): size for i, size in enumerate(sizes)})
    except (TypeError, ValueError):
        sizes = ()
    if not sizes:
        wanted = "the shape of a batch, as in (128, 32, 32, 3)"
        raise ValueError(f"input_shape must be {wanted}, not {checks.shown(shape)}")
    return tuple(map(int, sizes))


def _settings(layer: Layer) -> tuple[Any, ...]:
    """Return what a plan builds on and may change, but for parameters."""
    own = vars(layer)
    trainable = [p.trainable for p in _own_parameters(layer)] if layer.training else None
    return "forward" in own, "backward" in own, _as_now(layer.settings()), trainable


def _as_now(value: Any) -> Any:
    """Return settings as they are now: to be compared, and whatever is changed in place later."""
    if isinstance(value, dict):
        return {key: _as_now(v) if isinstance(v, CHANGEABLE) else v for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_now(v) for v in value]
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def _own_parameters(layer: Layer) -> list[Parameter]:
    return [value for value in vars(layer).values() if isinstance(value, Parameter)]
