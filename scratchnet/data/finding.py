"""Image files in folders, told by their names."""

from __future__ import annotations

import os

from PIL import Image

from scratchnet.data.images import Name

# Formats that Pillow knows by name but cannot read by itself, and those refused here.
UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def images_in(folder: Name) -> list[str]:
    """Return the files in a folder and its subfolders that may be images, judging by their names.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of str
        Paths that begin with ``folder``, sorted; hidden files are left out.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = tempfile.TemporaryDirectory()
    >>> for name in ("cat.png", "ant.jpg", "notes.txt"):
    ...     Path(folder.name, name).touch()
    >>> [Path(path).name for path in images_in(folder.name)]
    ['ant.jpg', 'cat.png']
    """
    os.listdir(folder)  # raises OSError, unlike a walk
    names = ((path, os.path.basename(path)) for path in files_in(folder))
    return [path for path, name in names if may_be_image(name) and not name.startswith(".")]


def may_be_image(name: str) -> bool:
    """Tell whether a file's name ends as those of images do that Pillow reads.

    Parameters
    ----------
    name : str

    Examples
    --------
    >>> may_be_image("cat.JPG"), may_be_image("notes.txt")
    (True, False)
    """
    if not _endings:
        kinds = Image.registered_extensions()
        _endings.update(end for end, kind in kinds.items() if kind in Image.OPEN and kind not in UNREADABLE)
    return os.path.splitext(name)[1].lower() in _endings


_endings: set[str] = set()


def files_in(folder: Name) -> list[str]:
    """Return all files in a folder and its subfolders, sorted folder by folder, each folder once.

    Parameters
    ----------
    folder : path

    Examples
    --------
    >>> files_in("no/such/folder")
    []
    """
    found, seen = [], set()
    for where, folders, files in os.walk(os.fspath(folder), followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [os.path.join(where, name) for name in sorted(files)]
    return [os.fsdecode(path) for path in found]
