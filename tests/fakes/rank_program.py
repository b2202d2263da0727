"""Programs that mpiexec runs in tests, on each rank: ``python -m tests.fakes.rank_program NAME``."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import zlib

import numpy as np

from scratchnet import cli, data, optim, training
from scratchnet.cli import train as parts
from scratchnet.distributed import DataParallel, join
from scratchnet.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential

EPOCHS = 4  # of six batches each, the last of which has one image


class Losses(training.Observer):
    def __init__(self):
        self.values = []

    def on_loss(self, trainer, step, loss):
        self.values.append(float(loss))


def network(batch_norm):
    rng = np.random.default_rng(1)
    norms = [[BatchNorm2d(8)], [BatchNorm2d(16)]] if batch_norm else [[], []]
    first = Conv2d(3, 8, rng=rng), *norms[0], ReLU(), MaxPool2d()
    second = Conv2d(8, 16, rng=rng), *norms[1], ReLU(), MaxPool2d(), Flatten()
    head = Linear(256, 32, rng=rng), ReLU(), Dropout(0.5), Linear(32, 4, rng=rng)
    return Sequential(*first, *second, *head)


def losses(ranks):
    """Train a few small networks; print the losses, and what is left."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (46, 16, 16, 3)).astype("uint8"), rng.integers(0, 4, 46)
    augmentation = data.Augmentation.named("crop-flip")
    results = {}
    for name, batch_norm, sync, engine in [
        ("plain plan", False, False, "plan"),
        ("plain layers", False, False, "layers"),
        ("norm plan", True, True, "plan"),
        ("norm layers", True, True, "layers"),
        ("local", True, False, "plan"),
        ("local again", True, False, "plan"),
    ]:
        train = data.Loader(images, labels, 9, shuffle=True, augmentation=augmentation, seed=3)
        validation, net, observed = (
            data.Loader(images, labels, 16, shuffle=False),
            network(batch_norm),
            Losses(),
        )
        optimizer = optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
        parallel = DataParallel(ranks, sync) if ranks.size > 1 else None
        trainer = training.Trainer(
            net, optimizer, optim.Constant(0.02), train, validation,
            observers=[observed], engine=engine, parallel=parallel,
        )  # fmt: skip
        trainer.fit(EPOCHS)
        weights = zlib.crc32(np.ascontiguousarray(net[0].weight.buffer.data))
        state = json.dumps([str(rng.bit_generator.state) for rng in net.generators().values()])
        on_ranks = ranks.gather((weights, state, *(zlib.crc32(b) for b in net.buffers().values())))
        row = {k: v for k, v in trainer.log[-1].items() if "acc" in k or "loss" in k}
        results[name] = {"losses": observed.values, "on_ranks": on_ranks, "row": row}
    if ranks.rank == 0:
        print(json.dumps(results))


def messages(ranks):
    """Tell the others small things."""
    rank, size = ranks.rank, ranks.size
    assert ranks.sum(np.array([rank, 1.0]))[1] == size
    assert ranks.gather({"rank": rank}) == [{"rank": r} for r in range(size)]
    assert ranks.broadcast(rank) == 0
    assert ranks.on_writer(lambda: ranks.rank + 5) == 5
    large = np.full(1 << 20, float(rank), "float32")
    for part in (large[1000:], large[:1000]):
        ranks.begin_sum(part)
    ranks.finish_sums()
    assert (large == sum(range(size))).all()
    try:
        ranks.on_writer(lambda: 1 / 0)
        raise AssertionError("rank 0 has failed, and nobody was told")
    except ZeroDivisionError as error:
        assert rank == 0 and error.met_by_all
    except Exception as error:
        assert rank and "rank 0: ZeroDivisionError" in str(error) and error.met_by_all
    if rank == 0:
        print(json.dumps({"threads": os.environ["SCRATCHNET_THREADS"]}))


def train_with_fault(fault):
    """``scratchnet train`` with what goes wrong on one rank."""
    rank = int(os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)
    if fault == "full-disk":

        def write_epoch(self, *arguments, **settings):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.state))

        training.RunDirectory.write_epoch = write_epoch
    if fault == "nan" and rank == 1:
        prepare = data.Loader._prepare

        def spoilt(self, order, epoch, batch):
            x, y = prepare(self, order, epoch, batch)
            x[epoch == 1 and self.shuffle and batch == 2 :] *= np.nan if epoch == 1 and batch == 2 else 1
            return x, y

        data.Loader._prepare = spoilt
    if fault == "bug" and rank == 1:
        data.Loader.rows = None
    if fault == "seed" and rank == 1:
        sys.argv += ["--seed", "7"]
    if fault == "other-images" and rank == 1:
        load = parts.load_data

        def other(*arguments):
            images = load(*arguments)
            images.train_images[...] //= 2
            return images

        parts.load_data = other
    if fault == "slow":  # long enough to be killed

        def on_step(self, trainer, step):
            time.sleep(0.1)

        training.Console.on_step = on_step
    if fault == "interrupt":
        step = DataParallel.backward

        def interrupted(self, *arguments):
            if self.ranks.rank == self.ranks.size - 1 and self.steps == 6:
                signal.raise_signal(signal.SIGINT)
            step(self, *arguments)

        DataParallel.backward = interrupted
    cli.run(parts.main)


if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name in ("losses", "messages"):
        with join() as together:
            globals()[name](together)
    else:
        train_with_fault(name)
