"""Checks that a page or a figure can be written, made before the work instead of after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from scratchnet.tensorfile import PARTIAL
from scratchnet.training.rundir import RunDirectory, RunError


def writable_path(output: str | os.PathLike) -> Path:
    """Return the file to replace, ``output`` itself or the target of a link; RunError if that cannot be.

    It cannot be a folder, a device, a pipe or one of a run's own files, nor in a folder that is missing or
    not writable.

    >>> writable_path("no/such/page.html")
    Traceback (most recent call last):
    scratchnet.training.rundir.RunError: no/such/page.html cannot be written: there is no folder no/such
    """
    # A file renamed to a link's name would replace the link.
    path = Path(os.path.realpath(output) if os.path.islink(output) else output)
    reason = ""
    if path.is_dir():
        reason = "it is a folder"
    elif os.path.lexists(path) and not path.is_file():
        reason = "it is no regular file"
    elif not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    elif path in RunDirectory(path.parent, read_only=True).files:
        reason = f"a run keeps its {path.name} there"
    else:
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
    if reason:
        raise RunError(f"{output} cannot be written: {reason}")
    return path
