"""Saved weights: torchvision's names and layouts, whole or not at all; a sentence for every damaged file."""

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
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
    assert list(metadata) == ["scratchnet"]  # safetensors writes several in random order
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
    with pytest.raises(FormatError, match="net.safetensors holds no VGG: it has no features.0.weight"):
        load(tmp_path / "net.safetensors")


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


@pytest.mark.parametrize("image_size", [32, 64])
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


# Damaged files, and files of another kind


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
    tensors, before = checkpoint.read_tensors(model)
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


# Whole or not at all


def entries(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_no_other(model, monkeypatch, error):
    before = model.read_bytes()

    def fill_the_disk(tensors, path, metadata):
        Path(path).write_bytes(b"the first part")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fill_the_disk)
    with pytest.raises(
        OSError, match="model.safetensors cannot be written: .*No space left on device"
    ) as caught:
        save(model, vgg11(**SMALL))
    assert "partial" not in str(caught.value)
    assert model.read_bytes() == before
    assert entries(model.parent) == ["model.safetensors"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_file_and_no_other(model, monkeypatch, step, error):
    before = model.read_bytes()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(checkpoint.os, step, fail)
    with pytest.raises(type(error)):
        save(model, vgg11(**SMALL, seed=1))
    assert model.read_bytes() == before
    assert entries(model.parent) == ["model.safetensors"]


def test_a_folder_that_is_not_there_or_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(OSError, match="absent.net.safetensors cannot be written: No such file or directory"):
        save(tmp_path / "absent" / "net.safetensors", vgg11(**SMALL))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder cannot be written"):
        save(tmp_path / "folder", vgg11(**SMALL))
    assert entries(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="net.safetensors cannot be written: Permission denied"):
        save(tmp_path / "net.safetensors", vgg11(**SMALL))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_files_get_the_permissions_that_the_user_asks_for(tmp_path):
    old = os.umask(0o027)
    try:
        save(tmp_path / "net.safetensors", vgg11(**SMALL))
    finally:
        os.umask(old)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is counted in other ways elsewhere")
def test_loading_takes_no_second_copy_of_the_weights(tmp_path):
    net = vgg11(10, 32, classifier_width=3000)  # 82 MB
    size = 4 * sum(p.size for p in net.parameters().values())
    checkpoint.save(tmp_path / "model", net)
    code = """
import re, sys
from scratchnet import checkpoint

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


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs a name for an open file")
def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(tmp_path, monkeypatch):
    before, after = (VGG("vgg11", **SMALL, seed=seed) for seed in (1, 2))
    save(tmp_path / "model", before)
    save(tmp_path / "newer", after)
    read = checkpoint.TensorFile.read_rows

    def replace_and_read(self, *arguments):
        if (tmp_path / "newer").exists():
            os.replace(tmp_path / "newer", tmp_path / "model")
        return read(self, *arguments)

    monkeypatch.setattr(checkpoint.TensorFile, "read_rows", replace_and_read)
    net = load(tmp_path / "model")
    for a, b in zip(before.parameters().values(), net.parameters().values(), strict=True):
        assert (a.data == b.data).all()
