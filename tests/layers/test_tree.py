"""Walks through networks: what they find, in which order, and that asking changes nothing."""

import copy
import io

import numpy as np
import pytest

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
    assemble,
    chain_of,
    leaves,
)
from scratchnet.models import VGG, vgg11
from scratchnet.plans import compile


class Noise(Layer):
    """A layer of the user's own that draws."""

    def __init__(self, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def forward(self, x):
        return self.save_for_backward(x + self.rng.standard_normal(x.shape).astype(x.dtype), None)

    def backward(self, dy):
        self.saved(dy)
        return dy


class Mine(Layer):
    """A composite of the user's own around layers of the package."""

    def __init__(self):
        super().__init__()
        self.body = Sequential(Conv2d(3, 4), ReLU())
        self.head = Linear(64, 2)
        self.flatten = Flatten()

    def chain(self):
        return [self.body, self.flatten, self.head]

    def forward(self, x):
        return self.head.forward(self.flatten.forward(self.body.forward(x)))

    def backward(self, dy):
        return self.body.backward(self.flatten.backward(self.head.backward(dy)))


# Asking, and assembling


def test_asking_changes_nothing():
    net = Mine()
    before = [(layer, dict(vars(layer))) for _, layer in net.walk()]
    buffers = [p.buffer for p in net.parameters().values()]
    net.parameters(), net.buffers(), net.generators(), leaves(net), net.settings(), repr(net)
    assert all(vars(layer) == attributes for layer, attributes in before)
    assert [p.buffer for p in net.parameters().values()] == buffers and len(set(map(id, buffers))) == 2


def test_assembling_gives_paths_and_one_buffer_and_may_be_done_again():
    net = Mine()
    assert assemble(net) is net
    assert net.body[0].label == "body.0 (Conv2d)" and net.label == "Mine"
    buffer = net.head.weight.buffer
    assert {id(p.buffer) for p in net.parameters().values()} == {id(buffer)}
    assemble(net.body)  # a part: paths from the root and the whole network's buffer stay
    assert assemble(net).head.weight.buffer is buffer and net.body[0].path == "body.0"


def test_moving_assembles_first():
    assert len({id(p.buffer) for p in Mine().to("numpy").parameters().values()}) == 1


@pytest.mark.parametrize("ask", ["parameters", "buffers", "generators"])
def test_a_layer_in_two_places_is_refused_whatever_is_asked(ask):
    net = Sequential(ReLU())
    net.layers.append(net[0])
    with pytest.raises(ValueError, match="one ReLU is both '0' and '1': make two"):
        getattr(net, ask)()


class Held(Chain):
    """A chain of what stands in an attribute of the user's choice."""

    def __init__(self, held, listed):
        super().__init__()
        self.held, self.listed = held, (lambda: listed)

    def chain(self):
        return self.listed()


@pytest.mark.parametrize("hold", [list, tuple, lambda layers: dict(zip("ab", layers, strict=True))])
def test_layers_are_found_in_lists_tuples_and_dicts(hold):
    layers = [Linear(2, 3), Dropout()]
    net = Held(hold(layers), layers)
    first, second = ("a", "b") if hold not in (list, tuple) else ("0", "1")
    assert list(net.parameters()) == [f"held.{first}.weight", f"held.{first}.bias"]
    assert [path for path, _ in leaves(assemble(net))] == [f"held.{first}", f"held.{second}"]
    assert not net.eval().held[second if second == "b" else 1].training


@pytest.mark.parametrize("use", [assemble, Layer.parameters, lambda net: compile(net, (4, 2), training=True)])
def test_a_layer_of_a_chain_that_nothing_finds_is_refused(use):
    with pytest.raises(ValueError, match=r"0 \(Held\): chain\(\) lists Linear\(.*, which is no attribute"):
        use(Sequential(Held([[Linear(2, 2)]], [Linear(2, 2)])))


@pytest.mark.parametrize("use", [assemble, leaves, lambda net: net.forward(np.zeros((1, 2), "float32"))])
@pytest.mark.parametrize(
    ("chain", "word"), [({"a": ReLU()}, "str"), ([("a", ReLU())], "tuple"), ([None], "NoneType")]
)
def test_a_chain_of_what_is_no_layer_is_refused(use, chain, word):
    with pytest.raises(ValueError, match=rf"Held.chain\(\) must return layers, not {word}"):
        use(Held(chain, chain))


@pytest.mark.parametrize("hold", [list, tuple, lambda found: dict(enumerate(found))])
def test_parameters_in_a_list_are_refused_since_nothing_would_learn_them(hold):
    layer = Noise(0)
    layer.scales = hold([Parameter([1.0])])
    with pytest.raises(
        ValueError, match=r"1 \(Noise\): scales holds Parameters, which are found only as attr"
    ):
        assemble(Sequential(ReLU(), layer))


def test_generators_are_listed_by_path():
    net = Sequential(ReLU(), Sequential(Dropout()), Dropout())
    assert list(net.generators()) == ["1.0", "2"] and net.generators()["2"] is net[2].rng


def test_generators_of_the_users_layers_are_found_and_those_of_first_weights_are_not():
    rng = np.random.default_rng(0)
    net = Sequential(Conv2d(3, 4, rng=rng), Noise(1), Linear(4, 2, rng=rng), BatchNorm2d(3, rng=rng))
    net[1].second = np.random.default_rng(2)
    assert list(net.generators()) == ["1", "1.second"]


# In which order


def test_leaves_open_chains_within_chains_with_the_names_of_parameters():
    paths = [path for path, _ in leaves(Mine())]
    assert paths == ["body.0", "body.1", "flatten", "head"]
    assert leaves(ReLU())[0][0] == ""
    net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=8)
    named = [f"{path}.{name}" for path, layer in leaves(net) for name in layer.parameters()]
    assert named == list(net.parameters()) and [path for path, _ in leaves(net)].count("pool") == 1


