"""The options of the programs, and how a program fails: in one sentence, with a status."""

import json
import os
import re
import sys
from types import SimpleNamespace

import pytest

from scratchnet import cli, data
from scratchnet.backend import BackendError
from scratchnet.checkpoint import FormatError
from scratchnet.cli.datasets import write_images
from scratchnet.cli.options import DEFAULTS, DEMO, RECIPES, describe_run, open_run
from scratchnet.layers import Linear
from scratchnet.training import NotFinite, RunDirectory, RunError


def parse(text=""):
    return cli.parse_training(text.split())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In an empty folder, under the program's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["examples/train_cifar.py"])


def refusal(capsys, text):
    with pytest.raises(SystemExit) as caught:
        parse(text)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train_cifar.py: ")
    return lines[0].removeprefix("train_cifar.py: ")


# Options


def test_without_options_it_is_the_articles_task():
    options = parse()
    assert (options.arch, options.epochs, options.batch_size, options.image_size) == ("vgg16", 15, 128, 32)
    assert (options.backend, options.data, options.head, options.init) == ("auto", "auto", "flatten", "he")
    assert options.run_dir is None


def test_every_option_of_the_issue_is_there():
    text = (
        "--backend numpy --data cifar10 --data-dir D --arch vgg19 --batch-norm --width 0.5 --image-size 224 "
        "--subset 100 --epochs 2 --batch-size 8 --lr 0.1 --momentum 0 --weight-decay 0 --schedule step "
        "--augment none --seed 7 --run-dir R --head gap --classifier-width 64 --dropout 0 --init pytorch "
        "--label-smoothing 0.1 --validation 50"
    )
    options = vars(parse(text))
    assert options.keys() == DEFAULTS.keys()
    assert options["image_size"] == 224 and options["momentum"] == 0.0 and options["seed"] == 7
    assert options["batch_norm"] is True and options["data_dir"] == "D"


def test_the_demo_is_a_set_of_options_that_others_override():
    demo = parse("--demo")
    assert (demo.data, demo.run_dir, demo.demo) == ("shapes10", "runs/demo", True)
    assert parse("--demo --epochs 1 --run-dir other").epochs == 1
    assert parse("--demo --run-dir other").run_dir == "other"
    assert DEMO.keys() <= DEFAULTS.keys()


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("--epochs x", "--epochs: must be a whole number above zero, not 'x'"),
        ("--epochs 0", "--epochs: must be a whole number above zero, not '0'"),
        ("--epochs 1.5", "--epochs: must be a whole number above zero, not '1.5'"),
        ("--batch-size -3", "--batch-size: must be a whole number above zero, not '-3'"),
        ("--lr nan", "--lr: must be a number above zero, not 'nan'"),
        ("--lr inf", "--lr: must be a number above zero, not 'inf'"),
        ("--lr 0", "--lr: must be a number above zero, not '0'"),
        ("--width -1", "--width: must be a number above zero, not '-1'"),
        ("--momentum -0.1", "--momentum: must be a number of at least zero, not '-0.1'"),
        ("--dropout x", "--dropout: must be a number of at least zero, not 'x'"),
        ("--seed -1", "--seed: must be a whole number of at least zero, not '-1'"),
        ("--arch vgg12", "--arch: invalid choice: 'vgg12'"),
        ("--backend torch", "--backend: invalid choice: 'torch'"),
        ("--lr", "--lr: expected one argument"),
        ("--colour red", "unrecognized arguments: --colour red"),
    ],
)
def test_an_option_that_is_not_understood_is_refused_in_one_line(capsys, text, sentence):
    line = refusal(capsys, text)
    assert line.startswith(sentence)
    assert line.endswith("(--help-all lists all options)")


def test_help_lists_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help-all")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for name, default in DEFAULTS.items():
        assert f"--{name.replace('_', '-')}" in text
        if default is not None and not isinstance(default, bool):
            assert f"(default {default})" in text


# Going on


def begun(folder, text="", state=True):
    """A folder in which a run was begun with these options."""
    options = parse(f"{text} --run-dir {folder}")
    run = RunDirectory(folder)
    run.write_config(describe_run(options, "a CPU", {"data": "CIFAR-10"}, "an identity"))
    if state:
        run.state.write_bytes(b"")
    return run


