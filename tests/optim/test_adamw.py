"""AdamW against its formula and PyTorch's; frozen parts, workers, resuming, other array libraries."""

import numpy as np
import pytest

from scratchnet import losses, models
from scratchnet.layers import BatchNorm2d, Conv2d, Parameter, ReLU, Sequential
from scratchnet.optim import SGD, AdamW, Constant, base, is_bias_or_norm
from scratchnet.plans.cuda.training_step import TrainingSteps
from scratchnet.training import Trainer
from tests.fakes.comparing import assert_close
from tests.fakes.runs import prepare

VARIANTS = [
    {},
    {"weight_decay": 0.0},
    {"weight_decay": 0.1, "betas": (0.5, 0.9)},
    {"eps": 1e-3, "betas": (0.0, 0.0)},
]


def small_net(dtype="float64"):
    return Sequential(
        Conv2d(3, 4, dtype=dtype), BatchNorm2d(4, dtype=dtype), ReLU(dtype=dtype), Conv2d(4, 2, dtype=dtype)
    )


def give_gradients(net, rng, scale=1.0):
    for p in net.parameters().values():
        p.grad = (scale * rng.standard_normal(p.shape)).astype(p.dtype)


def values(net):
    return {name: p.data.copy() for name, p in net.parameters().items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_are_pytorchs(variant, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net, rng = small_net(dtype), np.random.default_rng(2)
    theirs = [torch.tensor(p.data.copy(), requires_grad=True) for p in net.parameters().values()]
    optimizer = AdamW(net.parameters(), lr=0.05, **variant)
    reference = torch.optim.AdamW(theirs, lr=0.05, **variant)
    for step in range(20):
        give_gradients(net, rng, scale=10.0 ** (step % 5 - 3))
        optimizer.lr = reference.param_groups[0]["lr"] = 0.05 / (step + 1)
        for p, t in zip(net.parameters().values(), theirs, strict=True):
            t.grad = torch.tensor(p.grad.copy())
        optimizer.step()
        reference.step()
        for p, t in zip(net.parameters().values(), theirs, strict=True):
            assert_close(p.data, t.detach().numpy(), 1e-6)


def test_groups_are_pytorchs_parameter_groups():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net, rng = small_net(), np.random.default_rng(2)
    scales = {"0.weight": 0.1, "0.bias": 0.1}
    theirs = {name: torch.tensor(p.data.copy(), requires_grad=True) for name, p in net.parameters().items()}
    decay = {name: 0.0 if t.ndim == 1 else 0.1 for name, t in theirs.items()}
    groups = [
        {"params": [t], "lr": 0.05 * scales.get(name, 1.0), "weight_decay": decay[name]}
        for name, t in theirs.items()
    ]
    reference = torch.optim.AdamW(groups)
    optimizer = AdamW(
        net.parameters(), 0.05, weight_decay=0.1, no_decay=is_bias_or_norm, lr_scales={"0": 0.1}
    )
    for _ in range(5):
        give_gradients(net, rng)
        for p, t in zip(net.parameters().values(), theirs.values(), strict=True):
            t.grad = torch.tensor(p.grad.copy())
        optimizer.step()
        reference.step()
    for p, t in zip(net.parameters().values(), theirs.values(), strict=True):
        assert_close(p.data, t.detach().numpy(), 1e-12)


def test_blocks_and_workers_do_not_change_a_bit(monkeypatch):
    results = []
    for size in (1 << 15, 7):
        monkeypatch.setattr(base, "BLOCK_SIZE", size)
        net, rng = small_net("float32"), np.random.default_rng(3)
        optimizer = AdamW(net.parameters(), 0.01)
        for _ in range(3):
            give_gradients(net, rng)
            optimizer.step()
        results.append(values(net))
    for name, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][name])


