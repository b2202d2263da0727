"""A file describes the network that was saved, so that no other is loaded, or says how to load it."""

import json
import os

import numpy as np
import pytest

from scratchnet import tensorfile
from scratchnet.checkpoint import FormatError, load, load_weights, save
from scratchnet.layers import (
    BatchNorm2d,
    Chain,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    Parameter,
    ReLU,
    Sequential,
)
from scratchnet.models import VGG, vgg11
from tests.test_checkpoint import SMALL, assert_same_bits, random_images, state, worn

X = random_images()


def free(rng=None):
    rng = rng or np.random.default_rng(0)
    return Sequential(
        Conv2d(3, 4, kernel_size=5, stride=2, padding=1, bias=False, rng=rng),
        BatchNorm2d(4, eps=1e-3, momentum=0.2),
        Sequential(ReLU(), MaxPool2d(3, 2), Dropout(0.25)),
        Flatten(),
        Linear(4 * 7 * 7, 3, rng=rng),
    )


class Named(Layer):
    """A chain in a class of the user's own, with a list of layers in it."""

    skips_input_gradient = True

    def __init__(self):
        super().__init__()
        self.head = Linear(4, 3)
        self.blocks = [Conv2d(3, 4), ReLU()]
        self.pool = GlobalAvgPool2d()

    def chain(self):
        return [*self.blocks, self.pool, self.head]

    forward, backward = Chain.forward, Chain.backward


def round_trip(path, net, **info):
    save(path, worn(net), **info)
    again = load(path)
    assert_same = {name: array for name, array in state(net).items()}
    for name, array in state(again).items():
        assert (assert_same.pop(name) == array).all(), name
    assert not assert_same
    assert (again.forward(X) == net.forward(X)).all()
    return again


# Networks that are no VGG


@pytest.mark.parametrize("build", [free, Named])
def test_any_chain_of_our_layers_loads_again(tmp_path, build):
    again = round_trip(tmp_path / "net", build(), class_names=["a", "b", "c"])
    assert again.info["class_names"] == ["a", "b", "c"]
    assert round_trip(tmp_path / "again", again).info["chain"] == again.info["chain"]


def test_a_sequential_comes_back_as_one_with_all_settings(tmp_path):
    net = free()
    again = round_trip(tmp_path / "net", net)
    assert type(again) is Sequential and repr(again) == repr(net)


def test_float64_comes_back_as_float64(tmp_path):
    save(tmp_path / "net", Sequential(Flatten(dtype="float64"), Linear(3, 2, dtype="float64")))
    assert load(tmp_path / "net")[1].weight.dtype == np.float64


def test_linear_layers_of_a_chain_are_not_reordered_even_in_a_file_that_a_vgg_reads(tmp_path):
    vgg = worn(vgg11(**SMALL | {"image_size": 64}))
    save(tmp_path / "chain", Sequential(*vgg.chain()))
    names = {"0.": "features.", "2.": "classifier."}
    tensors, header = tensorfile.read_tensors(tmp_path / "chain")
    renamed = {names[name[:2]] + name[2:]: array for name, array in tensors.items()}
    tensorfile.write_tensors(tmp_path / "chain", renamed, header)
    other = vgg11(**SMALL | {"image_size": 64}, seed=1)
    load_weights(tmp_path / "chain", other)
    assert_same_bits(vgg, other)


class Leaky(ReLU):
    def forward(self, x):
        return self.save_for_backward(np.where(x > 0, x, 0.1 * x), x > 0)


class OwnForward(Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnState(Named):
    def __init__(self):
        super().__init__()
        self.scale = Parameter(np.ones(1, "float32"))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Sequential(Flatten(), Linear(3072, 3), Leaky()),
        lambda: OwnForward(Flatten(), Linear(3072, 3)),
        OwnState,
        lambda: Linear(3, 2),
    ],
)
def test_weights_of_other_networks_are_saved_and_loading_says_how(tmp_path, build):
    net, other = worn(build()), build()
    save(tmp_path / "net", net)
    with pytest.raises(
        FormatError, match=f"of the class '{type(net).__name__}': build it, then call .*load_weights"
    ):
        load(tmp_path / "net")
    load_weights(tmp_path / "net", other)
    assert_same_bits(net, other)


# VGGs that have been changed


def with_another_head():
    net = vgg11(**SMALL)
    net.classifier.layers[6] = Linear(16, 3)
    return net


def with_a_shorter_head():
    net = vgg11(**SMALL | {"image_size": 64})
    net.classifier = Sequential(Linear(128, 3))
    return net


def with_another_eps():
    net = vgg11(**SMALL, batch_norm=True)
    for layer in net.features:
        if isinstance(layer, BatchNorm2d):
            layer.eps = 1e-3
    return net


def with_less_dropout():
    net = vgg11(**SMALL)
    net.classifier[2].p = 0.1
    return net


