"""The doctor: its numbers are right, it changes no bit of a run, and what it finds is kept with the run."""

import json

import numpy as np
import pytest

from scratchnet.data import Augmentation, Loader
from scratchnet.doctor import Diagnosis, Doctor, Row, Verdict, diagnose, read
from scratchnet.functional import softmax
from scratchnet.layers import BatchNorm2d, Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import vgg11
from scratchnet.optim import SGD, Constant, Cosine
from scratchnet.tensorfile import read_tensors
from scratchnet.training import RunDirectory, RunError, Trainer
from tests.fakes.faults import IMAGES, LABELS, NORMALISATION, SHAPES, SMALL, X, Y, plain, quick


def names(diagnosis):
    return [verdict.name for verdict in diagnosis.verdicts]


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


def test_any_network_of_layers_is_observed_also_one_that_branches():
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
        SHAPES.train_images[:96], LABELS[:96], 32, shuffle=True, augmentation=augmentation, **how
    )
    validation = Loader(SHAPES.test_images[:32], SHAPES.test_labels[:32], 32, shuffle=False, **how)
    optimizer = SGD(net.parameters(), lr, 0.9, weight_decay=1e-3)
    schedule = Cosine(lr, steps=6, warmup=1) if lr < 1 else Constant(lr)
    observers = [Doctor(every=2)] if diagnosing else []
    run = RunDirectory(folder)
    return Trainer(
        net, optimizer, schedule, train_loader, validation, run, engine=engine, observers=observers
    )


def left_behind(folder):
    tensors, header = read_tensors(folder / "state.safetensors")
    progress = json.loads(header)
    for of_this_run in ("run", "seconds"):  # its identity, and how long it has taken
        progress.pop(of_this_run)
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
    assert trainer.observers[0].diagnoses == found
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
