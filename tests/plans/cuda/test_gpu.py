"""What only a real GPU can show.

What the stand-in for CuPy can check too is in the other files, which run on a GPU as well: ``python -m pytest
-m gpu`` runs them all.
"""

import numpy as np
import pytest

from scratchnet import backend, plans
from scratchnet import functional as F
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import vgg16
from scratchnet.optim import SGD
from scratchnet.plans.cuda.training_step import TrainingSteps
from tests.fakes.cuda_networks import assert_same_gradients

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu():
    """The GPU's backend; without one the test is skipped, with the reason."""
    try:
        return backend.get("cupy")
    except backend.BackendError as error:
        pytest.skip(str(error))


def test_auto_takes_it(gpu):
    assert backend.get("auto").name == "cupy"
    assert gpu.device.startswith("GPU ")
    assert "CUDA" in gpu.device


@pytest.mark.parametrize("size, channels", [(32, 3), (32, 64), (8, 256), (2, 512)])
def test_convolutions_of_vgg16_in_float32(gpu, size, channels):
    """Against NumPy in float64: float32 adds up to 4608 products, so a few in a million may be lost."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((16, size, size, channels)), rng.standard_normal((3, 3, channels, 64))
    y, cache = F.conv2d_forward(x, weight, padding=1)
    dy = rng.standard_normal(y.shape)
    expected = y, *F.conv2d_backward(dy, cache)[:2]
    there = [gpu.asarray(array, dtype="float32") for array in (x, weight, dy)]
    y, cache = F.conv2d_forward(*there[:2], padding=1)
    actual = y, *F.conv2d_backward(there[2], cache)[:2]
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(gpu.to_numpy(a) - e).max() < 1e-5 * np.abs(e).max()


def test_vgg16_trains_as_on_the_cpu(gpu):
    """Ten steps of the whole network in float64, dropout included: its masks are drawn on the host."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((16, 32, 32, 3)), rng.integers(0, 10, 16)
    losses = {}
    for name in ("numpy", "cupy"):
        net = vgg16(10, 32, width=0.25, classifier_width=256, batch_norm=True, dtype="float64").to(name)
        loss, optimizer = (
            SoftmaxCrossEntropy(),
            SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4),
        )
        images, targets = net.backend.asarray(x), net.backend.asarray(labels)
        losses[name] = []
        for _ in range(10):
            losses[name].append(float(loss.forward(net.forward(images), targets)))
            net.backward(loss.backward(), need_input_gradient=False)
            optimizer.step()
    np.testing.assert_allclose(losses["cupy"], losses["numpy"], rtol=1e-5)


def test_the_same_seed_gives_the_same_bits(gpu):
    def run():
        net = vgg16(10, 32, width=0.25, classifier_width=256, batch_norm=True).to(gpu)
        loss, optimizer = SoftmaxCrossEntropy(), SGD(net.parameters(), lr=0.01, momentum=0.9)
        x = np.random.default_rng(0).standard_normal((32, 32, 32, 3), dtype="float32")
        images, labels = gpu.asarray(x), gpu.asarray(np.arange(32) % 10)
        for _ in range(3):
            loss.forward(net.forward(images), labels)
            net.backward(loss.backward(), need_input_gradient=False)
            optimizer.step()
        return [gpu.to_numpy(p.data) for p in net.parameters().values()]

    for first, second in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(first, second)


# Plans: the small cases are in test_plan.py and tests/training/test_device.py


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_plan_of_vgg16_equals_the_layers_on_the_cpu(gpu, batch_norm):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 32, 32, 3), dtype="float32")
    here, there = (vgg16(10, 32, batch_norm=batch_norm, dropout=0.0) for _ in range(2))
    there.to(gpu)
    plan = plans.compile(there, x.shape, training=True)
    y = here.forward(x)
    assert np.linalg.norm(gpu.to_numpy(plan.forward(gpu.asarray(x))) - y) < 1e-4 * np.linalg.norm(y)
    dy = rng.standard_normal(y.shape, dtype="float32")
    here.backward(dy)
    plan.backward(gpu.asarray(dy))
    # Decisions of ReLU and pooling that hang on rounding: a per cent of a gradient. A mistake is more.
    assert_same_gradients(gpu, there, here, 2e-2)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_steps_of_vgg16_have_the_same_bits_replayed_or_not_and_again(gpu, precision):
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((64, 32, 32, 3), dtype="float32"), rng.integers(0, 10, 64)

    def run(graphs):
        net = vgg16(10, 32, batch_norm=True).to(gpu)
        sgd = SGD(net.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
        steps = TrainingSteps(net, sgd, SoftmaxCrossEntropy(), 64, precision, graphs=graphs)
        steps.begin(np.full(6, 0.01))
        for _ in range(6):
            steps.step(64, x, labels)
        return steps.totals(), [gpu.to_numpy(p.data) for p in net.parameters().values()]

    (first, values), *others = run(True), run(True), run(False)
    assert np.isfinite(first.loss)
    for totals, again in others:
        assert totals == first
        for a, b in zip(values, again, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_plan_at_224_pixels_in_several_chunks(gpu):
    x = np.random.default_rng(0).standard_normal((4, 224, 224, 3), dtype="float32")
    net = vgg16(10, 224, classifier_width=64).eval()
    expected = net.forward(x)
    net.to(gpu)
    plan = plans.compile(net, x.shape)
    assert plan.kernels[1].n < 4
    for _ in range(3):
        y = gpu.to_numpy(plan.forward(gpu.asarray(x)))
        assert np.linalg.norm(y - expected) < 1e-4 * np.linalg.norm(expected)


def test_whole_steps_do_not_leak_memory(gpu):
    net = vgg16(10, 32, width=0.25, classifier_width=256).to(gpu)
    sgd = SGD(net.parameters(), 1.0, momentum=0.9)
    steps = TrainingSteps(net, sgd, SoftmaxCrossEntropy(), 32)
    images, labels = gpu.xp.ones((32, 32, 32, 3), "float32"), gpu.asarray(np.arange(32) % 10)
    used = []
    for _ in range(5):
        steps.begin(np.full(4, 0.01))
        for _ in range(4):
            steps.step(32, images, labels)
        used.append(gpu.xp.get_default_memory_pool().used_bytes())
    assert used[4] == used[1]


def test_too_little_memory_names_a_batch_that_then_fits(gpu):
    net = vgg16(10, 224, width=0.25, classifier_width=64).eval().to(gpu)
    with pytest.raises(backend.BackendError, match="images per batch would fit") as caught:
        plans.compile(net, (1_000_000, 224, 224, 3))
    fits = int(str(caught.value).split(": ")[-1].split()[0])
    plans.compile(net, (fits, 224, 224, 3))


def test_training_does_not_leak_memory(gpu):
    net = vgg16(10, 32, width=0.25, classifier_width=256).to(gpu)
    loss, optimizer = SoftmaxCrossEntropy(), SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = gpu.xp.ones((32, 32, 32, 3), "float32"), gpu.asarray(np.arange(32) % 10)
    used = []
    for _ in range(4):
        loss.forward(net.forward(images), labels)
        net.backward(loss.backward(), need_input_gradient=False)
        optimizer.step()
        used.append(gpu.xp.get_default_memory_pool().used_bytes())
    assert used[3] == used[1]
