"""Runs that a Trainer made in Python: the report shows them, and the command line goes on with them."""

import json

import numpy as np
import pytest

from scratchnet import data, models, optim
from scratchnet.checkpoint import load
from scratchnet.cli.train import main as train
from scratchnet.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.report import RunReport
from scratchnet.training import RunDirectory, Trainer
from tests.fakes.pages import Page

IMAGES = data.shapes10(n_train=80, n_test=20)


@pytest.fixture(autouse=True)
def builtin_images_are_few(monkeypatch, tmp_path):
    monkeypatch.setattr(data.named, "shapes10", lambda: IMAGES)
    monkeypatch.chdir(tmp_path)


def loaders(seed=0, **how):
    learn, validate = data.divide(IMAGES, validation=20, seed=seed)
    how |= {
        "normalisation": data.Normalisation.of(IMAGES.train_images, learn),
        "batch_size": 16,
        "seed": seed,
    }
    of = IMAGES.train_images, IMAGES.train_labels
    changes = data.Augmentation(flip=True)
    return (
        data.Loader(*of, indices=learn, shuffle=True, augmentation=changes, **how),
        data.Loader(*of, indices=validate, shuffle=False, **how),
    )


HEADER = {"data": IMAGES.name, "class_names": IMAGES.class_names}


def trainer(folder, epochs=3, header=HEADER, net=None, **settings):
    net = net or models.vgg11(10, 32, width=0.0625, classifier_width=16, batch_norm=True)
    images = settings.pop("images", None) or loaders()
    rate = settings.pop("rate", None) or optim.schedule("one-cycle", 0.05, epochs * len(images[0]))
    optimizer = settings.pop("optimizer", None) or optim.SGD(net.parameters(), 0.05, 0.9, nesterov=True)
    return Trainer(
        net, optimizer, rate, *images, RunDirectory(folder, header=header), observers=(), **settings
    )


def other_network():
    return Sequential(Conv2d(3, 8), ReLU(), MaxPool2d(4), Flatten(), Linear(8 * 8 * 8, 10))


def page_of(run, **how):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plot)")
    report = RunReport(run, **how)
    report.write()
    return Page(report.output.read_text(encoding="utf-8"))


def stopped_after(epochs, of, folder, **settings):
    """Leave a run that was to have so many epochs, as if it had been killed before the next."""
    begun = trainer(folder, of, **settings)
    with begun.running(of) as remaining:
        for epoch in remaining[:epochs]:
            begun.train_epoch(epoch)
            begun.finish_epoch(epoch)
    return begun


def resumed(capsys, monkeypatch, run, *more):
    """Return what `scratchnet train --resume` prints."""
    monkeypatch.setattr("sys.argv", ["train", "--resume", "--run-dir", str(run), "--no-test", *more])
    train()
    return capsys.readouterr()


# The report


def test_the_report_shows_a_run_that_was_made_in_python_with_its_images():
    trainer("run", 1).fit(1)
    shown = page_of("run")
    head = shown.all("header")[0].text
    assert "vgg11 with batch normalisation" in head and "shapes10" in head and "1 of 1" in head
    assert [e.attributes["id"] for e in shown.all("section")] == (
        ["curves", "doctor", "confusions", "mistakes", "filters", "maps", "gradcam", "settings"]
    )
    settings = shown.section("settings")
    assert "made in Python" in settings and "one-cycle" in settings and "train_cifar.py" not in settings


def test_of_a_network_and_images_that_have_no_name_it_shows_what_there_is():
    images = loaders()
    Trainer(
        net := other_network(),
        optim.SGD(net.parameters(), 0.05),
        lambda step: 0.05,
        *images,
        run="run",
        observers=(),
    ).fit(1)
    shown = page_of("run")
    assert "Sequential" in shown.all("header")[0].text
    assert "does not name its data set" in shown.section("confusions")
    assert "curves" in [e.attributes["id"] for e in shown.all("section")]


def test_images_that_are_not_those_of_the_run_are_not_shown_as_if_they_were():
    test = data.Loader(IMAGES.test_images, IMAGES.test_labels, 16, shuffle=False)
    trainer("run", 1, images=(loaders()[0], test)).fit(1)
    assert "its images cannot be told from its options" in page_of("run").section("confusions")


