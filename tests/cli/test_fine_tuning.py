"""``scratchnet train --init-from``: weights to begin with, frozen parts, learning rates apart, resuming."""

import hashlib
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet import checkpoint, data
from scratchnet.cli.__main__ import main
from scratchnet.models import vgg11
from scratchnet.tensorfile import read_tensors
from tests.data.test_download import serve  # noqa: F401

TINY = "--backend numpy --data shapes10 --subset 64 --validation 64 --arch vgg11 --width 0.0625"
SMALL = f"{TINY} --batch-norm --classifier-width 16 --epochs 1"
BODY = re.compile(r"parameters\.features|buffers\.")


@pytest.fixture(scope="module")
def images():
    return data.shapes10(n_train=300, n_test=50)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, images):
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.named, "shapes10", lambda: images)

    def call(text):
        monkeypatch.setattr(sys, "argv", ["scratchnet", *text.split()])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(status=caught.value.code, out=out, err=err)

    return call


@pytest.fixture
def source(tmp_path):
    """A file of weights for SMALL, of other classes."""
    net = vgg11(4, 32, batch_norm=True, width=0.0625, classifier_width=16, seed=7)
    rng = np.random.default_rng(0)
    for array in net.buffers().values():
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    checkpoint.save(tmp_path / "a.safetensors", net, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    return net


def state(run, pattern=BODY):
    tensors, _ = read_tensors(f"{run}/state.safetensors")
    return {name: array for name, array in tensors.items() if pattern.match(name)}


def test_the_file_may_be_an_address_with_its_checksum(command, source, serve, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SCRATCHNET_CACHE", str(tmp_path / "cache"))
    content = (tmp_path / "a.safetensors").read_bytes()
    server, digest = serve(content), hashlib.sha256(content).hexdigest()
    some = f"train {SMALL} --freeze features --new-head --no-test"
    assert command(f"{some} --run-dir file --init-from a.safetensors").status == 0
    assert command(f"{some} --run-dir address --init-from {server.url}#sha256={digest}").status == 0
    of_file, of_address = state("file", re.compile("")), state("address", re.compile(""))
    assert of_file.keys() == of_address.keys()
    assert all(np.array_equal(of_file[name], of_address[name]) for name in of_file)
    assert len(server.requests) == 1

    other = command(f"{some} --run-dir other --init-from {server.url}#sha256={'0' * 64}")
    assert other.status == 2 and f"what arrived has not the SHA256 {'0' * 64}" in other.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("engine", ["plan", "layers"])
def test_a_probe_and_then_fine_tuning_are_two_commands(command, source, engine):
    some = f"train {SMALL} --engine {engine}"
    probe = command(f"{some} --init-from a.safetensors --freeze features --run-dir probe")
    assert (probe.status, probe.err) == (0, "")
    assert (
        "Weights: 52 tensors from a.safetensors; not from it:\n  classifier.6  weight is (16, 10)"
        in probe.out
    )
    assert re.search(r"^Frozen: features; [\d,]+ parameters are trained$", probe.out, re.M)
    frozen = state("probe")
    assert len(frozen) == 48
    for name, array in frozen.items():
        kind, _, path = name.partition(".")
        held = source.parameters()[path].data if kind == "parameters" else source.buffers()[path]
        np.testing.assert_array_equal(array, held, err_msg=name)
    head = state("probe", re.compile("parameters.classifier"))
    assert (head["parameters.classifier.0.weight"] != source.classifier[0].weight.data).any()
    momentum = state("probe", re.compile("optimizer"))["optimizer.momentum"]
    assert momentum.size == sum(array.size for array in head.values())
    config = json.loads(open("probe/config.json").read())
    assert config["options"]["mean"] == config["mean"] == [0.4, 0.5, 0.6]  # as the file says
    assert checkpoint.load("probe/best.safetensors").info["std"] == [0.1, 0.2, 0.3]

    tuned = command(f"{some} --init-from probe/best.safetensors --body-lr-scale 0.1 --run-dir tuned")
    assert tuned.status == 0
    assert re.search(r"^Weights: 54 tensors from probe/best.safetensors$", tuned.out, re.M)
    assert "Frozen" not in tuned.out
    changed = state("tuned")
    assert all((changed[name] != frozen[name]).any() for name in frozen)
    assert checkpoint.load("tuned/best.safetensors").info["mean"] == [0.4, 0.5, 0.6]


@pytest.mark.parametrize(
    "how", ["--freeze features.0,features.4", "--body-lr-scale 0.01", "--init-channels bgr"]
)
def test_a_resumed_run_is_that_without_interruption_bit_for_bit(command, source, tmp_path, how):
    some = f"train {SMALL} --init-from a.safetensors --new-head {how}"
    assert command(f"{some} --run-dir whole --epochs 2").status == 0
    assert command(f"{some} --run-dir parts").status == 0
    (tmp_path / "a.safetensors").unlink()  # the state has all of it
    resumed = command("train --run-dir parts --resume --epochs 2")
    assert (resumed.status, resumed.err) == (0, "")
    whole, parts = (state(run, re.compile("")) for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)


def test_a_body_with_a_rate_of_zero_does_not_move(command, source):
    assert command(f"train {SMALL} --init-from a.safetensors --body-lr-scale 0 --run-dir r").status == 0
    for name, array in state("r", re.compile("parameters.features")).items():
        np.testing.assert_array_equal(array, source.parameters()[name.partition(".")[2]].data)


def test_mean_and_deviation_may_be_given_and_are_recorded(command, source):
    given = "--mean 0.485 0.458 0.408 --std 0.0039 0.0039 0.0039"
    assert command(f"train {SMALL} --init-from a.safetensors {given} --run-dir r").status == 0
    info = checkpoint.load("r/best.safetensors").info
    assert (info["mean"], info["std"]) == ([0.485, 0.458, 0.408], [0.0039] * 3)
    assert json.loads(open("r/config.json").read())["mean"] == [0.485, 0.458, 0.408]


def test_frozen_layers_that_are_not_from_a_file_bring_a_warning(command):
    run = command(f"train {SMALL} --freeze features --run-dir r")
    assert run.status == 0
    assert "warning: 32 frozen tensors are not from a file" in run.err


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("--freeze features,classifier", "--freeze features,classifier leaves nothing to train"),
        ("--freeze feature", "no parameters in 'feature'"),
        ("--init-from none.pth", "there is no file none.pth"),
        (
            "--init-from a.safetensors --width 0.03 --classifier-width 8",
            "a.safetensors holds nothing that fits the network: features",
        ),
        ("--new-head", "--new-head belongs to --init-from: give a file"),
        ("--init-channels bgr", "--init-channels belongs to --init-from: give a file"),
        ("--init-from a.safetensors --init-rescale", "--init-rescale belongs to --new-head"),
        ("--mean 0.5 0.5 0.5", "--mean and --std go together: give both"),
        ("--mean 123 117 104 --std 1 1 1", "--mean must be of pixels from 0 to 1: divide"),
        ("--mean 0.5 0.5 0.5 --std 1 0 1", "--std must be three numbers above zero"),
        ("--body-lr-scale -1", "--body-lr-scale: must be a number of at least zero"),
    ],
)
def test_options_that_make_no_sense_are_refused_and_leave_no_folder(
    command, source, tmp_path, options, sentence
):
    run = command(f"train {SMALL} {options} --run-dir r")
    assert run.status == 2 and sentence in run.err
    assert len(run.err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_the_test_images_are_left_alone_on_request(command):
    result = command(f"train {SMALL} --no-test --run-dir runs/a")
    assert result.status == 0 and "Best model: runs/a" in result.out and "Test Acc" not in result.out
    assert "Test Acc" in command("train --resume --run-dir runs/a").out


def test_adamw_is_resumed_bit_for_bit_with_frozen_parts_too(command, source, tmp_path):
    some = f"train {SMALL} --optimizer adamw --init-from a.safetensors --freeze features.0"
    assert command(f"{some} --run-dir whole --epochs 2").status == 0
    assert command(f"{some} --run-dir parts").status == 0
    resumed = command("train --run-dir parts --resume --epochs 2")
    assert (resumed.status, resumed.err) == (0, "")
    whole, parts = (state(run, re.compile("")) for run in ("whole", "parts"))
    assert whole.keys() == parts.keys() and any("second_moment" in name for name in whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)
    options = json.loads(open("parts/config.json").read())["options"]
    assert (options["lr"], options["weight_decay"]) == (0.001, 0.01)  # AdamW's own
    refused = command(f"train {SMALL} --optimizer adamw --momentum 0.5 --run-dir r")
    assert refused.status == 2 and "--momentum is of --optimizer sgd, and adamw has none" in refused.err
