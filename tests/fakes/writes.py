"""Every call that writes to a disk, watched: counted, recorded, refused, or the moment at which a child dies.

``watched(hook)`` calls ``hook(call, path, *more)`` before each such call and ``hook("done", path)`` after it:
calls that make, name, fill, sync or remove files and folders, in Python, as everything here makes them.
"""

import builtins
import io
import os
import pathlib
import signal
import sys
import traceback
from contextlib import contextmanager, nullcontext
from unittest import mock

# How many paths each call has as its first arguments
CALLS = {
    "mkdir": 1,
    "rename": 2,
    "replace": 2,
    "remove": 1,
    "unlink": 1,
    "rmdir": 1,
    "chmod": 1,
    "truncate": 1,
}
ACCESSOR = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10's pathlib keeps these calls for itself
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watched:
    """A file that is open for writing, of which each write is told."""

    def __init__(self, file, path, hook):
        self.__dict__.update(_file=file, _path=path, _hook=hook)

    def write(self, data):
        content = data.encode() if isinstance(data, str) else bytes(data)
        self._hook("write", self._path, content)
        count = self._file.write(data)
        self._file.flush()
        self._hook("done", self._path)
        return count

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __iter__(self):
        return iter(self._file)


@contextmanager
def watched(hook):
    """Within this context tell ``hook`` of every call that writes."""
    real_open, real_os_open, real_fsync, real_write = builtins.open, os.open, os.fsync, os.write

    def opened(file, mode="r", *arguments, **keywords):
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return real_open(file, mode, *arguments, **keywords)
        path = os.fspath(file)
        hook("open", path, "w" in mode)
        result = real_open(file, mode, *arguments, **keywords)
        hook("done", path)
        return Watched(result, path, hook)

    def os_opened(path, flags, *arguments, **keywords):
        if not flags & WRITING:
            return real_os_open(path, flags, *arguments, **keywords)
        hook("open", os.fspath(path), bool(flags & os.O_TRUNC))
        descriptor = real_os_open(path, flags, *arguments, **keywords)
        hook("done", os.fspath(path))
        return descriptor

    def synced(descriptor):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        hook("fsync", path)
        real_fsync(number)
        hook("done", path)

    def written(descriptor, data):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not path.startswith("/") or path.startswith("/dev/"):  # a pipe or a terminal
            return real_write(descriptor, data)
        hook("write", path, bytes(data))
        count = real_write(descriptor, data)
        hook("done", path)
        return count

    def calling(name, paths):
        real = getattr(os, name)

        def call(*arguments, **keywords):
            named = [os.fspath(path) for path in arguments[:paths]]
            hook(name, *named)
            result = real(*arguments, **keywords)
            hook("done", named[-1])
            return result

        return call

    functions = {name: calling(name, paths) for name, paths in CALLS.items()}
    own = {name: function for name, function in functions.items() if hasattr(ACCESSOR, name)}
    own = {name: staticmethod(function) for name, function in own.items()}
    functions |= {"open": os_opened, "fsync": synced, "write": written}
    with (
        mock.patch.multiple(ACCESSOR, open=staticmethod(opened), **own) if ACCESSOR else nullcontext(),
        mock.patch.multiple(os, **functions),
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(io, "open", opened),  # pathlib's
    ):
        yield


def within(folder, hook):
    """Return a hook that is told only of what lies in a folder."""
    folder = os.path.realpath(folder)

    def told(call, path, *more):
        if os.path.realpath(path).startswith(folder):
            hook(call, path, *more)

    return told


def dying_at(moment):
    """Return a hook that kills this process at this event, counted from 0: before or after a call."""
    count = -1

    def hook(call, *more):
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def in_child(function, timeout=60.0):
    """Call a function in a fork of this process; return the status: of its end, or minus the signal's number.

    It prints nothing; what it raises makes the status 1, and is returned with it.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            signal.alarm(int(timeout))
            function()
            status = 0
        except SystemExit as error:
            status = error.code or 0
        except BaseException as error:
            status = 128 + getattr(error, "signal", -127)
            text = "".join(traceback.format_exception_only(error)) + "".join(
                traceback.format_tb(error.__traceback__)
            )
            os.write(writer, text[-4000:].encode())
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as told:
        text = told.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text
