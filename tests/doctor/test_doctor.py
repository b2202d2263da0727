"""The doctor: every fault its own diagnosis, healthy networks none, and not a bit of a run is changed."""

import json
from math import log

import numpy as np
import pytest

from scratchnet import data
from scratchnet.data import Augmentation, Loader, Normalisation
from scratchnet.functional import softmax
from scratchnet.layers import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import VGG, vgg11
from scratchnet.optim import SGD, Constant, Cosine
from scratchnet.tensorfile import read_tensors
from scratchnet.training import RunDirectory, RunError, Trainer
from scratchnet.training.doctor import Diagnosis, Row, Verdict, diagnose, read

PICTURES = data.shapes10(n_train=256, n_test=64)
NORMALISATION = Normalisation.of(PICTURES.train_images)
IMAGES, LABELS = NORMALISATION.apply(PICTURES.train_images), PICTURES.train_labels
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


def names(diagnosis):
    return [verdict.name for verdict in diagnosis.verdicts]


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


# Healthy networks


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("architecture", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_vggs_are_healthy_at_the_start(architecture, batch_norm):
    for seed in range(2):
        net = plain(architecture, batch_norm=batch_norm, seed=seed)
        optimizer = SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4)
        diagnosis = diagnose(net, X, Y, optimizer=optimizer)
        assert diagnosis.healthy, str(diagnosis)


@pytest.mark.parametrize(
    "net",
    [
        perceptron(),
        perceptron(32),
        perceptron(64, 64, 64),
        perceptron(64, 32, dtype="float64"),
        plain(dtype="float64"),
        plain(width=0.5, dropout=0.0, head="gap"),
        plain(init="pytorch", batch_norm=True),
        Sequential(
            Conv2d(3, 8), ReLU(), MaxPool2d(4), Sequential(Conv2d(8, 8), ReLU()), Flatten(), Linear(512, 10)
        ),
    ],
    ids=[
        "linear",
        "one hidden",
        "three hidden",
        "float64",
        "VGG float64",
        "gap",
        "pytorch with norm",
        "nested",
    ],
)
def test_other_networks_are_healthy_at_the_start(net):
    diagnosis = diagnose(net, X, Y, lr=0.01)
    assert diagnosis.healthy, str(diagnosis)


@pytest.mark.parametrize("steps", [10, 150])
@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
def test_networks_that_learn_and_have_learned_are_healthy(batch_norm, steps):
    net = quick(batch_norm)
    optimizer, losses = train(net, steps, 0.02, weight_decay=5e-4)
    diagnosis = diagnose(net, X, Y, optimizer=optimizer, step=steps, losses=losses)
    assert diagnosis.healthy, str(diagnosis)
    assert diagnosis.accuracy > (0.9 if steps == 150 else 0.1)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("scale", [1e-4, 0.01, 0.1])
def test_a_small_last_layer_is_healthy(batch_norm, scale):
    """It learns at the first step, and from then on lets the gradient through."""
    diagnosis = diagnose(plain(batch_norm=batch_norm, output_scale=scale), X, Y, lr=0.01)
    assert diagnosis.healthy, str(diagnosis)


def test_labels_that_fit_many_images_are_healthy():
    assert diagnose(plain(), IMAGES, LABELS).healthy


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
    return plain(), {"images": PICTURES.train_images[:64].astype("float32") / 255}


def one_picture():
    return plain(), {"images": np.repeat(X[:1], 64, axis=0)}


def sorted_by_class():
    chosen = LABELS == 3
    return plain(), {"images": np.tile(IMAGES[chosen], (8, 1, 1, 1)), "labels": np.tile(LABELS[chosen], 8)}


def zero_last_layer():
    net = plain()
    net.classifier[6].weight.data = np.zeros((32, 10), "float32")
    return net, {}


def constant_weights():
    net = plain()
    net.features[3].weight.data = np.full((3, 3, 8, 16), 0.05, "float32")
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


def flat_sigmoid():
    net = perceptron(64, 64, activation=Sigmoid)
    scaled(net[3], 100.0)
    return net, {}


def deep_sigmoids():
    return perceptron(*[64] * 14, activation=Sigmoid), {}


