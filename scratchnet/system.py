"""Memory, as the operating system, a container or a GPU reports it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scratchnet.backend import Backend
from scratchnet.cores import control_groups


def resident_bytes() -> int:
    """Return how much memory this process holds now; 0 where the system does not say.

    Examples
    --------
    >>> resident_bytes() > 1_000_000 or not Path("/proc/self/status").exists()
    True
    """
    return _kilobytes(Path("/proc/self/status"), "VmRSS") or 0


def available_bytes(backend: Backend | None = None) -> int | None:
    """Return how much more memory may be taken on the host, or where a backend computes; None if unknown.

    On a CPU it is what Linux counts as available, or what a container may still take where that is less. On a
    GPU it is the free memory.

    Parameters
    ----------
    backend : Backend, optional

    Examples
    --------
    >>> available = available_bytes()
    >>> available is None or available > 0
    True
    """
    if backend is not None and backend.name != "numpy":
        free, _ = backend.xp.cuda.runtime.memGetInfo()
        return int(free)
    limits = [_kilobytes(Path("/proc/meminfo"), "MemAvailable"), *_of_container()]
    return min((limit for limit in limits if limit is not None), default=None)


def _of_container() -> Iterator[int]:
    """Yield what control groups leave, by either version of the interface; files read are no burden."""
    for group in control_groups("memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                most = (group / limit).read_text().strip()
                now = int((group / used).read_text())
                lines = (group / "memory.stat").read_text().splitlines()
                files = next((int(line.split()[1]) for line in lines if line.split()[0] == cached), 0)
            except (OSError, ValueError):
                continue
            if most.isdecimal():
                yield max(0, int(most) - now + files)


def _kilobytes(path: Path, name: str) -> int | None:
    """Return a line of a file in /proc, such as ``VmRSS:  1234 kB``, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
