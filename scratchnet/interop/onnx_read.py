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
from scratchnet.interop.onnx_operators import CHANNELS_FIRST, Operators, Unfit, told
from scratchnet.layers import Sequential, assemble
from scratchnet.tensorfile import FormatError

IMAGE_SIZE = 224  # where the file leaves the size open
# What numbers that contradict each other raise, in NumPy, in onnx, or where a layer is made of them.
DAMAGED = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
SHAPES = 64  # as many numbers or fewer may be a shape
LEFT, MOST_COPIES = 1 << 20, 4
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
    except Unfit as error:
        raise FormatError(f"{path} is not a chain of layers that exist here: {error}") from error
    except DAMAGED as error:
        raise FormatError(f"{path} is damaged: {error or type(error).__name__}") from error


class _Reader(Operators):
    """The walk from node to node."""

    def __init__(self, onnx: Any, model: Any):
        super().__init__(onnx, model.graph.output[0].name if model.graph.output else "")
        self.model, self.graph = model, model.graph
        self.left = LEFT + MOST_COPIES * model.ByteSize()  # numbers that may be computed of constants
        self.constants = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in self.graph.initializer
        }
        inputs = [value for value in self.graph.input if value.name not in self.constants]
        if len(inputs) != 1 or len(self.graph.output) != 1:
            raise Unfit(
                f"it has {len(inputs)} inputs and {len(self.graph.output)} outputs, where one each belong"
            )
        self.value = inputs[0].name
        declared = [d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim]
        if len(declared) != 4:
            raise Unfit(f"its input has {len(declared)} axes, where images have four")
        self.axes = self._axes_of_input(declared)
        sizes = dict(zip(self.axes, declared, strict=True))
        self.fixed_size = sizes[1] is not None and sizes[2] is not None
        channels = sizes[3] or self._channels_of_first_convolution()
        full = {0: sizes[0] or SAMPLE, 1: sizes[1] or IMAGE_SIZE, 2: sizes[2] or IMAGE_SIZE, 3: channels}
        self.input_shape = full[1], full[2], full[3]
        self.shape = tuple(full[axis] for axis in self.axes)
        self.shapes = {self.value: self.shape}  # of the chain's values so far, in the file's order of axes

    def _axes_of_input(self, declared: list[int | None]) -> tuple[int, ...]:
        last = declared[3] in (1, 3, 4) and declared[1] not in (1, 3, 4)
        return (0, 1, 2, 3) if last else CHANNELS_FIRST

    def _channels_of_first_convolution(self) -> int:
        weights = (self.constants.get(node.input[1]) for node in self.graph.node if node.op_type == "Conv")
        return next((int(weight.shape[1]) for weight in weights if weight is not None), 3)

    def run(self) -> OnnxNetwork:
        for node in self.graph.node:
            self._node(node)
        self.end_affine()
        if self.value != self.output:
            raise Unfit(f"its output, {self.output!r}, is not the end of the chain")
        if self.order is not None:
            raise Unfit("it ends with a vector of pixels, whose order would differ here")
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
            shape = self.shapes[node.input[0]]
            self._fold(node, {node.input[0]: np.broadcast_to(np.False_, shape)})  # which takes no memory
            return
        others = [name for name in node.input if name and name != self.value]
        if self.value not in node.input or any(name not in self.constants for name in others):
            raise Unfit(f"{told(node)} takes more than the result of the node before it")
        method = getattr(self, f"_on_{node.op_type.lower()}", None)
        if method is None or node.domain not in ("", "ai.onnx"):
            raise Unfit(f"{told(node)} is none of them")
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            self.end_affine()
        method(node, {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute})
        self.value = node.output[0]
        self.shapes[self.value] = self.shape

    def _check_size(self, node: Any, model: Any, inputs: dict[str, Array]) -> None:
        """Refuse a node of constants that would make too many numbers, or run for as long as it likes."""
        if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
            raise Unfit(f"{told(node)} has a graph of its own")
        known = self.onnx.ModelProto()
        known.CopyFrom(model)
        for name, array in inputs.items():
            if array.size <= SHAPES:  # which may be the shape of the result
                known.graph.initializer.append(self.onnx.numpy_helper.from_array(array.copy(), name))
        try:
            inferred = self.onnx.shape_inference.infer_shapes(known, data_prop=True).graph.output
        except Exception as error:  # whatever it does not know
            raise Unfit(f"{told(node)} cannot be computed: {error}") from error
        for output in inferred:
            shape = output.type.tensor_type.shape if output.type.HasField("tensor_type") else None
            if (
                shape is None
                or not output.type.tensor_type.HasField("shape")
                or not all(d.HasField("dim_value") for d in shape.dim)
            ):
                raise Unfit(f"{told(node)} makes something of an unknown size")
            self.left -= prod(d.dim_value for d in shape.dim)
            if self.left < 0:
                raise Unfit(f"{told(node)} makes more numbers than the file has")

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
        self._check_size(node, model, inputs)
        try:
            results = self.onnx.reference.ReferenceEvaluator(model).run(None, inputs)
        except Exception as error:  # whatever the reference does not know
            raise Unfit(f"{told(node)} cannot be computed: {error}") from error
        self.constants |= dict(zip([name for name in node.output if name], results, strict=True))
