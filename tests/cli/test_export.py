"""``scratchnet export``: ONNX files that ONNX Runtime runs, with what their user has to know."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet import checkpoint, interop
from scratchnet.cli.__main__ import main
from scratchnet.data import Normalisation
from scratchnet.layers import Flatten, Linear, Sequential
from scratchnet.models import vgg11

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


@pytest.fixture
def export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = vgg11(3, 32, width=0.125, classifier_width=16)
    checkpoint.save("a.safetensors", net, class_names=["cat", "dog", "emu"], mean=MEAN, std=STD, data="pets")

    def call(text):
        monkeypatch.setattr(sys, "argv", ["scratchnet", "export", *text.split()])
        with pytest.raises(SystemExit) as caught:
            main()
        return SimpleNamespace(status=caught.value.code, **capsys.readouterr()._asdict())

    return call


@pytest.mark.parametrize("options", ["", "--with-normalisation", "--softmax --with-normalisation"])
def test_onnx_runtime_computes_what_the_network_computes(export, options):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    run = export(f"a.safetensors a.onnx {options}")
    assert (run.status, run.err) == (0, "") and "takes (N, 3, 32, 32)" in run.out
    session = runtime.InferenceSession("a.onnx", providers=["CPUExecutionProvider"])
    net, pixels = (
        checkpoint.load("a.safetensors"),
        np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), "u1"),
    )
    x = Normalisation(MEAN, STD).apply(pixels)
    wanted = net.forward(x)
    if "softmax" in options:
        wanted = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    given = pixels.astype("float32") if "normalisation" in options else x
    for n in (1, 5):
        (result,) = session.run(None, {"images": given[:n].transpose(0, 3, 1, 2).copy()})
        np.testing.assert_allclose(result, wanted[:n], rtol=1e-4, atol=1e-5)
    facts = {entry.key: json.loads(entry.value) for entry in onnx.load("a.onnx").metadata_props}
    assert facts["class_names"] == ["cat", "dog", "emu"] and facts["data"] == "pets"
    again = interop.load("a.onnx")  # what it says of itself holds
    normalised = Normalisation(again.info["mean"], again.info["std"]).apply(pixels)
    if "softmax" not in options:
        np.testing.assert_allclose(again.forward(normalised), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("a.safetensors a.pb", "the file to write must be called *.onnx, not a.pb"),
        ("none.safetensors a.onnx", "there is no file none.safetensors"),
        ("b.safetensors a.onnx", "b.safetensors does not say which images its network takes"),
        ("c.safetensors a.onnx --with-normalisation", "c.safetensors does not say how images are normalised"),
        ("a.safetensors nowhere/a.onnx", "nowhere/a.onnx cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(export, tmp_path, text, sentence):
    pytest.importorskip("onnx", reason="onnx is not installed")
    checkpoint.save("b.safetensors", Sequential(Flatten(), Linear(12, 2)))
    checkpoint.save("c.safetensors", vgg11(3, 32, width=0.125, classifier_width=16))
    run = export(text)
    assert run.status == 2 and sentence in run.err and len(run.err.splitlines()) == 1
    assert not (tmp_path / "a.onnx").exists()


def test_without_onnx_the_message_says_what_to_install(export, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    run = export("a.safetensors a.onnx")
    assert run.status == 2
    assert run.err == "scratchnet export: this needs the package onnx: python -m pip install onnx\n"
