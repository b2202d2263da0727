"""The trainer: the article's log, a run directory that is always whole, and resuming bit for bit."""

import csv
import io
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet import checkpoint, tensorfile
from scratchnet.checkpoint import FormatError, load
from scratchnet.data import Augmentation, Loader, Normalisation
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import vgg11
from scratchnet.optim import SGD, Constant, Cosine
from scratchnet.tensorfile import read_tensors, write_tensors
from scratchnet.training import (
    NotFinite,
    RunDirectory,
    RunError,
    Trainer,
    confusion_matrix,
    evaluate,
    predict,
)
from scratchnet.training import log as training_log
from scratchnet.training.evaluation import confusion_table, views_of
from scratchnet.training.log import Progress, duration
from scratchnet.training.rundir import COLUMNS
from scratchnet.training.trainer import why_not_finite

NORMALISATION = Normalisation((0.2,) * 3, (0.2,) * 3)
FILES = {"best.safetensors", "config.json", "last.safetensors", "log.csv", "state.safetensors"}


def pictures(n, seed):
    """Ten classes that a small network tells apart at once: each its own colour and place, and noise."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 10)
    images = rng.integers(0, 60, (n, 32, 32, 3))
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 4, :, label % 3] += 180
    return images.astype("uint8"), labels


def prepare(
    folder=None, seed=0, lr=0.02, n=40, schedule=None, momentum=0.9, calm=False, backend="numpy", **settings
):
    """Everything a run needs, with all that is random in it: order, weights, and unless calm dropout and
    augmentation."""
    size = {"width": 0.0625, "classifier_width": 16, "dropout": 0.0 if calm else 0.5, "batch_norm": True}
    net = vgg11(10, 32, seed=seed, **size | settings)
    how = {"normalisation": NORMALISATION, "seed": seed}
    augmentation = Augmentation.named("none" if calm else "crop-flip-cutout8")
    train = Loader(*pictures(n, 1), 16, shuffle=True, augmentation=augmentation, **how)
    validation = Loader(*pictures(20, 2), 16, shuffle=False, **how)
    optimizer = SGD(net.parameters(), lr, momentum, weight_decay=1e-3)
    schedule = schedule or Cosine(lr, steps=4 * len(train), warmup=2)
    run = None if folder is None else RunDirectory(folder)
    header = {"data": "stripes", "class_names": [f"stripe {k}" for k in range(10)]}
    return Trainer(net.to(backend), optimizer, schedule, train, validation, run, header=header)


def fit(folder, epochs, resume=False, **settings):
    trainer = prepare(folder, **settings)
    if resume:
        trainer.resume()
    else:
        trainer.run.write_config({})
    trainer.fit(epochs)
    return trainer


def bits(folder):
    """All that a run leaves, to be compared bit for bit, but for the seconds it took."""
    everything = {}
    for name in ("best", "last"):
        everything[name] = (folder / f"{name}.safetensors").read_bytes()
    tensors, header = read_tensors(folder / "state.safetensors")
    everything |= {name: array.tobytes() for name, array in tensors.items()}
    everything["header"] = without_seconds(json.loads(header))
    with open(folder / "log.csv", newline="") as file:
        everything["log"] = [without_seconds(row) for row in csv.DictReader(file)]
    return everything


def without_seconds(value):
    if isinstance(value, dict):
        skip = ("seconds", "images_per_second")
        return {key: without_seconds(item) for key, item in value.items() if key not in skip}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Four epochs without interruption: the folder."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    fit(folder, 4)
    return folder


# What a run prints and leaves


def test_the_log_is_the_articles_line_by_line(capsys):
    prepare().fit(2)
    number = r"\d+\.\d{4}"
    epoch = [r"-----", rf"train Loss: {number} Acc: {number}", rf"val Loss: {number} Acc: {number}"]
    expected = ["Epoch 1/2", *epoch, "Epoch 2/2", *epoch]
    expected += [r"Training complete in \d+m \d+s", r"Best val Acc: \d\.\d{6}"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0m 0s"), (59.9, "0m 59s"), (60, "1m 0s"), (7322, "122m 2s")]
)
def test_durations_are_written_as_the_article_does(seconds, text):
    assert duration(seconds) == text


def test_the_network_learns():
    trainer = prepare(n=160, schedule=Constant(0.02), calm=True)
    trainer.fit(5)
    assert trainer.log[-1]["train_loss"] < trainer.log[0]["train_loss"] / 2
    assert trainer.best_accuracy > 0.8


def test_a_run_directory_holds_what_it_says_and_nothing_else(uninterrupted):
    assert set(os.listdir(uninterrupted)) == FILES


def test_the_log_file_has_a_row_an_epoch(uninterrupted):
    with open(uninterrupted / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert COLUMNS[:5] == ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert COLUMNS[5:] == ("lr", "seconds", "images_per_second")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert all(np.isfinite([float(value) for value in row.values()]).all() for row in rows)


def test_last_is_the_last_and_best_is_the_best_by_validation(tmp_path, monkeypatch, capsys):
    accuracies = iter([0.3, 0.6, 0.6, 0.5])
    trainer = prepare(tmp_path / "run")
    monkeypatch.setattr(
        "scratchnet.training.trainer.evaluate",
        lambda *a, **k: SimpleNamespace(loss=1.0, accuracy=next(accuracies)),
    )
    weights = []
    for epochs in (1, 2, 3, 4):
        trainer.fit(epochs)
        weights.append(trainer.net.features[0].weight.data.copy())
    best, last = load(trainer.run.best), load(trainer.run.last)
    assert (best.info["epoch"], best.info["val_accuracy"]) == (2, 0.6)  # a tie goes to the earlier
    assert (best.features[0].weight.data == weights[1]).all()
    assert (last.info["epoch"], last.info["val_accuracy"]) == (4, 0.5)
    assert (last.features[0].weight.data == weights[3]).all()
    assert best.info["data"] == "stripes" and best.info["class_names"][9] == "stripe 9"
    assert "Best val Acc: 0.600000" in capsys.readouterr().out


def test_means_over_an_epoch_count_every_image_alike_also_those_of_the_short_last_batch():
    trainer = prepare(n=40, schedule=Constant(0.0), calm=True, batch_norm=False)  # nothing is learned
    loss, accuracy = trainer.train_epoch(0)
    result = evaluate(trainer.net, trainer.train)
    logits = trainer.net.forward(NORMALISATION.apply(trainer.train.images))
    assert loss == pytest.approx(result.loss, rel=1e-5)
    assert loss == pytest.approx(float(SoftmaxCrossEntropy().forward(logits, trainer.train.labels)), rel=1e-5)
    assert accuracy == result.accuracy == (logits.argmax(axis=1) == trainer.train.labels).mean()


def test_the_learning_rate_follows_the_schedule_step_by_step(monkeypatch):
    trainer, rates = prepare(schedule=lambda step: 0.001 * (step + 1)), []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (rates.append(trainer.optimizer.lr), step())
    trainer.fit(2)
    assert rates == pytest.approx([0.001 * (k + 1) for k in range(6)])


def test_a_run_without_a_directory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare().fit(1)
    assert os.listdir(tmp_path) == []


# Same seed, same bits; and going on


def test_the_same_seed_gives_the_same_bits(uninterrupted, tmp_path):
    fit(tmp_path / "again", 4)
    assert bits(tmp_path / "again") == bits(uninterrupted)


def test_another_seed_gives_other_bits(uninterrupted, tmp_path):
    fit(tmp_path / "other", 4, seed=1)
    ours, theirs = bits(tmp_path / "other"), bits(uninterrupted)
    assert ours["parameters.features.0.weight"] != theirs["parameters.features.0.weight"]
    assert ours["log"] != theirs["log"]


@pytest.mark.parametrize("stops", [(1,), (3,), (1, 2, 3)])
def test_going_on_equals_an_uninterrupted_run_bit_for_bit(uninterrupted, tmp_path, stops):
    fit(tmp_path / "run", stops[0])
    for epochs in (*stops[1:], 4):
        trainer = fit(tmp_path / "run", epochs, resume=True)
    assert bits(tmp_path / "run") == bits(uninterrupted)
    assert len(trainer.log) == 4


def test_going_on_works_without_momentum_and_batch_norm_too(tmp_path):
    plain = {"momentum": 0.0, "batch_norm": False}
    fit(tmp_path / "whole", 2, **plain)
    fit(tmp_path / "parts", 1, **plain)
    fit(tmp_path / "parts", 2, resume=True, **plain)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_going_on_works_on_another_array_library_too(tmp_path, device):
    fit(tmp_path / "whole", 2, backend=device)
    fit(tmp_path / "parts", 1, backend=device)
    trainer = fit(tmp_path / "parts", 2, resume=True, backend=device)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    assert trainer.net.backend.xp is device.xp
    x = np.zeros((2, 32, 32, 3), "float32")
    again = load(tmp_path / "parts" / "last.safetensors", device)
    assert (predict(again, x) == predict(trainer.net, x)).all()


def test_going_on_with_a_finished_run_changes_nothing_and_says_the_result(uninterrupted, capsys):
    before = {name: (uninterrupted / name).read_bytes() for name in FILES}
    fit(uninterrupted, 4, resume=True)
    assert {name: (uninterrupted / name).read_bytes() for name in FILES} == before
    out = capsys.readouterr().out
    assert "Epoch" not in out and out.startswith("Training complete in")


class Killed(BaseException):
    """What stands for a kill -9 here: nothing catches it."""


@pytest.mark.parametrize("moment", ["best", "last", "log", "state"])
def test_a_run_that_was_killed_while_writing_goes_on_bit_for_bit(
    uninterrupted, tmp_path, monkeypatch, moment
):
    """In epoch 3, before each of the files: those before it are of epoch 3, those after it of epoch 2."""
    trainer = prepare(tmp_path / "run")
    trainer.run.write_config({})
    trainer.fit(2)
    trainer.best_accuracy = min(trainer.best_accuracy, 0.0) if moment == "best" else trainer.best_accuracy

    def kill(*arguments, **keywords):
        raise Killed

    save = checkpoint.save
    with monkeypatch.context() as patch:
        if moment in ("best", "last"):
            wanted = getattr(trainer.run, moment)
            patch.setattr(checkpoint, "save", lambda p, *a, **k: kill() if p == wanted else save(p, *a, **k))
        else:
            patch.setattr(trainer.run, f"write_{moment}", kill)
        with pytest.raises(Killed):
            trainer.fit(3)
    fit(tmp_path / "run", 4, resume=True)
    assert bits(tmp_path / "run") == bits(uninterrupted)


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from tests.training import test_trainer
trainer = test_trainer.prepare(sys.argv[2])
trainer.run.write_config({})
trainer.fit(2)
step = trainer.optimizer.step
def stop_in_the_middle():
    step()
    print("in the middle", flush=True)
    time.sleep(60)
trainer.optimizer.step = stop_in_the_middle
trainer.fit(4)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_bit_for_bit(uninterrupted, tmp_path, how):
    if os.name == "nt":
        pytest.skip("needs POSIX signals")
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[2]), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.startswith("in the middle"):
                break
        child.send_signal(getattr(signal, how))
        _, errors = child.communicate(timeout=30)
    assert child.returncode != 0
    if how == "SIGINT":
        assert f"after 2 of 4 epochs; --resume --run-dir {tmp_path / 'run'} goes on from there" in errors
    fit(tmp_path / "run", 4, resume=True)
    assert bits(tmp_path / "run") == bits(uninterrupted)


def test_a_state_that_is_missing_damaged_or_of_another_network_is_named(tmp_path):
    run = tmp_path / "run"
    fit(run, 1)
    with pytest.raises(RunError, match="state.safetensors is damaged, or of another network"):
        fit(run, 2, resume=True, batch_norm=False)
    content = (run / "state.safetensors").read_bytes()
    (run / "state.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match="state.safetensors is damaged"):
        fit(run, 2, resume=True)
    write_tensors(run / "state.safetensors", *read_tensors(run / "last.safetensors"))
    with pytest.raises(RunError, match="state.safetensors is damaged, or of another network"):
        fit(run, 2, resume=True)
    fit(tmp_path / "other", 1)
    tensors, header = read_tensors(tmp_path / "other" / "state.safetensors")
    for momentum in (tensors["momentum"][:5], tensors["momentum"].astype("int32")):
        write_tensors(run / "state.safetensors", {**tensors, "momentum": momentum}, header)
        with pytest.raises(RunError, match="state.safetensors is damaged.*momentum is"):
            fit(run, 2, resume=True)
    (run / "state.safetensors").unlink()
    with pytest.raises(RunError, match="holds no run to go on with: it has no state.safetensors"):
        fit(run, 2, resume=True)


def test_a_run_whose_best_weights_are_gone_is_refused_before_it_trains(tmp_path):
    fit(tmp_path, 1)
    best = tmp_path / "best.safetensors"
    content = best.read_bytes()
    best.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=r"best\.safetensors"):
        fit(tmp_path, 2, resume=True)
    best.unlink()
    with pytest.raises(FileNotFoundError, match=r"best\.safetensors"):
        fit(tmp_path, 2, resume=True)


def test_a_run_that_has_done_more_epochs_is_not_made_shorter(tmp_path):
    fit(tmp_path, 2)
    trainer = prepare(tmp_path)
    with pytest.raises(RunError, match="has done 2 epochs already, more than 1"):
        trainer.resume(1)
    prepare(tmp_path).resume(2)


@pytest.mark.parametrize(
    "header",
    ["[]", "{", "{}", "[" * 100_000, '{"log": 5}']
    + [{"log": wrong} for wrong in (5, [1], [{}], "abc", {"epoch": 1})]
    + [{"best_accuracy": "high"}, {"generators": []}, {"generators": {"classifier.2": 1}}],
)
def test_a_state_whose_header_is_nonsense_is_named(tmp_path, header):
    fit(tmp_path, 1)
    tensors, before = read_tensors(tmp_path / "state.safetensors")
    header = header if isinstance(header, str) else json.dumps(json.loads(before) | header)
    write_tensors(tmp_path / "state.safetensors", tensors, header)
    with pytest.raises(RunError, match="state.safetensors is damaged"):
        fit(tmp_path, 2, resume=True)


# The run directory


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write to the folder .*file.run"):
        RunDirectory(tmp_path / "file" / "run")
    with pytest.raises(RunError, match="cannot write to the folder .*file: it is a file"):
        RunDirectory(tmp_path / "file")


def test_opening_a_run_directory_leaves_nothing_in_it(tmp_path):
    RunDirectory(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_who_only_looks_makes_and_writes_nothing(uninterrupted, tmp_path):
    with pytest.raises(RunError, match="there is no run: .*nowhere is no folder"):
        RunDirectory(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()
    before = {path.name: path.stat().st_mtime_ns for path in [uninterrupted, *uninterrupted.iterdir()]}
    RunDirectory(uninterrupted, read_only=True).read_log()
    assert before == {
        path.name: path.stat().st_mtime_ns for path in [uninterrupted, *uninterrupted.iterdir()]
    }


def test_the_log_is_read_as_it_was_written(uninterrupted, tmp_path):
    rows = RunDirectory(uninterrupted, read_only=True).read_log()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    run = RunDirectory(tmp_path)
    assert run.read_log() == []
    run.write_log(rows)
    assert run.read_log() == rows


@pytest.mark.parametrize(
    "text",
    [
        "no log at all",
        "epoch,loss\n1,2\n",
        f"{','.join(COLUMNS)}\n1,2,three\n",
        f"{','.join(COLUMNS)}\nnan{',1' * (len(COLUMNS) - 1)}\n",
        f"{','.join(COLUMNS)}\ninf{',1' * (len(COLUMNS) - 1)}\n",
        "\xff\xfe",
    ],
)
def test_a_damaged_log_is_named(tmp_path, text):
    (tmp_path / "log.csv").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match="log.csv is damaged"):
        RunDirectory(tmp_path).read_log()


def test_a_disk_without_room_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(RunError, match=r"has 0 MB left and a run of this network needs 1 MB: free some, or"):
        RunDirectory(tmp_path).require_space(prepare().net)


def test_going_on_needs_only_the_room_that_the_run_does_not_take_already(tmp_path, monkeypatch):
    trainer = fit(tmp_path, 1)
    weights = sum(p.size * 4 for p in trainer.net.parameters().values())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2 * weights))
    trainer.run.require_space(trainer.net)
    with pytest.raises(RunError, match="MB left and a run of this network needs"):
        RunDirectory(tmp_path / "another").require_space(trainer.net)


def test_a_disk_that_fills_up_is_named_and_leaves_the_epoch_before(tmp_path, monkeypatch):
    trainer = fit(tmp_path, 1)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "save_file", full)
    with pytest.raises(OSError, match="safetensors cannot be written: No space left on device"):
        trainer.fit(2)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    assert set(os.listdir(tmp_path)) == FILES


def test_what_a_killed_run_left_unfinished_can_be_removed(tmp_path):
    run = RunDirectory(tmp_path)
    for name in (".best.safetensors.x1.partial", ".config.json.x2.partial", "notes.txt", ".mine.partial"):
        (tmp_path / name).write_text("")
    run.remove_partial()
    assert set(os.listdir(tmp_path)) == {"notes.txt", ".mine.partial"}
    assert not run.has_results
    fit(tmp_path, 1)
    assert run.has_results
    run.clear()
    assert set(os.listdir(tmp_path)) == {"notes.txt", ".mine.partial"}


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match="config.json is damaged"):
        RunDirectory(tmp_path).read_config()


# NaN and infinity


def test_a_learning_rate_that_is_too_high_is_named_with_the_layer(tmp_path):
    fit(tmp_path, 1, lr=0.01, batch_norm=False)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    trainer = prepare(tmp_path, batch_norm=False, schedule=Constant(1e12))
    trainer.resume()
    with np.errstate(all="ignore"), pytest.raises(NotFinite) as caught:
        trainer.fit(3)
    message = str(caught.value)
    assert re.match(r"the loss became (nan|inf) in epoch 2, batch \d: it first appeared in ", message)
    assert re.search(r"(features|classifier)\.\d+", message)
    assert message.endswith("lower the learning rate, or warm it up")
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_a_network_that_an_epochs_last_step_spoils_is_not_saved(tmp_path):
    """The loss of the epoch's batches is finite; only validation shows it."""
    fit(tmp_path, 1, batch_norm=False)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    trainer = prepare(tmp_path, batch_norm=False, schedule=lambda step: 1e30 if step == 5 else 0.001)
    trainer.resume()
    words = (
        r"the loss is not finite on the validation images after epoch 2: it first appeared in .*features\.\d+"
    )
    with np.errstate(all="ignore"), pytest.raises(NotFinite, match=words):
        trainer.fit(2)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_running_statistics_that_are_not_finite_are_named():
    trainer = prepare()
    trainer.net.features[5].running_var[0] = np.nan
    with pytest.raises(NotFinite, match=r"it first appeared in the output of features.5 \(BatchNorm2d\)"):
        trainer.fit(1)