def test_a_layer_of_a_chain_that_is_no_child_has_its_own_path():
    class Hidden(Layer):
        def __init__(self, net):
            super().__init__()
            self.hidden = {"net": net}

        def chain(self):
            return list(self.hidden["net"])

    assert [path for path, _ in leaves(Hidden(Sequential(ReLU(), Sequential(ReLU()))))] == ["0", "1.0"]


def test_no_chain_is_whatever_has_another_forward_or_backward_than_the_class_that_says_it():
    class Doubled(Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    class Longer(VGG):
        pass

    wrapped = Sequential(ReLU())
    wrapped.backward = lambda dy: dy
    assert chain_of(Doubled(ReLU())) is None and chain_of(wrapped) is None and chain_of(ReLU()) is None
    assert len(chain_of(Longer([4, "M"], 2, 4, classifier_width=2))) == 3
    assert leaves(Sequential(Doubled(ReLU())))[0][0] == "0"


# Settings


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(2, 3, 5, stride=2, padding=0, bias=False),
        Linear(np.int64(4), 3),
        MaxPool2d(3, 1),
        BatchNorm2d(3, eps=0.1, momentum=0.5),
        Dropout(0.25),
        ReLU(),
        Flatten(),
        GlobalAvgPool2d(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_settings_build_the_same_layer_again(layer):
    again = type(layer)(**layer.settings())
    assert again.settings() == layer.settings() and repr(again) == repr(layer)
    assert [p.shape for p in again.parameters().values()] == [p.shape for p in layer.parameters().values()]
    assert eval(repr(layer)).settings() == layer.settings()


def test_settings_are_those_of_now():
    layer = Dropout(0.5)
    layer.p = 0.1
    assert layer.settings() == {"p": 0.1} and repr(layer) == "Dropout(p=0.1)"


# What is refused


@pytest.mark.parametrize("value", [np.zeros((2, 2), "float32"), [[1.0]], 3.0])
def test_an_array_in_the_place_of_a_parameter_is_refused(value):
    net = Sequential(Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"0 \(Linear\): weight is a Parameter: write weight.data\[...\] = array"
    ):
        net[0].weight = value
    assert list(net.parameters()) == ["0.weight", "0.bias"]


def test_another_parameter_or_none_may_be_assigned():
    layer = Linear(2, 2)
    layer.weight, layer.bias = Parameter(np.ones((2, 2), "float32")), None
    assert list(copy.deepcopy(layer).parameters()) == ["weight"] and (layer.weight.data == 1).all()


# The table


def test_summary_of_any_network_has_a_row_per_layer_and_activations_beside_them():
    out = io.StringIO()
    Mine().summary((4, 4, 3), file=out)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert [line[0] for line in lines] == ["Layer", "Input", "body.0", "flatten", "head", "Total"]
    assert lines[2] == "body.0 Conv2d 4 x 4 x 4 3 x 3 1 relu 112 1,728 0.00 MB".split()
    assert lines[5] == "Total 242 1,856 0.00 MB".split()


def test_summary_takes_the_side_of_square_images_and_says_what_it_needs():
    out = io.StringIO()
    Sequential(Conv2d(3, 4), GlobalAvgPool2d()).summary(8, file=out)
    assert "Input               8 x 8 x 3" in out.getvalue()
    with pytest.raises(ValueError, match="Sequential: summary needs the shape of one input"):
        Sequential(ReLU()).summary()
