"""Runs load in torchvision by the lines of the README, and torchvision's weights here."""

import sys
from types import ModuleType

import numpy as np
import pytest

from scratchnet import checkpoint, interop
from scratchnet.models import vgg16
from tests.test_readme import blocks

torch = pytest.importorskip("torch", reason="PyTorch, the other side, is not installed")
LINES = next(code for code in blocks("examples/README.md", "python") if "torchvision" in code)


@pytest.fixture(params=["by hand", "torchvision"])
def models(request, monkeypatch):
    """torchvision's models, or the same built by hand."""
    if request.param == "torchvision":
        return pytest.importorskip("torchvision", reason="torchvision is not installed").models
    from tests.fakes.torchvision_vgg import stand_in

    package, module = ModuleType("torchvision"), stand_in()
    package.models = module
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", module)
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 32, "batch_norm": True},
        {"image_size": 32},
        {"image_size": 75, "batch_norm": True},
        {"image_size": 48, "head": "gap"},
    ],
    ids=str,
)
def test_a_run_loads_by_the_lines_of_the_readme(models, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = vgg16(10, **settings, classifier_width=64).eval()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    checkpoint.save("runs/mine/best.safetensors", net)
    names = {}
    exec(LINES if net.settings()["batch_norm"] else LINES.replace("vgg16_bn", "vgg16"), names)
    size = settings["image_size"]
    x = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype("float32")
    with torch.no_grad():
        theirs = names["net"](torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(net.forward(x), theirs, rtol=1e-4, atol=1e-5)


def test_torchvisions_own_weights_have_its_logits(models, tmp_path):
    torch.manual_seed(0)
    theirs = models.vgg16().eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth", _use_new_zipfile_serialization=False)
    net = interop.load(tmp_path / "vgg16.pth")
    assert net.info["class_names"][0] == "tench"
    assert net.settings()["architecture"] == "vgg16" and net.settings()["image_size"] == 224
    x = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype("float32")
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert abs(net.forward(x) - wanted).max() <= 1e-5 * max(1.0, abs(wanted).max())
