"""Files are written whole or not at all, and read as they were when they were opened."""

# ruff: noqa: F811, for the fixture

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from scratchnet import tensorfile
from scratchnet.checkpoint import FormatError, load, save
from scratchnet.models import VGG, vgg11
from tests.test_checkpoint import CLASSES, SMALL, model, random_images  # noqa: F401


def entries(folder):
    return sorted(os.listdir(folder))


def test_a_full_disk_leaves_the_old_file_and_no_other(model, monkeypatch):
    before = model.read_bytes()

    def fill_the_disk(file, tensors, header):
        file.write(b"the first part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile, "_write", fill_the_disk)
    words = "model.safetensors cannot be written: No space left on device"
    with pytest.raises(OSError, match=words) as caught:
        save(model, vgg11(**SMALL))
    assert "partial" not in str(caught.value)
    assert model.read_bytes() == before
    assert entries(model.parent) == ["model.safetensors"]


def test_what_is_not_read_back_as_it_was_written_does_not_replace_the_old_file(model, monkeypatch):
    before, write = model.read_bytes(), tensorfile._write

    def write_badly(file, tensors, header):
        write(file, tensors, header)
        file.seek(-1000, os.SEEK_END)
        file.write(b"\0")

    monkeypatch.setattr(tensorfile, "_write", write_badly)
    with pytest.raises(OSError, match="model.safetensors cannot be written: what was read back is not"):
        save(model, vgg11(**SMALL))
    assert model.read_bytes() == before
    assert entries(model.parent) == ["model.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be opened there")
def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_afterwards(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.fstat(fd).st_mode & 0o170000), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), replace(*names)))
    with tensorfile.replacing(tmp_path / "log.csv") as temporary:
        Path(temporary).write_text("epoch")
    assert done == [stat.S_IFREG, "renamed", stat.S_IFDIR]


# The digest

TENSORS = {
    "w": np.random.default_rng(0).standard_normal((40, 50)).astype("float32"),
    "empty": np.zeros((0, 3)),
    "scalar": np.float64(3.5),
    "flags": np.array([True, False, True]),
    "turned": np.arange(6, dtype="int16").reshape(2, 3).T,
}


@pytest.fixture
def written(tmp_path):
    tensorfile.write_tensors(tmp_path / "file", TENSORS, '{"class_names": ["cat", "dog"]}')
    return tmp_path / "file"


def test_safetensors_reads_what_is_written_here(written):
    found = load_file(written)
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    tensors, header = tensorfile.read_tensors(written)
    assert tensors.keys() == TENSORS.keys() and header == '{"class_names": ["cat", "dog"]}'


def test_the_layout_is_that_of_safetensors_itself(written):
    with safe_open(written, "numpy") as file:
        metadata = file.metadata()
    ours = written.read_bytes()
    save_file(
        {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in TENSORS.items()}, written, metadata
    )
    length = int.from_bytes(ours[:8], "little")
    theirs = written.read_bytes()
    assert json.loads(ours[8 : 8 + length]) == json.loads(theirs[8 : 8 + length])
    assert list(json.loads(ours[8 : 8 + length])) == list(json.loads(theirs[8 : 8 + length]))
    assert ours[8 + length :] == theirs[8 + length :]
    tensorfile.read_tensors(written)  # the digest holds, whichever program wrote the file again


def test_one_bit_that_is_another_is_noticed_wherever_it_lies(written):
    content = written.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header = content[:length].rstrip(b" ")
    rng = np.random.default_rng(1)
    places = [*range(len(header)), *rng.integers(length, len(content), 300)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        written.write_bytes(damaged)
        with pytest.raises(FormatError, match="^[^ ]*file "):
            tensorfile.read_tensors(written)


@pytest.mark.parametrize("start", [0, 1, (4 << 20) - 1, 4 << 20, 9 << 20])
def test_every_block_of_a_large_tensor_counts(tmp_path, start):
    path = tmp_path / "large"
    tensorfile.write_tensors(path, {"x": np.zeros((9 << 20) + 1, "uint8")}, "{}")
    with open(path, "rb+") as file:
        file.seek(start - (9 << 20) - 1, os.SEEK_END)
        file.write(b"\1")
    with pytest.raises(FormatError, match="large is damaged: its digest"):
        tensorfile.read_tensors(path)


def test_files_of_other_programs_have_no_digest_and_load(tmp_path):
    for k, metadata in enumerate([None, {}, {"format": "pt"}, {"format": "pt", "digest_of": "x"}]):
        save_file({"x": np.arange(3.0)}, tmp_path / str(k), metadata)
        assert list(tensorfile.read_tensors(tmp_path / str(k))[0]) == ["x"]


def test_a_damaged_network_is_refused_with_the_name_of_its_file(model):
    content = bytearray(model.read_bytes())
    content[-100] ^= 4
    model.write_bytes(content)
    with pytest.raises(FormatError, match="model.safetensors is damaged: its digest says"):
        load(model)


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
