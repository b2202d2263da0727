"""CIFAR-10's readers on whole and on damaged files."""

import importlib
import os
import pickle
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest

from scratchnet.data import DataError, MissingDataError, cifar10
from tests.fakes.cifar_files import (
    BATCHES,
    NAMES,
    OFFICIAL_RECORDS,
    RECORDS,
    batch,
    check,
    module,
    small_files,  # noqa: F401
    write_binary,
)


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 and NumPy 1 wrote: byte strings, and NumPy's names of that time."""

    def save_bytes(self, value):
        short = len(value) < 256
        self.write((b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value)
        self.memoize(value)

    def save_str(self, value):
        self.save_bytes(value.encode("ascii"))

    def save_global(self, value, name=None):
        where = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{where}\n{name or value.__name__}\n".encode())
        self.memoize(value)

    dispatch = dict(pickle._Pickler.dispatch)
    dispatch[bytes], dispatch[str] = save_bytes, save_str
    dispatch[type(len)] = dispatch[type(save_str)] = save_global


def write_pickles(root, dump):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for k, name in enumerate(BATCHES):
        pixels, labels = batch(k)
        dump(folder / name, {"batch_label": name, "labels": labels.tolist(), "data": pixels})
    dump(folder / "batches.meta", {"num_cases_per_batch": RECORDS, "label_names": NAMES, "num_vis": 3072})
    return folder


def as_python_2(path, value):
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(value)


# ---- reading ----


def test_official_sizes_and_address():
    assert OFFICIAL_RECORDS == 10000
    assert module.CIFAR10.md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert module.CIFAR10.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert module.CIFAR100.url == "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    assert len(set(module.CIFAR100.class_names)) == 100 and list(module.CIFAR10.class_names) == NAMES


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_reads_the_binary_version(tmp_path, kind):
    write_binary(tmp_path)
    check(cifar10(kind(tmp_path)))


def test_reads_the_python_version_of_python_2(tmp_path):
    write_pickles(tmp_path, as_python_2)
    check(cifar10(tmp_path))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_reads_the_python_version_pickled_again_by_python_3(tmp_path, protocol):
    write_pickles(tmp_path, lambda path, value: path.write_bytes(pickle.dumps(value, protocol)))
    check(cifar10(tmp_path))


def test_the_binary_version_is_preferred(tmp_path):
    write_binary(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    check(cifar10(tmp_path, download=False))


def test_nothing_there_and_no_download(tmp_path):
    with pytest.raises(MissingDataError, match="neither cifar-10-batches-bin nor cifar-10-batches-py"):
        cifar10(tmp_path, download=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write, names", [(write_binary, "batches.meta.txt"), (None, "batches.meta")])
def test_missing_class_names_are_those_of_the_data_set(tmp_path, no_download, write, names):
    folder = write(tmp_path) if write else write_pickles(tmp_path, as_python_2)
    (folder / names).unlink()
    check(cifar10(tmp_path))


def test_folders_within_are_found_and_the_inner_folder_itself_will_do(tmp_path, no_download):
    deeper = tmp_path / "data" / "cifar"
    deeper.mkdir(parents=True)
    folder = write_binary(deeper)
    for root in (folder, deeper, tmp_path / "data", tmp_path):
        check(cifar10(root))
    outer = tmp_path / "twice" / folder.name  # as some programs unpack archives
    outer.mkdir(parents=True)
    folder.rename(outer / folder.name)
    check(cifar10(tmp_path / "twice"))


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="is not a folder"):
        cifar10(tmp_path / "file")
    (tmp_path / "cifar-10-batches-bin").write_bytes(b"")
    with pytest.raises(DataError, match="cifar-10-batches-bin"):
        cifar10(tmp_path)


# ---- damaged files: each is named, and nothing is downloaded over them ----


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(module, "_fetch", lambda *where: pytest.fail("downloaded over a damaged folder"))


@pytest.mark.parametrize("name", [f"{name}.bin" for name in BATCHES])
def test_a_missing_binary_file_is_named(tmp_path, no_download, name):
    (write_binary(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        cifar10(tmp_path)


@pytest.mark.parametrize("name", BATCHES)
def test_a_missing_pickle_is_named(tmp_path, no_download, name):
    (write_pickles(tmp_path, as_python_2) / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b"", lambda c: c[: 3073 * 3]]
)
def test_a_binary_file_of_another_size_is_named(tmp_path, no_download, change):
    path = write_binary(tmp_path) / "data_batch_4.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"data_batch_4.bin has [\d,]+ bytes, where CIFAR-10's has 61,460"):
        cifar10(tmp_path)


def test_a_binary_file_with_an_impossible_label_is_named(tmp_path, no_download):
    path = write_binary(tmp_path) / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[7 * 3073] = 10
    path.write_bytes(content)
    with pytest.raises(DataError, match="test_batch.bin is damaged: record 7 has the label 10"):
        cifar10(tmp_path)


def test_a_folder_in_place_of_a_binary_file_is_named(tmp_path, no_download):
    path = write_binary(tmp_path) / "test_batch.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="test_batch.bin cannot be read"):
        cifar10(tmp_path)


@pytest.mark.parametrize("content", [b"", b"airplane\n", b"\xff\xfe\x00" * 9])
def test_damaged_class_names_are_refused(tmp_path, no_download, content):
    (write_binary(tmp_path) / "batches.meta.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"batches.meta.txt names \d classes"):
        cifar10(tmp_path)


PIXELS, LABELS = np.zeros((RECORDS, 3072), np.uint8), [0] * RECORDS


@pytest.mark.parametrize(
    "content",
    [
        {"labels": LABELS},
        {"data": PIXELS},
        {"data": PIXELS[:-1], "labels": LABELS},
        {"data": PIXELS.astype(np.float32), "labels": LABELS},
        {"data": PIXELS.tolist(), "labels": LABELS},
        {"data": PIXELS, "labels": LABELS[:-1]},
        {"data": PIXELS, "labels": [10, *LABELS[1:]]},
        {"data": PIXELS, "labels": [-1, *LABELS[1:]]},
        {"data": PIXELS, "labels": ["cat", *LABELS[1:]]},
        {"data": PIXELS, "labels": [[1, 2], *LABELS[1:]]},
        {"data": PIXELS, "labels": [1.5, *LABELS[1:]]},
        {"data": PIXELS, "labels": 7},
        ["a list"],
        None,
    ],
)
def test_a_pickle_with_other_content_is_named(tmp_path, no_download, content):
    folder = write_pickles(tmp_path, as_python_2)
    (folder / "data_batch_2").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="data_batch_2"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1000], lambda c: b"", lambda c: b"hello", lambda c: c[500:]]
)
def test_a_damaged_pickle_is_named(tmp_path, no_download, change):
    path = write_pickles(tmp_path, as_python_2) / "data_batch_5"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match="data_batch_5"):
        cifar10(tmp_path)


