"""What comes from a file or a server is shown on a terminal, never obeyed; messages are one line."""

import subprocess
import sys

import numpy as np
import pytest

from scratchnet import checkpoint, tables
from scratchnet.checkpoint import FormatError
from scratchnet.cli.program import complain
from scratchnet.data import DataError
from scratchnet.models import vgg11
from scratchnet.training import RunError
from scratchnet.training.console import Progress
from scratchnet.training.evaluation import confusion_table
from scratchnet.untrusted import LONGEST, FileError, printable

HOSTILE = "cat\x1b[2J\x1b]0;owned\x07\r\nAccuracy: 1.0\x9b31m\u202egnp.\u2028\x00\x7f"
NAMES = ["Käfer", "猫", "قطة", "گربه\u200cها", "👩\u200d🔬", "a b", "x\udcff"]


def harmless(text):
    return all(c.isprintable() or c in "\n\u200c\u200d" or "\udc80" <= c <= "\udcff" for c in text)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_any_language_stay_as_they_are(name):
    assert printable(name) == name


def test_what_a_terminal_would_obey_is_spelt_out():
    shown = printable(HOSTILE)
    assert shown.isprintable() and shown.startswith("cat\\x1b[2J\\x1b]0;owned\\x07\\r\\nAcc")
    assert "\\x9b" in shown and "\\u202e" in shown and "\\u2028" in shown


@pytest.mark.parametrize("kind", [FileError, DataError, FormatError, RunError])
def test_errors_about_files_are_one_harmless_line(kind):
    assert str(kind(HOSTILE)).isprintable()
    assert len(str(kind("x" * 10**6))) < LONGEST + 10
    assert kind("a sentence").args == ("a sentence",)


def test_tables_and_complaints_are_harmless(capsys):
    assert harmless(confusion_table(np.eye(2, dtype=int), [HOSTILE, "dog"]))
    assert len(tables.aligned([["a\nb", "c"], ["d", "e"]])) == 2
    complain(HOSTILE)
    Progress(HOSTILE, 1).close()
    assert harmless(capsys.readouterr().err) and "\n" not in capsys.readouterr().err.rstrip("\n")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    net = vgg11(2, 32, width=0.0625, classifier_width=8)
    names = [HOSTILE, "dog\x1b[31m"]
    checkpoint.save(path, net, class_names=names, mean=[0.5] * 3, std=[0.2] * 3, data=HOSTILE)
    return path


def evaluate(*arguments):
    command = [sys.executable, "-m", "scratchnet", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="surrogateescape")


@pytest.mark.slow
def test_names_of_classes_and_files_are_harmless_on_the_terminal(model, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "\x1b[2J\n.png")
    (folder / "no\x1b[2J\r.png").write_text("no image")
    done = evaluate(model, folder, "--top", 2)
    assert done.returncode == 2 and "\\x1b" in done.stdout and "\\x1b" in done.stderr
    assert harmless(done.stdout) and harmless(done.stderr)
    assert done.stdout.count("\n") == 1
    refused = evaluate(model, "x.png", "--\x1b[2J")
    assert refused.returncode == 2 and harmless(refused.stderr)


def test_names_of_layers_in_a_file_are_refused_if_they_are_none(tmp_path):
    from scratchnet.rebuild import build

    relu = {"class": "ReLU", "settings": {}}
    with pytest.raises(ValueError, match="no name of a layer"):
        build({"class": "Chain", "layers": {"\x1b[2J": relu}})
