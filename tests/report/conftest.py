"""A run of two epochs on a few images, trained once."""

import shutil
from pathlib import Path

import pytest

from scratchnet import data
from tests.fakes.pages import train, written


@pytest.fixture(scope="session")
def few_images():
    return data.shapes10(n_train=300, n_test=50)


@pytest.fixture(autouse=True)
def builtin_images_are_few(few_images, monkeypatch):
    monkeypatch.setattr(data.named, "shapes10", lambda: few_images)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, few_images):
    """The run's folder, which no test may change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.named, "shapes10", lambda: few_images)
        return train(tmp_path_factory.mktemp("runs") / "tiny", "--batch-norm --lr 0.05 --epochs 2")


@pytest.fixture(scope="session")
def shown(trained, few_images, tmp_path_factory):
    """Its page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.named, "shapes10", lambda: few_images)
        return written(trained, output=tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))