def test_the_weights_know_how_their_images_were_normalised():
    made = trainer("run", 1)
    made.fit(1)
    info = load("run/best.safetensors").info
    assert info["mean"] == list(made.train.normalisation.mean)
    assert info["std"] == list(made.train.normalisation.std)


# Going on


def test_the_command_line_goes_on_with_a_run_from_python_bit_for_bit(capsys, monkeypatch):
    trainer("whole").fit(3)
    stopped_after(1, 3, "run")
    said = resumed(capsys, monkeypatch, "run")
    assert "Epoch 2/3" in said.out and "Epoch 3/3" in said.out and "other settings" not in said.out + said.err
    expected, actual = load("whole/last.safetensors"), load("run/last.safetensors")
    assert all(np.array_equal(p.data, actual.parameters()[n].data) for n, p in expected.parameters().items())


def test_python_goes_on_with_a_run_that_the_command_line_resumed(capsys, monkeypatch):
    trainer("whole").fit(3)
    stopped_after(1, 3, "run")
    resumed(capsys, monkeypatch, "run", "--epochs", "2")
    again = trainer("run")
    again.resume()
    again.fit(3)
    assert [row["epoch"] for row in RunDirectory("run").read_log()] == [1, 2, 3]


def own_rate(step):
    return 0.05


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"net": other_network}, "its network is none that --arch names"),
        ({"rate": lambda: own_rate}, "its schedule is none that --schedule names"),
        ({"header": dict}, "does not say which data it was trained on"),
        ({"header": lambda: {"data": "pets"}}, "its data, pets, are none that --data names"),
        ({"images": lambda: loaders()[:1] * 2}, "its validation images are not those"),
    ],
)
def test_where_it_cannot_it_says_why_and_what_to_do(capsys, monkeypatch, settings, reason):
    stopped_after(1, 2, "run", **{name: make() for name, make in settings.items()})
    before = {path.name: path.read_bytes() for path in RunDirectory("run").files if path.exists()}
    with pytest.raises(Exception, match="was made in Python") as caught:
        resumed(capsys, monkeypatch, "run")
    assert reason in str(caught.value) and "make the same Trainer in Python" in str(caught.value)
    assert before == {path.name: path.read_bytes() for path in RunDirectory("run").files if path.exists()}


def test_a_data_set_that_has_changed_since_is_noticed(capsys, monkeypatch):
    stopped_after(1, 2, "run")
    monkeypatch.setattr(data.named, "shapes10", lambda: data.shapes10(n_train=90, n_test=20))
    with pytest.raises(Exception, match="made in Python, and its training images are not those"):
        resumed(capsys, monkeypatch, "run")


# What is written


def test_a_run_that_failed_before_it_saved_anything_may_be_begun_otherwise():
    stopped_after(0, 2, "run")
    trainer("run", 1, optimizer=None, net=other_network()).fit(1)
    assert json.loads(open("run/config.json").read())["network"] == "Sequential"


def test_a_configuration_that_the_program_wrote_is_left_alone():
    made = trainer("run", 1)
    made.run.write_config({"mine": 1})
    made.fit(1)
    assert RunDirectory("run").read_config() == {"mine": 1}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"optimizer": "adamw"}, {"optimizer": "adamw", "weight_decay": 0.01}),
        ({"clip_norm": 2.0, "on_nan": "rollback"}, {"clip_norm": 2.0, "on_nan": "rollback"}),
        ({"freeze": "features"}, {"freeze": "features"}),
    ],
)
def test_its_options_are_those_of_the_trainer(settings, expected):
    net = models.vgg11(10, 32, width=0.0625, classifier_width=16)
    if "freeze" in settings:
        net.freeze(settings.pop("freeze"))
    if "optimizer" in settings:
        settings["optimizer"] = optim.AdamW(net.parameters())
    trainer("run", 1, net=net, **settings).fit(1)
    config = RunDirectory("run").read_config()
    assert expected == {name: config["options"][name] for name in expected} and config["python"] == []
