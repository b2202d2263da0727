"""Plans on a GPU, against the layers on NumPy.

Each test runs on the stand-in for CuPy, with the real kernels on the emulator (``cuda_emulator``), and,
marked ``gpu``, on a GPU.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from scratchnet import backend, losses, models, optim, plans
from scratchnet.data import Augmentation, Loader, Normalisation
from scratchnet.layers import (
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
from scratchnet.plans.cuda import conv, graphs, products
from scratchnet.plans.cuda.plan import CudaPlan
from scratchnet.plans.cuda.step import Pictures, Steps
from tests.fakes import cublas_stand_in, cupy_stand_in
from tests.plans.test_plan import Scale, assert_close, away_from_kinks, batch

real_load = products.load  # the stand-in puts its own in its place

# Largest difference of a result, as a share of its norm: float32 sums in another order; 11 and 8 significant
# bits in each product, through a few layers.
TOLERANCE = {"fp32": 2e-5, "tf32": 1e-2, "bf16": 6e-2}


def plain():
    return Sequential(
        Conv2d(3, 8),
        ReLU(),
        Conv2d(8, 8),
        ReLU(),
        MaxPool2d(2),
        Conv2d(8, 5),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(20, 12),
        ReLU(),
        Linear(12, 10),
    )


def normalised():
    return Sequential(
        Conv2d(3, 8, bias=False),
        BatchNorm2d(8),
        ReLU(),
        Conv2d(8, 6),
        BatchNorm2d(6),
        ReLU(),
        MaxPool2d(2),
        Conv2d(6, 8, kernel_size=1, padding=0),
        BatchNorm2d(8),
        GlobalAvgPool2d(),
        Linear(8, 10, bias=False),
    )


NETWORKS = {
    "plain": (plain, (3, 8, 9, 3)),
    "normalised": (normalised, (3, 7, 8, 3)),
    "convolutions of all kinds": (
        lambda: Sequential(
            Conv2d(4, 8, kernel_size=5, stride=2, padding=2),
            Conv2d(8, 4, bias=False),
            MaxPool2d(2),
            Conv2d(4, 4, kernel_size=2, padding=0),
        ),
        (2, 13, 11, 4),
    ),
    "pooling without relu": (
        lambda: Sequential(Conv2d(3, 4), MaxPool2d(2), BatchNorm2d(4), MaxPool2d(2)),
        (2, 9, 8, 3),
    ),
    "what a plan does not know": (
        lambda: Sequential(ReLU(), Conv2d(3, 4), Scale(4), MaxPool2d(3, 2), ReLU(), Flatten()),
        (2, 9, 8, 3),
    ),
    "smooth": (  # without kinks, at which a little rounding makes a large difference
        lambda: Sequential(Conv2d(3, 8), BatchNorm2d(8), Conv2d(8, 8), Flatten(), Linear(288, 10)),
        (4, 6, 6, 3),
    ),
    "only linear": (lambda: Sequential(Linear(7, 9), ReLU(), Linear(9, 4)), (5, 7)),
}


def copy_of(net, make):
    """Return a twin with the same parameters and statistics, on the host."""
    twin = make()
    for ours, theirs in zip(net.parameters().values(), twin.parameters().values(), strict=True):
        theirs.data = backend.to_numpy(ours.data)
    for ours, theirs in zip(net.buffers().values(), twin.buffers().values(), strict=True):
        theirs[...] = backend.to_numpy(ours)
    return twin


def host(device, array):
    return device.to_numpy(array)


def assert_plan_equals_layers(device, make, shape, precision="fp32", dtype="float32"):
    """Run a plan beside the layers on NumPy: output, gradients and statistics, three times; then evaluation.

    The first time launches are made, the second time they are recorded, the third time only replayed.
    """
    tolerance = TOLERANCE[precision] if dtype == "float32" else 1e-10
    x = away_from_kinks(make, shape, dtype, seed=2)
    planned, layered = make().to(device), make()
    plan = plans.compile(planned, shape, training=True, precision=precision)
    for _ in range(3):
        y, expected = plan.forward(device.asarray(x)), layered.forward(x)
        assert_close(host(device, y), expected, tolerance)
        dy = batch(*y.shape, dtype=dtype, seed=3)
        dx = plan.backward(device.asarray(dy), need_input_gradient=True)
        assert_close(host(device, dx), layered.backward(dy), 4 * tolerance)
        largest = max(np.linalg.norm(p.grad) for p in layered.parameters().values())
        pairs = zip(planned.parameters().items(), layered.parameters().values(), strict=True)
        for (name, a), b in pairs:
            # A bias in front of a batch normalisation has no gradient but what rounding makes of it.
            scale = max(np.linalg.norm(b.grad), 0.02 * largest)
            assert np.linalg.norm(host(device, a.grad) - b.grad) <= 4 * tolerance * scale, name
    for (name, a), b in zip(planned.buffers().items(), layered.buffers().values(), strict=True):
        assert_close(host(device, a), b, tolerance), name
    plan = plans.compile(planned.eval(), shape, precision=precision)
    for _ in range(3):
        y = plan.forward(device.asarray(x))
        assert_close(host(device, y), layered.eval().forward(x), 2 * tolerance)
    return plan


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_equals_the_layers(device, name):
    make, shape = NETWORKS[name]
    plan = assert_plan_equals_layers(device, make, shape)
    assert ("fallback" in plan.describe()) == (name == "what a plan does not know")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", ["smooth", "normalised"])
def test_precisions(device, name, precision):
    assert_plan_equals_layers(device, *NETWORKS[name], precision)


def test_the_three_precisions_differ_and_fp32_is_the_closest(device):
    x = batch(4, 8, 8, 3)
    expected = plain().eval().forward(x)
    far = {}
    for precision in ("fp32", "tf32", "bf16"):
        plan = plans.compile(plain().to(device).eval(), x.shape, precision=precision)
        far[precision] = np.abs(host(device, plan.forward(device.asarray(x))) - expected).max()
    assert 30 * far["fp32"] < far["tf32"] < far["bf16"] / 3


def test_vgg_is_planned_without_fallback(device):
    def make():
        return models.vgg11(10, 32, width=0.0625, classifier_width=16, batch_norm=True, dropout=0.0)

    plan = assert_plan_equals_layers(device, make, (2, 32, 32, 3))
    assert "fallback" not in plan.describe() and len(plan.describe().splitlines()) == 2 + len(plan.groups)


def test_a_float64_network_runs_layer_by_layer(device):
    def make():
        return models.vgg11(10, 32, width=0.0625, classifier_width=8, batch_norm=True, dtype="float64")

    assert_plan_equals_layers(device, make, (2, 32, 32, 3), dtype="float64")


def test_a_batch_in_several_chunks(device, monkeypatch):
    monkeypatch.setattr(
        conv, "COLUMN_BYTES", 2 * 4 * 8 * 9 * 27
    )  # two images of the first layer, one of others
    make, shape = plain, (5, 8, 9, 3)
    assert_plan_equals_layers(device, make, shape)
    monkeypatch.setattr(conv, "COLUMN_BYTES", 1 << 30)
    whole = plans.compile(make().to(device), shape, training=True)
    assert [kernel.n for kernel in whole.kernels if kernel.algorithm == "im2col"] == [5, 5, 5]
    monkeypatch.setattr(conv, "COLUMN_BYTES", 4 * 4 * 8 * 9 * 27)
    block_shape = plans.compile(make().to(device), shape, training=True)
    assert block_shape.kernels[0].n == 3, "four would fit, but three and two are more alike"


def test_ties_in_pooling_go_to_the_first(device):
    net = Sequential(Conv2d(1, 1, kernel_size=1, padding=0, bias=False), ReLU(), MaxPool2d(2)).to(device)
    net[0].weight.data = device.asarray(np.ones((1, 1, 1, 1), "float32"))
    x = np.zeros((1, 2, 6, 1), "float32")
    x[0, :, 0:2, 0] = 3.0  # four equal ones
    x[0, 1, 2:4, 0] = 2.0  # two, in the second row
    plan = plans.compile(net, x.shape, training=True)
    plan.forward(device.asarray(x))
    dx = host(device, plan.backward(device.asarray(np.ones((1, 1, 3, 1), "float32")), True))
    expected = np.zeros_like(x)
    expected[0, 0, 0, 0] = expected[0, 1, 2, 0] = 1.0  # and none where nothing is above zero
    np.testing.assert_array_equal(dx, expected)


# Dropout


def dropping(p):
    return Sequential(
        Linear(4, 40, bias=False), ReLU(), Dropout(p, rng=np.random.default_rng(5)), Linear(40, 3)
    )


def test_dropout_drops_its_share_and_draws_anew(device):
    net = dropping(0.3).to(device)
    net[0].weight.data = device.asarray(np.ones((4, 40), "float32"))
    plan = plans.compile(net, (500, 4), training=True)
    x = device.asarray(np.ones((500, 4), "float32"))
    seen = []
    for _ in range(4):
        plan.forward(x)
        y = host(device, plan.maps[1].data)
        assert set(np.unique(y)) == {np.float32(0.0), np.float32(4.0 / 0.7)}
        assert abs((y == 0).mean() - 0.3) < 0.015  # of 20,000: four standard deviations are 0.013
        seen.append(y)
    for a, b in itertools.combinations(seen, 2):
        assert abs(((a == 0) & (b == 0)).mean() - 0.09) < 0.01  # independent, so 0.3 squared


def test_the_gradient_passes_where_dropout_kept(device):
    net = dropping(0.5).to(device)
    plan = plans.compile(net, (6, 4), training=True)
    x, dy = batch(6, 4), batch(6, 3)
    for _ in range(3):
        plan.forward(device.asarray(x))
        kept = host(device, plan.maps[1].data)
        dx = host(device, plan.backward(device.asarray(dy), True))
        first, last = (host(device, net[i].weight.data) for i in (0, 3))
        np.testing.assert_allclose(dx, ((dy @ last.T) * (kept > 0) * 2.0) @ first.T, rtol=1e-4, atol=1e-5)


def test_the_same_generator_drops_the_same_numbers(device):
    x = device.asarray(batch(6, 4))
    first, second = (plans.compile(dropping(0.5).to(device), (6, 4), training=True) for _ in range(2))
    for _ in range(3):
        np.testing.assert_array_equal(host(device, first.forward(x)), host(device, second.forward(x)))


@pytest.mark.parametrize("p, share", [(0.0, 0.0), (1.0, 1.0)])
def test_dropout_of_nothing_and_of_everything(device, p, share):
    net = dropping(p).to(device)
    net[0].weight.data = device.asarray(np.ones((4, 40), "float32"))
    plan = plans.compile(net, (6, 4), training=True)
    plan.forward(device.asarray(np.ones((6, 4), "float32")))
    assert (host(device, plan.maps[1].data) == 0).mean() == share
    plan.backward(device.asarray(batch(6, 3)))
    gradient = host(device, net[0].weight.grad)
    assert np.isfinite(gradient).all() and (gradient == 0).all() == (p == 1.0)


# Batch normalisation in evaluation


def test_statistics_may_be_written_at_any_time(device):
    net = normalised().to(device).eval()
    x = batch(3, 7, 8, 3)
    plan = plans.compile(net, x.shape)
    assert not any(group.kind == "norm" for group in plan.groups), "they are folded into the convolutions"
    for k in range(5):
        for j, (name, statistics) in enumerate(net.buffers().items()):
            value = np.random.default_rng(10 * k + j).random(statistics.shape).astype("float32")
            statistics[...] = device.asarray(value + 0.5 * name.endswith("var"))
        expected = copy_of(net, normalised).eval().forward(x)
        assert_close(host(device, plan.forward(device.asarray(x))), expected, 1e-5)
    net[1].eps = 0.5  # an argument of a launch, so that the graph is recorded anew
    twin = copy_of(net, normalised).eval()
    twin[1].eps = 0.5
    for _ in range(3):
        assert_close(host(device, plan.forward(device.asarray(x))), twin.forward(x), 1e-5)


def test_statistics_that_are_exchanged_are_noticed(device):
    net = normalised().to(device).eval()
    x = batch(3, 7, 8, 3)
    plan = plans.compile(net, x.shape)
    for _ in range(3):
        plan.forward(device.asarray(x))
    net[4].running_mean = device.asarray(np.full(6, 0.3, "float32"))
    expected = copy_of(net, normalised).eval().forward(x)
    assert_close(host(device, plan.forward(device.asarray(x))), expected, 1e-5)


def test_a_normalisation_without_a_convolution_before_it(device):
    def make():
        return Sequential(BatchNorm2d(3), ReLU(), Conv2d(3, 4), ReLU(), BatchNorm2d(4))

    assert_plan_equals_layers(device, make, (3, 6, 6, 3))


def test_one_value_a_channel_is_refused(device):
    net = Sequential(Conv2d(3, 4), BatchNorm2d(4)).to(device)
    with pytest.raises(ValueError, match=r"1 \(BatchNorm2d\): one value a channel has no variance"):
        plans.compile(net, (1, 1, 1, 3), training=True)


# When a plan is stale, and what plans of one network share


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parameters_that_change_are_followed(device, precision):
    net = plain().to(device).eval()
    x = batch(3, 8, 8, 3)
    plan = plans.compile(net, x.shape, precision=precision)
    other = plans.compile(net, (1, 8, 8, 3), precision=precision)
    for written_to in (False, True):
        for _ in range(3):
            plan.forward(device.asarray(x))
        if written_to:
            net[0].weight.data[...] *= 1.5
            plan.refresh()
        else:
            net[0].weight.data = net[0].weight.data * 1.5
        other.forward(device.asarray(x[:1]))  # which derives what both of them use
        expected = copy_of(net, plain).eval().forward(x)
        assert_close(host(device, plan.forward(device.asarray(x))), expected, 2 * TOLERANCE[precision])


def test_a_plan_notices_that_it_is_stale(device):
    net = plain().to(device)
    x = device.asarray(batch(3, 8, 8, 3))
    plan = plans.compile(net, x.shape, training=True)
    plan.forward(x)
    net.eval()
    with pytest.raises(RuntimeError, match="no longer in training mode"):
        plan.forward(x)
    net.train()
    plan.forward(x)
    net.to("numpy")
    with pytest.raises(RuntimeError, match="its parameters have moved"):
        plan.forward(x)


def test_what_cannot_be_run_is_refused(device):
    net = plain().to(device)
    plan = plans.compile(net, (3, 8, 8, 3), training=True)
    with pytest.raises(ValueError, match="this plan is for a CuPy array of shape .*, not numpy.ndarray"):
        plan.forward(batch(3, 8, 8, 3))
    with pytest.raises(ValueError, match=r"this plan is for a CuPy array of shape .*, not \(2, 8, 8, 3\)"):
        plan.forward(device.asarray(batch(2, 8, 8, 3)))
    with pytest.raises(ValueError, match="expected float32, got float64"):
        plan.forward(device.asarray(batch(3, 8, 8, 3, dtype="float64")))
    with pytest.raises(ValueError, match="precision must be one of fp32, tf32, bf16, not 'fp16'"):
        plans.compile(net, (3, 8, 8, 3), training=True, precision="fp16")
    with pytest.raises(RuntimeError, match="backward without a forward"):
        plan.backward(device.asarray(batch(3, 10)))


def test_plans_of_one_network_share_their_memory_and_may_take_turns(device):
    net, twin = plain().to(device), plain()
    sizes = (3, 5, 2)  # the second one makes the workspace grow: the first one moves, and records anew
    made = [plans.compile(net, (n, 8, 8, 3), training=True) for n in sizes[:1]]
    for _ in range(3):
        made[0].forward(device.asarray(batch(3, 8, 8, 3)))
    made += [plans.compile(net, (n, 8, 8, 3), training=True) for n in sizes[1:]]
    for _ in range(3):
        for n, plan in zip(sizes, made, strict=True):
            x, dy = batch(n, 8, 8, 3, seed=n), batch(n, 10, seed=n)
            assert_close(host(device, plan.forward(device.asarray(x))), twin.forward(x), 2e-5)
            plan.backward(device.asarray(dy))
            twin.backward(dy)
            for ours, right in zip(net.parameters().values(), twin.parameters().values(), strict=True):
                assert_close(host(device, ours.grad), right.grad, 1e-4)
    assert len({id(plan.workspace.block) for plan in made}) == 1
    made[0].forward(device.asarray(batch(3, 8, 8, 3)))
    made[1].forward(device.asarray(batch(5, 8, 8, 3)))
    with pytest.raises(RuntimeError, match="another plan of this network has run since"):
        made[0].backward(device.asarray(batch(3, 10)))


def test_a_bf16_copy_of_the_parameters_goes_with_its_network(device):
    import gc
    import weakref

    net = plain().to(device)
    plan = plans.compile(net.eval(), (2, 8, 8, 3), precision="bf16")
    copy = weakref.ref(plan.operands)
    del net, plan
    gc.collect()
    assert copy() is None


def test_a_map_lives_until_whoever_reads_it_has_gone_back(stand_in):
    plan = plans.compile(plain().to("cupy"), (3, 8, 8, 3), training=True)
    G = len(plan.kernels)
    back = [2 * G - 1 - i for i in range(G)]  # the step of each group's backward pass
    for i, kernel in enumerate(plan.kernels):
        if not kernel.is_view:
            assert kernel.input.is_view or kernel.input._data.last_use >= back[i], (
                "x, for the weights' gradient"
            )
            rectified = kernel.group.relu is not None and kernel.group.pool is None
            assert not rectified or kernel.output._data.last_use >= back[i], "y, where the ReLU let through"
            assert kernel.output._grad.first_use <= back[i] <= kernel.output._grad.last_use


# Whole steps


def some_pictures(n=11, side=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8), rng.integers(0, 10, n)


def make_loader(augment="crop2-flip-cutout3", batch_size=4):
    images, labels = some_pictures()
    how = {"augmentation": Augmentation.named(augment), "normalisation": Normalisation.of(images)}
    return Loader(images, labels, batch_size, shuffle=True, **how)


OPTIMIZERS = {
    "plain": {},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 1e-2},
    "nesterov, no decay of biases": {
        "momentum": 0.9,
        "weight_decay": 1e-2,
        "nesterov": True,
        "no_decay": optim.is_bias_or_norm,
    },
}
EPOCHS, RATES = 3, np.array([0.01, 0.02, 0.005], np.float32)  # a rate for each of an epoch's three batches


def train_on_numpy(make, optimizer):
    net, loader = make(), make_loader()
    loss, sgd = losses.SoftmaxCrossEntropy(0.1), optim.SGD(net.parameters(), 1.0, **OPTIMIZERS[optimizer])
    told = []
    for epoch in range(EPOCHS):
        total, hits = 0.0, 0
        for (x, labels), rate in zip(loader.epoch(epoch), RATES, strict=True):
            logits = net.forward(x)
            total += float(loss.forward(logits, labels)) * len(labels)
            hits += int((logits.argmax(axis=1) == labels).sum())
            net.backward(loss.backward())
            sgd.lr = float(rate)
            sgd.step()
        told.append((total, hits, len(loader.images)))
    return net, sgd, told


def train_on_device(device, make, optimizer, precision="fp32", resident=True, graphs=True):
    net, loader = make().to(device), make_loader()
    sgd = optim.SGD(net.parameters(), 1.0, **OPTIMIZERS[optimizer])
    pictures = None
    if resident:
        scale, shift = loader.normalisation.affine
        how = {"crop": 2, "cutout": 3, "fill": loader.normalisation.colour, "scale": scale, "shift": shift}
        pictures = Pictures(device.asarray(loader.images), device.asarray(loader.labels), how)
    steps = Steps(net, sgd, losses.SoftmaxCrossEntropy(0.1), 4, precision, pictures, graphs)
    told = []
    for epoch in range(EPOCHS):
        steps.begin(RATES, loader.choices(epoch) if resident else None)
        for x, labels in loader.epoch(epoch):
            steps.step(len(labels), *(() if resident else (x, labels)))
        told.append(steps.totals())
    return net, sgd, told


def state(device, net):
    arrays = {name: p.data for name, p in net.parameters().items()} | net.buffers()
    return {name: host(device, array) for name, array in arrays.items()}


@pytest.mark.parametrize("make", [plain, normalised])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_equal_layers_and_sgd_on_numpy(device, make, optimizer):
    expected, sgd, right = train_on_numpy(make, optimizer)
    net, ours, told = train_on_device(device, make, optimizer)
    for (loss, hits, images), totals in zip(right, told, strict=True):
        assert totals.loss == pytest.approx(loss, rel=1e-5)
        assert totals[1:] == (hits, images)
    start, end = state(device, make()), state(device, expected)
    for name, array in state(device, net).items():
        np.testing.assert_allclose(array, end[name], rtol=1e-3, atol=5e-6, err_msg=name)
        moved = np.abs(end[name] - start[name]).max()
        before_norm = make is normalised and name in ("3.bias", "7.bias")  # which has no gradient
        assert moved > 1e-3 or before_norm, f"{name} hardly moved, so nothing is compared"
    if ours.momentum:
        velocity = host(device, ours.momentum_buffer)
        np.testing.assert_allclose(velocity, sgd.momentum_buffer, rtol=1e-3, atol=5e-5)


def assert_same_bits(device, first, second):
    (net, sgd, told), (other, sgd_there, told_there) = first, second
    assert told == told_there
    for name, array in state(device, net).items():
        np.testing.assert_array_equal(array, state(device, other)[name], err_msg=name)
    np.testing.assert_array_equal(host(device, sgd.momentum_buffer), host(device, sgd_there.momentum_buffer))


def dropout_net():
    return Sequential(
        Conv2d(3, 8), BatchNorm2d(8), ReLU(), MaxPool2d(2), Flatten(), Linear(128, 16), ReLU(), Dropout(0.4),
        Linear(16, 10),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_replayed_graph_equals_eager_launches_bit_for_bit(device, precision):
    run = [
        train_on_device(device, dropout_net, "momentum and decay", precision, graphs=graphs)
        for graphs in (True, False)
    ]
    assert_same_bits(device, *run)


def test_the_same_seed_gives_the_same_bits(device):
    run = [train_on_device(device, dropout_net, "nesterov, no decay of biases") for _ in range(2)]
    assert_same_bits(device, *run)


def test_pictures_prepared_on_the_gpu_are_those_of_the_loader(device):
    run = [
        train_on_device(device, dropout_net, "momentum and decay", resident=resident)
        for resident in (True, False)
    ]
    assert_same_bits(device, *run)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_training_in_lower_precision_stays_near(device, precision):
    _, _, right = train_on_device(device, plain, "momentum and decay")
    _, _, told = train_on_device(device, plain, "momentum and decay", precision)
    for a, b in zip(told, right, strict=True):
        assert 0 < abs(a.loss - b.loss) < {"tf32": 1e-3, "bf16": 2e-2}[precision] * b.loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_follows_training(device, precision):
    """The same parameters, derived for products by the steps themselves."""
    net, loader = normalised().to(device), make_loader()
    sgd = optim.SGD(net.parameters(), 1.0, momentum=0.9)
    steps = Steps(net, sgd, losses.SoftmaxCrossEntropy(), 4, precision)
    x = batch(5, 8, 8, 3)
    inference = None
    for epoch in range(2):
        net.train()
        steps.begin(RATES)
        for pictures, labels in loader.epoch(epoch):
            steps.step(len(labels), pictures, labels)
        net.eval()
        inference = inference or plans.compile(net, x.shape, precision=precision)
        expected = copy_of(net, normalised).eval().forward(x)
        assert_close(host(device, inference.forward(device.asarray(x))), expected, 2 * TOLERANCE[precision])


def test_a_setting_that_changes_is_recorded_anew(device):
    net, twin, loader = plain().to(device), plain(), make_loader()
    sgd, right = (optim.SGD(n.parameters(), 0.01, momentum=0.9) for n in (net, twin))
    loss, loss_there = losses.SoftmaxCrossEntropy(), losses.SoftmaxCrossEntropy()
    steps = Steps(net, sgd, loss_there, 4)
    for epoch, momentum in enumerate((0.9, 0.5, 0.5)):
        sgd.momentum = right.momentum = momentum
        loss.label_smoothing = loss_there.label_smoothing = 0.1 * epoch
        steps.begin(np.full(3, 0.01))
        for x, labels in loader.epoch(epoch):
            steps.step(len(labels), x, labels)
            loss.forward(twin.forward(x), labels)
            twin.backward(loss.backward())
            right.step()
    for ours, expected in zip(net.parameters().values(), twin.parameters().values(), strict=True):
        np.testing.assert_allclose(host(device, ours.data), expected.data, rtol=1e-3, atol=5e-6)


def test_steps_that_do_not_fit_are_refused(device):
    net, loss = plain().to(device), losses.SoftmaxCrossEntropy()
    with pytest.raises(ValueError, match="made of this network's parameters"):
        Steps(net, optim.SGD(plain().to(device).parameters(), 0.1), loss, 4)
    part = dict(list(net.parameters().items())[:2])
    with pytest.raises(ValueError, match="all of them"):
        Steps(net, optim.SGD(part, 0.1), loss, 4)
    for other in (plain(), Sequential(Linear(4, 3, dtype="float64")).to(device)):
        with pytest.raises(ValueError, match="need a network of parameters in float32, on cupy"):
            Steps(other, optim.SGD(other.parameters(), 0.1), loss, 4)


# Planted faults: each is a mistake that somebody could make in a plan, and a comparison must see it. (Those
# in kernels are in test_cuda_kernels.py.)


def sees(device, make, shape):
    try:
        assert_plan_equals_layers(device, make, shape)
    except AssertionError:
        return True
    return False


def test_fault_a_graph_that_is_not_recorded_anew(stand_in, monkeypatch):
    monkeypatch.setattr(CudaPlan, "constants", lambda self: ())
    with pytest.raises(AssertionError):
        test_statistics_may_be_written_at_any_time(backend.get("cupy"))


def test_fault_operands_that_change_places(stand_in, monkeypatch):
    monkeypatch.setattr(products, "OP_T", products.OP_N)
    assert sees(backend.get("cupy"), lambda: Sequential(Linear(4, 4)), (4, 4))


def test_fault_a_chunk_that_does_not_add_to_the_one_before(stand_in, monkeypatch):
    whole = products.Products.__call__

    def anew(self, a, b, out, accumulate=False, **turned):
        whole(self, a, b, out, **turned)

    monkeypatch.setattr(conv, "COLUMN_BYTES", 1)
    assert not sees(backend.get("cupy"), plain, (3, 8, 9, 3))
    monkeypatch.setattr(products.Products, "__call__", anew)
    assert sees(backend.get("cupy"), plain, (3, 8, 9, 3))


# What the stand-in counts


def test_an_epoch_uploads_a_few_tables_and_a_step_is_one_call(stand_in):
    device = backend.get("cupy")
    net, loader = dropout_net().to(device), make_loader()
    scale, shift = loader.normalisation.affine
    how = {"crop": 2, "cutout": 3, "fill": loader.normalisation.colour, "scale": scale, "shift": shift}
    pictures = Pictures(device.asarray(loader.images), device.asarray(loader.labels), how)
    sgd = optim.SGD(net.parameters(), 1.0, momentum=0.9)
    steps = Steps(net, sgd, losses.SoftmaxCrossEntropy(), 4, pictures=pictures)
    for epoch in range(4):
        with cupy_stand_in.counted() as beginning:
            steps.begin(RATES, loader.choices(epoch))
        with cupy_stand_in.counted() as traffic:
            for n in (4, 4, 3):
                steps.step(n)
        with cupy_stand_in.counted() as end:
            steps.totals()
        assert (beginning.uploads, beginning.reads) == (3, 0)
        assert (traffic.uploads, traffic.reads) == (0, 0)
        assert (end.uploads, end.reads) == (0, 1)
    assert (traffic.launches, traffic.replays) == (0, 3)


def test_a_forward_pass_is_one_call_and_its_input_and_output_copies(stand_in):
    device = backend.get("cupy")
    net = plain().to(device).eval()
    plan, x = plans.compile(net, (3, 8, 8, 3)), device.asarray(batch(3, 8, 8, 3))
    for _ in range(3):
        with cupy_stand_in.counted() as traffic:
            plan.forward(x)
    assert (traffic.launches, traffic.replays, traffic.reads, traffic.uploads) == (0, 1, 0, 0)


def test_an_error_while_recording_leaves_the_stream_usable(stand_in):
    def fail():
        raise KeyboardInterrupt

    calls = iter([lambda: None, fail, lambda: None, lambda: None])
    replayed = graphs.Replayed(stand_in, lambda: next(calls)(), lambda: ())
    replayed()
    with pytest.raises(KeyboardInterrupt):
        replayed()
    assert not replayed.recorded and stand_in.cuda.get_current_stream().ptr == 0
    replayed()
    assert replayed.recorded


# Products


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-6), ("tf32", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_products(device, precision, tolerance, transposed):
    from scratchnet.plans.cuda import modules

    a, b, c = batch(5, 7, seed=1), batch(7, 3, seed=2), batch(5, 3, seed=3)
    product = products.Products(device.xp, precision)
    given = []
    for matrix, turned in zip((a, b), transposed, strict=True):
        array = device.asarray(np.ascontiguousarray(matrix.T if turned else matrix))
        operands = device.xp.empty(array.shape, modules.operand_dtype(precision))
        modules.cast(array, operands)
        given.append(operands)
    turned = {"transpose_a": transposed[0], "transpose_b": transposed[1]}
    for accumulate in (False, True):
        out = device.asarray(c)
        product(*given, out, **turned, accumulate=accumulate)
        assert_close(host(device, out), a @ b + c * accumulate, tolerance)


def test_a_product_that_does_not_fit_is_refused(device):
    product = products.Products(device.xp, "fp32")
    a, b = (device.asarray(batch(*shape)) for shape in ((5, 7), (7, 3)))
    for out in ((3, 5), (5, 4)):
        with pytest.raises(ValueError, match="does not fit"):
            product(a, b, device.xp.empty(out, "float32"))
    with pytest.raises(ValueError, match="does not fit"):
        product(a, a, device.xp.empty((5, 7), "float32"))
    with pytest.raises(ValueError, match="contiguous"):
        product(a[:, ::2], device.asarray(batch(4, 3)), device.xp.empty((5, 3), "float32"))


def test_how_the_stand_in_rounds():
    x = np.array([1.0, 1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, 1.0 + 2.0**-10, -3.14159274], "float32")
    expected = [1.0, 1.0, 1.0 + 2.0**-9, 1.0 + 2.0**-10, -3.140625]
    np.testing.assert_array_equal(cublas_stand_in.tf32(x), expected)


# What can be wrong with a machine: one sentence each


def test_too_little_memory_names_the_batch_that_fits(stand_in, monkeypatch):
    net = plain().to("cupy")
    needed = plans.compile(net, (6, 8, 8, 3), training=True).arena.size
    monkeypatch.setattr(cupy_stand_in, "free_memory", int(needed / 0.94))
    with pytest.raises(backend.BackendError) as caught:
        plans.compile(net, (50, 8, 8, 3), training=True)
    assert "for 50 images a batch" in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("6 images a batch would fit")
    monkeypatch.setattr(cupy_stand_in, "free_memory", 1000)
    with pytest.raises(backend.BackendError, match="not even one image would fit"):
        plans.compile(net, (60, 8, 8, 3), training=True)
    monkeypatch.undo()
    plans.compile(net, (60, 8, 8, 3), training=True)


def test_a_gpu_that_is_too_old(stand_in, monkeypatch):
    net = plain().to("cupy")
    monkeypatch.setattr(cupy_stand_in.Device, "compute_capability", "75")
    with pytest.raises(
        backend.BackendError, match="8.0 .* or newer, and this one has 7.5: use --engine layers"
    ):
        plans.compile(net, (2, 8, 8, 3), training=True)


def test_cublas_that_is_missing(stand_in, monkeypatch):
    monkeypatch.setattr(products, "load", real_load)
    monkeypatch.setitem(sys.modules, "cupy_backends", None)
    with pytest.raises(backend.BackendError, match=r"cuBLAS for CUDA 13 .*cupy-cuda13x\[ctk\]"):
        products.load(stand_in)


def test_the_real_cublas_has_these_names_and_numbers():
    """No GPU is needed for it, only CuPy and NVIDIA's library."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        library = real_load(cupy)
    except backend.BackendError as error:
        pytest.skip(str(error))
    assert all(hasattr(library, name) for name in products.SIGNATURES)
    from cupy_backends.cuda.libs import cublas

    runtime = cupy.cuda.runtime
    numbers = {
        "OP_N": cublas.CUBLAS_OP_N,
        "OP_T": cublas.CUBLAS_OP_T,
        "R_32F": runtime.CUDA_R_32F,
        "R_16BF": runtime.CUDA_R_16BF,
        "COMPUTE_32F": cublas.CUBLAS_COMPUTE_32F,
        "COMPUTE_32F_FAST_TF32": cublas.CUBLAS_COMPUTE_32F_FAST_TF32,
        "GEMM_DEFAULT": cublas.CUBLAS_GEMM_DEFAULT,
    }
    assert {name: getattr(products, name) for name in numbers} == numbers


def test_cublas_that_fails():
    with pytest.raises(MemoryError, match="no memory is left"):
        products._check(3)
    with pytest.raises(backend.BackendError, match="cuBLAS reports error 15: it is not supported"):
        products._check(15)
