"""Train a VGG on CIFAR-10, from first principles.

python examples/train_cifar.py --help-all shows all options; --demo runs in about a minute and needs no data.

``trainer.train_epoch`` below is this loop; it computes with a compiled plan, and tells how it goes::

    for batch, (images, labels) in enumerate(train.epoch(epoch)):
        optimizer.lr = learning_rate(epoch * len(train) + batch)
        logits = net.forward(images)
        loss.forward(logits, labels)
        net.backward(loss.backward())
        optimizer.step()
"""

from scratchnet import backend, cli
from scratchnet.cli import train as parts
from scratchnet.optim import schedule


def main() -> None:
    """Train, and look at the test images once, at the end."""
    options = parts.parse_training()
    device = backend.get(options.backend)
    print(parts.device_line(device, options.engine, options.precision))

    # The data, and the network: VGG("vgg16", num_classes=10, ...), its parameters side by side in one array.
    images = parts.read_data(options)
    net = parts.make_network(options, len(images.class_names)).to(device)

    # Batches. Validation images are drawn from the training images; the test images wait until the end.
    train, validation, test = parts.make_loaders(images, options)

    # The loss, and what makes it smaller: SGD(net.parameters(), lr, momentum=0.9, ...).
    loss, optimizer = parts.make_loss(options, images, train), parts.make_optimizer(options, net)
    learning_rate = schedule(options.schedule, options.lr, steps=options.epochs * len(train))

    # The training. A dry run ends before it; Ctrl-C ends it after a step, and --resume goes on from there.
    trainer = parts.make_trainer(options, images, net, optimizer, learning_rate, loss, train, validation)
    with trainer.running(options.epochs) as epochs:
        for epoch in epochs:
            trainer.train_epoch(epoch)  # for each batch: forward, loss, backward, step
            trainer.finish_epoch(epoch)  # validation; log, weights and state into the run directory

    # The one look at the test images, with the weights that validation chose.
    parts.test_best(options, trainer, images, test)


if __name__ == "__main__":
    cli.run(main, parts.MEMORY_ADVICE)