@pytest.mark.parametrize(
    ("build", "changed"),
    [
        (with_another_head, ["classifier.6"]),
        (with_a_shorter_head, ["classifier"]),
        (with_another_eps, [f"features.{i}" for i in (1, 5, 9, 12, 16, 19, 23, 26)]),
        (with_less_dropout, ["classifier.2"]),
    ],
)
def test_a_changed_vgg_comes_back_with_its_changes(tmp_path, build, changed):
    net = build()
    size = net.settings()["image_size"]
    net = worn(net)
    save(tmp_path / "net", net)
    again = load(tmp_path / "net")
    assert type(again) is VGG and list(again.info["changes"]) == changed
    x = random_images(size=size)
    assert (again.forward(x) == net.forward(x)).all() and repr(again.classifier) == repr(net.classifier)
    other = build()
    load_weights(tmp_path / "net", other)
    assert (other.eval().forward(x) == net.forward(x)).all()


def test_a_subclass_of_vgg_is_the_same_chain_or_not_described(tmp_path):
    class Same(VGG):
        pass

    class Other(VGG):
        def forward(self, x):
            return -super().forward(x)

    round_trip(tmp_path / "same", Same("vgg11", **SMALL))
    save(tmp_path / "other", Other("vgg11", **SMALL))
    with pytest.raises(FormatError, match="of the class 'Other'"):
        load(tmp_path / "other")


def test_a_vgg_with_a_layer_of_ones_own_is_not_described(tmp_path):
    net = vgg11(**SMALL)
    net.features.layers[1] = Leaky()
    save(tmp_path / "net", net)
    with pytest.raises(FormatError, match="layers from outside scratchnet, of the class 'VGG'"):
        load(tmp_path / "net")


# What does not fit is refused before anything is written


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        ({"class_names": list(range(10))}, "class_names must be a list of strings, not .0, 1"),
        ({"class_names": "abcdefghij"}, "class_names must be a list of strings"),
        ({"class_names": ["cat", "dog"]}, "the network has 10 classes, and class_names 2"),
        ({"mean": [0.5]}, "mean must be finite numbers, one per channel|mean is not 3 finite numbers"),
        (
            {"mean": [0.5, 0.5, float("nan")]},
            "mean must be finite numbers, one per channel|mean is not 3 finite numbers",
        ),
        ({"std": [0.5, 0.5, 0.0]}, "std must be finite numbers above zero"),
    ],
)
def test_arguments_that_load_would_refuse_are_refused(tmp_path, info, sentence):
    with pytest.raises(ValueError, match=sentence):
        save(tmp_path / "net", vgg11(**SMALL), **info)
    assert os.listdir(tmp_path) == []


def test_a_parameter_that_the_settings_do_not_give_is_refused(tmp_path):
    net = Sequential(Flatten(), Linear(4, 2))
    net[1].weight = Parameter(np.zeros((5, 2), "float32"))
    with pytest.raises(
        ValueError, match=r"1.weight is \(5, 2\), where the settings of its layers make it \(4, 2\)"
    ):
        save(tmp_path / "net", net)
    assert os.listdir(tmp_path) == []


def test_what_a_loaded_network_says_about_itself_can_be_saved_with_another(tmp_path):
    save(tmp_path / "vgg", vgg11(**SMALL), data="CIFAR-10")
    save(tmp_path / "net", free(), **load(tmp_path / "vgg").info)
    info = load(tmp_path / "net").info
    assert "model" not in info and info["data"] == "CIFAR-10"


# Descriptions that are none

CONV = {"class": "Conv2d", "settings": {"in_channels": 3, "out_channels": 4}}


@pytest.mark.parametrize(
    "chain",
    [
        {},
        CONV,
        {"class": "Sequential"},
        {"class": "Sequential", "layers": []},
        {"class": "Sequential", "layers": {"0": 3}},
        {"class": "Sequential", "layers": {"0": {"class": "Layer", "settings": {}}}},
        {"class": "Sequential", "layers": {"0": {"class": "os.system", "settings": {}}}},
        {"class": "Sequential", "layers": {"0": CONV | {"settings": {"in_channels": 3}}}},
        {"class": "Sequential", "layers": {"0": CONV | {"settings": CONV["settings"] | {"rng": 1}}}},
        {
            "class": "Sequential",
            "layers": {"0": CONV | {"settings": CONV["settings"] | {"in_channels": "3"}}},
        },
        {"class": "Chain", "layers": {"x": {"class": "BatchNorm2d", "settings": {"num_features": 10**12}}}},
        {"class": "Chain", "layers": {"x": CONV}},
        {"class": "Chain", "layers": {"forward": CONV, "0": CONV}},
    ],
)
def test_a_damaged_description_is_refused(tmp_path, chain):
    path = tmp_path / "net.safetensors"
    save(path, Sequential(Conv2d(3, 4)))
    tensors, _ = tensorfile.read_tensors(path)
    tensorfile.write_tensors(path, tensors, json.dumps({"chain": chain}))
    with pytest.raises(
        FormatError, match="net.safetensors (has a header that describes no network|does not fit)"
    ):
        load(path)


@pytest.mark.parametrize(
    "changes", [{"": CONV}, {"features.99": CONV}, {"features": 3}, {"nothing.0": CONV}, {"features.0": {}}]
)
def test_damaged_changes_are_refused(tmp_path, changes):
    path = tmp_path / "net.safetensors"
    net = vgg11(**SMALL)
    save(path, net)
    tensors, _ = tensorfile.read_tensors(path)
    tensorfile.write_tensors(path, tensors, json.dumps({"model": net.settings(), "changes": changes}))
    with pytest.raises(FormatError, match="net.safetensors has a header that describes no network"):
        load(path)