class Backwards(Linear):
    def backward(self, dy, need_input_gradient=True):
        dx = super().backward(dy, need_input_gradient)
        self.weight.grad = -self.weight.grad
        return dx


def wrong_sign():
    return Sequential(Flatten(), Linear(3072, 32), ReLU(), Backwards(32, 32), ReLU(), Linear(32, 10)), {}


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


def strong_decay():
    net = plain()
    return net, {"optimizer": SGD(net.parameters(), 0.02, 0.9, weight_decay=0.5)}


def much_dropout():
    return plain(dropout=0.95), {}


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


def learned_by_heart():
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


class Softmax(Layer):
    def forward(self, x):
        return self.save_for_backward(*[softmax(x)] * 2)

    def backward(self, dy):
        p = self.saved(dy)
        return p * (dy - (dy * p).sum(axis=1, keepdims=True))


def two_softmaxes():
    return Sequential(*perceptron(32), Softmax()), {}


def relu_at_the_end():
    return Sequential(*perceptron(32), ReLU()), {}


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
    one_picture: "images all alike",
    sorted_by_class: "classes missing",
    zero_last_layer: "zero weights",
    constant_weights: "equal weights",
    large_last_layer: "saturated",
    flat_sigmoid: "saturated",
    deep_sigmoids: "vanishing",
    wrong_sign: "wrong gradient",
    frozen: "frozen",
    left_out_of_the_optimizer: "frozen",
    rate_too_high: "learning rate too high",
    rate_too_low: "learning rate too low",
    strong_decay: "weight decay too strong",
    much_dropout: "dropout too high",
    stale_statistics: "running statistics off",
    shuffled_labels: "labels shuffled",
    labels_that_nothing_tells: "labels shuffled",
    learned_by_heart: "labels shuffled",
    other_numbers: "labels renumbered",
    trained_on_other_labels: "labels shuffled",
    two_softmaxes: "output squashed",
    relu_at_the_end: "output squashed",
    overfitted: "overfitting",
}


def examine(fault):
    net, told = fault()
    images, labels = told.pop("images", X), told.pop("labels", Y)
    return diagnose(net, images, labels, **told)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_gets_its_own_diagnosis_and_no_other(fault):
    diagnosis = examine(fault)
    assert set(names(diagnosis)) == {FAULTS[fault]}, str(diagnosis)
    assert not diagnosis.healthy
    for verdict in diagnosis.verdicts:
        for sentence in (verdict.reason, verdict.advice):
            assert not sentence[0].islower() and sentence.endswith(".") and len(sentence) > 15


def test_the_three_ways_to_sit_at_ten_per_cent_are_told_apart():
    lost, killed, spoilt = (examine(fault) for fault in (vanished_with_biases, blown_up, not_a_number))
    assert lost.loss == pytest.approx(log(10.0), abs=0.01)
    assert "ln 10" in lost.verdict and "no learning rate helps" in lost.verdict and "He" in lost.verdict
    assert "leapt to" in killed.verdict and "Lower the learning rate, or warm it up" in killed.verdict
    assert "first appeared in" in spoilt.verdict and "ower the learning rate" in spoilt.verdict


def test_a_fault_hides_what_it_causes():
    net = scaled(plain("vgg16"), 2.0)
    assert names(diagnose(net, X * 60.0 + 120.0, Y, lr=1.0)) == ["data not normalised"]


def test_what_is_not_given_is_not_judged():
    net, told = rate_too_high()
    assert diagnose(net, X, Y).healthy


def test_neither_warm_up_nor_the_end_of_a_schedule_is_too_low():
    assert names(diagnose(plain(), X, Y, lr=1e-7)) == ["learning rate too low"]
    assert diagnose(plain(), X, Y, lr=1e-7, highest_lr=0.01).healthy
    assert diagnose(plain(), X, Y, lr=0.0, highest_lr=0.01).healthy


def test_a_step_that_triples_the_loss_is_too_large_before_it_is_made():
    net = plain(width=0.25, classifier_width=64)
    verdict = diagnose(net, X, Y, lr=0.1).verdicts[0]
    assert verdict.name == "learning rate too high" and "the very same images" in verdict.reason


