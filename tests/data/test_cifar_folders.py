"""CIFAR's folders: archives that lie there, digests, two processes at once, leftovers; and CIFAR-100."""

import io
import pickle
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest

from scratchnet import data
from scratchnet.data import DataError, cifar10, cifar100
from scratchnet.locks import Lock
from tests.data.test_cifar10 import as_python_2, write_pickles
from tests.data.test_download import FOLDER_ONLY, GOOD, archive, left_in, serve  # noqa: F401
from tests.fakes.cifar_files import RECORDS, binary_files, check, module, small_files, write_binary  # noqa: F401

BINARY = "cifar-10-batches-bin"


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(module._network, "download", lambda *arguments: pytest.fail("downloaded"))


@pytest.mark.parametrize("download", [True, False])
def test_an_archive_that_lies_there_is_unpacked_and_kept(tmp_path, no_network, download):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(GOOD)
    check(cifar10(tmp_path, download=download))
    assert left_in(tmp_path) == [BINARY, "cifar-10-binary.tar.gz"]
    check(cifar10(tmp_path, download=download))


def test_the_archive_of_the_python_version_is_unpacked_too(tmp_path, no_network):
    made = tmp_path / "made"
    made.mkdir()
    folder = write_pickles(made, as_python_2)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    (tmp_path / "made").rename(tmp_path.parent / f"{tmp_path.name} made")
    check(cifar10(tmp_path))
    assert left_in(tmp_path) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


