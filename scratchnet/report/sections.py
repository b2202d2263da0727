"""Sections of the page: each shows one aspect of a run, and says how to read it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from scratchnet import inspection
from scratchnet.doctor import Diagnosis
from scratchnet.layers import Layer, leaves
from scratchnet.report import charts, page
from scratchnet.report.page import escape
from scratchnet.training import confusion_matrix, predict
from scratchnet.training.options import DEFAULTS

MISTAKES = 24
CHANNELS = 12  # feature maps per layer
MAP_SIZE = 32  # pixels per side, on the page


class Section(NamedTuple):
    """A section of the page."""

    name: str  # the target of links
    title: str
    explanation: str  # HTML: what it shows, and how to read it
    content: str  # HTML


class TracedImage(NamedTuple):
    """An image that is followed through the network."""

    pixels: np.ndarray  # uint8 (H, W, 3), to look at
    x: np.ndarray  # (1, S, S, 3), normalised, as the network sees it
    name: str


def absent(name: str, title: str, reason: str) -> Section:
    """Say that a section is missing, and why."""
    return Section(name, title, "", page.missing(f"Missing, since {reason}."))


def curves(rows: Sequence[Mapping[str, float]], options: Mapping[str, Any], classes: int) -> Section:
    """Draw loss, accuracy and learning rate from the rows of the log of a run with so many classes."""
    epochs = [row["epoch"] for row in rows]

    def lines(quantity: str, scale: int) -> dict[str, list[float]]:
        columns = {"training": f"train_{quantity}", "validation": f"val_{quantity}"}
        return {title: [scale * row[column] for row in rows] for title, column in columns.items()}

    harder = ["during the epoch"]
    harder += ["on images that are changed at random"] * (options["augment"] != "none")
    harder += ["with dropout"] * bool(options["dropout"])
    harder += ["with label smoothing"] * bool(options["label_smoothing"])
    figures = {
        charts.curves("loss", epochs, lines("loss", 1), "loss"): (
            "Loss: where validation rises while training still falls, the network memorises."
        ),
        charts.curves("accuracy", epochs, lines("accuracy", 100), "accuracy, %"): (
            f"Accuracy: the share of images classified correctly; guessing gets {100 / classes:g}\u00a0%."
        ),
        charts.curves("rate", epochs, {"learning rate": [row["lr"] for row in rows]}, "learning rate"): (
            f"Learning rate at the end of each epoch: schedule {escape(str(options['schedule']))}, "
            f"at most {options['lr']:g}."
        ),
    }
    return Section(
        "curves",
        "Curves",
        "<p>How training went, epoch by epoch. Training (dashed) is measured "
        f"{', '.join(harder)}; validation (solid) after the epoch, without any of that. So training may "
        "look worse than it is.</p>",
        page.tiles((page.figure(svg, caption) for svg, caption in figures.items()), "16rem"),
    )


def diagnosis(found: Diagnosis, when: str) -> Section:
    """Show a diagnosis as a table with its verdicts."""
    measured = [asdict(row) for row in found.rows]
    names = measured[0] if measured else []
    columns = [name for name in names if any(row[name] is not None for row in measured)]
    cells = [[_short(row[name]) for name in columns] for row in measured]
    verdicts = "".join(f"<li>{escape(str(verdict))}</li>" for verdict in found.verdicts)
    meanings = {
        "std": "the standard deviation of the layer's output",
        "signal": "the part of it that differs from image to image",
        "dead": "the share of its ReLUs that are zero for every image",
        "gradient": "its gradient over its weights",
        "update": "its next step over its weights",
    }
    meant = "; ".join(f"<b>{name}</b>, {text}" for name, text in meanings.items() if name in columns)
    return Section(
        "doctor",
        "Doctor",
        f"<p>Examined {when}: loss {found.loss:.4f}, {100 * found.accuracy:.1f} % right.</p>"
        f"<ul>{verdicts or '<li>Healthy.</li>'}</ul>"
        f"<p>One row per layer: {meant}. Worry about whatever falls or grows by the same factor from row to "
        "row.</p>",
        page.wide(page.table(columns, cells)),
    )


def confusions(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], logged: Any
) -> Section:
    """Show the confusion matrix of the validation images; ``logged`` is the accuracy in the weights' file."""
    predicted = probabilities.argmax(axis=1)
    accuracy = (predicted == labels).mean()
    matrix = confusion_matrix(labels, predicted, len(class_names))
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    frequent = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    pairs = [f"{class_names[i]} for {class_names[j]} ({wrong[i, j]:,})" for i, j in frequent if wrong[i, j]]
    explanation = (
        f"<p>The {len(labels):,} validation images, which were not trained on: {100 * accuracy:.2f} % are "
        "classified correctly. (The official test images are used once, by the trainer at its end, and never "
        "here.)</p><p>A row is the right class, a column the network's answer; blue is right, orange "
        "wrong.</p>"
    )
    if pairs:
        explanation += f"<p>Most often it mistakes {escape(', '.join(pairs))}.</p>"
    if isinstance(logged, float) and abs(accuracy - logged) > 0.002:  # more than rounding explains
        explanation += page.missing(
            f"The log says {100 * logged:.2f} % for these weights: these are not the images that the run "
            "was validated on."
        )
    return Section("confusions", "Confusions", explanation, page.wide(page.confusion(matrix, class_names)))


