"""``scratchnet train``: from the options to the one look at the test images.

``examples/train_cifar.py`` tells the same story with the loop on the page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from scratchnet import backend, checkpoint
from scratchnet.cli.datasets import load_data, write_images
from scratchnet.cli.forecast import forecast
from scratchnet.cli.options import describe_run, open_run, parse_training
from scratchnet.cli.program import complain
from scratchnet.data import Augmentation, ImageData, Loader, Normalisation, split_validation, subset
from scratchnet.doctor import Doctor
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import VGG
from scratchnet.optim import SGD, schedule
from scratchnet.training import Console, Trainer, evaluate, make_engine
from scratchnet.training.console import Progress, say

MEMORY_ADVICE = ": take a smaller --batch-size, --image-size or --width"


def main() -> None:
    """Train, and look at the test images once, at the end."""
    options = parse_training()
    device = find_device(options)
    images = load_data(options.data, options.data_dir, options.dry_run)
    train, validation, test = make_loaders(images, options)
    net = make_network(options, len(images.class_names)).to(device)
    loss = SoftmaxCrossEntropy(options.label_smoothing)
    optimizer = SGD(net.parameters(), options.lr, **step_settings(options))
    rate = schedule(options.schedule, options.lr, steps=options.epochs * len(train))
    print_forecast(options, net, optimizer, loss, train, validation)
    trainer = make_trainer(options, images, net, optimizer, rate, loss, train, validation)
    trainer.fit(options.epochs)
    test_best(options, trainer, images, test)


def find_device(options: SimpleNamespace) -> backend.Backend:
    """Return the backend that was asked for, and print on what it computes."""
    device = backend.get(options.backend)
    say(f"Device: {device}")
    return device


def make_loaders(images: ImageData, options: SimpleNamespace) -> tuple[Loader, Loader, Loader]:
    """Return loaders for training, validation and test; validation is drawn from the training images."""
    inputs, labels, seed = images.train_images, images.train_labels, options.seed
    learn, validate = split_validation(labels, options.validation or len(labels) // 10, seed)
    if options.subset:
        learn = subset(labels, learn, options.subset, seed)
    say(f"Data: {images.name}, {len(learn):,} images to train on, {len(validate):,} to validate")
    kwargs: dict[str, Any] = {
        "batch_size": options.batch_size,
        "normalisation": Normalisation.of(inputs, learn),
        "image_size": options.image_size,
        "seed": seed,
    }
    augmentation = Augmentation.named(options.augment)
    return (
        Loader(inputs, labels, indices=learn, shuffle=True, augmentation=augmentation, **kwargs),
        Loader(inputs, labels, indices=validate, shuffle=False, **kwargs),
        Loader(images.test_images, images.test_labels, shuffle=False, **kwargs),
    )


def make_network(options: SimpleNamespace, num_classes: int) -> VGG:
    """Return the network, and print what it is."""
    names = ("image_size", "batch_norm", "width", "classifier_width", "dropout", "head", "init")
    settings = {name: getattr(options, name) for name in (*names, "output_scale", "seed")}
    net = VGG(options.arch, num_classes, **settings)
    say(f"Network: {net}")
    say(f"Parameters: {sum(p.size for p in net.parameters().values()):,}")
    return net


def step_settings(options: SimpleNamespace) -> dict[str, Any]:
    """Return the arguments of SGD but for the learning rate."""
    return {name: getattr(options, name) for name in ("momentum", "nesterov", "weight_decay")}


def print_forecast(
    options: SimpleNamespace,
    net: Layer,
    optimizer: SGD,
    loss: SoftmaxCrossEntropy,
    train: Loader,
    validation: Loader,
) -> None:
    """Print what training will cost. A dry run measures a step, too, and leaves the program here."""
    cost = forecast(
        net,
        options.batch_size,
        optimizer=optimizer,
        train=train,
        validation=validation,
        loss=loss,
        epochs=options.epochs,
        engine=options.engine,
        precision=options.precision,
        saves=True,
        measure=options.dry_run,
    )
    say(str(cost) if options.dry_run else f"Forecast: {cost.line}")
    if cost.warning:
        complain(f"warning: {cost.warning}")
    if options.dry_run:
        sys.exit(0)


def make_trainer(
    options: SimpleNamespace,
    images: ImageData,
    net: Layer,
    optimizer: SGD,
    rate: Callable[[int], float],
    loss: SoftmaxCrossEntropy,
    train: Loader,
    validation: Loader,
) -> Trainer:
    """Return a trainer that writes into the run directory, with what it had done there if it resumes."""
    header = {
        "data": images.name,
        "class_names": images.class_names,
        "mean": train.normalisation.mean,
        "std": train.normalisation.std,
    }
    run = open_run(options, net, header)
    engine = make_engine(net, options.engine, options.precision)
    observers = [Doctor(), Console()] if options.diagnose else [Console()]
    trainer = Trainer(net, optimizer, rate, train, validation, run, loss, engine, observers)
    if options.resume:
        trainer.resume(options.epochs)
    run.write_config(describe_run(options, net.backend.device, header))
    return trainer


def test_best(options: SimpleNamespace, trainer: Trainer, images: ImageData, test: Loader) -> None:
    """Look at the official test images, once, with the weights that validation chose."""
    run, net = trainer.run, trainer.net
    assert run is not None
    if options.demo:
        write_images(run.path / "pictures", images)
    checkpoint.load_weights(run.best, net)
    say(f"Best model: {run.best}")
    for views in sorted({1, options.views}):
        with Progress("testing", test.n_samples) as progress:
            accuracy = evaluate(net, test, trainer.engine, views, progress.update).accuracy
        of_each = f", {views} views of each" if views > 1 else ""
        say(f"Test Acc: {accuracy:.6f} ({images.name}, {test.n_samples:,} official test images{of_each})")
