"""A plan: a network compiled for one input shape and one mode. See the package's text for the ideas."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet.backend import array_module
from scratchnet.layers import Layer, Parameter, assemble, leaves
from scratchnet.plans.cpu.calls import Clock
from scratchnet.plans.grouping import Group, group
from scratchnet.plans.memory import Arena, Buffer, Workspace

ALGORITHMS = ("auto", "im2col", "winograd", "toeplitz", "first_conv")


def compile(
    net: Layer,
    input_shape: tuple[int, ...],
    training: bool = False,
    precision: str = "fp32",
    algorithm: str = "auto",
) -> Plan:
    """Make a network fast for one input shape and one mode.

    Parameters
    ----------
    net : Layer
        Any network of layers; those that are not known here run by their own forward and backward.
    input_shape : tuple of int
        Of the batch, (N, H, W, C).
    training : bool
        Whether for training, with ``backward``; the network must be in the same mode.
    precision : {"fp32", "tf32", "bf16"}
        In which float32 networks multiply: on a CPU always ``"fp32"``. On a GPU ``"tf32"`` and ``"bf16"``
        round what goes into a product to 11 and 8 significant bits; sums, weights and gradients stay float32.
        (A float64 network is computed in float64.)
    algorithm : {"auto", "im2col", "winograd", "toeplitz", "first_conv"}
        A kernel to use for every convolution that it supports; ``"im2col"``, the numerically plainest,
        supports all. (On a GPU all are im2col.)

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If the network is not in that mode, or does not fit the shape, or an argument is none of the above.

    Examples
    --------
    >>> from scratchnet.layers import Conv2d, Flatten, Linear, ReLU, Sequential
    >>> net = Sequential(Conv2d(3, 8), ReLU(), Flatten(), Linear(8 * 8 * 8, 10))
    >>> plan = compile(net, (4, 8, 8, 3), training=True)
    >>> logits = plan.forward(np.ones((4, 8, 8, 3), "float32"))
    >>> plan.backward(logits)
    >>> net[0].weight.grad.shape
    (3, 3, 3, 8)
    """
    if not isinstance(net, Layer):
        raise ValueError(f"a plan is made of a network of layers, not of {type(net).__name__}")
    if net.backend.name == "numpy":  # imported here, since both are made of what is in this file
        from scratchnet.plans.cpu.plan import CpuPlan as Kind
    else:
        from scratchnet.plans.cuda.plan import CudaPlan as Kind
    return Kind(net, input_shape, training, precision, algorithm)


class Plan:
    """A network compiled for one input shape and one mode. Made by ``compile``.

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

    Examples
    --------
    >>> from scratchnet.layers import Flatten, Linear, ReLU, Sequential
    >>> plan = compile(Sequential(Flatten(), Linear(12, 5), ReLU()), (4, 2, 2, 3), training=True)
    >>> plan.forward(np.zeros((4, 2, 2, 3), "float32")).shape
    (4, 5)
    >>> [group.title for group in plan.groups]
    ['Flatten', 'Linear+ReLU']
    """

    precisions: tuple[str, ...] = ("fp32",)

    def __init__(
        self, net: Layer, input_shape: tuple[int, ...], training: bool, precision: str, algorithm: str
    ):
        shape = tuple(int(s) for s in input_shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"input_shape must be the shape of a batch, as in (128, 32, 32, 3), not {shape}")
        if precision not in self.precisions:
            choice = f"one of {', '.join(self.precisions)}" if len(self.precisions) > 1 else "fp32 on a CPU"
            raise ValueError(f"precision must be {choice}, not {precision!r}")
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
        self.net, self.input_shape, self.training = net, shape, bool(training)
        self.precision, self.algorithm = precision, algorithm
        self._remember()
        for path, layer in self._layers:
            if layer.training != self.training:
                word = "training" if self.training else "evaluation"
                raise ValueError(
                    f"{path} ({type(layer).__name__}) is not in {word} mode, the plan is to be: call "
                    f"net.{'train' if self.training else 'eval'}() first, or compile with training="
                    f"{not self.training}"
                )
        self.dtype = np.dtype(net_dtype(net))
        self.groups = self._group()
        self.output_shape = self.groups[-1].output_shape
        self.clock = Clock()
        self.kernels: list[Any] = []
        self.maps: list[Any] = []
        self._compile()
        self._reserve_memory()
        self.workspace = Workspace.of(net)
        self._block: Any = None
        self._last_forward = 0
        self._derived_from: Any = None
        self._bind()

    # What a plan consists of; the first three are each kind's own

    def _compile(self) -> None:
        """Make ``kernels`` and ``maps``."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Do what has to be done once all buffers have their arrays."""

    def _how(self) -> str:
        """Say in a few words on what this plan runs."""
        raise NotImplementedError

    def _group(self) -> list[Group]:
        return group(self.net, self.input_shape)

    def _reserve_memory(self) -> None:
        """Give each map, gradient and scratch buffer its steps, and a place."""
        self.arena = Arena()
        G = len(self.kernels)

        def back(i: int) -> int:
            return 2 * G - 1 - i

        # Map i is what group i reads and group i - 1 makes; the last one is the output. back(i) is the step
        # of group i's backward pass.
        for i, map in enumerate(self.maps):
            if map.is_view:
                continue
            # A view of the map may stand between it and the group that reads it.
            reader = i
            while reader < G and self.kernels[reader].is_view:
                reader += 1
            last = min(reader, G - 1)
            first_use = max(0, i - 1)
            last_use = last
            if self.training:
                last_use = back(first_use if self.kernels[first_use].keeps_output else min(i, G - 1))
            map.reserve(self.arena, f"map {i}", first_use, last_use)
            if self.training:
                map.reserve_grad(self.arena, f"gradient {i}", back(last), back(first_use))
        self._scratch: list[list[Buffer]] = []  # of each kernel
        for i, kernel in enumerate(self.kernels):
            before = len(self.arena.buffers)
            kernel.reserve(self.arena, i, back(i) if self.training else None)
            self._scratch.append(self.arena.buffers[before:])
        self.arena.assign_offsets()

    def _bind(self) -> None:
        """Take (or move to) the network's block of memory."""
        self._block = None  # until all is done: whatever interrupts this, it will be done again
        self._derived_from = None
        self._last_forward = 0
        self.workspace.reserve(self.arena.size, self.net.backend.xp)
        self.arena.bind(self.workspace.block)
        self._prepare()
        self._block = self.workspace.block

    # Running

    def forward(self, x: Any) -> np.ndarray:
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
            wanted = f"{'NumPy' if xp is np else 'CuPy'} array of shape {self.input_shape}"
            raise ValueError(f"this plan is for a {wanted}, not {_told(x, xp)}: compile one for each shape")
        if x.dtype != self.dtype:
            raise ValueError(f"expected {self.dtype}, got {x.dtype}")
        with self.workspace.lock:
            if self.workspace.block is not self._block:
                self._bind()
            self._last_forward = 0
            mine = self.workspace.take()
            version = self._buffer.version if self._buffer is not None else 0
            derive = self.training or self._derived_from != version or self._statistics_changed
            self._derived_from = None
            y = self._run_forward(x, derive)
            self._derived_from = version
            self.clock.runs["forward"] = self.clock.runs.get("forward", 0) + 1
            self._last_forward = mine
            return y

    def __call__(self, x: Any) -> np.ndarray:
        """Call ``forward``."""
        return self.forward(x)

    def backward(self, dy: Any, need_input_gradient: bool = False) -> np.ndarray | None:
        """Set the gradients of all parameters, as ``net.backward`` does.

        Parameters
        ----------
        dy : array, shape of the output
            Gradient of the loss with respect to it.
        need_input_gradient : bool
            Whether to return the gradient with respect to the network's input, too.

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
            return self._backward_of_last(dy, need_input_gradient)

    def _backward_of_last(self, dy: Any, need_input_gradient: bool) -> Any:
        if not self._last_forward:
            raise RuntimeError(
                "backward without a forward before it: call forward first, once for each backward"
            )
        if self.workspace.owner != self._last_forward:
            raise RuntimeError(
                "another plan of this network has run since this one's forward, in the same memory, or a "
                "larger one was compiled: call forward again, directly before backward"
            )
        if tuple(getattr(dy, "shape", ())) != self.output_shape:
            raise ValueError(
                f"the output was {self.output_shape}, its gradient is "
                f"{getattr(dy, 'shape', type(dy).__name__)}"
            )
        self._last_forward = 0
        if self._buffer is not None:
            self._buffer.allocate_grad()
        dx = self._run_backward(dy, need_input_gradient)
        self.clock.runs["backward"] = self.clock.runs.get("backward", 0) + 1
        for g in self.groups:
            if g.kind != "other":
                for layer in g.layers:
                    for parameter in layer.parameters().values():
                        parameter.has_grad = True
        return dx

    def refresh(self) -> None:
        """Derive everything again that follows from the parameters.

        Call it after writing into a parameter's ``.data`` by hand; steps of an optimizer, loading and
        assignment are noticed.
        """
        self._derived_from = None

    # How it runs: each kind's own

    # Whether what was derived from the statistics of batch normalisations has to be derived again.
    _statistics_changed = False

    def _run_forward(self, x: Any, derive: bool) -> Any:
        """Return the output; ``derive`` anew what follows from the parameters, or use what there is."""
        raise NotImplementedError

    def _run_backward(self, dy: Any, need_input_gradient: bool) -> Any:
        """Set the gradients; return the one of the input, or None."""
        raise NotImplementedError

    # Staleness

    def _remember(self) -> None:
        """Note what this plan holds on to, to notice when it changes."""
        parameters = assemble(self.net).parameters()
        self._layers = leaves(self.net)
        self._parameters = list(parameters.values())
        self._of_layers = [p for _, layer in self._layers for p in _own_parameters(layer)]
        self._settings = [_settings(layer) for _, layer in self._layers]
        self._buffer = self._parameters[0].buffer if self._parameters else None
        for parameter in self._parameters:
            parameter.data  # noqa: B018  (the first values are made when first asked for)
        self._values = self._buffer.data if self._buffer is not None else None

    def _check_current(self) -> None:
        """Raise if this plan is stale."""
        now = leaves(self.net)
        reason = ""
        if len(now) != len(self._layers) or any(
            a is not b for (_, a), (_, b) in zip(now, self._layers, strict=True)
        ):
            reason = "its layers have changed"
        elif any(layer.training != self.training for _, layer in now):
            reason = f"it is no longer in {'training' if self.training else 'evaluation'} mode"
        elif (settings := [_settings(layer) for _, layer in now]) != self._settings:
            k = next(k for k, own in enumerate(settings) if own != self._settings[k])
            reason = f"{now[k][0]} ({type(now[k][1]).__name__}) has other settings"
        elif self._parameters and (
            self._buffer.data is not self._values
            or any(p.buffer is not self._buffer for p in self._parameters)
            or [p for _, layer in now for p in _own_parameters(layer)] != self._of_layers
        ):
            reason = "its parameters have moved"
        if reason:
            raise RuntimeError(
                f"this plan is stale, since the network has changed: {reason}; compile it again"
            )

    # Telling

    def describe(self, buffers: bool = False) -> str:
        """Return a table: for each group algorithm, layout, memory, multiply-adds, and its share of the time.

        Parameters
        ----------
        buffers : bool
            Whether to list every buffer under its group, too, with the steps of its life and its place in
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
        table = [["group", "layers", "algorithm", "input", "map MB", "scratch MB", "M mult-adds",
                  "forward ms", "backward ms", "GFLOP/s", "share"]]  # fmt: skip
        runs = self.clock.runs
        spent = [
            [
                sum(s for (g, d, _), s in self.clock.seconds.items() if g == i and d == direction)
                / max(1, runs.get(direction, 0))
                for direction in ("forward", "backward")
            ]
            for i in range(len(self.kernels))
        ]
        total = sum(sum(times) for times in spent) or 1.0
        lists: list[list[Buffer]] = []
        for i, (g, kernel, before) in enumerate(zip(self.groups, self.kernels, self.maps, strict=False)):
            owned = [b for b in (before._data, before._grad) if b is not None]
            lists.append(owned + self._scratch[i])
            passes = (3 if i else 2) if runs.get("backward") else 1
            operations = 2 * passes * g.multiply_adds
            seconds = sum(spent[i])
            algorithm = f"{kernel.algorithm} {kernel.describe()}".strip()
            table.append(
                [
                    g.name,
                    g.title,
                    algorithm,
                    f"{' x '.join(str(s) for s in g.input_shape)} {before.layout}",
                    f"{sum(b.nbytes for b in owned) / 1e6:.1f}",
                    f"{sum(b.nbytes for b in self._scratch[i]) / 1e6:.1f}",
                    f"{g.multiply_adds / 1e6:,.0f}",
                    f"{spent[i][0] * 1e3:.2f}" if self.clock.seconds else "",
                    f"{spent[i][1] * 1e3:.2f}" if self.clock.seconds else "",
                    f"{operations / seconds / 1e9:.0f}" if seconds and operations else "",
                    f"{seconds / total:.1%}" if seconds else "",
                ]
            )
        widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
        lines = [
            "  ".join(
                c.ljust(w) if k < 4 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        mode = "training" if self.training else "inference"
        asked = sum(b.nbytes for b in self.arena.buffers)
        head = (
            f"plan for {mode}, input {self.input_shape}, {self._how()}; "
            f"{self.arena.size / 1e6:.0f} MB of workspace for {len(self.arena.buffers)} buffers of together "
            f"{asked / 1e6:.0f} MB"
        )
        lines = [line.rstrip() for line in lines]
        if buffers:
            for i, own in reversed(list(enumerate(lists))):
                lines[i + 2 : i + 2] = [
                    f"    {b.name}: {' x '.join(str(s) for s in b.shape)} {b.dtype}, {b.nbytes:,} bytes at "
                    f"{b.offset:,}, steps {b.first_use} to {b.last_use}"
                    for b in own
                ]
        return "\n".join([head, *lines])

    def __repr__(self) -> str:
        return f"Plan({type(self.net).__name__}, {self.input_shape}, training={self.training})"


def net_dtype(net: Layer) -> Any:
    """Return the element type that a network computes in."""
    parameters = net.parameters()
    return next(iter(parameters.values())).dtype if parameters else net.dtype


def _settings(layer: Layer) -> tuple[Any, ...]:
    """Return what a plan has built on and somebody may change, but for parameters."""
    own = vars(layer)
    wrapped = "forward" in own, "backward" in own
    return (*wrapped, own.get("p"), own.get("stride"), own.get("padding"), own.get("kernel_size"))


def _own_parameters(layer: Layer) -> list[Parameter]:
    return [value for value in vars(layer).values() if isinstance(value, Parameter)]


def _told(x: Any, xp: Any) -> str:
    """Say what somebody gave in place of an array of the library ``xp``."""
    if not hasattr(x, "shape"):
        return type(x).__name__
    return str(x.shape) if array_module(x) is xp else f"{array_module(x).__name__}.{type(x).__name__}"
