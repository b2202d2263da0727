"""Saved weights: torchvision's names and layouts, there and back bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from scratchnet import checkpoint
from scratchnet.checkpoint import FormatError, load, load_weights, save
from scratchnet.layers import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    Parameter,
    ReLU,
    Sequential,
)
from scratchnet.models import ARCHITECTURES, VGG, vgg11, vgg16

SMALL = {"num_classes": 10, "image_size": 32, "width": 0.0625, "classifier_width": 16}
CLASSES = [f"class{k}" for k in range(10)]


def random_images(N=2, size=32, seed=0):
    return np.random.default_rng(seed).standard_normal((N, size, size, 3)).astype("float32")


def worn(net, seed=0):
    """Give the biases and running statistics of a new network values that would be missed."""
    rng = np.random.default_rng(seed)
    for name, p in net.parameters().items():
        if p.ndim == 1:
            p.data[...] = rng.uniform(0.2, 1.2, p.shape) if "features" in name else rng.normal(size=p.shape)
    for array in net.buffers().values():
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    return net.eval()


def state(net):
    return {name: p.data for name, p in net.parameters().items()} | net.buffers()


def assert_same_bits(a, b):
    a, b = state(a), state(b)
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and (a[name] == b[name]).all(), name


@pytest.fixture
def model(tmp_path):
    """A saved model: its path."""
    path = tmp_path / "model.safetensors"
    save(path, worn(vgg11(**SMALL)), class_names=CLASSES, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    return path


# What is in the file


def test_the_file_has_torchvisions_names_layouts_and_dtypes(tmp_path):
    net = worn(vgg16(**SMALL, batch_norm=True))
    save(tmp_path / "net.safetensors", net)
    tensors = load_file(tmp_path / "net.safetensors")
    assert set(tensors) == set(net.parameters()) | set(net.buffers())
    assert tensors["features.0.weight"].shape == (4, 3, 3, 3)  # (O, C, KH, KW)
    assert tensors["features.3.weight"].shape == (4, 4, 3, 3)
    assert tensors["classifier.0.weight"].shape == (16, 32)  # (out, in)
    assert tensors["classifier.6.weight"].shape == (10, 16)
    assert tensors["features.1.running_var"].shape == (4,)
    assert {t.dtype for t in tensors.values()} == {np.dtype("float32")}
    kernel = net.features[0].weight.data
    assert (tensors["features.0.weight"] == kernel.transpose(3, 2, 0, 1)).all()


def test_columns_of_the_first_linear_layer_stand_channels_first(tmp_path):
    net = worn(vgg11(**SMALL | {"image_size": 64}))
    save(tmp_path / "net.safetensors", net)
    saved = load_file(tmp_path / "net.safetensors")["classifier.0.weight"].reshape(
        16, 32, 2, 2
    )  # (O, C, H, W)
    memory = net.parameters()["classifier.0.weight"].data.reshape(2, 2, 32, 16)  # (H, W, C, O)
    assert (saved == memory.transpose(3, 2, 0, 1)).all()


def test_the_header_says_how_to_build_the_network_and_what_its_classes_are(tmp_path):
    net = vgg11(**SMALL)
    about = {"class_names": tuple(CLASSES), "mean": np.array([0.1, 0.2, 0.3]), "std": (1, 2, 3)}
    save(tmp_path / "net.safetensors", net, **about, data="CIFAR-10", epoch=np.int64(3), acc=np.float32(0.5))
    with safe_open(tmp_path / "net.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert set(metadata) == {"scratchnet", "digest"}
    assert json.loads(metadata["scratchnet"]) == {
        "data": "CIFAR-10",
        "epoch": 3,
        "acc": 0.5,
        "class_names": CLASSES,
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 2.0, 3.0],
        "model": net.settings(),
    }


def test_settings_in_numpys_numbers_can_be_saved(tmp_path):
    net = vgg11(
        np.arange(10).max() + 1, np.int64(32), width=np.float32(0.0625), classifier_width=np.int32(16)
    )
    save(tmp_path / "net.safetensors", net)
    assert load(tmp_path / "net.safetensors").settings() == net.settings()


def test_class_names_have_to_be_as_many_as_classes(tmp_path):
    with pytest.raises(ValueError, match="the network has 10 classes, and class_names 2"):
        save(tmp_path / "net.safetensors", vgg11(**SMALL), class_names=["cat", "dog"])
    assert os.listdir(tmp_path) == []


def test_a_header_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="header cannot hold object"):
        save(tmp_path / "net.safetensors", vgg11(**SMALL), extra=object())
    assert os.listdir(tmp_path) == []


def test_saving_leaves_the_network_as_it_was(tmp_path):
    net = worn(vgg11(**SMALL)).train()
    before = {name: array.copy() for name, array in state(net).items()}
    save(tmp_path / "net.safetensors", net)
    assert net.training
    assert all((before[name] == array).all() for name, array in state(net).items())


# There and back


@pytest.mark.parametrize("channels, image_size", [(1, 50), (4, 101)])
def test_images_of_any_size_and_number_of_channels(tmp_path, channels, image_size):
    net = worn(vgg11(**SMALL | {"image_size": image_size, "in_channels": channels}))
    mean, std = [0.5] * channels, [0.25] * channels
    save(tmp_path / "net.safetensors", net, mean=mean, std=std)
    again = load(tmp_path / "net.safetensors")
    assert_same_bits(net, again)
    assert again.info["mean"] == mean and again.settings() == net.settings()
    x = np.random.default_rng(0).standard_normal((2, image_size, image_size, channels), dtype="float32")
    assert (again.forward(x) == net.forward(x)).all()
    with pytest.raises(ValueError, match=f"mean is not {channels} finite number.*but {channels + 1}"):
        save(tmp_path / "other.safetensors", net, mean=[0.5] * (channels + 1))


@pytest.mark.parametrize("head", ["flatten", "gap"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "own"])
def test_round_trip_is_the_same_bit_for_bit(tmp_path, architecture, batch_norm, head):
    settings = SMALL | {"image_size": 64, "batch_norm": batch_norm, "head": head, "dropout": 0.25}
    layers = [64, "M", 48, 32, "M"] if architecture == "own" else architecture
    net = worn(VGG(layers, **settings))
    save(tmp_path / "net.safetensors", net, class_names=CLASSES)
    again = load(tmp_path / "net.safetensors")
    assert_same_bits(net, again)
    assert again.settings() == net.settings()
    assert again.info["class_names"] == CLASSES
    assert not again.training
    x = random_images(size=64)
    assert (again.forward(x) == net.forward(x)).all()


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for name in "abcd":
        save(tmp_path / name, vgg11(**SMALL), class_names=CLASSES, data="CIFAR-10")
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1


def test_float64_comes_back_as_float64(tmp_path):
    net = worn(vgg11(**SMALL, dtype="float64"))
    save(tmp_path / "net.safetensors", net)
    assert_same_bits(net, load(tmp_path / "net.safetensors"))


def test_loaded_weights_are_never_drawn_first(model, monkeypatch):
    def draw(*arguments, **keywords):
        raise AssertionError("weights that are loaded were drawn at random first")

    monkeypatch.setattr("scratchnet.initialise._draw_normal", draw)
    load(model)


def test_weights_go_into_a_sequential_of_ones_own(tmp_path):
    def build(seed):
        rng = np.random.default_rng(seed)
        layers = (
            Conv2d(3, 4, rng=rng),
            BatchNorm2d(4),
            ReLU(),
            MaxPool2d(2),
            Flatten(),
            Linear(64, 3, rng=rng),
        )
        return Sequential(*layers)

    net, other = worn(build(0)), build(1)
    save(tmp_path / "net.safetensors", net)
    load_weights(tmp_path / "net.safetensors", other)
    assert_same_bits(net, other)


def test_loading_writes_in_place_and_raises_the_version(model):
    net = vgg11(**SMALL)
    weight = net.features[0].weight.data
    version = net.features[0].weight.buffer.version
    load_weights(model, net)
    assert np.shares_memory(weight, net.features[0].weight.data)
    assert (weight == load(model).features[0].weight.data).all()
    assert net.features[0].weight.buffer.version > version


def test_weights_that_do_not_fit_leave_the_network_as_it_was(model):
    net = worn(vgg11(**SMALL | {"classifier_width": 17}))
    before = {name: array.copy() for name, array in state(net).items()}
    with pytest.raises(
        FormatError, match="does not fit the network: classifier.0.weight is .*32, 16.*32, 17"
    ):
        load_weights(model, net)
    assert all((before[name] == array).all() for name, array in state(net).items())


def test_a_path_may_be_text_bytes_free_or_path_like(tmp_path):
    class Place:
        def __fspath__(self):
            return str(tmp_path / "net.safetensors")

    net = worn(vgg11(**SMALL))
    save(Place(), net)
    for path in (Place(), Path(Place()), str(tmp_path / "net.safetensors")):
        assert_same_bits(net, load(path))


# PyTorch


def torch_vgg(torch, layers, batch_norm, inputs, width=16, classes=10):
    """torchvision's class VGG, without its adaptive pooling, which does nothing at the size trained on."""
    nn = torch.nn
    features, channels = [], 3
    for c in layers:
        if c == "M":
            features.append(nn.MaxPool2d(2, 2))
            continue
        norm = [nn.BatchNorm2d(c)] if batch_norm else []
        features += [nn.Conv2d(channels, c, 3, padding=1), *norm, nn.ReLU(inplace=True)]
        channels = c

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*features)
            self.classifier = nn.Sequential(
                nn.Linear(inputs, width),
                nn.ReLU(True),
                nn.Dropout(),
                nn.Linear(width, width),
                nn.ReLU(True),
                nn.Dropout(),
                nn.Linear(width, classes),
            )

        def forward(self, x):
            return self.classifier(torch.flatten(self.features(x), 1))

    return Net().eval()


