"""The parts of the page: each shows something of a run, and says what one sees and how to read it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any, NamedTuple

import numpy as np

from scratchnet import inspection
from scratchnet.layers import ReLU
from scratchnet.models import VGG
from scratchnet.report import charts, page
from scratchnet.training import confusion_matrix, predict
from scratchnet.training.cli import DEFAULTS
from scratchnet.training.doctor import Diagnosis

MISTAKES = 24
CHANNELS = 12  # feature maps that are shown of a layer
MAP_SIZE, LARGEST_PICTURE = 32, 128  # pixels a side, on the page


class Part(NamedTuple):
    """A part of the page."""

    name: str  # what links to it call it
    title: str
    words: str  # HTML: what one sees, and how to read it
    content: str  # HTML


class Shown(NamedTuple):
    """An image that is followed through the network."""

    pixels: np.ndarray  # uint8 (H, W, 3), to look at
    x: np.ndarray  # (1, S, S, 3), normalised, as the network sees it
    name: str


def absent(name: str, title: str, reason: str) -> Part:
    """Say that a part cannot be shown, and why."""
    return Part(name, title, "", page.missing(f"Not here, since {reason}."))


def curves(rows: Sequence[Mapping[str, float]], options: Mapping[str, Any], classes: int) -> Part:
    """Draw loss, accuracy and learning rate; ``rows`` as in the log, ``classes`` as many as there are."""
    epochs = [row["epoch"] for row in rows]

    def lines(what: str, scale: int) -> dict[str, list[float]]:
        columns = {"training": f"train_{what}", "validation": f"val_{what}"}
        return {title: [scale * row[column] for row in rows] for title, column in columns.items()}

    harder = ["on the way"]
    harder += ["on images that are changed at random"] * (options["augment"] != "none")
    harder += ["with dropout"] * bool(options["dropout"])
    harder += ["with label smoothing"] * bool(options["label_smoothing"])
    figures = {
        charts.curves("loss", epochs, lines("loss", 1), "loss"): (
            "Loss: where validation rises while training still falls, the network learns by heart."
        ),
        charts.curves("accuracy", epochs, lines("accuracy", 100), "accuracy, %"): (
            f"Accuracy: the share of images named right; guessing would get {100 / classes:g}\u00a0%."
        ),
        charts.curves("rate", epochs, {"learning rate": [row["lr"] for row in rows]}, "learning rate"): (
            f"Learning rate at the end of each epoch: schedule {escape(str(options['schedule']))}, "
            f"at most {options['lr']:g}."
        ),
    }
    return Part(
        "curves",
        "Curves",
        "<p>How training went, epoch by epoch. Training (dashed) is measured "
        f"{', '.join(harder)}; validation (solid) when the epoch is done, without any of that. So training "
        "may look the worse of the two without being so.</p>",
        page.tiles((page.figure(svg, caption) for svg, caption in figures.items()), "16rem"),
    )


def diagnosis(found: Diagnosis, when: str) -> Part:
    """Show a table of the doctor's."""
    measured = [asdict(row) for row in found.rows]
    columns = [name for name in measured[0] if any(row[name] is not None for row in measured)]
    cells = [[_short(row[name]) for name in columns] for row in measured]
    verdicts = "".join(f"<li>{escape(str(verdict))}</li>" for verdict in found.verdicts)
    meanings = {
        "std": "the standard deviation of what the layer puts out",
        "signal": "the part of that which differs from image to image",
        "dead": "the share of its ReLUs that are zero for every image",
        "gradient": "its gradient over its weights",
        "update": "its next step over its weights",
    }
    meant = "; ".join(f"<b>{name}</b>, {text}" for name, text in meanings.items() if name in columns)
    return Part(
        "doctor",
        "Doctor",
        f"<p>Examined {when}: loss {found.loss:.4f}, {100 * found.accuracy:.1f} % right.</p>"
        f"<ul>{verdicts or '<li>Healthy.</li>'}</ul>"
        f"<p>A row for each layer: {meant}. What falls or grows by the same factor from row to row is what "
        "to worry about.</p>",
        page.wide(page.table(columns, cells)),
    )


