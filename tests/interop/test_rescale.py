"""Rescaled layers: of one size, the same function, and refused where that cannot be."""

import numpy as np
import pytest

from scratchnet.interop import rescale_layers
from scratchnet.layers import BatchNorm2d, Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.models import vgg13


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def caffe_like(rng):
    """A VGG13 with feature maps of values in the hundreds, and biases that matter."""
    net = vgg13(5, 32, width=0.125, classifier_width=16, seed=1).eval()
    for name, p in net.parameters().items():
        p.data *= 1.7 if p.data.ndim == 4 else 1.0
        if name.endswith("bias"):
            p.data[...] = rng.normal(0, 20, p.shape)
    return net, rng.normal(0, 60, (16, 32, 32, 3)).astype(np.float32)


def sizes(net, x):
    found = []
    for layer in [*net.features, *net.classifier]:
        x = layer.forward(x if not isinstance(layer, Linear) else x.reshape(len(x), -1))
        if isinstance(layer, Conv2d | Linear):
            found.append(float(np.sqrt((x.astype(np.float64) ** 2).mean())))
    return found


def test_every_layer_but_the_last_has_unit_size_and_the_network_computes_the_same(rng):
    net, x = caffe_like(rng)
    before = net.forward(x)
    assert max(sizes(net, x)[:10]) > 100
    factor = rescale_layers(net, x)
    assert sizes(net, x)[:-1] == pytest.approx([1.0] * 12, rel=1e-4)
    assert factor > 100
    np.testing.assert_allclose(net.forward(x), before, rtol=2e-4, atol=2e-4 * abs(before).max())


def test_a_new_head_stays_as_it_is_and_sees_features_divided_by_the_factor(rng):
    net, x = caffe_like(rng)
    last = list(net.classifier)[-1]
    weight, bias, before = last.weight.data.copy(), last.bias.data.copy(), net.forward(x)
    factor = rescale_layers(net, x, new_head=True)
    np.testing.assert_array_equal(last.weight.data, weight)
    np.testing.assert_allclose(
        (net.forward(x) - bias) * factor, before - bias, rtol=2e-4, atol=2e-4 * abs(before).max()
    )


class LeakyReLU(Layer):
    """Somebody's own, homogeneous like a ReLU."""

    def forward(self, x):
        return np.where(x > 0, x, 0.1 * x)


def test_other_peoples_homogeneous_layers_are_taken(rng):
    net = Sequential(
        Conv2d(3, 4, dtype="float64"), LeakyReLU(), MaxPool2d(), Flatten(), Linear(64, 2, dtype="float64")
    )
    x = rng.normal(0, 50, (4, 8, 8, 3))
    before = net.eval().forward(x)
    rescale_layers(net, x)
    np.testing.assert_allclose(net.forward(x), before, rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            (Conv2d(3, 4), BatchNorm2d(4), ReLU(), Flatten(), Linear(256, 2)),
            r"1 \(BatchNorm2d\) is not homog",
        ),
        ((Conv2d(3, 4), ReLU(), Flatten(), Linear(256, 2)), "the output of 0 is zero"),
    ],
)
def test_what_cannot_be_rescaled_is_refused_and_left_as_it_was(layers, message):
    net = Sequential(*layers)
    if "zero" in message:
        net[0].weight.data[...] = 0
    before = {name: p.data.copy() for name, p in net.parameters().items()}
    if "zero" not in message:
        net.forward(np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32))
    mode = net.training
    with pytest.raises(ValueError, match=message):
        rescale_layers(net, np.ones((2, 8, 8, 3), np.float32))
    assert net.training == mode
    for name, p in net.parameters().items():
        np.testing.assert_array_equal(p.data, before[name])
