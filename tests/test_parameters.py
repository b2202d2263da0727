"""Parameters, and the flat arrays in which those of a network lie."""

import copy
import pickle

import numpy as np
import pytest

from scratchnet.layers import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    Parameter,
    ReLU,
    Sequential,
    assemble,
)
from scratchnet.parameters import FlatBuffer


def network(**common):
    features = Sequential(Conv2d(3, 4, **common), BatchNorm2d(4, **common), ReLU())
    return Sequential(
        features, Flatten(), Sequential(Linear(64, 5, **common), Linear(5, 2, bias=False, **common))
    )


def images(dtype="float32"):
    return np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(dtype)


# One Parameter


def test_values_are_copied_in():
    values = np.ones(3, "float32")
    p = Parameter(values)
    values[0] = 7
    assert p.data.tolist() == [1, 1, 1]


def test_a_parameter_knows_its_shape_without_being_allocated():
    p = Parameter(shape=(2, 3))
    assert (p.shape, p.ndim, p.size, p.dtype) == ((2, 3), 2, 6, np.float32)
    assert p.buffer.data is None
    assert p.data.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_parameter_needs_data_or_a_shape():
    with pytest.raises(ValueError, match="needs data, or a shape"):
        Parameter()


def test_whole_numbers_become_float32_and_an_integer_dtype_is_refused():
    assert Parameter([1, 2]).dtype == np.float32
    assert Parameter(np.ones(2)).dtype == np.float64
    with pytest.raises(ValueError, match="floating point, not int64"):
        Parameter(shape=(2,), dtype="int64")


def test_grad_is_none_before_the_first_backward_and_can_be_forgotten():
    p = Parameter(np.ones(3, "float32"))
    assert p.grad is None and p.buffer.grad is None
    p.grad = np.array([1.0, 2.0, 3.0])
    assert p.grad.tolist() == [1, 2, 3] and p.grad.dtype == np.float32
    p.grad = None
    assert p.grad is None


def test_assigning_copies_into_place():
    p = Parameter(np.ones((2, 2), "float32"))
    view, gradient = p.data, np.ones((2, 2))
    p.data = [[5, 6], [7, 8]]
    assert view.tolist() == [[5, 6], [7, 8]]
    p.grad = gradient
    gradient[...] = 0
    assert (p.grad == 1).all()


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((1, 2, 2)), 1.0, np.ones((2, 1))])
def test_nothing_is_stretched_to_fit(wrong):
    p = Parameter(np.zeros((2, 2), "float32"))
    with pytest.raises(ValueError, match=r"this parameter has the shape \(2, 2\), the array"):
        p.data = wrong
    with pytest.raises(ValueError, match=r"this parameter has the shape \(2, 2\), the array"):
        p.grad = wrong
    assert (p.data == 0).all() and p.grad is None


def test_a_value_assigned_before_first_use_is_not_drawn_over():
    layer = Linear(2, 2)
    layer.weight.data = np.full((2, 2), 3.0)
    assert (layer.weight.data == 3).all() and (layer.bias.data == 0).all()


def test_data_is_writable_in_place():
    p = Parameter(np.ones(3, "float32"))
    p.data[1] = 5
    p.data *= 2
    assert p.data.tolist() == [2, 10, 2]


def test_a_scalar_parameter():
    p = Parameter(np.float32(3.0))
    p.grad = np.float32(2.0)
    assert p.shape == () and float(p.data) == 3 and float(p.grad) == 2


# A network's buffer


def test_all_parameters_of_nested_networks_lie_in_one_contiguous_buffer_in_order():
    net = network()
    parameters = net.parameters()
    assert list(parameters) == [
        "0.0.weight",
        "0.0.bias",
        "0.1.weight",
        "0.1.bias",
        "2.0.weight",
        "2.0.bias",
        "2.1.weight",
    ]
    buffer = net[0][0].weight.buffer
    values = np.concatenate([p.data.ravel() for p in parameters.values()])
    assert buffer.size == buffer.data.size == values.size
    assert (buffer.data == values).all()
    for p in parameters.values():
        assert p.buffer is buffer and np.shares_memory(p.data, buffer.data)
        assert p.data.flags.c_contiguous


def test_gradients_lie_in_a_second_buffer_with_the_same_places():
    net = network()
    net.backward(np.ones_like(net.forward(images())))
    buffer = net[0][0].weight.buffer
    for p in net.parameters().values():
        assert np.shares_memory(p.grad, buffer.grad)
        offset = p.grad.__array_interface__["data"][0] - buffer.grad.__array_interface__["data"][0]
        assert offset == p.data.__array_interface__["data"][0] - buffer.data.__array_interface__["data"][0]


def test_nothing_is_allocated_until_it_is_used():
    net = network()
    buffer = net[0][0].weight.buffer
    assert buffer.data is None and buffer.grad is None
    net.forward(images())
    assert buffer.data is not None and buffer.grad is None


def test_evaluation_never_allocates_gradients():
    net = network().eval()
    net.forward(images())
    assert net[0][0].weight.buffer.grad is None


