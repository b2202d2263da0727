"""How accurate is VGG16-BN after a fixed number of epochs on a GPU, and how long does that take?

::

    python benchmarks/record.py                          5 seeds, scratchnet and its twin in PyTorch
    python benchmarks/record.py --precision bf16 --seeds 10 --epochs 30

For each seed scratchnet and PyTorch train the same network from the same weights, on the same images in the
same order with the same crops and flips, by the same recipe, at the same precision: all 50,000 training
images of CIFAR-10, none held back, since nothing is chosen here. The official test images are read once per
seed, at the end. Time is that of the epochs, including the recording of graphs and PyTorch's compiler, but
not the upload of the data set or the one evaluation on the test images. Each run has a process of its own.

It prints accuracy and time as mean, standard deviation and range over the seeds, and writes them to results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from command import Parser, above_zero, at_least_one, print_result
from gpu import PRECISIONS, driver
from race import HERE, answering, apart, machine
from report import save, table

RECIPE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True, "label_smoothing": 0.1}
AUGMENTATION = "crop-flip"
CONTENDERS = {"scratchnet": "scratchnet", "pytorch": "PyTorch, compiled, channels last"}
EVALUATION = 1000  # test images at a time


def measure(
    task: Mapping[str, Any],
    contenders: Sequence[str],
    progress: Any,
    worker: Any = apart,
    save_so_far: Callable[[dict], None] = lambda measured: None,
) -> dict:
    """Train with every seed, and call ``save_so_far`` with all results after each run.

    Returns
    -------
    dict
        ``task``, ``runs`` (the answers of ``work``, with ``contender`` and ``seed``) and the machine.

    Raises
    ------
    WorkerError
        If a run fails.
    """
    measured = {"task": dict(task), "runs": (runs := []), "driver": driver(), **machine()}
    for seed in range(task["seeds"]):
        for contender in contenders:
            progress.set_description(f"seed {seed}, {CONTENDERS[contender]}")
            answer = worker("record.py", {**task, "seed": seed, "contender": contender})
            runs.append({"contender": contender, "seed": seed, **answer})
            save_so_far(measured)
            progress.update()
    return measured


# The worker's side


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Train once, and evaluate on the test images.

    Returns
    -------
    dict
        ``accuracy`` on the test images, ``losses`` of all epochs, ``seconds``, ``data``, ``versions`` and
        ``device``.
    """
    from scratchnet import data, models, optim

    dataset = task_data(task)
    images, labels = dataset.train_images, dataset.train_labels
    loading = {"batch_size": task["batch_size"], "normalisation": data.Normalisation.of(images)}
    augmentation = data.Augmentation.named(AUGMENTATION)
    train = data.Loader(images, labels, shuffle=True, augmentation=augmentation, seed=task["seed"], **loading)
    loading["batch_size"] = EVALUATION
    test = data.Loader(dataset.test_images, dataset.test_labels, shuffle=False, **loading)
    side = images.shape[1]
    network = {"batch_norm": True, "width": task["width"], "dropout": 0.0, "seed": task["seed"]}
    classes = len(dataset.class_names)
    net = models.VGG(task["arch"], classes, side, classifier_width=task["classifier_width"], **network)
    schedule = optim.schedule("cosine", RECIPE["lr"], steps=task["epochs"] * len(train))
    run = train_scratchnet if task["contender"] == "scratchnet" else train_torch
    return {"data": dataset.name, **run(net, train, test, schedule, task)}


def task_data(task: Mapping[str, Any]) -> Any:
    """Return the data set that the task names."""
    from scratchnet import data

    return data.shapes10(**task["shapes10"]) if "shapes10" in task else data.cifar10(task["data_dir"])


