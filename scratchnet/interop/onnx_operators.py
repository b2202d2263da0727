"""ONNX's operators, and what each becomes: a layer, or another view of the same numbers.

``Operators`` holds what the walk of ``onnx_read.py`` has reached, and has a method per operator that fits.
"""

from __future__ import annotations

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
)

CHANNELS_FIRST = (0, 3, 1, 2)  # the axes of (N, H, W, C), as ONNX's operators have them


class Unfit(Exception):
    """A node that does not fit; the message names it."""


class Operators:
    """The layers so far, and what the chain's value looks like.

    Attributes
    ----------
    constants : dict of str to array
    shape, axes : tuple of int
        The value's shape in the file's own order of axes, and which axis of (N, H, W, C) each of them is.
    order : array or None
        After an image has become a vector, it sorts the file's features into ours; None where both have the
        same order.
    affine : (scale, shift) or None
        Constants that wait for more of their kind.
    """

    def __init__(self, onnx: Any, output: str):
        self.onnx, self.output = onnx, output
        self.constants: dict[str, Array] = {}
        self.value = ""
        self.shape: tuple[int, ...] = ()
        self.axes: tuple[int, ...] = CHANNELS_FIRST
        self.order: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self.layers: list[Layer] = []
        self.left_out: list[str] = []
        self.affine: tuple[Array, Array] | None = None

    # What a node takes, told by its place among the inputs

    def _weight(self, node: Any, k: int) -> Array | None:
        return self.constants[node.input[k]] if len(node.input) > k and node.input[k] else None

    def _expect_image(self, node: Any) -> tuple[int, int, int, int]:
        """Return N, H, W, C; the file must have the channels first here, as ONNX's own operators do."""
        if self.axes != CHANNELS_FIRST or len(self.shape) != 4:
            raise Unfit(f"{told(node)} takes images with the channels first, and does not get them")
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
            raise Unfit(f"{told(node)} has dilations")
        if len({*kernel}) != 1 or len({*strides}) != 1 or len({*pads}) != 1 or len(kernel) != 2:
            raise Unfit(
                f"{told(node)} has kernel {kernel}, strides {strides} and padding {pads}: here kernels are "
                "square, with the same stride and padding on every side"
            )
        return kernel[0], strides[0], pads[0]

    # The operators

    def _on_conv(self, node: Any, attributes: dict[str, Any]) -> None:
        N, H, W, C = self._expect_image(node)
        weight, bias = self._weight(node, 1), self._weight(node, 2)
        if weight is None or attributes.get("group", 1) != 1:
            raise Unfit(f"{told(node)} has groups, or no constant weight")
        kernel, stride, padding = self._spatial(node, attributes, weight.shape[2:])
        layer = Conv2d(C, weight.shape[0], kernel, stride, padding)
        layer.weight.data = weight.transpose(2, 3, 1, 0).astype(np.float32)
        _set_bias(layer, np.zeros(len(weight)) if bias is None else bias)
        _, H, W, O = layer.output_shape((N, H, W, C))
        self._append(layer, (N, O, H, W))

    def _on_batchnormalization(self, node: Any, attributes: dict[str, Any]) -> None:
        scale, shift, mean, var = (self._weight(node, k) for k in (1, 2, 3, 4))
        if (
            scale is None
            or shift is None
            or mean is None
            or var is None
            or attributes.get("training_mode", 0)
        ):
            raise Unfit(f"{told(node)} has no constant statistics")
        if len(self.shape) == 4:
            self._expect_image(node)
        self._normalise(scale, shift, mean, var, attributes.get("epsilon", 1e-5))

    def _normalise(self, scale: Array, shift: Array, mean: Array, var: Array, eps: float) -> None:
        kind = BatchNorm2d if len(self.shape) == 4 else BatchNorm1d
        layer = kind(len(scale), eps=float(eps))
        ours = self._features(len(scale))
        layer.weight.data, layer.bias.data = scale.astype(np.float32)[ours], shift.astype(np.float32)[ours]
        layer.running_mean[...], layer.running_var[...] = mean[ours], var[ours]
        self._append(layer, self.shape)

    def _on_relu(self, node: Any, attributes: dict[str, Any]) -> None:
        self._append(ReLU(), self.shape)

    def _on_maxpool(self, node: Any, attributes: dict[str, Any]) -> None:
        N, H, W, C = self._expect_image(node)
        kernel, stride, padding = self._spatial(node, attributes, tuple(attributes["kernel_shape"]))
        odd = attributes.get("ceil_mode", 0) and any((size - kernel) % stride for size in (H, W))
        if padding or odd or len(node.output) > 1:
            raise Unfit(f"{told(node)} has padding, rounds sizes up, or returns indices")
        layer = MaxPool2d(kernel, stride)
        _, H, W, _ = layer.output_shape((N, H, W, C))
        self._append(layer, (N, C, H, W))

    def _on_globalaveragepool(self, node: Any, attributes: dict[str, Any]) -> None:
        N, _, _, C = self._expect_image(node)
        self._append(GlobalAvgPool2d(), (N, C, 1, 1))

    def _on_averagepool(self, node: Any, attributes: dict[str, Any]) -> None:
        _, H, W, _ = self._expect_image(node)
        if tuple(attributes["kernel_shape"]) != (H, W) or any(attributes.get("pads", ())):
            raise Unfit(f"{told(node)} averages over less than the whole map")
        self._on_globalaveragepool(node, attributes)

    def _on_reducemean(self, node: Any, attributes: dict[str, Any]) -> None:
        given = self._weight(node, 1)
        axes = attributes.get("axes") if given is None else given.tolist()
        rank = len(self.shape)
        spatial = {k for k, axis in enumerate(self.axes) if axis in (1, 2)}
        if rank != 4 or axes is None or {a % rank for a in axes} != spatial:
            raise Unfit(f"{told(node)} averages over something else than height and width")
        sizes = [1 if k in spatial else s for k, s in enumerate(self.shape)]
        kept = attributes.get("keepdims", 1)
        self._append(GlobalAvgPool2d(), tuple(s for k, s in enumerate(sizes) if kept or k not in spatial))

    def _on_flatten(self, node: Any, attributes: dict[str, Any]) -> None:
        if attributes.get("axis", 1) % len(self.shape) != 1:
            raise Unfit(f"{told(node)} keeps more than the images apart")
        self._to_vector((self.shape[0], prod(self.shape[1:])), node)

    def _on_reshape(self, node: Any, attributes: dict[str, Any]) -> None:
        target = self._weight(node, 1)
        if target is None:
            raise Unfit(f"{told(node)} has no constant shape")
        wanted = [self.shape[k] if s == 0 and k < len(self.shape) else int(s) for k, s in enumerate(target)]
        if wanted.count(-1) == 1:
            wanted[wanted.index(-1)] = prod(self.shape) // max(1, prod(s for s in wanted if s != -1))
        self._to_vector(tuple(wanted), node)

    def _on_squeeze(self, node: Any, attributes: dict[str, Any]) -> None:
        given = self._weight(node, 1)
        axes = attributes.get("axes") if given is None else given.tolist()
        gone = (
            {a % len(self.shape) for a in axes} if axes else {k for k, s in enumerate(self.shape) if s == 1}
        )
        if any(self.shape[k] != 1 for k in gone):
            raise Unfit(f"{told(node)} removes an axis that is longer than 1")
        self._to_vector(tuple(s for k, s in enumerate(self.shape) if k not in gone), node)

    def _to_vector(self, wanted: tuple[int, ...], node: Any) -> None:
        """Make a vector of each image, unless it is one already."""
        if wanted == self.shape:
            return
        if wanted != (self.shape[0], prod(self.shape[1:])) or len(self.shape) != 4:
            raise Unfit(f"{told(node)} makes {wanted} of {self.shape}: only one vector per image exists here")
        if self.layers and isinstance(self.layers[-1], GlobalAvgPool2d):
            self.shape, self.axes = wanted, (0, 3)
            return
        shape, ours = self.shape[1:], tuple(self.axes[1:].index(axis) for axis in (1, 2, 3))
        moved = [k for k in ours if shape[k] > 1]
        self.order = None if moved == sorted(moved) else (shape, ours)
        self.axes = (0, 3)
        self._append(Flatten(), wanted)

    def _features(self, n: int) -> Array | slice:
        """Return where each of the n features for which there are weights is in the file's order."""
        if self.order is None:
            return slice(None)
        shape, ours = self.order
        if prod(shape) != n:  # which is bounded by the file's size, and what it says of its images is not
            raise Unfit(f"it has {n} weights for vectors of {prod(shape)} features")
        return np.arange(n).reshape(shape).transpose(ours).reshape(-1)

    def _on_gemm(self, node: Any, attributes: dict[str, Any]) -> None:
        weight, bias = self._weight(node, 1), self._weight(node, 2)
        plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
        if weight is None or not plain or attributes.get("transA", 0) or node.input[0] != self.value:
            raise Unfit(f"{told(node)} is more than a linear layer")
        self._linear(node, weight.T if attributes.get("transB", 0) else weight, bias)

    def _on_matmul(self, node: Any, attributes: dict[str, Any]) -> None:
        weight = self._weight(node, 1)
        if weight is None or node.input[0] != self.value:
            raise Unfit(f"{told(node)} is no product with a constant weight")
        self._linear(node, weight, None)

    def _linear(self, node: Any, weight: Array, bias: Array | None) -> None:
        if len(self.shape) != 2 or weight.ndim != 2 or weight.shape[0] != self.shape[1]:
            raise Unfit(f"{told(node)} takes {self.shape} and has a weight {weight.shape}")
        layer = Linear(*weight.shape)
        ours = weight[self._features(len(weight))]
        layer.weight.data = np.ascontiguousarray(ours, np.float32)
        flat = np.zeros(weight.shape[1]) if bias is None else np.broadcast_to(bias, (1, weight.shape[1]))[0]
        _set_bias(layer, flat)
        self.order = None
        self._append(layer, (self.shape[0], weight.shape[1]))

    def _on_dropout(self, node: Any, attributes: dict[str, Any]) -> None:
        ratio = self._weight(node, 1)
        self._append(Dropout(float(attributes.get("ratio", 0.5) if ratio is None else ratio)), self.shape)

    def _on_softmax(self, node: Any, attributes: dict[str, Any]) -> None:
        if node.output[0] != self.output:
            raise Unfit(f"{told(node)} stands before the end")
        self.left_out.append(f"{told(node)}: the network returns logits")

    _on_logsoftmax = _on_softmax

    def _on_transpose(self, node: Any, attributes: dict[str, Any]) -> None:
        order = tuple(attributes.get("perm", reversed(range(len(self.shape)))))
        if order[0] != 0:
            raise Unfit(f"{told(node)} moves the axis of the images")
        self.shape = tuple(self.shape[k] for k in order)
        self.axes = tuple(self.axes[k] for k in order)

    def _on_identity(self, node: Any, attributes: dict[str, Any]) -> None:
        pass

    def _on_cast(self, node: Any, attributes: dict[str, Any]) -> None:
        if attributes["to"] not in (self.onnx.TensorProto.FLOAT, self.onnx.TensorProto.DOUBLE):
            raise Unfit(f"{told(node)} makes something else than real numbers")

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
            raise Unfit(f"{told(node)} has a constant {constant.shape} that is not one number per channel")
        return np.broadcast_to(constant.reshape(-1), (channels,)), first

    def _add_to_affine(self, scale: Array | float, shift: Array | float) -> None:
        before = self.affine or (
            np.ones(self.shape[self.axes.index(3)]),
            np.zeros(self.shape[self.axes.index(3)]),
        )
        self.affine = before[0] * scale, before[1] * scale + shift

    def _on_add(self, node: Any, attributes: dict[str, Any]) -> None:
        constant, _ = self._channelwise(node)
        last = self.layers[-1] if self.layers else None
        if self.affine is None and isinstance(last, (Conv2d, Linear)):  # the layer's own bias
            _set_bias(last, constant if last.bias is None else last.bias.data + constant)
            return
        self._add_to_affine(1.0, constant)

    def _on_sub(self, node: Any, attributes: dict[str, Any]) -> None:
        constant, first = self._channelwise(node)
        self._add_to_affine(-1.0, constant) if first else self._add_to_affine(1.0, -constant)

    def _on_mul(self, node: Any, attributes: dict[str, Any]) -> None:
        self._add_to_affine(self._channelwise(node)[0], 0.0)

    def _on_div(self, node: Any, attributes: dict[str, Any]) -> None:
        constant, first = self._channelwise(node)
        if first:
            raise Unfit(f"{told(node)} divides by what it gets")
        self._add_to_affine(1.0 / constant, 0.0)

    def end_affine(self) -> None:
        """Make a layer of the constants that have gathered, if there are any."""
        if self.affine is not None:
            (scale, shift), self.affine = self.affine, None
            self._normalise(scale, shift, np.zeros_like(scale), np.ones_like(scale), 0.0)

    def _append(self, layer: Layer, shape: tuple[int, ...]) -> None:
        """Add a layer, after which the value has this shape, in the file's order of axes."""
        self.layers.append(layer)
        self.shape = tuple(shape)


def _set_bias(layer: Conv2d | Linear, values: Array) -> None:
    assert layer.bias is not None  # layers are made with one
    layer.bias.data = values.astype(np.float32)


def told(node: Any) -> str:
    """Name a node for a message."""
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} (for {node.output[0]!r})"