def test_values_and_gradients_are_kept_when_a_layer_joins_a_network():
    layer = Linear(3, 2)
    layer.weight.data = np.arange(6.0).reshape(3, 2)
    layer.bias.grad = np.array([1.0, 2.0])
    first = layer.parameters()["weight"]
    net = Sequential(ReLU(), layer)
    assert net.parameters()["1.weight"] is first
    assert layer.weight.data.ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert layer.bias.grad.tolist() == [1, 2] and layer.weight.grad is None


def test_asking_for_parameters_again_moves_nothing():
    net = network()
    net.forward(images())
    buffer, place = net[0][0].weight.buffer, net[0][0].weight.data.__array_interface__["data"]
    assert assemble(net) is net
    assemble(net[0])
    assert net[0][0].weight.buffer is buffer
    assert net[0][0].weight.data.__array_interface__["data"] == place


def test_a_layer_that_is_appended_later_is_gathered():
    net = Sequential(Linear(3, 2))
    before = net[0].weight.data.copy()
    net.layers.append(Linear(2, 2))
    assemble(net)
    assert list(net.parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert net[0].weight.buffer is net[1].weight.buffer and (net[0].weight.data == before).all()


def test_the_version_grows_when_values_are_assigned_and_not_by_gradients():
    net = network()
    net.forward(images())
    buffer = net[0][0].weight.buffer
    version = buffer.version
    net.backward(np.ones((2, 2), "float32"))
    assert buffer.version == version
    net[0][0].bias.data = np.ones(4, "float32")
    assert buffer.version > version


def test_cast_changes_the_element_type_and_keeps_the_values():
    net = network()
    net.backward(np.ones_like(net.forward(images())))
    before = [(p.data.copy(), p.grad.copy()) for p in net.parameters().values()]
    net[0][0].weight.buffer.cast("float64")
    for p, (data, grad) in zip(net.parameters().values(), before, strict=True):
        assert p.dtype == p.data.dtype == p.grad.dtype == np.float64
        assert (p.data == data).all() and (p.grad == grad).all()


# What is refused


def test_one_layer_in_two_places_is_refused():
    relu = ReLU()
    with pytest.raises(ValueError, match="one ReLU is both '0' and '2': make two"):
        Sequential(relu, Linear(2, 2), relu)


def test_one_parameter_in_two_layers_is_refused():
    a, b = Linear(2, 2), Linear(2, 2)
    b.weight = a.weight
    with pytest.raises(ValueError, match="one Parameter is both '0.weight' and '1.weight'"):
        Sequential(a, b)


def test_layers_of_different_dtypes_are_refused():
    with pytest.raises(ValueError, match="one dtype, and these have float32 and float64"):
        Sequential(Linear(2, 2), Linear(2, 2, dtype="float64"))


# Copies


def test_a_deep_copy_is_independent():
    net = network()
    net.forward(images())
    twin = copy.deepcopy(net)
    assert twin[0][0].weight.buffer is not net[0][0].weight.buffer
    assert twin[0][0].weight.buffer is twin[2][1].weight.buffer
    before = net[0][0].weight.data.copy()
    for p in twin.parameters().values():
        p.data[...] = 9
    twin[0][1].running_mean[...] = 9
    assert (net[0][0].weight.data == before).all() and (net[0][1].running_mean != 9).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("init", ["he", "pytorch", "normal"])
def test_a_copy_made_before_first_use_draws_the_same_weights(copied, init):
    rng = np.random.default_rng(1)
    net = Sequential(Linear(4, 3, rng=rng, init=init), Linear(3, 2, rng=rng, init=init))
    state = rng.bit_generator.state
    twin = copied(net)
    values = [p.data.copy() for p in twin.parameters().values()]
    assert rng.bit_generator.state == state, "filling the copy has used the original's generator"
    assert all((p.data == v).all() for p, v in zip(net.parameters().values(), values, strict=True))


def test_a_used_network_can_be_pickled():
    net = network()
    net.backward(np.ones_like(net.forward(images())))
    twin = pickle.loads(pickle.dumps(net))
    assert (twin.eval().forward(images()) == net.eval().forward(images())).all()
    assert (twin[0][0].weight.grad == net[0][0].weight.grad).all()


# Layers that users write


def test_layers_in_attributes_and_lists_are_found():
    class Block(Layer):
        def __init__(self):
            super().__init__()
            self.first = Linear(2, 2)
            self.rest = [Linear(2, 2), ReLU(), Linear(2, 2)]
            self.scale = Parameter(np.ones(2, "float32"))

    block = assemble(Block())
    expected = [
        "scale",
        "first.weight",
        "first.bias",
        "rest.0.weight",
        "rest.0.bias",
        "rest.2.weight",
        "rest.2.bias",
    ]
    assert list(block.parameters()) == expected
    assert len({id(p.buffer) for p in block.parameters().values()}) == 1


def test_an_empty_buffer():
    assert FlatBuffer([]).size == 0 and Sequential(ReLU()).parameters() == {}
