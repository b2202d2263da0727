"""Files are written whole or not at all, and read as they were when they were opened."""

# ruff: noqa: F811, for the fixture

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from scratchnet import tensorfile
from scratchnet.checkpoint import load, save
from scratchnet.models import VGG, vgg11
from tests.test_checkpoint import CLASSES, SMALL, model, random_images  # noqa: F401


def entries(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_no_other(model, monkeypatch, error):
    before = model.read_bytes()

    def fill_the_disk(tensors, path, metadata):
        Path(path).write_bytes(b"the first part")
        raise error

    monkeypatch.setattr(tensorfile, "save_file", fill_the_disk)
    with pytest.raises(
        OSError, match="model.safetensors cannot be written: .*No space left on device"
    ) as caught:
        save(model, vgg11(**SMALL))
    assert "partial" not in str(caught.value)
    assert model.read_bytes() == before
    assert entries(model.parent) == ["model.safetensors"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_file_and_no_other(model, monkeypatch, step, error):
    before = model.read_bytes()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(tensorfile.os, step, fail)
    with pytest.raises(type(error)):
        save(model, vgg11(**SMALL, seed=1))
    assert model.read_bytes() == before
    assert entries(model.parent) == ["model.safetensors"]


def test_a_folder_that_is_not_there_or_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(OSError, match="absent.net.safetensors cannot be written: No such file or directory"):
        save(tmp_path / "absent" / "net.safetensors", vgg11(**SMALL))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder cannot be written"):
        save(tmp_path / "folder", vgg11(**SMALL))
    assert entries(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="net.safetensors cannot be written: Permission denied"):
        save(tmp_path / "net.safetensors", vgg11(**SMALL))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_files_get_the_permissions_that_the_user_asks_for(tmp_path):
    old = os.umask(0o027)
    try:
        save(tmp_path / "net.safetensors", vgg11(**SMALL))
    finally:
        os.umask(old)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs a name for an open file")
def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(tmp_path, monkeypatch):
    before, after = (VGG("vgg11", **SMALL, seed=seed) for seed in (1, 2))
    save(tmp_path / "model", before)
    save(tmp_path / "newer", after)
    read = tensorfile.TensorFile.read_rows

    def replace_and_read(self, *arguments):
        if (tmp_path / "newer").exists():
            os.replace(tmp_path / "newer", tmp_path / "model")
        return read(self, *arguments)

    monkeypatch.setattr(tensorfile.TensorFile, "read_rows", replace_and_read)
    net = load(tmp_path / "model")
    for a, b in zip(before.parameters().values(), net.parameters().values(), strict=True):
        assert (a.data == b.data).all()
