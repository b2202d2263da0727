"""``scratchnet train`` and ``examples/train_cifar.py``: from the options to one look at the test images."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from scratchnet import backend, checkpoint
from scratchnet.cli.datasets import describe_test, load_data, write_images
from scratchnet.cli.forecast import forecast
from scratchnet.cli.options import describe_run, open_run, parse_training
from scratchnet.cli.program import complain
from scratchnet.data import Augmentation, ImageData, Loader, Normalisation, split_validation, subset
from scratchnet.doctor import Doctor
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import VGG
from scratchnet.optim import SGD, schedule
from scratchnet.training import Console, Trainer, evaluate, make_engine
from scratchnet.training.console import Progress, say

MEMORY_ADVICE = ": take a smaller --batch-size, --image-size or --width"


def main() -> None:
    """Train, and look at the test images once, at the end."""
    options = parse_training()
    device = backend.get(options.backend)
    say(f"Device: {device}")

    # The data. Validation images are drawn from the training images; the test images wait until the end.
    images = load_data(options.data, options.data_dir, options.dry_run)
    train, validation, test = make_loaders(images, options)

    # The network: VGG("vgg16", num_classes=10, ...), its parameters side by side in one array.
    net = make_network(options, len(images.class_names)).to(device)

    # The loss, and what makes it smaller.
    loss = SoftmaxCrossEntropy(options.label_smoothing)
    settings = {name: getattr(options, name) for name in ("momentum", "nesterov", "weight_decay")}
    optimizer = SGD(net.parameters(), options.lr, **settings)
    rate = schedule(options.schedule, options.lr, steps=options.epochs * len(train))

    # What that will cost. A dry run measures a step, too, and ends here.
    how: dict[str, Any] = {"optimizer": optimizer, "loss": loss, "train": train, "validation": validation}
    how |= {"engine": options.engine, "precision": options.precision, "epochs": options.epochs}
    cost = forecast(net, options.batch_size, **how, saves=True, measure=options.dry_run)
    say(str(cost) if options.dry_run else f"Forecast: {cost.line}")
    if cost.warning:
        complain(f"warning: {cost.warning}")
    if options.dry_run:
        sys.exit(0)

    # The training. Ctrl-C ends it, and --resume goes on after the last epoch that was finished.
    header: dict[str, Any] = {"data": images.name, "class_names": images.class_names}
    header |= {"mean": train.normalisation.mean, "std": train.normalisation.std}
    run = open_run(options, net, header)
    engine = make_engine(net, options.engine, options.precision)
    observers = [Doctor(), Console()] if options.diagnose else [Console()]
    trainer = Trainer(net, optimizer, rate, train, validation, run, loss, engine, observers)
    if options.resume:
        trainer.resume(options.epochs)
    run.write_config(describe_run(options, device.device, header))
    trainer.fit(options.epochs)

    # The one look at the test images, with the weights that validation chose.
    if options.demo:
        write_images(run.path / "pictures", images)
    checkpoint.load_weights(run.best, net)
    say(f"Best model: {run.best}")
    for views in sorted({1, options.views}):
        with Progress("testing", test.n_samples) as progress:
            accuracy = evaluate(net, test, engine, views, progress.update).accuracy
        of_each = f", {views} views of each" if views > 1 else ""
        say(f"Test Acc: {accuracy:.6f} ({describe_test(images)}{of_each})")


def make_loaders(images: ImageData, options: SimpleNamespace) -> tuple[Loader, Loader, Loader]:
    """Return loaders for training, validation and test; validation is drawn from the training images."""
    inputs, labels, seed = images.train_images, images.train_labels, options.seed
    learn, validate = split_validation(labels, options.validation or len(labels) // 10, seed)
    if options.subset:
        learn = subset(labels, learn, options.subset, seed)
    say(f"Data: {images.name}, {len(learn):,} images to train on, {len(validate):,} to validate")
    how: dict[str, Any] = {"normalisation": Normalisation.of(inputs, learn), "seed": seed}
    how |= {"batch_size": options.batch_size, "image_size": options.image_size}
    augmentation = Augmentation.named(options.augment)
    return (
        Loader(inputs, labels, indices=learn, shuffle=True, augmentation=augmentation, **how),
        Loader(inputs, labels, indices=validate, shuffle=False, **how),
        Loader(images.test_images, images.test_labels, shuffle=False, **how),
    )


def make_network(options: SimpleNamespace, num_classes: int) -> VGG:
    """Return the network, and print what it is."""
    names = ("image_size", "batch_norm", "width", "classifier_width", "dropout", "head", "init")
    settings = {name: getattr(options, name) for name in (*names, "output_scale", "seed")}
    net = VGG(options.arch, num_classes, **settings)
    say(f"Network: {net}")
    say(f"Parameters: {sum(p.size for p in net.parameters().values()):,}")
    return net
