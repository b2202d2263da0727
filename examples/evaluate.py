"""Say what is in an image, or how good a model is.

python examples/evaluate.py MODEL IMAGE... names images; MODEL --data cifar10 measures accuracy.
"""

import sys
from os.path import isdir

import numpy as np

from scratchnet import backend, checkpoint
from scratchnet.data import DataError, Loader, Normalisation, decode_ahead, images_in
from scratchnet.training import cli, confusion_matrix, evaluate, make_engine, predict
from scratchnet.training.evaluation import VIEWS, confusion_table
from scratchnet.training.log import say

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # what torchvision's weights expect


def main() -> int:
    """Name images, or measure accuracy."""
    parser = cli.Parser(description="Say what is in an image, or how good a model is.")
    parser.add_argument(
        "model", metavar="MODEL", help="a .safetensors file, such as runs/demo/best.safetensors"
    )
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="*",
        default=[],
        help="image files, folders of them, or http(s) addresses",
    )
    parser.add_argument(
        "--top", type=cli.positive(int), metavar="K", help="print the K likeliest classes with probabilities"
    )
    parser.add_argument(
        "--data", choices=("cifar10", "shapes10"), help="measure on these official test images"
    )
    parser.add_argument(
        "--data-dir", default="data", metavar="DIR", help="the folder of CIFAR-10 (default data)"
    )
    parser.add_argument("--backend", choices=("auto", "numpy", "cupy"), default="auto")
    parser.add_argument("--engine", choices=("plan", "layers"), help="a plan (the default), or the layers")
    parser.add_argument(
        "--views",
        type=cli.positive(int),
        choices=VIEWS,
        default=1,
        help="look at so many views of each image: 2 with its mirror image, 10 shifted, too (default 1)",
    )
    options = parser.parse_intermixed_args()  # so that options may stand between the images
    if bool(options.images) == bool(options.data):
        parser.error("give either images to name, or --data to measure on")
    if options.data and options.top:
        parser.error("--top is for images; --data measures how often the likeliest class is right")

    device = backend.get(options.backend)
    print(f"Device: {device}", file=sys.stderr, flush=True)
    net = checkpoint.load(options.model, device)
    engine = make_engine(net, options.engine)
    normalisation = Normalisation(**{key: net.info.get(key, IMAGENET[key]) for key in IMAGENET})
    work = measure if options.data else name
    return work(net, engine, normalisation, options)


def name(net, engine, normalisation, options) -> int:
    """Print the class of each image, one a line; for those that cannot be read, a sentence on stderr."""
    classes = net.info.get("class_names") or [f"class {k}" for k in range(net.settings()["num_classes"])]
    size, status = net.settings()["image_size"], 0
    images, in_folders = [], set()
    for given in options.images:
        try:
            found = images_in(given) if isdir(given) else []
        except OSError as error:
            complain(f"{given} cannot be read: {error.strerror}")
            status = 2
            continue
        in_folders.update(found)  # they are told apart by their names
        images += found or [given]

    batch = batch_size(size)
    pictures = decode_ahead(images, size, ahead=2 * batch)
    while some := take(pictures, batch):
        read = [pixels for _, pixels in some if not isinstance(pixels, DataError)]
        likely = iter(())
        if read:
            x = normalisation.apply(np.stack(read), dtype=net.dtype)
            likely = iter(finite(predict(net, x, engine, options.views), options.model))
        for image, pixels in some:
            if isinstance(pixels, DataError):
                complain(str(pixels))
                status = 2
                continue
            probabilities = next(likely)
            best = np.argsort(-probabilities, kind="stable")[: options.top or 1]
            found = [f"{classes[k]} {probabilities[k]:.4f}" if options.top else classes[k] for k in best]
            say((f"{image}: " if image in in_folders else "") + ", ".join(found))
    return status


def finite(probabilities, model):
    """Return them, or refuse the model: of NaN the likeliest class would be the first."""
    if not np.isfinite(probabilities).all():
        raise ValueError(f"{model} puts out NaN: its weights are damaged, or its training failed")
    return probabilities


def complain(sentence) -> None:
    """Print a sentence on standard error, on one line, whatever a file may be called."""
    print("evaluate.py:", sentence.replace("\n", " "), file=sys.stderr, flush=True)


def take(pictures, count) -> list:
    """Take images until so many can be read: a batch of another size would take a plan of its own."""
    some, readable = [], 0
    for picture in pictures:
        some.append(picture)
        readable += not isinstance(picture[1], DataError)
        if readable == count:
            break
    return some


def batch_size(image_size: int) -> int:
    """Return how many images go through the network at a time."""
    return 128 if image_size <= 64 else 8


def measure(net, engine, normalisation, options) -> int:
    """Print accuracy and a confusion matrix on official test images."""
    pictures = cli.load_data(options.data, options.data_dir)
    classes = pictures.class_names
    if net.settings()["num_classes"] != len(classes):
        raise ValueError(
            f"{options.model} has {net.settings()['num_classes']} classes, {pictures.name} has {len(classes)}"
        )
    trained_on = net.info.get("data", pictures.name)
    if trained_on != pictures.name:
        print(f"evaluate.py: note: trained on {trained_on}, measured on {pictures.name}", file=sys.stderr)
    size = net.settings()["image_size"]
    test = Loader(
        pictures.test_images,
        pictures.test_labels,
        batch_size=batch_size(size),
        shuffle=False,
        normalisation=normalisation,
        image_size=size,
        dtype=net.dtype,
    )
    result = evaluate(net, test, pictures.name, engine, options.views)
    finite(result.loss, options.model)
    say(f"Accuracy: {result.accuracy:.4f} ({pictures.name}, {test.n_samples:,} official test images)")
    say(confusion_table(confusion_matrix(result.labels, result.predictions, len(classes)), classes))
    return 0


if __name__ == "__main__":
    cli.run(main)