def opened(text):
    """Open the folder for a small network."""
    return open_run(parse(text), Linear(3, 2), {})


def test_going_on_takes_the_options_of_the_run():
    begun("r", "--arch vgg11 --lr 0.3 --batch-norm --seed 5")
    options = parse("--resume --run-dir r")
    assert (options.arch, options.lr, options.batch_norm, options.seed) == ("vgg11", 0.3, True, 5)
    assert options.resume and options.run_dir == "r"
    assert options.data == "cifar10"  # what auto chose


@pytest.mark.parametrize(
    "text", ["--epochs 30", "--backend numpy", "--data-dir elsewhere", "--lr 0.3", "--data auto"]
)
def test_going_on_may_change_length_and_place_and_repeat_what_it_was_begun_with(text):
    begun("r", "--lr 0.3")
    option, value = text.split()
    changed = vars(parse(f"--resume --run-dir r {text}"))[option.strip("-").replace("-", "_")]
    assert str(changed) == value.replace("auto", "cifar10")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("--lr 0.5", "the run in r has --lr 0.3, not 0.5: leave --lr out to resume, or begin a new run"),
        ("--arch vgg11", "the run in r has --arch vgg16, not vgg11: leave --arch out to resume"),
        ("--batch-norm", "the run in r was begun without --batch-norm: leave --batch-norm out to resume"),
        ("--subset 5", "the run in r has no --subset: leave --subset out to resume"),
        ("--data shapes10", "the run in r has --data cifar10, not shapes10"),
        ("--demo", "the run in r was begun without --demo"),
    ],
)
def test_going_on_refuses_options_that_contradict_the_run(text, sentence):
    begun("r", "--lr 0.3")
    with pytest.raises(RunError, match=re.escape(sentence)):
        parse(f"--resume --run-dir r {text}")


def test_going_on_takes_the_newest_run_by_itself():
    for age, name in enumerate(("new", "old", "older")):
        os.utime(begun(f"runs/{name}").state, (1000 - age, 1000 - age))
    assert parse("--resume").run_dir == os.path.join("runs", "new")


def test_going_on_without_a_run_says_so():
    with pytest.raises(
        RunError, match="there is no run to resume in the folder runs: say which with --run-dir"
    ):
        parse("--resume")
    with pytest.raises(RunError, match="there is no run to resume: nowhere is no folder"):
        parse("--resume --run-dir nowhere")
    os.mkdir("empty")
    with pytest.raises(RunError, match="empty holds no run: it has no config.json"):
        parse("--resume --run-dir empty")
    (begun("deleted", state=False).path / "best.safetensors").write_bytes(b"the best")
    with pytest.raises(RunError, match="deleted has no state.safetensors to resume from: begin a new run in"):
        parse("--resume --run-dir deleted")
    assert not os.path.exists("nowhere") and os.listdir("empty") == []


def test_a_run_that_saved_nothing_yet_is_resumed_with_its_options():
    begun("first-epoch", "--lr 0.3", state=False)
    assert parse("--resume --run-dir first-epoch").lr == 0.3


def test_a_run_that_is_alive_is_neither_resumed_nor_joined():
    run = begun("r")
    with run.locked():
        for text in ("--run-dir r", "--resume --run-dir r", "--demo --run-dir r"):
            with pytest.raises(
                RunError, match=r"^r is in use by process \d+ on .*: wait until that has ended"
            ):
                opened(text)


def test_a_run_that_was_begun_before_there_was_an_option_goes_on_with_its_default():
    config = begun("r", "--lr 0.3").read_config()
    del config["options"]["label_smoothing"]
    RunDirectory("r").write_config(config)
    options = parse("--resume --run-dir r")
    assert (options.lr, options.label_smoothing) == (0.3, 0.0)


@pytest.mark.parametrize("config", ["{}", '{"options": 5}', "[]", "{"])
def test_a_damaged_configuration_is_named(config):
    begun("r").config.write_text(config)
    with pytest.raises(RunError, match="r.config.json is damaged"):
        parse("--resume --run-dir r")


# The run directory


