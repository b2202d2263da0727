"""Plans as their users see them: the same as the layers, and usable after whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from scratchnet import layers, losses, models, optim, plans, workers
from scratchnet.layers import Conv2d, Dropout, Flatten, Linear, ReLU, Sequential


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


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19", "article"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_architecture_is_planned_without_fallback(name, batch_norm):
    plan = assert_plan_equals_layers(lambda: small_vgg(name, batch_norm=batch_norm), (5, 32, 32, 3))
    assert "fallback" not in plan.describe()


@pytest.mark.parametrize("images, size, width", [(1, 32, 0.016), (3, 44, 0.25), (2, 50, 0.1), (1, 224, 0.05)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_any_size_width_and_batch(images, size, width, batch_norm):
    def make():
        return small_vgg(image_size=size, width=width, batch_norm=batch_norm, head="gap")

    if batch_norm and size < 44:
        images = 3  # one value a channel has no variance
    plan = assert_plan_equals_layers(make, (images, size, size, 3), tolerance=2e-4)
    assert "fallback" not in plan.describe()


def test_the_plainest_algorithm_on_request():
    plan = assert_plan_equals_layers(small_vgg, (4, 32, 32, 3), algorithm="im2col", tolerance=5e-6)
    assert "winograd" not in plan.describe()


def test_a_float64_network():
    make = lambda: small_vgg(batch_norm=True, dtype="float64")  # noqa: E731
    assert_plan_equals_layers(make, (4, 32, 32, 3), dtype="float64", tolerance=1e-10)


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


class Twice(layers.Layer):
    """A composite of the user's own, whose list of layers is no chain."""

    def __init__(self):
        super().__init__()
        self.layers = [Conv2d(8, 8), Conv2d(8, 8)]

    def forward(self, x):
        return self.save_for_backward(self.layers[0].forward(x) + self.layers[1].forward(x), None)

    def backward(self, dy):
        self.saved(dy)
        return self.layers[0].backward(dy) + self.layers[1].backward(dy)


def test_layers_of_the_users_own_run_by_their_own_passes():
    def make():
        return Sequential(
            Scale(3), Conv2d(3, 8), ReLU(), Scale(8), Conv2d(8, 8), Twice(), ReLU(),
            layers.MaxPool2d(3, 2), Dropout(0.3), Flatten(), Dropout(0.0), Linear(8 * 4 * 4, 5),
        )  # fmt: skip

    plan = assert_plan_equals_layers(make, (3, 10, 10, 3))
    described = [line for line in plan.describe().splitlines() if "fallback" in line]
    assert [line.split()[1] for line in described] == ["Scale", "Scale", "Twice", "ReLU", "MaxPool2d"]


def test_layers_and_plan_can_be_used_in_turn():
    net, twin = (small_vgg(seed=1) for _ in range(2))
    x, labels = batch(6, 32, 32, 3), np.arange(6)
    plan = plans.compile(net, x.shape, training=True)
    short = plans.compile(net, (2, 32, 32, 3), training=True)  # the last batch of an epoch
    values = []
    for network, engines in ((net, (plan, net, short, plan)), (twin, (twin,) * 4)):
        loss, sgd = losses.SoftmaxCrossEntropy(), optim.SGD(network.parameters(), 0.01, momentum=0.9)
        values.append([])
        for step, engine in enumerate(engines):
            n = 2 if step == 2 else 6
            values[-1].append(float(loss.forward(engine.forward(x[:n]), labels[:n])))
            engine.backward(loss.backward(), need_input_gradient=False)
            sgd.step()
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)


def test_gradients_stay_within_ten_times_the_rounding_of_the_layers():
    x, labels = batch(4, 32, 32, 3), np.arange(4)
    gradients = []
    for dtype, planned in (("float32", True), ("float32", False), ("float64", False)):
        net = small_vgg("vgg16", width=0.5, dropout=0.0)
        if dtype == "float64":
            net.parameters()["features.0.weight"].buffer.cast("float64")
            for _, layer in net.walk():
                layer.dtype = np.dtype("float64")
        engine = plans.compile(net, x.shape, training=True) if planned else net
        loss = losses.SoftmaxCrossEntropy()
        loss.forward(engine.forward(x.astype(dtype)), labels)
        engine.backward(loss.backward(), need_input_gradient=False)
        gradients.append(net.parameters()["features.0.weight"].buffer.grad.astype(float))
    plan, layer, exact = gradients
    # Winograd rounds four to six times as much as one sum does, where no ReLU or pooling decides otherwise.
    assert np.linalg.norm(plan - exact) < 10 * np.linalg.norm(layer - exact) < 1e-4 * np.linalg.norm(exact)


