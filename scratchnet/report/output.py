"""Where a page or an image may be written: asked before the work, so that none is done in vain."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from scratchnet.checkpoint import PARTIAL
from scratchnet.training.rundir import RunDirectory, RunError


def place_for(output: str | os.PathLike) -> Path:
    """Return the file to replace where ``output`` is wanted: itself, or what it points to if it is a link.

    Parameters
    ----------
    output : path

    Raises
    ------
    RunError
        If it is a folder, a device or a pipe, or a file that a run keeps; or if its folder is missing or
        cannot be written to.

    Examples
    --------
    >>> place_for("no/such/page.html")
    Traceback (most recent call last):
    scratchnet.training.rundir.RunError: no/such/page.html cannot be written: there is no folder no/such
    """
    # What is renamed to a link's name would take the place of the link.
    place = Path(os.path.realpath(output) if os.path.islink(output) else output)
    reason = ""
    if place.is_dir():
        reason = "it is a folder"
    elif os.path.lexists(place) and not place.is_file():
        reason = "it is no regular file"
    elif not place.parent.is_dir():
        reason = f"there is no folder {place.parent}"
    elif place in RunDirectory(place.parent, read_only=True).files:
        reason = f"a run keeps its {place.name} there"
    else:
        try:
            with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}.", suffix=PARTIAL):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
    if reason:
        raise RunError(f"{output} cannot be written: {reason}")
    return place
