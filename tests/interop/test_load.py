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


# Files that hold less than a VGG, or more


def features_of(twin):
    return OrderedDict((n, t) for n, t in twin.state_dict().items() if n.startswith("features."))


@pytest.mark.parametrize("norm", [False, True])
def test_a_file_of_the_features_only_gives_their_maps(tmp_path, norm):
    twin = torchvision_vgg("vgg11", norm)
    extra = OrderedDict(more=torch.ones(3), other=torch.ones(2, 2))
    torch.save(features_of(twin) | extra, tmp_path / "a.pth")
    net = assert_same_logits(tmp_path / "a.pth", first_map := nn.Sequential(twin.features, Last()))
    assert first_map is not None and net.info["left_out"] == ["more", "other"]
    assert all(name.startswith("features.") for name in net.parameters())


class Last(nn.Module):
    """Channels last, as here."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["classifier", "fc", "classifier.1", "module.head"])
@pytest.mark.parametrize("pooled", [False, True])
def test_one_linear_layer_after_the_features(tmp_path, pooled, name, bias):
    twin = torchvision_vgg("vgg11", True)
    linear = nn.Linear(64 if pooled else 64 * 4, 5, bias=bias)
    pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
    whole = nn.Sequential(twin.features, pool, nn.Flatten(), linear).eval()
    prefix = "module." if name.startswith("module.") else ""
    state = {prefix + n: t for n, t in features_of(twin).items()}
    state |= {f"{name}.{n}": t for n, t in linear.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    net = assert_same_logits(tmp_path / "a.pth", whole)
    assert net.info["left_out"] == [] and net.info["image_size"] == (32 if pooled else 64)
    checkpoint.save(tmp_path / "b.safetensors", net)
    assert_same_logits(tmp_path / "b.safetensors", whole)


def test_other_layers_after_the_features_are_left_out_and_listed(tmp_path):
    twin = torchvision_vgg("vgg11", False)
    state = features_of(twin) | {
        "classifier.0.weight": torch.ones(9, 64),
        "classifier.6.weight": torch.ones(2, 9),
    }
    torch.save(state, tmp_path / "a.pth")
    assert interop.load(tmp_path / "a.pth").info["left_out"] == ["classifier.0.weight", "classifier.6.weight"]


def test_what_a_whole_vgg_has_no_place_for_is_listed(tmp_path):
    twin = torchvision_vgg("vgg11", True)
    torch.save(twin.state_dict() | {"aux.weight": torch.ones(2, 2)}, tmp_path / "a.pth")
    assert assert_same_logits(tmp_path / "a.pth", twin).info["left_out"] == ["aux.weight"]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_timms_safetensors_and_a_thousand_classes(tmp_path, kind):
    twin = torchvision_vgg("vgg11", False, classes=1000)
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    state = OrderedDict()
    for name, tensor in twin.state_dict().items():
        layer, _, part = name.rpartition(".")
        state[f"{names.get(layer, layer)}.{part}"] = tensor.contiguous()
    if kind == "pth":
        torch.save(state, tmp_path / "a")
    else:
        from safetensors.torch import save_file

        save_file(state, tmp_path / "a", {"format": "pt"})
    net = assert_same_logits(tmp_path / "a", twin)
    assert net.info["class_names"][281] == "tabby" and net.info["crop"] == 0.875
    assert net.info["mean"] == [0.485, 0.456, 0.406]
    checkpoint.save(tmp_path / "b", net, **{k: v for k, v in net.info.items() if k != "model"})
    assert interop.load(tmp_path / "b").info["class_names"][0] == "tench"


def test_a_thousand_classes_of_grey_images_are_not_imagenets(tmp_path):
    net = models.vgg11(1000, image_size=32, width=0.125, classifier_width=16, in_channels=1)
    checkpoint.save(tmp_path / "a", net)
    from safetensors.numpy import load_file, save_file

    save_file(load_file(tmp_path / "a"), tmp_path / "b")
    assert "class_names" not in interop.load(tmp_path / "b").info


def test_metadata_of_others_that_mean_something_else_are_left_out(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    net = models.vgg11(num_classes=5, image_size=32, width=0.125, classifier_width=16).eval()
    facts = {"mean": [10**400, 0, 0], "class_names": "cat,dog", "image_size": -1, "author": "me"}
    interop.save_onnx(tmp_path / "a.onnx", net, (32, 32, 3), metadata=facts)
    info = interop.load(tmp_path / "a.onnx").info
    assert len(info["left_out"]) == 3 and "mean must be" in info["left_out"][0]
    assert info["author"] == "me" and "mean" not in info and "class_names" not in info
