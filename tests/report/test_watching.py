"""The report of a run that is still training, kept up to date by ``--watch``."""

import os
import shutil
import time
from types import SimpleNamespace

import pytest

from tests.fakes.pages import Page, change_config, report

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plot)")


@pytest.fixture
def training(run, monkeypatch):
    """A run after the first of its three epochs; each sleep of the program is the chance to do something."""
    title, *rows = (run / "log.csv").read_text().splitlines(True)
    rows.append(rows[1].replace("2,", "3,", 1))
    change_config(run, options={"epochs": 3})
    monkeypatch.setattr(os, "nice", lambda by: 0, raising=False)  # the tests go on in this process
    clock, steps, seen, later = time.monotonic, [], [], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + later[0])

    def epochs(done):
        (run / "log.csv").write_text(title + "".join(rows[:done]))

    def sleep(seconds):
        assert 0 < seconds <= 2
        seen.append(page_of(run))
        steps.pop(0)()

    def rest():
        later[0] += 1000

    monkeypatch.setattr(time, "sleep", sleep)
    epochs(1)
    return SimpleNamespace(run=run, epochs=epochs, rest=rest, steps=steps, seen=seen)


def page_of(run):
    path = run / "report.html"
    return Page(path.read_text(encoding="utf-8")) if path.exists() else None


def interrupt():
    raise KeyboardInterrupt


REFRESH = {"http-equiv": "refresh"}


def test_a_watched_page_is_new_after_each_epoch_and_looks_again_until_the_end(training, capsys):
    training.steps += [lambda: training.epochs(2), training.rest, lambda: None, lambda: training.epochs(3)]
    done = report(capsys, training.run, "--watch")
    assert done.status == 0 and not training.steps
    first, resting, second, unchanged = training.seen
    assert "1 of 3" in first.all("header")[0].text and "last.safetensors" in first.all("header")[0].text
    assert first.all("meta", **REFRESH)
    assert resting.source == first.source  # drawing may take a fifth of the time
    assert "2 of 3" in second.all("header")[0].text and second.all("meta", **REFRESH)
    assert unchanged.source == second.source and done.err.count(" of 3") == 2
    final = page_of(training.run)
    assert "3 of 3" in final.all("header")[0].text and "best.safetensors" in final.all("header")[0].text
    assert not final.all("meta", **REFRESH)


def test_watching_waits_for_the_first_epoch(training, capsys):
    (training.run / "log.csv").unlink()
    training.steps += [lambda: training.epochs(3)]
    assert report(capsys, training.run, "--watch").status == 0
    assert training.seen == [None] and page_of(training.run)


def test_watching_ends_when_the_run_is_gone(training, capsys):
    training.steps += [lambda: shutil.rmtree(training.run)]
    done = report(capsys, training.run, "--watch")
    assert (
        done.status == 2 and done.last == f"report.py: the run is gone: {training.run} is no folder any more"
    )


def test_ctrl_c_leaves_the_page_and_it_looks_no_more(training, capsys):
    training.steps += [interrupt]
    assert report(capsys, training.run, "--watch").status == 0
    assert training.seen[0].all("meta", **REFRESH)
    left = page_of(training.run)
    assert not left.all("meta", **REFRESH) and left.all("section", id="gradcam")


def test_ctrl_c_before_the_first_epoch_says_so(training, capsys):
    (training.run / "log.csv").unlink()
    training.steps += [interrupt]
    done = report(capsys, training.run, "--watch")
    assert done.status == 130 and "stopped before a page was written" in done.last
