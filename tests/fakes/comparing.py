"""Comparing plans with the layers that they replace."""

from __future__ import annotations

import numpy as np

from scratchnet import layers, models, plans


def small_vgg(name="vgg11", image_size=32, width=0.125, classifier_width=32, **settings):
    return models.VGG(name, 10, image_size, width=width, classifier_width=classifier_width, **settings)


def batch(*shape, dtype="float32", seed=2):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def away_from_kinks(make, shape, dtype, seed):
    """Draw a batch at which no decision of a ReLU or a pooling hangs on rounding.

    Near a kink two correct computations may decide differently, and then their gradients differ by much more
    than rounding. So the layers are asked for their gradient here and a little beside, and the batch is drawn
    again where that makes a difference.
    """
    for attempt in range(seed, seed + 50):
        x = batch(*shape, dtype=dtype, seed=attempt)
        gradients = []
        for moved in (x, x * (1 + 3e-6 * batch(*shape, dtype=dtype, seed=1))):
            net = make()
            y = net.forward(moved)
            gradients.append(net.backward(batch(*y.shape, dtype=dtype, seed=3)).astype("float64"))
        here, beside = gradients
        if np.linalg.norm(here - beside) < 1e-4 * np.linalg.norm(here):
            return x
    raise AssertionError("kinks everywhere")


def assert_plan_equals_layers(make, shape, algorithm="auto", tolerance=5e-5, dtype="float32", seed=2):
    """Run a plan of one network beside the layers of its twin: output, all gradients, state, evaluation."""
    planned, layered = make(), make()
    x = away_from_kinks(make, shape, dtype, seed)
    plan = plans.compile(planned, shape, training=True, algorithm=algorithm)
    for _ in range(2):  # twice: masks go on, buffers are used again
        y, expected = plan.forward(x), layered.forward(x)
        assert_close(y, expected, tolerance)
        dy = batch(*y.shape, dtype=dtype, seed=3)
        assert_close(plan.backward(dy, need_input_gradient=True), layered.backward(dy), tolerance)
        largest = max(np.linalg.norm(p.grad) for p in layered.parameters().values())
        pairs = zip(planned.parameters().items(), layered.parameters().values(), strict=True)
        for (name, a), b in pairs:
            # A bias in front of a batch normalisation has no gradient but what rounding makes of it.
            scale = max(np.linalg.norm(b.grad), 0.02 * largest)
            assert np.linalg.norm(a.grad - b.grad) <= tolerance * scale, name
    for (name, a), b in zip(planned.buffers().items(), layered.buffers().values(), strict=True):
        assert_close(a, b, tolerance), name
    plan = plans.compile(planned.eval(), shape, algorithm=algorithm)
    assert_close(plan.forward(x), layered.eval().forward(x), tolerance)
    return plan


def assert_close(a, b, tolerance):
    assert a.shape == b.shape and a.dtype == b.dtype
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-12)


class Scale(layers.Layer):
    """A layer of the user's own."""

    def __init__(self, channels):
        super().__init__()
        self.weight = layers.Parameter(np.linspace(0.5, 1.5, channels).astype("float32"))

    def forward(self, x):
        return self.save_for_backward(x * self.weight.data, x)

    def backward(self, dy):
        x = self.saved(dy)
        self.weight.grad = (dy * x).sum(axis=(0, 1, 2))
        return dy * self.weight.data
