"""``interop.load`` takes any file: PyTorch's VGG in either format, timm's, ONNX, safetensors."""

from collections import OrderedDict

import numpy as np
import pytest

from scratchnet import checkpoint, interop, models
from scratchnet.models import ARCHITECTURES
from scratchnet.tensorfile import FormatError

torch = pytest.importorskip("torch", reason="PyTorch, the other side, is not installed")
nn = torch.nn
EIGHT = [(name, norm) for name in ("vgg11", "vgg13", "vgg16", "vgg19") for norm in (False, True)]


def torchvision_vgg(name, norm, first=0, size=64, classes=7, hidden=24):
    """Build torchvision's VGG by its structure, an eighth as wide; ``first`` numbers its linear layers."""
    torch.manual_seed(0)
    features, channels = [], 3
    for entry in ARCHITECTURES[name]:
        if entry == "M":
            features.append(nn.MaxPool2d(2, 2))
            continue
        features.append(nn.Conv2d(channels, channels := entry // 8, 3, padding=1))
        features += [nn.BatchNorm2d(channels)] if norm else []
        features.append(nn.ReLU(inplace=True))
    pixels = (size // 32) ** 2
    linear = nn.Linear(channels * pixels, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, classes)
    rest = [nn.ReLU(), nn.Dropout()] if first == 0 else [nn.Dropout(), nn.ReLU()]
    head = [linear[0], *rest, linear[1], *rest, linear[2]]
    if first:
        head = [nn.Dropout(), linear[0], nn.ReLU(), nn.Dropout(), linear[1], nn.ReLU(), linear[2]]
    net = nn.Sequential(OrderedDict(features=nn.Sequential(*features), flat=nn.Flatten()))
    net.add_module("classifier", nn.Sequential(*head))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def assert_same_logits(path, twin, size=64):
    x = np.random.default_rng(1).standard_normal((2, size, size, 3)).astype("float32")
    with torch.no_grad():
        wanted = twin(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    net = interop.load(path)
    assert not net.training
    assert abs(net.forward(x) - wanted).max() <= 1e-5 * max(1.0, abs(wanted).max())
    return net


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name, norm", EIGHT)
def test_torchvisions_vggs_have_pytorchs_logits(tmp_path, name, norm, legacy):
    twin = torchvision_vgg(name, norm)
    torch.save(twin.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    net = assert_same_logits(tmp_path / "a.pth", twin)
    assert net.settings()["batch_norm"] is norm and net.settings()["num_classes"] == 7


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes_and_wrapping_are_looked_through(tmp_path, prefix):
    twin = torchvision_vgg("vgg11", False)
    state = {prefix + name: tensor for name, tensor in twin.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pth")
    assert_same_logits(tmp_path / "a.pth", twin)


def test_older_numbering_of_the_classifier(tmp_path):
    twin = torchvision_vgg("vgg11", False, first=1)
    assert "classifier.1.weight" in twin.state_dict()
    torch.save(twin.state_dict(), tmp_path / "a.pth")
    assert_same_logits(tmp_path / "a.pth", twin)


def test_timms_names_and_convolutions(tmp_path):
    twin = torchvision_vgg("vgg16", True)
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    state = OrderedDict()
    for name, tensor in twin.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in ("classifier.0", "classifier.3") and kind == "weight":
            side = 2 if layer == "classifier.0" else 1
            tensor = tensor.reshape(len(tensor), -1, side, side)
        state[f"{names.get(layer, layer)}.{kind}"] = tensor
    torch.save(state, tmp_path / "a.pth")
    assert_same_logits(tmp_path / "a.pth", twin)


def test_half_precision_is_widened(tmp_path):
    twin = torchvision_vgg("vgg11", False)
    torch.save({name: tensor.bfloat16() for name, tensor in twin.state_dict().items()}, tmp_path / "a.pth")
    twin.load_state_dict(torch.load(tmp_path / "a.pth"))
    assert_same_logits(tmp_path / "a.pth", twin)


def test_safetensors_and_onnx_go_the_same_way(tmp_path):
    net = models.vgg11(num_classes=5, image_size=32, width=0.125, classifier_width=16).eval()
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32")
    checkpoint.save(tmp_path / "a.safetensors", net, class_names=list("abcde"))
    assert interop.load(tmp_path / "a.safetensors").info["class_names"] == list("abcde")
    pytest.importorskip("onnx", reason="onnx is not installed")
    interop.save_onnx(tmp_path / "a.onnx", net, (32, 32, 3), class_names=list("abcde"))
    read = interop.load(tmp_path / "a.onnx")
    assert read.info["class_names"] == list("abcde") and read.info["image_size"] == 32
    np.testing.assert_allclose(read.forward(x), net.forward(x), rtol=1e-5, atol=1e-6)


def test_other_files_get_a_sentence(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 100)
    with pytest.raises(FormatError, match=r"a\.h5 is a file of Keras.*\n    import keras"):
        interop.load(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match="nothing"):
        interop.load(tmp_path / "nothing.pth")
    torch.save({"weight": torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(FormatError, match="a.pth holds no VGG"):
        interop.load(tmp_path / "a.pth")