def mistakes(
    probabilities: np.ndarray, labels: np.ndarray, images: np.ndarray, class_names: Sequence[str]
) -> Section:
    """Show the validation images that are misclassified with most confidence."""
    predicted = probabilities.argmax(axis=1)

    def mistake(i: int) -> str:
        right, wrong = class_names[labels[i]], class_names[predicted[i]]
        confidence = f"{100 * probabilities[i].max():.1f}\u00a0%"
        image = page.pixels(images[i], f"{right}, taken for {wrong}, {confidence}")
        return page.figure(image, f"<b>{escape(right)}</b>, taken for {escape(wrong)}, {confidence}")

    worst = inspection.confident_mistakes(probabilities, labels, MISTAKES)
    return Section(
        "mistakes",
        "Most confident mistakes",
        f"<p>{(predicted != labels).sum():,} of the {len(labels):,} validation images are misclassified. Of "
        "these the network was surest: the right class in bold, then its answer and its confidence. Look for "
        "labels that are wrong or debatable, and for what misled it.</p>",
        page.tiles(map(mistake, worst), "6rem"),
    )


def filters(net: Layer) -> Section:
    """Show the filters of the first convolution."""
    filters = inspection.filters(net)
    O, KH, KW, _ = filters.shape
    sheet = page.pixels(inspection.grid(filters, 8), f"The {O} filters of the first convolution")
    caption = f"{O} filters of {KH} × {KW}."
    return Section(
        "filters",
        "First-layer filters",
        "<p>Each tile is a filter of the first convolution, its weights for red, green and blue shown as "
        "these colours. Grey is zero, and all tiles share one scale. A tile with light beside dark looks for "
        "edges, a tile of one colour for that colour; a grey tile does nothing.</p>",
        f'<div class="narrow">{page.figure(sheet, caption)}</div>',
    )


def feature_maps(net: Layer, image: TracedImage, maps: Mapping[str, np.ndarray]) -> Section:
    """Show an image's feature maps, as ``inspection.feature_maps`` returns them."""
    layers = dict(leaves(net))
    figures = []
    for path, (y,) in maps.items():
        H, W, C = y.shape
        channels = inspection.most_active(y, CHANNELS)
        sheets = _of_one_size(y[:, :, channels].transpose(2, 0, 1))  # (channels, h, w)
        sheets = inspection.heat_colours(sheets / max(sheets.max(), np.finfo(sheets.dtype).tiny))
        name = f"{path} {type(layers[path]).__name__}"
        sheet = page.pixels(inspection.grid(sheets, 6), f"The {len(channels)} most active maps of {name}")
        figures.append(page.figure(sheet, f"<b>{escape(name)}</b>: {C} maps of {H}\u00a0×\u00a0{W}"))
    original = page.figure(page.pixels(image.pixels, image.name), f"<b>{escape(image.name)}</b>")
    return Section(
        "maps",
        "Feature maps",
        f"<p>What this image becomes after every ReLU and every pooling: each layer's {CHANNELS} most active "
        "maps, black for zero, yellow for the strongest answer among them. Early maps still look like the "
        "image; later ones are a few pixels that say what is there, and hardly where.</p>"
        f'<div class="tiny">{original}</div>',
        page.tiles(figures, "17rem"),
    )


