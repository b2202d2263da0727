"""A plan: a network compiled for one input shape and one mode. See the package's text for the ideas."""

from __future__ import annotations

import os
from itertools import count
from typing import Any

import numpy as np

from scratchnet import workers
from scratchnet.backend import array_module
from scratchnet.layers import Dropout, Layer, Parameter
from scratchnet.plans import choosing
from scratchnet.plans.cpu.few import Few
from scratchnet.plans.cpu.im2col import Im2col
from scratchnet.plans.cpu.kernel import Kernel, Setting
from scratchnet.plans.cpu.linear import Linear
from scratchnet.plans.cpu.maps import LAYOUTS, Map, Reshaped
from scratchnet.plans.cpu.norm import Norm
from scratchnet.plans.cpu.simple import Average, Fallback, View
from scratchnet.plans.cpu.toeplitz import Toeplitz
from scratchnet.plans.cpu.winograd import Winograd
from scratchnet.plans.grouping import group, leaves
from scratchnet.plans.memory import Arena, Buffer, Workspace
from scratchnet.plans.running import Clock, Phase, run

# The algorithms, and the layout that each wants its input in. (Each can store its output in any layout; only
# "few" always makes tiles.)
CONVOLUTIONS: dict[str, tuple[type[Kernel], str]] = {
    "im2col": (Im2col, "plain"),
    "winograd": (Winograd, "tiles"),
    "few": (Few, "plain"),
    "toeplitz": (Toeplitz, "pixels"),
}
OTHERS: dict[str, type[Kernel]] = {
    "norm": Norm,
    "linear": Linear,
    "average": Average,
    "flatten": View,
    "nothing": View,
    "other": Fallback,
}
_forwards = count(1)


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
    precision : {"fp32"}
        In which float32 networks are computed. (A float64 network is computed in float64.)
    algorithm : {"auto", "im2col"}
        ``"im2col"`` takes the numerically plainest algorithm for every convolution.

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
    return Plan(net, input_shape, training, precision, algorithm)


