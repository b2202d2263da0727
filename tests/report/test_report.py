"""The page of a run: whole, self-contained, readable by everybody, and true."""

import base64
import html
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from scratchnet import data
from scratchnet.models import vgg11
from scratchnet.report import Report, page, sections
from scratchnet.training import RunDirectory, doctor
from scratchnet.training.cli import DEFAULTS, DEMO, RECIPES, parse_training
from scratchnet.training.rundir import COLUMNS

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plot)")
from scratchnet.report import charts  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TINY = (
    "--backend numpy --data shapes10 --subset 64 --validation 60 "
    "--arch vgg11 --width 0.0625 --classifier-width 16"
)
VOID = {"meta", "link", "img", "br", "hr"}
PARTS = ["curves", "doctor", "confusions", "mistakes", "filters", "maps", "gradcam", "settings"]


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes and their text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.source = [], [], text
        self.feed(text)
        assert not self.open, "elements that are not closed"

    def handle_starttag(self, tag, attributes):
        element = SimpleNamespace(
            tag=tag, attributes=dict(attributes), text="", inside=[e.tag for e in self.open]
        )
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(SimpleNamespace(tag=tag, attributes=dict(attributes), text="", inside=[]))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, text):
        for element in self.open:
            element.text += text

    def all(self, tag, **attributes):
        return [e for e in self.elements if e.tag == tag and attributes.items() <= e.attributes.items()]

    def section(self, name):
        """The text of a part of the page."""
        (element,) = self.all("section", id=name)
        return " ".join(element.text.split())


@pytest.fixture(scope="module", autouse=True)
def few_pictures():
    pictures = data.shapes10(n_train=300, n_test=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "shapes10", lambda: pictures)
        yield pictures


def program(text):
    """Run a program in this process; return its exit status."""
    name, *arguments = text.split() if isinstance(text, str) else text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return caught.value.code


def train(folder, more):
    assert program(f"train_cifar.py {TINY} --run-dir {folder} {more}") == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_pictures):
    """A run of two epochs: its folder, which no test may change."""
    return train(tmp_path_factory.mktemp("runs") / "tiny", "--batch-norm --lr 0.05 --epochs 2")


@pytest.fixture(scope="module")
def shown(trained, tmp_path_factory):
    """Its page."""
    return written(trained, output=tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def written(run, **options):
    report = Report(run, **options)
    report.write()
    return Page(report.output.read_text(encoding="utf-8"))


def change_config(run, **changes):
    config = json.loads((run / "config.json").read_text())
    config["options"] |= changes.pop("options", {})
    (run / "config.json").write_text(json.dumps(config | changes))


# One file, for everybody


def test_the_page_has_every_part_and_links_to_each(shown):
    assert [e.attributes["id"] for e in shown.all("section")] == PARTS
    assert [e.attributes["href"] for e in shown.all("a")] == [f"#{name}" for name in PARTS]
    assert all(len(shown.section(name)) > 50 for name in PARTS)


def test_it_loads_nothing_from_anywhere(shown):
    for element in shown.elements:
        assert element.tag not in ("script", "iframe", "object", "video", "audio", "base", "form")
        for name, value in element.attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value.startswith(("data:", "#")), (element.tag, value[:80])
    style = shown.all("style")
    assert not any("@import" in e.text or "url(" in e.text and "url(#" not in e.text for e in style)
    assert "http" not in re.sub(r'base64,[^"]*', "", shown.source)


def test_names_are_unique_and_all_that_is_pointed_at_is_there(shown):
    names = [e.attributes["id"] for e in shown.elements if "id" in e.attributes]
    assert len(names) == len(set(names))
    pointed = re.findall(r'(?:href="|url\()#([^")]*)', shown.source)
    assert len(pointed) > len(PARTS)
    assert set(pointed) <= set(names)


def test_who_cannot_see_is_told(shown):
    assert shown.all("html", lang="en") and len(shown.all("title")) == len(shown.all("h1")) == 1
    assert len(shown.all("img")) > 20
    assert all(len(image.attributes["alt"]) > 3 for image in shown.all("img"))
    drawings = shown.all("svg")
    assert len(drawings) == 3
    assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in drawings)
    assert len(shown.all("figcaption")) == len(shown.all("figure")) > 20
    assert shown.all("table") and all(th.attributes["scope"] in ("col", "row") for th in shown.all("th"))


