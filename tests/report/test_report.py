"""Reports of runs that are incomplete or damaged, and where a page can be written."""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from scratchnet import checkpoint
from scratchnet.cli import parse_training
from scratchnet.report import RunReport
from scratchnet.training.rundir import COLUMNS, RunDirectory, RunError
from scratchnet.untrusted import printable
from tests.fakes.pages import Page, change_config, refused, report, written

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plot)")


def test_without_its_data_a_run_still_has_a_page_that_says_what_is_missing(run, tmp_path):
    change_config(run, options={"data": "cifar10", "data_dir": str(tmp_path / "nowhere")})
    said = []
    shown = written(run, say=said.append)
    assert [e.attributes["id"] for e in shown.all("section")] == (
        ["curves", "doctor", "confusions", "filters", "maps", "settings"]
    )
    for name in ("doctor", "confusions", "maps"):
        assert f"no CIFAR-10 in {tmp_path / 'nowhere'}" in shown.section(name)
    assert any("--data-dir" in line for line in said)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    shown = written(run, image=tmp_path / "red.png")
    assert "red.png: named" in shown.section("gradcam")


def test_without_weights_a_run_still_has_curves_and_settings(run):
    (run / "best.safetensors").unlink()
    shown = written(run)
    assert [e.attributes["id"] for e in shown.all("section")] == ["curves", "weights", "settings"]
    assert "there is no" in shown.section("weights")


FOUND = {"step": 1, "loss": 1.0, "accuracy": 0.5, "images": 8, "classes": 10, "rows": [], "verdicts": []}
EVIL = {
    "a script": "<script>alert(1)</script>",
    "an attribute": '"\' onerror=\'alert(1)\' onload="alert(1)" x="',
    "an image": 'x"><img src=x onerror=alert(1)>',
    "the end of everything": "</title></style></svg></table></td></p></pre>-->]]><b>",
    "entities": "&lt;script&gt; &#60;b&#62; &quot;",
    "controls": "\x1b[2J\x07\r\n\x00\x9b\u2028\u202ecba",
    "a surrogate": "\udcff",
}


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_what_files_say_is_text_and_never_html(run, shown, tmp_path, evil):
    of_files = evil.translate(dict.fromkeys(map(ord, "/\0")))
    names = json.loads((run / "config.json").read_text())["class_names"]
    change_config(run, class_names=[f"{evil}{k}" for k in range(len(names))])
    change_config(run, device=evil, command=evil, data=evil, date=evil, versions={evil: evil})
    change_config(run, options={"arch": evil, "schedule": evil, "augment": evil})
    rows = [{"layer": evil, "kind": evil, "std": 1.0, "signal": 1.0}]
    verdicts = [dict.fromkeys(("name", "where", "reason", "advice"), evil)]
    (run / "diagnosis.json").write_text(json.dumps([FOUND | {"rows": rows, "verdicts": verdicts}]))
    Image.new("RGB", (32, 32), "red").save(image := tmp_path / f"{of_files}.png")
    written_page = written(run.rename(tmp_path / f"{of_files}run"), image=image)
    assert [c for c in written_page.source if not c.isprintable() and c not in "\n\u00a0"] == []
    assert {e.tag for e in written_page.elements} <= {e.tag for e in shown.elements} | {"li"}
    attributes = {(e.tag, name) for e in shown.elements for name in e.attributes}
    assert {(e.tag, name) for e in written_page.elements for name in e.attributes} <= attributes
    assert all(e.attributes["href"].startswith(("#", "data:")) for e in written_page.all("a"))
    seen, named = (printable(text).encode("utf-8", "replace").decode() for text in (evil, of_files))
    assert written_page.all("h1")[0].text == f"{named}run" and seen in written_page.all("header")[0].text
    assert sum(seen in e.text for e in written_page.all("th")) > 10


@pytest.mark.parametrize(
    "spoil", [{"loss": []}, {"step": "one"}, {"rows": [{"layer": "", "kind": "", "std": "x", "signal": 1}]}]
)
def test_a_diagnosis_of_other_things_than_numbers_is_damaged(run, spoil):
    (run / "diagnosis.json").write_text(json.dumps([FOUND | spoil]))
    with pytest.raises(RunError, match="diagnosis.json is damaged: .* must be a"):
        written(run)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_log_that_cannot_be_drawn_is_damaged(run):
    rows = [dict.fromkeys(COLUMNS, 1e308) | {"epoch": epoch} for epoch in (1, 10**300)]
    RunDirectory(run).write_log(rows)
    with pytest.raises(RunError, match="log.csv is damaged: it cannot be drawn"):
        written(run)


@pytest.mark.parametrize("logged", ["high", [], 10**400, True])
def test_weights_may_say_anything_of_their_accuracy(run, logged):
    net = checkpoint.load(run / "best.safetensors")
    checkpoint.save(run / "best.safetensors", net, **{**net.info, "val_accuracy": logged})
    assert "The log says" not in written(run).section("confusions")


def test_the_program_writes_the_page_and_says_where(trained, tmp_path, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in [trained, *trained.iterdir()]}
    done = report(capsys, trained, "--output", tmp_path / "page.html")
    assert done.status == 0 and done.out == f"{tmp_path / 'page.html'}\n"
    assert "classifying 60 validation images" in done.err
    Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert {path.name: path.stat().st_mtime_ns for path in [trained, *trained.iterdir()]} == before
    assert os.listdir(tmp_path) == ["page.html"]


