"""Layers that no group takes along, and layers without a CUDA kernel."""

import warnings

import numpy as np
import pytest

from scratchnet import plans
from scratchnet.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.plans.cuda.kernel import Kernel
from scratchnet.plans.cuda.launch.epilogue import epilogue
from tests.fakes.comparing import Scale, batch
from tests.fakes.cuda_networks import assert_plan_equals_layers
from tests.plans.leaky_relu import LeakyReLU

ALONE = {
    "a ReLU of an image": (lambda: Sequential(ReLU(), Conv2d(3, 4)), (2, 5, 4, 3)),
    "a ReLU of features": (lambda: Sequential(Linear(7, 4), ReLU(), ReLU(), Linear(4, 3)), (5, 7)),
    "pooling of images": (lambda: Sequential(MaxPool2d(2), Conv2d(3, 4)), (2, 5, 6, 3)),
    "pooling at odd sizes": (lambda: Sequential(Conv2d(3, 4), MaxPool2d(2), MaxPool2d(2)), (2, 7, 9, 3)),
    "dropout of nothing": (lambda: Sequential(Linear(7, 4), Dropout(0.0), ReLU(), Dropout(0.0)), (5, 7)),
    "nothing but dropout of nothing": (lambda: Sequential(Scale(3), Dropout(0.0)), (2, 4, 4, 3)),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.filterwarnings("ignore:no kernel is registered:UserWarning")
def test_a_layer_that_no_group_takes_along_is_planned(device, name):
    plan = assert_plan_equals_layers(device, *ALONE[name])
    assert ("fallback" in plan.describe()) == ("Scale" in plan.describe())


def test_dropout_alone_drops_the_same_places_forward_and_backward(device):
    net = Sequential(Linear(8, 8, bias=False), Dropout(0.4, rng=np.random.default_rng(1))).to(device)
    plan = plans.compile(net, (500, 8), training=True)
    seen = []
    for _ in range(3):
        y = device.to_numpy(plan.forward(device.asarray(batch(500, 8))))
        dx = device.to_numpy(plan.backward(device.asarray(np.ones((500, 8), "float32")), True))
        kept = y != 0
        weight = device.to_numpy(net[0].weight.data)
        np.testing.assert_allclose(dx, (kept / np.float32(0.6)) @ weight.T, rtol=1e-4, atol=1e-5)
        assert abs(kept.mean() - 0.6) < 0.03  # of 4000: four standard deviations
        seen.append(kept)
    assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()


def test_the_parts_that_cuda_does_not_know_are_named(device):
    net = Sequential(Conv2d(3, 4), MaxPool2d(3, 2), Scale(4)).to(device)
    with pytest.warns(UserWarning, match=r"1 \(MaxPool2d\).* 2 \(Scale\)"):
        plans.compile(net, (2, 9, 8, 3), training=True)


def test_a_network_in_float64_is_named_as_such_and_not_layer_by_layer(device):
    net = Sequential(Conv2d(3, 4, dtype="float64"), ReLU()).to(device)
    with pytest.warns(UserWarning, match="compute in float32.* float64") as caught:
        plans.compile(net, (2, 9, 8, 3), training=True)
    assert len(caught) == 1


class LikeReLU(Layer):
    """Somebody else's activation."""

    def forward(self, x):
        return self.save_for_backward(x * (x > 0), x)

    def backward(self, dy):
        return dy * (self.saved(dy) > 0)


class OnCuda(Kernel):
    algorithm = "like relu"

    def forward(self):
        epilogue(self.input.data, self.output.data)

    def backward(self, need_input_gradient):
        self.context.xp.multiply(self.output.grad, self.input.data > 0, out=self.input.grad)


plans.register(LikeReLU, cuda=OnCuda)


def test_an_activation_that_only_a_cpu_knows_is_not_taken_along_and_runs_by_its_own_passes(device):
    def make():
        return Sequential(Conv2d(3, 4), LeakyReLU(), MaxPool2d(2), Flatten(), Linear(48, 5))

    with pytest.warns(UserWarning, match=r"1 \(LeakyReLU\) with 0.0%"):
        plan = assert_plan_equals_layers(device, make, (2, 8, 6, 3))
    assert [group.title for group in plan.groups][:3] == ["Conv2d", "LeakyReLU", "MaxPool2d"]


def test_a_cuda_kernel_from_outside_is_used(device):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = Sequential(Conv2d(3, 4), LikeReLU()).to(device)
        plan = plans.compile(net, (2, 8, 6, 3), training=True)
    plan.graphs = False
    assert [kernel.algorithm for kernel in plan.kernels] == ["im2col", "like relu"]
    twin = Sequential(Conv2d(3, 4), LikeReLU())
    x, dy = batch(2, 8, 6, 3), batch(2, 8, 6, 4, seed=3)
    y = device.to_numpy(plan.forward(device.asarray(x)))
    np.testing.assert_allclose(y, twin.forward(x), rtol=1e-5, atol=1e-5)
    dx = device.to_numpy(plan.backward(device.asarray(dy), True))
    np.testing.assert_allclose(dx, twin.backward(dy), rtol=1e-4, atol=1e-4)
