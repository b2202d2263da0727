"""The cores that this process may use, by its affinity mask, its container's quota and the user's limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the number of cores, at least one.

    It is the least of the process's affinity mask (the machine's total, where there are no such masks), the
    CPU quota of its control groups, rounded up, as ``docker --cpus`` and systemd's ``CPUQuota`` set it, and
    ``OMP_NUM_THREADS``, with which a user limits the threads of all numerical libraries.

    Examples
    --------
    >>> 1 <= usable_cores() <= (os.cpu_count() or 1)
    True
    """
    masks = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if masks else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2" has nested levels
    if wanted.isascii() and wanted.isdecimal() and int(wanted) > 0:
        cores = min(cores, int(wanted))
    return max(1, min([cores, *map(ceil, _quotas())]))


def control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from its own up to the root, of both versions.

    Within a container the root is often the container's own group, while the path that Linux tells is the
    host's: folders that there are not are left out.

    Parameters
    ----------
    controller : str
        Such as "cpu" or "memory".

    Examples
    --------
    >>> all(group.is_dir() for group in control_groups("cpu"))
    True
    """
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/", f"1:{controller}:/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / controllers if controllers else CONTROL_GROUPS
        group = root / path.strip("/")
        while group.is_relative_to(root):
            if group.is_dir():
                yield group
            group = group.parent


def _quotas() -> Iterator[float]:
    """Yield the cores that control groups allow, where they limit any."""
    for group in control_groups("cpu"):
        try:
            if (group / "cpu.max").exists():  # version 2: "200000 100000", microseconds of time and of period
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text().strip()
                period = (group / "cpu.cfs_period_us").read_text()
            if quota.isdecimal() and int(quota) > 0 and int(period) > 0:  # not "max", not -1
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue
