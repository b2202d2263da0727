"""Networks and batches with planted faults, each with the diagnosis that the doctor has to make."""

from math import log

import numpy as np

from scratchnet import data
from scratchnet.data import Normalisation
from scratchnet.doctor import diagnose
from scratchnet.layers import BatchNorm2d, Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import VGG
from scratchnet.optim import SGD

SHAPES = data.shapes10(n_train=256, n_test=64)
NORMALISATION = Normalisation.of(SHAPES.train_images)
IMAGES, LABELS = NORMALISATION.apply(SHAPES.train_images), SHAPES.train_labels
X, Y = IMAGES[:64], LABELS[:64]
SMALL = {"num_classes": 10, "image_size": 32, "width": 0.125, "classifier_width": 32}


def plain(architecture="vgg11", **settings):
    return VGG(architecture, **SMALL | settings)


def perceptron(*widths, dtype="float32", activation=ReLU, inputs=3072):
    rng, layers = np.random.default_rng(1), [Flatten(dtype=dtype)]
    for width in widths:
        layers += [Linear(inputs, width, dtype=dtype, rng=rng), activation(dtype=dtype)]
        inputs = width
    return Sequential(*layers, Linear(inputs, 10, dtype=dtype, rng=rng), dtype=dtype)


def quick(batch_norm=False):
    """A small network that learns 64 images in a second."""
    rng, layers, channels = np.random.default_rng(2), [], 3
    for width in (16, 32):
        layers.append(Conv2d(channels, width, stride=2, rng=rng))
        layers += [BatchNorm2d(width), ReLU()] if batch_norm else [ReLU()]
        channels = width
    return Sequential(
        *layers, MaxPool2d(2), Flatten(), Linear(512, 32, rng=rng), ReLU(), Linear(32, 10, rng=rng)
    )


def train(net, steps, lr, images=X, labels=Y, momentum=0.9, weight_decay=0.0, batch=32):
    """Train, and return the optimizer and the losses."""
    optimizer, loss, losses = SGD(net.parameters(), lr, momentum, weight_decay), SoftmaxCrossEntropy(), []
    with np.errstate(all="ignore"):
        for step in range(steps):
            chosen = (step * batch + np.arange(batch)) % len(images)
            losses.append(float(loss.forward(net.forward(images[chosen]), labels[chosen])))
            net.backward(loss.backward())
            optimizer.step()
    return optimizer, losses


# Faults: each makes a network, and what else diagnose is told


def scaled(net, factor):
    for p in net.parameters().values():
        if p.ndim > 1:
            p.data = p.data * np.float32(factor)
    return net


def vanished():
    return plain("vgg16", init="normal"), {}


def vanished_with_biases():
    return plain("vgg16", init="pytorch"), {}


def grown():
    return scaled(plain("vgg16"), 2.0), {}


def killed_by_a_bias():
    net = plain()
    net.features[3].bias.data = np.full(16, -100, "float32")
    return net, {"step": 5}


def blown_up():
    net = plain("vgg11", dropout=0.0, seed=1)
    optimizer, losses = train(net, 20, 0.1)
    return net, {"optimizer": optimizer, "step": 20, "losses": losses}


def not_a_number():
    net = plain(dropout=0.0, seed=1)
    optimizer, losses = train(net, 6, 1.0)
    return net, {"optimizer": optimizer, "step": 6, "losses": losses}


def pixels():
    return plain(), {"images": X * 60.0 + 120.0}


def not_centred():
    return plain(), {"images": SHAPES.train_images[:64].astype("float32") / 255}


def one_image():
    return plain(), {"images": np.repeat(X[:1], 64, axis=0)}


def sorted_by_class():
    chosen = LABELS == 3
    return plain(), {"images": np.tile(IMAGES[chosen], (8, 1, 1, 1)), "labels": np.tile(LABELS[chosen], 8)}


