"""The lines that the message for a file of Keras prints do what it says."""

import subprocess
import sys

import numpy as np
import pytest

from scratchnet import interop
from scratchnet.tensorfile import FormatError

BUILD = """
import sys, numpy, keras
L = keras.layers
parts = [L.Input((32, 32, 3))]
for channels in (8, 16):
    parts += [L.Conv2D(channels, 3, padding="same", activation="relu"), L.BatchNormalization()]
    parts += [L.MaxPooling2D()]
parts += [L.Flatten(), L.Dense(32, activation="relu"), L.Dropout(0.5), L.Dense(10, activation="softmax")]
model = keras.Sequential(parts)
model.save("model.h5")
x = numpy.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype("float32")
numpy.savez("expected.npz", x=x, y=model.predict(x, verbose=0))
"""


@pytest.mark.slow
def test_the_lines_for_a_file_of_keras_convert_it(tmp_path):
    for needed in ("tensorflow", "keras", "tf2onnx", "onnx"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install {needed}")

    def python(lines):
        subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, check=True, timeout=600)

    python(BUILD)
    with pytest.raises(FormatError) as caught:
        interop.load(tmp_path / "model.h5")
    python("\n".join(line.strip() for line in caught.value.advice.splitlines()))
    net, expected = interop.load(tmp_path / "model.onnx"), np.load(tmp_path / "expected.npz")
    logits = net.eval().forward(expected["x"])
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.abs(likely / likely.sum(axis=1, keepdims=True) - expected["y"]).max() < 1e-5
