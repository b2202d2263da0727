"""Files of weights, told apart by their content."""

from __future__ import annotations

import os

from scratchnet.interop import torch_file
from scratchnet.tensorfile import FormatError

HDF5 = b"\x89HDF\r\n\x1a\n"
KERAS = "is a file of Keras (HDF5), which is not read here. With Keras at hand, this converts it:"
KERAS_ADVICE = """
    import keras, tf2onnx, tensorflow as tf
    model = keras.models.load_model({path!r})
    shape = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")]
    function = tf.function(model.call, input_signature=shape)
    model.output_names = ["output"]
    tf2onnx.convert.from_function(function, shape, output_path="model.onnx")"""


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return "torch", "onnx" or "safetensors", which also stands for what is no file.

    Parameters
    ----------
    path : path

    Raises
    ------
    FormatError
        If it is a file of Keras; the message says how to convert it.

    Examples
    --------
    >>> kind_of("no such file")
    'safetensors'
    """
    if not os.path.isfile(path):
        return "safetensors"  # whose reader says what it is instead
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(HDF5):
        raise FormatError(f"{path} {KERAS}", KERAS_ADVICE.format(path=os.fspath(path)))
    if torch_file.is_torch_file(path):
        return "torch"
    # A safetensors file begins with the length of its header and the brace of that header's JSON, an ONNX
    # file with the version of its format. Of anything else the reader of safetensors says that it is none.
    is_onnx = start[8:9] != b"{" and (start[:1] == b"\x08" or os.fspath(path).endswith(".onnx"))
    return "onnx" if is_onnx else "safetensors"