def test_weights_that_are_spoilt_are_named():
    trainer = prepare(batch_norm=False)
    trainer.net.features[3].weight.data[0, 0, 0, 0] = np.nan
    words = r"became nan in epoch 1, batch 1: it first appeared in features.3.weight, which is not finite"
    with pytest.raises(NotFinite, match=words):
        trainer.fit(1)


def test_images_that_are_not_finite_are_named():
    trainer = prepare(batch_norm=False)
    trainer.train.epoch = lambda epoch: iter([(np.full((4, 32, 32, 3), np.nan, "float32"), np.arange(4))])
    with pytest.raises(NotFinite, match="it first appeared in the images themselves: check the data"):
        trainer.fit(1)


def test_gradients_that_are_not_finite_are_named_by_the_layer_nearest_to_the_output():
    net = prepare(batch_norm=False).net
    for p in net.parameters().values():
        p.grad = np.zeros_like(p.data)
    for name in ("features.0.weight", "features.18.bias"):
        net.parameters()[name].grad = np.full_like(net.parameters()[name].data, np.nan)
        net.parameters()[name].data[...] = np.nan
    reason = why_not_finite(net, np.zeros((1, 32, 32, 3), "float32"))
    assert reason.startswith("it first appeared in the gradient of features.18.bias, one step before")


