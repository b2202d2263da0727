"""Downloads over an unreliable network, and tar archives that are unpacked without being trusted."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scratchnet.data import web
from scratchnet.data._common import DataError, MissingDataError

ATTEMPTS = 3
PAUSE = 2.0  # seconds between the first two attempts; then twice as long
MAX_BYTES = 4 << 30  # of a file: a server may send without end
MAX_MEMBER = 400 << 20  # bytes of a file in an archive whose size is not known beforehand
MAX_REST = 1 << 20  # bytes of an archive besides the files that are wanted of it
SUMS = "SHA256SUMS"  # of the files that were unpacked
_BLOCK = 1 << 18  # bytes read at once
_BAR: dict[str, Any] = {"unit": "B", "unit_scale": True}  # tqdm's, on stderr


def download(url: str, path: Path, md5: str = "", advice: str = "", sha256: str = "") -> None:
    """Fetch `url` to `path`, whole and with the right checksum, going on from what an earlier run left there.

    The checksum is of either kind. The name should say that the file is unfinished, such as
    ``archive.tar.gz.part``: after an interruption it holds the beginning of the file, and the next call asks
    the server for the rest (HTTP Range). After three attempts a MissingDataError ends with `advice`; what has
    arrived is kept, unless its checksum was wrong.
    """
    kind, wanted, problem = "sha256" if sha256 else "md5", sha256 or md5, ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * attempt)
        try:
            # An earlier run may have got as far as the last byte.
            if not path.exists() or _digest(path, kind) != wanted:
                _transfer(url, path)
                if _digest(path, kind) != wanted:
                    path.unlink()  # resuming would only lengthen a wrong file
                    raise OSError(f"what arrived has not the {kind.upper()} {wanted}")
            return
        except web.ERRORS as error:
            problem = web.reason(error)
    problem = f"could not download {web.shown(url)} in {ATTEMPTS} attempts ({problem})"
    raise MissingDataError(f"{problem}; {advice}" if advice else problem)


def recorded_digest(path: Path) -> str | None:
    """Return the SHA-256 that a file had when it was unpacked, None if that was not recorded."""
    try:
        lines = (path.parent / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = (line.partition("  ") for line in lines)
    return next((digest for digest, _, name in found if name == path.name), None)


def _digest(path: Path, kind: str = "sha256") -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def _transfer(url: str, path: Path) -> None:
    """Append the missing rest of `url` to `path`; raise OSError if the connection ends too early."""
    have = path.stat().st_size if path.exists() else 0
    with web.request(url, {"Range": f"bytes={have}-"} if have else None) as (answer, deadline):
        if answer.status == 206:
            range_ = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if not range_ or int(range_[1]) != have:
                path.unlink()
                raise OSError("the server resumed at another place than asked")
        elif answer.status == 200:
            have = 0  # the server ignores Range and sends the whole file
        else:
            if (
                answer.status == 416 and have
            ):  # "range not satisfiable": the file is no longer than what is here
                # The caller saw that this is not the right file, so the next attempt starts over.
                path.unlink()
            raise OSError(f"the server answered {answer.status} {answer.reason}")
        total = None if answer.length is None else have + answer.length
        name = web.shown(url).rpartition("/")[2]
        with (
            open(path, "ab" if have else "wb") as file,
            # disable=None: a bar on a terminal, nothing in a log file
            tqdm(desc=name, total=total, initial=have, disable=None, **_BAR) as bar,
        ):
            while block := answer.read1(_BLOCK):
                file.write(block)
                have += len(block)
                deadline.earn(len(block))
                bar.update(len(block))
                if have > MAX_BYTES:
                    path.unlink()
                    raise OSError(f"it is larger than {MAX_BYTES >> 30} GB")
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have:,} of {total:,} bytes")


class _Within:
    """A file that unpacks to no more than so many bytes, neither to be read nor to be skipped."""

    def __init__(self, file: gzip.GzipFile):
        self.file, self.end, self.tell = file, MAX_REST, file.tell

    def read(self, size: int) -> bytes:
        self._check(self.tell() + size)
        return self.file.read(size)

    def seek(self, place: int) -> int:
        self._check(place)
        return self.file.seek(place)

    def _check(self, place: int) -> None:
        if place > self.end:
            raise ValueError(f"it holds more than {self.end:,} bytes")


def unpack(archive: Path, folder: Path, sizes: dict[str, int | None], most: int = 1 << 20) -> None:
    """Unpack the wanted files of a gzipped tar archive, which is not trusted: all of them, or nothing.

    The folder is created at once, by renaming a temporary one beside it. Only members ``<name of
    folder>/<file>`` that are regular files and are named in `sizes` (in bytes; None: up to ``most``) are
    written; paths that lead elsewhere, links and devices are never looked at. Beside them lies their SHA-256,
    as ``sha256sum`` writes it, which ``recorded_digest`` returns. What the archive holds besides, headers
    among it, may be no more than ``MAX_REST``: gzip makes a thousand times its own size of a bomb.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        missing = dict(sizes)
        try:
            with gzip.open(archive) as file:
                within: Any = _Within(file)  # not all of what a binary file has
                tar = tarfile.open(fileobj=within, mode="r:")
                for member in tar:
                    parent, _, name = member.name.removeprefix("./").rpartition("/")
                    if parent != folder.name or name not in missing or not member.isfile():
                        continue
                    size = missing.pop(name)
                    if member.size != size if size is not None else member.size > most:
                        found = f"{member.name} has {member.size:,} bytes"
                        raise DataError(f"{archive}: {found}, not {size or 'a few'}")
                    within.end += member.size
                    source = tar.extractfile(member)  # not None, since it is a regular file
                    with open(temporary / name, "wb") as target:
                        shutil.copyfileobj(source, target)  # type: ignore[arg-type]
                while within.read(tarfile.RECORDSIZE):
                    pass  # at the very end gzip compares its checksum
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            raise DataError(f"{archive} cannot be unpacked: {error}") from error
        if missing:
            names = ", ".join(f"{folder.name}/{name}" for name in missing)
            raise DataError(f"{archive} does not contain {names}")
        sums = [f"{_digest(temporary / name)}  {name}\n" for name in sizes]
        (temporary / SUMS).write_text("".join(sums), encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp makes it private
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has done the same meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