@pytest.mark.parametrize("content", [GOOD[: len(GOOD) // 2], b"hello", archive({"batches.meta.txt": b"x"})])
def test_a_damaged_archive_that_lies_there_is_named_and_left_alone(tmp_path, no_network, content):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz"):
        cifar10(tmp_path)
    assert left_in(tmp_path) == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("name", sorted(binary_files()))
def test_a_bit_that_flips_after_unpacking_is_noticed(tmp_path, no_network, name):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(GOOD)
    cifar10(tmp_path)
    path = tmp_path / BINARY / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is damaged: it has changed since it was unpacked"):
        cifar10(tmp_path)


def test_folders_that_a_killed_unpacking_left_are_removed(tmp_path, no_network):
    left = tmp_path / f".{BINARY}-abc"
    left.mkdir()
    (left / "data_batch_1.bin").write_bytes(bytes(1000))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(GOOD)
    check(cifar10(tmp_path))
    assert left_in(tmp_path) == [BINARY, "cifar-10-binary.tar.gz"]
    left.mkdir()
    check(cifar10(tmp_path))  # also where all is there
    assert left_in(tmp_path) == [BINARY, "cifar-10-binary.tar.gz"]
    left.mkdir()
    with Lock(tmp_path / ".cifar-10.lock"):  # but not under another's hands
        check(cifar10(tmp_path))
        assert left.is_dir()


def test_two_at_once_download_once_and_the_second_says_that_it_waits(tmp_path, serve, monkeypatch, capsys):  # noqa: F811
    server = serve(GOOD)
    first_begun, second_waits = threading.Event(), threading.Event()
    original = module._network.download

    def slow(*arguments):
        first_begun.set()
        assert second_waits.wait(30)
        original(*arguments)

    def say(sentence):
        print(sentence)
        second_waits.set()

    monkeypatch.setattr(module._network, "download", slow)
    monkeypatch.setattr(module, "_say", say)
    found = []
    first = threading.Thread(target=lambda: found.append(cifar10(tmp_path)))
    first.start()
    assert first_begun.wait(30)
    found.append(cifar10(tmp_path))
    first.join()
    for images in found:
        check(images)
    assert len(server.requests) == 1 and left_in(tmp_path) == FOLDER_ONLY
    assert "the CIFAR-10 in" in (said := capsys.readouterr().out) and "is in use by process" in said


def test_a_process_killed_while_unpacking_leaves_nothing_that_the_next_does_not_remove(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(GOOD)
    code = f"""
import os
from scratchnet.data import cifar, download
cifar.RECORDS = {RECORDS}
download.shutil.copyfileobj = lambda *arguments: os.kill(os.getpid(), 9)
cifar.cifar10({str(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert [name for name in left_in(tmp_path) if name.startswith(f".{BINARY}-")]
    check(cifar10(tmp_path))
    assert left_in(tmp_path) == [BINARY, "cifar-10-binary.tar.gz"]


# ---- CIFAR-100 ----


def hundred():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6 * RECORDS, 3072), np.uint8)
    return pixels, rng.integers(0, 20, 6 * RECORDS), rng.integers(0, 100, 6 * RECORDS)


def write_hundred(root, kind):
    pixels, coarse, fine = hundred()
    names = [f"class {k}" for k in range(100)]
    parts = {"train": slice(5 * RECORDS), "test": slice(5 * RECORDS, None)}
    folder = root / f"cifar-100-{kind}"
    folder.mkdir()
    for name, part in parts.items():
        if kind == "binary":
            records = np.column_stack([coarse[part], fine[part], pixels[part]]).astype(np.uint8)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            labels = {"fine_labels": fine[part].tolist(), "coarse_labels": coarse[part].tolist()}
            as_python_2(folder / name, {"data": pixels[part], "filenames": ["a.png"], **labels})
    if kind == "binary":
        (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
        (folder / "coarse_label_names.txt").write_text("x\n" * 20)
    else:
        as_python_2(
            folder / "meta",
            {"fine_label_names": names, "coarse_label_names": [f"kind {k}" for k in range(20)]},
        )
    return folder


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar_100_has_its_fine_labels_in_both_layouts(tmp_path, no_network, kind):
    folder = write_hundred(tmp_path, kind)
    pixels, _, fine = hundred()
    images = cifar100(tmp_path)
    assert images.name == "CIFAR-100" and images.class_names[99] == "class 99"
    both = np.concatenate([images.train_images, images.test_images])
    assert np.array_equal(both.transpose(0, 3, 1, 2).reshape(-1, 3072), pixels)
    assert np.array_equal(np.concatenate([images.train_labels, images.test_labels]), fine)
    assert images.train_labels.dtype == images.test_labels.dtype == np.int64
    assert len(images.test_labels) == RECORDS
    (folder / ("fine_label_names.txt" if kind == "binary" else "meta")).unlink()
    assert cifar100(tmp_path).class_names[99] == "worm"
    assert data.load("cifar100", tmp_path, download=False).name == "CIFAR-100"


def test_cifar_100_s_archive_is_unpacked(tmp_path, no_network):
    folder = write_hundred(tmp_path, "binary")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(stream.getvalue())
    assert len(cifar100(tmp_path, download=False).train_labels) == 5 * RECORDS
    assert left_in(tmp_path) == ["cifar-100-binary", "cifar-100-binary.tar.gz"]


def test_damaged_files_of_cifar_100_are_named(tmp_path, no_network):
    folder = write_hundred(tmp_path, "binary")
    content = bytearray((folder / "test.bin").read_bytes())
    content[1] = 100
    (folder / "test.bin").write_bytes(content)
    with pytest.raises(DataError, match="test.bin is damaged: record 0 has the label 100, not 0 to 99"):
        cifar100(tmp_path)
    (folder / "train.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="train.bin has 5 bytes, where CIFAR-100's has"):
        cifar100(tmp_path)
    python = write_hundred(tmp_path, "python")
    (python / "train").write_bytes(pickle.dumps({"data": 1}))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(DataError, match="train: expected data of uint8"):
        cifar100(tmp_path)


def test_sets_are_told_apart(tmp_path):
    write_binary(tmp_path)
    write_hundred(tmp_path, "binary")
    check(cifar10(tmp_path))
    assert len(cifar100(tmp_path).class_names) == 100