def test_results_are_the_callers_and_inputs_are_left_alone():
    net = small_vgg(dropout=0.0)
    plan = plans.compile(net, (2, 32, 32, 3), training=True)
    x, dy = batch(2, 32, 32, 3), batch(2, 10)
    kept = x.copy(), dy.copy()
    y = plan.forward(x)
    before = y.copy()
    dx = plan.backward(dy, need_input_gradient=True)
    kept_dx = dx.copy()
    plan.forward(x + 1)
    plan.backward(dy)
    np.testing.assert_array_equal(y, before)
    np.testing.assert_array_equal(dx, kept_dx)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(dy, kept[1])


def test_same_bits_every_time():
    results = []
    for _ in range(2):
        net = small_vgg(batch_norm=True)
        plan = plans.compile(net, (9, 32, 32, 3), training=True)
        y = plan.forward(batch(9, 32, 32, 3))
        plan.backward(y)
        results.append((y, net.parameters()["features.0.weight"].buffer.grad.copy()))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", ["1", "3", "5"])
def test_any_number_of_workers(monkeypatch, threads):
    monkeypatch.setenv("SCRATCHNET_THREADS", threads)
    assert_plan_equals_layers(lambda: small_vgg(batch_norm=True), (4, 32, 32, 3))
    assert_plan_equals_layers(lambda: small_vgg(width=0.5), (1, 32, 32, 3))


@pytest.mark.parametrize("architecture", ["Haswell"])
def test_a_machine_without_kernels_for_small_matrices(architecture):
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.plans.test_plan import *\n"
        "assert_plan_equals_layers(lambda: small_vgg(width=0.5), (4, 32, 32, 3))\n"
    )
    environment = {**os.environ, "OPENBLAS_CORETYPE": architecture}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=root, timeout=120)


# Staleness


def test_a_stale_plan_says_why():
    net = small_vgg()
    x = batch(2, 32, 32, 3)

    def fresh():
        return plans.compile(net.train(), x.shape, training=True)

    plan = fresh()
    net.eval()
    with pytest.raises(RuntimeError, match="no longer in training mode"):
        plan.forward(x)
    plan = fresh()
    last = net.classifier.layers.pop()
    with pytest.raises(RuntimeError, match="layers have changed"):
        plan.forward(x)
    net.classifier.layers.append(last)
    plan = fresh()
    net.classifier[2].p = 0.1
    with pytest.raises(RuntimeError, match=r"classifier.2 \(Dropout\) has other settings"):
        plan.forward(x)
    plan = fresh()
    buffer = next(iter(net.parameters().values())).buffer
    buffer.data = buffer.data.copy()  # what to() does
    with pytest.raises(RuntimeError, match="moved"):
        plan.forward(x)
    fresh().forward(x)


def test_the_mode_must_be_the_networks():
    net = small_vgg()
    with pytest.raises(ValueError, match="not in evaluation mode"):
        plans.compile(net, (2, 32, 32, 3))
    with pytest.raises(ValueError, match="not in training mode"):
        plans.compile(net.eval(), (2, 32, 32, 3), training=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_shape": (2, 32, 32, 4)}, "features.0"),
        ({"input_shape": (2, 16, 16, 3)}, "features"),
        ({"input_shape": (2, 64, 64, 3)}, "classifier.0"),
        ({"precision": "fp16"}, "precision"),
        ({"algorithm": "fft"}, "algorithm"),
    ],
)
def test_what_cannot_be_compiled(arguments, message):
    with pytest.raises(ValueError, match=message):
        plans.compile(small_vgg(), **{"input_shape": (2, 32, 32, 3), "training": True} | arguments)


def test_what_cannot_be_run():
    net = small_vgg()
    plan = plans.compile(net, (2, 32, 32, 3), training=True)
    other = plans.compile(net, (1, 32, 32, 3), training=True)
    with pytest.raises(RuntimeError, match="forward"):
        plan.backward(batch(2, 10))
    with pytest.raises(ValueError, match="shape"):
        plan.forward(batch(3, 32, 32, 3))
    with pytest.raises(ValueError, match="float32"):
        plan.forward(batch(2, 32, 32, 3, dtype="float64"))
    plan.forward(batch(2, 32, 32, 3))
    other.forward(batch(1, 32, 32, 3))
    with pytest.raises(RuntimeError, match="another plan"):
        plan.backward(batch(2, 10))
    plan.forward(batch(2, 32, 32, 3))
    plan.backward(batch(2, 10))
    with pytest.raises(RuntimeError, match="once for each backward"):
        plan.backward(batch(2, 10))