def test_labels_are_not_judged_from_few_images_nor_from_noise():
    shuffled = np.random.default_rng(5).permutation(LABELS)
    assert diagnose(plain(), X, shuffled[:64]).healthy
    noise = np.random.default_rng(0).standard_normal(IMAGES.shape, "float32")
    assert diagnose(plain(), noise, LABELS).healthy


# The numbers


def test_rows_hold_what_they_say():
    net = Sequential(Flatten(), Linear(3072, 8), ReLU(), Linear(8, 10))
    net[1].bias.data[:3] = -50.0
    optimizer = SGD(net.parameters(), 0.05, weight_decay=0.1)
    diagnosis = diagnose(net, X, Y, optimizer=optimizer)
    first, second = diagnosis.rows
    z = X.reshape(64, -1) @ net[1].weight.data + net[1].bias.data
    logits = np.maximum(z, 0) @ net[3].weight.data
    p = softmax(logits)
    p[np.arange(64), Y] -= 1
    gradient = np.maximum(z, 0).T @ p / 64
    weight = net[3].weight.data
    assert (first.layer, first.kind, second.layer) == ("1", "Linear", "3")
    assert first.dead == 3 / 8 and second.dead is None
    assert first.std == pytest.approx(z.std(), rel=1e-4)
    assert first.signal == pytest.approx(np.sqrt(z.var(axis=0).mean()), rel=1e-4)
    assert second.gradient == pytest.approx(np.linalg.norm(gradient) / np.linalg.norm(weight), rel=1e-4)
    step = 0.05 * (gradient + 0.1 * weight)
    assert second.update == pytest.approx(np.linalg.norm(step) / np.linalg.norm(weight), rel=1e-4)
    assert diagnosis.loss == pytest.approx(-np.log(softmax(logits)[np.arange(64), Y]).mean(), rel=1e-4)
    assert diagnosis.accuracy == (logits.argmax(axis=1) == Y).mean()


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_update_is_the_one_that_the_optimizer_makes(nesterov):
    net = quick()
    optimizer, loss = SGD(net.parameters(), 0.01, 0.9, 1e-3, nesterov), SoftmaxCrossEntropy()
    for _ in range(3):
        diagnosis = diagnose(net, X, Y, optimizer=optimizer)
        before = net[0].weight.data.copy()
        loss.forward(net.forward(X), Y)
        net.backward(loss.backward())
        optimizer.step()
    made = np.linalg.norm(net[0].weight.data - before) / np.linalg.norm(before)
    assert diagnosis.rows[0].update == pytest.approx(made, rel=1e-3)


def test_the_table_is_aligned_and_has_no_empty_column():
    net = plain()
    with_update = str(diagnose(net, X, Y, lr=0.01, step=7)).splitlines()
    without = str(diagnose(net, X, Y)).splitlines()
    assert with_update[0].startswith("Diagnosis at step 7: loss ") and "ln 10 = 2.3026" in with_update[0]
    assert with_update[1].split() == ["layer", "std", "signal", "dead", "gradient/weight", "update/weight"]
    assert without[1].split() == ["layer", "std", "signal", "dead", "gradient/weight"]
    assert len(with_update) == 2 + 11 + 1 and with_update[-1] == "Healthy: nothing stands out."
    assert len({len(line) for line in with_update[1:-1]}) == 1


def test_any_network_of_layers_is_heard_also_one_that_branches():
    class Residual(Layer):
        def __init__(self):
            super().__init__()
            self.inner = Sequential(Conv2d(8, 8), ReLU())

        def forward(self, x):
            return x + self.inner.forward(x)

        def backward(self, dy):
            return dy + self.inner.backward(dy)

    net = Sequential(Conv2d(3, 8), Residual(), MaxPool2d(8), Flatten(), Linear(128, 10))
    diagnosis = diagnose(net, X, Y)
    assert [row.layer for row in diagnosis.rows] == ["0", "1.inner.0", "4"]
    assert diagnosis.healthy and diagnosis.rows[1].dead is not None
    assert all("forward" not in vars(layer) for _, layer in net.walk())


