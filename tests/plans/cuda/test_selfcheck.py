"""The self-check of a GPU: in a process of its own, with a verdict that is remembered."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scratchnet.plans.cuda import selfcheck
from tests.fakes import cupy_stand_in

ROOT = Path(__file__).parents[3]
made = selfcheck.verdict.__wrapped__  # the stand-in puts its own in its place


@pytest.fixture
def check(stand_in, monkeypatch, tmp_path):
    """A function that asks for a verdict, with what is planted; processes find the stand-in, too."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    paths = map(str, (ROOT / "tests" / "fakes" / "path", ROOT))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def ask(planted="", precision="fp32"):
        monkeypatch.setenv("PLANTED", planted)
        return made(stand_in, precision)

    return ask


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_what_is_right_passes_and_is_remembered(check, monkeypatch, precision):
    ok, sentence, is_new = check(precision=precision)
    assert ok and is_new
    start = f"self-check: plans equal the layers (in {precision}, differences up to "
    assert sentence.startswith(start) and sentence.endswith("; replayed bit for bit)")
    monkeypatch.setattr(selfcheck, "_apart", lambda *_: pytest.fail("made again"))
    assert check(precision=precision) == (True, sentence, False)


# Each is easy to get wrong on a GPU, and none of them ends a process.
FAULTS = {
    "conv.cu|int ow = row % OW, oh = row / OW % OH|int oh = row % OW, ow = row / OW % OH": "the output",
    "sums.cu|k < count; k += 16|k < count - 1; k += 16": "the gradient of 0.weight|the gradient of 0.bias",
    "norm.cu|slope.at[i] *= one_by_M * inverse.at[i];|slope.at[i] *= one_by_M;": "the gradient of 0.weight",
}


@pytest.mark.parametrize("planted", FAULTS)
def test_faults_in_kernels_are_found_and_remembered(check, planted):
    ok, sentence, _ = check(planted)
    assert not ok
    assert sentence.startswith(
        "self-check: plans do not equal the layers on this GPU, so they are not used ("
    )
    assert check() == (False, sentence, False), "until versions change"


def test_an_illegal_access_ends_another_process(check):
    ok, sentence, _ = check("signal")
    assert not ok and sentence.endswith("(its process ended by signal 11)")


def test_what_differs_between_launched_and_replayed_is_found(stand_in, monkeypatch):
    trained = selfcheck._trained
    nudged = {True: 1.0 + 1e-7, False: 1.0}
    monkeypatch.setattr(
        selfcheck,
        "_trained",
        lambda gpu, precision, graphs: {"w": trained(gpu, precision, graphs)["0.weight"] * nudged[graphs]},
    )
    from scratchnet import backend

    ok, found = selfcheck.compare(backend.get("cupy"), "fp32")
    assert not ok and found == "w has other bits after steps that are replayed, in fp32"


def test_who_waits_for_it_is_told(check, monkeypatch, capsys):
    monkeypatch.setattr(selfcheck, "_apart", lambda *_: (True, "x"))
    check()
    assert capsys.readouterr() == ("", "First use of this GPU: plans are compared with NumPy ...\n")
    check()
    assert capsys.readouterr() == ("", "")


def test_a_gpu_that_others_use_is_checked_another_time(check, monkeypatch):
    monkeypatch.setattr(selfcheck, "_apart", lambda *_: (None, "its memory is full"))
    assert check() == (True, "plans are not checked on this GPU: its memory is full", True)
    assert not selfcheck.cache_file().exists()


def test_another_driver_is_checked_again(check, stand_in, monkeypatch):
    monkeypatch.setattr(selfcheck, "_apart", lambda *_: (True, "x"))
    assert check().is_new and not check().is_new
    monkeypatch.setattr(stand_in.cuda.runtime, "driverGetVersion", lambda: 13010)
    assert check().is_new
    assert len(json.loads(selfcheck.cache_file().read_text())) == 2


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a": 1}', "\x00"])
def test_a_damaged_cache_is_replaced(check, monkeypatch, content):
    monkeypatch.setattr(selfcheck, "_apart", lambda *_: (True, "x"))
    path = selfcheck.cache_file()
    path.parent.mkdir()
    path.write_text(content)
    assert check().is_new and not check().is_new


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_done_without(check, monkeypatch, tmp_path):
    monkeypatch.setattr(selfcheck, "_apart", lambda *_: (True, "x"))
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert check().is_new and check().is_new


def test_it_can_be_made_by_hand(check):
    done = subprocess.run(
        [sys.executable, "-m", "scratchnet.plans.cuda.selfcheck", "bf16"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("in bf16, differences up to"), done.stderr
    assert cupy_stand_in.cupy  # imported here, for processes to find
