"""Ten steps of training a small VGG: the losses that it has always had, and those that PyTorch has.

The numbers hold on every machine, since everything is float64 and ten steps amplify no rounding to 1e-8. If a
change moves them, it has changed what the network computes, or how it begins.
"""

import numpy as np
import pytest

from scratchnet.layers import BatchNorm2d, Conv2d, Linear
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import VGG
from scratchnet.optim import SGD

GOLDEN = {
    "plain": [
        1.801872473565,
        7.880049242603,
        2.066905370749,
        2.487630722802,
        1.621060081227,
        1.374029263711,
        1.338607020538,
        1.354188560225,
        1.355307692312,
        1.385313679685,
    ],
    "batch norm": [
        1.714323459626,
        6.289085222717,
        3.373488738594,
        3.166888120484,
        1.741422254040,
        1.902844088156,
        2.156409586221,
        1.796173613658,
        1.442793191519,
        1.401123836470,
    ],
    "gap": [
        6.366442117379,
        1.395330591967,
        1.485560411107,
        1.446895052931,
        1.345325857571,
        1.575753495862,
        1.331147289513,
        1.324902489952,
        1.486701296012,
        1.464023154013,
    ],
}
SETTINGS = {
    "plain": {"dropout": 0.5},
    "batch norm": {"batch_norm": True, "dropout": 0.5},
    "gap": {"head": "gap", "dropout": 0.0},
}
STEPS = 10
LEARNING_RATE = 0.005


def network(**settings):
    return VGG(
        [8, "M", 16, 16, "M"],
        num_classes=4,
        image_size=8,
        classifier_width=16,
        dtype="float64",
        seed=1,
        **settings,
    )


def batches():
    """Ten batches of eight images; the label is the quarter in which the bright spot is."""
    rng = np.random.default_rng(7)
    for _ in range(STEPS):
        images, labels = rng.standard_normal((8, 8, 8, 3)), rng.integers(0, 4, 8)
        for image, label in zip(images, labels, strict=True):
            i, j = divmod(int(label), 2)
            image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] += 1.0
        yield images, labels


def train(net):
    loss = SoftmaxCrossEntropy(label_smoothing=0.1)
    optimizer = SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    losses = []
    for images, labels in batches():
        losses.append(float(loss.forward(net.forward(images), labels)))
        net.backward(loss.backward(), need_input_gradient=False)
        optimizer.step()
    return losses


@pytest.mark.parametrize("name", SETTINGS)
def test_ten_losses_are_the_golden_ones(name):
    losses = train(network(**SETTINGS[name]))
    np.testing.assert_allclose(losses, GOLDEN[name], rtol=1e-8)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_runs_have_the_same_bits(name):
    first, second = network(**SETTINGS[name]), network(**SETTINGS[name])
    assert train(first) == train(second)
    for p, q in zip(first.parameters().values(), second.parameters().values(), strict=True):
        assert (p.data == q.data).all()


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("head", ["flatten", "gap"])
def test_ten_steps_are_those_of_pytorch(batch_norm, head):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.set_num_threads(1)  # its threads spin, and such small arrays need none
    net = network(batch_norm=batch_norm, head=head, dropout=0.0)
    twin = pytorch_twin(torch, net, head)
    losses = train(net)

    optimizer = torch.optim.SGD(twin.parameters(), LEARNING_RATE, 0.9, weight_decay=5e-4, nesterov=True)
    expected = []
    for images, labels in batches():
        logits = twin(torch.tensor(images.transpose(0, 3, 1, 2).copy()))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-9)

    images, _ = next(batches())
    with torch.no_grad():
        logits = twin.eval()(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(net.eval().forward(images), logits, rtol=1e-8, atol=1e-10)


def pytorch_twin(torch, net, head):
    """Build the same network of PyTorch's layers, with the same weights."""
    nn, twin = torch.nn, []
    for layer in net.layers:
        name = type(layer).__name__
        if isinstance(layer, Conv2d):
            module = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
            weight = layer.weight.data.transpose(3, 2, 0, 1)
        elif isinstance(layer, BatchNorm2d):
            module, weight = nn.BatchNorm2d(layer.num_features), layer.weight.data
        elif isinstance(layer, Linear):
            module, weight = nn.Linear(layer.in_features, layer.out_features), layer.weight.data.T
            if head == "flatten" and layer is net.classifier[0]:  # from (h, w, c) order to (c, h, w)
                weight = weight.reshape(-1, 2, 2, 16).transpose(0, 3, 1, 2).reshape(weight.shape)
        else:
            module = {
                "ReLU": nn.ReLU,
                "MaxPool2d": lambda: nn.MaxPool2d(2),
                "Flatten": nn.Flatten,
                "GlobalAvgPool2d": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                "Dropout": nn.Identity,
            }[name]()
            twin.append(module)
            continue
        module = module.double()
        with torch.no_grad():
            module.weight.copy_(torch.tensor(weight.copy()))
            module.bias.copy_(torch.tensor(layer.bias.data.copy()))
        twin.append(module)
    return nn.Sequential(*twin).double()