def test_every_picture_is_one(shown):
    for image in shown.all("img"):
        pixels = Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].partition("base64,")[2])))
        assert pixels.size == (int(image.attributes["width"]), int(image.attributes["height"]))


def test_the_page_is_small(shown):
    assert len(shown.source) < 500_000


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_it_without_complaints_and_without_scrolling_sideways(shown, tmp_path, width):
    # In a frame, since no window of Chromium's is as narrow as a phone.
    measure = """<script>addEventListener("load", () => {
        const frame = document.querySelector("iframe"), page = frame.contentDocument;
        const svgs = [...page.querySelectorAll("svg")], images = [...page.images];
        const result = {
            images: images.length, broken: images.filter(i => !(i.complete && i.naturalWidth)).length,
            width: frame.contentWindow.innerWidth, needed: page.documentElement.scrollWidth,
            drawn: Math.min(...svgs.map(svg => svg.getBoundingClientRect().height)) };
        document.body.innerHTML = "<p id=result>" + JSON.stringify(result) + "</p>"; });</script>"""
    frame = f'<iframe style="width: {width}px; border: 0" srcdoc="{html.escape(shown.source)}"></iframe>'
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html>{measure}{frame}", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,900", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", "--v=0", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    result = json.loads(html.unescape(re.search(r"<p id=.result.>(.*?)</p>", done.stdout)[1]))
    assert result["images"] > 20 and result["broken"] == 0 and result["drawn"] > 100
    assert result["needed"] <= result["width"] == width


# What it says is true


def test_the_summary_is_the_logs(shown, trained):
    rows = RunDirectory(trained, read_only=True).read_log()
    best = max(rows, key=lambda row: row["val_accuracy"])
    text = " ".join(shown.all("header")[0].text.split())
    assert f"{100 * best['val_accuracy']:.2f} % (epoch {best['epoch']})" in text
    assert "2 of 2" in text and "shapes10" in text and "best.safetensors" in text


def test_confusions_are_those_of_the_validation_pictures_that_the_trainer_had(shown, trained):
    rows = RunDirectory(trained, read_only=True).read_log()
    best = max(row["val_accuracy"] for row in rows)
    assert f"The 60 validation images, which were not trained on: {100 * best:.2f} % are named right" in (
        shown.section("confusions")
    )
    assert "these are not the images" not in shown.source
    cells = [e for e in shown.all("td") if "--share" in e.attributes.get("style", "")]
    right = [e for e in cells if e.attributes.get("class") == "right"]
    assert len(cells) == 100 and len(right) == 10
    assert sum(int(e.text or 0) for e in cells) == 60
    assert sum(int(e.text or 0) for e in right) == round(60 * best)
    assert f"{60 - round(60 * best)} of the 60 validation images" in shown.section("mistakes")


def test_other_pictures_than_the_trainers_are_noticed():
    probabilities, labels = np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, 0])
    remark = "these are not the images that the run was validated on"
    assert remark in sections.confusions(probabilities, labels, ["cat", "dog"], logged=0.9).words
    assert remark not in sections.confusions(probabilities, labels, ["cat", "dog"], logged=0.7501).words
    assert "cat for dog (1)" in sections.confusions(probabilities, labels, ["cat", "dog"], None).words


def test_a_confusion_matrix_shades_cells_by_their_share_of_the_row():
    table = Page(page.confusion(np.array([[3, 1], [0, 0]]), ["cat", "dog"]))
    texts = [e.text for e in table.all("td")]
    assert texts == ["3", "1", "75.0", "", "", "-"]
    shares = [float(e.attributes["style"].split(":")[1]) for e in table.all("td") if "style" in e.attributes]
    assert shares[0] > shares[1] > shares[2] == shares[3] == 0


