"""Whole training steps on a GPU, against layers and SGD on NumPy."""

import numpy as np
import pytest

from scratchnet import backend, losses, optim, plans
from scratchnet.data import Augmentation, Loader, Normalisation
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.plans.cuda.training_step import DeviceImages, TrainingSteps
from tests.fakes import cuda_runtime
from tests.fakes.comparing import assert_close, batch
from tests.fakes.cuda_networks import TOLERANCE, copy_of, normalised, plain


def some_images(n=11, side=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8), rng.integers(0, 10, n)


def make_loader():
    images, labels = some_images()
    return Loader(
        images, labels, batch_size=4, shuffle=True, augmentation=Augmentation.named("crop2-flip-cutout3"),
        normalisation=Normalisation.of(images),
    )  # fmt: skip


def on_device(device, loader):
    """Return the loader's images in device memory, prepared there as it prepares them."""
    scale, shift = loader.normalisation.affine
    return DeviceImages(
        device.asarray(loader.images), device.asarray(loader.labels), crop=2, cutout=3,
        fill=loader.normalisation.colour, scale=scale, shift=shift,
    )  # fmt: skip


OPTIMIZERS = {
    "plain": {},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 1e-2},
    "nesterov, no decay of biases": {
        "momentum": 0.9,
        "weight_decay": 1e-2,
        "nesterov": True,
        "no_decay": optim.is_bias_or_norm,
    },
    "rates apart": {"momentum": 0.9, "lr_scales": {"0": 0.1, "0.weight": 2.0}},
}
EPOCHS, RATES = 3, np.array([0.01, 0.02, 0.005], np.float32)  # a rate for each of an epoch's three batches


def train_on_numpy(make, optimizer):
    net, loader = make(), make_loader()
    loss, sgd = losses.SoftmaxCrossEntropy(0.1), optim.SGD(net.parameters(), 1.0, **OPTIMIZERS[optimizer])
    history = []
    for epoch in range(EPOCHS):
        total, correct = 0.0, 0
        for (x, labels), rate in zip(loader.epoch(epoch), RATES, strict=True):
            logits = net.forward(x)
            total += float(loss.forward(logits, labels)) * len(labels)
            correct += int((logits.argmax(axis=1) == labels).sum())
            net.backward(loss.backward())
            sgd.lr = float(rate)
            sgd.step()
        history.append((total, correct, len(loader.images)))
    return net, sgd, history


def train_on_device(device, make, optimizer, precision="fp32", resident=True, graphs=True):
    net, loader = make().to(device), make_loader()
    sgd = optim.SGD(net.parameters(), 1.0, **OPTIMIZERS[optimizer])
    data = on_device(device, loader) if resident else None
    steps = TrainingSteps(net, sgd, losses.SoftmaxCrossEntropy(0.1), 4, precision, data, graphs)
    history = []
    for epoch in range(EPOCHS):
        steps.begin(RATES, loader.choices(epoch) if resident else None)
        for x, labels in loader.epoch(epoch):
            steps.step(len(labels), *(() if resident else (x, labels)))
        history.append(steps.totals())
    return net, sgd, history


