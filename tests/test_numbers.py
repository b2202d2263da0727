"""Every public function refuses what is no number, or no finite one, and names the argument.

The functions are found by walking the modules, and their numbers by the annotations: a new one needs a row in
``CALLS``, and nothing else.
"""

import importlib
import inspect
import math

import numpy as np
import pytest

from scratchnet import checks, data, layers, models, optim, plans, training

MODULES = "optim layers losses data training models plans checkpoint interop gradcheck".split()
RECORDS = {
    "Plan",
    "Sizes",
    "Report",
    "Evaluation",
    "ImageData",
    "weight_memory_budget",
}  # what functions return; nobody makes one


def net():
    return models.vgg11(2, 32, width=0.0625, classifier_width=8)


def images(n=8):
    return np.zeros((n, 32, 32, 3), np.uint8), np.arange(n) % 2


def loader(**settings):
    return data.Loader(*images(), **{"batch_size": 4, "shuffle": False} | settings)


def parameters():
    return {"weight": layers.Parameter([1.0, 2.0])}


X = np.zeros((1, 32, 32, 3), "float32")
VGG = [
    "num_classes",
    "image_size",
    "width",
    "classifier_width",
    "dropout",
    "seed",
    "output_scale",
    "in_channels",
]
# What each is called with besides the number that is wrong.
CALLS = {
    "optim.SGD": lambda f, **wrong: f(parameters(), **{"lr": 0.1} | wrong),
    "optim.AdamW": lambda f, **wrong: f(parameters(), **{"lr": 0.1} | wrong),
    "optim.Optimizer": lambda f, **wrong: f(parameters(), **{"lr": 0.1} | wrong),
    "optim.Constant": lambda f, **wrong: f(**wrong),
    "optim.Step": lambda f, **wrong: f(**{"lr": 0.1, "milestones": (1, 2)} | wrong),
    "optim.Cosine": lambda f, **wrong: f(**{"lr": 0.1, "steps": 10} | wrong),
    "optim.OneCycle": lambda f, **wrong: f(**{"lr": 0.1, "steps": 10} | wrong),
    "optim.schedule": lambda f, **wrong: f("cosine", **{"lr": 0.1, "steps": 10} | wrong),
    "losses.balanced_class_weights": lambda f, **wrong: f([0, 1], **wrong),
    "layers.BatchNorm1d": lambda f, **wrong: f(**{"num_features": 2} | wrong),
    "layers.BatchNorm2d": lambda f, **wrong: f(**{"num_features": 2} | wrong),
    "layers.Conv2d": lambda f, **wrong: f(**{"in_channels": 2, "out_channels": 2} | wrong),
    "layers.Dropout": lambda f, **wrong: f(**wrong),
    "layers.Linear": lambda f, **wrong: f(**{"in_features": 2, "out_features": 2} | wrong),
    "layers.MaxPool2d": lambda f, **wrong: f(**wrong),
    "losses.SoftmaxCrossEntropy": lambda f, **wrong: f(**wrong),
    "data.Augmentation": lambda f, **wrong: f(**wrong),
    "data.Loader": lambda f, **wrong: loader(**wrong),
    "data.decode_ahead": lambda f, **wrong: list(f(["no.png"], **{"size": 32, "ahead": 1} | wrong)),
    "data.ImageFiles": lambda f, **wrong: f(["no.png"], **wrong),
    "data.describe_left_out": lambda f, **wrong: f([("a", "b")], **wrong),
    "data.divide": lambda f, **wrong: f(data.ImageData(*images(), *images(), ("a", "b")), **wrong),
    "data.image_folder": lambda f, **wrong: f("no/such/folder", **wrong),
    "data.load": lambda f, **wrong: f("shapes10", **wrong),
    "data.image_to_array": lambda f, **wrong: f(image(), **{"size": 8} | wrong),
    "data.shapes10": lambda f, **wrong: f(**{"n_train": 2, "n_test": 2} | wrong),
    "data.split_validation": lambda f, **wrong: f(images()[1], **{"n_validation": 2} | wrong),
    "data.subset": lambda f, **wrong: f(images()[1], None, **{"n": 2} | wrong),
    "training.confusion_matrix": lambda f, **wrong: f(*2 * [images()[1]], **wrong),
    "training.evaluate": lambda f, **wrong: f(net(), loader(), "layers", **wrong),
    "training.predict": lambda f, **wrong: f(net(), X, **wrong),
    "training.Trainer": lambda f, **wrong: trainer(**wrong),
    "gradcheck.check_layer": lambda f, **wrong: f(layers.ReLU(), np.ones((2, 2)), **wrong),
    "gradcheck.check_network": lambda f, **wrong: f(*a_check(), **wrong),
    **{
        f"models.{name}": lambda f, **wrong: f(**wrong)
        for name in ("VGG", "vgg11", "vgg13", "vgg16", "vgg19")
    },
}


