"""Locks: one process at a time, however close they come, and none that outlives its holder."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scratchnet import locks
from scratchnet.locks import LOCK, InUse, Lock

ROOT = Path(__file__).parent.parent
HOLDER = """
import sys, time
from scratchnet.locks import Lock
lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""
COUNTER = """
import sys
from pathlib import Path
from scratchnet import locks
locks.SECONDS_BETWEEN_LOOKS = 0.001
count = Path(sys.argv[1], "count")
for _ in range(int(sys.argv[2])):
    with locks.Lock(Path(sys.argv[1], locks.LOCK), waiting=lambda sentence: None):
        n = int(count.read_text())
        count.write_text(str(n + 1))
"""


def run(code, *arguments, **keywords):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **keywords)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path``."""
    with run(HOLDER, tmp_path / LOCK, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def test_a_lock_of_another_process_is_refused_with_whose_it_is(tmp_path, holder):
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    words = rf"^{re.escape(str(tmp_path))} is in use by process {holder.pid} on \S+ since {date}$"
    with pytest.raises(InUse, match=words):
        Lock(tmp_path / LOCK)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_lock_dies_with_its_holder(tmp_path, holder, how):
    if os.name == "nt":
        pytest.skip("needs POSIX signals")
    holder.send_signal(getattr(signal, how))
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with Lock(tmp_path / LOCK):
        pass
    assert os.listdir(tmp_path) == []


def test_one_waits_for_it_and_is_told_once_for_whom(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_LOOKS", 0.01)
    told = []

    def end(sentence):
        told.append(sentence)
        holder.kill()

    with Lock(tmp_path / LOCK, what="the data", waiting=end):
        assert len(told) == 1 and told[0].startswith(f"the data is in use by process {holder.pid} on ")


def test_it_is_held_by_one_at_a_time_however_close_they_come(tmp_path):
    (tmp_path / "count").write_text("0")
    children = [run(COUNTER, tmp_path, 100) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "300"
    assert os.listdir(tmp_path) == ["count"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking with threads, which other tests began
def test_a_fork_does_not_take_it_along(tmp_path):
    lock = Lock(tmp_path / LOCK)
    if not (child := os.fork()):
        lock.release()  # not its to release
        time.sleep(60)
        os._exit(0)
    try:
        with pytest.raises(InUse):
            Lock(tmp_path / LOCK)
        lock.release()
        Lock(tmp_path / LOCK).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": 1}', "[" * 100_000])
def test_whose_it_is_need_not_be_known(tmp_path, content):
    lock = Lock(tmp_path / LOCK)
    lock.path.write_text(content)
    with pytest.raises(InUse, match="is in use by another process$"):
        Lock(tmp_path / LOCK)


def test_what_its_file_says_cannot_move_the_cursor(tmp_path):
    lock = Lock(tmp_path / LOCK)
    lock.path.write_text(r'{"process": 1, "host": "\u001b[2Jx\n", "since": "now"}')
    with pytest.raises(InUse, match=r"process 1 on \?\[2Jx\? since now$"):
        Lock(tmp_path / LOCK)


def test_a_lock_is_released_once_and_where_its_file_is_gone_too(tmp_path):
    lock = Lock(tmp_path / LOCK)
    lock.path.unlink()
    lock.release()
    other = Lock(tmp_path / LOCK)
    lock.release()
    with pytest.raises(InUse):
        Lock(tmp_path / LOCK)
    other.release()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="this file system has no locks"):
        Lock(tmp_path / LOCK).release()


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "absent" / LOCK)
