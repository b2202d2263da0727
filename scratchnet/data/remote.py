"""Files at an address, such as weights: downloaded once, checked by their SHA-256, and kept."""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

from scratchnet.data import web
from scratchnet.data._common import DataError
from scratchnet.data.download import download
from scratchnet.locks import Lock


def local_file(name: str | os.PathLike[str]) -> str:
    """Return the path of a file, which is downloaded first if its name is an address.

    Parameters
    ----------
    name : path or str
        A path is returned as it is. An http or https address must end with ``#sha256=`` and the 64 digits of
        the file's checksum, as ``sha256sum`` prints them.

    Returns
    -------
    str
        For an address a file in the folder that ``SCRATCHNET_CACHE`` names, by default
        ``~/.cache/scratchnet``. It is checked each time; a download that was interrupted goes on.

    Raises
    ------
    MissingDataError
        If it cannot be downloaded, or is another file.
    DataError
        If the address has no checksum.

    Examples
    --------
    >>> local_file("vgg16.pth")
    'vgg16.pth'
    >>> local_file("https://example.org/vgg16.pth")
    Traceback (most recent call last):
    scratchnet.data._common.DataError: https://example.org/vgg16.pth needs its checksum: add #sha256=...
    """
    address = os.fsdecode(name)
    if not address.lower().startswith(("http://", "https://")):
        return address
    url, _, fragment = address.partition("#")
    found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if found is None:
        raise DataError(f"{web.shown(url)} needs its checksum: add #sha256=...")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("SCRATCHNET_CACHE") or Path(cache, "scratchnet")).expanduser()
    sha256 = found[1].lower()
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    plain = re.sub(r"[^\w.-]", "_", last)[-100:]
    path = folder / f"{sha256[:16]}-{plain or 'file'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(Path(f"{path}.lock"), waiting=lambda sentence: None):
            part = Path(f"{path}.part")
            if path.exists():
                os.replace(path, part)  # checked again, and if it is damaged, downloaded again
            download(url, part, sha256=sha256)
            os.replace(part, path)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error
    return str(path)
