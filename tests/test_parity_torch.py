"""Every operation, the loss and the optimizer against PyTorch, in both directions, where it is installed."""

import importlib
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.functional import conv as conv_module
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, GlobalAvgPool2d, Linear, MaxPool2d, ReLU
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
torch.set_num_threads(1)  # its threads spin, and such small arrays need none

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-5}, "float64": {"rtol": 1e-11, "atol": 1e-12}}


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def first(x):
    """From channels last to PyTorch's channels first, as a leaf that wants a gradient."""
    return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), requires_grad=True)


def last(t):
    return t.detach().numpy().transpose(0, 2, 3, 1)


def run(layer, module, x):
    """Forward and backward on both sides with the same dy; return both outputs and both dx, channels last."""
    t = first(x)
    y, expected = layer.forward(x), module(t)
    dy = normal(*y.shape, seed=9, dtype=x.dtype)
    channels_first = dy.transpose(0, 3, 1, 2) if dy.ndim == 4 else dy
    expected.backward(torch.tensor(np.ascontiguousarray(channels_first)))
    expected = last(expected) if dy.ndim == 4 else expected.detach().numpy()
    return y, expected, layer.backward(dy), last(t.grad)


def close(a, b, dtype="float64"):
    np.testing.assert_allclose(a, b, **TOLERANCE[str(dtype)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolution(monkeypatch, kernel, stride, bias, dtype):
    for padding in (0, 1, 2, 3) if dtype == "float64" else (1,):
        for N, H, W, C, O, buffer in [(3, 7, 6, 3, 4, 1 << 22), (5, 6, 9, 2, 3, 3000), (1, 5, 5, 1, 1, 1)]:
            monkeypatch.setattr(conv_module, "COLUMNS_ON_CPU", buffer)
            layer = Conv2d(C, O, kernel, stride, padding, bias, dtype=dtype, init="pytorch")
            module = torch.nn.Conv2d(C, O, kernel, stride, padding, bias=bias, dtype=getattr(torch, dtype))
            with torch.no_grad():
                module.weight.copy_(torch.tensor(layer.weight.data.transpose(3, 2, 0, 1).copy()))
                if bias:
                    module.bias.copy_(torch.tensor(layer.bias.data))
            y, expected, dx, expected_dx = run(layer, module, normal(N, H, W, C, dtype=dtype))
            close(y, expected, dtype)
            close(dx, expected_dx, dtype)
            close(layer.weight.grad, module.weight.grad.numpy().transpose(2, 3, 1, 0), dtype)
            if bias:
                close(layer.bias.grad, module.bias.grad.numpy(), dtype)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (2, 1), (2, 3), (3, 3), (1, 2), (5, 1)])
def test_max_pooling(kernel, stride, ties):
    x = normal(2, 9, 7, 3)
    x = np.maximum(np.round(x), 0) if ties else x
    module = torch.nn.MaxPool2d(kernel, stride)
    y, expected, dx, expected_dx = run(MaxPool2d(kernel, stride), module, x)
    assert (y == expected).all()
    close(dx, expected_dx)


def test_max_pooling_of_nan():
    x = normal(1, 6, 6, 1)
    x[0, 1, 1] = x[0, 4, 2] = np.nan
    y, expected, _, _ = run(MaxPool2d(2), torch.nn.MaxPool2d(2), x)
    np.testing.assert_array_equal(y, expected)


def test_relu_and_global_average():
    x = normal(2, 5, 4, 3)
    x[0, 0] = 0.0
    for y, expected, dx, expected_dx in (
        run(ReLU(), torch.nn.ReLU(), x),
        run(GlobalAvgPool2d(), torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), x),
    ):
        close(y, expected)
        close(dx, expected_dx)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear(dtype):
    layer = Linear(7, 5, dtype=dtype, init="pytorch")
    x = normal(4, 7, dtype=dtype)
    t = torch.tensor(x, requires_grad=True)
    weight = torch.tensor(layer.weight.data.T.copy(), requires_grad=True)
    bias = torch.tensor(layer.bias.data, requires_grad=True)
    expected, y = torch.nn.functional.linear(t, weight, bias), layer.forward(x)
    dy = normal(4, 5, seed=1, dtype=dtype)
    expected.backward(torch.tensor(dy))
    close(y, expected.detach(), dtype)
    close(layer.backward(dy), t.grad, dtype)
    close(layer.weight.grad, weight.grad.T, dtype)
    close(layer.bias.grad, bias.grad, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("eps", "momentum"), [(1e-5, 0.1), (1e-3, 0.5), (1e-5, 1.0)])
