"""Train a VGG on CIFAR-10, from first principles.

python examples/train_cifar.py --help shows all options; --demo runs in about a minute and needs no data.

``trainer.train_epoch`` below is this loop; it computes with a compiled plan, and tells how it goes::

    for batch, (images, labels) in enumerate(train.epoch(epoch)):
        optimizer.lr = learning_rate(epoch * len(train) + batch)
        logits = net.forward(images)
        loss.forward(logits, labels)
        net.backward(loss.backward())
        optimizer.step()
"""

from scratchnet import cli
from scratchnet.cli import train as program
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD, schedule


def main() -> None:
    """Train, and look at the test images once, at the end."""
    options = cli.parse_training()
    device = program.find_device(options)

    # The data. Validation images are drawn from the training images; the test images wait until the end.
    images = cli.load_data(options.data, options.data_dir, options.dry_run)
    train, validation, test = program.make_loaders(images, options)

    # The network: VGG("vgg16", num_classes=10, ...), its parameters side by side in one array.
    net = program.make_network(options, len(images.class_names)).to(device)

    # The loss, and what makes it smaller.
    loss = SoftmaxCrossEntropy(options.label_smoothing)
    optimizer = SGD(net.parameters(), options.lr, **program.step_settings(options))
    learning_rate = schedule(options.schedule, options.lr, steps=options.epochs * len(train))

    # What that will cost: a dry run ends here.
    program.print_forecast(options, net, optimizer, loss, train, validation)

    # The training. Ctrl-C ends it, and --resume goes on after the last epoch that was finished.
    trainer = program.make_trainer(options, images, net, optimizer, learning_rate, loss, train, validation)
    with trainer.running(options.epochs) as epochs:
        for epoch in epochs:
            trainer.train_epoch(epoch)  # for each batch: forward, loss, backward, step
            trainer.finish_epoch(epoch)  # validation; log, weights and state into the run directory

    # The one look at the official test images, with the weights that validation chose.
    program.test_best(options, trainer, images, test)


if __name__ == "__main__":
    cli.run(main, memory_advice=program.MEMORY_ADVICE)
