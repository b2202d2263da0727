"""Epochs of training on a GPU: a replayed graph per step, with the images in its memory.

The trainer's plain loop hands each batch to the GPU and waits for its loss. Here the order of the images,
how each is changed, and the learning rates of a whole epoch are uploaded at its beginning, and the loss is
read back once in a while (see ``plans/cuda/training_step.py``). What is drawn is what ``Loader`` draws, so a
run sees the same images on every backend, and goes on with them after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

import numpy as np

from scratchnet.data import Loader
from scratchnet.layers import Layer
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import SGD
from scratchnet.training.finite import ADVICE, NotFinite
from scratchnet.training.observers import NOTHING, EpochTotals

READ_EVERY = 50  # steps: reading makes the host wait for the GPU, which then waits for the host
RESIDENT_BYTES = 2 << 30  # of images that are kept on the GPU; CIFAR-10 has 0.15 GB of them


class DeviceEpochs:
    """Training epochs of a network on a GPU, in float32.

    The loader's images are prepared on the GPU, unless they are more than RESIDENT_BYTES, are not of three
    uint8 channels, or have to be resized and are not square: then it prepares them, batch by batch.
    """

    def __init__(
        self, net: Layer, optimizer: SGD, loss: SoftmaxCrossEntropy, loader: Loader, precision: str = "fp32"
    ):
        from scratchnet.plans.cuda.launch.images import resizing_taps
        from scratchnet.plans.cuda.training_step import DeviceImages, TrainingSteps

        self.net, self.optimizer, self.loader = net, optimizer, loader
        size = loader.images.shape[1:3]
        side = loader.image_size
        resized = side is not None and size != (side, side)
        images = loader.images
        colours = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[3] == 3
        resizable = loader.crop == 1 and (not resized or size[0] == size[1])
        self.resident = colours and resizable and images.nbytes <= RESIDENT_BYTES
        data = None
        if self.resident:
            augmentation, (scale, shift) = loader.augmentation, loader.normalisation.affine
            data = DeviceImages(
                images=net.backend.asarray(loader.images),
                labels=net.backend.asarray(loader.labels),
                crop=augmentation.crop if augmentation else 0,
                cutout=augmentation.cutout if augmentation else 0,
                fill=loader.normalisation.colour,
                scale=tuple(scale),
                shift=tuple(shift),
                taps=net.backend.asarray(resizing_taps(size[0], side)) if side and resized else None,
            )
        self.steps = TrainingSteps(net, optimizer, loss, loader.batch_size, precision, data)
        self._check_labels(size if loader.image_size is None else (loader.image_size, loader.image_size))

    def _check_labels(self, size: tuple[int, ...]) -> None:
        """Raise unless all labels are classes of the network: on the GPU they are not checked."""
        classes = self.net.output_shape((1, *size, self.loader.images.shape[3]))[-1]
        labels = self.loader.labels[self.loader.indices]
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(f"label {wrong} is not one of the {classes} classes")

    def run(
        self,
        epoch: int,
        schedule: Callable[[int], float],
        first: int = 0,
        totals: EpochTotals = NOTHING,
    ) -> Iterator[tuple[int, EpochTotals]]:
        """Go once through the images, in training mode; ``epoch``, from 0, decides order and augmentation.

        An epoch of which ``first`` batches are done, with these totals, is taken up after them; generators
        must then be as they were before it.

        ``schedule`` leads from the step, counted from 0 over the whole run, to its learning rate. Yields the
        last step that was made and the totals of this epoch so far, every READ_EVERY steps, and at the end.
        NotFinite is raised if the loss became NaN or infinite since the last look.
        """
        loader, steps, count = self.loader, self.steps, len(self.loader)
        rates = np.array([schedule(epoch * count + batch) for batch in range(count)], np.float32)
        self.generators_before = {path: g.bit_generator.state for path, g in self.net.generators().items()}
        steps.begin(rates, loader.choices(epoch) if self.resident else None, first, totals)
        seen = totals.images
        for batch, arguments in enumerate(self._batches(epoch, first), start=first + 1):
            steps.step(*arguments)
            if batch % READ_EVERY == 0 or batch == count:
                totals = EpochTotals(*steps.totals())
                if not isfinite(totals.loss):
                    raise NotFinite(
                        f"the loss became {totals.loss} in epoch {epoch + 1}, between image {seen + 1} and "
                        f"{totals.images}: {ADVICE}; --engine layers finds the layer where it first appears"
                    )
                seen = totals.images
                yield epoch * count + batch - 1, totals
        self.optimizer.lr = schedule((epoch + 1) * count - 1)  # that of the last step

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Any, ...]]:
        """Yield what ``TrainingSteps.step`` takes: how many images, and these unless it has them."""
        if not self.resident:
            for x, labels in self.loader.epoch(epoch, first):
                yield len(labels), x, labels
            return
        size = self.loader.batch_size
        for start in range(first * size, self.loader.n_samples, size):
            yield (min(size, self.loader.n_samples - start),)
