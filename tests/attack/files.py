"""Mutants of every file that is read: each is read, or refused by the documented exception."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scratchnet import checkpoint, data, interop, models
from scratchnet.data import DataError
from scratchnet.layers import Conv2d, Flatten, GlobalAvgPool2d, Linear, MaxPool2d, ReLU, Sequential
from scratchnet.tensorfile import FormatError
from scratchnet.training import RunDirectory, RunError
from scratchnet.training.options import read_options
from tests.attack.mutating import LIMIT, Coverage, Mutate, mutant, other_json
from tests.attack.registry import NotHere, Tally, attack, peak, reset_peak
from tests.fakes.runs import prepare

# What reading a file may take: so much that any may, and so many times its size.
MEMORY = 96 << 20
MULTIPLE = 32
BOUND = f"0 crashes, 0 tracebacks, {MEMORY >> 20} MB + {MULTIPLE} x the file, 10 s each"
GUIDED = 0.3  # of the cases are run under the tracer, which slows them down several times
KEPT = 400  # files of the corpus


@dataclass
class Target:
    """A kind of file: whole ones, what reads them, and what that may raise."""

    name: str  # of the file that is read
    seeds: Sequence[bytes]
    read: Callable[[Path], Any]
    documented: tuple[type[Exception], ...]
    knowing: Sequence[Mutate] = field(default_factory=list)  # mutators that know the format
    memory: int = MEMORY


def besiege(tally: Tally, target: Target) -> None:
    """Read mutants until the time is up: half of them of what last reached new lines of the package."""
    corpus, coverage, rng = list(target.seeds), Coverage(), tally.rng
    path = tally.folder / target.name
    path.parent.mkdir(parents=True, exist_ok=True)
    while tally.goes_on():
        number = tally.cases
        if number < len(target.seeds):
            content = target.seeds[number]
        else:
            parent = rng.choice(corpus[-40:] if rng.random() < 0.5 else corpus)
            knows = target.knowing and rng.random() < 0.5
            content = rng.choice(target.knowing)(rng, parent) if knows else mutant(rng, parent, corpus)
        path.write_bytes(content)

        def read(path: Path = path) -> None:
            try:
                target.read(path)
                tally.outcomes["read"] += 1
            except target.documented as error:
                tally.outcomes["refused"] += 1
                told = str(error)
                assert told.isprintable() or "import keras" in told, f"raw on the terminal: {told!r}"

        failed, before = tally.failed, reset_peak()
        with tally.case(f"case {number} of seed {tally.seed}"):
            if rng.random() < GUIDED:
                if coverage.of(read) and len(corpus) < KEPT:
                    corpus.append(content)
            else:
                read()
            grown = peak() - before
            allowed = target.memory + MULTIPLE * len(content)
            assert grown <= allowed, f"{grown >> 20} MB for a file of {len(content):,} bytes"
        if tally.failed > failed:
            kept = Path(tally.keep or tally.folder, f"failed-{tally.failed}-{path.name}")
            kept.write_bytes(content)
    tally.outcomes["lines of the package"] = len(coverage.seen)


# Pickles


def pickled(rng: random.Random, _: bytes) -> bytes:
    """Return a random program of the pickle machine."""
    parts = [b"\x80\x02"]
    names = [
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
        b"cnumpy._core.multiarray\n_reconstruct\n",
        b"cos\nsystem\n",
    ]
    names += [b"cbuiltins\neval\n", b"c_codecs\nencode\n", b"cnumpy._core.multiarray\nscalar\n"]
    simple = [
        b"(",
        b")",
        b"]",
        b"}",
        b"N",
        b"\x88",
        b"\x89",
        b".",
        b"0",
        b"2",
        b"t",
        b"l",
        b"d",
        b"a",
        b"e",
        b"s",
    ]
    simple += [b"u", b"b", b"R", b"\x81", b"\x85", b"\x86", b"\x87", b"Q", b"\x94", b"\x93", b"\x90", b"\x8f"]
    for _ in range(rng.randrange(3, 60)):
        match rng.randrange(8):
            case 0:
                parts.append(rng.choice(names))
            case 1:
                parts.append(b"K" + rng.randbytes(1))
            case 2:
                parts.append(b"J" + rng.randbytes(4))
            case 3:
                size = rng.choice([0, 1, 4, 200])
                claimed = rng.choice([size, size, size, 2**31 - 1, 2**32 - 1])
                parts.append(
                    rng.choice(b"BXT".decode()).encode() + struct.pack("<I", claimed) + rng.randbytes(size)
                )
            case 4:
                where = rng.choice([0, 1, 2, 255, 2**20, 2**29, 2**32 - 1])
                parts.append(rng.choice([b"r", b"j"]) + struct.pack("<I", where))
            case 5:
                parts.append(b"U\x02" + rng.choice([b"O8", b"u1", b"i8", b"V8"]))
            case _:
                parts.append(rng.choice(simple))
    return b"".join(parts) + b"."


def cifar_reader(folder: Path) -> Callable[[Path], Any]:
    module = importlib.import_module("scratchnet.data.cifar10")  # the function hides it
    module.RECORDS = 2
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = {b"data": rng.integers(0, 256, (2, 3072), np.uint8), b"labels": [3, 7]}
    names = [f"class {k}".encode() for k in range(10)]
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (batches / name).write_bytes(pickle.dumps(records, 2))
    (batches / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, 2))
    return lambda path: data.cifar10(folder, download=False)


@attack("pickles: data", BOUND, 20_000)
def pickles_of_data(tally: Tally) -> None:
    besiege_pickles(tally, "data_batch_1")


@attack("pickles: names", BOUND, 20_000)
def pickles_of_names(tally: Tally) -> None:
    besiege_pickles(tally, "batches.meta")


def besiege_pickles(tally: Tally, name: str) -> None:
    read = cifar_reader(tally.folder)
    where = f"cifar-10-batches-py/{name}"
    whole = pickle.loads((tally.folder / where).read_bytes())
    seeds = [pickle.dumps(whole, protocol) for protocol in (0, 1, 2, 3, 4, 5)]
    seeds.append(pickle.dumps({**whole, "more": np.ones(3), "object": np.array([None])}, 2))
    besiege(tally, Target(where, seeds, read, (DataError,), [pickled]))


# Weights


def small_network() -> Sequential:
    return Sequential(Conv2d(3, 4), ReLU(), MaxPool2d(2), Flatten(), Linear(4 * 4 * 4, 3))


def small_vgg(**settings: Any) -> models.VGG:
    return models.vgg11(3, 32, **{"width": 0.03125, "classifier_width": 8, "batch_norm": True} | settings)


def with_another_header(rng: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, ours within it, or its length."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        ours = json.loads(header["__metadata__"]["scratchnet"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return mutant(rng, content)
    if rng.random() < 0.7:
        for _ in range(rng.choice([1, 1, 2, 3])):
            ours = other_json(rng, ours)
        header["__metadata__"]["scratchnet"] = json.dumps(ours)
    else:
        header = other_json(rng, header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def saved(tally: Tally) -> list[bytes]:
    """Whole files of weights."""
    path, contents = tally.folder / "whole.safetensors", []
    names = {"class_names": ["cat", "dog", "ant"], "mean": [0.5] * 3, "std": [0.2] * 3}
    gap = Sequential(Conv2d(3, 4), GlobalAvgPool2d(), Linear(4, 3))
    for net in (small_vgg(), small_vgg(head="gap", batch_norm=False), small_network(), gap):
        checkpoint.save(path, net, **names, image_size=32)
        contents.append(path.read_bytes())
    return contents


@attack("safetensors", BOUND, 10_000)
def safetensors(tally: Tally) -> None:
    target = Target("net.safetensors", saved(tally), checkpoint.load, (FormatError,), [with_another_header])
    besiege(tally, target)


@attack("any weights", BOUND, 10_000)
def any_weights(tally: Tally) -> None:
    """Whatever may be given as MODEL."""
    seeds = saved(tally) + torch_files() + onnx_files(tally)
    besiege(tally, Target("net", seeds, interop.load, (FormatError,), [with_another_header]))


def torch_files() -> list[bytes]:
    """Files of PyTorch, in both formats; none where it is not installed."""
    try:
        import torch
    except ImportError:
        return []
    net, state = small_vgg(), {}
    for name, array in ({name: p.data for name, p in net.parameters().items()} | net.buffers()).items():
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[name] = torch.tensor(np.ascontiguousarray(array))
    contents = []
    for zipped in (True, False):
        torch.save({"state_dict": state}, file := io.BytesIO(), _use_new_zipfile_serialization=zipped)
        contents.append(file.getvalue())
    return contents


def with_another_member(rng: random.Random, content: bytes) -> bytes:
    """Change one member of a zip file, whose checksums stay right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return mutant(rng, content)
    if not members:
        return content
    name = rng.choice([n for n in members if n.endswith(".pkl")] * 10 or list(members))
    members[name] = rng.choice([mutant, pickled])(rng, members[name]) if rng.random() < 0.9 else b""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for each, inner in members.items():
            archive.writestr(each, inner)
    return out.getvalue()


