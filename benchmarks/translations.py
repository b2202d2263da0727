"""The network of scratchnet in PyTorch and in ONNX, translated layer by layer, weights included.

scratchnet has images as (N, H, W, C), convolutions' weights as (KH, KW, C, O) and linear ones as (in, out);
it flattens a feature map in the order (h, w, c). Both others have channels first, so the map is transposed
before it is flattened.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchnet import layers, models


def torch_network(net: models.VGG) -> Any:
    """Return the same network as a PyTorch module: layers and their settings have PyTorch's names."""
    import torch
    from torch import nn

    class TransposeAndFlatten(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1).flatten(1)

    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # of scratchnet's arrays, in PyTorch's order

    def translate(layer: layers.Layer) -> nn.Module:
        match layer:
            case layers.Flatten():
                return TransposeAndFlatten()
            case layers.ReLU():
                return nn.ReLU(inplace=True)
            case layers.Dropout(p=0.0):
                return nn.Identity()
        module = getattr(nn, type(layer).__name__)(**layer.settings())
        arrays = {name: p.data for name, p in layer.parameters().items()} | layer.buffers()
        with torch.no_grad():
            for name, array in arrays.items():
                getattr(module, name).copy_(torch.from_numpy(array.transpose(axes[array.ndim])))
        return module

    return nn.Sequential(*(translate(layer) for _, layer in layers.leaves(net)))


def onnx_model(net: models.VGG, batch_size: int) -> bytes:
    """Return the same network as an ONNX model, from "images" (N, 3, H, W) to "logits" (N, K)."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, arrays = [], []
    value = "images"

    def add(operator: str, *weights: np.ndarray, **attributes: Any) -> None:
        nonlocal value
        n = len(nodes)
        names = [f"weights_{n}_{i}" for i in range(len(weights))]
        arrays.extend(map(numpy_helper.from_array, map(np.ascontiguousarray, weights), names))
        nodes.append(helper.make_node(operator, [value, *names], [f"value_{n}"], **attributes))
        value = f"value_{n}"

    for _, layer in layers.leaves(net):
        match layer:
            case layers.Conv2d():
                add(
                    "Conv",
                    layer.weight.data.transpose(3, 2, 0, 1),
                    layer.bias.data,
                    strides=[layer.stride] * 2,
                    pads=[layer.padding] * 4,
                )
            case layers.Linear():
                add("Gemm", layer.weight.data, layer.bias.data)
            case layers.BatchNorm2d():
                arrays_of_layer = layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var
                add("BatchNormalization", *arrays_of_layer, epsilon=layer.eps)
            case layers.ReLU():
                add("Relu")
            case layers.MaxPool2d():
                add("MaxPool", kernel_shape=[layer.kernel_size] * 2, strides=[layer.stride] * 2)
            case layers.Flatten():
                add("Transpose", perm=[0, 2, 3, 1])
                add("Flatten")
            case layers.Dropout():
                pass
            case _:
                raise TypeError(f"no translation for {layer}")
    nodes[-1].output[0] = "logits"
    size, num_classes = net.settings()["image_size"], net.settings()["num_classes"]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch_size, 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch_size, num_classes])
    graph = helper.make_graph(nodes, "VGG", [images], [logits], arrays)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