def confusions(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], logged: float | None
) -> Part:
    """Show what is taken for what on the validation images; ``logged`` is the accuracy in the log."""
    named = probabilities.argmax(axis=1)
    accuracy = (named == labels).mean()
    matrix = confusion_matrix(labels, named, len(class_names))
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    often = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    pairs = [f"{class_names[i]} for {class_names[j]} ({wrong[i, j]:,})" for i, j in often if wrong[i, j]]
    words = (
        f"<p>The {len(labels):,} validation images, which were not trained on: {100 * accuracy:.2f} % are "
        "named right. (The official test images are looked at once, by the trainer at its end, and never "
        "here.)</p><p>A row is a right class, a column what the network named; blue is right, orange "
        "wrong.</p>"
    )
    if pairs:
        words += f"<p>Most often it takes {escape(', '.join(pairs))}.</p>"
    if logged is not None and abs(accuracy - logged) > 0.002:  # more than rounding can do
        words += page.missing(
            f"The log says {100 * logged:.2f} % for these weights: these are not the images that the run "
            "was validated on."
        )
    return Part("confusions", "Confusions", words, page.wide(page.confusion(matrix, class_names)))


def mistakes(
    probabilities: np.ndarray, labels: np.ndarray, images: np.ndarray, class_names: Sequence[str]
) -> Part:
    """Show the validation images that are named wrongly with most confidence."""
    named = probabilities.argmax(axis=1)

    def mistake(i: int) -> str:
        right, wrong, sure = (
            class_names[labels[i]],
            class_names[named[i]],
            f"{100 * probabilities[i].max():.1f}\u00a0%",
        )
        image = page.pixels(images[i], f"{right}, taken for {wrong}, {sure}")
        return page.figure(image, f"<b>{escape(right)}</b>, taken for {escape(wrong)}, {sure}")

    worst = inspection.confident_mistakes(probabilities, labels, MISTAKES)
    return Part(
        "mistakes",
        "Most confident mistakes",
        f"<p>{(named != labels).sum():,} of the {len(labels):,} validation images are named wrongly. Of "
        "these the network was surest: the right class in bold, then what it said, and how sure it was. Look "
        "for labels that are wrong or could be either, and for what misled it.</p>",
        page.tiles(map(mistake, worst), "6rem"),
    )


def filters(net: VGG) -> Part:
    """Show what the first convolution looks for."""
    pictures = inspection.filters(net)
    O, KH, KW, _ = pictures.shape
    sheet = page.pixels(inspection.grid(pictures, 8), f"The {O} filters of the first convolution")
    caption = f"{O} filters of {KH} × {KW}."
    return Part(
        "filters",
        "First-layer filters",
        "<p>Each tile is a filter of the first convolution, its weights for red, green and blue shown as "
        "these colours. Grey is zero, and all tiles share one scale. Light beside dark looks for edges, one "
        "colour throughout for that colour; a tile that is grey throughout does nothing.</p>",
        f'<div class="narrow">{page.figure(sheet, caption)}</div>',
    )


def feature_maps(net: VGG, shown: Shown, maps: Mapping[str, np.ndarray]) -> Part:
    """Show an image's feature maps; ``maps`` as ``inspection.feature_maps`` returns them."""
    layers = dict(inspection.in_order(net))
    figures = []
    for path, (y,) in maps.items():
        H, W, C = y.shape
        channels = inspection.most_active(y, CHANNELS)
        images = _of_one_size(y[:, :, channels].transpose(2, 0, 1))  # (channels, h, w)
        images = inspection.heat_colours(images / max(images.max(), np.finfo(images.dtype).tiny))
        name = f"{path} {type(layers[path]).__name__}"
        sheet = page.pixels(inspection.grid(images, 6), f"The {len(channels)} most active maps of {name}")
        figures.append(page.figure(sheet, f"<b>{escape(name)}</b>: {C} maps of {H}\u00a0×\u00a0{W}"))
    picture = page.figure(page.pixels(shown.pixels, shown.name), f"<b>{escape(shown.name)}</b>")
    return Part(
        "maps",
        "Feature maps",
        f"<p>What this image becomes behind every ReLU and every pooling: of each layer the {CHANNELS} "
        "maps that answer most, black for zero, yellow for the strongest answer among them. Early maps still "
        "look like the image; later ones are few pixels that say what is there, and hardly where.</p>"
        f'<div class="tiny">{picture}</div>',
        page.tiles(figures, "17rem"),
    )


