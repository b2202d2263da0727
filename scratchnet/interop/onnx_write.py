"""Networks written as ONNX files, which other runtimes read: one node per layer, for any number of images.

The file's images are channels first, (N, C, H, W), as ONNX's convolutions want them; ours are channels last.
Weights are rearranged once, here, and where an image becomes a vector the next linear layer's rows are sorted
from (h, w, c) to (c, h, w), so that the file holds no Transpose that is not needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scratchnet.backend import Array, to_numpy
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
    leaves,
)
from scratchnet.tensorfile import replacing

OPSET = 17
IR_VERSION = 8  # read by every runtime since 2022


def save(
    path: str | os.PathLike[str],
    net: Layer,
    input_shape: tuple[int, int, int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    softmax: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as an ONNX file.

    Parameters
    ----------
    path : path
        Written to a temporary name first, and renamed when it is whole.
    net : Layer
        A chain of layers of this package, float32. It is written as it computes in evaluation.
    input_shape : (H, W, C)
        Of one image; the number of images stays open.
    mean, std : sequence of float, optional
        One per channel, on the scale 0 to 1. With them the file normalises by itself: its inputs are then
        pixels from 0 to 255, as float32. Without them they are what ``net.forward`` takes, channels first.
    class_names : sequence of str, optional
        Written into the file's metadata as JSON.
    softmax : bool
        Whether the output are probabilities. By default they are logits.
    metadata : mapping, optional
        More for the file's metadata, written as JSON.

    Raises
    ------
    ValueError
        If the network is no chain of such layers: the message names the first that does not fit.
    ImportError
        If the package onnx is not installed.

    Examples
    --------
    >>> from scratchnet import interop, models
    >>> net = models.vgg11(num_classes=10, image_size=32).eval()
    >>> interop.save_onnx("vgg11.onnx", net, (32, 32, 3))  # doctest: +SKIP
    """
    import onnx

    writer = _Writer(onnx.helper, onnx.numpy_helper)
    H, W, C = input_shape
    for path_of_layer, layer in leaves(net):
        if type(layer) not in writer.writers:
            raise ValueError(
                f"{path_of_layer} ({type(layer).__name__}) has no counterpart that is written to ONNX"
            )
    writer.start((1, H, W, C), mean, std)
    for name, layer in leaves(net):
        writer.add(name or type(layer).__name__, layer)
    writer.finish(softmax)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    batch = "batch"
    graph = helper.make_graph(
        writer.nodes,
        type(net).__name__,
        [helper.make_tensor_value_info("images", kind, [batch, C, H, W])],
        [helper.make_tensor_value_info("output", kind, [batch, *writer.shape[1:]])],
        writer.weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="scratchnet",
        ir_version=IR_VERSION,
    )
    facts = dict(metadata or {})
    if mean is not None and std is not None:  # what is inside must not be done again: it takes pixels
        facts |= {"mean": [0.0] * C, "std": [1 / 255] * C}
    if class_names is not None:
        facts["class_names"] = list(class_names)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as partial:
        onnx.save(model, os.fspath(partial))


class _Writer:
    """The nodes so far, the name of their result, and the shape that it has here, (N, H, W, C) or (N, C)."""

    def __init__(self, helper: Any, numpy_helper: Any):
        self.helper, self.numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.value = "images"
        self.shape: tuple[int, ...] = ()
        self.flattened: tuple[int, int, int] | None = None  # (H, W, C) of the image that became this vector
        self.writers: dict[type, Callable[[str, Any], None]] = {
            Conv2d: self._conv,
            BatchNorm2d: self._norm,
            BatchNorm1d: self._norm,
            ReLU: lambda name, layer: self._node("Relu", name, []),
            MaxPool2d: self._max_pool,
            GlobalAvgPool2d: self._average,
            Flatten: self._flatten,
            Linear: self._linear,
            Dropout: lambda name, layer: None,  # evaluation drops nothing
        }

    def start(
        self, shape: tuple[int, ...], mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        self.shape = shape
        if mean is not None and std is not None:
            scale, shift = 1 / (255 * np.asarray(std)), -np.asarray(mean) / np.asarray(std)
            columns = (scale.reshape(-1, 1, 1), shift.reshape(-1, 1, 1))  # (C, 1, 1)
            self._node("Mul", "normalise.scale", [columns[0]])
            self._node("Add", "normalise.shift", [columns[1]])

    def add(self, name: str, layer: Layer) -> None:
        self.writers[type(layer)](name, layer)
        self.shape = layer.output_shape(self.shape)

    def finish(self, softmax: bool) -> None:
        if self.flattened is not None:
            raise ValueError("a network that ends with a vector of pixels is not written to ONNX")
        if softmax:
            self._node("Softmax", "softmax", [], axis=-1)
        if self.nodes:
            self.nodes[-1].output[0] = "output"
        else:
            self._node("Identity", "nothing", [])
            self.nodes[-1].output[0] = "output"

    def _node(self, kind: str, name: str, weights: Sequence[Array], **attributes: Any) -> None:
        names = []
        for k, weight in enumerate(weights):
            names.append(f"{name}.{k}" if len(weights) > 1 else f"{name}.constant")
            self.weights.append(
                self.numpy_helper.from_array(np.ascontiguousarray(weight, np.float32), names[-1])
            )
        self.nodes.append(
            self.helper.make_node(kind, [self.value, *names], [f"{name}.output"], name=name, **attributes)
        )
        self.value = f"{name}.output"

    def _conv(self, name: str, layer: Conv2d) -> None:
        weights = [to_numpy(layer.weight.data).transpose(3, 2, 0, 1)]  # (O, C, KH, KW)
        if layer.bias is not None:
            weights.append(to_numpy(layer.bias.data))
        k, s, p = layer.kernel_size, layer.stride, layer.padding
        self._node("Conv", name, weights, kernel_shape=[k, k], strides=[s, s], pads=[p, p, p, p])

    def _norm(self, name: str, layer: Any) -> None:
        vectors = [layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var]
        weights = [self._channels_first(to_numpy(vector)) for vector in vectors]
        self._node("BatchNormalization", name, weights, epsilon=layer.eps)

    def _max_pool(self, name: str, layer: MaxPool2d) -> None:
        k, s = layer.kernel_size, layer.stride
        self._node("MaxPool", name, [], kernel_shape=[k, k], strides=[s, s])

    def _average(self, name: str, layer: GlobalAvgPool2d) -> None:
        self._node("GlobalAveragePool", name, [])
        self._node("Flatten", f"{name}.flatten", [], axis=1)

    def _flatten(self, name: str, layer: Flatten) -> None:
        if len(self.shape) == 4:
            self.flattened = (self.shape[1], self.shape[2], self.shape[3])
            self._node("Flatten", name, [], axis=1)

    def _linear(self, name: str, layer: Linear) -> None:
        weights = [self._channels_first(to_numpy(layer.weight.data)).T]  # (out, in)
        if layer.bias is not None:
            weights.append(to_numpy(layer.bias.data))
        self._node("Gemm", name, weights, transB=1)
        self.flattened = None

    def _channels_first(self, values: Array) -> Array:
        """Sort what belongs to the features of a flattened image from (h, w, c) to (c, h, w)."""
        if self.flattened is None:
            return values
        shape = self.flattened
        order = np.arange(len(values)).reshape(shape).transpose(2, 0, 1).reshape(-1)
        return values[order]
