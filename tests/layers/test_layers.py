"""Layers: what they keep, what they refuse, and what stays as it is."""

import gc
import re
import tracemalloc
import weakref

import numpy as np
import pytest

from scratchnet.gradcheck import check_layer
from scratchnet.layers import (
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from scratchnet.plans import compile

# One of each, and a shape of input for it
LAYERS = {
    "Conv2d": (lambda **k: Conv2d(2, 3, **k), (2, 5, 4, 2)),
    "Linear": (lambda **k: Linear(4, 3, **k), (2, 4)),
    "ReLU": (lambda **k: ReLU(**k), (2, 5, 4, 2)),
    "MaxPool2d": (lambda **k: MaxPool2d(3, 2, **k), (2, 5, 7, 2)),
    "GlobalAvgPool2d": (lambda **k: GlobalAvgPool2d(**k), (2, 5, 4, 2)),
    "Flatten": (lambda **k: Flatten(**k), (2, 5, 4, 2)),
    "Dropout": (lambda **k: Dropout(0.4, **k), (2, 5, 4, 2)),
    "BatchNorm2d": (lambda **k: BatchNorm2d(2, **k), (2, 5, 4, 2)),
    "BatchNorm1d": (lambda **k: BatchNorm1d(4, **k), (6, 4)),
    "Sequential": (
        lambda **k: Sequential(Conv2d(2, 3, **k), ReLU(), Flatten(), Linear(60, 2, **k)),
        (2, 5, 4, 2),
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def normal(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def make(name, dtype="float32", **common):
    build, shape = LAYERS[name]
    return build(dtype=dtype, **common), normal(*shape, dtype=dtype)


# Gradients


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_gradients_agree_with_central_differences(name, training):
    layer, x = make(name)
    check_layer(layer.train(training), x).raise_for_failure()


# Types, shapes and memory


@every_layer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_is_the_same_everywhere_and_inputs_are_not_written_to(name, dtype, training):
    layer, x = make(name, dtype)
    layer.train(training)
    x.flags.writeable = False
    with layer.recording():
        y = layer.forward(x)
        dy = normal(*y.shape, seed=1, dtype=dtype)
        dy.flags.writeable = False
        dx = layer.backward(dy)
    assert y.dtype == dx.dtype == dtype and dx.shape == x.shape
    for p in layer.parameters().values():
        assert p.data.dtype == p.grad.dtype == dtype and p.grad.shape == p.data.shape
    for buffer in layer.buffers().values():
        assert buffer.dtype == dtype


@every_layer
@pytest.mark.parametrize(
    "view",
    [np.asfortranarray, lambda a: a[::-1].copy()[::-1], lambda a: np.repeat(a, 2, axis=1)[:, ::2]],
    ids=["fortran", "negative strides", "strided"],
)
def test_memory_layout_does_not_matter(name, view):
    (layer, x), (other, _) = make(name, "float64"), make(name, "float64")
    y = layer.forward(x)
    dy = normal(*y.shape, seed=1, dtype="float64")
    np.testing.assert_allclose(other.forward(view(x)), y, atol=1e-13)
    np.testing.assert_allclose(other.backward(view(dy)), layer.backward(dy), atol=1e-13)
    for p, q in zip(layer.parameters().values(), other.parameters().values(), strict=True):
        np.testing.assert_allclose(q.grad, p.grad, atol=1e-13)


@every_layer
def test_output_shape_is_what_forward_returns(name):
    layer, x = make(name)
    assert tuple(layer.output_shape(x.shape)) == layer.forward(x).shape


@pytest.mark.parametrize("H", range(3, 9))
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (2, 2, 0), (2, 3, 1), (1, 2, 0)]
)
def test_output_shape_rounds_down_as_forward_does(H, kernel, stride, padding):
    x = normal(1, H, 11 - H, 1)
    conv = Conv2d(1, 2, kernel, stride, padding)
    assert conv.output_shape(x.shape) == conv.forward(x).shape
    pool = MaxPool2d(kernel, stride)
    assert pool.output_shape(x.shape) == pool.forward(x).shape


@every_layer
def test_calling_a_layer_is_its_forward(name):
    (layer, x), (other, _) = make(name), make(name)
    assert (layer(x) == other.forward(x)).all()


@every_layer
def test_same_seed_same_bits(name):
    results = []
    for _ in range(2):
        layer, x = make(name, rng=np.random.default_rng(7))
        y = layer.forward(x)
        results.append([y, layer.backward(y), *(p.grad for p in layer.parameters().values())])
    assert all((a == b).all() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("build", [lambda rng: Conv2d(2, 2, rng=rng), lambda rng: Linear(2, 2, rng=rng)])
def test_weights_come_from_the_generator_and_are_the_same_without_one(build):
    def weight(seed):
        return build(None if seed is None else np.random.default_rng(seed)).weight.data

    assert (weight(1) == weight(1)).all() and (weight(1) != weight(2)).any()
    assert (weight(None) == weight(None)).all()


# What is kept for backward


@every_layer
def test_backward_before_forward_is_an_error(name):
    layer, x = make(name)
    with pytest.raises(RuntimeError, match="backward without a forward before it: call forward first"):
        layer.backward(x)


@every_layer
def test_backward_twice_is_an_error(name):
    layer, x = make(name)
    y = layer.forward(x)
    layer.backward(y)
    with pytest.raises(RuntimeError, match="once for each backward"):
        layer.backward(y)


@every_layer
def test_backward_after_evaluation_is_an_error_that_says_what_to_do(name):
    layer, x = make(name)
    layer.forward(x)  # what training kept is gone after eval()
    y = layer.eval().forward(x)
    with pytest.raises(RuntimeError, match="evaluation keeps nothing for it; call train\\(\\), or use"):
        layer.backward(y)


@every_layer
def test_forward_twice_then_backward_uses_the_last(name):
    (layer, x), (other, _) = make(name, "float64"), make(name, "float64")
    if name == "Dropout":
        other.draw(x.shape)
    layer.forward(x + 1)
    y = layer.forward(x)
    other.forward(x)
    assert (layer.backward(y) == other.backward(y)).all()


@every_layer
def test_backward_sets_gradients_and_does_not_add(name):
    layer, x = make(name)
    gradients = []
    for _ in range(2):
        y = layer.forward(x)
        layer.backward(np.ones_like(y))
        gradients.append([p.grad.copy() for p in layer.parameters().values()])
    assert all((a == b).all() for a, b in zip(*gradients, strict=True))


@every_layer
def test_evaluation_keeps_nothing_and_training_frees_it_after_backward(name):
    layer, x = make(name)
    y = layer.forward(x)
    layer.backward(y)
    assert all(part._saved is None for _, part in layer.walk())
    layer.eval().forward(x)
    assert all(part._saved is None for _, part in layer.walk())


@pytest.mark.parametrize("name", ["Conv2d", "Linear", "BatchNorm2d"])
def test_the_input_is_held_until_backward_and_freed_then(name):
    layer, x = make(name)
    y = layer.forward(x)
    held = weakref.ref(x)
    del x
    gc.collect()
    assert held() is not None
    layer.backward(y)
    gc.collect()
    assert held() is None


def test_a_convolution_keeps_its_input_and_not_the_columns():
    layer, x = Conv2d(8, 8), normal(8, 32, 32, 8)
    layer.forward(x[:1])
    tracemalloc.start()
    try:
        y = layer.forward(x)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < y.nbytes + 100_000


def test_recording_makes_backward_possible_in_evaluation_and_ends():
    net, x = make("Sequential")
    net.eval()
    with net.recording() as same:
        assert same is net
        y = net.forward(x)
        net.backward(y)
        net.forward(x)
    assert all(part._saved is None for _, part in net.walk())
    y = net.forward(x)
    with pytest.raises(RuntimeError):
        net.backward(y)


def test_recording_inside_recording_and_after_an_error():
    layer, x = ReLU().eval(), normal(2, 3)
    with pytest.raises(KeyError), layer.recording():
        with layer.recording():
            layer.forward(x)
        layer.backward(layer.forward(x))
        raise KeyError
    layer.forward(x)
    assert layer._saved is None


def test_recording_in_training_leaves_what_was_kept():
    layer, x = ReLU(), normal(2, 3)
    with layer.recording():
        y = layer.forward(x)
    layer.backward(y)


@every_layer
def test_the_gradient_has_to_have_the_shape_of_the_output(name):
    layer, x = make(name)
    y = layer.forward(x)
    with pytest.raises(ValueError, match="the output was .*, its gradient is \\(1, 1\\)"):
        layer.backward(np.ones((1, 1), "float32"))
    with pytest.raises(ValueError, match="expected an array .*, got list"):
        layer.backward(y.tolist())
    layer.backward(y)  # the mistake has lost nothing


# What is refused, and how


def test_errors_name_the_path_the_layer_what_was_expected_and_what_came():
    net = Sequential(Sequential(ReLU(), Conv2d(64, 8)), Flatten(), Linear(10, 2))
    with pytest.raises(ValueError) as error:
        net.forward(normal(8, 3, 32, 32))
    assert (
        str(error.value)
        == "0.1 (Conv2d): expected (N, H, W, 64), got (8, 3, 32, 32): images are channels last"
    )
    for ask in (net.output_shape, lambda shape: compile(net, shape, training=True)):
        with pytest.raises(ValueError, match=re.escape(str(error.value))):
            ask((8, 3, 32, 32))
    with pytest.raises(ValueError, match="2 \\(Linear\\): expected \\(N, 10\\), got \\(1, 32\\)"):
        net.forward(normal(1, 2, 2, 64))
    with pytest.raises(RuntimeError, match="2 \\(Linear\\): backward without"):
        net.backward(normal(1, 2))


@pytest.mark.parametrize(
    ("layer", "x", "sentence"),
    [
        (Conv2d(3, 4), normal(2, 4, 4, 3, dtype="float64"), "Conv2d: expected float32, got float64"),
        (Linear(3, 4, dtype="float64"), normal(2, 3), "Linear: expected float64, got float32"),
        (BatchNorm2d(3), np.ones((2, 4, 4, 3), int), "BatchNorm2d: expected float32, got int64"),
        (Conv2d(3, 4), np.ones((2, 4, 4, 3), "float16"), "expected float32, got float16"),
        (Conv2d(3, 4), normal(4, 4, 3), "expected \\(N, H, W, 3\\), got \\(4, 4, 3\\)"),
        (Linear(3, 4), normal(2, 4, 4, 3), "got \\(2, 4, 4, 3\\): put Flatten\\(\\) before it"),
        (Linear(3, 4), normal(3), "expected \\(N, 3\\), got \\(3,\\)"),
        (BatchNorm1d(3), normal(2, 4, 4, 3), "BatchNorm1d: expected \\(N, 3\\), got \\(2, 4, 4, 3\\)"),
        (MaxPool2d(), normal(2, 4), "MaxPool2d: expected \\(N, H, W, C\\), got \\(2, 4\\)"),
        (GlobalAvgPool2d(), normal(2, 4), "expected \\(N, H, W, C\\), got \\(2, 4\\)"),
        (Flatten(), np.float32(1.0), "Flatten: expected \\(N, ...\\), got \\(\\)"),
        (MaxPool2d(3), normal(1, 2, 9, 1), "a window of 3 does not fit into \\(1, 2, 9, 1\\)"),
        (Conv2d(1, 1, 5), normal(1, 2, 9, 1), "a kernel of 5 does not fit into \\(1, 2, 9, 1\\)"),
        (ReLU(), [[1.0]], "ReLU: expected an array, got list"),
        (Conv2d(3, 4), [[1.0]], "Conv2d: expected an array, got list"),
        (Dropout(), 3.0, "Dropout: expected an array, got float"),
        (Conv2d(3, 4), np.zeros((0, 4, 4, 3), "float32"), "the input is empty"),
        (Linear(3, 4), np.zeros((0, 3), "float32"), "the input is empty"),
        (ReLU(), np.zeros((0, 3), "float32"), "the input is empty"),
        (MaxPool2d(), np.zeros((0, 4, 4, 3), "float32"), "the input is empty"),
    ],
)
def test_a_wrong_input_is_refused_with_a_sentence(layer, x, sentence):
    with pytest.raises(ValueError, match=sentence):
        layer.forward(x)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Conv2d(0, 1), "in_channels must be a whole number of at least 1, not 0"),
        (lambda: Conv2d(1, 1.5), "out_channels must be a whole number"),
        (lambda: Conv2d(1, 1, (3, 3)), "kernel_size must be a whole number"),
        (lambda: Conv2d(1, 1, stride=0), "stride must be a whole number of at least 1"),
        (lambda: Conv2d(1, 1, padding=-1), "padding must be a whole number of at least 0"),
        (lambda: MaxPool2d(0), "kernel_size must be a whole number"),
        (lambda: MaxPool2d(2, 0), "stride must be a whole number"),
        (lambda: MaxPool2d(17), "at most 16"),
        (lambda: Linear(3, 0), "out_features must be a whole number"),
        (lambda: BatchNorm2d(0), "num_features must be a whole number"),
        (lambda: Dropout(1.5), "p must be a number between 0 and 1, not 1.5"),
        (lambda: Dropout(-0.1), "p must be a number between 0 and 1"),
        (lambda: Dropout(float("nan")), "p must be a number between 0 and 1"),
        (lambda: ReLU(dtype="float16"), "dtype must be float32 or float64, not float16"),
        (lambda: Conv2d(1, 1, dtype=int), "dtype must be float32 or float64"),
        (lambda: Linear(1, 1, init="best"), "init must be one of he, pytorch, normal, not 'best'"),
        (lambda: Sequential([ReLU()]), "Sequential takes layers, not list"),
        (lambda: Sequential(ReLU), "Sequential takes layers, not type"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_arguments_may_be_numpy_integers():
    assert Conv2d(np.int64(2), np.int32(3)).forward(normal(1, 3, 3, 2)).shape == (1, 3, 3, 3)


# What layers cost


def test_multiply_adds_are_those_of_the_products():
    net = Sequential(Conv2d(3, 8, bias=False), ReLU(), MaxPool2d(), Flatten(), Linear(8 * 4 * 4, 10))
    assert net.multiply_adds((2, 8, 8, 3)) == 2 * (8 * 8 * 8 * 27 + 128 * 10)
