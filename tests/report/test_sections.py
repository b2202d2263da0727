"""The sections of a report: what they say is true."""

import base64
import html
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scratchnet import doctor
from scratchnet.cli.options import DEFAULTS, DEMO, RECIPES, parse_training
from scratchnet.models import vgg11
from scratchnet.report import page, sections
from scratchnet.training import RunDirectory
from tests.fakes.pages import SECTIONS, Page, train, written

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plot)")
from scratchnet.report import charts  # noqa: E402


def test_the_summary_is_the_logs(shown, trained):
    rows = RunDirectory(trained, read_only=True).read_log()
    best = max(rows, key=lambda row: row["val_accuracy"])
    text = " ".join(shown.all("header")[0].text.split())
    assert f"{100 * best['val_accuracy']:.2f} % (epoch {best['epoch']})" in text
    assert "2 of 2" in text and "shapes10" in text and "best.safetensors" in text


def test_confusions_are_those_of_the_validation_images_that_the_trainer_had(shown, trained):
    rows = RunDirectory(trained, read_only=True).read_log()
    best = max(row["val_accuracy"] for row in rows)
    assert (
        f"The 60 validation images, which were not trained on: {100 * best:.2f} % are classified correctly"
        in (shown.section("confusions"))
    )
    assert "these are not the images" not in shown.source
    cells = [e for e in shown.all("td") if "--share" in e.attributes.get("style", "")]
    right = [e for e in cells if e.attributes.get("class") == "right"]
    assert len(cells) == 100 and len(right) == 10
    assert sum(int(e.text or 0) for e in cells) == 60
    assert sum(int(e.text or 0) for e in right) == round(60 * best)
    assert f"{60 - round(60 * best)} of the 60 validation images" in shown.section("mistakes")


def test_other_images_than_the_trainers_are_noticed():
    probabilities, labels = np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, 0])
    remark = "these are not the images that the run was validated on"
    assert remark in sections.confusions(probabilities, labels, ["cat", "dog"], logged=0.9).explanation
    assert remark not in sections.confusions(probabilities, labels, ["cat", "dog"], logged=0.7501).explanation
    assert "cat for dog (1)" in sections.confusions(probabilities, labels, ["cat", "dog"], None).explanation


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
    (run / "diagnosis.json").write_text(json.dumps([found.as_dict() for found in diagnoses]))
    shown = written(run)
    assert "after step 12,345 of training" in shown.section("doctor")
    assert f"loss {diagnoses[1].loss:.4f}" in shown.section("doctor")
    for row in diagnoses[1].rows:
        assert row.layer in shown.section("doctor")


def test_a_run_without_a_diagnosis_gets_one_with_the_images_that_it_was_trained_on(shown):
    assert "Examined now, with the weights shown here and 64 training images" in shown.section("doctor")


def test_verdicts_are_shown_with_their_advice():
    verdict = doctor.Verdict("vanishing", "features.0", "It is < 1.", "Use He.")
    sick = replace(diagnosed(0), verdicts=[verdict])
    found = sections.diagnosis(sick, "now")
    assert html.escape(str(verdict)) in found.explanation and "Healthy" not in found.explanation
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
        "the command repeats it bit for bit, unless it was resumed with other settings, such as another"
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


def test_a_given_image_is_followed_through_the_network(run, tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a red one.png")
    shown = written(run, image=tmp_path / "a red one.png")
    assert "a red one.png" in shown.section("maps") and "a red one.png: named" in shown.section("gradcam")
    assert len([e for e in shown.all("figure") if ": named " in e.text]) == 11  # and one of each class


@pytest.mark.parametrize(
    "more", ["--head gap --image-size 64", "--augment none --dropout 0 --label-smoothing 0.1"]
)
def test_other_networks_have_a_page_too(tmp_path, more):
    shown = written(train(tmp_path / "other", f"--epochs 1 {more}"))
    assert [e.attributes["id"] for e in shown.all("section")] == SECTIONS
    assert ("without any of that" in shown.section("curves")) and (
        "at random" in shown.section("curves")
    ) == ("none" not in more)
