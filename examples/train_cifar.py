"""Train a VGG on CIFAR-10, from first principles.

python examples/train_cifar.py --help shows all options; --demo runs in about a minute and needs no data.
"""

from scratchnet import backend, checkpoint
from scratchnet.data import Augmentation, Loader, Normalisation, split_validation, subset
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import VGG
from scratchnet.optim import SGD, schedule
from scratchnet.training import Trainer, cli, evaluate
from scratchnet.training.forecast import forecast
from scratchnet.training.log import say


def main() -> None:
    """Train, and look at the test images once, at the end."""
    options = cli.parse_training()
    device = backend.get(options.backend)
    say(f"Device: {device}")

    # The images. Validation is drawn from the training images; the official test images wait until the end.
    pictures = cli.load_data(options.data, options.data_dir, options.dry_run)
    images, labels = pictures.train_images, pictures.train_labels
    learn, validate = split_validation(labels, options.validation or len(labels) // 10, options.seed)
    if options.subset:
        learn = subset(labels, learn, options.subset, options.seed)
    say(f"Data: {pictures.name}, {len(learn):,} images to train on, {len(validate):,} to validate")

    size, seed = options.image_size, options.seed
    normalisation = Normalisation.of(images, learn)
    how = {"batch_size": options.batch_size, "normalisation": normalisation, "image_size": size, "seed": seed}
    augmentation = Augmentation.named(options.augment)
    train = Loader(images, labels, indices=learn, shuffle=True, augmentation=augmentation, **how)
    validation = Loader(images, labels, indices=validate, shuffle=False, **how)
    test = Loader(pictures.test_images, pictures.test_labels, shuffle=False, **how)

    # The network.
    net = VGG(
        options.arch,
        num_classes=len(pictures.class_names),
        image_size=size,
        batch_norm=options.batch_norm,
        width=options.width,
        classifier_width=options.classifier_width,
        dropout=options.dropout,
        head=options.head,
        init=options.init,
        output_scale=options.output_scale,
        seed=seed,
    )
    say(f"Network: {net}")
    say(f"Parameters: {sum(p.size for p in net.parameters().values()):,}")

    # The training: forward, loss, backward, step; see scratchnet/training/trainer.py.
    loss = SoftmaxCrossEntropy(options.label_smoothing)
    step = {"momentum": options.momentum, "nesterov": options.nesterov, "weight_decay": options.weight_decay}
    optimizer = SGD(net.parameters(), options.lr, **step)
    learning_rate = schedule(options.schedule, options.lr, steps=options.epochs * len(train))

    # What that will cost. A dry run measures a step, too, and stops here.
    net.to(device)
    how = {"engine": options.engine, "precision": options.precision}
    epoch = {"train": train, "validation": validation, "loss": loss, "epochs": options.epochs}
    cost = forecast(
        net, options.batch_size, optimizer=optimizer, saves=True, measure=options.dry_run, **epoch, **how
    )
    say(str(cost) if options.dry_run else f"Forecast: {cost.line}")
    cli.warn(cost.warning)
    if options.dry_run:
        return

    run = cli.open_run(options, net)
    about = {
        "data": pictures.name,
        "class_names": pictures.class_names,
        "mean": normalisation.mean,
        "std": normalisation.std,
    }
    trainer = Trainer(
        net, optimizer, learning_rate, train, validation, run, loss, about, **how, diagnose=options.diagnose
    )
    if options.resume:
        trainer.resume(options.epochs)
    run.write_config(cli.describe_run(options, device.device, about))
    trainer.fit(options.epochs)

    # The one look at the official test images, with the weights that validation chose.
    if options.demo:
        cli.write_pictures(run.path / "pictures", pictures)
    checkpoint.load_weights(run.best, net)
    say(f"Best model: {run.best}")
    for views in sorted({1, options.views}):
        accuracy = evaluate(net, test, "testing", trainer.engine, views).accuracy
        of_each = f", {views} views of each" if views > 1 else ""
        say(f"Test Acc: {accuracy:.6f} ({pictures.name}, {test.n_samples:,} official test images{of_each})")


if __name__ == "__main__":
    cli.run(main, memory_advice=": take a smaller --batch-size, --image-size or --width")