def test_mistakes_name_the_right_class_and_the_one_that_was_said():
    probabilities, labels = np.array([[0.3, 0.7], [0.9, 0.1], [0.05, 0.95]]), np.array([0, 0, 0])
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[2] = 255
    found = sections.mistakes(probabilities, labels, images, ["cat", "dog"])
    shown = Page(found.content)
    assert [e.text for e in shown.all("figcaption")] == [
        "cat, taken for dog, 95.0\u00a0%",
        "cat, taken for dog, 70.0\u00a0%",
    ]
    first = base64.b64decode(shown.all("img")[0].attributes["src"].partition("base64,")[2])
    assert np.asarray(Image.open(io.BytesIO(first))).min() == 255


def diagnosed(step):
    net = vgg11(10, 32, width=0.0625, classifier_width=16)
    x, labels = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32"), np.arange(8)
    return doctor.diagnose(net, x, labels, step=step)


def test_the_last_diagnosis_of_training_is_shown(run):
    diagnoses = [diagnosed(0), diagnosed(12345)]
    (run / doctor.FILE).write_text(json.dumps([found.as_dict() for found in diagnoses]))
    shown = written(run)
    assert "after step 12,345 of training" in shown.section("doctor")
    assert f"loss {diagnoses[1].loss:.4f}" in shown.section("doctor")
    for row in diagnoses[1].rows:
        assert row.layer in shown.section("doctor")


def test_a_run_without_a_diagnosis_gets_one_with_the_pictures_that_it_was_trained_on(shown):
    assert "Examined now, with the weights shown here and 64 training images" in shown.section("doctor")


def test_verdicts_are_shown_with_their_advice():
    verdict = doctor.Verdict("vanishing", "features.0", "It is < 1.", "Use He.")
    sick = replace(diagnosed(0), verdicts=[verdict])
    found = sections.diagnosis(sick, "now")
    assert html.escape(str(verdict)) in found.words and "Healthy" not in found.words
    assert "update" not in found.content  # nobody measured it


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--demo"],
        ["--recipe", "vgg16-bn", "--epochs", "3"],
        ["--nesterov", "--subset", "5000", "--lr", "1e-05"],
    ],
    ids=" ".join,
)
def test_the_command_repeats_the_run(given):
    options = vars(parse_training([*given, "--run-dir", "runs/one"]))
    command = sections.reproduce(json.loads(json.dumps(options))).split()
    assert command[:2] == ["python", "examples/train_cifar.py"]
    again = vars(parse_training(command[2:]))
    for name in ("run_dir", "demo", "recipe"):
        del options[name], again[name]
    assert again == options


def test_that_the_command_repeats_the_run_is_said_only_of_a_run_in_one_piece(shown):
    """Cosine over one epoch and then over three is not cosine over three."""
    assert (
        "the command repeats it to the bit, unless it was resumed with other settings, such as another"
        in (shown.section("settings"))
    )


def test_the_settings_are_shown_and_those_that_are_not_the_defaults_stand_out(shown):
    rows = [e.text for e in shown.all("tr", **{"class": "strong"})]
    assert "width0.0625" in rows and "batch-normTrue" in rows and "momentum0.9" not in rows
    assert "momentum0.9" in [e.text for e in shown.all("tr")]
    assert len(DEFAULTS) >= len(rows) > len(DEMO) / 2 and RECIPES


# Curves


def test_curves_have_the_right_heights():
    values = {"training": [2.0, 1.0, 0.5, 0.75], "validation": [2.5, 2.0, 1.5, 1.0]}
    svg = charts.curves("loss", [1, 2, 3, 4], values, "loss")
    lines = re.findall(r'<path d="([^"]*)" clip-path[^>]*stroke: var\(--(train|validation)\)', svg)
    drawn = {name: np.array(re.findall(r"[ML] (\S+) (\S+)", path), float) for path, name in lines}
    assert set(drawn) == {"train", "validation"}
    xs = np.concatenate([drawn["train"][:, 0], drawn["validation"][:, 0]])
    ys = np.concatenate([drawn["train"][:, 1], drawn["validation"][:, 1]])
    assert np.corrcoef(xs, [1, 2, 3, 4] * 2)[0, 1] == pytest.approx(1)
    assert np.corrcoef(ys, values["training"] + values["validation"])[0, 1] == pytest.approx(
        -1
    )  # down is more


