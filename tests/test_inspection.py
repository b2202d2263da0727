"""Looking into a network: filters, feature maps, Grad-CAM, mistakes."""

import numpy as np
import pytest

from scratchnet import inspection
from scratchnet.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    leaves,
)
from scratchnet.models import vgg11


def small(dtype="float64"):
    """Everything that a VGG has, on images of 8 x 8, with statistics that are not those it began with."""
    rng = np.random.default_rng(3)
    kw = {"dtype": dtype, "rng": rng}
    net = Sequential(
        Sequential(Conv2d(3, 4, **kw), BatchNorm2d(4, dtype=dtype), ReLU(), MaxPool2d()),
        Sequential(Conv2d(4, 6, **kw), BatchNorm2d(6, dtype=dtype), ReLU(), MaxPool2d()),
        Flatten(),
        Linear(24, 5, **kw),
        ReLU(),
        Dropout(0.5),
        Linear(5, 3, **kw),
    )
    for name, array in net.buffers().items():
        array[...] = (
            rng.uniform(0.5, 1.5, array.shape) if name.endswith("var") else rng.normal(size=array.shape)
        )
    net.parameters()["0.0.bias"].data[...] = rng.normal(size=4)
    return net


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tail(net, path, maps):
    """The logits, given the output of one layer, in evaluation."""
    net.eval()
    layers = leaves(net)
    start = [name for name, _ in layers].index(path) + 1
    for _, layer in layers[start:]:
        maps = layer.forward(maps)
    return maps


# The gradient of a logit, and Grad-CAM


@pytest.mark.parametrize("path", ["0.0", "0.2", "0.3", "1.0", "1.2", "1.3"])
def test_the_gradient_is_that_of_central_differences(path):
    net, x, classes = small(), normal(2, 8, 8, 3), [2, 0]
    maps, gradient = inspection.logit_gradient(net, x, classes, path)
    assert maps.shape == gradient.shape
    h, expected = 1e-6, np.empty_like(maps)
    for index in np.ndindex(maps.shape):
        n, step = index[0], np.zeros_like(maps)
        step[index] = h
        up, down = tail(net, path, maps + step), tail(net, path, maps - step)
        expected[index] = (up[n, classes[n]] - down[n, classes[n]]) / (2 * h)
    if path.endswith(".2"):  # where a window is all zero the pooling after the ReLU has a kink
        highest = MaxPool2d().eval().forward(maps)
        alive = highest.repeat(2, axis=1).repeat(2, axis=2) > 0
        gradient, expected = gradient * alive, expected * alive
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    assert abs(gradient).max() > 1e-3


def test_grad_cam_is_the_papers_two_equations():
    net, x = small(), normal(2, 8, 8, 3)
    maps, gradient = inspection.logit_gradient(net, x, 1, "0.2")
    heat = inspection.grad_cam(net, x, 1, "0.2")
    assert heat.shape == (2, 8, 8)
    for n, i, j in np.ndindex(heat.shape):
        alpha = [gradient[n, :, :, k].sum() / 64 for k in range(4)]
        expected = max(0.0, sum(a * maps[n, i, j, k] for k, a in enumerate(alpha)))
        assert heat[n, i, j] == pytest.approx(expected, abs=1e-12)
    assert (heat == 0).any() and (heat > 0).any()


