"""``scratchnet COMMAND``: the same programs by one command."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from scratchnet import checkpoint, data
from scratchnet.cli.__main__ import COMMANDS, main
from scratchnet.models import vgg11

TRAIN = (
    "train --backend numpy --data shapes10 --subset 64 --validation 60 --arch vgg11 --width 0.0625 "
    "--classifier-width 16 --epochs 1 --run-dir run"
)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run ``scratchnet ...`` in an empty folder; return status, output and errors."""
    monkeypatch.chdir(tmp_path)
    shapes = data.shapes10(n_train=200, n_test=20)
    monkeypatch.setattr(data.named, "shapes10", lambda: shapes)

    def call(text):
        monkeypatch.setattr(sys, "argv", ["/somewhere/scratchnet", *text.split()])
        try:
            main()
            status = 0
        except SystemExit as left:
            status = left.code
        return status, *capsys.readouterr()

    return call


def test_without_a_command_it_lists_them(command):
    for text in ("", "--help"):
        status, out, _ = command(text)
        assert status == 0 and all(f"  {name}" in out for name in COMMANDS)


def test_an_unknown_command_is_one_sentence_and_status_2(command):
    status, out, err = command("paint")
    assert (status, out) == (2, "") and err.startswith("scratchnet: there is no command 'paint': say train,")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_fits_one_screen(command, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = command(f"{name} --help")
    lines = out.splitlines()
    assert status == 0 and len(lines) <= 30 and max(map(len, lines)) <= 80
    if "--help-all" in out:
        shown = command(f"{name} --help-all")[1]
        assert all(option in shown for option in re.findall(r"^  (--[a-z-]+)", out, re.M))
        assert len(command(f"{name} --help-all")[1].splitlines()) > len(lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_under_its_own_name(command, name):
    status, out, _ = command(f"{name} --help")
    assert status == 0 and "usage: " in out


def test_a_bad_option_is_one_sentence_that_names_the_command(command):
    status, out, err = command("train --epochs none")
    assert (status, out) == (2, "")
    assert err.startswith("scratchnet train: --epochs: must be a whole number") and err.count("\n") == 1


def test_it_trains_and_names_an_image_as_the_examples_do(command):
    status, out, err = command(TRAIN)
    assert (status, err) == (0, "") and "Epoch 1/1" in out and "Test Acc: " in out
    config = json.loads(Path("run/config.json").read_text())
    assert config["command"] == f"scratchnet {TRAIN}"
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save("red.png")
    status, out, err = command("evaluate run/best.safetensors red.png")
    assert status == 0 and out.strip() in data.shapes10().class_names and err.startswith("Device: ")


def test_the_example_and_the_command_do_the_same(command, monkeypatch):
    import runpy

    command(TRAIN)
    example = Path(__file__).parents[2] / "examples" / "train_cifar.py"
    monkeypatch.setattr(
        sys, "argv", ["train_cifar.py", *TRAIN.replace("run-dir run", "run-dir two").split()[1:]]
    )
    with pytest.raises(SystemExit):
        runpy.run_path(str(example), run_name="__main__")
    assert Path("run/last.safetensors").read_bytes() == Path("two/last.safetensors").read_bytes()
    assert set(os.listdir("run")) == set(os.listdir("two"))


def test_info_shows_a_file_or_the_machine(command):
    assert command("info")[1].startswith("numpy: CPU")
    checkpoint.save("model", vgg11(3, 32, width=0.0625, classifier_width=16), class_names=["a", "b", "c"])
    status, out, _ = command("info model")
    assert status == 0 and "features.0" in out and "class_names: a, b, c" in out


def test_an_example_of_one_screen_has_the_loop_on_it():
    text = (Path(__file__).parents[2] / "examples" / "train_cifar.py").read_text()
    assert len(text.splitlines()) < 60
    loop = [
        text.index(word) for word in ("net.forward(", "loss.forward(", "net.backward(", "optimizer.step()")
    ]
    assert loop == sorted(loop)
