"""SGD against its formula and PyTorch's, and the schedules."""

import numpy as np
import pytest

from scratchnet import optim
from scratchnet.layers import BatchNorm2d, Conv2d, Flatten, Linear, Parameter, ReLU, Sequential
from scratchnet.optim import SGD, Constant, Cosine, OneCycle, Step, base

VARIANTS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.01},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
]


def small_net(dtype="float64"):
    return Sequential(
        Conv2d(3, 4, dtype=dtype), BatchNorm2d(4, dtype=dtype), ReLU(), Conv2d(4, 2, dtype=dtype)
    )


def give_gradients(parameters, rng):
    for p in parameters.values():
        p.grad = rng.standard_normal(p.shape)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_update_is_the_documented_formula_elementwise(variant):
    net, rng = small_net(), np.random.default_rng(1)
    w = {name: p.data.copy() for name, p in net.parameters().items()}
    v = {name: np.zeros_like(values) for name, values in w.items()}
    optimizer = SGD(net.parameters(), lr=0.1, **variant)
    momentum, decay = variant.get("momentum", 0.0), variant.get("weight_decay", 0.0)
    for _ in range(4):
        give_gradients(net.parameters(), rng)
        for name, p in net.parameters().items():
            g = p.grad + decay * w[name]
            v[name] = momentum * v[name] + g
            w[name] -= 0.1 * (g + momentum * v[name] if variant.get("nesterov") else v[name])
        optimizer.step()
    for name, p in net.parameters().items():
        np.testing.assert_allclose(p.data, w[name], rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_update_is_pytorchs(variant):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(2)
    ours = {name: Parameter(rng.standard_normal(shape)) for name, shape in (("a", (5, 3)), ("b", (3,)))}
    theirs = [torch.tensor(p.data.copy(), requires_grad=True) for p in ours.values()]
    optimizer = SGD(ours, lr=0.05, **variant)
    reference = torch.optim.SGD(theirs, lr=0.05, **variant)
    for _ in range(5):
        give_gradients(ours, rng)
        for p, t in zip(ours.values(), theirs, strict=True):
            t.grad = torch.tensor(p.grad.copy())
        optimizer.step()
        reference.step()
    for p, t in zip(ours.values(), theirs, strict=True):
        np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=1e-12)


def test_blocks_do_not_change_a_bit(monkeypatch):
    def three_steps():
        net, rng = small_net("float32"), np.random.default_rng(3)
        optimizer = SGD(
            net.parameters(), 0.1, momentum=0.9, weight_decay=0.01, no_decay=optim.is_bias_or_norm
        )
        for _ in range(3):
            give_gradients(net.parameters(), rng)
            optimizer.step()
        return next(iter(net.parameters().values())).buffer.data

    whole = three_steps()
    monkeypatch.setattr(base, "BLOCK_SIZE", 7)
    np.testing.assert_array_equal(three_steps(), whole)


def test_biases_and_normalisation_can_be_exempt_from_decay():
    net = small_net()
    before = {name: p.data.copy() for name, p in net.parameters().items()}
    for p in net.parameters().values():
        p.grad = np.zeros(p.shape)
    SGD(net.parameters(), lr=1.0, weight_decay=0.5, no_decay=optim.is_bias_or_norm).step()
    for name, p in net.parameters().items():
        factor = 0.5 if p.ndim == 4 else 1.0
        np.testing.assert_allclose(p.data, factor * before[name], err_msg=name)


def test_by_default_everything_decays_as_in_pytorch():
    layer = Linear(2, 2)
    layer.bias.data[...] = 1.0
    layer.weight.grad, layer.bias.grad = np.zeros((2, 2)), np.zeros(2)
    SGD(layer.parameters(), lr=0.1, weight_decay=1.0).step()
    np.testing.assert_allclose(layer.bias.data, 0.9, rtol=1e-6)


def test_momentum_is_held_only_after_the_first_step():
    layer = Linear(4, 4)
    optimizer = SGD(layer.parameters(), 0.1, momentum=0.9)
    assert optimizer.momentum_buffer is None
    give_gradients(layer.parameters(), np.random.default_rng(0))
    optimizer.step()
    assert optimizer.momentum_buffer.shape == (20,)


def test_parameters_without_a_gradient_are_left_alone():
    net = small_net()
    frozen = net[0].weight.data.copy()
    net[3].weight.grad = np.ones(net[3].weight.shape)
    before = net[3].weight.data.copy()
    SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1).step()
    np.testing.assert_array_equal(net[0].weight.data, frozen)
    assert (net[3].weight.data != before).any()


def test_some_layers_of_a_network_can_be_trained_alone():
    net = small_net()
    optimizer = SGD(net[3].parameters(), 0.1, momentum=0.9)
    give_gradients(net.parameters(), np.random.default_rng(0))
    first = net[0].weight.data.copy()
    optimizer.step()
    np.testing.assert_array_equal(net[0].weight.data, first)