def test_a_new_run_has_a_folder_of_its_own_named_after_network_and_time():
    assert re.fullmatch(r"vgg16-\d{8}-\d{6}", opened("").path.name)
    assert opened("--batch-norm --arch vgg11").path.name.startswith("vgg11-bn-")


def test_two_runs_that_begin_in_the_same_second_do_not_share_a_folder(monkeypatch):
    monkeypatch.setattr("time.strftime", lambda pattern: "20260101-000000")
    options = parse()
    names = [open_run(options, Linear(3, 2), {}).path.name, opened("").path.name, opened("").path.name]
    assert names == ["vgg16-20260101-000000", "vgg16-20260101-000000-2", "vgg16-20260101-000000-3"]
    assert options.run_dir == os.path.join("runs", names[0])  # as config.json will have it


def test_a_tilde_is_the_home_folder_wherever_an_option_is_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parse("--run-dir=~/r --data-dir=~/d")
    assert (options.run_dir, options.data_dir) == (str(tmp_path / "r"), str(tmp_path / "d"))
    assert RunDirectory("~/r").path == tmp_path / "r"


@pytest.mark.parametrize("left", ["state", "best", "last", "log"])
def test_a_folder_with_results_of_another_run_is_refused_and_left_alone(left):
    run = RunDirectory("r")
    getattr(run, left).write_bytes(b"precious")
    with pytest.raises(RunError, match="r holds a run: .*or choose another --run-dir"):
        opened("--run-dir r")
    with pytest.raises(RunError, match="r holds a run"):
        opened("--demo --run-dir r")  # the demo does not overwrite it either
    assert getattr(run, left).read_bytes() == b"precious" and len(os.listdir("r")) == 1


def test_a_run_that_never_finished_an_epoch_may_be_begun_again():
    begun("r", state=False)
    (RunDirectory("r").path / ".best.safetensors.x.partial").write_text("killed")
    assert opened("--run-dir r").path.name == "r"


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_a_set_of_options_that_others_override(name):
    recipe = parse(f"--recipe {name}")
    assert (recipe.data, recipe.arch, recipe.recipe) == ("cifar10", "vgg16", name) and recipe.epochs <= 15
    assert recipe.batch_norm == (name == "vgg16-bn")
    assert parse(f"--recipe {name} --epochs 1").epochs == 1


def test_the_demo_is_no_recipe(capsys):
    assert "two different runs" in refusal(capsys, "--demo --recipe article")


def test_the_demo_overwrites_a_demo():
    run = begun("r", "--demo")
    run.best.write_bytes(b"old")
    opened("--demo --run-dir r")
    assert os.listdir("r") == []


def test_the_demo_leaves_a_demo_alone_where_there_is_no_room_for_another(monkeypatch):
    run = begun("r", "--demo")
    run.best.write_bytes(b"old")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(RunError, match="MB left and a run of this network needs"):
        opened("--demo --run-dir r")
    assert run.best.read_bytes() == b"old" and run.config.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": "x"},
        {"validation": "x"},
        {"lr": "x"},
        {"label_smoothing": None},
        {"data_dir": 5},
        {"engine": 1},
        {"batch_norm": "yes"},
    ],
)
def test_options_of_a_run_that_are_of_the_wrong_kind_are_named(options):
    run = begun("r")
    config = run.read_config()
    config["options"] |= options
    run.write_config(config)
    with pytest.raises(RunError, match=f"config.json is damaged: its option {next(iter(options))} is"):
        parse("--resume --run-dir r")


def test_the_configuration_says_what_ran_where_and_how():
    config = json.loads(begun("r", "--lr 0.3").config.read_text())
    assert config["options"]["lr"] == 0.3 and config["options"]["resume"] is False
    assert config["device"] == "a CPU" and config["data"] == "CIFAR-10"
    assert config["command"].endswith("examples/train_cifar.py")
    assert {"scratchnet", "numpy", "python"} <= config["versions"].keys()


# Data


