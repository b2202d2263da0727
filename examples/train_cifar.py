"""Train a VGG on CIFAR-10, from first principles.

python examples/train_cifar.py --help shows all options; --demo runs in about a minute and needs no data.

Without options, messages and files it is this story (``scratchnet/cli/train.py`` tells it in full, with
``Trainer.train_epoch`` for the inner loop: it computes with a compiled plan, and tells how it goes)::

    cifar = data.cifar10("data")
    learn, validate = data.split_validation(cifar.train_labels, 5000)
    normalisation, augmentation = data.Normalisation.of(cifar.train_images, learn), data.Augmentation()
    how = {"indices": learn, "normalisation": normalisation, "augmentation": augmentation}
    train = data.Loader(cifar.train_images, cifar.train_labels, 128, shuffle=True, **how)
    net = models.vgg16(num_classes=10, image_size=32)
    loss, optimizer = SoftmaxCrossEntropy(), SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    learning_rate = schedule("cosine", 0.02, steps=15 * len(train))

    for epoch in range(15):
        for batch, (images, labels) in enumerate(train.epoch(epoch)):
            optimizer.lr = learning_rate(epoch * len(train) + batch)
            logits = net.forward(images)
            loss.forward(logits, labels)
            net.backward(loss.backward())
            optimizer.step()
"""

from scratchnet.cli import run
from scratchnet.cli.train import MEMORY_ADVICE, main

if __name__ == "__main__":
    run(main, MEMORY_ADVICE)
