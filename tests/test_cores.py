"""How many cores this process may use: affinity, a container's quota in both versions, OMP_NUM_THREADS."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scratchnet import cores, workers


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A machine of 64 cores whose control groups are what a test writes."""
    monkeypatch.setattr(cores, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SCRATCHNET_THREADS", raising=False)

    def write(membership, **files):
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("membership", "files", "wanted"),
    [
        ("0::/", {"cpu.max": "200000 100000\n"}, 2),  # docker --cpus=2, its own view
        ("0::/", {"cpu.max": "max 100000\n"}, 64),
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),  # rounded up
        ("0::/", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),  # the parent's
        ("0::/host/docker/1234", {"cpu.max": "400000 100000\n"}, 4),  # the path is the host's
        (
            "4:cpu,cpuacct:/x\n0::/",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "500000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("4:cpu:/x", {"cpu/cpu.cfs_quota_us": "600000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("4:cpuset:/x", {"cpuset/x/cpu.max": "100000 100000\n"}, 64),  # another controller's
        ("nonsense", {"cpu.max": "two\n"}, 64),
    ],
)
def test_quotas_count(groups, membership, files, wanted):
    groups(membership, **files)
    assert cores.usable_cores() == wanted == workers.size()


def test_without_control_groups_the_affinity_mask_counts(groups):
    assert cores.usable_cores() == 64


@pytest.mark.parametrize(
    ("value", "wanted"), [("3", 3), ("100", 64), ("4,2", 4), ("", 64), ("0", 64), ("many", 64)]
)
def test_omp_num_threads_is_an_upper_bound(groups, monkeypatch, value, wanted):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert workers.size() == wanted
    monkeypatch.setenv("SCRATCHNET_THREADS", "7")  # said to this program in particular
    assert workers.size() == 7


def test_a_real_quota():
    group = Path("/sys/fs/cgroup/cpu") / f"scratchnet-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"control groups of version 1 cannot be made here: {error}")
    code = """
import os, sys
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
from scratchnet import workers
print(workers.size())
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("SCRATCHNET_THREADS", "OMP_NUM_THREADS")}
    try:
        result = subprocess.run(
            [sys.executable, "-c", code, str(group / "cgroup.procs")],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert result.stdout.strip() == "1", result.stderr
    finally:
        group.rmdir()