@pytest.mark.parametrize("path", ["0.2", "1.2"])
def test_grad_cam_is_that_of_pytorchs_autograd(path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    G = torch.nn.functional
    net, x, classes = small(), normal(3, 8, 8, 3, seed=5), [0, 1, 2]
    heat = inspection.grad_cam(net, x, classes, path)

    def tensor(array):
        return torch.tensor(np.ascontiguousarray(array))

    y, maps = tensor(x.transpose(0, 3, 1, 2)).requires_grad_(), {}
    for name, layer in leaves(net):
        if isinstance(layer, Conv2d):
            y = G.conv2d(
                y, tensor(layer.weight.data.transpose(3, 2, 0, 1)), tensor(layer.bias.data), padding=1
            )
        elif isinstance(layer, BatchNorm2d):
            statistics = tensor(layer.running_mean), tensor(layer.running_var)
            y = G.batch_norm(
                y, *statistics, tensor(layer.weight.data), tensor(layer.bias.data), eps=layer.eps
            )
        elif isinstance(layer, Linear):
            y = y @ tensor(layer.weight.data) + tensor(layer.bias.data)
        elif isinstance(layer, Flatten):
            y = y.permute(0, 2, 3, 1).flatten(1)
        elif isinstance(layer, ReLU):
            y = G.relu(y)
        elif isinstance(layer, MaxPool2d):
            y = G.max_pool2d(y, 2)
        maps[name] = y
    maps[path].retain_grad()
    y[range(3), classes].sum().backward()
    weights = maps[path].grad.mean(dim=(2, 3), keepdim=True)
    expected = torch.relu((weights * maps[path]).sum(dim=1)).detach().numpy()
    assert expected.max() > 1e-3
    np.testing.assert_allclose(heat, expected, atol=1e-10)


def test_by_default_it_looks_at_the_last_relu_with_maps_and_the_likeliest_class():
    net, x = small(), normal(2, 8, 8, 3)
    likeliest = net.eval().forward(x).argmax(axis=1)
    np.testing.assert_array_equal(
        inspection.grad_cam(net, x), inspection.grad_cam(net, x, list(likeliest), "1.2")
    )


def test_images_of_a_batch_do_not_see_each_other():
    net, x = small(), normal(3, 8, 8, 3)
    run_parallel = inspection.grad_cam(net, x, [0, 1, 2])
    alone = [inspection.grad_cam(net, x[n : n + 1], n)[0] for n in range(3)]
    np.testing.assert_allclose(run_parallel, alone, atol=1e-12)


def test_mode_gradients_statistics_and_generators_stay_as_they_were():
    net, x = small(), normal(2, 8, 8, 3)
    for p in net.parameters().values():
        p.grad = normal(*p.shape, seed=8)
    gradients = {name: p.grad.copy() for name, p in net.parameters().items()}
    statistics = {name: array.copy() for name, array in net.buffers().items()}
    drawn = {path: rng.bit_generator.state for path, rng in net.generators().items()}
    inspection.grad_cam(net, x)
    inspection.feature_maps(net, x)
    assert all(layer.training for _, layer in net.walk())
    assert all((p.grad == gradients[name]).all() for name, p in net.parameters().items())
    assert all((array == statistics[name]).all() for name, array in net.buffers().items())
    assert drawn == {path: rng.bit_generator.state for path, rng in net.generators().items()}


def test_a_network_without_gradients_has_none_afterwards_and_keeps_nothing():
    net = small().eval()
    inspection.grad_cam(net, normal(1, 8, 8, 3))
    assert all(p.grad is None for p in net.parameters().values())
    with pytest.raises(RuntimeError, match="evaluation keeps nothing"):
        net.backward(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "features.9"}, "there is no layer 'features.9': 0.0, 0.1, "),
        ({"layer": "4"}, "the output of 4 is no feature map: choose a layer before it"),
        ({"classes": 3}, "classes must be whole numbers from 0 to 2"),
        ({"classes": [0, -1]}, "classes must be whole numbers from 0 to 2"),
        ({"classes": [0.5, 1.0]}, "classes must be whole numbers from 0 to 2"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_in_a_sentence(arguments, message):
    net = small()
    with pytest.raises(ValueError, match=message):
        inspection.grad_cam(net, normal(2, 8, 8, 3), **arguments)
    assert net.training


def test_a_network_without_a_relu_is_told_so():
    net = Sequential(Conv2d(3, 2, dtype="float64"), GlobalAvgPool2d())
    with pytest.raises(ValueError, match="no ReLU that gives feature maps"):
        inspection.grad_cam(net, normal(1, 4, 4, 3))
    assert inspection.grad_cam(net, normal(1, 4, 4, 3), layer="0").shape == (1, 4, 4)


def test_it_runs_where_the_network_is(device):
    net = small("float32")
    x = normal(2, 8, 8, 3, dtype="float32")
    expected = inspection.grad_cam(net, x, 1), inspection.feature_maps(net, x)["1.3"]
    net.to(device)
    heat, maps = inspection.grad_cam(net, x, 1), inspection.feature_maps(net, x)["1.3"]
    assert type(heat) is type(maps) is np.ndarray
    np.testing.assert_allclose(heat, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps, expected[1], rtol=1e-4, atol=1e-5)
    assert inspection.filters(net).shape == (4, 3, 3, 3)


# Filters and feature maps


def test_filters_are_the_weights_around_grey_on_one_scale():
    net = Sequential(Conv2d(3, 2, dtype="float64"), ReLU())
    weight = net[0].weight.data
    weight[...] = 0
    weight[0, 2, 1, 0], weight[1, 1, 2, 1] = 4.0, -2.0
    images = inspection.filters(net)
    assert images[0, 0, 2, 1] == 1.0 and images[1, 1, 1, 2] == 0.25
    assert (np.delete(images.ravel(), images.ravel() != 0.5) == 0.5).sum() == 2 * 27 - 2
    weight[...] = 0
    assert (inspection.filters(net) == 0.5).all()


@pytest.mark.parametrize("layer", [Conv2d(1, 4), Linear(3, 4)])
def test_only_filters_of_three_colours_are_images(layer):
    with pytest.raises(ValueError, match="red, green and blue"):
        inspection.filters(Sequential(layer))


def test_feature_maps_are_the_outputs_of_relus_and_poolings_in_order():
    net, x = small(), normal(2, 8, 8, 3)
    maps = inspection.feature_maps(net, x)
    assert list(maps) == ["0.2", "0.3", "1.2", "1.3"]
    for path, y in maps.items():
        np.testing.assert_allclose(tail(net, path, y), net.eval().forward(x), atol=1e-12)


def test_a_vggs_layers_have_torchvisions_names():
    net = vgg11(num_classes=10, image_size=32, width=0.0625, classifier_width=8)
    maps = inspection.feature_maps(net, normal(1, 32, 32, 3, dtype="float32"))
    assert list(maps)[-2:] == ["features.19", "features.20"]
    assert maps["features.20"].shape == (1, 1, 1, 32)


def test_the_most_active_channels_come_first():
    maps = np.zeros((2, 2, 4))
    maps[0, 0], maps[:, :, 3] = [0, 4, 2, 0], 3
    assert inspection.most_active(maps, 3).tolist() == [3, 1, 2]
    assert len(inspection.most_active(maps)) == 4


# Mistakes


def test_mistakes_are_sorted_by_how_sure_they_were():
    probabilities = np.array([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.99, 0.01]])
    labels = np.array([0, 0, 0, 1])
    assert inspection.confident_mistakes(probabilities, labels).tolist() == [3, 2, 1]
    assert inspection.confident_mistakes(probabilities, labels, 1).tolist() == [3]
    assert not len(inspection.confident_mistakes(probabilities, np.array([0, 1, 1, 0])))