def test_batch_normalisation_over_several_steps_and_in_evaluation(eps, momentum, dtype):
    layer = BatchNorm2d(3, eps, momentum, dtype=dtype)
    module = torch.nn.BatchNorm2d(3, eps, momentum, dtype=getattr(torch, dtype))
    weight, bias = normal(3, seed=1, dtype=dtype), normal(3, seed=2, dtype=dtype)
    layer.weight.data, layer.bias.data = weight, bias
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        module.bias.copy_(torch.tensor(bias))
    for step in range(5):
        if step == 4:
            layer.eval()
            module.eval()
        x = normal(3, 4, 5, 3, seed=step, dtype=dtype) * 2 + step
        module.zero_grad()
        with layer.recording():
            y, expected, dx, expected_dx = run(layer, module, x)
        close(y, expected, dtype)
        close(dx, expected_dx, dtype)
        close(layer.weight.grad, module.weight.grad, dtype)
        close(layer.bias.grad, module.bias.grad, dtype)
        close(layer.running_mean, module.running_mean, dtype)
        close(layer.running_var, module.running_var, dtype)


def test_dropout_with_the_same_mask():
    layer, x = Dropout(0.3), normal(3, 4, 4, 2)
    y = layer.forward(x)
    keep = torch.tensor(np.where(x != 0, y / x, 0) > 0)
    t = torch.tensor(x, requires_grad=True)
    expected = t * keep / (1 - 0.3)
    dy = normal(*x.shape, seed=1)
    expected.backward(torch.tensor(dy))
    close(y, expected.detach())
    close(layer.backward(dy), t.grad)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_cross_entropy(smoothing, scale, dtype):
    z, labels = scale * normal(6, 10, dtype=dtype), np.array([0, 9, 3, 3, 5, 1])
    t = torch.tensor(z, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(t, torch.tensor(labels), label_smoothing=smoothing)
    expected.backward()
    loss = SoftmaxCrossEntropy(smoothing)
    value = loss.forward(z, labels)
    assert value.dtype == dtype and float(value) == pytest.approx(expected.item(), rel=1e-5)
    close(loss.backward(), t.grad, dtype)
    close(F.softmax(z), torch.softmax(t, 1).detach(), dtype)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum, nesterov, weight_decay):
    layer = Linear(4, 3, dtype="float64")
    t = [torch.tensor(p.data.copy(), requires_grad=True) for p in layer.parameters().values()]
    ours = SGD(layer.parameters(), 0.1, momentum, weight_decay, nesterov)
    theirs = torch.optim.SGD(t, 0.1, momentum, weight_decay=weight_decay, nesterov=nesterov)
    for step in range(5):
        for p, q in zip(layer.parameters().values(), t, strict=True):
            gradient = normal(*p.shape, seed=step)
            p.grad = gradient
            q.grad = torch.tensor(gradient)
        ours.lr = theirs.param_groups[0]["lr"] = 0.1 / (step + 1)
        ours.step()
        theirs.step()
        for p, q in zip(layer.parameters().values(), t, strict=True):
            close(p.data, q.detach())


def test_gradients_of_a_network_are_as_close_to_float64_as_pytorchs(monkeypatch):
    """The plan by PyTorch's format for speed, channels last; the plainest algorithms by its plainest format.

    Only where no ReLU or pooling is about to decide otherwise: such a decision outweighs all rounding.
    """
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    rounding = importlib.import_module("rounding")
    task = {"kind": "training", "arch": "vgg11", "width": 0.5, "batch_norm": False}
    task |= {"image_size": 32, "batch_size": 8}
    found = []
    for seed in range(50):
        task["seed"] = seed
        net, (x, labels) = rounding.build_network(task), rounding.make_batch(task)
        beside = x * (1 + 1e-5 * normal(*x.shape, dtype="float32"))
        exact = "float64", "contiguous_format"
        here, there = (rounding.torch_gradients(net, at, labels, *exact) for at in (x, beside))
        if rounding.distance(here, there) < 1e-3:
            found.append(rounding.distances(task))
        if len(found) == 3:
            break
    middle = {name: median(one[name] for one in found) for name in found[0]}
    assert middle["plan"] < 1.5 * middle["PyTorch, channels last"] < 1e-4
    assert middle["plan, im2col"] < 1.5 * middle["PyTorch, contiguous"]
    assert middle["layers"] < 1.5 * middle["PyTorch, contiguous"]
