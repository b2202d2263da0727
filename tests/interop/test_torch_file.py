"""PyTorch's files are read without PyTorch: equal to what PyTorch reads, and nothing in them runs."""

import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest

from scratchnet.interop import torch_file
from scratchnet.tensorfile import FormatError

torch = pytest.importorskip("torch", reason="PyTorch, the other side, is not installed")


def state():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    base = draw(6, 8)
    return OrderedDict(
        [
            ("features.0.weight", draw(8, 3, 3, 3)),
            ("features.0.bias", draw(8)),
            ("half", draw(5).half()),
            ("bfloat", draw(5, 2).bfloat16()),
            ("double", draw(3).double()),
            ("transposed", base.t()),
            ("part", base[2:4, 1:7:2]),
            ("channels last", draw(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)),
            ("count", torch.tensor(7)),
            ("empty", torch.zeros(0, 3)),
            ("parameter", torch.nn.Parameter(draw(4))),
        ]
    )


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, dict, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": {"state_dict": s}}],
)
def test_tensors_are_those_that_pytorch_saved(tmp_path, legacy, wrap):
    saved = state()
    torch.save(wrap(saved), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert torch_file.is_torch_file(tmp_path / "a.pth")
    read = torch_file.read(tmp_path / "a.pth")
    assert list(read) == list(saved)
    for name, tensor in saved.items():
        wanted = tensor.detach()
        wanted = wanted.float() if wanted.dtype in (torch.float16, torch.bfloat16) else wanted
        np.testing.assert_array_equal(read[name], wanted.numpy(), err_msg=name)
        assert read[name].dtype == wanted.numpy().dtype and read[name].flags.c_contiguous


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_refused_by_name(tmp_path, legacy):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(FormatError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        torch_file.read(tmp_path / "a.pth")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"state_dict": e}])
def test_a_malicious_pickle_runs_nothing_and_is_named(tmp_path, legacy, wrap):
    mark = str(tmp_path / "mark")
    torch.save(wrap(Evil(mark)), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(FormatError, match=r"would run \w+\.open"):
        torch_file.read(tmp_path / "a.pth")
    assert not (tmp_path / "mark").exists()


def damaged_zip(content):
    """Return an archive of PyTorch whose pickle is another."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", np.arange(6, dtype="f4").tobytes())
    return file.getvalue()


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


def pickled_tensor(storage=("storage", torch.FloatStorage, "0", "cpu", 6), offset=0, size=(6,), stride=(1,)):
    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict())

    Pickler(file := BytesIO(), 2).dump({"a": Tensor()})
    return file.getvalue()


def test_what_the_forged_files_below_are_made_of_is_right(tmp_path):
    (tmp_path / "a.pth").write_bytes(damaged_zip(pickled_tensor(size=(2, 3), stride=(3, 1))))
    np.testing.assert_array_equal(torch_file.read(tmp_path / "a.pth")["a"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"size": (7,)},
        {"offset": 1},
        {"offset": -1, "size": (2,)},
        {"stride": (2,)},
        {"stride": (-1,)},
        {"size": (1 << 40,), "stride": (0,)},
        {"size": (1, 1), "stride": (1,)},
        {"size": (2.0,)},
        {"storage": ("storage", torch.FloatStorage, "../data.pkl", "cpu", 6)},
        {"storage": ("storage", torch.FloatStorage, "1", "cpu", 6)},
        {"storage": ("storage", torch.FloatStorage, "0", "cpu", 1 << 50)},
        {"storage": ("storage", torch.DoubleStorage, "0", "cpu", 6)},
        {"storage": ("storage", torch.nn.Linear, "0", "cpu", 6)},
    ],
)
def test_a_forged_tensor_is_refused(tmp_path, change):
    (tmp_path / "a.pth").write_bytes(damaged_zip(pickled_tensor(**change)))
    with pytest.raises(FormatError, match="a.pth"):
        torch_file.read(tmp_path / "a.pth")


def test_tensors_that_share_numbers_cannot_fill_the_memory(tmp_path):
    base = torch.ones(100, 100)
    torch.save({str(k): base for k in range(3)}, tmp_path / "a.pth")
    assert len(torch_file.read(tmp_path / "a.pth")) == 3
    torch.save({str(k): base.t() for k in range(30)}, tmp_path / "a.pth")
    with pytest.raises(FormatError, match="4 times as large as the file"):
        torch_file.read(tmp_path / "a.pth")


def zip_of_members_within_members(count, size):
    """Return an archive of PyTorch in which the numbers of each storage are the rest of the file."""

    class Tensor:
        def __init__(self, k, length):
            self.storage = "storage", torch.ByteStorage, str(k), "cpu", length

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (self.storage, 0, (1,), (1,), False, OrderedDict())

    def local(name, content):
        info = zipfile.ZipInfo(name)
        info.file_size = info.compress_size = len(content)
        info.CRC = zlib.crc32(content)
        return info, info.FileHeader()

    rest, members, tensors = bytes(size), [], {}
    for k in reversed(range(count)):
        info, header = local(f"archive/data/{k}", rest)
        tensors[str(k)] = Tensor(k, len(rest))
        rest = header + rest
        members.append((info, len(rest)))
    Pickler(pickled := BytesIO(), 2).dump(tensors)
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        start = archive.fp.tell()
        archive.fp.write(rest)
        for info, place in members:
            info.header_offset = start + len(rest) - place
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
        archive.start_dir = archive.fp.tell()
        archive._didModify = True
    return file.getvalue()


def test_members_that_hold_each_other_cannot_fill_the_memory(tmp_path):
    (tmp_path / "a.pth").write_bytes(zip_of_members_within_members(1, 1 << 20))
    assert len(torch_file.read(tmp_path / "a.pth")) == 1
    (tmp_path / "a.pth").write_bytes(content := zip_of_members_within_members(100, 1 << 20))
    tracemalloc.start()
    try:
        # Python 3.11.8 and later find that members overlap before anything is read.
        with pytest.raises(FormatError, match="its storages are larger than the file|Overlapped"):
            torch_file.read(tmp_path / "a.pth")
        assert tracemalloc.get_traced_memory()[1] < 8 * len(content)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_and_changed_files_are_refused_or_read(tmp_path, legacy):
    torch.save(state(), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    content = (tmp_path / "a.pth").read_bytes()
    rng = np.random.default_rng(0)
    for k in range(300):
        mutant = bytearray(content)
        if k % 3:
            for at in rng.integers(0, len(content), 3):
                mutant[at] = rng.integers(256)
        else:
            del mutant[rng.integers(len(content)) :]
        (tmp_path / "b.pth").write_bytes(mutant)
        try:
            torch_file.read(tmp_path / "b.pth")
        except FormatError as error:
            assert "b.pth" in str(error)


def test_other_files_are_refused(tmp_path):
    for content in (b"", b"abc", pickle.dumps({"a": 1}), b"\x80\x02\x8a" + struct.pack("B", 200) + b"a."):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(FormatError, match="a.pth"):
            torch_file.read(tmp_path / "a.pth")