@pytest.mark.parametrize("width", [0.25, 1.0])  # by rows of tiles, by phases
def test_an_inference_plan_notices_new_weights(width):
    net = small_vgg("vgg11", width=width).eval()
    x = batch(2, 32, 32, 3)
    plan = plans.compile(net, x.shape)
    before = plan.forward(x)
    for parameter in net.parameters().values():
        parameter.data = parameter.data * np.float32(1.1)
    assert_close(plan.forward(x), net.forward(x), 1e-5)
    for parameter in net.parameters().values():
        parameter.data[...] *= np.float32(1.1)
    plan.refresh()
    after = plan.forward(x)
    assert_close(after, net.forward(x), 1e-5)
    assert np.abs(after - before).max() > 0.1 * np.abs(before).max()


def test_gradients_are_none_before_the_first_backward():
    net = small_vgg()
    plan = plans.compile(net, (2, 32, 32, 3), training=True)
    plan.forward(batch(2, 32, 32, 3))
    assert all(p.grad is None for p in net.parameters().values())
    plan.backward(batch(2, 10))
    assert all(p.grad is not None for p in net.parameters().values())


# Everything stays usable


def blas_threads():
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_exception_in_the_middle_leaves_everything_usable(failure):
    class Fails(layers.Layer):
        fail = False

        def forward(self, x):
            if self.fail:
                raise failure
            return self.save_for_backward(x, None)

        def backward(self, dy):
            return dy

    net = Sequential(Conv2d(3, 8), ReLU(), Fails(), Conv2d(8, 8))
    plan = plans.compile(net, (4, 8, 8, 3), training=True)
    x, threads = batch(4, 8, 8, 3), blas_threads()
    expected = plan.forward(x)
    net[2].fail = True
    with pytest.raises(type(failure)):
        plan.forward(x)
    assert blas_threads() == threads
    with pytest.raises(RuntimeError, match="without a forward"):
        plan.backward(expected)
    net[2].fail = False
    np.testing.assert_array_equal(plan.forward(x), expected)
    assert blas_threads() == threads


def test_blas_is_limited_only_while_plans_run():
    seen = []

    class Looks(layers.Layer):
        def forward(self, x):
            seen.append(blas_threads())
            return self.save_for_backward(x, None)

    net = Sequential(Conv2d(3, 4), Looks()).eval()
    before = blas_threads()
    plans.compile(net, (1, 8, 8, 3)).forward(batch(1, 8, 8, 3))
    assert set(seen[0]) == {1} and blas_threads() == before


def test_plans_of_two_networks_may_run_at_the_same_time():
    nets = [small_vgg(seed=seed, dropout=0.0) for seed in range(2)]
    compiled = [plans.compile(net, (4, 32, 32, 3), training=True) for net in nets]
    x = batch(4, 32, 32, 3)
    expected = [plan.forward(x) for plan in compiled]
    got = [[], []]

    def work(k):
        for _ in range(5):
            got[k].append(compiled[k].forward(x))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all((y == expected[k]).all() for k in range(2) for y in got[k]) and len(got[0]) == 5