def test_parameters_of_loose_layers_come_to_lie_in_one_buffer():
    layers = {"a": Linear(2, 3), "b": Linear(3, 2)}
    parameters = {f"{name}.{k}": p for name, layer in layers.items() for k, p in layer.parameters().items()}
    SGD(parameters, 0.1)
    assert len({id(p.buffer) for p in parameters.values()}) == 1


def test_parameters_of_a_network_stay_with_the_others():
    net = small_net()
    buffer = net[0].weight.buffer
    SGD(net[0].parameters() | Linear(2, 2).parameters(), 0.1)
    assert net[0].weight.buffer is buffer and net[3].weight.buffer is buffer


def test_a_step_before_backward_says_what_to_do():
    with pytest.raises(RuntimeError, match="call net.backward"):
        SGD(Linear(2, 2).parameters(), 0.1).step()


def test_a_step_raises_the_buffers_version():
    layer = Linear(2, 2)
    give_gradients(layer.parameters(), np.random.default_rng(0))
    version = layer.weight.buffer.version
    SGD(layer.parameters(), 0.1).step()
    assert layer.weight.buffer.version > version


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"lr": -0.1}, "lr must be a finite number of at least 0, not -0.1"),
        ({"lr": float("inf")}, "lr must be a finite number"),
        ({"lr": 10**400}, "lr must be a finite number"),
        ({"lr": "0.1"}, "lr must be a finite number of at least 0, not '0.1'"),
        ({"lr": 0.1, "momentum": -1.0}, "momentum must be a finite number of at least 0"),
        ({"lr": 0.1, "momentum": 1.0}, "momentum must be below 1, not 1.0"),
        ({"lr": 0.1, "weight_decay": float("nan")}, "weight_decay must be a finite number"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs a momentum"),
    ],
)
def test_impossible_settings_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        SGD(Linear(2, 2).parameters(), **arguments)


def test_a_list_of_parameters_is_refused_with_what_to_pass():
    with pytest.raises(ValueError, match="net.parameters()"):
        SGD(list(Linear(2, 2).parameters().values()), 0.1)


# Schedules


def test_constant():
    assert [Constant(0.3)(step) for step in (0, 10**6)] == [0.3, 0.3]


