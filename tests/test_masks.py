"""The mask of a masked array is never ignored: every public entrance refuses it."""

import numpy as np
import pytest

from scratchnet import backend, data, doctor, gradcheck, inspection, layers, losses, models, optim, plans
from scratchnet import functional as F
from scratchnet.training import confusion_matrix, make_engine, predict


def masked(values, dtype=None):
    values = np.array(values, dtype)
    mask = np.zeros(values.shape, bool)
    mask.flat[0] = True
    return np.ma.array(values, mask=mask)


def net():
    return models.vgg11(2, 32, width=0.0625, classifier_width=8)


def after_forward(make, x):
    made = make(net(), x)
    return made, masked(made.forward(x))


def a_plan(network, x):
    return plans.compile(network, x.shape, training=True)


IMAGES, LABELS = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2
X, LOGITS = np.zeros((4, 32, 32, 3), "float32"), np.zeros((4, 2), "float32")
ENTRANCES = {
    "Loader, images": lambda: data.Loader(masked(IMAGES), LABELS, 2, shuffle=False),
    "Loader, labels": lambda: data.Loader(IMAGES, masked(LABELS), 2, shuffle=False),
    "Loader, indices": lambda: data.Loader(IMAGES, LABELS, 2, shuffle=False, indices=masked(range(4))),
    "Normalisation": lambda: data.Normalisation(masked([0.5] * 3), [0.5] * 3),
    "Normalisation.of": lambda: data.Normalisation.of(masked(IMAGES)),
    "Normalisation.apply": lambda: data.Normalisation([0] * 3, [1] * 3).apply(masked(IMAGES)),
    "Augmentation.apply": lambda: data.Augmentation(flip=True).apply(
        masked(IMAGES), np.random.default_rng(0)
    ),
    "subset, labels": lambda: data.subset(masked(LABELS), None, 2),
    "subset, indices": lambda: data.subset(LABELS, masked(range(4)), 2),
    "split_validation": lambda: data.split_validation(masked(LABELS), 2),
    "divide": lambda: data.divide(data.ImageData(IMAGES, masked(LABELS), IMAGES, LABELS, ("a", "b")), 2),
    "balanced_class_weights": lambda: losses.balanced_class_weights(masked(LABELS), 2),
    "asarray": lambda: backend.get("numpy").asarray(masked(X)),
    "to_numpy": lambda: backend.to_numpy(masked(X)),
    "network": lambda: net().forward(masked(X)),
    "ReLU": lambda: layers.ReLU().forward(masked(LOGITS)),
    "Dropout": lambda: layers.Dropout().forward(masked(LOGITS)),
    "backward": lambda: (lambda made, dy: made.backward(dy))(*after_forward(lambda n, x: n, X)),
    "plan": lambda: a_plan(net(), X).forward(masked(X)),
    "plan, backward": lambda: (lambda made, dy: made.backward(dy))(*after_forward(a_plan, X)),
    "Parameter": lambda: layers.Parameter(masked([1.0, 2.0])),
    "data": lambda: setattr(layers.Parameter([1.0, 2.0]), "data", masked([1.0, 2.0])),
    "grad": lambda: setattr(layers.Parameter([1.0, 2.0]), "grad", masked([1.0, 2.0])),
    "loss, logits": lambda: losses.SoftmaxCrossEntropy().forward(masked(LOGITS), LABELS),
    "loss, labels": lambda: losses.SoftmaxCrossEntropy().forward(LOGITS, masked(LABELS)),
    "loss, weights": lambda: losses.SoftmaxCrossEntropy(0.0, masked([1.0, 2.0])),
    "predict": lambda: predict(net(), masked(X)),
    "predict, plan": lambda: predict(net(), masked(X), make_engine(net())),
    "confusion_matrix": lambda: confusion_matrix(masked(LABELS), LABELS, 2),
    "diagnose, images": lambda: doctor.diagnose(net(), masked(X), LABELS),
    "diagnose, labels": lambda: doctor.diagnose(net(), X, masked(LABELS)),
    "grad_cam": lambda: inspection.grad_cam(net(), masked(X[:1]), 0),
    "feature_maps": lambda: inspection.feature_maps(net(), masked(X[:1])),
    "grid": lambda: inspection.grid(masked(IMAGES / 255), 2),
    "confident_mistakes": lambda: inspection.confident_mistakes(LOGITS, masked(LABELS), 2),
    "check_layer": lambda: gradcheck.check_layer(layers.ReLU(), masked(np.ones((2, 2)))),
    "check_network": lambda: gradcheck.check_network(
        layers.Linear(2, 2, dtype="float64"),
        losses.SoftmaxCrossEntropy(),
        masked(np.ones((2, 2))),
        LABELS[:2],
    ),
    "softmax": lambda: F.softmax(masked(LOGITS)),
    "conv2d": lambda: F.conv2d_forward(masked(X), np.zeros((3, 3, 3, 2), "float32"), None),
    "a state of an optimizer": lambda: optim.SGD(net().parameters(), 0.1, 0.9).load_state(
        {"momentum": masked([1.0])}
    ),
}


@pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=ENTRANCES)
@pytest.mark.filterwarnings("ignore:Warning. converting a masked element")
def test_a_mask_is_refused(entrance):
    with pytest.raises(ValueError, match="mask.* would be ignored|finite means"):
        entrance()