class Plan:
    """A network compiled for one input shape and one mode. Made by ``compile``.

    Attributes
    ----------
    net : Layer
    input_shape, output_shape : tuple of int
    training : bool
    groups : list of Group
        What is computed together.
    """

    def __init__(
        self, net: Layer, input_shape: tuple[int, ...], training: bool, precision: str, algorithm: str
    ):
        if not isinstance(net, Layer):
            raise ValueError(f"a plan is made of a network of layers, not of {type(net).__name__}")
        shape = tuple(int(s) for s in input_shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"input_shape must be the shape of a batch, as in (128, 32, 32, 3), not {shape}")
        if precision != "fp32":
            raise ValueError(f"precision must be 'fp32', not {precision!r}")
        if algorithm not in choosing.ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(choosing.ALGORITHMS)}, not {algorithm!r}")
        if net.backend.name != "numpy":
            raise ValueError(f"plans compute on the CPU, the network is on {net.backend.name}")
        self.net, self.input_shape, self.training, self.algorithm = net, shape, bool(training), algorithm
        self._remember()
        for path, layer in self._layers:
            if layer.training != self.training:
                word = "training" if self.training else "evaluation"
                raise ValueError(
                    f"{path} ({type(layer).__name__}) is not in {word} mode, the plan is to be: call "
                    f"net.{'train' if self.training else 'eval'}() first, or compile with training="
                    f"{not self.training}"
                )
        self.groups = group(net, shape)
        self.output_shape = self.groups[-1].output_shape
        limit = choosing.block_limit()
        self.setting = Setting(workers.size(), self.training, np.dtype(net_dtype(net)), limit)
        self.clock = Clock()
        self.workspace = Workspace.of(net)
        self._make_kernels()
        if not self.training:
            self._keep_weights()
        self._request_memory()
        self._block: Any = None
        self._last_forward = 0
        self._derived_from: Any = None
        self._bind()

    # What a plan consists of

    def _make_kernels(self) -> None:
        """Choose an algorithm for each group, and make the maps between them."""
        algorithms = [
            choosing.algorithm_for(self.groups, i, self.algorithm, self.setting.dtype)
            if g.kind == "conv"
            else ""
            for i, g in enumerate(self.groups)
        ]
        layouts = []  # of the input of each group, then of the output
        for i, g in enumerate(self.groups):
            if g.kind == "conv":
                layouts.append(CONVOLUTIONS[algorithms[i]][1])
            elif g.kind == "norm" and i > 0 and self.groups[i - 1].kind == "conv":
                # A norm takes any layout: that which its convolution reads, so that nothing is rearranged.
                layouts.append("tiles" if algorithms[i - 1] == "few" else layouts[i - 1])
            else:
                layouts.append("plain")
        layouts.append("plain")

        N, lanes = self.input_shape[0], self.setting.lanes
        tiled = [g.input_shape for g, layout in zip(self.groups, layouts, strict=False) if layout == "tiles"]
        width, channels = tiled[0][2:] if tiled else (1, 1)
        chunks = choosing.images_per_chunk(N, width, channels, lanes)
        maps: list[Map] = [LAYOUTS[layouts[0]](self.input_shape, chunks, self.setting.dtype)]
        self.kernels: list[Kernel] = []
        for i, g in enumerate(self.groups):
            before = maps[-1]
            if OTHERS.get(g.kind) is View:
                output: Map = Reshaped(before, g.output_shape)
            else:
                output = LAYOUTS[layouts[i + 1]](g.output_shape, chunks, self.setting.dtype)
                output.rectified = g.relu is not None
                if g.dropout is not None and self.training:
                    output.scale = 1.0 / (1.0 - g.dropout.p) if g.dropout.p < 1.0 else 0.0
            maps.append(output)
            kind = CONVOLUTIONS[algorithms[i]][0] if g.kind == "conv" else OTHERS[g.kind]
            self.kernels.append(kind(g, before, output, self.setting, first=i == 0))
        self.maps = maps
        self._folds = [kernel.fold for kernel in self.kernels if kernel.group.norm is not None]

    def _keep_weights(self) -> None:
        """Decide which kernels keep their transformed weights: from the first on, as far as memory goes."""
        budget = memory_budget(self._buffer.size * self.setting.dtype.itemsize if self._buffer else 0)
        for kernel in self.kernels:
            if 0 < kernel.weight_bytes <= budget:
                kernel.keeps_weights = True
                budget -= kernel.weight_bytes

    def _request_memory(self) -> None:
        """Give each map, gradient and scratch buffer its moments, and a place."""
        self.arena = Arena()
        G = len(self.kernels)

        def back(i: int) -> int:
            return 2 * G - 1 - i

        # Map i is what group i reads and group i - 1 makes; the last one is the output. back(i) is the moment
        # of group i's backward pass.
        for i, map in enumerate(self.maps):
            if isinstance(map, Reshaped):
                continue
            # A view of the map may stand between it and the group that reads it.
            reader = i
            while reader < G and isinstance(self.kernels[reader], View):
                reader += 1
            last = min(reader, G - 1)
            born = max(0, i - 1)
            dies = last if not self.training else back(min(i, G - 1))
            map.request(self.arena, f"map {i}", born, dies)
            if self.training:
                map.request_grad(self.arena, f"gradient {i}", back(last), back(born))
        self._scratch: list[list[Buffer]] = []  # of each kernel
        for i, kernel in enumerate(self.kernels):
            before = len(self.arena.buffers)
            kernel.request(self.arena, i, back(i) if self.training else None)
            self._scratch.append(self.arena.buffers[before:])
        self.arena.place()

    def _bind(self) -> None:
        """Take (or move to) the network's block of memory, and write down all steps."""
        self._block = None  # until all is done: whatever interrupts this, it will be done again
        self.workspace.reserve(self.arena.size)
        self.arena.bind(self.workspace.block)
        self._weights = [kernel.weights() for kernel in self.kernels]
        self._forward = [kernel.forward() for kernel in self.kernels]
        for i, kernel in enumerate(self.kernels):
            borders = kernel.borders()
            if borders is None:
                continue
            if i and self._forward[i - 1] and self.maps[i].whole:
                # They need no phase, hence no barrier, of their own: who writes the map leaves them alone.
                for do, more in zip(self._forward[i - 1][-1].lanes, borders.lanes, strict=True):
                    do.extend(more)
            else:
                self._forward[i].insert(0, borders)
        self._backward: list[list[Phase]] | None = None
        self._grad: Any = None
        self._derived_from = None
        self._last_forward = 0
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
        if array_module(x) is not np or tuple(getattr(x, "shape", ())) != self.input_shape:
            raise ValueError(
                f"this plan is for a NumPy array of shape {self.input_shape}, not "
                f"{getattr(x, 'shape', type(x).__name__)}: compile one for each shape"
            )
        if x.dtype != self.setting.dtype:
            raise ValueError(f"expected {self.setting.dtype}, got {x.dtype}")
        if self.workspace.block is not self._block:
            self._bind()
        self._last_forward = 0
        self.workspace.owner = mine = next(_forwards)
        with workers.one_blas_thread():
            self.maps[0].put(x)
            version = self._buffer.version if self._buffer is not None else 0
            derive = self.training or self._derived_from != version or any(fold.stale for fold in self._folds)
            self._derived_from = None
            for i in range(len(self.kernels)):
                if derive:
                    run(self._weights[i], self.clock, i, "forward")
                run(self._forward[i], self.clock, i, "forward")
            self._derived_from = version
        self.clock.runs["forward"] = self.clock.runs.get("forward", 0) + 1
        self._last_forward = mine
        return self.maps[-1].data.reshape(self.output_shape).copy()

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
            run since, or the network has changed.
        ValueError
            If dy has not the shape of the output.
        """
        if not self.training:
            raise RuntimeError("this plan is for inference: compile one with training=True")
        self._check_current()
        if not self._last_forward:
            raise RuntimeError(
                "backward without a forward before it: call forward first, once for each backward"
            )
        if self.workspace.owner != self._last_forward:
            raise RuntimeError(
                "another plan of this network has run since this one's forward, in the same memory: call "
                "forward again, directly before backward"
            )
        if tuple(getattr(dy, "shape", ())) != self.output_shape:
            raise ValueError(
                f"the output was {self.output_shape}, its gradient is "
                f"{getattr(dy, 'shape', type(dy).__name__)}"
            )
        self._last_forward = 0
        if self._buffer is not None:
            self._buffer.allocate_grad()
        if self._backward is None or self._grad is not getattr(self._buffer, "grad", None):
            self._backward = [kernel.backward() for kernel in self.kernels]
            self._grad = getattr(self._buffer, "grad", None)
        last = self.maps[-1]
        with workers.one_blas_thread():
            last.grad[...] = np.asarray(dy).reshape(last.grad.shape)
            if last.rectified:  # no group reads this map, so nobody else masks its gradient
                last.grad[...] *= (last.data > 0) * last.dtype.type(last.scale)
            for i in reversed(range(len(self.kernels))):
                phases = [p for p in self._backward[i] if need_input_gradient or not p.for_input_gradient]
                run(phases, self.clock, i, "backward")
        self.clock.runs["backward"] = self.clock.runs.get("backward", 0) + 1
        for g in self.groups:
            if g.kind != "other":
                for layer in g.layers:
                    for parameter in layer.parameters().values():
                        parameter.has_grad = True
        return self.maps[0].take_gradient() if need_input_gradient else None

    def refresh(self) -> None:
        """Derive everything again that follows from the parameters.

        Call it after writing into a parameter's ``.data`` by hand; steps of an optimizer, loading and
        assignment are noticed.
        """
        self._derived_from = None

    # Staleness

    def _remember(self) -> None:
        """Note what this plan holds on to, to notice when it changes."""
        parameters = self.net.parameters()
        self._layers = leaves(self.net)
        self._parameters = list(parameters.values())
        self._probabilities = [layer.p for _, layer in self._layers if isinstance(layer, Dropout)]
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
        elif [layer.p for _, layer in now if isinstance(layer, Dropout)] != self._probabilities:
            reason = "a dropout has another probability"
        elif self._parameters and (
            self._buffer.data is not self._values
            or any(p.buffer is not self._buffer for p in self._parameters)
            or [value for _, layer in now for value in _own_parameters(layer)] != self._in_layers()
        ):
            reason = "its parameters have moved"
        if reason:
            raise RuntimeError(
                f"this plan is stale, since the network has changed: {reason}; compile it again"
            )

    def _in_layers(self) -> list[Parameter]:
        own = {id(p) for p in self._parameters}
        return [p for _, layer in self._layers for p in _own_parameters(layer) if id(p) in own]

    # Telling

    def describe(self, buffers: bool = False) -> str:
        """Return a table: for each group algorithm, layout, memory, multiply-adds, and its share of the time.

        Parameters
        ----------
        buffers : bool
            Whether to list every buffer under its group, too, with the moments of its life and its place in
            the workspace (``memory.py``).

        Returns
        -------
        str
            The memory of a group is that of its input map with its gradient, and that of its scratch buffers,
            most of which share their place with those of other groups. Times are those since the plan was
            compiled; GFLOP/s counts two operations for each multiply-add of the layer's definition, and once
            there was a backward pass three passes (two for the first group, whose input gradient is rarely
            asked for), whatever the algorithm really does.
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
                    f"{spent[i][0] * 1e3:.2f}",
                    f"{spent[i][1] * 1e3:.2f}",
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
            f"plan for {mode}, input {self.input_shape}, {self.setting.lanes} workers, {self.setting.dtype}; "
            f"{self.arena.size / 1e6:.0f} MB of workspace for {len(self.arena.buffers)} buffers of together "
            f"{asked / 1e6:.0f} MB"
        )
        lines = [line.rstrip() for line in lines]
        if buffers:
            for i, own in reversed(list(enumerate(lists))):
                lines[i + 2 : i + 2] = [
                    f"    {b.name}: {' x '.join(str(s) for s in b.shape)} {b.dtype}, {b.nbytes:,} bytes at "
                    f"{b.offset:,}, moments {b.born} to {b.dies}"
                    for b in own
                ]
        return "\n".join([head, *lines])

    def __repr__(self) -> str:
        return f"Plan({type(self.net).__name__}, {self.input_shape}, training={self.training})"


def memory_budget(parameter_bytes: int) -> int:
    """Return how many bytes a plan for inference may spend on weights in a form that is quick to use.

    ``SCRATCHNET_PLAN_MEMORY`` says how many megabytes; by default it is a quarter of the parameters' size.
    Weights for which there is no room are transformed anew in each forward pass, a block at a time. (A batch
    normalisation that is folded into a convolution by im2col costs a copy of its weights besides.)

    Examples
    --------
    >>> memory_budget(400)
    100
    """
    wanted = os.environ.get("SCRATCHNET_PLAN_MEMORY")
    if not wanted:
        return parameter_bytes // 4
    if not wanted.isdecimal():
        raise ValueError(f"SCRATCHNET_PLAN_MEMORY must be a whole number of megabytes, not {wanted!r}")
    return int(wanted) * 1_000_000


def net_dtype(net: Layer) -> Any:
    """Return the element type that a network computes in."""
    parameters = net.parameters()
    return next(iter(parameters.values())).dtype if parameters else net.dtype


def _own_parameters(layer: Layer) -> list[Parameter]:
    return [value for value in vars(layer).values() if isinstance(value, Parameter)]