def zero_last_layer():
    net = plain()
    net.classifier[6].weight.data = np.zeros((32, 10), "float32")
    return net, {}


def large_last_layer():
    net = plain()
    scaled(net.classifier[6], 100.0)
    return net, {}


class Sigmoid(Layer):
    def forward(self, x):
        y = 1 / (1 + np.exp(-x))
        return self.save_for_backward(y, y)

    def backward(self, dy):
        y = self.saved(dy)
        return dy * y * (1 - y)


def deep_sigmoids():
    return perceptron(*[64] * 14, activation=Sigmoid), {}


class Forgetful(Linear):
    def backward(self, dy, need_input_gradient=True):
        dx = super().backward(dy, need_input_gradient)
        self.weight.grad = np.zeros_like(self.weight.data)
        return dx


def frozen():
    return Sequential(Flatten(), Linear(3072, 32), ReLU(), Forgetful(32, 32), ReLU(), Linear(32, 10)), {}


def left_out_of_the_optimizer():
    net = plain()
    return net, {"optimizer": SGD(net.classifier.parameters(), 0.01)}


def rate_too_high():
    net = plain("vgg16", seed=1)
    return net, {"optimizer": SGD(net.parameters(), 0.3, 0.9)}


def rate_too_low():
    return plain(), {"lr": 1e-6}


def stale_statistics():
    net = quick(batch_norm=True)
    train(net, 60, 0.02)
    for name, array in net.buffers().items():
        array[...] = 10.0 if "mean" in name else 1.0
    return net, {"step": 60}


def shuffled_labels():
    return plain(), {"images": IMAGES, "labels": np.random.default_rng(5).permutation(LABELS)}


def labels_that_nothing_tells():
    noise = np.random.default_rng(0).integers(0, 10, 64)
    return plain(), {"labels": noise, "losses": list(np.full(400, log(10.0))), "step": 400, "lr": 0.01}


def memorised():
    net = plain()
    row = {"train_loss": 0.5, "train_accuracy": 0.85, "val_loss": 4.0, "val_accuracy": 0.1}
    return net, {"epochs": [row] * 3, "step": 300}


def other_numbers():
    net = quick(batch_norm=True)
    train(net, 60, 0.02)
    return net, {"labels": (Y + 1) % 10, "step": 60}


def trained_on_other_labels():
    net = quick(batch_norm=True)
    train(net, 60, 0.02)
    return net, {"labels": np.random.default_rng(8).permutation(Y), "step": 60}


def overfitted():
    validation = [1.2, 0.9, 0.8, 0.95, 1.1, 1.3]
    rows = [
        {"train_loss": 1.0 / (k + 1), "train_accuracy": 0.9, "val_loss": loss, "val_accuracy": 0.7}
        for k, loss in enumerate(validation)
    ]
    return plain(), {"epochs": rows, "step": 600}


FAULTS = {
    vanished: "vanishing",
    vanished_with_biases: "vanishing",
    grown: "exploding",
    killed_by_a_bias: "dead",
    blown_up: "dead",
    not_a_number: "not finite",
    pixels: "data not normalised",
    not_centred: "data not normalised",
    one_image: "images all alike",
    sorted_by_class: "classes missing",
    zero_last_layer: "zero weights",
    large_last_layer: "exploding",
    deep_sigmoids: "vanishing",
    frozen: "frozen",
    left_out_of_the_optimizer: "frozen",
    rate_too_high: "learning rate too high",
    rate_too_low: "learning rate too low",
    stale_statistics: "running statistics off",
    shuffled_labels: "labels shuffled",
    labels_that_nothing_tells: "labels shuffled",
    memorised: "labels shuffled",
    other_numbers: "labels shuffled",
    trained_on_other_labels: "labels shuffled",
    overfitted: "overfitting",
}


def examine(fault):
    net, told = fault()
    images, labels = told.pop("images", X), told.pop("labels", Y)
    return diagnose(net, images, labels, **told)