def test_frozen_parts_keep_their_bits_and_count_their_own_steps():
    net, alone, rng = small_net(), small_net(), np.random.default_rng(3)
    net.freeze("0")
    optimizer = AdamW(net.parameters(), 0.01)
    before = values(net)
    give_gradients(net, rng)
    optimizer.step()
    np.testing.assert_array_equal(net[0].weight.data, before["0.weight"])
    assert optimizer.kept["first_moment"].size == sum(p.size for p in optimizer.trainable().values())
    net.unfreeze("0")
    give_gradients(net, rng)
    optimizer.step()
    # It is the first step of what was frozen, as for an optimizer that was never given it before.
    other = AdamW(alone[0].parameters(), 0.01)
    alone[0].weight.grad, alone[0].bias.grad = net[0].weight.grad, net[0].bias.grad
    other.step()
    np.testing.assert_array_equal(net[0].weight.data, alone[0].weight.data)


def test_its_state_goes_on_where_it_was_taken_bit_for_bit():
    def made():
        net = small_net("float32").freeze("0")
        return net, AdamW(net.parameters(), 0.01)

    net, optimizer = made()
    assert optimizer.state() == {}
    rng = np.random.default_rng(3)
    for _ in range(3):
        give_gradients(net, rng)
        optimizer.step()
    state = {name: array.copy() for name, array in optimizer.state().items()}
    assert {name: (a.shape, str(a.dtype)) for name, a in state.items()} == optimizer.state_shapes(
        list(optimizer.trainable())
    )
    assert state["steps"].tolist() == [3, 3, 3, 3]
    twin, other = made()
    for name, array in values(net).items():
        twin.parameters()[name].data = array
    other.load_state(state)
    for one in (net, twin):
        give_gradients(one, np.random.default_rng(4))
    optimizer.step(), other.step()
    for name, array in values(net).items():
        np.testing.assert_array_equal(array, twin.parameters()[name].data)


@pytest.mark.parametrize("engine", ["layers", "plan"])
def test_it_trains_on_another_array_library_as_on_numpy(device, engine):
    trained, loop = [], prepare()
    for backend in ("numpy", device):
        net = models.vgg11(10, 32, width=0.0625, classifier_width=16, dropout=0.0).to(backend)
        optimizer = AdamW(net.parameters(), 1e-3, eps=1e-2)  # a small one magnifies rounding
        trainer = Trainer(net, optimizer, Constant(1e-3), loop.train, loop.validation, None, None, engine, ())
        assert trainer.device_epochs is None
        trainer.train_epoch(0)
        trained.append({name: net.backend.to_numpy(p.data) for name, p in net.parameters().items()})
    for name, array in trained[0].items():
        if name.endswith("weight"):  # biases are next to nothing yet, and so is their difference
            assert_close(trained[1][name], array, 1e-3)


def test_a_gpus_whole_steps_say_that_they_are_sgds(device):
    net = Sequential(Conv2d(3, 4)).to(device)
    with pytest.raises(ValueError, match="training steps on a GPU are those of SGD, not of AdamW"):
        TrainingSteps(net, AdamW(net.parameters()), losses.SoftmaxCrossEntropy(), 4)


def test_the_next_step_is_the_one_that_it_makes():
    for optimizer_class, how in (
        (AdamW, {}),
        (SGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ):
        net, rng = small_net(), np.random.default_rng(5)
        optimizer = optimizer_class(net.parameters(), lr=0.1, **how)
        for _ in range(3):
            give_gradients(net, rng)
            before = values(net)
            expected = {
                name: optimizer.next_step(name, p, p.grad, 0.1) for name, p in net.parameters().items()
            }
            optimizer.step()
        for name, array in values(net).items():
            assert_close(before[name] - array, expected[name], 1e-9)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"lr": -1.0}, "lr must be a finite number of at least 0"),
        ({"betas": (0.9, 1.0)}, "betas must be below 1, not 1.0"),
        ({"betas": 0.9}, "betas must be two numbers, not 0.9"),
        ({"eps": -1.0}, "eps must be a finite number"),
        ({"lr_scales": {"head": 2.0}}, "lr_scales names 'head'"),
    ],
)
def test_impossible_settings_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        AdamW({"w": Parameter([1.0])}, **arguments)


def test_rates_that_were_assigned_are_checked_at_the_next_step():
    weight = Parameter([1.0])
    optimizer = AdamW({"w": weight})
    weight.grad = np.array([1.0])
    optimizer.lr = float("nan")
    with pytest.raises(ValueError, match="lr must be a finite number"):
        optimizer.step()
    with pytest.raises(ValueError, match="AdamW takes the dict"):
        AdamW([weight])
