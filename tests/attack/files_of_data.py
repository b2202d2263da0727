"""Mutants of data: CIFAR-10's pickles, archives, images."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import pickle
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scratchnet import data
from scratchnet.data import DataError, cifar
from tests.attack.files import BOUND, Target, besiege
from tests.attack.mutating import LIMIT, mutant
from tests.attack.registry import Tally, attack
from tests.fakes.bombs import KINDS, bomb

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
    cifar.RECORDS = 2
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = {"data": rng.integers(0, 256, (2, 3072), np.uint8), "labels": [3, 7]}
    names = [f"class {k}" for k in range(10)]
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (batches / name).write_bytes(pickle.dumps(records, 2))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 2))
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


# Archives and images


def archived(rng: random.Random, content: bytes) -> bytes:
    """Return an archive with members of all kinds and names, a mutant of what a good one holds, or a bomb."""
    if rng.random() < 0.02:
        return bomb(rng.choice(KINDS), megabytes=rng.choice([2, 100]))
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
            assert found in ([], ["set", "set/SHA256SUMS", "set/a.bin", "set/b.txt"]), found
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
