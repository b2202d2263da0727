"""The trainer: the article's log, and where a loss stops being finite."""

import csv
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet.checkpoint import load
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import Constant
from scratchnet.training import (
    NotFinite,
    Observer,
    RunError,
    Trainer,
    evaluate,
)
from scratchnet.training.console import duration
from scratchnet.training.finite import why_not_finite
from scratchnet.training.rundir import COLUMNS
from tests.fakes import tiny
from tests.fakes.runs import FILES, NORMALISATION, fit, prepare

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


def test_observers_hear_everything_in_order_and_without_them_nothing_is_printed(capsys):
    class Recorder(Observer):
        events = []

        def __getattribute__(self, name):
            if not name.startswith("on_"):
                return super().__getattribute__(name)
            return lambda trainer, *arguments: self.events.append((name, *arguments[:1]))

    trainer = prepare(n=32)
    trainer.observers = (Recorder(),)
    trainer.fit(1)
    assert [name for name, *_ in Recorder.events] == [
        *("on_begin", "on_epoch_begin", "on_loss", "on_step", "on_loss", "on_step", "on_validation_begin"),
        *("on_validation_step", "on_validation_step", "on_epoch_end", "on_end"),
    ]
    steps = [event[1] for event in Recorder.events if event[0] == "on_step"]
    assert steps == [0, 1] and ("on_begin", 1) in Recorder.events
    assert capsys.readouterr() == ("", "")


def test_observers_hear_of_an_error():
    class Recorder(Observer):
        def on_error(self, trainer, error):
            self.error = error

    trainer, recorder = prepare(batch_norm=False), Recorder()
    trainer.observers = (recorder,)
    trainer.net.features[3].weight.data[0, 0, 0, 0] = np.nan
    with pytest.raises(NotFinite) as caught:
        trainer.fit(1)
    assert recorder.error is caught.value


def test_a_run_may_be_given_by_its_path(tmp_path):
    made = prepare()
    trainer = Trainer(made.net, made.optimizer, made.schedule, made.train, made.validation, tmp_path / "run")
    trainer.fit(1)
    assert (tmp_path / "run" / "last.safetensors").exists()
    with pytest.raises(RunError, match="has no run directory to resume from"):
        made.resume()


def test_a_run_without_a_directory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare().fit(1)
    assert os.listdir(tmp_path) == []


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


# Going back from NaN, and clipping


class Notices(Observer):
    def __init__(self):
        self.said = []

    def on_notice(self, trainer, sentence):
        self.said.append(sentence)


def exploding(folder=None, times=1, step=4, **settings):
    """A tiny run whose learning rate is far too high at one step, the first times that it gets there."""
    left = [times]

    def rate(made):
        if made == step and left[0] > 0:
            left[0] -= 1
            return 1e38
        return 0.02

    notices = Notices()
    return tiny.prepare(folder, schedule=rate, observers=[notices], **settings), notices


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("step", [4, 5])  # shows in the next step's loss, or only in validation
def test_a_loss_that_is_nan_is_rolled_back_with_half_the_rate(tmp_path, step):
    trainer, notices = exploding(tmp_path, step=step, on_nan="rollback")
    trainer.fit(3)
    assert [row["epoch"] for row in trainer.log] == [1, 2, 3]
    assert [row["lr"] for row in trainer.log] == [0.02, 0.01, 0.01]
    (said,) = notices.said
    assert re.search(
        r"; back to epoch 2, step 1, with 0.5 of the schedule's learning rate \(1 of at most 3", said
    )
    resumed = tiny.prepare(tmp_path, schedule=Constant(0.02))
    resumed.resume()
    assert (resumed.rate_factor, resumed.rollbacks) == (0.5, 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_it_is_rolled_back_three_times_at_most(tmp_path):
    trainer, notices = exploding(tmp_path, times=99, on_nan="rollback")
    with pytest.raises(NotFinite, match=r"rolled back 3 times"):
        trainer.fit(3)
    assert [sentence.split(" of at most")[0][-1] for sentence in notices.said] == ["1", "2", "3"]
    tiny.prepare(tmp_path).resume()  # what is on disk is whole


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_by_default_it_stops(tmp_path):
    with pytest.raises(NotFinite):
        exploding(tmp_path)[0].fit(3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    def rate(made):
        if made == 4:  # so that the loss of this step is finite, and the weights after it are not
            trainer.optimizer.kept["momentum"].fill(np.inf)
        return 0.02

    trainer = tiny.prepare(tmp_path, schedule=rate, save_minutes=0.0)
    with pytest.raises(NotFinite):
        trainer.fit(3)
    resumed = tiny.prepare(tmp_path)
    resumed.resume()
    assert (len(resumed.log), resumed.batch) == (1, 1)


def test_gradients_are_clipped_by_their_norm_together():
    sizes, (free, clipped) = [], (tiny.prepare(clip_norm=c, schedule=Constant(0.0)) for c in (None, 0.01))
    for trainer in (free, clipped):
        trainer.fit(1)
        gradients = [p.grad.ravel() for p in trainer.net.parameters().values()]
        sizes.append(float(np.linalg.norm(np.concatenate(gradients))))
    assert sizes[0] > 0.1 and sizes[1] == pytest.approx(0.01, rel=1e-3)


# Arguments


def test_a_learning_rate_that_is_set_by_hand_is_not_overwritten_in_silence():
    trainer = tiny.prepare(schedule=Constant(0.02))
    trainer.fit(1)
    trainer.optimizer.lr = 0.001
    with pytest.warns(
        UserWarning, match=r"optimizer.lr was set to 0.001, and the schedule's 0.02 takes its place"
    ):
        trainer.fit(2)


WRONG = {
    "net": (3, "net must be a layer"),
    "optimizer": ("SGD", "optimizer must be one of scratchnet.optim's"),
    "schedule": (0.1, "schedule must be a function of the step"),
    "train": ([1, 2], "train must be a data.Loader, not a list"),
    "validation": (None, "validation must be a data.Loader"),
    "run": (5, "run must be a path or a RunDirectory, not a int"),
    "loss": ("cross-entropy", "loss must be something with forward and backward"),
    "engine": (5, "engine must be something with forward and backward"),
    "observers": (5, "observers must be a list"),
    "on_nan": ("ignore", "on_nan must be 'stop' or 'rollback'"),
    "clip_norm": (-1, "clip_norm must be"),
    "save_minutes": (None, "save_minutes must be"),
}
ALSO_WRONG = [
    ("observers", [Observer], "not the class Observer"),
    ("observers", [print], "a list of training.Obs"),
]
ALSO_WRONG += [
    ("engine", "magic", "engine must be"),
    ("schedule", lambda step: float("nan"), r"schedule\(0\) must"),
]


@pytest.mark.parametrize(
    ("name", "value", "words"), [(name, *rest) for name, rest in WRONG.items()] + ALSO_WRONG
)
def test_every_argument_is_accepted_or_refused_at_the_door(name, value, words):
    made = tiny.prepare()
    given = {"net": made.net, "optimizer": made.optimizer, "schedule": made.schedule}
    given |= {"train": made.train, "validation": made.validation}
    with pytest.raises(ValueError, match=words):
        Trainer(**given | {name: value})


def test_an_optimizer_of_another_network_is_refused():
    made, other = tiny.prepare(), tiny.prepare()
    with pytest.raises(
        ValueError, match="optimizer has no parameter of this network: make it of net.parameters"
    ):
        Trainer(made.net, other.optimizer, made.schedule, made.train, made.validation)