def test_step_divides_at_each_milestone():
    values = [Step(1.0, (2, 4), gamma=0.5)(step) for step in range(6)]
    assert values == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_cosine_warms_up_to_its_rate_and_falls_to_zero():
    rates = [Cosine(0.4, steps=100, warmup=20)(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.02) and max(rates) == pytest.approx(0.4)
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[60] == pytest.approx(0.2) and rates[100] == pytest.approx(0.0, abs=1e-12)


def test_one_cycle_rises_and_falls_once():
    rates = [OneCycle(0.5, steps=100)(step) for step in range(101)]
    peak = rates.index(max(rates))
    assert peak == 30 and rates[peak] == pytest.approx(0.5) and rates[0] == pytest.approx(0.02)
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("name", optim.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_every_schedule_stays_between_zero_and_its_rate(name, steps):
    schedule = optim.schedule(name, 0.1, steps)
    assert all(0.0 <= schedule(step) <= 0.1 + 1e-12 for step in range(steps + 5))


@pytest.mark.parametrize("name", optim.SCHEDULES)
@pytest.mark.parametrize(("lr", "steps"), [(float("nan"), 10), (-0.1, 10), ("0.1", 10)])
def test_impossible_settings_of_a_schedule_are_refused(name, lr, steps):
    with pytest.raises(ValueError, match="lr must be a finite number"):
        optim.schedule(name, lr, steps)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="constant, step, cosine, one-cycle"):
        optim.schedule("linear", 0.1, 10)


def test_parameters_of_different_precision_are_updated_in_their_own(monkeypatch):
    monkeypatch.setenv("SCRATCHNET_THREADS", "1")
    single, double = Parameter(np.ones(3, "float32")), Parameter(np.full(3, 1 / 3))
    sgd = SGD({"single": single, "double": double}, lr=0.1)
    single.grad, double.grad = np.ones(3, "float32"), np.full(3, 1 / 7)
    sgd.step()
    assert (double.data == 1 / 3 - 0.1 * (1 / 7)).all() and single.data.dtype == np.float32


# Frozen parameters


def frozen_network():
    """Return a network whose convolution and normalisation are frozen."""
    net = Sequential(Conv2d(3, 4), BatchNorm2d(4), ReLU(), Flatten(), Linear(64, 8), ReLU(), Linear(8, 2))
    return net.freeze("0").freeze("1")


def train(net, optimizer, steps, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        y = net.forward(rng.standard_normal((4, 4, 4, 3)).astype("float32"))
        net.backward(y - 1, need_input_gradient=False)
        optimizer.step()


def test_frozen_weights_and_statistics_keep_their_bits_and_take_no_momentum():
    net = frozen_network()
    before = {name: p.data.copy() for name, p in net.parameters().items()}
    statistics = {name: array.copy() for name, array in net.buffers().items()}
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    train(net, optimizer, 3)
    for name, p in net.parameters().items():
        frozen = name[0] in "01"
        assert (p.data == before[name]).all() == frozen and (p.grad is None) == frozen
    assert all((array == statistics[name]).all() for name, array in net.buffers().items())
    assert list(optimizer.trainable()) == ["4.weight", "4.bias", "6.weight", "6.bias"]
    assert optimizer.momentum_buffer.size == 64 * 8 + 8 + 8 * 2 + 2


def test_the_others_take_the_steps_of_an_optimizer_that_was_given_them_alone():
    net, other = frozen_network(), frozen_network()
    rest = {name: p for name, p in other.parameters().items() if name[0] in "46"}
    train(net, SGD(net.parameters(), 0.1, momentum=0.9), 3)
    train(other, SGD(rest, 0.1, momentum=0.9), 3)
    assert all((p.data == other.parameters()[name].data).all() for name, p in net.parameters().items())


def test_momentum_stays_with_its_parameter_when_others_are_frozen_or_unfrozen():
    net = frozen_network().freeze("4")
    optimizer = SGD(net.parameters(), 0.1, momentum=0.5)
    train(net, optimizer, 2)
    before = optimizer.momentum_buffer[-2:].copy()  # of 6.bias
    net.unfreeze("4").freeze("6.weight")
    train(net, optimizer, 1)
    grads = [net.parameters()[name].grad.ravel() for name in ("4.weight", "4.bias", "6.bias")]
    expected = np.concatenate([*grads[:2], before * np.float32(0.5) + grads[2]])
    assert (optimizer.momentum_buffer == expected).all()


def test_a_frozen_network_has_no_step_and_no_gradients():
    net = frozen_network().freeze()
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        train(net, SGD(net.parameters(), 0.1, momentum=0.9), 1)
    assert net.parameters()["0.weight"].buffer.grad is None


def test_an_optimizers_state_goes_on_where_it_was_taken():
    def made():
        weights = {"a": Parameter([1.0, 2.0]), "b": Parameter([3.0])}
        weights["a"].trainable = False
        return weights, SGD(weights, 0.1, momentum=0.9)

    def step(weights, optimizer, gradient):
        weights["b"].grad = np.array([gradient])
        optimizer.step()

    weights, optimizer = made()
    assert optimizer.state() == {}
    step(weights, optimizer, 1.0)
    state = optimizer.state()
    assert {name: (a.shape, str(a.dtype)) for name, a in state.items()} == optimizer.state_shapes(["b"])
    kept = {name: array.copy() for name, array in state.items()}
    twin, other = made()
    twin["b"].data = weights["b"].data
    other.load_state(kept)
    for w, o in ((weights, optimizer), (twin, other)):
        step(w, o, 2.0)
    assert twin["b"].data == weights["b"].data
    assert kept["momentum"] == [1.0]  # what was put back is a copy
    assert SGD(twin, 0.1).state_shapes(["a", "b"]) == {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_learn_at_rates_of_their_own_as_pytorchs_parameter_groups(variant):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net, rng = small_net(), np.random.default_rng(3)
    optimizer = SGD(net.parameters(), lr=0.05, **variant, lr_scales={"0": 0.1, "1.bias": 0.0, "0.bias": 3.0})
    scales = {"0.weight": 0.1, "0.bias": 3.0, "1.bias": 0.0}
    theirs = {name: torch.tensor(p.data.copy(), requires_grad=True) for name, p in net.parameters().items()}
    groups = [{"params": [t], "lr": 0.05 * scales.get(name, 1.0)} for name, t in theirs.items()]
    reference = torch.optim.SGD(groups, **variant)
    for _ in range(5):
        give_gradients(net.parameters(), rng)
        for p, t in zip(net.parameters().values(), theirs.values(), strict=True):
            t.grad = torch.tensor(p.grad.copy())
        optimizer.step()
        reference.step()
    for p, t in zip(net.parameters().values(), theirs.values(), strict=True):
        np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=1e-12)


def test_a_scale_of_one_changes_no_bit():
    one, other = small_net("float32"), small_net("float32")
    for net, scales in ((one, None), (other, {"0": 1.0, "": 1.0})):
        optimizer = SGD(net.parameters(), 0.1, 0.9, 1e-3, lr_scales=scales)
        rng = np.random.default_rng(4)
        for _ in range(3):
            for p in net.parameters().values():
                p.grad = rng.standard_normal(p.shape).astype("float32")
            optimizer.step()
    for p, q in zip(one.parameters().values(), other.parameters().values(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_scales_of_what_is_not_there_are_refused():
    parameters = small_net().parameters()
    with pytest.raises(ValueError, match="lr_scales names 'features', where there are no parameters"):
        SGD(parameters, 0.1, lr_scales={"features": 0.1})
    with pytest.raises(ValueError, match=r"lr_scales\['0'\] must be a finite number of at least 0, not -1"):
        SGD(parameters, 0.1, lr_scales={"0": -1})
