"""MODEL may be any file that is read, or an address; options say what it does not."""

# ruff: noqa: F811, for the fixtures

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from scratchnet import checkpoint, interop
from scratchnet.data import Normalisation, image_to_array, load_image
from scratchnet.models import vgg11
from scratchnet.training import make_engine, predict
from tests.cli.test_programs import failure, images, program  # noqa: F401
from tests.data.test_download import serve  # noqa: F401
from tests.interop.test_onnx import tumour_network

SMALL = {"num_classes": 3, "image_size": 32, "width": 0.0625, "classifier_width": 8}


@pytest.fixture
def photograph(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 260), Image.Resampling.BICUBIC).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def probabilities(out):
    """The classes and their probabilities that ``--top`` printed."""
    return {name: float(p) for name, p in (entry.rsplit(" ", 1) for entry in out.strip().split(", "))}


def wanted(net, path, names, normalisation, crop=1.0, size=32):
    x = normalisation.apply(image_to_array(load_image(path), size, crop)[None], dtype="float32")
    logits = net.eval().forward(x)[0]
    exponents = np.exp(logits - logits.max())
    return dict(zip(names, exponents / exponents.sum(), strict=True))


def assert_same(found, expected):
    assert found.keys() <= expected.keys()
    assert max(abs(found[name] - expected[name]) for name in found) <= 1e-4  # four digits are printed


def test_options_say_what_a_file_does_not(program, photograph):
    net = vgg11(**SMALL)
    checkpoint.save("a", net)
    save_file(load_file("a"), "b")  # without a header
    result = program("evaluate.py b cat.png --classes ant,bee,cat --mean 0 0.1 0.2 --std 1 2 3 --top 3")
    assert "note" not in result.err
    assert_same(
        probabilities(result.out),
        wanted(net, photograph, ["ant", "bee", "cat"], Normalisation((0, 0.1, 0.2), (1, 2, 3))),
    )
    photograph.with_name("names.txt").write_text("ant\nbee\n\ncat\n")
    again = program("evaluate.py b cat.png --classes names.txt --mean 0 0.1 0.2 --std 1 2 3 --top 3")
    assert again.out == result.out
    assert "does not say how images are normalised" in program("evaluate.py b cat.png").err


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("--classes a,b", "the network has 3 classes, and class_names 2"),
        ("--mean 0 0 0", "--mean and --std go together"),
        ("--mean 0 0 0 --std 0 1 1", "std must be finite numbers above zero"),
        ("--image-size 64", "a takes images of 32 pixels only"),
    ],
)
def test_corrections_that_do_not_fit_are_refused(program, photograph, options, sentence):
    checkpoint.save("a", vgg11(**SMALL), mean=[0] * 3, std=[1] * 3)
    assert sentence in failure(program(f"evaluate.py a cat.png {options}"))


def test_a_network_of_any_size_takes_the_one_that_is_given(program, photograph):
    net = vgg11(**SMALL, head="gap")
    checkpoint.save("a", net, mean=[0] * 3, std=[1] * 3)
    result = program("evaluate.py a cat.png --image-size 75 --top 3")
    names = [f"class {k}" for k in range(3)]
    assert_same(
        probabilities(result.out), wanted(net, photograph, names, Normalisation((0,) * 3, (1,) * 3), size=75)
    )


def test_images_are_cut_as_the_header_says(program, photograph):
    net = vgg11(**SMALL)
    checkpoint.save("a", net, mean=[0] * 3, std=[1] * 3, crop=0.875, class_names=["a", "b", "c"])
    found = probabilities(program("evaluate.py a cat.png --top 3").out)
    assert_same(found, wanted(net, photograph, ["a", "b", "c"], Normalisation((0,) * 3, (1,) * 3), 0.875))


def test_a_file_that_says_that_it_takes_huge_images_is_refused_before_memory_is_taken(program, photograph):
    checkpoint.save("a", vgg11(**SMALL | {"image_size": 20_000}, head="gap"))
    assert "a takes images of 20000 x 20000 pixels: 8 of them need" in failure(
        program("evaluate.py a cat.png")
    )


def test_a_file_of_pytorch_and_what_was_left_out(program, photograph):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    checkpoint.save("a", net := vgg11(**SMALL))
    tensors = {name: torch.from_numpy(array) for name, array in load_file("a").items()}
    torch.save({"state_dict": tensors | {"aux.bias": torch.ones(2)}}, "a.pth")
    result = program("evaluate.py a.pth cat.png --mean 0 0 0 --std 1 1 1 --top 3")
    assert "note: not loaded from a.pth: aux.bias" in result.err
    names = [f"class {k}" for k in range(3)]
    assert_same(probabilities(result.out), wanted(net, photograph, names, Normalisation((0,) * 3, (1,) * 3)))
    torch.save({name: t for name, t in tensors.items() if name.startswith("features")}, "b.pth")
    assert "b.pth has no classes, only maps of features" in failure(program("evaluate.py b.pth cat.png"))


@pytest.mark.parametrize("inside", [False, True])
def test_an_onnx_file_with_its_normalisation_inside_or_outside(program, photograph, inside):
    pytest.importorskip("onnx", reason="onnx is not installed")
    net, names = vgg11(**SMALL).eval(), ["a", "b", "c"]
    numbers = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    how = numbers if inside else {"metadata": numbers}
    interop.save_onnx("a.onnx", net, (32, 32, 3), class_names=names, **how)
    result = program("evaluate.py a.onnx cat.png --top 3")
    assert "note" not in result.err
    assert_same(probabilities(result.out), wanted(net, photograph, names, Normalisation(**numbers)))


def test_a_network_of_others_names_images_as_onnx_runtime_does(program, photograph):
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    path = tumour_network()
    names = [*json.loads((path.parent / "class_indices.json").read_text())]
    options = f"--classes {','.join(names)} --mean 0 0 0 --std 1 1 1 --top 4"
    found = probabilities(program(f"evaluate.py {path} cat.png {options}").out)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = image_to_array(load_image(photograph), 240)[None].astype("float32") / 255
    theirs = session.run(None, {session.get_inputs()[0].name: x})[0][0]
    assert_same(found, dict(zip(names, theirs, strict=True)))
    net = interop.load(path)
    np.testing.assert_allclose(predict(net, x, make_engine(net))[0], theirs, atol=1e-5)


def test_an_address_with_a_checksum(program, photograph, serve, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_CACHE", "cache")
    checkpoint.save("a", vgg11(**SMALL), class_names=["x", "y", "z"], mean=[0] * 3, std=[1] * 3)
    content = photograph.with_name("a").read_bytes()
    server = serve(content)
    address = f"{server.url}#sha256={hashlib.sha256(content).hexdigest()}"
    assert program(f"evaluate.py {address} cat.png").out == program("evaluate.py a cat.png").out
    assert "needs its checksum" in failure(program(f"evaluate.py {server.url} cat.png"))
