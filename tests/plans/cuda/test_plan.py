"""Plans on a GPU, against the layers on NumPy.

Each test runs on the stand-in for CuPy, with the real kernels on the emulator (``cuda_emulator``), and,
marked ``gpu``, on a GPU.
"""

import gc
import itertools
import weakref
from copy import deepcopy

import numpy as np
import pytest

from scratchnet import backend, models, plans
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.plans.cuda import conv, matmul
from scratchnet.plans.cuda.plan import CudaPlan
from tests.fakes import cuda_runtime, cupy_stand_in
from tests.fakes.comparing import Scale, assert_close, batch
from tests.fakes.cuda_networks import (
    TOLERANCE,
    assert_plan_equals_layers,
    assert_same_gradients,
    copy_of,
    normalised,
    plain,
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


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:no kernel is registered:UserWarning")
def test_a_plan_equals_the_layers(device, name):
    make, shape = NETWORKS[name]
    plan = assert_plan_equals_layers(device, make, shape)
    assert ("fallback" in plan.describe()) == (name == "what a plan does not know")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", ["smooth", "normalised"])
def test_precisions(device, name, precision):
    assert_plan_equals_layers(device, *NETWORKS[name], precision)


def test_the_three_precisions_differ_and_fp32_is_the_closest(stand_in):
    """Not on a GPU, which may compute products of these sizes better than it was asked to."""
    device, x = backend.get("cupy"), batch(4, 8, 8, 3)
    expected = plain().eval().forward(x)
    far = {}
    for precision in ("fp32", "tf32", "bf16"):
        plan = plans.compile(plain().to(device).eval(), x.shape, precision=precision)
        far[precision] = np.abs(device.to_numpy(plan.forward(device.asarray(x))) - expected).max()
    assert 30 * far["fp32"] < far["tf32"] < far["bf16"] / 3


def test_vgg_is_planned_without_fallback(device):
    def make():
        return models.vgg11(10, 32, width=0.0625, classifier_width=16, batch_norm=True, dropout=0.0)

    plan = assert_plan_equals_layers(device, make, (2, 32, 32, 3))
    assert "fallback" not in plan.describe() and len(plan.describe().splitlines()) == 3 + len(plan.groups)


@pytest.mark.filterwarnings("ignore:kernels on a GPU compute in float32:UserWarning")
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
    dx = device.to_numpy(plan.backward(device.asarray(np.ones((1, 1, 3, 1), "float32")), True))
    expected = np.zeros_like(x)
    expected[0, 0, 0, 0] = expected[0, 1, 2, 0] = 1.0  # and none where nothing is above zero
    np.testing.assert_array_equal(dx, expected)


# Dropout


def dropping(p):
    return Sequential(
        Linear(4, 40, bias=False), ReLU(), Dropout(p, rng=np.random.default_rng(5)), Linear(40, 3)
    )


def test_dropout_drops_its_share_and_draws_again(device):
    net = dropping(0.3).to(device)
    net[0].weight.data = device.asarray(np.ones((4, 40), "float32"))
    plan = plans.compile(net, (500, 4), training=True)
    x = device.asarray(np.ones((500, 4), "float32"))
    seen = []
    for _ in range(4):
        plan.forward(x)
        y = device.to_numpy(plan.maps[1].data)
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
        kept = device.to_numpy(plan.maps[1].data)
        dx = device.to_numpy(plan.backward(device.asarray(dy), True))
        first, last = (device.to_numpy(net[i].weight.data) for i in (0, 3))
        np.testing.assert_allclose(dx, ((dy @ last.T) * (kept > 0) * 2.0) @ first.T, rtol=1e-4, atol=1e-5)


def test_the_same_generator_drops_the_same_numbers(device):
    x = device.asarray(batch(6, 4))
    first, second = (plans.compile(dropping(0.5).to(device), (6, 4), training=True) for _ in range(2))
    for _ in range(3):
        np.testing.assert_array_equal(device.to_numpy(first.forward(x)), device.to_numpy(second.forward(x)))


@pytest.mark.parametrize("p, share", [(0.0, 0.0), (1.0, 1.0)])
def test_dropout_of_nothing_and_of_everything(device, p, share):
    net = dropping(p).to(device)
    net[0].weight.data = device.asarray(np.ones((4, 40), "float32"))
    plan = plans.compile(net, (6, 4), training=True)
    plan.forward(device.asarray(np.ones((6, 4), "float32")))
    assert (device.to_numpy(plan.maps[1].data) == 0).mean() == share
    plan.backward(device.asarray(batch(6, 3)))
    gradient = device.to_numpy(net[0].weight.grad)
    assert np.isfinite(gradient).all() and (gradient == 0).all() == (p == 1.0)


# Batch normalisation in evaluation


def test_statistics_may_be_written_at_any_time(device):
    net = normalised().to(device).eval()
    x = batch(3, 7, 8, 3)
    plan = plans.compile(net, x.shape)
    assert "normalise" not in plan.describe(), "they are folded into the convolutions"
    for k in range(5):
        for j, (name, statistics) in enumerate(net.buffers().items()):
            value = np.random.default_rng(10 * k + j).random(statistics.shape).astype("float32")
            statistics[...] = device.asarray(value + 0.5 * name.endswith("var"))
        expected = copy_of(net, normalised).eval().forward(x)
        assert_close(device.to_numpy(plan.forward(device.asarray(x))), expected, 1e-5)
    net[1].eps = 0.5  # an argument of a launch
    with pytest.raises(RuntimeError, match="other settings"):
        plan.forward(device.asarray(x))


def test_statistics_that_are_exchanged_are_noticed(device):
    net = normalised().to(device).eval()
    x = batch(3, 7, 8, 3)
    plan = plans.compile(net, x.shape)
    for _ in range(3):
        plan.forward(device.asarray(x))
    before = net[4].running_mean  # so that the next array gets memory of its own
    net[4].running_mean = device.asarray(np.full(6, 0.3, "float32"))
    assert before is not net[4].running_mean
    expected = copy_of(net, normalised).eval().forward(x)
    assert_close(device.to_numpy(plan.forward(device.asarray(x))), expected, 1e-5)


def test_a_normalisation_without_a_convolution_before_it(device):
    def make():
        return Sequential(BatchNorm2d(3), ReLU(), Conv2d(3, 4), ReLU(), BatchNorm2d(4))

    assert_plan_equals_layers(device, make, (3, 6, 6, 3))


def test_one_value_per_channel_is_refused(device):
    net = Sequential(Conv2d(3, 4), BatchNorm2d(4)).to(device)
    with pytest.raises(ValueError, match=r"1 \(BatchNorm2d\): one value per channel has no variance"):
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
        else:
            net[0].weight.data = net[0].weight.data * 1.5
        other.forward(device.asarray(x[:1]))  # which derives what both of them use
        expected = copy_of(net, plain).eval().forward(x)
        assert_close(device.to_numpy(plan.forward(device.asarray(x))), expected, 2 * TOLERANCE[precision])


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
    with pytest.raises(ValueError, match="this plan computes in float32, got float64"):
        plan.forward(device.asarray(batch(3, 8, 8, 3, dtype="float64")))
    with pytest.raises(ValueError, match="precision must be one of fp32, tf32, bf16, not 'fp16'"):
        plans.compile(net, (3, 8, 8, 3), training=True, precision="fp16")
    with pytest.raises(RuntimeError, match="backward without a forward"):
        plan.backward(device.asarray(batch(3, 10)))


def test_plans_of_one_network_share_their_memory_and_may_take_turns(device):
    net, twin = plain().to(device), plain()
    sizes = (3, 5, 2)  # the second one makes the workspace grow: the first one moves, and records again
    made = [plans.compile(net, (n, 8, 8, 3), training=True) for n in sizes[:1]]
    for _ in range(3):
        made[0].forward(device.asarray(batch(3, 8, 8, 3)))
    made += [plans.compile(net, (n, 8, 8, 3), training=True) for n in sizes[1:]]
    for _ in range(3):
        for n, plan in zip(sizes, made, strict=True):
            x, dy = batch(n, 8, 8, 3, seed=n), batch(n, 10, seed=n)
            assert_close(device.to_numpy(plan.forward(device.asarray(x))), twin.forward(x), 2e-5)
            plan.backward(device.asarray(dy))
            twin.backward(dy)
            assert_same_gradients(device, net, twin, 1e-4)
    assert len({id(plan.workspace.block) for plan in made}) == 1
    made[0].forward(device.asarray(batch(3, 8, 8, 3)))
    made[1].forward(device.asarray(batch(5, 8, 8, 3)))
    with pytest.raises(RuntimeError, match="another plan of this network has run since"):
        made[0].backward(device.asarray(batch(3, 10)))


@pytest.mark.parametrize("where", ["numpy", "cupy"])
def test_a_workspace_that_grows_is_the_only_one(stand_in, where):
    net = plain().to(where)
    xp = net.backend.xp
    small = plans.compile(net, (2, 8, 8, 3), training=True)
    x = net.backend.asarray(batch(2, 8, 8, 3))
    y = small.forward(x)
    small.backward(y)
    block = small.workspace.block
    memory = weakref.ref((block if xp is np else block._host).base)
    del block
    plans.compile(net, (5, 8, 8, 3), training=True)
    gc.collect()
    assert memory() is None
    np.testing.assert_array_equal(backend.to_numpy(small.forward(x)), backend.to_numpy(y))
    small.backward(y)


def test_a_bf16_copy_of_the_parameters_goes_with_its_network(device):

    net = plain().to(device)
    plan = plans.compile(net.eval(), (2, 8, 8, 3), precision="bf16")
    copy = weakref.ref(plan.weights)
    twin = deepcopy(net)
    assert not twin.parameters()["0.weight"].buffer.derived, "which makes its own"
    del net, plan
    while gc.collect():  # what a finalizer lets go may be a cycle again
        pass
    assert copy() is None


def test_a_map_lives_until_the_backward_pass_that_reads_it(stand_in):
    plan = plans.compile(plain().to("cupy"), (3, 8, 8, 3), training=True)
    G = len(plan.kernels)
    back = [2 * G - 1 - i for i in range(G)]  # the step of each group's backward pass
    for i, kernel in enumerate(plan.kernels):
        if not kernel.is_view:
            assert kernel.input.is_view or kernel.input.buffers["data"].last_use >= back[i], (
                "x, for the weights' gradient"
            )
            has_relu = kernel.group.activation is not None and kernel.group.pool is None
            assert not has_relu or kernel.output.buffers["data"].last_use >= back[i], (
                "y, where the ReLU let through"
            )
            assert (
                kernel.output.buffers["grad"].first_use <= back[i] <= kernel.output.buffers["grad"].last_use
            )


# Planted faults: each is a mistake that is easy to make in a plan, and a comparison must see it. (Those
# in kernels are in launch/.)


def sees(device, make, shape):
    try:
        assert_plan_equals_layers(device, make, shape)
    except AssertionError:
        return True
    return False


def test_fault_a_graph_that_is_not_recorded_again(stand_in, monkeypatch):
    monkeypatch.setattr(CudaPlan, "constants", lambda self: ())
    with pytest.raises(AssertionError):
        test_statistics_that_are_exchanged_are_noticed(backend.get("cupy"))


def test_fault_operands_that_change_places(stand_in, monkeypatch):
    monkeypatch.setattr(matmul, "OP_T", matmul.OP_N)
    assert sees(backend.get("cupy"), lambda: Sequential(Linear(4, 4)), (4, 4))


def test_fault_a_chunk_that_does_not_add_to_the_one_before(stand_in, monkeypatch):
    whole = matmul.Matmul.__call__

    def again(self, a, b, out, accumulate=False, **turned):
        whole(self, a, b, out, **turned)

    monkeypatch.setattr(conv, "COLUMN_BYTES", 1)
    assert not sees(backend.get("cupy"), plain, (3, 8, 9, 3))
    monkeypatch.setattr(matmul.Matmul, "__call__", again)
    assert sees(backend.get("cupy"), plain, (3, 8, 9, 3))


def test_a_forward_pass_is_one_call_and_its_input_and_output_copies(stand_in):
    device = backend.get("cupy")
    net = plain().to(device).eval()
    plan, x = plans.compile(net, (3, 8, 8, 3)), device.asarray(batch(3, 8, 8, 3))
    for _ in range(3):
        with cuda_runtime.counted() as traffic:
            plan.forward(x)
    assert (traffic.launches, traffic.replays, traffic.reads, traffic.uploads) == (0, 1, 0, 0)


def test_too_little_memory_names_the_batch_that_fits(stand_in, monkeypatch):
    net = plain().to("cupy")
    needed = plans.compile(net, (6, 8, 8, 3), training=True).arena.size
    monkeypatch.setattr(cupy_stand_in, "free_memory", int(needed / 0.94))
    with pytest.raises(backend.BackendError) as caught:
        plans.compile(net, (50, 8, 8, 3), training=True)
    assert "for 50 images per batch" in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("6 images per batch would fit")
    monkeypatch.setattr(cupy_stand_in, "free_memory", 1000)
    with pytest.raises(backend.BackendError, match="not even one image would fit"):
        plans.compile(net, (60, 8, 8, 3), training=True)
    monkeypatch.undo()
    plans.compile(net, (60, 8, 8, 3), training=True)