def train_scratchnet(net: Any, train: Any, test: Any, schedule: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Train with scratchnet: whole epochs on the GPU."""
    from scratchnet import __version__, backend, losses, optim
    from scratchnet.training import evaluate, make_engine
    from scratchnet.training.device import DeviceEpochs

    device = backend.get("cupy")
    net.to(device)
    settings = {name: RECIPE[name] for name in ("momentum", "weight_decay", "nesterov")}
    sgd = optim.SGD(net.parameters(), RECIPE["lr"], **settings)
    loss = losses.SoftmaxCrossEntropy(RECIPE["label_smoothing"])
    epochs = DeviceEpochs(net, sgd, loss, train, task["precision"])
    mean_losses = []
    device.synchronize()
    start = time.perf_counter()
    for epoch in range(task["epochs"]):
        *_, (_, totals) = epochs.run(epoch, schedule)
        mean_losses.append(totals.loss / totals.images)
    device.synchronize()
    seconds = time.perf_counter() - start
    accuracy = evaluate(net, test, make_engine(net, precision=task["precision"])).accuracy
    versions = f"scratchnet {__version__}, CuPy {device.xp.__version__}"
    return {
        "accuracy": accuracy,
        "losses": mean_losses,
        "seconds": seconds,
        "versions": versions,
        "device": device.device,
    }


def train_torch(net: Any, train: Any, test: Any, schedule: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Train its twin with PyTorch, on the same images."""
    import torch
    from translations import torch_network

    device, precision = task.get("torch_device", "cuda"), task["precision"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    model = torch_network(net).to(device).to(memory_format=torch.channels_last)
    lower = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
    # The last batch is shorter: it runs uncompiled, so that there is one graph.
    compiled = torch.compile(model, mode="reduce-overhead") if device == "cuda" else model
    settings = {name: RECIPE[name] for name in ("lr", "momentum", "weight_decay", "nesterov")}
    optimizer = torch.optim.SGD(model.parameters(), fused=device == "cuda", **settings)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=RECIPE["label_smoothing"])
    images = torch.from_numpy(train.images).to(device)
    labels = torch.from_numpy(train.labels).to(device)
    mean_losses, wait = [], torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for epoch in range(task["epochs"]):
        total = torch.zeros((), device=device)
        for batch, (x, y) in enumerate(torch_batches(images, labels, train, epoch)):
            optimizer.param_groups[0]["lr"] = schedule(epoch * len(train) + batch)
            optimizer.zero_grad(set_to_none=True)
            with lower:
                value = criterion((compiled if len(y) == train.batch_size else model)(x), y)
            value.backward()
            optimizer.step()
            total += value.detach() * len(y)
        mean_losses.append(float(total) / train.n_samples)
    wait()
    seconds = time.perf_counter() - start
    model.eval()
    n_correct = 0
    for x, y in test.epoch(0):
        x_device = torch.from_numpy(x.transpose(0, 3, 1, 2)).to(device)
        with torch.inference_mode(), lower:
            logits = model(x_device.contiguous(memory_format=torch.channels_last))
        n_correct += int((logits.argmax(1).cpu().numpy() == y).sum())
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {
        "accuracy": n_correct / test.n_samples,
        "losses": mean_losses,
        "seconds": seconds,
        "versions": f"PyTorch {torch.__version__}",
        "device": name,
    }


def torch_batches(images: Any, labels: Any, loader: Any, epoch: int) -> Iterator[tuple[Any, Any]]:
    """Yield the loader's batches, prepared by PyTorch on the images' device: (N, 3, H, W), channels last."""
    import torch

    crop, (H, W) = loader.augmentation.crop, images.shape[1:3]
    affine = loader.normalisation.affine
    scale, shift = (torch.tensor(f, dtype=torch.float32, device=images.device) for f in affine)
    fill = torch.tensor(loader.normalisation.colour, dtype=torch.uint8, device=images.device)
    choices = torch.from_numpy(loader.choices(epoch)).to(images.device).long()
    rows, columns = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    for batch in choices.split(loader.batch_size):
        index, top, left, mirrored = batch[:, :4].T
        h = top[:, None] + rows - crop  # (n, H)
        w = left[:, None] + torch.where(mirrored[:, None] > 0, W - 1 - columns, columns) - crop  # (n, W)
        inside = ((h >= 0) & (h < H))[:, :, None] & ((w >= 0) & (w < W))[:, None]  # (n, H, W)
        h, w = h.clamp(0, H - 1), w.clamp(0, W - 1)
        x = images[index[:, None, None], h[:, :, None], w[:, None]]  # (n, H, W, 3)
        x = torch.where(inside[..., None], x, fill)
        yield (x * scale - shift).permute(0, 3, 1, 2), labels[index]


# The table


def summary(values: Sequence[float], digits: int) -> str:
    """Return mean, standard deviation and range as text.

    Examples
    --------
    >>> summary([1.0, 2.0, 3.0], 1)
    '**2.0** ± 1.0 (1.0 to 3.0)'
    """
    spread = stdev(values) if len(values) > 1 else 0.0
    numbers = (f"{value:.{digits}f}" for value in (fmean(values), spread, min(values), max(values)))
    return "**{}** ± {} ({} to {})".format(*numbers)


def page(measured: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    task, runs = measured["task"], measured["runs"]
    seeds = len({run["seed"] for run in runs})
    rows = []
    for contender, title in CONTENDERS.items():
        own = [run for run in runs if run["contender"] == contender]
        if own:
            accuracies = summary([100 * run["accuracy"] for run in own], 2)
            rows.append([title, accuracies, summary([run["seconds"] for run in own], 1)])
    versions = dict.fromkeys(run["versions"] for run in runs)
    recipe = ", ".join(f"{name} {value}" for name, value in RECIPE.items())
    lines = [
        f"# {task['arch']}-bn on {runs[0]['data']}, {task['epochs']} epochs, {task['precision']}, on "
        f"{runs[0]['device']}",
        "",
        *table(["", "test accuracy, %", "training, s"], rows),
        "",
        f"- Mean, standard deviation, range over {seeds} seeds; the test images were read once per seed",
        f"- Batch {task['batch_size']}, {recipe}, cosine with warm-up, {AUGMENTATION}, no dropout",
        f"- {'; '.join(versions)}; Python {measured['python']}; {measured['system']}; driver "
        f"{measured['driver']}; {measured['date']}",
        f"- `{measured['command']}`",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, write; return the exit status."""
    parser = Parser(description="Train VGG16-BN on a GPU, with several seeds, next to PyTorch.")
    parser.set_defaults(arch="vgg16", classifier_width=4096)
    parser.add_argument("--seeds", type=at_least_one, default=5, help="how many (%(default)s)")
    parser.add_argument("--epochs", type=at_least_one, default=30, help="(%(default)s)")
    parser.add_argument("--batch-size", type=at_least_one, default=128, help="(%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="tf32", help="(%(default)s)")
    parser.add_argument("--width", type=above_zero, default=1.0, help="scales the channels (%(default)s)")
    parser.add_argument("--data-dir", default="data", help="of CIFAR-10, downloaded if missing (%(default)s)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        answering(lambda answer: answer(**work(options.worker)))
        return 0
    names = ("arch", "classifier_width", "seeds", "epochs", "batch_size", "precision", "width")
    task = {name: getattr(options, name) for name in names}
    task |= {"data_dir": str(Path(options.data_dir).absolute()), "threads": 1}

    from tqdm import tqdm

    from scratchnet import backend, data

    def run() -> str:
        backend.get("cupy")
        data.cifar10(options.data_dir)  # downloaded now if need be, not in a worker
        with tqdm(total=options.seeds * len(options.contenders), unit="", file=sys.stderr) as progress:
            return page(measure(task, options.contenders, progress, save_so_far=write))

    return print_result(run, None, backend.BackendError, data.DataError)


def write(measured: dict[str, Any]) -> None:
    """Write the results so far."""
    path = HERE / "results" / f"{measured['date']}-record-{measured['task']['precision']}"
    task = {name: value for name, value in measured["task"].items() if name != "data_dir"}
    save(json.dumps({**measured, "task": task}, indent=1) + "\n", path.with_suffix(".json"))
    save(page(measured), path.with_suffix(".md"))


if __name__ == "__main__":
    sys.exit(main())
