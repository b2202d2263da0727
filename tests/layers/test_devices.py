"""Operators, layers, networks and the trainer on a device, with the results that NumPy has.

Each test runs on the stand-in for CuPy, which fails wherever host and device arrays meet or a function is
missing, and, marked ``gpu``, on a real one. Expected values are NumPy's in float64.
"""

from functools import partial

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet import layers as L
from scratchnet.backend import array_module, get
from scratchnet.checkpoint import load, load_weights, save
from scratchnet.data import Loader, shapes10
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import VGG, vgg11
from scratchnet.optim import SGD, Constant, is_bias_or_norm
from scratchnet.training import RunDirectory, Trainer, predict
from scratchnet.training.finite import why_not_finite
from tests.fakes import cuda_runtime

TOLERANCE = {"float32": {"rtol": 2e-4, "atol": 2e-5}, "float64": {"rtol": 1e-9, "atol": 1e-10}}


def same(device, actual, expected, dtype="float64"):
    """Check that an array, or a tuple of them, lies on the device, has the dtype and NumPy's values."""
    if isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            same(device, a, e, dtype)
    elif expected is None:
        assert actual is None
    else:
        assert array_module(actual) is device.xp
        assert actual.dtype == dtype
        np.testing.assert_allclose(device.to_numpy(actual), expected, **TOLERANCE[dtype])


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


# Operators: name -> (forward, backward, arguments)

IMAGE = normal(3, 7, 6, 4)


def loss_forward(logits, labels):
    return F.softmax_cross_entropy_forward(logits, labels, label_smoothing=0.1)


OPERATORS = {
    "conv2d": (
        partial(F.conv2d_forward, stride=1, padding=1), F.conv2d_backward,
        (IMAGE, normal(3, 3, 4, 5), normal(5)),
    ),
    "conv2d, stride 2": (
        partial(F.conv2d_forward, stride=2, padding=2), F.conv2d_backward, (IMAGE, normal(3, 3, 4, 5)),
    ),
    "conv2d, 1 x 1": (F.conv2d_forward, F.conv2d_backward, (IMAGE, normal(1, 1, 4, 5), normal(5))),
    "linear": (F.linear_forward, F.linear_backward, (normal(6, 5), normal(5, 4), normal(4))),
    "relu": (F.relu_forward, F.relu_backward, (IMAGE,)),
    "max_pool2d": (F.max_pool2d_forward, F.max_pool2d_backward, (np.maximum(IMAGE, 0.0),)),
    "max_pool2d, overlapping": (
        partial(F.max_pool2d_forward, kernel_size=3, stride=2), F.max_pool2d_backward, (IMAGE,),
    ),
    "global_avg_pool2d": (F.global_avg_pool2d_forward, F.global_avg_pool2d_backward, (IMAGE,)),
    "batch_norm": (F.batch_norm_forward, F.batch_norm_backward, (IMAGE, normal(4), normal(4))),
    "batch_norm, given statistics": (
        F.batch_norm_forward, F.batch_norm_backward, (IMAGE, *(normal(4) for _ in range(3)), normal(4) ** 2),
    ),
    "dropout": (partial(F.dropout_forward, p=0.3), F.dropout_backward, (IMAGE, IMAGE > 0.0)),
    "softmax_cross_entropy": (
        loss_forward, lambda dy, cache: F.softmax_cross_entropy_backward(cache),
        (normal(6, 10), np.arange(6)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator(device, name, dtype):
    forward, backward, arguments = OPERATORS[name]
    y, cache = forward(*arguments)
    dy = normal(*y.shape)
    there = [device.asarray(a, dtype=dtype if a.dtype.kind == "f" else None) for a in arguments]
    before = [device.to_numpy(a) for a in there]
    y_there, cache_there = forward(*there)
    same(device, y_there, y, dtype)
    same(device, backward(device.asarray(dy, dtype=dtype), cache_there), backward(dy, cache), dtype)
    for a, b in zip(there, before, strict=True):
        np.testing.assert_array_equal(device.to_numpy(a), b, err_msg="an argument was written to")


@pytest.mark.parametrize("stride, padding", [(1, 0), (1, 1), (2, 1), (3, 2)])
def test_im2col_and_col2im(device, stride, padding):
    columns = F.im2col(IMAGE, 3, stride, padding)
    there = F.im2col(device.asarray(IMAGE), 3, stride, padding)
    same(device, there, columns)
    back = F.col2im(columns, IMAGE.shape, 3, stride, padding)
    same(device, F.col2im(there, IMAGE.shape, 3, stride, padding), back)


def test_softmax_of_large_logits(device):
    logits = np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]])
    same(device, F.softmax(device.asarray(logits)), F.softmax(logits))