def test_random_damage_never_ends_in_another_error(tmp_path):
    path = write_pickles(tmp_path, as_python_2) / "test_batch"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        for place in [*rng.integers(0, 300, 3), *rng.integers(len(content), size=3)]:
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            cifar10(tmp_path)  # damage to a pixel alone cannot be noticed
        except DataError as error:
            assert "test_batch" in str(error)


@pytest.mark.parametrize("names", [NAMES[:9], "no list", None])
def test_damaged_pickled_class_names_are_refused(tmp_path, no_download, names):
    folder = write_pickles(tmp_path, as_python_2)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(DataError, match="batches.meta names"):
        cifar10(tmp_path)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_malicious_pickle_runs_nothing(tmp_path, no_download):
    mark = tmp_path / "mark"
    folder = write_pickles(tmp_path, as_python_2)
    by_numpy = b"cnumpy\nload\n(S'x'\ntR."
    nested = b"cnumpy.core.multiarray\n_reconstruct.__class__\n."
    for content in (
        pickle.dumps(Evil(open, str(mark), "w")),
        pickle.dumps({"data": Evil(exec, f"open({str(mark)!r}, 'w')"), "labels": LABELS}),
        b"c__builtin__\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
        pickle.dumps({"labels": Evil(importlib.import_module, "antigravity")}),
        b"\x80\x04c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
        by_numpy,
        nested,
        b"\x80\x04\x8c\x05numpy\x8c\x0flib.npyio.NpzFile\x93.",
        b"Pid\n.",
    ):
        (folder / "data_batch_1").write_bytes(content)
        with pytest.raises(DataError, match="data_batch_1"):
            cifar10(tmp_path)
    assert not mark.exists()


def test_a_pickle_cannot_change_what_it_may_call(tmp_path):
    folder = write_pickles(tmp_path, as_python_2)
    # BUILD with a state tries to set attributes on the admitted function.
    for where in (b"c_codecs\nencode\n", b"cnumpy.core.numeric\n_frombuffer\n", b"cnumpy\nndarray\n"):
        (folder / "data_batch_1").write_bytes(where + b"(}S'__call__'\nI1\nstb.")
        with pytest.raises(DataError, match="data_batch_1"):
            cifar10(tmp_path)


POINTERS = b"cnumpy\nndarray\n(K\x01\x85cnumpy\ndtype\nU\x01O\x85RU\x08AAAAAAAAtR"  # objects, at any address


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="the system bounds no memory")
@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + POINTERS + b".",
        b"\x80\x02}U\x0blabel_names" + POINTERS + b"s.",
        b"\x80\x02}U\x0blabel_names]" + POINTERS + b"as.",
        b"\x80\x02]r" + struct.pack("<I", 2**29) + b".",  # a memo of 8 GB
        b"\x80\x02]r" + struct.pack("<I", 2**26) + b".",  # a memo of 1 GB: fits, and is refused all the same
        b"\x80\x02}U\x0blabel_names]q\x00" + b"]q\x01(h\x00h\x00eq\x00" * 60 + b"s.",  # 2**60 lists
    ],
)
def test_a_pickle_with_pointers_or_for_all_memory_is_refused(tmp_path, content):
    """In a process of its own that may take 1.5 GB, libraries included: it must not crash either."""
    (write_pickles(tmp_path, as_python_2) / "batches.meta").write_bytes(content)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))\n"
        "from scratchnet import data\n"
        "try: data.cifar10(sys.argv[1])\n"
        "except data.DataError as error: print(error)\n"
        "if sys.platform == 'linux':\n"
        "    lines = open('/proc/self/status').readlines()\n"
        "    print(*[line.split()[1] for line in lines if line.startswith('VmHWM:')])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        timeout=60,
    )
    assert run.returncode == 0 and "batches.meta" in run.stdout, run.stderr
    if sys.platform == "linux":
        assert int(run.stdout.splitlines()[-1]) < 500_000  # kB


@pytest.mark.parametrize("labels", ["a doubling list", "a forged array", [2**70] * RECORDS])
def test_labels_cannot_fill_the_memory(tmp_path, no_download, labels):
    content = {"data": PIXELS, "labels": labels}
    if labels == "a doubling list":
        content["labels"] = [0]
        for _ in range(40):
            content["labels"] = [content["labels"]] * 2
    elif labels == "a forged array":
        content["labels"] = Evil(np.ndarray, (1 << 40,), np.dtype("i8"))
    (write_pickles(tmp_path, as_python_2) / "data_batch_1").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="data_batch_1: expected 20 whole-number labels"):
        cifar10(tmp_path)
