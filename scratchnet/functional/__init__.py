"""The mathematics: every operation of the network, its forward pass beside its backward pass.

Pure functions of arrays, for NumPy and CuPy alike, without classes and without state. Each
``op_forward(...)`` returns ``(y, cache)``, where the cache is what the backward pass needs, and
``op_backward(dy, cache)`` returns the gradients, where ``dy`` is the gradient of the loss with respect to
``y``. Images and feature maps are channels last, ``(N, H, W, C)``. A file reads from top to bottom; begin
with ``linear.py``, ``relu.py`` and ``conv.py``.

Arguments are not checked here; ``scratchnet.layers`` and ``scratchnet.losses`` do that, once, at the door.
"""

from scratchnet.functional.conv import (
    col2im,
    conv2d_backward,
    conv2d_forward,
    conv2d_six_loops,
    conv_output_size,
    im2col,
)
from scratchnet.functional.dropout import dropout_backward, dropout_forward
from scratchnet.functional.linear import linear_backward, linear_forward
from scratchnet.functional.norm import Across, batch_norm_backward, batch_norm_forward
from scratchnet.functional.pool import (
    global_avg_pool2d_backward,
    global_avg_pool2d_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)
from scratchnet.functional.relu import relu_backward, relu_forward
from scratchnet.functional.softmax import (
    softmax,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)

__all__ = [
    "Across",
    "batch_norm_backward",
    "batch_norm_forward",
    "col2im",
    "conv2d_backward",
    "conv2d_forward",
    "conv2d_six_loops",
    "conv_output_size",
    "dropout_backward",
    "dropout_forward",
    "global_avg_pool2d_backward",
    "global_avg_pool2d_forward",
    "im2col",
    "linear_backward",
    "linear_forward",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "relu_backward",
    "relu_forward",
    "softmax",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
]