def test_conv2d_in_several_chunks(device, monkeypatch):
    monkeypatch.setattr(F.conv, "COLUMNS_ON_GPU", 2 * F.im2col(IMAGE[:1], 3).nbytes)
    test_operator(device, "conv2d", "float64")


# Layers

LAYERS = {
    "Conv2d": (lambda **common: L.Conv2d(4, 5, **common), IMAGE),
    "Conv2d without bias": (
        lambda **common: L.Conv2d(4, 5, 5, stride=2, padding=2, bias=False, **common), IMAGE,
    ),
    "Linear": (lambda **common: L.Linear(5, 4, **common), normal(6, 5)),
    "ReLU": (L.ReLU, IMAGE),
    "MaxPool2d": (partial(L.MaxPool2d, 3, 2), IMAGE),
    "GlobalAvgPool2d": (L.GlobalAvgPool2d, IMAGE),
    "Flatten": (L.Flatten, IMAGE),
    "Dropout": (lambda **common: L.Dropout(0.4, rng=np.random.default_rng(1), **common), IMAGE),
    "BatchNorm2d": (partial(L.BatchNorm2d, 4), IMAGE),
    "Sequential": (
        lambda **common: L.Sequential(
            L.Conv2d(4, 6, **common), L.BatchNorm2d(6, **common), L.ReLU(), L.GlobalAvgPool2d(), **common
        ), IMAGE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(device, name, dtype):
    make, x = LAYERS[name]
    here, there = make(dtype="float64"), make(dtype=dtype)
    for ours, theirs in zip(here.parameters().values(), there.parameters().values(), strict=True):
        theirs.data = ours.data.astype(dtype)
    there.to(device)
    x_there = device.asarray(x, dtype=dtype)
    for _ in range(2):  # the second step starts from what the first one left
        y = here.forward(x)
        same(device, there.forward(x_there), y, dtype)
        dy = normal(*y.shape)
        same(device, there.backward(device.asarray(dy, dtype=dtype)), here.backward(dy), dtype)
        for ours, theirs in zip(here.parameters().values(), there.parameters().values(), strict=True):
            same(device, theirs.grad, ours.grad, dtype)
        for ours, theirs in zip(here.buffers().values(), there.buffers().values(), strict=True):
            same(device, theirs, ours, dtype)
    same(device, there.eval().forward(x_there), here.eval().forward(x), dtype)


# A network

X = normal(8, 32, 32, 3)
LABELS = np.arange(8) % 4


def small_vgg(**settings):
    settings = {"dtype": "float64", **settings}
    return VGG(
        [8, "M", 8, "M", 16, "M", 16, "M", 16, "M"],
        num_classes=4,
        image_size=32,
        classifier_width=16,
        **settings,
    )


def train(net, steps, **settings):
    """Train on one batch and return the losses."""
    xp = net.backend
    loss, optimizer = SoftmaxCrossEntropy(label_smoothing=0.1), SGD(net.parameters(), **settings)
    x, labels = xp.asarray(X, dtype=net.dtype), xp.asarray(LABELS)
    values = []
    for _ in range(steps):
        values.append(float(loss.forward(net.forward(x), labels)))
        net.backward(loss.backward(), need_input_gradient=False)
        optimizer.step()
    return values


def state(net):
    arrays = {name: p.data for name, p in net.parameters().items()} | net.buffers()
    return {name: get("numpy").to_numpy(array).copy() for name, array in arrays.items()}


MOMENTUM = {"lr": 0.02, "momentum": 0.9}
OPTIMIZERS = {
    "plain": {"lr": 0.05},
    "momentum": MOMENTUM,
    "momentum and decay": {**MOMENTUM, "weight_decay": 1e-2},
    "nesterov": {**MOMENTUM, "nesterov": True, "weight_decay": 1e-2, "no_decay": is_bias_or_norm},
}


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ten_training_steps(device, optimizer, batch_norm):
    here, there = (small_vgg(batch_norm=batch_norm) for _ in range(2))
    expected = train(here, 10, **OPTIMIZERS[optimizer])
    actual = train(there.to(device), 10, **OPTIMIZERS[optimizer])
    assert expected[-1] != pytest.approx(expected[0], rel=0.01), "nothing was learned, so nothing is compared"
    np.testing.assert_allclose(actual, expected, rtol=1e-7)
    for name, array in state(there).items():
        np.testing.assert_allclose(array, state(here)[name], rtol=1e-6, atol=1e-9, err_msg=name)
    there.eval()
    same(device, there.forward(device.asarray(X)), here.eval().forward(X))


def test_float32_training(device):
    here, there = (small_vgg(dtype="float32", dropout=0.0) for _ in range(2))
    settings = OPTIMIZERS["momentum"]
    np.testing.assert_allclose(train(there.to(device), 5, **settings), train(here, 5, **settings), rtol=2e-3)


def test_image_gradient(device):
    here, there = small_vgg(dropout=0.0), small_vgg(dropout=0.0).to(device)
    dy = normal(8, 4)
    here.forward(X)
    there.forward(device.asarray(X))
    same(device, there.backward(device.asarray(dy)), here.backward(dy))


def test_moving_there_and_back_changes_nothing(device):
    net = small_vgg(batch_norm=True)
    train(net, 1, lr=0.1)
    before, parameters = state(net), net.parameters()
    gradients = {name: p.grad.copy() for name, p in parameters.items()}
    net.to(device)
    assert net.backend.xp is device.xp
    assert all(array_module(array) is device.xp for array in net.buffers().values())
    assert all(array_module(p.data) is array_module(p.grad) is device.xp for p in parameters.values())
    net.to("numpy")
    assert all(net.parameters()[name] is p for name, p in parameters.items())
    for name, array in state(net).items():
        np.testing.assert_array_equal(array, before[name])
    for name, p in parameters.items():
        np.testing.assert_array_equal(p.grad, gradients[name])


def test_the_optimizer_follows_a_network_that_moves(device):
    here, there = small_vgg(dropout=0.0), small_vgg(dropout=0.0)
    x, labels, loss = device.asarray(X), device.asarray(LABELS), SoftmaxCrossEntropy()
    optimizers = [SGD(net.parameters(), lr=0.02, momentum=0.9) for net in (here, there)]
    for net, optimizer in zip((here, there), optimizers, strict=True):
        loss.forward(net.forward(X), LABELS)
        net.backward(loss.backward())
        optimizer.step()
    there.to(device)
    loss.forward(here.forward(X), LABELS)
    here.backward(loss.backward())
    loss.forward(there.forward(x), labels)
    there.backward(loss.backward())
    for optimizer in optimizers:
        optimizer.step()
    for name, array in state(there).items():
        np.testing.assert_allclose(array, state(here)[name], rtol=1e-9, atol=1e-12)


def test_weights_are_drawn_alike_on_every_backend(device):
    for name, array in state(small_vgg().to(device)).items():
        np.testing.assert_array_equal(array, state(small_vgg())[name])


def test_an_input_on_the_wrong_backend_is_refused(device):
    net = small_vgg()
    with pytest.raises(ValueError, match="on numpy"):
        net.forward(device.asarray(X))
    with pytest.raises(ValueError, match="on cupy"):
        net.to(device).forward(X)


def test_labels_may_lie_on_the_host(device):
    logits = device.asarray(normal(8, 4))
    loss = SoftmaxCrossEntropy()
    value = float(loss.forward(logits, LABELS))
    assert value == pytest.approx(float(loss.forward(logits, device.asarray(LABELS))))


def test_a_wrong_label_is_refused(device):
    with pytest.raises(ValueError, match="label 4 is not one of the 4 classes"):
        SoftmaxCrossEntropy().forward(device.asarray(normal(2, 4)), device.asarray(np.array([0, 4])))


def test_checkpoints(device, tmp_path):
    net = small_vgg(batch_norm=True, dtype="float32").to(device)
    train(net, 2, lr=0.02)
    save(tmp_path / "net.safetensors", net)
    assert net.backend.xp is device.xp, "saving must not move the network"
    here, there = load(tmp_path / "net.safetensors"), load(tmp_path / "net.safetensors", backend=device)
    assert here.backend.name == "numpy"
    assert there.backend.xp is device.xp
    fresh = small_vgg(batch_norm=True, dtype="float32").to(device)
    load_weights(tmp_path / "net.safetensors", fresh)
    for name, array in state(net).items():
        for other in (here, there, fresh):
            np.testing.assert_array_equal(state(other)[name], array)
    same(device, there.forward(device.asarray(X, "float32")), here.forward(X.astype("float32")), "float32")


# Training by the trainer


def fit(backend, epochs, run):
    """Train a small network on a few images; return its trainer."""
    images = shapes10(n_train=48, n_test=20)
    train = Loader(images.train_images, images.train_labels, 20, shuffle=True)
    validation = Loader(images.test_images, images.test_labels, 20, shuffle=False)
    net = vgg11(10, 32, width=0.125, classifier_width=16, batch_norm=True).to(backend)
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    how = {"run": run, "engine": "layers"}  # for plans see tests/training/test_device.py
    trainer = Trainer(net, optimizer, Constant(0.01), train, validation, **how)
    if run.has_state:
        trainer.resume()
    trainer.fit(epochs)
    return trainer


def test_a_run_of_the_trainer_with_resume(device, tmp_path):
    expected = fit("numpy", 2, RunDirectory(tmp_path / "host"))
    fit(device, 1, RunDirectory(tmp_path / "device"))
    actual = fit(device, 2, RunDirectory(tmp_path / "device"))
    for row, right in zip(actual.log, expected.log, strict=True):
        assert row["train_loss"] == pytest.approx(right["train_loss"], rel=1e-2)
        assert row["val_loss"] == pytest.approx(right["val_loss"], rel=1e-2)
    probabilities = predict(
        load(tmp_path / "device" / "last.safetensors", backend=device), X.astype("float32")
    )
    assert type(probabilities) is np.ndarray
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_where_a_nan_first_appeared_is_found_on_a_device(device):
    net = small_vgg().to(device)
    net.features[0].bias.data[...] = np.inf
    assert "features.0.bias" in why_not_finite(net, device.asarray(X))


# How often the host waits for the device: the stand-in counts


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
def test_a_training_step_never_waits_for_the_device(stand_in, batch_norm):
    device = get("cupy")
    net = small_vgg(batch_norm=batch_norm, dropout=0.0).to(device)
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3, nesterov=True)
    x, dy = device.asarray(X), device.asarray(normal(8, 4))
    with cuda_runtime.counted() as traffic:
        for _ in range(2):
            net.forward(x)
            net.backward(dy)
            optimizer.step()
        net.eval().forward(x)
    assert (traffic.reads, traffic.uploads) == (0, 0)


def test_dropout_uploads_its_mask_and_nothing_else(stand_in):
    layer, x = L.Dropout(0.5), get("cupy").asarray(X)
    with cuda_runtime.counted() as traffic:
        layer.backward(layer.forward(x))
    assert (traffic.reads, traffic.uploads) == (0, 1)


def test_the_loss_waits_at_most_once_to_check_its_labels(stand_in):
    logits, labels, loss = (
        get("cupy").asarray(normal(8, 4)),
        get("cupy").asarray(LABELS),
        SoftmaxCrossEntropy(),
    )
    with cuda_runtime.counted() as traffic:
        loss.forward(logits, labels)
        loss.backward()
    assert traffic.reads <= 1
