"""What pretrained weights are worth: 400 images of shapes10, with them and from scratch."""

from scratchnet.data import Loader, Normalisation, shapes10
from scratchnet.interop import initialise, rescale_layers
from scratchnet.models import vgg16
from scratchnet.optim import SGD, schedule
from scratchnet.training import Trainer, evaluate
from tests.interop.test_onnx import tumour_network

# Keras's weights expect pixels from 0 to 255, less these means, blue first
IMAGENET = Normalisation((0.485, 0.458, 0.4076), (1 / 255, 1 / 255, 1 / 255))


def accuracy(images, normalisation, lr, epochs, weights=None):
    """Return the share of test images that are right, by VGG16, from scratch or with frozen features."""
    net = vgg16(10, image_size=32, classifier_width=128, dropout=0.0)
    train = Loader(
        images.train_images, images.train_labels, 20, shuffle=True, seed=0, normalisation=normalisation
    )
    if weights is not None:
        initialise(net, weights, new_head=True, channels="bgr")
        rescale_layers(net, next(train.epoch(0))[0], new_head=True)
        net.freeze("features")
    optimizer = SGD(net.parameters(), lr=lr, momentum=0.9)
    test = Loader(images.test_images, images.test_labels, 100, shuffle=False, normalisation=normalisation)
    Trainer(net, optimizer, schedule("cosine", lr, epochs * len(train)), train, test, observers=()).fit(
        epochs
    )
    return evaluate(net, test).accuracy


def test_imagenets_features_beat_training_from_scratch_by_at_least_15_points():
    weights = tumour_network()
    images = shapes10(n_train=400, n_test=500)
    probe = accuracy(images, IMAGENET, lr=0.01, epochs=6, weights=weights)
    # from scratch: more epochs, and a lower rate, since at 0.01 the loss stays at log(10)
    scratch = accuracy(images, Normalisation.of(images.train_images), lr=0.003, epochs=10)
    assert probe > 0.7
    assert probe - scratch >= 0.15