def grad_cam(
    net: Layer, images: Sequence[TracedImage], maps: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> Section:
    """Show where the network looks in some images; ``maps`` are the first one's feature maps."""
    layers = dict(leaves(net))
    activations = [path for path in maps if "stride" not in layers[path].settings()]
    last_of_size = {maps[path].shape[1:3]: path for path in activations}
    chosen = list(last_of_size.items())[-3:]

    def look(image: TracedImage) -> str:
        (probabilities,) = predict(net, image.x)
        predicted = int(probabilities.argmax())
        heats = [inspection.grad_cam(net, image.x, predicted, path)[0] for _, path in chosen]
        strip = np.stack([image.pixels, *(inspection.heat_overlay(image.pixels, heat) for heat in heats)])
        answer = f"named {class_names[predicted]}, {100 * probabilities[predicted]:.1f}\u00a0%"
        sheet = inspection.grid(strip / 255, len(strip))
        return page.figure(
            page.pixels(sheet, f"{image.name}, {answer}: where it looks"),
            f"<b>{escape(image.name)}</b>: {escape(answer)}",
        )

    where = ", ".join(f"{escape(path)} ({H}\u00a0×\u00a0{W})" for (H, W), path in chosen)
    return Section(
        "gradcam",
        "Grad-CAM",
        "<p>Where the network sees the class that it named (Selvaraju et al. 2017): evidence for it is "
        f"yellow, everything else dark. First the image, then the view of three layers, early to late: "
        f"{where}. The later the layer, the more it knows about classes and the less about places.</p>",
        page.tiles(map(look, images), "17rem"),
    )


def settings(config: Mapping[str, Any], options: Mapping[str, Any]) -> Section:
    """Show all settings, and how to repeat the run."""
    versions = config.get("versions")
    facts = {"started": config.get("date", "unknown")}
    facts |= versions if isinstance(versions, dict) else {}
    rows = [[name.replace("_", "-"), str(value)] for name, value in options.items()]
    changed = {name.replace("_", "-") for name, value in options.items() if value != DEFAULTS.get(name)}
    third = -(-len(rows) // 3)
    columns = (rows[i : i + third] for i in range(0, len(rows), third))
    tables = (page.wide(page.table(["option", "value"], column, changed)) for column in columns)
    if "python" in config:
        text = (
            "<p>This run was made in Python. Below is what its trainer knew, as options of the command line; "
            "settings in bold differ from the defaults.</p>"
        )
        return Section("settings", "Settings", text + page.facts(facts), page.tiles(tables, "15rem"))
    return Section(
        "settings",
        "Settings",
        # The configuration is that of the last resume, so nothing says whether the run was resumed.
        "<p>What made this run. On the same machine, with the same versions, the command repeats it bit for "
        "bit, unless it was resumed with other settings, such as another number of epochs, on which most "
        "schedules depend. Settings in bold differ from the defaults.</p>" + page.facts(facts),
        f"<p>The command that repeats it:</p>{page.command(reproduce(options))}"
        f"<p>The command that started or last resumed it:</p>{page.command(str(config.get('command')))}"
        + page.tiles(tables, "15rem"),
    )


def reproduce(options: Mapping[str, Any]) -> str:
    """Return the command that trains with these options, spelling out all that differ from the defaults.

    Parameters
    ----------
    options : mapping
        As ``config.json`` holds them.

    >>> reproduce({"arch": "vgg11", "batch_norm": True, "epochs": 15, "run_dir": "runs/mine"})
    'python examples/train_cifar.py --arch vgg11 --batch-norm'
    """
    command = ["python", "examples/train_cifar.py"]
    for name, value in options.items():
        # These only say where to write, or stand for other options, all of which are here.
        if name in ("run_dir", "resume", "demo", "recipe") or value == DEFAULTS.get(name, value):
            continue
        command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(command)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)


def _of_one_size(images: np.ndarray) -> np.ndarray:
    """Return maps (N, H, W) of about MAP_SIZE pixels per side: small ones enlarged, large ones averaged."""
    N, H, W = images.shape
    larger, smaller = max(MAP_SIZE // max(H, W), 1), -(-max(H, W) // (2 * MAP_SIZE))
    whole = images[:, : H // smaller * smaller, : W // smaller * smaller]
    means = whole.reshape(N, H // smaller, smaller, W // smaller, smaller).mean(axis=(2, 4))
    return means.repeat(larger, axis=1).repeat(larger, axis=2)