# Evaluation


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode_also_after_an_error(training):
    trainer = prepare()
    trainer.net.train(training)
    evaluate(trainer.net, trainer.validation)
    predict(trainer.net, np.zeros((1, 32, 32, 3), "float32"))
    assert all(layer.training is training for _, layer in trainer.net.walk())
    with pytest.raises(ValueError):
        predict(trainer.net, np.zeros((1, 8, 8, 3), "float32"))
    with pytest.raises(ZeroDivisionError):
        evaluate(trainer.net, trainer.validation, engine=SimpleNamespace(forward=lambda x: 1 / 0))
    assert all(layer.training is training for _, layer in trainer.net.walk())


def test_evaluation_changes_nothing_and_does_not_depend_on_the_batch_size():
    trainer = prepare()
    before = {name: array.copy() for name, array in trainer.net.buffers().items()}
    result = evaluate(trainer.net, trainer.validation)
    again = evaluate(
        trainer.net,
        Loader(*pictures(20, 2), 7, shuffle=False, normalisation=NORMALISATION),
    )
    assert all((before[name] == array).all() for name, array in trainer.net.buffers().items())
    assert (result.predictions == again.predictions).all()
    assert result.loss == pytest.approx(again.loss, rel=1e-5)
    assert result.accuracy == (result.predictions == result.labels).mean()
    assert (result.labels == trainer.validation.labels).all()