def test_curves_take_the_pages_colours_and_font():
    svg = charts.curves("loss", [1], {"training": [2.0], "validation": [1.0]}, "loss")
    assert not re.search("#0[1-4]0", svg) and "font-family" not in svg and "DejaVu" not in svg
    assert (
        "var(--train)" in svg
        and "var(--validation)" in svg
        and "currentColor" in svg
        and "var(--line)" in svg
    )
    used = set(re.findall(r"var\((--\w+)\)", svg))
    assert all(page.STYLE.count(f"{name}:") == 2 for name in used)  # on light and on dark
    assert ">training</text>" in svg and ">epoch</text>" in svg
    Page(svg)


def test_the_same_log_makes_the_same_bytes():
    assert charts.curves("a", [1, 2], {"x": [1, 2]}, "x") == charts.curves("a", [1, 2], {"x": [1, 2]}, "x")


# Feature maps


@pytest.mark.parametrize("size", [1, 2, 7, 32, 33, 64, 65, 224])
def test_maps_of_all_sizes_come_to_about_one(size):
    images = np.arange(2.0 * size * size).reshape(2, size, size)
    shown = sections._of_one_size(images)
    assert 16 < shown.shape[1] == shown.shape[2] <= 64
    if size != 65:
        assert shown.mean() == pytest.approx(images.mean())


