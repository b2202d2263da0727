"""Networks are recognised by names and shapes, and a header describes nothing that its file cannot hold."""

import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from scratchnet.checkpoint import FormatError, load
from scratchnet.models import ARCHITECTURES, VGG
from scratchnet.rebuild import build
from scratchnet.recognise import partial_vgg, vgg_settings

SMALL = {"num_classes": 3, "width": 0.0625, "classifier_width": 8}


def shapes_of(net):
    """Return the shapes that a network's tensors have in PyTorch."""
    found = {
        name: (p.shape[3], p.shape[2], *p.shape[:2]) if p.ndim == 4 else p.shape[::-1]
        for name, p in net.parameters().items()
    }
    return found | {name: array.shape for name, array in net.buffers().items()}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_settings_of_a_vgg(architecture, batch_norm):
    settings = {"image_size": 96, "batch_norm": batch_norm, "in_channels": 2}
    wanted = shapes_of(VGG(architecture, **SMALL, **settings))
    found = vgg_settings(wanted)
    assert shapes_of(VGG(**found)) == wanted
    assert {key: found[key] for key in settings} == settings
    assert vgg_settings(shapes_of(VGG(architecture)))["architecture"] == architecture


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_features_with_one_linear_layer_or_none(batch_norm, bias, side):
    net = VGG("vgg11", **SMALL, batch_norm=batch_norm)
    shapes = {name: s for name, s in shapes_of(net).items() if name.startswith("features.")}
    shapes |= {"head.weight": (5, 32 * side**2)} if side else {"a.weight": (5, 32), "b.weight": (3, 5)}
    shapes |= {"head.bias": (5,)} if side and bias else {}
    description, linear, _, image_size = partial_vgg(shapes)
    assert (linear, image_size) == ("head" if side else "", 64 if side == 2 else 32)
    built = build(description)
    assert built.output_shape((1, image_size, image_size, 3)) == ((1, 5) if side else (1, 1, 1, 32))
    found = {name.replace("classifier", "head"): s for name, s in shapes_of(built).items()}
    assert found == {name: s for name, s in shapes.items() if name[0] not in "ab"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"features.0.weight": None}, "it has no features.0.weight"),
        ({"features.3.weight": None, "features.4.weight": (8, 4, 3, 3)}, "features.0 is followed by layers"),
        ({"features.3.weight": None, "features.1.weight": (8, 4, 3, 3)}, "features.0 is followed by layers"),
        ({"features.5.running_mean": (8,)}, "features.0 is followed by"),
    ],
)
def test_what_no_vgg_has_between_its_convolutions_is_refused(change, words):
    shapes = shapes_of(VGG("vgg11", **SMALL)) | change
    shapes = {name: s for name, s in shapes.items() if s is not None}
    with pytest.raises(ValueError, match=words):
        partial_vgg(shapes)


NORM = {"class": "BatchNorm2d", "settings": {"num_features": 10**6}}
RELU = {"class": "ReLU", "settings": {}}
VGG11 = {"architecture": "vgg11", **SMALL, "image_size": 32}


@pytest.mark.parametrize(
    "header",
    [
        {"chain": {"class": "Sequential", "layers": {str(k): NORM for k in range(3000)}}},
        {"chain": {"class": "Sequential", "layers": {str(k): RELU for k in range(20_000)}}},
        {"model": VGG11 | {"architecture": [10**6] * 3000, "width": 1.0, "batch_norm": True}},
        {"model": VGG11 | {"architecture": ["M", *[8, "M"] * 10_000], "batch_norm": True}},
        {"model": VGG11 | {"width": 1e6, "batch_norm": True}},
        {"model": VGG11 | {"num_classes": 2 * 10**7, "output_scale": 0.5}},
        {"model": VGG11 | {"num_classes": 2 * 10**9, "classifier_width": 10**9}},
        {"model": VGG11 | {"image_size": 10**9}},
        {"model": VGG11, "changes": {"classifier.6": NORM | {"settings": {"num_features": 10**9}}}},
        {"model": VGG11, "mean": [10**400, 0, 0]},
        {"model": VGG11, "class_names": ["a" * 10] * 10**6},
    ],
    ids=lambda header: f"{header}"[:70],
)
def test_a_header_takes_no_more_memory_than_its_file_has_bytes_or_a_few_megabytes(tmp_path, header):
    tensors = {name: np.zeros(s, "float32") for name, s in shapes_of(VGG(**VGG11)).items()}
    save_file(tensors, tmp_path / "a", {"scratchnet": json.dumps(header)})
    tracemalloc.start()
    with pytest.raises(FormatError, match="a "):
        load(tmp_path / "a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