def test_the_ten_views_are_the_picture_and_four_shifts_of_a_32nd_each_with_its_mirror_image():
    x = np.random.default_rng(0).normal(size=(2, 64, 48, 3))
    found = list(views_of(x))
    assert len(found) == 10 and found[0] is x
    assert all(view.flags.c_contiguous and view.shape == x.shape for view in found)
    shifts = [(0, 0), (2, 2), (2, -2), (-2, 2), (-2, -2)]  # 64 / 32 pixels, down and right
    for (down, right), view, mirrored in zip(shifts, found[::2], found[1::2], strict=True):
        assert (mirrored == view[:, :, ::-1]).all()
        for h, w in np.ndindex(64, 48):
            inside = 0 <= h - down < 64 and 0 <= w - right < 48
            assert (view[:, h, w] == (x[:, h - down, w - right] if inside else 0)).all()


@pytest.mark.parametrize("views", [1, 2, 10])
def test_the_mean_of_the_logits_of_all_views_counts(views):
    trainer = prepare()
    net = trainer.net
    x = next(iter(trainer.validation.epoch(0)))[0]
    net.eval()
    logits = np.mean([net.forward(view) for view in list(views_of(x))[:views]], axis=0)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exp / exp.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predict(net, x, views=views), expected, rtol=1e-4)
    assert views == 1 or np.abs(predict(net, x) - expected).max() > 1e-4
    result = evaluate(net, trainer.validation, views=views)
    assert (result.predictions[: len(x)] == expected.argmax(axis=1)).all()