def grad_cam(
    net: VGG, pictures: Sequence[Shown], maps: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> Part:
    """Show where the network looks in some images; ``maps`` are the first one's feature maps."""
    layers = dict(inspection.in_order(net))
    last_of_size = {y.shape[1:3]: path for path, y in maps.items() if isinstance(layers[path], ReLU)}
    chosen = list(last_of_size.items())[-3:]

    def look(shown: Shown) -> str:
        (probabilities,) = predict(net, shown.x)
        named = int(probabilities.argmax())
        heats = [inspection.grad_cam(net, shown.x, named, path)[0] for _, path in chosen]
        strip = np.stack([shown.pixels, *(inspection.heat_overlay(shown.pixels, heat) for heat in heats)])
        verdict = f"named {class_names[named]}, {100 * probabilities[named]:.1f}\u00a0%"
        image = page.pixels(
            inspection.grid(strip / 255, len(strip)), f"{shown.name}, {verdict}: where it looks"
        )
        return page.figure(image, f"<b>{escape(shown.name)}</b>: {escape(verdict)}")

    where = ", ".join(f"{escape(path)} ({H}\u00a0×\u00a0{W})" for (H, W), path in chosen)
    return Part(
        "gradcam",
        "Grad-CAM",
        "<p>Where the network sees the class that it named (Selvaraju et al. 2017): what spoke for it is "
        f"yellow, what did not is dark. First the image, then as seen from three layers, early to late: "
        f"{where}. The later the layer, the more it knows of classes and the less of places.</p>",
        page.tiles(map(look, pictures), "17rem"),
    )


def settings(config: Mapping[str, Any], options: Mapping[str, Any]) -> Part:
    """Show all settings, and how to repeat the run."""
    versions = config.get("versions")
    facts = {"begun": config.get("date", "unknown")}
    facts |= versions if isinstance(versions, dict) else {}
    rows = [[name.replace("_", "-"), str(value)] for name, value in options.items()]
    changed = {name.replace("_", "-") for name, value in options.items() if value != DEFAULTS.get(name)}
    third = -(-len(rows) // 3)
    tables = (
        page.table(["option", "value"], rows[i : i + third], changed) for i in range(0, len(rows), third)
    )
    return Part(
        "settings",
        "Settings",
        # Whether it was, nothing tells: its configuration is that of when it went on last.
        "<p>What made this run. On the same machine, with the same versions, the command repeats it to the "
        "bit, unless it was resumed with other settings, such as another number of epochs, on which most "
        "schedules depend. Settings in bold are not the defaults.</p>" + page.facts(facts),
        f"<p>The command that repeats it:</p>{page.command(reproduce(options))}"
        f"<p>The command that began it, or went on last:</p>{page.command(str(config.get('command')))}"
        + page.tiles(map(page.wide, tables), "15rem"),
    )


def reproduce(options: Mapping[str, Any]) -> str:
    """Return the command that trains with these options: all that are not the defaults, spelled out.

    Parameters
    ----------
    options : mapping
        As ``config.json`` holds them.

    Examples
    --------
    >>> reproduce({"arch": "vgg11", "batch_norm": True, "epochs": 15, "run_dir": "runs/mine"})
    'python examples/train_cifar.py --arch vgg11 --batch-norm'
    """
    command = ["python", "examples/train_cifar.py"]
    for name, value in options.items():
        # What says only where to write, or stands for other options, which are all here.
        if name in ("run_dir", "resume", "demo", "recipe") or value == DEFAULTS.get(name, value):
            continue
        command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(command)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)


def _of_one_size(images: np.ndarray) -> np.ndarray:
    """Return maps (N, H, W) of about MAP_SIZE pixels a side: small ones enlarged, large ones averaged."""
    N, H, W = images.shape
    larger, smaller = max(MAP_SIZE // max(H, W), 1), -(-max(H, W) // (2 * MAP_SIZE))
    whole = images[:, : H // smaller * smaller, : W // smaller * smaller]
    means = whole.reshape(N, H // smaller, smaller, W // smaller, smaller).mean(axis=(2, 4))
    return means.repeat(larger, axis=1).repeat(larger, axis=2)