def state(device, net):
    arrays = {name: p.data for name, p in net.parameters().items()} | net.buffers()
    return {name: device.to_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("make", [plain, normalised])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_equal_layers_and_sgd_on_numpy(device, make, optimizer):
    expected, sgd, right = train_on_numpy(make, optimizer)
    net, ours, history = train_on_device(device, make, optimizer)
    for (loss, correct, images), totals in zip(right, history, strict=True):
        assert totals.loss == pytest.approx(loss, rel=1e-5)
        assert totals[1:] == (correct, images)
    start, end = state(device, make()), state(device, expected)
    for name, array in state(device, net).items():
        np.testing.assert_allclose(array, end[name], rtol=1e-3, atol=5e-6, err_msg=name)
        moved = np.abs(end[name] - start[name]).max()
        before_norm = make is normalised and name in ("3.bias", "7.bias")  # which has no gradient
        assert moved > 1e-3 or before_norm, f"{name} hardly moved, so nothing is compared"
    if ours.momentum:
        velocity = device.to_numpy(ours.momentum_buffer)
        np.testing.assert_allclose(velocity, sgd.momentum_buffer, rtol=1e-3, atol=5e-5)


def assert_same_bits(device, first, second):
    (net, sgd, history), (other, sgd_there, other_history) = first, second
    assert history == other_history
    for name, array in state(device, net).items():
        np.testing.assert_array_equal(array, state(device, other)[name], err_msg=name)
    np.testing.assert_array_equal(
        device.to_numpy(sgd.momentum_buffer), device.to_numpy(sgd_there.momentum_buffer)
    )


def dropout_net():
    return Sequential(
        Conv2d(3, 8), BatchNorm2d(8), ReLU(), MaxPool2d(2), Dropout(0.1), Flatten(), Linear(128, 16), ReLU(),
        Dropout(0.4), Linear(16, 10),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_replayed_graph_equals_eager_launches_bit_for_bit(device, precision):
    run = [
        train_on_device(device, dropout_net, "momentum and decay", precision, graphs=graphs)
        for graphs in (True, False)
    ]
    assert_same_bits(device, *run)


def test_each_dropout_begins_an_epoch_with_a_number_of_its_own_generator(device):
    rngs = [np.random.default_rng(seed) for seed in range(3)]
    nothing, alone, after_relu = (Dropout(p, rng=rng) for p, rng in zip((0.0, 0.5, 0.5), rngs, strict=True))
    net = Sequential(nothing, Linear(4, 4), alone, Linear(4, 4), ReLU(), after_relu).to(device)
    steps = TrainingSteps(net, optim.SGD(net.parameters(), 0.1), losses.SoftmaxCrossEntropy(), 2)
    steps.begin(np.zeros(1))
    drawn = [int(np.random.default_rng(seed).integers(2**62)) for seed in (1, 2)]
    assert device.to_numpy(steps.counters).tolist() == [0, *drawn]
    steps.step(2, device.asarray(batch(2, 4)), device.asarray(np.array([0, 1])))
    assert [kernel.dropout for kernel in steps.plan(2).dropping] == [alone, after_relu]


def test_the_same_seed_gives_the_same_bits(device):
    run = [train_on_device(device, dropout_net, "nesterov, no decay of biases") for _ in range(2)]
    assert_same_bits(device, *run)


def test_images_prepared_on_the_gpu_are_those_of_the_loader(device):
    run = [
        train_on_device(device, dropout_net, "momentum and decay", resident=resident)
        for resident in (True, False)
    ]
    assert_same_bits(device, *run)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_training_in_lower_precision_stays_near(device, precision):
    _, _, right = train_on_device(device, plain, "momentum and decay")
    _, _, history = train_on_device(device, plain, "momentum and decay", precision)
    for a, b in zip(history, right, strict=True):
        assert abs(a.loss - b.loss) < {"tf32": 1e-3, "bf16": 2e-2}[precision] * b.loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_follows_training(device, precision):
    """The same parameters, derived for products by the steps themselves."""
    net, loader = normalised().to(device), make_loader()
    sgd = optim.SGD(net.parameters(), 1.0, momentum=0.9)
    steps = TrainingSteps(net, sgd, losses.SoftmaxCrossEntropy(), 4, precision)
    x = batch(5, 8, 8, 3)
    inference = None
    for epoch in range(2):
        net.train()
        steps.begin(RATES)
        for images, labels in loader.epoch(epoch):
            steps.step(len(labels), images, labels)
        net.eval()
        inference = inference or plans.compile(net, x.shape, precision=precision)
        expected = copy_of(net, normalised).eval().forward(x)
        assert_close(
            device.to_numpy(inference.forward(device.asarray(x))), expected, 2 * TOLERANCE[precision]
        )


def test_a_setting_that_changes_is_recorded_again(device):
    net, twin, loader = plain().to(device), plain(), make_loader()
    sgd, right = (optim.SGD(n.parameters(), 0.01, momentum=0.9) for n in (net, twin))
    loss, loss_there = losses.SoftmaxCrossEntropy(), losses.SoftmaxCrossEntropy()
    steps = TrainingSteps(net, sgd, loss_there, 4)
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
        np.testing.assert_allclose(device.to_numpy(ours.data), expected.data, rtol=1e-3, atol=5e-6)


def test_steps_that_do_not_fit_are_refused(device):
    net, loss = plain().to(device), losses.SoftmaxCrossEntropy()
    with pytest.raises(ValueError, match="made of this network's parameters"):
        TrainingSteps(net, optim.SGD(plain().to(device).parameters(), 0.1), loss, 4)
    part = dict(list(net.parameters().items())[:2])
    with pytest.raises(ValueError, match="all of them"):
        TrainingSteps(net, optim.SGD(part, 0.1), loss, 4)
    for other in (plain(), Sequential(Linear(4, 3, dtype="float64")).to(device)):
        with pytest.raises(ValueError, match="need a network of parameters in float32, on cupy"):
            TrainingSteps(other, optim.SGD(other.parameters(), 0.1), loss, 4)


def test_an_epoch_uploads_a_few_tables_and_a_step_is_one_call(stand_in):
    device = backend.get("cupy")
    net, loader = dropout_net().to(device), make_loader()
    sgd = optim.SGD(net.parameters(), 1.0, momentum=0.9)
    steps = TrainingSteps(net, sgd, losses.SoftmaxCrossEntropy(), 4, data=on_device(device, loader))
    for epoch in range(4):
        with cuda_runtime.counted() as beginning:
            steps.begin(RATES, loader.choices(epoch))
        with cuda_runtime.counted() as traffic:
            for n in (4, 4, 3):
                steps.step(n)
        with cuda_runtime.counted() as end:
            steps.totals()
        assert (beginning.uploads, beginning.reads) == (3, 0)
        assert (traffic.uploads, traffic.reads) == (0, 0)
        assert (end.uploads, end.reads) == (0, 1)
    assert (traffic.launches, traffic.replays) == (0, 3)
