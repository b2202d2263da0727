"""``scratchnet train``, and the parts of ``examples/train_cifar.py``, which tells it as a story."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from scratchnet import backend, checkpoint
from scratchnet.cli import together
from scratchnet.cli.datasets import (
    describe_classes,
    describe_test,
    load_data,
    refuse_other_files,
    write_images,
)
from scratchnet.cli.forecast import forecast
from scratchnet.cli.options import (
    describe_run,
    open_run,
    parse_training,
    refuse_what_only_python_has,
)
from scratchnet.cli.program import complain, device_line
from scratchnet.data import Augmentation, ImageData, ImageFiles, Loader, Normalisation, divide, local_file
from scratchnet.data.named import NAMES
from scratchnet.doctor import Doctor
from scratchnet.interop import initialise, rescale_layers
from scratchnet.losses import SoftmaxCrossEntropy, balanced_class_weights
from scratchnet.models import VGG
from scratchnet.optim import SGD, AdamW, Optimizer, schedule
from scratchnet.training import Console, RunDirectory, Trainer, evaluate, make_engine
from scratchnet.training.console import Progress, say
from scratchnet.training.engine import choose_engine
from scratchnet.untrusted import printable

MEMORY_ADVICE = ": take a smaller --batch-size, --image-size or --width"


def main() -> None:
    """Train, and look at the test images once, at the end; ``examples/train_cifar.py`` has the loop."""
    options = parse_training()
    device = backend.get(options.backend)
    say(device_line(device, options.engine, options.precision))
    images = read_data(options)
    net = make_network(options, len(images.class_names)).to(device)
    train, validation, test = make_loaders(images, options)
    loss, optimizer = make_loss(options, images, train), make_optimizer(options, net)
    rate = schedule(options.schedule, options.lr, steps=options.epochs * len(train))
    trainer = make_trainer(options, images, net, optimizer, rate, loss, train, validation)
    trainer.fit(options.epochs)
    test_best(options, trainer, images, test)


def read_data(options: SimpleNamespace) -> ImageData:
    """Return the data set that the options name."""
    where = options.data, options.data_dir, options.dry_run
    return load_data(*where, options.image_size, options.data_memory)


def make_loaders(images: ImageData, options: SimpleNamespace) -> tuple[Loader, Loader, Loader]:
    """Return loaders for training, validation and test; validation is drawn from the training images."""
    inputs, labels, seed = images.train_images, images.train_labels, options.seed
    learn, validate = divide(images, options.validation, options.subset, seed)
    say(f"Data: {printable(images.name)}, {len(learn):,} images to train on, {len(validate):,} to validate")
    if options.data not in ("auto", *NAMES):  # a folder of the user's
        say(describe_classes(images, learn, validate))
        read_again = isinstance(inputs, ImageFiles)
        how_kept = "read in each epoch" if read_again else "kept in memory"
        gigabytes = (inputs.nbytes + images.test_images.nbytes) / 1e9
        say(f"Images: {gigabytes:.2f} GB at {options.image_size} pixels, {how_kept} (--data-memory)")
    known = options.mean is not None
    normalisation = Normalisation(options.mean, options.std) if known else Normalisation.of(inputs, learn)
    how: dict[str, Any] = {"normalisation": normalisation, "seed": seed}
    how |= {"batch_size": options.batch_size, "image_size": options.image_size}
    augmentation = Augmentation.named(options.augment)
    return (
        Loader(inputs, labels, indices=learn, shuffle=True, augmentation=augmentation, **how),
        Loader(inputs, labels, indices=validate, shuffle=False, **how),
        Loader(images.test_images, images.test_labels, shuffle=False, **how),
    )


def make_network(options: SimpleNamespace, num_classes: int) -> VGG:
    """Return the network, with weights from a file where that is wanted, and print what it is."""
    names = ("image_size", "batch_norm", "width", "classifier_width", "dropout", "head", "init")
    settings = {name: getattr(options, name) for name in (*names, "output_scale", "seed")}
    net = VGG(options.arch, num_classes, **settings)
    say(f"Network: {net}")
    say(f"Parameters: {sum(p.size for p in net.parameters().values()):,}")
    begin_with(options, net)
    return net


def begin_with(options: SimpleNamespace, net: VGG) -> None:
    """Give the network the weights that ``--init-from`` names, and freeze what is not to learn.

    Without ``--mean`` images are normalised as the file says, if it does: so its layers have learned to see.
    A run that is resumed has all that in its state.
    """
    loaded: list[str] = []
    if options.init_from and not options.resume:
        path = local_file(options.init_from)
        result = initialise(net, path, new_head=options.new_head, channels=options.init_channels)
        say(str(result))
        loaded = result.loaded
        if options.mean is None and result.info.get("mean") and result.info.get("std"):
            options.mean, options.std = result.info["mean"], result.info["std"]
    for path in options.freeze.split(",") if options.freeze else ():
        net.freeze(path.strip())
    frozen = {name for name, p in net.parameters().items() if not p.trainable}
    if len(frozen) == len(net.parameters()):
        raise ValueError(f"--freeze {options.freeze} leaves nothing to train")
    if frozen:
        trained = sum(p.size for p in net.parameters().values() if p.trainable)
        say(f"Frozen: {options.freeze}; {trained:,} parameters are trained")
    if (random := frozen - {*loaded}) and not options.resume:
        complain(f"warning: {len(random)} frozen tensors are not from a file and stay as random as they are")


def make_loss(options: SimpleNamespace, images: ImageData, train: Loader) -> SoftmaxCrossEntropy:
    """Return the loss, with the class weights of the images to train on where that is wanted."""
    weights = None
    if options.class_weights:
        weights = balanced_class_weights(train.labels[train.indices], len(images.class_names))
        named = zip(images.class_names, weights, strict=True)
        say("Class weights: " + ", ".join(f"{printable(name)} {weight:.3g}" for name, weight in named))
    return SoftmaxCrossEntropy(options.label_smoothing, weights)


def make_optimizer(options: SimpleNamespace, net: VGG) -> Optimizer:
    """Return what makes the loss smaller."""
    how: dict[str, Any] = {"weight_decay": options.weight_decay}
    how["lr_scales"] = {"features": options.body_lr_scale}
    if options.optimizer == "adamw":
        return AdamW(net.parameters(), options.lr, **how)
    return SGD(net.parameters(), options.lr, options.momentum, nesterov=options.nesterov, **how)


def make_trainer(
    options: SimpleNamespace,
    images: ImageData,
    net: VGG,
    optimizer: Optimizer,
    rate: Callable[[int], float],
    loss: SoftmaxCrossEntropy,
    train: Loader,
    validation: Loader,
) -> Trainer:
    """Print what the training will cost, where a dry run ends; return a trainer with a run directory."""
    how: dict[str, Any] = {"optimizer": optimizer, "loss": loss, "train": train, "validation": validation}
    chosen = choose_engine(net.backend, options.engine, options.precision)
    how |= {"engine": chosen.name, "precision": chosen.precision, "epochs": options.epochs}
    cost = forecast(net, together.images_per_rank(options), **how, saves=True, measure=options.dry_run)
    say(str(cost) if options.dry_run else f"Forecast: {cost.line}")
    if cost.warning:
        complain(f"warning: {cost.warning}")
    if options.dry_run:
        sys.exit(0)
    header: dict[str, Any] = {"data": images.name, "class_names": images.class_names}
    header |= {"mean": train.normalisation.mean, "std": train.normalisation.std}
    if options.init_rescale and not options.resume:
        images_of_one_step, _ = next(train.epoch(0))
        factor = rescale_layers(net, net.backend.asarray(images_of_one_step[:32]), new_head=True)
        say(f"Rescaled: the new head sees features {factor:.3g} times smaller than those of the file")
    parallel, opened = together.parallel(options), []
    parallel.on_writer(lambda: opened.append(open_run(options, net, header, len(optimizer.keeps))))
    run = opened[0] if opened else None  # one process has it
    engine = make_engine(net, chosen.name, chosen.precision)
    observers = [Doctor(), Console()] if options.diagnose else [Console()]
    safety = {name: getattr(options, name) for name in ("save_minutes", "on_nan", "clip_norm")}
    safety["parallel"] = parallel
    rate = together.scaled(rate, options, len(train))
    trainer = Trainer(net, optimizer, rate, train, validation, run, loss, engine, observers, **safety)

    def refuse() -> None:
        if run is not None:
            refuse_what_only_python_has(run, trainer)
            refuse_other_files(images, run.read_config().get("contents"), run.path)

    if options.resume:
        parallel.on_writer(refuse)
        trainer.resume(options.epochs)

    def describe() -> None:
        if run is not None:
            config = describe_run(options, net.backend.device, header, trainer.identity)
            run.write_config(config | ({"contents": images.contents} if images.contents else {}))

    parallel.on_writer(describe)
    return trainer


def test_best(options: SimpleNamespace, trainer: Trainer, images: ImageData, test: Loader) -> None:
    """Look once at the test images, with the weights that validation chose; not at all with ``--no-test``."""
    net, run, parallel = trainer.net, trainer.run, trainer.parallel
    views_of_each = [] if options.no_test else sorted({1, options.views})

    def load() -> None:
        assert isinstance(run, RunDirectory)  # make_trainer gave it one
        if options.demo:
            write_images(run.path / "pictures", images)
        say(f"Best model: {run.best}")
        if views_of_each:
            checkpoint.load_weights(run.best, net)

    parallel.on_writer(load)
    parallel.share_weights(net)
    for views in views_of_each:
        with Progress("testing", test.n_samples) as progress:
            accuracy = evaluate(net, test, trainer.engine, views, progress.update, parallel).accuracy
        of_each = f", {views} views of each" if views > 1 else ""
        say(f"Test Acc: {accuracy:.6f} ({describe_test(images)}{of_each})")
    if run is not None:
        run.release()