def test_it_works_on_another_array_library(device):
    net, twin = plain(batch_norm=True).to(device), plain(batch_norm=True)
    ours = diagnose(net, IMAGES, LABELS, optimizer=SGD(net.parameters(), 0.01, 0.9))
    theirs = diagnose(twin, IMAGES, LABELS, optimizer=SGD(twin.parameters(), 0.01, 0.9))
    assert ours.healthy and ours.loss == pytest.approx(theirs.loss, rel=1e-3)
    for row, other in zip(ours.rows, theirs.rows, strict=True):
        assert row.gradient == pytest.approx(other.gradient, rel=0.05)
    assert names(diagnose(plain("vgg16", init="normal").to(device), device.asarray(X), Y)) == ["vanishing"]


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (X[:1], Y[:1], "two images"),
        (X, Y[:32], "labels"),
        (X, Y + 3, "classes"),
        (X.transpose(0, 3, 1, 2), Y, "channels last"),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        diagnose(plain(), images, labels)


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameters"):
        diagnose(Sequential(Flatten()), X, Y)


# Nothing changes


def everything(net, optimizer):
    """All of a network and its optimizer that a step could depend on."""
    parameters = net.parameters()
    flat = next(iter(parameters.values())).buffer
    state = {f"data {name}": p.data.tobytes() for name, p in parameters.items()}
    state |= {f"grad {name}": None if p.grad is None else p.grad.tobytes() for name, p in parameters.items()}
    state |= {name: array.tobytes() for name, array in net.buffers().items()}
    state |= {f"rng {path}": str(rng.bit_generator.state) for path, rng in net.generators().items()}
    state |= {f"mode {path}": (layer.training, layer._recording) for path, layer in net.walk()}
    kept = {f"kept {path}": id(layer._saved) for path, layer in net.walk()}
    buffer = optimizer.momentum_buffer
    return (
        state
        | kept
        | {
            "arrays": (id(flat.data), id(flat.grad), flat.version),
            "momentum": None if buffer is None else buffer.tobytes(),
            "methods": [path for path, layer in net.walk() if {"forward", "backward"} & set(vars(layer))],
        }
    )


@pytest.mark.parametrize(
    "stage", ["new", "between forward and backward", "after a step", "in evaluation", "mixed"]
)
def test_diagnosing_changes_nothing(stage):
    net, loss = plain(batch_norm=True), SoftmaxCrossEntropy()
    optimizer = SGD(net.parameters(), 0.02, 0.9)
    net.parameters()["features.0.weight"].data  # noqa: B018  so that the weights are there
    if stage != "new":
        loss.forward(net.forward(X), Y)
    if stage in ("after a step", "in evaluation"):
        net.backward(loss.backward())
        optimizer.step()
    if stage == "in evaluation":
        net.eval()
    if stage == "mixed":
        net.features[1].eval()
    before = everything(net, optimizer)
    diagnose(net, X, Y, optimizer=optimizer)
    assert everything(net, optimizer) == before
    if stage == "between forward and backward":
        net.backward(loss.backward())


def test_nothing_changes_either_where_the_network_fails():
    class Fails(ReLU):
        def backward(self, dy):
            raise ArithmeticError("no")

    net = Sequential(Conv2d(3, 8), BatchNorm2d(8), Fails(), Flatten(), Linear(8192, 10))
    optimizer = SGD(net.parameters(), 0.1)
    net[0].weight.data  # noqa: B018
    before = everything(net, optimizer)
    with pytest.raises(ArithmeticError):
        diagnose(net, X, Y)
    assert everything(net, optimizer) == before


# In training


def prepare(folder, diagnosing, engine=None, epochs=2, lr=0.02, batch_norm=True):
    net = vgg11(**SMALL | {"width": 0.0625, "batch_norm": batch_norm})
    how = {"normalisation": NORMALISATION, "seed": 3}
    augmentation = Augmentation.named("crop-flip")
    train_loader = Loader(
        PICTURES.train_images[:96], LABELS[:96], 32, shuffle=True, augmentation=augmentation, **how
    )
    validation = Loader(PICTURES.test_images[:32], PICTURES.test_labels[:32], 32, shuffle=False, **how)
    optimizer = SGD(net.parameters(), lr, 0.9, weight_decay=1e-3)
    schedule = Cosine(lr, steps=6, warmup=1) if lr < 1 else Constant(lr)
    trainer = Trainer(
        net,
        optimizer,
        schedule,
        train_loader,
        validation,
        RunDirectory(folder),
        engine=engine,
        diagnose=diagnosing,
    )
    if diagnosing:
        trainer.doctor.every = 2
    return trainer