@pytest.mark.parametrize("images", [4, 5])
def test_plans_of_one_network_take_turns(images):
    """The same plan twice, or two plans, on two threads: they share their memory."""
    net = small_vgg().eval()
    x, y = batch(4, 32, 32, 3), batch(images, 32, 32, 3)[::-1].copy()
    one = plans.compile(net, x.shape)
    calls = [(one, x), (one if images == 4 else plans.compile(net, y.shape), y)]
    expected = [plan.forward(pictures) for plan, pictures in calls]
    got = [[], []]

    def work(k):
        for _ in range(40):
            got[k].append(calls[k][0].forward(calls[k][1]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all((y == expected[k]).all() for k in range(2) for y in got[k])


def test_a_layer_that_is_not_known_may_keep_what_it_gets():
    class Keeps(layers.Layer):
        def forward(self, x):
            self.seen = x
            return self.save_for_backward(2 * x, None)

    net = Sequential(Conv2d(3, 8), ReLU(), Keeps(), Conv2d(8, 8), ReLU(), Conv2d(8, 8), ReLU()).eval()
    x = batch(2, 8, 8, 3)
    net.forward(x)
    expected = net[2].seen.copy()
    plans.compile(net, x.shape).forward(x)
    np.testing.assert_allclose(net[2].seen, expected, rtol=1e-3, atol=1e-5)


def test_a_wrapped_pass_of_one_layer_is_called():
    net = Sequential(Conv2d(3, 8), ReLU(), Conv2d(8, 8), ReLU()).eval()
    x, calls = batch(2, 8, 8, 3), []

    def wrap(layer):
        forward = layer.forward

        def wrapped(x):
            calls.append(layer)
            return forward(x)

        layer.forward = wrapped

    expected = net.forward(x)
    plan = plans.compile(net, x.shape)
    wrap(net[1])
    with pytest.raises(RuntimeError, match=r"stale.*1 \(ReLU\) has other settings"):
        plan.forward(x)
    np.testing.assert_allclose(plans.compile(net, x.shape).forward(x), expected, rtol=1e-3, atol=1e-5)
    assert calls == [net[1]]
    wrap(net)
    with pytest.raises(RuntimeError, match="stale.*its layers have changed"):
        plan.forward(x)
    np.testing.assert_allclose(plans.compile(net, x.shape).forward(x), expected, rtol=1e-3, atol=1e-5)
    assert calls == [net[1], net, net[1]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: setattr(net[0], "stride", 2), r"0 \(Conv2d\) has other settings"),
        (lambda net: setattr(net[0], "padding", 0), r"0 \(Conv2d\) has other settings"),
        (lambda net: setattr(net[1], "kernel_size", 3), r"1 \(MaxPool2d\) has other settings"),
        (lambda net: setattr(net[4], "p", 0.1), r"4 \(Dropout\) has other settings"),
        (lambda net: setattr(net[0], "bias", None), "its parameters have moved"),
    ],
)
def test_a_plan_notices_another_setting_of_a_layer(change, reason):
    net = Sequential(Conv2d(3, 8), layers.MaxPool2d(2), layers.Flatten(), ReLU(), layers.Dropout(0.5))
    plan = plans.compile(net, (2, 8, 8, 3), training=True)
    change(net)
    with pytest.raises(RuntimeError, match=f"stale.*{reason}"):
        plan.forward(batch(2, 8, 8, 3))


@pytest.mark.parametrize("image", [0, 3])  # on the caller's thread, and on a helper's
def test_errstate_holds_on_all_threads(image):
    net = Sequential(Conv2d(3, 4)).eval()
    plan, x = plans.compile(net, (4, 8, 8, 3)), batch(4, 8, 8, 3)
    x[image] = 3e38
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        plan.forward(x)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.forward(x)