def thin(architecture):
    return [c if c == "M" else c // 16 for c in ARCHITECTURES[architecture]]


def torch_logits(torch, net, x):
    with torch.no_grad():
        return net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.parametrize("image_size", [32, 75])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("architecture", ["vgg11", "vgg16"])
def test_our_file_loads_into_pytorch_as_it_is(tmp_path, architecture, batch_norm, image_size):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    net = worn(VGG(architecture, **SMALL | {"image_size": image_size}, batch_norm=batch_norm))
    save(tmp_path / "net.safetensors", net)
    theirs = torch_vgg(torch, thin(architecture), batch_norm, 32 * (image_size // 32) ** 2)
    missing, unexpected = theirs.load_state_dict(load_torch(tmp_path / "net.safetensors"), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = random_images(3, image_size)
    np.testing.assert_allclose(net.forward(x), torch_logits(torch, theirs, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("architecture", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_pytorchs_file_loads_here_without_our_header(tmp_path, architecture, batch_norm, image_size):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    torch.manual_seed(0)
    theirs = torch_vgg(torch, thin(architecture), batch_norm, 32 * (image_size // 32) ** 2)
    x = random_images(3, image_size)
    with torch.no_grad():
        theirs.train()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))  # moves the running statistics
    save_torch(theirs.eval().state_dict(), tmp_path / "theirs.safetensors")
    net = load(tmp_path / "theirs.safetensors")
    assert (net.settings()["image_size"], net.settings()["batch_norm"]) == (image_size, batch_norm)
    assert net.info == {}
    np.testing.assert_allclose(net.forward(x), torch_logits(torch, theirs, x), rtol=1e-4, atol=1e-5)


def test_a_torchvision_architecture_is_recognised_by_its_channels(tmp_path):
    settings = SMALL | {"width": 1.0}
    net = vgg11(**settings)
    tensors = {name: np.zeros(p.shape[::-1], "float32") for name, p in net.parameters().items()}
    shapes = {
        name: array.transpose(0, 1, 3, 2) if array.ndim == 4 else array for name, array in tensors.items()
    }
    save_file(
        {name: np.ascontiguousarray(array) for name, array in shapes.items()}, tmp_path / "a.safetensors"
    )
    assert load(tmp_path / "a.safetensors").settings()["architecture"] == "vgg11"


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is counted in other ways elsewhere")
def test_loading_takes_no_second_copy_of_the_weights(tmp_path):
    net = vgg11(10, 32, classifier_width=3000)  # 82 MB
    size = 4 * sum(p.size for p in net.parameters().values())
    checkpoint.save(tmp_path / "model", net)
    code = """
import re, sys
from scratchnet import checkpoint, tensorfile

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before = peak()
net = checkpoint.load(sys.argv[1])
print(peak() - before)
"""
    command = [sys.executable, "-c", code, tmp_path / "model"]
    more = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert more < 1.4 * size


class Holds(Layer):
    """A layer of the user's own with a parameter of any shape."""

    def __init__(self, shape, value):
        super().__init__()
        self.w = Parameter(np.full(shape, value, "float32"))

    def forward(self, x):
        return x


@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (2, 3, 4), (2, 3, 4, 5), (0, 3)])
def test_parameters_of_other_layers_are_loaded_as_they_are(tmp_path, shape):
    rng = np.random.default_rng(0)
    saved, loaded = (Sequential(Conv2d(3, 4, rng=rng), Holds(shape, k)) for k in (1, 2))
    save(tmp_path / "model", saved)
    load_weights(tmp_path / "model", loaded)
    for a, b in zip(saved.parameters().values(), loaded.parameters().values(), strict=True):
        assert a.shape == b.shape and (a.data == b.data).all()
