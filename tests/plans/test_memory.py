"""How much memory a plan would take: what a compiled one takes, and none of it is taken."""

import tracemalloc

import numpy as np
import pytest

from scratchnet import plans
from scratchnet.layers import Conv2d, Flatten, Linear, ReLU, Sequential
from scratchnet.models import vgg11, vgg16
from scratchnet.plans import memory as sizes
from scratchnet.plans.compile import plan_class
from scratchnet.plans.memory import Arena


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_sizes_are_those_of_a_compiled_plan(batch_norm, training):
    net = vgg16(10, 32, batch_norm=batch_norm, width=0.125, classifier_width=32).train(training)
    plan = plans.compile(net, (6, 32, 32, 3), training=training)
    assert sum(sizes(net, (6, 32, 32, 3), training)) == plan.arena.size == plan.workspace.block.size


def test_activations_are_the_maps_between_the_groups():
    net = Sequential(Conv2d(3, 8, kernel_size=1, padding=0), ReLU(), Flatten(), Linear(8 * 64, 16))
    maps = 64 * (8 * 8 * 3 + 8 * 8 * 8 + 16) * 4
    assert sizes(net, (64, 8, 8, 3), training=True).activations == maps


def test_nothing_is_allocated():
    net = vgg11(10, 32, width=0.25, classifier_width=64)
    net.parameters()["features.0.weight"].data  # noqa: B018  (the first values are made when first asked for)
    sizes(net, (2, 32, 32, 3), training=True)  # what is measured or imported once a process
    tracemalloc.start()
    found = sum(sizes(net, (64, 32, 32, 3), training=True))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found > 20e6 and peak < found / 4


def test_a_plan_that_exists_is_left_alone():
    net = vgg11(10, 32, width=0.125, classifier_width=16, dropout=0.0)
    plan = plans.compile(net, (2, 32, 32, 3), training=True)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32")
    y = plan.forward(x)
    sizes(net, (50, 32, 32, 3), training=True)
    plan.backward(y)
    assert (plan.forward(x) == y).all()


def test_what_compile_refuses_is_refused():
    with pytest.raises(ValueError, match="mode"):
        sizes(vgg11(10, 32, width=0.125, classifier_width=16), (2, 32, 32, 3), training=False)


def test_buffers_that_live_together_never_overlap():
    rng = np.random.default_rng(0)
    arena = Arena()
    for k in range(60):
        first_use = int(rng.integers(0, 20))
        arena.reserve(
            str(k), (int(rng.integers(1, 5000)),), "float32", first_use, first_use + int(rng.integers(0, 6))
        )
    arena.assign_offsets()
    for a in arena.buffers:
        for b in arena.buffers:
            if a is not b and a.interferes(b):
                assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    assert arena.size < 0.6 * sum(b.nbytes for b in arena.buffers)


def test_a_larger_batch_has_no_more_buffers_to_place():
    net = vgg11(num_classes=10, image_size=64, width=0.25, classifier_width=64)
    few, many = (plan_class(net)(net, (N, 64, 64, 3), True, "fp32", "auto").arena for N in (64, 1024))
    assert len(few.buffers) == len(many.buffers) and few.size < many.size