@attack("PyTorch files", BOUND, 5_000)
def pytorch(tally: Tally) -> None:
    if not (seeds := torch_files()):
        raise NotHere("PyTorch is not installed")
    besiege(tally, Target("net.pth", seeds, interop.load, (FormatError,), [with_another_member]))


def onnx_files(tally: Tally) -> list[bytes]:
    """ONNX files; none where onnx is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        return []
    path, contents = tally.folder / "whole.onnx", []
    for net, shape in ((small_network(), (1, 8, 8, 3)), (small_vgg(), (1, 32, 32, 3))):
        with contextlib.suppress(TypeError):
            interop.save_onnx(path, net.eval(), shape[1:])
        contents.append(path.read_bytes())
    return contents


def with_another_node(rng: random.Random, content: bytes) -> bytes:
    """Change nodes, attributes, shapes and tensors of an ONNX graph."""
    import onnx

    try:
        model = onnx.load_from_string(content)
    except Exception:
        return mutant(rng, content)
    graph = model.graph
    numbers = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 10**5, 2**31, 2**62]
    for _ in range(rng.choice([1, 1, 2, 4])):
        node = rng.choice(graph.node) if graph.node else None
        tensor = rng.choice(graph.initializer) if graph.initializer else None
        match rng.randrange(9):
            case 0 if node and node.attribute:
                chosen = rng.choice(node.attribute)
                if chosen.ints:
                    chosen.ints[rng.randrange(len(chosen.ints))] = rng.choice(numbers)
                else:
                    chosen.i = rng.choice(numbers)
            case 1 if node:
                node.op_type = rng.choice(
                    ["Conv", "Gemm", "Relu", "MaxPool", "Flatten", "Reshape", "Add", "Identity"]
                )
            case 2 if node and node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice(
                    ["", "x", *(t.name for t in graph.initializer)]
                )
            case 3 if node:
                graph.node.remove(node)
            case 4 if node:
                graph.node.insert(rng.randrange(len(graph.node)), node)
            case 5 if tensor and tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
            case 6 if tensor:
                tensor.data_type = rng.randrange(30)
            case 7 if tensor:
                tensor.raw_data = mutant(rng, tensor.raw_data)
            case _ if graph.input:
                dims = graph.input[0].type.tensor_type.shape.dim
                if dims:
                    rng.choice(dims).dim_value = rng.choice(numbers)
    return model.SerializeToString()


@attack("ONNX", BOUND, 5_000)
def onnx_graphs(tally: Tally) -> None:
    if not (seeds := onnx_files(tally)):
        raise NotHere("onnx is not installed")
    besiege(tally, Target("net.onnx", seeds, interop.load_onnx, (FormatError,), [with_another_node]))


# Archives and images


def archived(rng: random.Random, content: bytes) -> bytes:
    """Return an archive with members of all kinds and names, or a mutant of what a good one holds."""
    if rng.random() < 0.5:
        try:
            return gzip.compress(mutant(rng, gzip.decompress(content)), 1)
        except (OSError, EOFError, zlib.error):
            return mutant(rng, content)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for _ in range(rng.randrange(1, 6)):
            names = [
                "set/a.bin",
                "./set/a.bin",
                "../set/a.bin",
                "/set/a.bin",
                "set/../../a.bin",
                "set",
                "set/b.txt",
            ]
            member = tarfile.TarInfo(rng.choice(names))
            kinds = [tarfile.REGTYPE] * 4 + [
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.FIFOTYPE,
                tarfile.CHRTYPE,
            ]
            member.type, member.linkname = (
                rng.choice([*kinds, tarfile.DIRTYPE]),
                rng.choice(["/etc/passwd", "a.bin"]),
            )
            member.size = rng.choice([1000, 1000, 0, 1, 1 << 19]) if member.type == tarfile.REGTYPE else 0
            member.mode = rng.choice([0o644, 0o4777, 0])
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return file.getvalue()


@attack("archives", BOUND + "; nothing outside the folder", 10_000)
def archives(tally: Tally) -> None:
    unpack = importlib.import_module("scratchnet.data.download").unpack
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, size in (("set/a.bin", 1000), ("set/b.txt", 30)):
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(range(256)) * 4))
    inside, mark = tally.folder / "inside", tally.folder / "outside"
    mark.write_text("outside")

    def read(path: Path) -> None:
        inside.mkdir(exist_ok=True)
        try:
            unpack(path, inside / "set", {"a.bin": 1000, "b.txt": None})
        finally:
            found = sorted(p.relative_to(inside).as_posix() for p in inside.rglob("*"))
            for p in inside.rglob("*"):
                assert not p.is_symlink() and p.is_file() | p.is_dir()
                p.is_file() and p.unlink()
            for p in sorted(inside.rglob("*"), reverse=True):
                p.rmdir()
            assert found in ([], ["set", "set/a.bin", "set/b.txt"]), found
            assert {p.name for p in tally.folder.iterdir()} == {"inside", "outside", "set.tar.gz"}

    besiege(tally, Target("set.tar.gz", [file.getvalue()], read, (DataError,), [archived]))


def with_another_chunk(rng: random.Random, content: bytes) -> bytes:
    """Change the chunks of a PNG, whose checksums stay right."""
    if not content.startswith(b"\x89PNG"):
        return mutant(rng, content)
    chunks, place = [], 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunks.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + size]])
        place += 12 + size
    if not chunks:
        return mutant(rng, content)
    for _ in range(rng.choice([1, 1, 2])):
        chunk = rng.choice(chunks)
        match rng.randrange(5):
            case 0:
                chunk[1] = mutant(rng, chunk[1])
            case 1 if chunks[0][1][8:]:
                sides = [rng.choice([0, 1, 16, 8000, 9999, 2**16, 2**31 - 1]) for _ in "wh"]
                chunks[0][1] = struct.pack(">II", *sides) + chunks[0][1][8:]
            case 2:
                chunks[0][1] = chunks[0][1][:8] + bytes(
                    [rng.choice([1, 2, 4, 8, 16, 3]), rng.randrange(8), 0, 0, 1]
                )
            case 3:
                kind = rng.choice(
                    [b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"gAMA"]
                )
                chunks.insert(
                    rng.randrange(len(chunks)), [kind, zlib.compress(bytes(rng.choice([3, 10**7])))]
                )
            case _:
                chunks.insert(rng.randrange(len(chunks)), list(chunk))
    out = bytearray(content[:8])
    for kind, body in chunks:
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return bytes(out[:LIMIT])


def images() -> list[bytes]:
    """Whole images of many formats and modes."""
    rng, contents = np.random.default_rng(0), []
    pixels = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    wide = Image.fromarray(rng.integers(0, 65536, (16, 16)).astype(np.uint16))
    for format_ in (
        "PNG",
        "JPEG",
        "GIF",
        "BMP",
        "TIFF",
        "WEBP",
        "PPM",
        "TGA",
        "ICO",
        "PCX",
        "DDS",
        "JPEG2000",
        "SGI",
    ):
        modes = [
            pixels,
            pixels.convert("RGBA"),
            pixels.convert("P"),
            pixels.convert("1"),
            pixels.convert("CMYK"),
            wide,
        ]
        for image in modes:
            with contextlib.suppress(Exception):  # not every format has every mode
                image.save(file := io.BytesIO(), format_)
                contents.append(file.getvalue())
    return contents


# A decoder may take what the largest image that is allowed takes, some times over (data/images.py).
IMAGE_MEMORY = 1 << 30


@attack("images", f"0 crashes, 0 tracebacks, {IMAGE_MEMORY >> 30} GB, 10 s each", 20_000)
def image_files(tally: Tally) -> None:
    def read(path: Path) -> None:
        data.image_to_array(data.load_image(path), 32)

    besiege(tally, Target("image", images(), read, (DataError,), [with_another_chunk], IMAGE_MEMORY))


# What a run leaves


def with_other_json(rng: random.Random, content: bytes) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutant(rng, content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = other_json(rng, value)
    return json.dumps(value).encode()


@attack("config.json", BOUND, 10_000)
def configurations(tally: Tally) -> None:
    from scratchnet.training.options import DEFAULTS

    whole = {"options": DEFAULTS, "class_names": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3}
    run = RunDirectory(tally.folder / "run")
    run.write_config(whole)
    seeds = [run.config.read_bytes(), json.dumps(whole, indent=1).encode()]
    besiege(
        tally,
        Target("run/config.json", seeds, lambda path: read_options(run), (RunError,), [with_other_json]),
    )


@attack("log.csv", BOUND, 10_000)
def logs(tally: Tally) -> None:
    run = RunDirectory(tally.folder / "run")
    names = "epoch train_loss train_accuracy val_loss val_accuracy lr seconds images_per_second".split()
    run.write_log([dict.fromkeys(names, 0.5) | {"epoch": k + 1} for k in range(5)])
    besiege(tally, Target("run/log.csv", [run.log.read_bytes()], lambda path: run.read_log(), (RunError,)))


@attack("state", BOUND, 3_000)
def states(tally: Tally) -> None:
    """Resume from mutants of what a run saved: as the trainer would."""
    folder = tally.folder / "run"
    trainer = prepare(folder, n=16)
    trainer.observers = ()
    trainer.run.write_config({})
    trainer.fit(1)

    def read(path: Path) -> None:
        again = prepare(None, n=16)
        again.observers, again.run = (), trainer.run
        again.resume()

    documented = (RunError, FormatError, FileNotFoundError)
    target = Target(
        "run/state.safetensors", [trainer.run.state.read_bytes()], read, documented, [with_another_header]
    )
    besiege(tally, target)