# Pixels


def test_a_grid_keeps_every_image_and_leaves_transparent_gaps():
    images = np.linspace(0, 1, 5 * 2 * 3 * 3).reshape(5, 2, 3, 3)
    sheet = inspection.grid(images, columns=3)
    assert sheet.shape == (5, 11, 4)
    np.testing.assert_array_equal(sheet[3:5, 4:7, :3], np.rint(255 * images[4]))
    assert (sheet[2, :, 3] == 0).all() and (sheet[:, 3, 3] == 0).all() and (sheet[3:, 8:, 3] == 0).all()
    assert inspection.grid(images[:2], columns=3).shape == (2, 7, 4)


def test_heat_is_scaled_enlarged_and_brightest_where_it_is_hottest():
    image = np.full((8, 8, 3), 100, np.uint8)
    heat = np.zeros((4, 4))
    heat[1, 2] = 0.001
    overlay = inspection.heat_overlay(image, heat)
    brightness = overlay.sum(axis=2)
    assert overlay.shape == (8, 8, 3) and overlay.dtype == np.uint8
    rows, columns = np.nonzero(brightness == brightness.max())
    assert set(rows) <= {2, 3} and set(columns) <= {4, 5}
    np.testing.assert_array_equal(inspection.heat_overlay(image, 1000 * heat), overlay)
    assert (inspection.heat_overlay(image, 0 * heat) == inspection.heat_overlay(image, heat)[7, 0]).all()