def test_auto_says_in_three_lines_that_it_trains_on_something_else(monkeypatch, capsys):
    def missing(folder, download=True):
        raise data.MissingDataError(f"{folder} has no CIFAR-10")

    monkeypatch.setattr(data, "cifar10", missing)
    monkeypatch.setattr(data.named, "shapes10", lambda: "the built-in set")
    assert cli.load_data("auto", "D") == "the built-in set"
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 3 and all(line.startswith("*** ") for line in lines)
    assert "shapes10 INSTEAD" in lines[0] and "D has no CIFAR-10" in lines[1]
    with pytest.raises(data.MissingDataError):
        cli.load_data("cifar10", "D")


def test_auto_does_not_hide_damaged_data(monkeypatch):
    def damaged(folder, download=True):
        raise data.DataError("data_batch_1.bin is too short")

    monkeypatch.setattr(data, "cifar10", damaged)
    with pytest.raises(data.DataError, match="too short"):
        cli.load_data("auto", "D")


@pytest.mark.parametrize("name", ["auto", "cifar10"])
def test_a_dry_run_downloads_nothing_and_takes_grey_images(name, monkeypatch, capsys):
    def missing(folder, download=True):
        assert not download
        raise data.MissingDataError(f"{folder} has no CIFAR-10")

    monkeypatch.setattr(data, "cifar10", missing)
    drawn = cli.load_data(name, "D", dry_run=True)
    assert drawn.train_images.shape == (50_000, 32, 32, 3) and len(drawn.test_labels) == 10_000
    assert "grey images" in capsys.readouterr().err


# How a program fails


@pytest.mark.parametrize(
    "error, status, sentence",
    [
        (BackendError("CuPy is not installed"), 2, "CuPy is not installed"),
        (data.DataError("data_batch_1.bin is missing"), 2, "data_batch_1.bin is missing"),
        (FormatError("x is damaged"), 2, "x is damaged"),
        (RunError("r holds a run"), 2, "r holds a run"),
        (ValueError("two\nlines   of text"), 2, "two lines of text"),
        (FileNotFoundError("there is no file x"), 2, "there is no file x"),
        (PermissionError(13, "Permission denied", "r/log.csv"), 2, "r/log.csv: Permission denied"),
        (OSError("x cannot be written: No space left on device"), 2, "x cannot be written: No space left"),
        (OSError(28, "No space left on device"), 2, "cannot write: No space left on device"),
        (MemoryError(), 2, "not enough memory: take less"),
        (NotFinite("the loss became nan"), 1, "the loss became nan"),
        (KeyboardInterrupt("after 2 of 4 epochs"), 130, "stopped after 2 of 4 epochs"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_a_failure_is_one_sentence_and_a_status(capsys, error, status, sentence):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run(main, memory_advice=": take less")
    out, err = capsys.readouterr()
    assert caught.value.code == status and out == ""
    assert len(err.splitlines()) == 1 and err.startswith(f"train_cifar.py: {sentence}")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


@pytest.mark.parametrize("result, status", [(None, 0), (0, 0), (2, 2)])
def test_the_status_is_what_main_returns(result, status):
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: result)
    assert caught.value.code == status


def test_the_demos_images_are_one_of_each_class(tmp_path):
    import numpy as np
    from PIL import Image

    images = np.zeros((4, 32, 32, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None] * 50
    drawn = SimpleNamespace(
        class_names=["cat", "dog"], test_images=images, test_labels=np.array([1, 1, 0, 0])
    )
    write_images(tmp_path / "pictures", drawn)
    assert sorted(os.listdir(tmp_path / "pictures")) == ["cat.png", "dog.png"]
    with Image.open(tmp_path / "pictures" / "cat.png") as image:
        assert image.size == (256, 256) and image.getpixel((9, 9)) == (100, 100, 100)


def test_precision_is_asked_for_by_name(capsys):
    assert cli.parse_training([]).precision is None, "each device has its own"
    assert cli.parse_training(["--precision", "bf16"]).precision == "bf16"
    with pytest.raises(SystemExit):
        cli.parse_training(["--precision", "fp8"])
    assert "fp32" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_configuration_with_half_a_normalisation_is_damaged(name):
    run = begun("r")
    config = run.read_config()
    run.write_config(config | {"options": config["options"] | {name: [0.5] * 3}})
    with pytest.raises(RunError, match="config.json is damaged: its options mean and std go together"):
        parse("--resume --run-dir r")
