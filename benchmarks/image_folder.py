"""What does a large folder of images cost: to read, to read again in each epoch, and beside training steps?

::

    python benchmarks/image_folder.py --files 20000

writes files of mixed sizes (JPEG and PNG, 64 to 400 pixels) into a temporary folder, and measures in
processes of their own: an epoch of loading with all images kept in memory, and with all read from their files
again; and training steps on either, in turns with steps on one fixed batch.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE, BATCH, ROUNDS, STEPS = 64, 32, 5, 4  # pixels, images per step, turns, steps per turn
DISTINCT = 500  # contents; each file has one of them


def write(folder: Path, files: int) -> int:
    """Write the files, in ten classes; return their bytes."""
    rng, contents = np.random.default_rng(0), []
    for k in range(min(files, DISTINCT)):
        width, height = rng.integers(64, 400, 2)
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((width, height))
        pixels = np.asarray(noise).astype(int) + rng.integers(-12, 13, (height, width, 3))
        stream = io.BytesIO()
        kind = "PNG" if k % 4 == 0 else "JPEG"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, kind)
        contents.append((kind.lower(), stream.getvalue()))
    for k in range(files):
        ending, content = contents[k % len(contents)]
        kind = folder / f"class {k % 10}"
        kind.mkdir(exist_ok=True)
        (kind / f"{k}.{ending}").write_bytes(content)
    return sum(len(contents[k % len(contents)][1]) for k in range(files))


def measure(folder: str, memory: int, steps: bool) -> dict[str, Any]:
    """Read the folder, load an epoch, and perhaps train a little; return seconds and bytes."""
    from scratchnet import data, losses, models, optim, plans

    start = time.perf_counter()
    images = data.image_folder(folder, SIZE, memory=memory)
    result: dict[str, Any] = {"images": len(images.train_labels), "read": time.perf_counter() - start}
    how: dict[str, Any] = {"shuffle": True, "augmentation": data.Augmentation.named("crop-flip")}
    loader = data.Loader(images.train_images, images.train_labels, BATCH, **how)
    if not steps:
        start = time.perf_counter()
        assert sum(len(labels) for _, labels in loader.epoch(0)) == len(images.train_labels)
        result["epoch"] = time.perf_counter() - start
    else:
        net = models.vgg16(10, image_size=SIZE, classifier_width=512)
        plan = plans.compile(net, (BATCH, SIZE, SIZE, 3), training=True)
        loss, sgd = losses.SoftmaxCrossEntropy(), optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        fixed = next(loader.epoch(0))
        fed: Iterator[Any] = itertools.chain.from_iterable(loader.epoch(k) for k in itertools.count())
        seconds: dict[str, list[float]] = {"fixed": [], "fed": []}
        for kind in ("fixed", "fed") * (ROUNDS + 1):
            start = time.perf_counter()
            for _ in range(STEPS):
                x, labels = fixed if kind == "fixed" else next(fed)
                loss.forward(plan.forward(x), labels)
                plan.backward(loss.backward())
                sgd.step()
            seconds[kind].append((time.perf_counter() - start) / STEPS)
        result |= {kind: values[1:] for kind, values in seconds.items()}  # the first turn warms up
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def main() -> None:
    """Write the files, measure in processes, and print the table."""
    parser = argparse.ArgumentParser(description="Measure what a folder of images costs.")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, memory, steps = options.measure
        print(json.dumps(measure(folder, int(memory), steps == "steps")))
        return
    with tempfile.TemporaryDirectory(prefix="scratchnet-") as folder:
        size = write(Path(folder), options.files)
        print(f"{options.files:,} files, {size / 1e6:,.0f} MB; resized to {SIZE} pixels\n")
        print("| images | read and checked | an epoch of loading | peak memory | more time per step |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, memory in (("kept in memory", 10**12), ("read in each epoch", 0)):
            command = [sys.executable, __file__, "--measure", folder, str(memory)]
            found = []
            for kind in ("epoch", "steps"):
                done = subprocess.run([*command, kind], stdout=subprocess.PIPE, check=True, text=True)
                found.append(json.loads(done.stdout))
            loaded, trained = found
            more = [
                100 * (fed / fixed - 1) for fed, fixed in zip(trained["fed"], trained["fixed"], strict=True)
            ]
            share = f"{statistics.median(more):.0f} % ({min(more):.0f} to {max(more):.0f} %)"
            times = f"{loaded['read']:.1f} s | {loaded['epoch']:.1f} s | {loaded['peak'] / 1e6:,.0f} MB"
            print(f"| {name} | {times} | {share} |", flush=True)


if __name__ == "__main__":
    main()