def test_another_number_of_views_is_refused():
    net = prepare().net
    with pytest.raises(ValueError, match="views must be one of 1, 2, 10, not 3"):
        predict(net, np.zeros((1, 32, 32, 3), "float32"), views=3)
    with pytest.raises(ValueError, match="views must be one of 1, 2, 10, not 0"):
        evaluate(net, Loader(*pictures(20, 2), 16, shuffle=False), views=0)


def test_evaluation_of_no_images_is_refused():
    with pytest.raises(ValueError, match="there are no images to evaluate on"):
        evaluate(prepare().net, Loader(*pictures(20, 2), 16, shuffle=False, indices=[]))


def test_probabilities_add_up_to_one():
    probabilities = predict(prepare().net, np.zeros((3, 32, 32, 3), "float32"))
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_confusion_matrix_counts_every_pair_also_of_classes_that_do_not_occur():
    matrix = confusion_matrix(np.array([0, 2, 2, 2]), np.array([0, 2, 2, 0]), 4)
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    lines = confusion_table(matrix, ["a", "b", "c", "d"]).splitlines()
    assert lines[2].endswith("-")  # no b among the images
    assert lines[3].endswith("66.7 %")
    assert len({len(line) for line in lines}) == 1


# Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Flushed(io.StringIO):
    """Remembers what had been flushed."""

    seen = ""

    def flush(self):
        self.seen = self.getvalue()


