"""Types as a user's own tools see them: a script that builds, trains, saves and evaluates has no error."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
import numpy as np

import scratchnet as sn
from scratchnet.gradcheck import check_layer
from scratchnet.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, Parameter, ReLU, Sequential


class Scale(Layer):
    def __init__(self, channels: int):
        super().__init__()
        self.weight = Parameter(np.ones(channels, "float32"))

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.save_for_backward(x * self.weight.data, x)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        x = self.saved(dy)
        self.weight.grad = (dy * x).sum(axis=(0, 1, 2))
        return dy * self.weight.data


images = sn.data.shapes10(n_train=640, n_test=100)
normalise = sn.data.Normalisation.of(images.train_images)
loader = sn.data.Loader(images.train_images, images.train_labels, 64, shuffle=True, normalisation=normalise)
test = sn.data.Loader(images.test_images, images.test_labels, 50, shuffle=False, normalisation=normalise)

net = sn.models.vgg11(num_classes=10, image_size=32, batch_norm=True, width=0.125, classifier_width=32)
loss = sn.losses.SoftmaxCrossEntropy(label_smoothing=0.1)
sgd = sn.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
for epoch in range(2):
    for x, labels in loader.epoch(epoch):
        value: float = float(loss.forward(net.forward(x), labels))
        print(value)
        net.backward(loss.backward(), need_input_gradient=False)
        sgd.step()
x, labels = next(iter(loader.epoch(2)))
plan = sn.plans.compile(net, x.shape, training=True)
print(loss.forward(plan.forward(x), labels))
plan.backward(loss.backward())
print(plan.describe(), len(net.parameters()))

sn.checkpoint.save("net.safetensors", net)
loaded = sn.checkpoint.load("net.safetensors")
accuracy: float = sn.training.evaluate(loaded, test).accuracy
print(accuracy)

own = Sequential(Conv2d(3, 8), Scale(8), ReLU(), MaxPool2d(), Flatten(), Linear(8 * 16 * 16, 10))
own.eval().summary((32, 32, 3))
for name, parameter in own.parameters().items():
    print(name, parameter.data.shape, parameter.grad)
check_layer(Scale(3), np.random.default_rng(0).standard_normal((2, 4, 4, 3))).raise_for_failure()
backend = sn.backend.get("auto")
print(own.to(backend).backend.name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_users_script_has_no_error(checker, tmp_path):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed: pip install {checker}")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    arguments = {
        "mypy": ["--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")],
        "pyright": ["--pythonpath", sys.executable],
    }
    command = [sys.executable, "-m", checker, *arguments[checker], "script.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
