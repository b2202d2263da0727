"""Files that are damaged or of another kind: each is named, in a sentence, and none can run code."""

# ruff: noqa: F811, for the fixture

import json
import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from scratchnet import tensorfile
from scratchnet.checkpoint import FormatError, load, save
from scratchnet.models import vgg11
from tests.test_checkpoint import CLASSES, SMALL, model, random_images  # noqa: F401


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 1500, 5000, 0.5, 0.9, -1])
def test_a_truncated_file_is_named(model, keep):
    content = model.read_bytes()
    length = int(len(content) * keep) if isinstance(keep, float) else keep
    model.write_bytes(content[:length])
    with pytest.raises(FormatError, match=r"model.safetensors is damaged, or not a safetensors file at all"):
        load(model)


def test_files_of_other_kinds_are_named(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "code has run"),)

    rng = np.random.default_rng(0)
    contents = {
        "random": rng.bytes(5000),
        "zeros": bytes(5000),
        "pickle": pickle.dumps(Trap()),
        "image": b"\x89PNG\r\n\x1a\n" + rng.bytes(300),
        "text": b"hello",
        "more after the end": None,
    }
    for name, content in contents.items():
        path = tmp_path / name
        if content is None:
            save(path, vgg11(**SMALL))
            content = path.read_bytes() + b"x"
        path.write_bytes(content)
        with pytest.raises(FormatError, match=f"{name} is damaged, or not a safetensors file at all"):
            load(path)
    assert not (tmp_path / "code has run").exists()


def test_bytes_changed_at_random_load_or_are_refused_but_never_surprise(model):
    content = bytearray(model.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, header, 3):
            damaged[place] = rng.integers(32, 127)
        model.write_bytes(damaged)
        try:
            load(model)
        except FormatError as error:
            assert "model.safetensors" in str(error)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*absent"):
        load(tmp_path / "absent")
    with pytest.raises(FormatError, match="is a folder, not a safetensors file"):
        load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe is no regular file"):
        load(tmp_path / "pipe")


def resaved(model, change=None, header=None):
    """Write the model again with some tensors changed (None removes one), or another header."""
    tensors, before = tensorfile.read_tensors(model)
    tensors = {name: array for name, array in (tensors | (change or {})).items() if array is not None}
    header = header if isinstance(header, str) else json.dumps(header) if header is not None else before
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, model, {"scratchnet": header}
    )


FLOATS = np.zeros(3, "float32")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"features.3.bias": None}, "does not fit the network: the file lacks features.3.bias"),
        ({"features.99.bias": FLOATS}, "does not fit the network: the network lacks features.99.bias"),
        ({"features.3.bias": FLOATS}, r"features.3.bias is \(3,\), where \(8,\) is expected"),
        ({"features.3.bias": np.zeros(8, "int64")}, "features.3.bias is int64, where floating point"),
        ({"features.0.weight": None}, "holds no VGG: it has no features.0.weight"),
        ({"features.0.weight": FLOATS}, "holds no VGG: it has no features.0.weight of 4 axes"),
        ({"classifier.0.weight": FLOATS}, "holds no VGG: it has no classifier.0.weight of 2 axes"),
        (
            {"classifier.6.weight": np.zeros((0, 16), "float32")},
            "holds no VGG: it has no classifier.6.weight",
        ),
    ],
)
@pytest.mark.parametrize("with_header", [True, False])
def test_tensors_that_are_missing_too_many_or_of_another_shape_are_named(model, change, words, with_header):
    resaved(model, change, None if with_header else "{}")
    with pytest.raises(
        FormatError, match=f"model.safetensors.*{words}" if with_header else "model.safetensors"
    ):
        load(model)


@pytest.mark.parametrize(
    "change",
    [
        {"features.18.weight": np.zeros((0, 32, 3, 3), "float32")},
        {"classifier.0.weight": np.zeros((16, 33), "float32")},
        {"classifier.0.weight": np.zeros((16, 64), "float32")},
        {"features.x.weight": np.zeros((4, 4, 3, 3), "float32")},
    ],
)
def test_shapes_from_which_no_network_can_be_guessed_are_refused(model, change):
    resaved(model, change, "{}")
    with pytest.raises(FormatError, match="model.safetensors holds no VGG"):
        load(model)


GOOD = {"architecture": "vgg11", **SMALL}


@pytest.mark.parametrize(
    "header",
    ["{", "[]", "3", "[" * 100_000, "nonsense", {"class_names": 5}, {"class_names": [1] * 10}]
    + [{"mean": wrong} for wrong in ("abc", 5, [1, 2], [0, 0, float("nan")], [0, 0, None])]
    + [{"std": [1, 1, 0]}, {"model": "vgg16"}, {"model": [1]}, {"class_names": ["cat"], "model": GOOD}],
)
def test_a_damaged_header_is_refused(model, header):
    resaved(model, header=header)
    with pytest.raises(FormatError, match="model.safetensors has a damaged header"):
        load(model)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "vgg12"},
        {"architecture": [float("inf"), "M"]},
        {"architecture": [10**12, "M"], "batch_norm": True},
        {"architecture": {}},
        {"architecture": None},
        {"num_classes": 10**12},
        {"num_classes": 1.5},
        {"image_size": 32 * 10**20},
        {"image_size": "32"},
        {"width": 1e300},
        {"width": float("nan")},
        {"batch_norm": True},
        {"dropout": "much"},
        {"head": []},
        {"dtype": "float64"},
        {"unknown": 1},
    ],
)
def test_a_header_with_absurd_settings_is_refused(model, change):
    resaved(model, header={"model": GOOD | change})
    with pytest.raises(
        FormatError, match="model.safetensors (has a header that describes no VGG|does not fit)"
    ):
        load(model)


def test_changes_to_a_network_that_is_not_there_are_refused(model):
    resaved(model, {"classifier.0.weight": None}, {"changes": {"classifier.6": {"class": "ReLU"}}})
    with pytest.raises(FormatError, match="model.safetensors has a header that describes no network"):
        load(model)


def test_half_precision_files_load_as_float32(model):
    net = load(model)
    resaved(model, {name: array.astype("float16") for name, array in load_file(model).items()})
    half = load(model)
    assert half.features[0].weight.dtype == np.float32
    np.testing.assert_allclose(
        half.forward(random_images()), net.forward(random_images()), rtol=0.02, atol=0.02
    )


def test_bfloat16_files_are_refused_with_what_to_do(model):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    save_torch({name: t.to(torch.bfloat16) for name, t in load_torch(model).items()}, model)
    with pytest.raises(FormatError, match="NumPy has no type for .*bfloat16.*save them as float32"):
        load(model)