def test_a_busy_pool_delays_nobody():
    release = threading.Event()
    busy = [workers.submit(release.wait, 20) for _ in range(workers.size())]
    try:
        plan = plans.compile(small_vgg(dropout=0.0), (4, 32, 32, 3), training=True)
        plan.backward(plan.forward(batch(4, 32, 32, 3)))  # would wait for the pool forever
    finally:
        release.set()
    assert all(future.result() for future in busy)
    assert workers.submit(lambda: plan.forward(batch(4, 32, 32, 3)).shape).result(20) == (4, 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_plan_runs_in_a_forked_process():
    plan = plans.compile(small_vgg(dropout=0.0), (4, 32, 32, 3), training=True)
    x = batch(4, 32, 32, 3)
    expected = plan.forward(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if (plan.forward(x) == expected).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_plans_of_one_network_share_their_memory():
    net = small_vgg(width=0.5)
    large = plans.compile(net, (16, 32, 32, 3), training=True)
    small = plans.compile(net, (4, 32, 32, 3), training=True)
    assert small.workspace.block is large.workspace.block
    x, y = batch(16, 32, 32, 3), batch(4, 32, 32, 3)
    first = [plan.forward(z) for plan, z in ((small, y), (large, x), (small, y))]
    largest = plans.compile(net, (32, 32, 32, 3), training=True)  # takes a new block; the others move to it
    largest.forward(batch(32, 32, 32, 3))
    small.forward(y)
    assert small._block is largest._block and len(first) == 3


def test_describe_has_a_line_for_each_group_and_their_share_of_the_time():
    plan = plans.compile(small_vgg(dropout=0.0), (4, 32, 32, 3), training=True)
    plan.backward(plan.forward(batch(4, 32, 32, 3)))
    lines = plan.describe().splitlines()
    assert len(lines) == 2 + len(plan.groups)
    assert "features.0-2" in lines[2] and "winograd" in lines[3] and lines[3].endswith("%")


def test_describe_lists_every_buffer_with_its_bytes_on_request():
    plan = plans.compile(small_vgg(), (2, 32, 32, 3), training=True)
    told = [line for line in plan.describe(buffers=True).splitlines() if " bytes at " in line]
    last = plan.maps[-1]  # the output is no group's input
    expected = [b for b in plan.arena.buffers if b not in (last._data, last._grad)]
    assert len(told) == len(expected)
    assert sum(int(line.split(" bytes")[0].split()[-1].replace(",", "")) for line in told) == sum(
        buffer.nbytes for buffer in expected
    )


# Planted faults: each of these is a mistake that somebody could make, and the comparison must see it.


def sees(make, shape):
    try:
        assert_plan_equals_layers(make, shape)
    except AssertionError:
        return True
    return False


def network_for_faults():
    return Sequential(Conv2d(3, 8), ReLU(), Conv2d(8, 8), ReLU(), layers.MaxPool2d(2), Conv2d(8, 8), ReLU())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # it computes with whatever is in memory
def test_fault_a_wrong_border(monkeypatch):
    from scratchnet.plans.cpu.layouts import Tiles

    monkeypatch.setattr(Tiles, "clear", lambda self, do, c: None)
    assert sees(network_for_faults, (3, 10, 10, 3))


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_fault_something_beyond_the_picture(monkeypatch, images):
    from scratchnet.plans.cpu.layouts import Tiles

    assert not sees(network_for_faults, (images, 10, 10, 3))
    monkeypatch.setattr(Tiles, "clear_beyond", lambda self, do, rows, first=0: None)
    assert sees(network_for_faults, (images, 10, 10, 3))


def test_fault_a_stale_transformed_weight(monkeypatch):
    monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", "1000")
    net = network_for_faults().eval()
    x = batch(3, 10, 10, 3)
    plan = plans.compile(net, x.shape)
    plan.forward(x)
    version = net[0].weight.buffer.version
    net[2].weight.data = net[2].weight.data * np.float32(2)
    net[0].weight.buffer.version = version  # as if the change had not been counted
    stale = plan.forward(x)
    assert np.abs(stale - net.forward(x)).max() > 1e-3
    plan.refresh()
    assert_close(plan.forward(x), net.forward(x), 1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # it computes with whatever is in memory
def test_fault_a_buffer_freed_too_early(monkeypatch):
    from scratchnet.plans.memory import Arena

    reserve = Arena.reserve

    def early(self, name, shape, dtype, first_use, last_use):
        return reserve(self, name, shape, dtype, first_use, min(last_use, first_use + 1))

    monkeypatch.setattr(Arena, "reserve", early)
    assert sees(network_for_faults, (8, 16, 16, 3))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # it computes with whatever is in memory
def test_fault_a_missing_barrier(monkeypatch):
    from scratchnet.plans.cpu import plan

    def all_at_once(phases, clock, direction):
        for _, phase in sorted(phases, key=lambda p: p[1].name == "input"):  # the product does not wait
            for worker in phase.workers:
                worker.run()

    monkeypatch.setattr(plan, "run", all_at_once)
    assert sees(lambda: Sequential(Conv2d(256, 256), ReLU()), (2, 4, 4, 256))


def test_fault_a_tie_routed_twice(monkeypatch):
    from scratchnet.plans.cpu.epilogue import Epilogue

    def twice(self, do, worker, block, g, dy):
        rows, columns = 2 * g.shape[1], 2 * g.shape[2]
        for i in range(2):
            for j in range(2):
                do.copy(g, out=dy[:, i:rows:2, j:columns:2])

    monkeypatch.setattr(Epilogue, "_unpool", twice)
    assert sees(network_for_faults, (3, 8, 8, 3))


# Inference


@pytest.mark.parametrize("image_size", [32, 50])
@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_normalisation_is_folded_into_convolutions(image_size, algorithm):
    net = small_vgg(batch_norm=True, image_size=image_size, head="gap")
    rng = np.random.default_rng(0)
    for name, statistics in net.buffers().items():  # as different as training makes them
        statistics[...] = rng.random(statistics.shape) + 0.5 * name.endswith("var")
    for parameter in net.parameters().values():
        parameter.data = parameter.data + 0.1 * rng.standard_normal(parameter.shape).astype("float32")
    net.eval()
    x = batch(3, image_size, image_size, 3)
    plan = plans.compile(net, x.shape, algorithm=algorithm)
    assert not any(group.kind == "norm" for group in plan.groups)
    assert_close(plan.forward(x), net.forward(x), 2e-5)


def test_a_normalisation_without_a_convolution_before_it():
    net = Sequential(layers.BatchNorm2d(3), ReLU(), Conv2d(3, 4), ReLU(), layers.BatchNorm2d(4)).eval()
    net[4].running_mean[...] = 0.5
    x = batch(2, 8, 8, 3)
    assert_close(plans.compile(net, x.shape).forward(x), net.forward(x), 1e-5)


def test_folded_statistics_follow_training():
    net = small_vgg(batch_norm=True, dropout=0.0)
    x = batch(4, 32, 32, 3)
    training = plans.compile(net, x.shape, training=True)
    inference = plans.compile(net.eval(), x.shape)
    before = inference.forward(x)
    for forward in (training.forward, net.forward):  # statistics move, though no parameter does
        net.train()
        forward(x)
        net.eval()
        after = inference.forward(x)
        assert not np.allclose(before, after)
        assert_close(after, net.forward(x), 2e-5)
        before = after


def test_statistics_that_are_written_in_place_are_noticed():
    net = small_vgg(batch_norm=True).eval()
    x = batch(2, 32, 32, 3)
    plan = plans.compile(net, x.shape)
    plan.forward(x)
    for change in (lambda a: a + 0.3, lambda a: a * 2):
        for statistics in net.buffers().values():
            statistics[...] = change(statistics)
        assert_close(plan.forward(x), net.forward(x), 2e-5)
    next(layer for layer in net.layers if isinstance(layer, layers.BatchNorm2d)).eps = 0.1
    assert_close(plan.forward(x), net.forward(x), 2e-5)


def test_an_interruption_while_a_plan_moves_leaves_it_usable(monkeypatch):
    net = small_vgg().eval()
    x = batch(2, 32, 32, 3)
    plan = plans.compile(net, x.shape)
    expected = plan.forward(x)
    plans.compile(net, (9, 32, 32, 3))  # the workspace grows, so the next forward moves
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(plan.kernels[2], "record_forward", interrupt)
        plan.forward(x)
    assert (plan.forward(x) == expected).all()


def interrupt():
    raise KeyboardInterrupt


def test_how_much_memory_transformed_weights_take(monkeypatch):
    net = small_vgg(width=0.5, classifier_width=64).eval()
    x = batch(3, 32, 32, 3)
    size = 4 * sum(p.size for p in net.parameters().values())
    kept, outputs = {}, []
    for megabytes in ("", "0", "1", "1000"):
        monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", megabytes)
        plan = plans.compile(net, x.shape)
        outputs += [plan.forward(x), plan.forward(x)]  # twice: the workspace has been used in between
        kept[megabytes] = sum(kernel.weight_bytes for kernel in plan.kernels if kernel.keeps_weights)
    assert all((y == outputs[0]).all() for y in outputs)
    assert 0 == kept["0"] < kept["1"] <= 1_000_000 and 0 < kept[""] <= size / 4 < kept["1000"]


@pytest.mark.parametrize("megabytes", ["-1", "much", "1.5"])
def test_a_budget_that_makes_no_sense(monkeypatch, megabytes):
    monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", megabytes)
    with pytest.raises(ValueError, match="whole number of megabytes"):
        plans.compile(small_vgg().eval(), (1, 32, 32, 3))


@pytest.mark.parametrize("megabytes", ["0", "1000"])
def test_transformed_weights_follow_the_parameters(monkeypatch, megabytes):
    monkeypatch.setenv("SCRATCHNET_PLAN_MEMORY", megabytes)
    net = small_vgg().eval()
    x = batch(2, 32, 32, 3)
    plan = plans.compile(net, x.shape)
    for _ in range(2):
        assert_close(plan.forward(x), net.forward(x), 2e-5)
        for parameter in net.parameters().values():
            parameter.data = parameter.data * np.float32(1.1)


def test_a_cpu_has_one_precision():
    with pytest.raises(ValueError, match="precision must be fp32 on a CPU, not 'bf16'"):
        plans.compile(Linear(4, 2), (8, 4), precision="bf16")
