"""Locks on folders: a file that the operating system holds locked for one process, until that process ends.

The lock is the system's (``flock``, on Windows ``msvcrt.locking``), not the file's existence: so it is taken
by one process at a time, however close they come, and a process that is killed lets go of it. The file says
whose it is, and is removed when the lock is released; one that a killed process left is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

LOCK = ".lock"  # the usual name, in the folder that it is about
SECONDS_BETWEEN_LOOKS = 0.5
_PLACE_OF_LOCK = 1 << 30  # on Windows a locked byte cannot be read, so it is one beyond the text
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what a file system without locks answers
_open: set[int] = set()  # descriptors that are to be closed in a fork


class InUse(Exception):
    """A lock is another process's. The message says whose: its process, its host and since when."""


class Lock:
    """A lock that is held from when it is made until ``release``, or until its context or the process ends.

    Parameters
    ----------
    path : path
        The file that is locked; its folder must exist.
    what : str, optional
        What messages say is in use; by default the file's folder.
    waiting : callable, optional
        Wait for the lock if another process has it; called once then, with the sentence that InUse would
        have. Without it nothing is waited for.

    Raises
    ------
    InUse
        If it is another's, or this process holds it already, and there is no ``waiting``.
    OSError
        If the file cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> lock = Lock(Path(folder.name, LOCK), what="the folder")
    >>> Lock(lock.path, what="the folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    scratchnet.locks.InUse: the folder is in use by process ... on ... since ...
    >>> lock.release()
    >>> with Lock(lock.path):
    ...     os.listdir(folder.name)
    ['.lock']
    >>> os.listdir(folder.name)
    []
    """

    _descriptor = -1

    def __init__(
        self,
        path: str | os.PathLike[str],
        what: str | None = None,
        waiting: Callable[[str], object] | None = None,
    ):
        self.path, self._process = Path(path), os.getpid()
        looks = 10
        while not self._take():
            whose, looks = _owner(self.path), looks - 1
            if not whose and looks:  # it has just been taken, or let go
                time.sleep(0.05)
                continue
            sentence = f"{what or self.path.parent} is in use by {whose or 'another process'}"
            if waiting is None:
                raise InUse(sentence)
            if waiting is not _wait_silently:
                waiting(sentence)
                waiting = _wait_silently
            time.sleep(SECONDS_BETWEEN_LOOKS)
        with contextlib.suppress(OSError):  # a full disk: it is locked all the same
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, _description())

    def _take(self) -> bool:
        """Lock the file, and tell whether that was possible."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            _open.add(descriptor)
            try:
                if not _try_to_lock(descriptor):
                    return False
                # The last holder may have removed the file meanwhile: what is locked here has no name then.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                        self._descriptor = descriptor
                        return True
            finally:
                if self._descriptor != descriptor:
                    _close(descriptor)

    def release(self) -> None:
        """Let go of it; a second time this does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor == -1 or os.getpid() != self._process:  # of a fork it was never the child's
            return
        if fcntl is None:  # a file that is open cannot be removed there
            _close(descriptor)
        with contextlib.suppress(OSError):
            os.remove(self.path)
        if fcntl is not None:
            _close(descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def _wait_silently(sentence: str) -> None:
    """Say nothing: what is waited for has been told."""


def _try_to_lock(descriptor: int) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, _PLACE_OF_LOCK, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn("this file system has no locks: nothing keeps a second process out", stacklevel=2)
    return True


def _close(descriptor: int) -> None:
    _open.discard(descriptor)
    os.close(descriptor)


def _description() -> bytes:
    whose = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    return json.dumps(whose).encode()


def _owner(path: Path) -> str:
    """Say whose a lock is; nothing if its file does not tell."""
    try:
        with open(path, "rb") as file:
            whose = json.loads(file.read(1 << 12))
        words = f"process {whose['process']} on {whose['host']} since {whose['since']}"
        return "".join(letter if letter.isprintable() else "?" for letter in words)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _close_in_child() -> None:
    """Close the copies that a fork has of locks: else they would outlive the process that took them."""
    for descriptor in list(_open):
        _close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