def test_a_given_picture_is_followed_through_the_network(run, tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a red one.png")
    shown = written(run, image=tmp_path / "a red one.png")
    assert "a red one.png" in shown.section("maps") and "a red one.png: named" in shown.section("gradcam")
    assert len([e for e in shown.all("figure") if ": named " in e.text]) == 11  # and one of each class


@pytest.mark.parametrize(
    "more", ["--head gap --image-size 64", "--augment none --dropout 0 --label-smoothing 0.1"]
)
def test_other_networks_have_a_page_too(tmp_path, more):
    shown = written(train(tmp_path / "other", f"--epochs 1 {more}"))
    assert [e.attributes["id"] for e in shown.all("section")] == PARTS
    assert ("without any of that" in shown.section("curves")) and (
        "at random" in shown.section("curves")
    ) == ("none" not in more)


# What is not there, or broken


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


def test_what_files_say_is_text_and_never_html(run, tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    names = json.loads((run / "config.json").read_text())["class_names"]
    change_config(
        run, class_names=[evil, *names[1:]], device=evil, command=evil, data=evil, versions={evil: evil}
    )
    change_config(run, options={"arch": evil, "schedule": evil})
    named = run.rename(tmp_path / "<b>run")
    shown = written(named)
    assert not shown.all("script") and not shown.all("b", **{"class": "run"})
    assert shown.all("h1")[0].text == "<b>run" and evil in shown.all("header")[0].text
    assert sum(evil in e.text for e in shown.all("th")) >= 2


def report(capsys, *arguments):
    status = program(["report.py", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return SimpleNamespace(status=status, out=out, err=err, last=err.strip().splitlines()[-1] if err else "")


def test_the_program_writes_the_page_and_says_where(trained, tmp_path, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in [trained, *trained.iterdir()]}
    done = report(capsys, trained, "--output", tmp_path / "page.html")
    assert done.status == 0 and done.out == f"{tmp_path / 'page.html'}\n"
    assert "naming 60 validation images" in done.err
    Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert {path.name: path.stat().st_mtime_ns for path in [trained, *trained.iterdir()]} == before
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: shutil.rmtree(run), "there is no run: .*tiny is no folder"),
        (lambda run: (run / "config.json").unlink(), "holds no run: it has no config.json"),
        (lambda run: (run / "config.json").write_text("{"), "config.json is damaged"),
        (
            lambda run: (run / "config.json").write_text("{}"),
            "config.json is damaged: it does not hold the options",
        ),
        (lambda run: change_config(run, class_names=["cat", 1]), "damaged: its class_names are no names"),
        (
            lambda run: change_config(run, std=[1, "x", 1]),
            "damaged: its mean and std cannot be used: could not",
        ),
        (lambda run: change_config(run, std=[1, 0, 1]), "damaged: its mean and std cannot be used: norm"),
        (
            lambda run: change_config(run, class_names=["a", "b", "c"]),
            r"best.safetensors has 10 classes and \S*config.json 3: one of them is damaged, or of",
        ),
        (
            lambda run: change_config(run, options={"image_size": 64}),
            "best.safetensors takes images of 32 pixels and .*config.json says 64: one of them is damaged",
        ),
        (
            lambda run: change_config(run, options={"validation": 300}),
            r"config.json is damaged: its options do not fit shapes10: cannot set aside 300",
        ),
        (
            lambda run: (run / "log.csv").unlink(),
            "has no finished epoch yet: wait for the first, or use --watch",
        ),
        (lambda run: (run / "log.csv").write_text("epoch\n1\n"), "log.csv is damaged"),
        (
            lambda run: (run / "log.csv").write_text(f"{','.join(COLUMNS)}\n1,1,1,1,1,1,nan,1\n"),
            "log.csv is damaged: seconds of epoch 1 is nan",
        ),
        (lambda run: (run / "best.safetensors").write_bytes(b"12345678"), "best.safetensors is damaged"),
        (lambda run: (run / "diagnosis.json").write_text("[1]"), "diagnosis.json is damaged"),
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
        ("lr", float("nan"), "lr is NaN, and should be a number of at least 0"),
        ("batch_norm", [], "batch_norm is [], and should be true or false"),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(run, capsys, watch, option, value, sentence):
    change_config(run, options={option: value})
    done = report(capsys, run, *watch)
    assert done.status == 2
    assert done.err == f"report.py: {run / 'config.json'} is damaged: its option {sentence}\n"


def test_what_every_option_of_a_run_can_be_is_no_damage(run):
    for given in ([], ["--demo"], ["--recipe", "vgg16-bn", "--lr", "1", "--engine", "layers"]):
        change_config(run, options=vars(parse_training([*given, "--run-dir", str(run)])))
        Report(run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"options": {"lr": 1, "yet": {"unknown": []}}}))
    Report(run)


def test_a_picture_that_cannot_be_read_is_named_before_anything_is_done(run, capsys):
    done = report(capsys, run, "--image", run / "none.png")
    assert done.status == 2 and done.err == f"report.py: {run / 'none.png'} does not exist\n"


def test_a_folder_is_no_picture_to_follow(run, tmp_path, capsys):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    done = report(capsys, run, "--image", tmp_path)
    sentence = f"{tmp_path} is a folder, where one image is wanted"
    assert done.status == 2 and done.err == f"report.py: {sentence}\n"


def test_a_page_that_cannot_be_written_is_named(run, capsys):
    done = report(capsys, run, "--output", run / "no" / "page.html")
    sentence = f"{run / 'no' / 'page.html'} cannot be written: there is no folder {run / 'no'}"
    assert done.status == 2 and done.err == f"report.py: {sentence}\n"  # and no word of work before it


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_page_takes_no_pipes_place(trained, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for output in (tmp_path / "pipe", tmp_path / "link"):
        done = report(capsys, trained, "--output", output)
        assert (
            done.status == 2 and done.err == f"report.py: {output} cannot be written: it is no regular file\n"
        )
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_a_page_behind_a_link_is_written_where_the_link_points(trained, tmp_path, capsys):
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
        done = report(capsys, run, "--output", output)
        assert done.status == 2
        assert done.err == f"report.py: {output} cannot be written: a run keeps its {name} there\n"
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
    done = report(capsys, run)
    sentence = f"{run / 'report.html'} cannot be written: Permission denied"
    assert done.status == 2 and done.err == f"report.py: {sentence}\n"


def test_without_matplotlib_the_program_says_how_to_install_it(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = report(capsys, run)
    assert done.status == 2 and 'pip install --editable ".[plot]"' in done.last
    assert not (run / "report.html").exists()


# While it trains


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
