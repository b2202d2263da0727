"""ONNX files read as networks: a graph that is a chain of layers that exist here, node by node.

The graph is walked once, in the order in which it is stored. Every value in it is one of three things::

    the chain      what the image has become so far; one node after the other takes it further
    a constant     a weight, or what follows from constants and shapes alone: computed by onnx's own reference
    neither        then the graph is no chain, and is refused with the name of the node

Layouts. ONNX has convolutions channels first, (N, C, H, W), and exporters from channels-last frameworks put
Transposes around them. Here everything is channels last, so a Transpose only changes in which order the file
speaks of the axes, and nothing is computed for it. That order matters once, where an image becomes a vector:
the rows of the next linear layer's weight are then sorted from (c, h, w) to (h, w, c).

Constants that are added and multiplied, channel by channel, are an affine map: a batch normalisation that was
folded, or a normalisation of the image at the start. Here they become a batch normalisation with mean 0 and
variance 1, so that they can be trained further.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from scratchnet.backend import Array
from scratchnet.layers import (
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    assemble,
)
from scratchnet.tensorfile import FormatError

CHANNELS_FIRST, CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # the axes of (N, H, W, C), as the file has them
IMAGE_SIZE = 224  # where the file leaves the size open
SAMPLE = 7  # images in the batch that shapes are computed for, where the file leaves their number open


@dataclass
class OnnxNetwork:
    """What an ONNX file holds.

    Attributes
    ----------
    net : Sequential
        In evaluation mode.
    input_shape : tuple of int
        (H, W, C), of one image.
    fixed_size : bool
        Whether the file names that size; otherwise any would do.
    left_out : list of str
        What was not taken over, such as a softmax at the end: the network returns logits.
    metadata : dict
        What the file says about itself: class names, normalisation.
    """

    net: Sequential
    input_shape: tuple[int, int, int]
    fixed_size: bool
    left_out: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def read(path: str | os.PathLike[str]) -> OnnxNetwork:
    """Return the network of an ONNX file.

    Parameters
    ----------
    path : path
        Its graph must be a chain of Conv, BatchNormalization, Relu, MaxPool, GlobalAveragePool, AveragePool
        over the whole map, Flatten, Reshape, Gemm, MatMul, Add, Sub, Mul and Div by constants, Dropout,
        Softmax at the end, Transpose, Identity, Cast and the arithmetic of shapes between them.

    Returns
    -------
    OnnxNetwork

    Raises
    ------
    FormatError
        If it is damaged, or no such chain: the message names the first node that does not fit.
    ImportError
        If the package onnx is not installed.
    """
    import onnx
    import onnx.reference

    try:
        model = onnx.load(os.fspath(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and missing external files each have their own
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise FormatError(f"{path} is damaged, or no ONNX file: {first}") from error
    try:
        return _Reader(onnx, model).run()
    except _Unfit as error:
        raise FormatError(f"{path} is not a chain of layers that exist here: {error}") from error


class _Unfit(Exception):
    """A node that does not fit; the message names it."""


class _Reader:
    """The state of the walk: the layers so far, and what the chain's value looks like.

    ``shape`` is that of the value in the file's own order of axes, and ``axes`` says which axis of
    (N, H, W, C) each of them is. After an image has become a vector, ``order`` sorts the file's features into
    ours; None where both have the same order.
    """

    def __init__(self, onnx: Any, model: Any):
        self.onnx, self.model, self.graph = onnx, model, model.graph
        self.constants: dict[str, Array] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in self.graph.initializer
        }
        inputs = [value for value in self.graph.input if value.name not in self.constants]
        if len(inputs) != 1 or len(self.graph.output) != 1:
            raise _Unfit(
                f"it has {len(inputs)} inputs and {len(self.graph.output)} outputs, where one each belong"
            )
        self.value = inputs[0].name
        declared = [d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim]
        if len(declared) != 4:
            raise _Unfit(f"its input has {len(declared)} axes, where images have four")
        self.axes = self._axes_of_input(declared)
        sizes = dict(zip(self.axes, declared, strict=True))
        self.fixed_size = sizes[1] is not None and sizes[2] is not None
        channels = sizes[3] or self._channels_of_first_convolution()
        full = {0: sizes[0] or SAMPLE, 1: sizes[1] or IMAGE_SIZE, 2: sizes[2] or IMAGE_SIZE, 3: channels}
        self.input_shape = full[1], full[2], full[3]
        self.shape = tuple(full[axis] for axis in self.axes)
        self.shapes = {self.value: self.shape}  # of the chain's values so far, in the file's order of axes
        self.order: Array | None = None
        self.layers: list[Layer] = []
        self.left_out: list[str] = []
        self.affine: tuple[Array, Array] | None = None  # scale and shift that wait for more of their kind

    def _axes_of_input(self, declared: list[int | None]) -> tuple[int, ...]:
        last = declared[3] in (1, 3, 4) and declared[1] not in (1, 3, 4)
        return (0, 1, 2, 3) if last else CHANNELS_FIRST

    def _channels_of_first_convolution(self) -> int:
        weights = (self.constants.get(node.input[1]) for node in self.graph.node if node.op_type == "Conv")
        return next((int(weight.shape[1]) for weight in weights if weight is not None), 3)

    def run(self) -> OnnxNetwork:
        for node in self.graph.node:
            self._node(node)
        self._end_affine()
        if self.value != self.graph.output[0].name:
            raise _Unfit(f"its output, {self.graph.output[0].name!r}, is not the end of the chain")
        if self.order is not None:
            raise _Unfit("it ends with a vector of pixels, whose order would differ here")
        net = assemble(Sequential(*self.layers).eval())
        metadata = {entry.key: entry.value for entry in self.model.metadata_props}
        for key, text in metadata.items():
            try:
                metadata[key] = json.loads(text)
            except (ValueError, RecursionError):
                pass
        return OnnxNetwork(net, self.input_shape, self.fixed_size, self.left_out, metadata)

    def _node(self, node: Any) -> None:
        if node.op_type == "Constant" or all(name in self.constants or not name for name in node.input):
            self._fold(node, {name: self.constants[name] for name in node.input if name})
            return
        if node.op_type in ("Shape", "Size") and node.input[0] in self.shapes:  # of any value on the way
            self._fold(node, {node.input[0]: np.empty(self.shapes[node.input[0]], np.bool_)})
            return
        others = [name for name in node.input if name and name != self.value]
        if self.value not in node.input or any(name not in self.constants for name in others):
            raise _Unfit(f"{_told(node)} takes more than the result of the node before it")
        method = getattr(self, f"on_{node.op_type.lower()}", None)
        if method is None or node.domain not in ("", "ai.onnx"):
            raise _Unfit(f"{_told(node)} is none of them")
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            self._end_affine()
        method(node, {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute})
        self.value = node.output[0]
        self.shapes[self.value] = self.shape

    def _fold(self, node: Any, inputs: dict[str, Array]) -> None:
        """Compute a node whose inputs are all known, by onnx's own reference."""
        helper = self.onnx.helper
        typed = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], "constants", typed, outputs)
        model = helper.make_model(graph, opset_imports=self.model.opset_import)
        try:
            results = self.onnx.reference.ReferenceEvaluator(model).run(None, inputs)
        except Exception as error:  # whatever the reference does not know
            raise _Unfit(f"{_told(node)} cannot be computed: {error}") from error
        self.constants |= dict(zip([name for name in node.output if name], results, strict=True))

    # What a node takes, told by its place among the inputs

    def _weight(self, node: Any, k: int) -> Array | None:
        return self.constants[node.input[k]] if len(node.input) > k and node.input[k] else None

    def _expect_image(self, node: Any) -> tuple[int, int, int, int]:
        """Return N, H, W, C; the file must have the channels first here, as ONNX's own operators do."""
        if self.axes != CHANNELS_FIRST or len(self.shape) != 4:
            raise _Unfit(f"{_told(node)} takes images with the channels first, and does not get them")
        N, C, H, W = self.shape
        return N, H, W, C

    def _spatial(
        self, node: Any, attributes: dict[str, Any], kernel: tuple[int, ...]
    ) -> tuple[int, int, int]:
        """Return the side of the kernel, the stride and the padding, if each is one number."""
        _, H, W, _ = self._expect_image(node)
        strides = tuple(attributes.get("strides", (1, 1)))
        pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
        automatic = attributes.get("auto_pad", b"NOTSET").decode()
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            total = [
                max(0, (-(-size // s) - 1) * s + k - size)
                for size, k, s in zip((H, W), kernel, strides, strict=True)
            ]
            pads = tuple((t + (automatic == "SAME_LOWER")) // 2 for t in total) + tuple(
                (t + (automatic == "SAME_UPPER")) // 2 for t in total
            )
        if any(d != 1 for d in attributes.get("dilations", (1, 1))):
            raise _Unfit(f"{_told(node)} has dilations")
        if len({*kernel}) != 1 or len({*strides}) != 1 or len({*pads}) != 1 or len(kernel) != 2:
            raise _Unfit(
                f"{_told(node)} has kernel {kernel}, strides {strides} and padding {pads}: here kernels are "
                "square, with the same stride and padding on every side"
            )
        return kernel[0], strides[0], pads[0]

    # The operators

    def on_conv(self, node: Any, attributes: dict[str, Any]) -> None:
        N, H, W, C = self._expect_image(node)
        weight, bias = self._weight(node, 1), self._weight(node, 2)
        if weight is None or attributes.get("group", 1) != 1:
            raise _Unfit(f"{_told(node)} has groups, or no constant weight")
        kernel, stride, padding = self._spatial(node, attributes, weight.shape[2:])
        layer = Conv2d(C, weight.shape[0], kernel, stride, padding)
        layer.weight.data = weight.transpose(2, 3, 1, 0).astype(np.float32)
        layer.bias.data = np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32)
        _, H, W, O = layer.output_shape((N, H, W, C))
        self._append(layer, (N, O, H, W))

    def on_batchnormalization(self, node: Any, attributes: dict[str, Any]) -> None:
        scale, shift, mean, var = (self._weight(node, k) for k in (1, 2, 3, 4))
        if (
            scale is None
            or shift is None
            or mean is None
            or var is None
            or attributes.get("training_mode", 0)
        ):
            raise _Unfit(f"{_told(node)} has no constant statistics")
        if len(self.shape) == 4:
            self._expect_image(node)
        self._normalise(scale, shift, mean, var, attributes.get("epsilon", 1e-5))

    def _normalise(self, scale: Array, shift: Array, mean: Array, var: Array, eps: float) -> None:
        kind = BatchNorm2d if len(self.shape) == 4 else BatchNorm1d
        layer = kind(len(scale), eps=float(eps))
        ours = slice(None) if self.order is None else self.order
        layer.weight.data, layer.bias.data = scale.astype(np.float32)[ours], shift.astype(np.float32)[ours]
        layer.running_mean[...], layer.running_var[...] = mean[ours], var[ours]
        self._append(layer, self.shape)

    def on_relu(self, node: Any, attributes: dict[str, Any]) -> None:
        self._append(ReLU(), self.shape)

    def on_maxpool(self, node: Any, attributes: dict[str, Any]) -> None:
        N, H, W, C = self._expect_image(node)
        kernel, stride, padding = self._spatial(node, attributes, tuple(attributes["kernel_shape"]))
        odd = attributes.get("ceil_mode", 0) and any((size - kernel) % stride for size in (H, W))
        if padding or odd or len(node.output) > 1:
            raise _Unfit(f"{_told(node)} has padding, rounds sizes up, or returns indices")
        layer = MaxPool2d(kernel, stride)
        _, H, W, _ = layer.output_shape((N, H, W, C))
        self._append(layer, (N, C, H, W))

    def on_globalaveragepool(self, node: Any, attributes: dict[str, Any]) -> None:
        N, _, _, C = self._expect_image(node)
        self._append(GlobalAvgPool2d(), (N, C, 1, 1))

    def on_averagepool(self, node: Any, attributes: dict[str, Any]) -> None:
        _, H, W, _ = self._expect_image(node)
        if tuple(attributes["kernel_shape"]) != (H, W) or any(attributes.get("pads", ())):
            raise _Unfit(f"{_told(node)} averages over less than the whole map")
        self.on_globalaveragepool(node, attributes)

    def on_reducemean(self, node: Any, attributes: dict[str, Any]) -> None:
        given = self._weight(node, 1)
        axes = attributes.get("axes") if given is None else given.tolist()
        rank = len(self.shape)
        spatial = {k for k, axis in enumerate(self.axes) if axis in (1, 2)}
        if rank != 4 or axes is None or {a % rank for a in axes} != spatial:
            raise _Unfit(f"{_told(node)} averages over something else than height and width")
        sizes = [1 if k in spatial else s for k, s in enumerate(self.shape)]
        kept = attributes.get("keepdims", 1)
        self._append(GlobalAvgPool2d(), tuple(s for k, s in enumerate(sizes) if kept or k not in spatial))

    def on_flatten(self, node: Any, attributes: dict[str, Any]) -> None:
        if attributes.get("axis", 1) % len(self.shape) != 1:
            raise _Unfit(f"{_told(node)} keeps more than the images apart")
        self._to_vector((self.shape[0], prod(self.shape[1:])), node)

    def on_reshape(self, node: Any, attributes: dict[str, Any]) -> None:
        target = self._weight(node, 1)
        if target is None:
            raise _Unfit(f"{_told(node)} has no constant shape")
        wanted = [self.shape[k] if s == 0 and k < len(self.shape) else int(s) for k, s in enumerate(target)]
        if wanted.count(-1) == 1:
            wanted[wanted.index(-1)] = prod(self.shape) // max(1, prod(s for s in wanted if s != -1))
        self._to_vector(tuple(wanted), node)

    def on_squeeze(self, node: Any, attributes: dict[str, Any]) -> None:
        given = self._weight(node, 1)
        axes = attributes.get("axes") if given is None else given.tolist()
        gone = (
            {a % len(self.shape) for a in axes} if axes else {k for k, s in enumerate(self.shape) if s == 1}
        )
        if any(self.shape[k] != 1 for k in gone):
            raise _Unfit(f"{_told(node)} removes an axis that is longer than 1")
        self._to_vector(tuple(s for k, s in enumerate(self.shape) if k not in gone), node)

    def _to_vector(self, wanted: tuple[int, ...], node: Any) -> None:
        """Make a vector of each image, unless it is one already."""
        if wanted == self.shape:
            return
        if wanted != (self.shape[0], prod(self.shape[1:])) or len(self.shape) != 4:
            raise _Unfit(
                f"{_told(node)} makes {wanted} of {self.shape}: only one vector per image exists here"
            )
        if self.layers and isinstance(self.layers[-1], GlobalAvgPool2d):
            self.shape, self.axes = wanted, (0, 3)
            return
        # Number the features in the file's order, and look where each is in ours.
        numbers = np.arange(wanted[1]).reshape(self.shape[1:])
        ours = numbers.transpose([self.axes[1:].index(axis) for axis in (1, 2, 3)]).reshape(-1)
        self.order = None if (ours[:-1] < ours[1:]).all() else ours
        self.axes = (0, 3)
        self._append(Flatten(), wanted)

    def on_gemm(self, node: Any, attributes: dict[str, Any]) -> None:
        weight, bias = self._weight(node, 1), self._weight(node, 2)
        plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
        if weight is None or not plain or attributes.get("transA", 0) or node.input[0] != self.value:
            raise _Unfit(f"{_told(node)} is more than a linear layer")
        self._linear(node, weight.T if attributes.get("transB", 0) else weight, bias)

    def on_matmul(self, node: Any, attributes: dict[str, Any]) -> None:
        weight = self._weight(node, 1)
        if weight is None or node.input[0] != self.value:
            raise _Unfit(f"{_told(node)} is no product with a constant weight")
        self._linear(node, weight, None)

    def _linear(self, node: Any, weight: Array, bias: Array | None) -> None:
        if len(self.shape) != 2 or weight.ndim != 2 or weight.shape[0] != self.shape[1]:
            raise _Unfit(f"{_told(node)} takes {self.shape} and has a weight {weight.shape}")
        layer = Linear(*weight.shape)
        ours = weight if self.order is None else weight[self.order]
        layer.weight.data = np.ascontiguousarray(ours, np.float32)
        flat = np.zeros(weight.shape[1]) if bias is None else np.broadcast_to(bias, (1, weight.shape[1]))[0]
        layer.bias.data = flat.astype(np.float32)
        self.order = None
        self._append(layer, (self.shape[0], weight.shape[1]))

    def on_dropout(self, node: Any, attributes: dict[str, Any]) -> None:
        ratio = self._weight(node, 1)
        self._append(Dropout(float(attributes.get("ratio", 0.5) if ratio is None else ratio)), self.shape)

    def on_softmax(self, node: Any, attributes: dict[str, Any]) -> None:
        if node.output[0] != self.graph.output[0].name:
            raise _Unfit(f"{_told(node)} stands before the end")
        self.left_out.append(f"{_told(node)}: the network returns logits")

    on_logsoftmax = on_softmax

    def on_transpose(self, node: Any, attributes: dict[str, Any]) -> None:
        order = tuple(attributes.get("perm", reversed(range(len(self.shape)))))
        if order[0] != 0:
            raise _Unfit(f"{_told(node)} moves the axis of the images")
        self.shape = tuple(self.shape[k] for k in order)
        self.axes = tuple(self.axes[k] for k in order)

    def on_identity(self, node: Any, attributes: dict[str, Any]) -> None:
        pass

    def on_cast(self, node: Any, attributes: dict[str, Any]) -> None:
        if attributes["to"] not in (self.onnx.TensorProto.FLOAT, self.onnx.TensorProto.DOUBLE):
            raise _Unfit(f"{_told(node)} makes something else than real numbers")

    # Affine maps, channel by channel

    def _channelwise(self, node: Any) -> tuple[Array, bool]:
        """Return a constant as one number per channel, and whether it is the first operand."""
        first = node.input[0] in self.constants
        constant = self.constants[node.input[0 if first else 1]].astype(np.float64)
        place = self.axes.index(3)
        channels = self.shape[place]
        shape = (1,) * (len(self.shape) - constant.ndim) + constant.shape
        if len(shape) != len(self.shape) or any(
            s not in (1, channels if k == place else 1) for k, s in enumerate(shape)
        ):
            raise _Unfit(f"{_told(node)} has a constant {constant.shape} that is not one number per channel")
        return np.broadcast_to(constant.reshape(-1), (channels,)), first

    def _add_to_affine(self, scale: Array | float, shift: Array | float) -> None:
        before = self.affine or (
            np.ones(self.shape[self.axes.index(3)]),
            np.zeros(self.shape[self.axes.index(3)]),
        )
        self.affine = before[0] * scale, before[1] * scale + shift

    def on_add(self, node: Any, attributes: dict[str, Any]) -> None:
        constant, _ = self._channelwise(node)
        last = self.layers[-1] if self.layers else None
        if self.affine is None and isinstance(last, (Conv2d, Linear)):  # the layer's own bias
            last.bias.data = (last.bias.data + constant).astype(np.float32)
            return
        self._add_to_affine(1.0, constant)

    def on_sub(self, node: Any, attributes: dict[str, Any]) -> None:
        constant, first = self._channelwise(node)
        self._add_to_affine(-1.0, constant) if first else self._add_to_affine(1.0, -constant)

    def on_mul(self, node: Any, attributes: dict[str, Any]) -> None:
        self._add_to_affine(self._channelwise(node)[0], 0.0)

    def on_div(self, node: Any, attributes: dict[str, Any]) -> None:
        constant, first = self._channelwise(node)
        if first:
            raise _Unfit(f"{_told(node)} divides by what it gets")
        self._add_to_affine(1.0 / constant, 0.0)

    def _end_affine(self) -> None:
        if self.affine is not None:
            (scale, shift), self.affine = self.affine, None
            self._normalise(scale, shift, np.zeros_like(scale), np.ones_like(scale), 0.0)

    def _append(self, layer: Layer, shape: tuple[int, ...]) -> None:
        """Add a layer, after which the value has this shape, in the file's order of axes."""
        self.layers.append(layer)
        self.shape = tuple(shape)


def _told(node: Any) -> str:
    """Name a node for a message."""
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} (for {node.output[0]!r})"
