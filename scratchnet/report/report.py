"""The report of a run: reads the run and its data, computes what the sections show, and writes the page."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet import checkpoint, data, doctor, inspection, tensorfile
from scratchnet.layers import Chain
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.report import page, sections
from scratchnet.report.output import writable_path
from scratchnet.report.page import escape
from scratchnet.report.sections import Section, TracedImage
from scratchnet.training import RunDirectory, RunError, make_engine, predict, snapshot
from scratchnet.training.console import Progress, duration
from scratchnet.training.options import read_options

MAX_IMAGE_SIZE = 128  # pixels per side, on the page


class RunReport:
    """The report of one run, as one page of HTML.

    Parameters
    ----------
    run_path : path
        The run's folder; nothing in it is changed.
    output : path, optional
        By default ``report.html`` in that folder.
    data_dir : path, optional
        Folder of the data; by default that of training. Nothing is downloaded.
    image : path or address, optional
        An image to follow through the network; by default the first validation image.
    say : callable, optional
        Called with a line about each stage.

    Attributes
    ----------
    run : RunDirectory
    epochs : int
        The total that the run aims for.
    output : Path

    Raises
    ------
    RunError
        If there is no run, its configuration is damaged, or the page cannot be written.
    DataError
        If ``image`` cannot be read.

    Examples
    --------
    >>> RunReport("no/such/run")
    Traceback (most recent call last):
    scratchnet.training.rundir.RunError: there is no run: no/such/run is no folder
    """

    def __init__(
        self,
        run_path: str | os.PathLike[str],
        output: str | os.PathLike[str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        image: str | os.PathLike[str] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.run = RunDirectory(run_path, read_only=True)
        self.config = self.run.read_config()
        self.options = read_options(self.run)
        damaged = f"{self.run.config} is damaged"
        for name in ("class_names", "mean", "std"):
            if not isinstance(self.config.get(name), list):
                raise RunError(f"{damaged}: it does not hold the {name} of a run")
        self.in_python = "python" in self.config  # made there: its options are those that its trainer knew
        self.epochs, self.class_names = self.options["epochs"], self.config["class_names"]
        if not self.class_names or not all(isinstance(name, str) for name in self.class_names):
            raise RunError(f"{damaged}: its class_names are no names")
        try:
            self.normalisation = data.Normalisation(self.config["mean"], self.config["std"])
        except (OverflowError, TypeError, ValueError) as error:
            raise RunError(f"{damaged}: its mean and std cannot be used: {error}") from error
        self.output = Path(output or self.run.path / "report.html")
        self.target = writable_path(self.output)  # fail early
        self.data_dir = data_dir or self.options["data_dir"]
        self.given = given_image(image, self.options["image_size"], self.normalisation) if image else None
        self.say = say
        self.images: RunImages | None = None
        self.no_images = ""  # the reason if it is missing

    def write(self, newest: bool = False, refresh: int | None = None) -> None:
        """Write the page, whole or not at all.

        Parameters
        ----------
        newest : bool
            Show the last epoch's weights instead of those with the best validation accuracy.
        refresh : int, optional
            Seconds after which a browser reloads the page.

        Raises
        ------
        RunError, FormatError, ModuleNotFoundError, OSError
            If no epoch is finished, a file is damaged, matplotlib is missing, or the page cannot be written.
        """
        rows = self.run.read_log()
        if not rows:
            raise RunError(f"{self.run.path} has no finished epoch yet: wait for the first, or use --watch")
        weights = self.run.last if newest else self.run.best
        shown = list(self._sections(rows, weights))
        name = self.run.path.resolve().name
        links = "\n".join(f'<a href="#{section.name}">{section.title}</a>' for section in shown)
        body = [
            f"<header>\n<h1>{escape(name)}</h1>",
            page.facts(self._summary(rows, weights.name)),
            f"<nav>{links}</nav>\n</header>\n<main>",
            *(page.section(*section) for section in shown),
            "</main>",
            f"<footer><p>Made {time.strftime('%Y-%m-%d %H:%M:%S')} by examples/report.py.</p></footer>",
        ]
        self._replace(page.page(f"{name}: a run of scratchnet", "\n".join(body), refresh))

    def stop_refreshing(self) -> None:
        """Make browsers that show the page stop reloading it."""
        self._replace(page.without_refresh(self.output.read_text(encoding="utf-8")))

    def _replace(self, text: str) -> None:
        with tensorfile.replacing(self.target) as temporary:
            Path(temporary).write_text(text, encoding="utf-8", errors="replace")

    def _summary(self, rows: list[dict[str, float]], weights: str) -> dict[str, Any]:
        best = max(rows, key=lambda row: row["val_accuracy"])
        return {
            "network": self.config.get("network") or _network(self.options),
            "data": self.config.get("data", self.options["data"]),
            "epochs done": f"{len(rows)} of {self.epochs}",
            "best validation accuracy": f"{100 * best['val_accuracy']:.2f} % (epoch {best['epoch']})",
            "time": duration(sum(row["seconds"] for row in rows)),
            "computed on": self.config.get("device", "unknown"),
            "weights shown here": weights,
        }

    def _sections(self, rows: list[dict[str, float]], weights: Path) -> Iterator[Section]:
        try:
            drawn = sections.curves(rows, self.options, len(self.class_names))
        except (OverflowError, ValueError) as error:  # matplotlib takes no number of 300 digits
            raise RunError(f"{self.run.log} is damaged: it cannot be drawn: {error}") from error
        yield drawn
        if weights.exists():
            net = self._load_net(weights)
            self._load_images()
            yield self._doctor(net, rows)
            yield from self._mistakes(net)
            yield sections.filters(net)
            yield from self._inside(net)
        else:
            yield sections.absent("weights", "Weights", f"there is no {weights}")
        known = self.config["options"] if self.in_python else self.options
        yield sections.settings(self.config, known)

    def _load_net(self, weights: Path) -> Chain:
        """Return the network, if it is the one in the configuration."""
        net, config = checkpoint.load(weights), self.run.config
        classes, size = (net.settings().get(name) for name in ("num_classes", "image_size"))
        if classes not in (None, len(self.class_names)):  # None: a network that is no VGG
            differ = f"has {classes} classes and {config} {len(self.class_names)}"
        elif size not in (None, self.options["image_size"]):
            differ = f"takes images of {size} pixels and {config} says {self.options['image_size']}"
        else:
            return net
        raise RunError(f"{weights} {differ}: one of them is damaged, or of another run")

    def _doctor(self, net: Chain, rows: list[dict[str, float]]) -> Section:
        """Return the last diagnosis of training or, without any, one made now."""
        diagnoses = doctor.read(self.run.path)
        if diagnoses:
            return sections.diagnosis(diagnoses[-1], f"after step {diagnoses[-1].step:,} of training")
        if self.images is None:
            return sections.absent("doctor", "Doctor", f"training made no diagnosis, and {self.no_images}")
        self.say("asking the doctor")
        x, labels = next(self.images.loader(self.images.training).epoch(0))
        loss = SoftmaxCrossEntropy(self.options["label_smoothing"])
        found = doctor.diagnose(net, x, labels, loss=loss, epochs=rows)
        return sections.diagnosis(found, f"now, with the weights shown here and {len(x)} training images")

    def _mistakes(self, net: Chain) -> Iterator[Section]:
        """Yield the confusions and mistakes on the validation images."""
        if self.images is None:
            yield sections.absent("confusions", "Confusions and mistakes", self.no_images)
            return
        validation = self.images.validation
        self.say(f"classifying {len(validation):,} validation images")
        engine, found = make_engine(net), []
        with Progress("validation images", len(validation)) as progress:
            for x, _ in self.images.loader(validation).epoch(0):
                found.append(predict(net, x, engine))
                progress.update(len(x))
        probabilities, labels = np.concatenate(found), self.images.labels[validation]
        yield sections.confusions(probabilities, labels, self.class_names, net.info.get("val_accuracy"))
        images = self.images.images[validation]
        yield sections.mistakes(probabilities, labels, images, self.class_names)

    def _inside(self, net: Chain) -> Iterator[Section]:
        """Yield the feature maps of one image, and where the network looks in several."""
        images = [] if self.given is None else [self.given]
        if self.images is not None:
            images += self.images.first_of_each_class(self.class_names)
        if not images:
            reason = f"{self.no_images}, or an image with --image"
            yield sections.absent("maps", "Feature maps and Grad-CAM", reason)
            return
        self.say("computing feature maps and Grad-CAM")
        maps = inspection.feature_maps(net, images[0].x)
        yield sections.feature_maps(net, images[0], maps)
        yield sections.grad_cam(net, images, maps, self.class_names)

    def _load_images(self) -> None:
        """Load the data set, once; without it the page has fewer sections."""
        if self.images is not None or self.no_images:
            return
        if self.in_python and "data" not in self.config["options"]:
            self.no_images = "this run was made in Python and does not name its data set"
            self.say(self.no_images)
            return
        self.say("reading the data")
        try:
            chosen, size = self.options["data"], self.options["image_size"]
            memory = self.options["data_memory"] * 1_000_000
            dataset = data.load(chosen, self.data_dir, download=False, image_size=size, memory=memory)
        except data.DataError as error:
            self.no_images = f"{error}: give the folder of the data with --data-dir"
            self.say(self.no_images)
            return
        try:
            self.images = RunImages(dataset, self.options, self.normalisation)
            if self.in_python:
                self._check_images(self.images)
        except ValueError as error:
            if self.in_python:
                self.images = None
                self.no_images = "this run was made in Python, and its images cannot be told from its options"
                self.say(self.no_images)
                return
            config = self.run.config
            raise RunError(f"{config} is damaged: its options do not fit {dataset.name}: {error}") from error

    def _check_images(self, images: RunImages) -> None:
        """Raise a ValueError unless these are the images that a trainer in Python had."""
        known = self.config.get("described")
        for name, indices in {"training": images.training, "validation": images.validation}.items():
            of_run = known.get(f"{name} images") if isinstance(known, dict) else None
            if snapshot.images(images.loader(indices)) != of_run:
                raise ValueError(f"its {name} images are others")


def _network(options: dict[str, Any]) -> str:
    return options["arch"] + " with batch normalisation" * bool(options["batch_norm"])


class RunImages:
    """A run's data set, divided and prepared as in training; ValueError if its options do not fit."""

    def __init__(self, dataset: data.ImageData, options: dict[str, Any], normalisation: data.Normalisation):
        self.images, self.labels = dataset.train_images, dataset.train_labels
        self.options, self.normalisation = options, normalisation
        chosen = options["validation"], options["subset"], options["seed"]
        self.training, self.validation = data.divide(dataset, *chosen)

    def loader(self, indices: np.ndarray) -> data.Loader:
        """Return a loader of these images, neither shuffled nor augmented."""
        return data.Loader(
            self.images,
            self.labels,
            batch_size=128 if self.options["image_size"] <= 64 else 8,
            shuffle=False,
            normalisation=self.normalisation,
            image_size=self.options["image_size"],
            indices=indices,
        )

    def first_of_each_class(self, class_names: list[str]) -> list[TracedImage]:
        """Return the first validation image of each class."""
        found, labels = [], self.labels[self.validation]
        for k in np.unique(labels):
            index = self.validation[labels == k][0]
            x, _ = next(self.loader(np.array([index])).epoch(0))
            found.append(TracedImage(self.images[index], x, class_names[k]))
        return found


def given_image(image: str | os.PathLike[str], size: int, normalisation: data.Normalisation) -> TracedImage:
    """Read an image file or address for a network that takes images of this size."""
    if os.path.isdir(image):
        raise data.DataError(f"{os.fsdecode(image)} is a folder, where one image is wanted")
    loaded = data.load_image(image)
    x = normalisation.apply(data.image_to_array(loaded, size)[None])
    pixels = data.image_to_array(loaded, min(size, MAX_IMAGE_SIZE))
    return TracedImage(pixels, x, os.path.basename(os.fsdecode(image)))
