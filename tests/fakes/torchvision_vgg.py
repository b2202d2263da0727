"""torchvision's VGG16 by its structure, built by hand in PyTorch, where torchvision is not installed."""

from types import ModuleType

import pytest

from scratchnet.models import ARCHITECTURES

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn


class VGG(nn.Module):
    """The module of that name, layer for layer, with its names and its adaptive pooling."""

    def __init__(self, batch_norm, num_classes=1000):
        super().__init__()
        features, channels = [], 3
        for entry in ARCHITECTURES["vgg16"]:
            if entry == "M":
                features.append(nn.MaxPool2d(2, 2))
                continue
            norm = [nn.BatchNorm2d(entry)] if batch_norm else []
            features += [nn.Conv2d(channels, channels := entry, 3, padding=1), *norm, nn.ReLU(inplace=True)]
        self.features, self.avgpool = nn.Sequential(*features), nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 49, 4096), nn.ReLU(True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def stand_in():
    """Return a module ``torchvision.models`` that has the two builders."""
    module = ModuleType("torchvision.models")
    with torch.device("cpu"):
        module.vgg16 = lambda **settings: VGG(False, **settings)
        module.vgg16_bn = lambda **settings: VGG(True, **settings)
    return module