def test_off_a_terminal_progress_is_a_plain_line_a_minute_without_carriage_returns():
    out, clock = Flushed(), Clock()
    with Progress("epoch 3/15", 45_000, out, clock) as progress:
        for second in range(1, 151):
            clock.now = float(second)
            progress.update(100, loss=2.5 - second / 100)
    assert out.getvalue().splitlines() == [
        "epoch 3/15: 6,000 of 45,000 images, loss 1.9000, 100.0 images/s, 6m 30s left",
        "epoch 3/15: 12,000 of 45,000 images, loss 1.3000, 100.0 images/s, 5m 30s left",
    ]
    assert "\r" not in out.getvalue()
    assert out.seen == out.getvalue()


def test_off_a_terminal_an_epoch_of_less_than_a_minute_prints_nothing():
    out, clock = io.StringIO(), Clock()
    with Progress("epoch 1/2", 100, out, clock) as progress:
        clock.now = 59.0
        progress.update(100)
    assert out.getvalue() == ""


def test_on_a_terminal_progress_is_a_bar_with_loss_rate_and_time_left_that_goes_away():
    out = Terminal()
    with Progress("epoch 3/15", 1000, out) as progress:
        progress.bar.mininterval = 0
        for _ in range(4):
            time.sleep(0.01)
            progress.update(100, loss=1.2345)
    shown = out.getvalue()
    assert "\r" in shown and "\n" not in shown
    assert re.search(
        r"epoch 3/15:  40%\|.+\| 400/1000 images, loss 1\.2345, +\d+\.\d+ images/s, 00:0\d left", shown
    )
    assert shown.split("\r")[-2].strip() == "" or shown.endswith("\r")


