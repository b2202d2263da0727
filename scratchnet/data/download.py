"""Downloads over an unreliable network, and tar archives that are unpacked without being trusted."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scratchnet.data._common import DataError, MissingDataError

USER_AGENT = "Mozilla/5.0 (compatible; scratchnet)"  # some servers refuse urllib's own
ATTEMPTS = 3
TIMEOUT = 20.0  # seconds without a sign of life from the server
PAUSE = 2.0  # seconds between the first two attempts; then twice as long
_BLOCK = 1 << 18  # bytes read at once
_BAR: dict[str, Any] = {"unit": "B", "unit_scale": True}  # tqdm's, on stderr


def download(url: str, path: Path, md5: str, advice: str = "") -> None:
    """Fetch `url` to `path`, whole and with the right checksum, going on from what an earlier run left there.

    The name should say that the file is unfinished, such as ``archive.tar.gz.part``: after an interruption it
    holds the beginning of the file, and the next call asks the server for the rest (HTTP Range). After three
    attempts a MissingDataError ends with `advice`; what has arrived is kept, unless its checksum was wrong.
    """
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * attempt)
        try:
            if not path.exists() or _md5(path) != md5:  # an earlier run may have got as far as the last byte
                _transfer(url, path)
                if _md5(path) != md5:
                    path.unlink()  # resuming would only lengthen a wrong file
                    raise OSError(f"what arrived has not the MD5 {md5}")
            return
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
        except urllib.error.URLError as error:
            problem = str(error.reason)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = str(error) or type(error).__name__
    problem = f"could not download {url} in {ATTEMPTS} attempts ({problem})"
    raise MissingDataError(f"{problem}; {advice}" if advice else problem)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _transfer(url: str, path: Path) -> None:
    """Append the missing rest of `url` to `path`; raise OSError if the connection ends too early."""
    have = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # "range not satisfiable": the file is no longer than what is here
            # The caller saw that this is not the right file, so the next attempt starts over.
            path.unlink()
        raise
    with response:
        if response.status == 206:
            range_ = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if not range_ or int(range_[1]) != have:
                path.unlink()
                raise OSError("the server resumed at another place than asked")
        else:
            have = 0  # the server ignores Range and sends the whole file
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            open(path, "ab" if have else "wb") as file,
            # disable=None: a bar on a terminal, nothing in a log file
            tqdm(desc=url.rpartition("/")[2], total=total, initial=have, disable=None, **_BAR) as bar,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                have += len(block)
                bar.update(len(block))
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have:,} of {total:,} bytes")


def unpack(archive: Path, folder: Path, sizes: dict[str, int | None]) -> None:
    """Unpack the wanted files of a gzipped tar archive, which is not trusted: all of them, or nothing.

    The folder is created at once, by renaming a temporary one beside it. Only members ``<name of
    folder>/<file>`` that are regular files and are named in `sizes` (in bytes; None: up to a megabyte) are
    written; paths that lead elsewhere, links and devices are never looked at.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        missing = dict(sizes)
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    parent, _, name = member.name.removeprefix("./").rpartition("/")
                    if parent != folder.name or name not in missing or not member.isfile():
                        continue
                    size = missing.pop(name)
                    if member.size != size if size is not None else member.size > 1 << 20:
                        found = f"{member.name} has {member.size:,} bytes"
                        raise DataError(f"{archive}: {found}, not {size or 'a few'}")
                    source = tar.extractfile(member)  # not None, since it is a regular file
                    with open(temporary / name, "wb") as target:
                        shutil.copyfileobj(source, target)  # type: ignore[arg-type]
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            raise DataError(f"{archive} cannot be unpacked: {error}") from error
        if missing:
            names = ", ".join(f"{folder.name}/{name}" for name in missing)
            raise DataError(f"{archive} does not contain {names}")
        temporary.chmod(0o755)  # mkdtemp makes it private
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has done the same meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