def trainer(schedule=None, **settings):
    network = net()
    optimizer, schedule = optim.SGD(network.parameters(), 0.1), schedule or optim.Constant(0.1)
    return training.Trainer(network, optimizer, schedule, loader(), loader(), observers=(), **settings)


def image():
    from PIL import Image

    return Image.new("RGB", (8, 8))


def a_check():
    from scratchnet.losses import SoftmaxCrossEntropy

    return layers.Linear(2, 2), SoftmaxCrossEntropy(), np.ones((2, 2)), np.array([0, 1])


def numbers():
    """Yield each argument of a public function that is a number: its name, that of the argument, its kind."""
    for module_name in MODULES:
        module = importlib.import_module(f"scratchnet.{module_name}")
        for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
            thing = getattr(module, name)
            ours = str(getattr(thing, "__module__", "")).startswith(f"scratchnet.{module_name}")
            if not callable(thing) or not ours or name in RECORDS:
                continue
            if inspect.isclass(thing) and issubclass(thing, BaseException):
                continue
            for p in inspect.signature(thing).parameters.values():
                kinds = {kind.strip() for kind in str(p.annotation).split("|")}
                if kinds & {"int", "float"} and kinds <= {"int", "float", "None"}:
                    yield f"{module_name}.{name}", p.name, "int" if "int" in kinds else "float"


NUMBERS = list(numbers())
UNBOUNDED = {"seed", "memory"}  # any whole number will do
WRONG = {
    "text": "0.1",
    "list": [0.1],
    "array": np.array([0.1, 0.2]),
    "NaN": math.nan,
    "infinity": math.inf,
    "below every number": -math.inf,
    "complex": 1j,
    "dict": {},
    "huge": 10**400,
    "more digits than are printed": 10**5000,
}


def test_the_walk_finds_numbers_in_every_place():
    assert {("optim.SGD", "lr", "float"), ("models.vgg16", "image_size", "int")} <= set(NUMBERS)
    assert len(NUMBERS) > 70


@pytest.mark.parametrize("name, argument, kind", NUMBERS, ids=lambda part: part)
def test_what_is_no_finite_number_is_refused_with_the_arguments_name(name, argument, kind):
    module, _, function = name.partition(".")
    thing = getattr(importlib.import_module(f"scratchnet.{module}"), function)
    for what, wrong in {**WRONG, **({"a half": 0.5} if kind == "int" else {})}.items():
        if argument in UNBOUNDED and what.startswith(("huge", "more digits")):
            continue
        with pytest.raises((ValueError, TypeError), match=rf"\b{argument}\b") as refused:
            CALLS[name](thing, **{argument: wrong})
        told = str(refused.value)
        assert len(told) < 500 and "\n" not in told, what
        assert "unexpected keyword" not in told and "required positional" not in told, told


@pytest.mark.parametrize("shape", ["32", 32, [[1]], (0, 32), (2.5, 32), ("2", 32), (math.nan,), (10**30, 4)])
def test_the_shape_of_a_plan_is_of_whole_numbers(shape):
    for function in (plans.compile, plans.memory):
        with pytest.raises((ValueError, TypeError), match="input_shape"):
            function(layers.Linear(32, 2).eval(), shape)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, "0.1", [0.1]])
def test_numbers_that_are_assigned_later_are_refused_too(name, wrong):
    optimizer = optim.SGD(parameters(), 0.1, momentum=0.5)
    with pytest.raises((ValueError, TypeError), match=name):
        setattr(optimizer, name, wrong)
        for p in optimizer.parameters.values():
            p.grad = np.ones(2)
        optimizer.step()


@pytest.mark.parametrize("wrong", ["3", 2.5, math.inf, -1, [3]])
def test_epochs_are_a_whole_number(wrong):
    with pytest.raises((ValueError, TypeError), match="epochs"):
        trainer().fit(wrong)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "0.1", None])
def test_a_schedule_that_gives_no_rate_is_named(wrong):
    with pytest.raises((ValueError, TypeError), match="schedule"):
        trainer(lambda step: wrong).fit(1)


def test_numbers_are_told_in_a_few_characters():
    for wrong in (10**5000, "x" * 10**6, [0] * 10**5):
        with pytest.raises(ValueError, match="size must be") as refused:
            checks.whole(size=wrong)
        assert len(str(refused.value)) < 200