@pytest.mark.parametrize("columns", [0, 60, 200])
def test_the_bar_is_as_wide_as_the_terminal_and_also_there_where_that_does_not_say(columns, monkeypatch):
    pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    with os.fdopen(terminal, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)  # tqdm asks only the standard streams for their size
        with Progress("epoch 1/1", 1000) as progress:
            progress.bar.mininterval = 0
            progress.update(500, loss=2.0)
    shown = b""
    while select.select([controller], [], [], 0.5)[0]:  # a read may return less than was written
        try:
            shown += os.read(controller, 10_000)
        except OSError:  # how Linux says that the other side is closed
            break
    os.close(controller)
    shown = shown.decode()
    assert "500/1000 images, loss 2.0000" in shown
    lines = [line for line in shown.split("\r") if "images" in line]  # not the blanks that wipe it out
    assert max(map(len, lines)) == pytest.approx(columns or 80, abs=2)


def test_the_bar_goes_away_when_training_stops_with_an_error():
    out = Terminal()
    with pytest.raises(ZeroDivisionError), Progress("epoch 1/1", 10, out):
        raise ZeroDivisionError
    assert out.getvalue().endswith("\r")


def test_every_line_of_the_log_is_flushed(monkeypatch):
    out = Flushed()
    monkeypatch.setattr(sys, "stdout", out)
    training_log.say("Epoch 1/15")
    assert out.seen == "Epoch 1/15\n"