def left_behind(folder):
    tensors, header = read_tensors(folder / "state.safetensors")
    progress = json.loads(header)
    log = [{k: v for k, v in row.items() if "second" not in k} for row in progress.pop("log")]
    return {name: array.tobytes() for name, array in tensors.items()}, progress, log


@pytest.mark.parametrize("engine", ["plan", "layers"])
def test_a_run_with_the_doctor_ends_with_the_same_bits_also_after_a_resume(tmp_path, engine, capsys):
    prepare(tmp_path / "without", False, engine).fit(2)
    prepare(tmp_path / "with", True, engine).fit(2)
    prepare(tmp_path / "resumed", True, engine).fit(1)
    again = prepare(tmp_path / "resumed", True, engine)
    again.resume()
    again.fit(2)
    expected = left_behind(tmp_path / "without")
    assert left_behind(tmp_path / "with") == expected
    assert left_behind(tmp_path / "resumed") == expected
    assert not (tmp_path / "without" / "diagnosis.json").exists()
    assert [found.step for found in read(tmp_path / "with")] == [0, 2, 4, 6]
    assert [found.step for found in read(tmp_path / "resumed")] == [0, 2, 3, 4, 6]
    assert capsys.readouterr().out.count("Diagnosis at step 2: ") == 2


def test_what_was_found_after_the_state_is_found_again_after_a_resume(tmp_path):
    prepare(tmp_path, True).fit(1)
    found = read(tmp_path)
    late = Diagnosis(5, 1.0, 0.5, 32, 10, [])
    RunDirectory(tmp_path).write_diagnoses([d.as_dict() for d in (*found, late)])
    trainer = prepare(tmp_path, True)
    trainer.resume()
    assert trainer.doctor.diagnoses == found
    trainer.fit(1)
    assert read(tmp_path)[: len(found)] == found


def test_the_first_look_has_more_images_than_the_later_ones(tmp_path):
    prepare(tmp_path, True).fit(1)
    assert [found.images for found in read(tmp_path)] == [64, 32, 32]


def test_a_run_that_fails_says_why_first(tmp_path, capsys):
    with pytest.raises(ArithmeticError), np.errstate(all="ignore"):
        prepare(tmp_path, True, lr=1e6, batch_norm=False).fit(2)
    assert "NOT FINITE: " in capsys.readouterr().out
    assert names(read(tmp_path)[-1]) == ["not finite"]


def test_a_cleared_run_holds_no_diagnosis(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_diagnoses([])
    assert read(tmp_path) == []
    run.clear()
    assert not (tmp_path / "diagnosis.json").exists()


# On disk


def test_a_diagnosis_survives_json():
    row = Row("0", "Conv2d", float("nan"), float("inf"), 0.5, None, 1e-3)
    verdict = Verdict("not finite", "", "It is NaN.", "Lower the rate.")
    found = Diagnosis(3, float("nan"), 0.1, 64, 10, [row], [verdict])
    again = Diagnosis.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False)))
    assert str(again) == str(found) and again.verdicts == [verdict] and again.rows[0].signal == float("inf")
    healthy = diagnose(plain(), X, Y, lr=0.01)
    assert Diagnosis.from_dict(json.loads(json.dumps(healthy.as_dict()))) == healthy


@pytest.mark.parametrize("text", ["{", "[1]", '[{"step": 1}]', "3", '{"a": 1}'])
def test_a_damaged_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "diagnosis.json").write_text(text)
    with pytest.raises(RunError, match="diagnosis.json is damaged"):
        read(tmp_path)


def test_a_run_without_diagnoses_has_none(tmp_path):
    assert read(tmp_path) == []