def write(name, content):
    return lambda run: (run / name).write_bytes(content)


def configure(**changes):
    return lambda run: change_config(run, **changes)


def delete(name):
    return lambda run: (run / name).unlink()


NAN = ",".join(COLUMNS).encode() + b"\n1,1,1,1,1,1,nan,1\n"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shutil.rmtree, "there is no run: .*tiny is no folder"),
        (delete("config.json"), "holds no run: it has no config.json"),
        (write("config.json", b"{"), "config.json is damaged"),
        (write("config.json", b"{}"), "config.json is damaged: it does not hold the options"),
        (configure(class_names=["cat", 1]), "damaged: its class_names are no names"),
        (configure(std=[1, "x", 1]), "damaged: its mean and std cannot be used: could not"),
        (configure(std=[1, 0, 1]), "damaged: its mean and std cannot be used: norm"),
        (
            configure(class_names=["a", "b"]),
            r"best.safetensors has 10 classes and \S*config.json 2: one of them",
        ),
        (
            configure(options={"image_size": 64}),
            "takes images of 32 pixels and .*config.json says 64: one of them",
        ),
        (configure(options={"validation": 300}), "its options do not fit shapes10: cannot set aside 300"),
        (delete("log.csv"), "has no finished epoch yet: wait for the first, or use --watch"),
        (write("log.csv", b"epoch\n1\n"), "log.csv is damaged"),
        (write("log.csv", NAN), "log.csv is damaged: seconds of epoch 1 is nan"),
        (write("best.safetensors", b"12345678"), "best.safetensors is damaged"),
        (write("diagnosis.json", b"[1]"), "diagnosis.json is damaged"),
    ],
)
def test_a_run_that_is_missing_or_broken_is_named_in_a_sentence(run, capsys, spoil, sentence):
    spoil(run)
    done = report(capsys, run)
    assert done.status == 2 and re.search(sentence, done.last) and done.last.startswith("report.py: ")
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("watch", [[], ["--watch"]], ids=["once", "watch"])
@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("arch", None, "arch is null, and should be text"),
        ("epochs", "x", 'epochs is "x", and should be a whole number of at least 1'),
        ("epochs", 2.5, "epochs is 2.5, and should be a whole number of at least 1"),
        ("image_size", 0, "image_size is 0, and should be a whole number of at least 1"),
        ("seed", True, "seed is true, and should be a whole number of at least 0"),
        ("validation", "x", 'validation is "x", and should be a whole number of at least 1'),
        ("lr", float("nan"), "lr is NaN, and should be a finite number of at least 0"),
        ("batch_norm", [], "batch_norm is [], and should be true or false"),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(run, capsys, watch, option, value, sentence):
    change_config(run, options={option: value})
    refused(capsys, f"{run / 'config.json'} is damaged: its option {sentence}", run, *watch)


def test_what_every_option_of_a_run_can_be_is_no_damage(run):
    for given in ([], ["--demo"], ["--recipe", "vgg16-bn", "--lr", "1", "--engine", "layers"]):
        change_config(run, options=vars(parse_training([*given, "--run-dir", str(run)])))
        RunReport(run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"options": {"lr": 1, "yet": {"unknown": []}}}))
    RunReport(run)


def test_an_image_that_cannot_be_read_is_named_before_anything_is_done(run, capsys):
    refused(capsys, f"{run / 'none.png'} does not exist", run, "--image", run / "none.png")


def test_a_folder_is_no_image_to_follow(run, tmp_path, capsys):
    refused(capsys, f"{tmp_path} is a folder, where one image is wanted", run, "--image", tmp_path)


def test_a_page_that_cannot_be_written_is_named(run, capsys):
    page = run / "no" / "page.html"
    refused(capsys, f"{page} cannot be written: there is no folder {page.parent}", run, "--output", page)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_page_takes_no_pipes_place(trained, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for output in (tmp_path / "pipe", tmp_path / "link"):
        refused(capsys, f"{output} cannot be written: it is no regular file", trained, "--output", output)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_a_page_through_a_link_is_written_where_the_link_points(trained, tmp_path, capsys):
    (tmp_path / "page.html").write_text("an old page")
    (tmp_path / "link.html").symlink_to("page.html")
    done = report(capsys, trained, "--output", tmp_path / "link.html")
    assert done.status == 0 and done.out == f"{tmp_path / 'link.html'}\n"
    assert (tmp_path / "link.html").is_symlink()
    Page((tmp_path / "page.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name",
    ["config.json", "log.csv", "best.safetensors", "last.safetensors", "state.safetensors", "diagnosis.json"],
)
def test_a_page_takes_no_file_of_a_runs_place(run, tmp_path, capsys, name):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    (tmp_path / "page.html").symlink_to(run / name)
    for output in (run / name, run / ".." / run.name / name, tmp_path / "page.html"):
        refused(capsys, f"{output} cannot be written: a run keeps its {name} there", run, "--output", output)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that even root may not write to")
def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_done(
    trained, run, capsys, monkeypatch
):
    done = report(capsys, trained, "--output", "/proc/page.html")
    assert done.status == 2 and done.err.startswith("report.py: /proc/page.html cannot be written: ")
    assert done.err.count("\n") == 1

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)  # root, too, may run the tests
    refused(capsys, f"{run / 'report.html'} cannot be written: Permission denied", run)


def test_without_matplotlib_the_program_says_how_to_install_it(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = report(capsys, run)
    assert done.status == 2 and "pip install matplotlib" in done.last
    assert not (run / "report.html").exists()
