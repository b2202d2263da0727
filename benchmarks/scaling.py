"""How far does data-parallel training reach? A model of a step on 1 to 1,024 ranks, and its error here.

::

    python benchmarks/scaling.py measure                  2 and 4 ranks on this host
    python benchmarks/scaling.py measure --namespaces     over a veth that tc shapes, too; needs root
    python benchmarks/scaling.py efficiency              2 ranks, next to 2 workers
    python benchmarks/scaling.py model --images-per-second 390     efficiency on links that are not here

The model of a step: each rank computes B / R images, and the gradients (G bytes) are added up meanwhile::

    step = compute + max(tail, sum - hideable)          (1)
    compute = B / R / images_per_second
    hideable = backward_share * overlap * compute       what computes while slices are under way
    tail = the sum of the last slice, which begins when backward ends

    sum, ring    2 (R - 1) / R * G / bandwidth + 2 (R - 1) * latency * slices   (Patarasu and Yuan 2009)
    sum, tree    2 log2(R) * (G / bandwidth + latency * slices)                 (as reduce, then broadcast)

Where ranks share the cores of a host, nothing is hidden: a sum takes the time of the cores that compute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
BACKWARD_SHARE = 2 / 3  # of a step's multiply-adds
SLICE = 4 << 20


@dataclass(frozen=True)
class Link:
    """Latency in seconds, bandwidth in bytes per second, one way; within nodes perhaps another link."""

    name: str
    latency: float
    bandwidth: float
    within: Link | None = None
    node: int = 1  # ranks in one node


@dataclass(frozen=True)
class Job:
    """What is trained: images per step of all ranks, bytes of gradients, and one rank's speed."""

    name: str
    batch: int
    gradients: float
    images_per_second: float
    overlap: float = 1.0


# Latency and bandwidth of the links that are not here are nominal, at 90 % of the wire's rate; NOT measured.
LINKS = [
    Link("25 Gbit/s Ethernet", 20e-6, 0.9 * 25e9 / 8),
    Link(
        "NVLink within nodes of 8, InfiniBand of 400 Gbit/s per GPU between them",
        5e-6,
        0.9 * 400e9 / 8,
        Link("NVLink", 3e-6, 0.8 * 450e9),
        8,
    ),
]


def sum_seconds(link: Link, ranks: int, size: float, shape: str = "ring", piece: float = SLICE) -> float:
    """Return how long a sum of ``size`` bytes over all ranks takes, in slices of ``piece`` bytes.

    >>> link = Link("slow", latency=0.0, bandwidth=1e6)
    >>> sum_seconds(link, 2, 1e6), sum_seconds(link, 4, 1e6), sum_seconds(link, 4, 1e6, "tree")
    (1.0, 1.5, 4.0)
    """
    if ranks == 1 or not size:
        return 0.0
    if link.within is not None and ranks <= link.node:
        link = link.within
    slices = max(1, ceil(size / piece))
    if shape == "ring":
        return 2 * (ranks - 1) * (size / ranks / link.bandwidth + slices * link.latency)
    return 2 * ceil(log2(ranks)) * (size / link.bandwidth + slices * link.latency)


def step_seconds(job: Job, link: Link, ranks: int, shape: str = "ring") -> float:
    """Return how long a step takes, by equation (1).

    >>> job = Job("small", batch=100, gradients=1e6, images_per_second=100)
    >>> step_seconds(job, Link("none", 0.0, 1e6), 1)
    1.0
    """
    compute = job.batch / ranks / job.images_per_second
    whole = sum_seconds(link, ranks, job.gradients, shape)
    tail = sum_seconds(link, ranks, min(job.gradients, SLICE), shape)
    return compute + max(tail, whole - BACKWARD_SHARE * job.overlap * compute)


def efficiency(job: Job, link: Link, ranks: int) -> float:
    """Return the share of ``ranks`` times one rank's speed that is reached, of ring and tree the better."""
    alone = job.batch / job.images_per_second
    return alone / ranks / min(step_seconds(job, link, ranks, shape) for shape in ("ring", "tree"))


def reach(job: Job, link: Link) -> int:
    """Return the largest power of two of ranks, to 1,024, that is used to at least a half."""
    return max(r for r in (1 << k for k in range(11)) if r == 1 or efficiency(job, link, r) >= 0.5)


# VGG16's parameters: 14.7 million in the convolutions; the classifier takes what is left.
FLAT_32, FLAT_224, GAP = 33.6e6, 138.4e6, 33.6e6
HEAD_10 = 14.7e6 + 512 * 512 + 512 * 10


def jobs(images_per_second: float, pixels: int) -> list[Job]:
    """Return VGG16 as it is, and what moves the point where it stops to scale."""
    flat = FLAT_32 if pixels == 32 else FLAT_224
    plain = Job(f"VGG16, {pixels} px, batch 256", 256, 4 * flat, images_per_second)
    return [
        plain,
        replace(
            plain,
            name="head='gap'" + (", 512 wide" if pixels == 32 else ""),
            gradients=4 * (HEAD_10 if pixels == 32 else GAP),
        ),
        replace(plain, name="gradients in bf16 (not implemented)", gradients=2 * flat),
        replace(plain, name="batch 8,192", batch=8192),
        replace(plain, name="all three", batch=8192, gradients=2 * (HEAD_10 if pixels == 32 else GAP)),
    ]


def model(images_per_second: float, pixels: int) -> str:
    """Return the page's table: efficiency by ranks, and where it falls below a half."""
    lines = []
    for link in LINKS:
        lines += [
            f"{link.name}:",
            "",
            "| | 4 | 16 | 64 | 256 | 1,024 | half used up to |",
            "| --- | " + "---: | " * 6,
        ]
        for job in jobs(images_per_second, pixels):
            shares = " | ".join(f"{100 * efficiency(job, link, r):.0f} %" for r in (4, 16, 64, 256, 1024))
            lines.append(f"| {job.name} | {shares} | {reach(job, link):,} ranks |")
        lines.append("")
    return "\n".join(lines)


# Measuring: the same program on each rank; rank 0 prints


def rank_program(pixels: int, width: float, batch: int, rounds: int, slice_bytes: int) -> None:
    """Measure in turns, on all ranks: steps with and without sums, the sums alone, small and large ones."""
    import numpy as np

    from scratchnet import data, models, optim
    from scratchnet.distributed import DataParallel, join
    from scratchnet.losses import SoftmaxCrossEntropy
    from scratchnet.training import Trainer

    with join() as ranks:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch, pixels, pixels, 3), dtype=np.uint8)
        loader = data.Loader(images, rng.integers(0, 10, batch), batch, shuffle=False)
        net = models.vgg16(10, image_size=pixels, width=width, dropout=0.0)
        sgd, loss = optim.SGD(net.parameters(), 1e-4, momentum=0.9), SoftmaxCrossEntropy()
        parallel = DataParallel(ranks)
        trainer = Trainer(net, sgd, optim.Constant(1e-4), loader, loader, observers=(), parallel=parallel)
        reduction = parallel._reduction
        reduction.slice_bytes = slice_bytes
        reduction._cut()
        (x, y), rows = next(trainer.train.epoch(0)), trainer.train.rows(0)

        def forward() -> None:
            parallel.forward(trainer.engine, loss, x, y, rows)

        def alone() -> None:
            forward()
            trainer.engine.backward(loss.backward())
            sgd.step()

        def together() -> None:
            forward()
            parallel.backward(trainer.engine, loss)
            sgd.step()

        def sums() -> None:
            with reduction.while_backward():
                pass

        def small() -> None:
            for _ in range(20):
                ranks.sum(np.zeros(1))

        large = np.zeros(4 << 20, np.float32)  # 16 MB

        def one_large() -> None:
            ranks.begin_sum(large)
            ranks.finish_sums()

        tasks: dict[str, Callable[[], None]] = {
            "alone": alone, "together": together, "sums": sums, "small": small, "large": one_large,
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        for k in range(rounds + 1):  # the first one warms up
            for name, task in tasks.items():
                ranks.sum(np.zeros(1))
                began = time.perf_counter()
                task()
                if k:
                    seconds[name].append(time.perf_counter() - began)
        seconds["small"] = [s / 20 for s in seconds["small"]]
        if ranks.rank == 0:
            size = 4 * net.parameters()["features.0.weight"].buffer.size
            print(json.dumps({"ranks": ranks.size, "gradients": size, "seconds": seconds, "batch": batch}))


def run_ranks(
    ranks: int,
    options: argparse.Namespace,
    within: Sequence[str] = (),
    hosts: Sequence[str] = (),
    threads: int = 1,
) -> dict[str, Any]:
    """Start the program on this host, or one rank in each network namespace."""
    arguments = [
        sys.executable,
        __file__,
        "rank",
        *map(str, (options.pixels, options.width, options.batch_size)),
    ]
    arguments += [str(options.rounds), str(options.slice_mb << 20)]
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec) if mpiexec.exists() else "mpiexec", "-n", str(ranks), *arguments]
    environment = os.environ | {"SCRATCHNET_THREADS": str(threads)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command[1:1] = hosts
    if hosts:
        environment |= {"MPIR_CVAR_NOLOCAL": "1", "FI_PROVIDER": "tcp", "UCX_TLS": "tcp"}  # no shared memory
    done = subprocess.run([*within, *command], env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"mpiexec failed, {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def judge(name: str, result: dict[str, Any], shared_cores: bool) -> str:
    """Say what was measured, what the model says of it, and by how much it errs."""
    middle = {key: median(values) for key, values in result["seconds"].items()}
    ranks, size = result["ranks"], result["gradients"]
    # From the small sum follows the latency of a message, from the large one the bandwidth.
    hops = 2 * (ranks - 1)
    latency = middle["small"] / hops
    bandwidth = hops * (4 * (4 << 20)) / ranks / max(1e-9, middle["large"] - middle["small"])
    link = Link(name, latency, bandwidth)
    saved = middle["alone"] + middle["sums"] - middle["together"]
    overlap = max(0.0, min(1.0, saved / middle["sums"]))
    job = Job(name, result["batch"], size, result["batch"] / ranks / middle["alone"])
    predicted = step_seconds(replace(job, overlap=0.0 if shared_cores else 1.0), link, ranks)
    error = predicted / middle["together"] - 1
    spread = sorted(result["seconds"]["together"])
    cells = [
        name, f"{1e6 * latency:.0f} us", f"{bandwidth / 1e6:.0f} MB/s", f"{1e3 * middle['alone']:.0f} ms",
        f"{1e3 * middle['sums']:.0f} ms",
        f"{1e3 * middle['together']:.0f} ms ({1e3 * spread[0]:.0f} to {1e3 * spread[-1]:.0f})",
        f"{100 * overlap:.0f} %", f"{1e3 * predicted:.0f} ms", f"{100 * error:+.0f} %",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    "link",
    "latency",
    "bandwidth",
    "step without sums",
    "sums alone",
    "step",
    "overlap",
    "model",
    "error",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}"


def main() -> None:
    """Measure, or tabulate the model."""
    if sys.argv[1:2] == ["rank"]:
        pixels, width, batch, rounds, piece = sys.argv[2:]
        rank_program(int(pixels), float(width), int(batch), int(rounds), int(piece))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measure", "efficiency", "model"))
    parser.add_argument("--images-per-second", type=float, default=390.0, help="of one rank (model)")
    parser.add_argument("--pixels", type=int, default=32, choices=(32, 224))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slice-mb", type=int, default=4)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--namespaces", action="store_true", help="also over a shaped link; needs root")
    parser.add_argument("--mbit", type=int, default=1000)
    options = parser.parse_args()
    if options.what == "model":
        print(model(options.images_per_second, options.pixels))
        return
    if options.what == "efficiency":
        print(compare(options))
        return
    print(HEADER, flush=True)
    for ranks in options.ranks:
        print(judge(f"shared memory, {ranks} ranks", run_ranks(ranks, options), True), flush=True)
    if options.namespaces:
        with tempfile.TemporaryDirectory() as folder:
            print(
                judge(f"veth, {options.mbit} Mbit/s, 2 ranks", over_veth(options, folder), False),
                flush=True,
            )


def compare(options: argparse.Namespace, turns: int = 3) -> str:
    """Say how fast 2 ranks of one thread each are, as a share of one process with two workers; in turns."""
    shares = []
    for _ in range(turns):
        one, two = (run_ranks(ranks, options, threads=3 - ranks)["seconds"]["together"] for ranks in (1, 2))
        shares.append(median(one) / median(two))
    middle, low, high = (f"{100 * share:.0f} %" for share in (median(shares), min(shares), max(shares)))
    return f"2 ranks of one thread: {middle} of the speed of one process with two workers ({low} to {high})"


def over_veth(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Run two ranks in two network namespaces, joined by a veth that ``tc`` shapes."""
    names = [f"scratchnet{os.getpid()}{end}" for end in "ab"]
    ends = [f"sn{os.getpid() % 100000}{end}" for end in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for k, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.213.77.{k + 1}/24", "dev", end)
            for device in (end, "lo"):
                ip("-n", name, "link", "set", device, "up")
            rate = ["rate", f"{options.mbit}mbit", "burst", "256kb", "latency", "100ms"]
            shape = ["tc", "qdisc", "add", "dev", end, "root", "tbf", *rate]
            subprocess.run(["ip", "netns", "exec", name, *shape], check=True)
        launcher = Path(folder, "enter")  # what mpiexec calls in place of ssh: HOST COMMAND...
        launcher.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nhost=$1; shift\ncase $host in\n'
            f"10.213.77.1) name={names[0]};;\n*) name={names[1]};;\nesac\n"
            'exec ip netns exec $name sh -c "$*"\n'
        )
        launcher.chmod(0o755)
        hosts = [
            "-launcher",
            "ssh",
            "-launcher-exec",
            str(launcher),
            "-hosts",
            "10.213.77.1,10.213.77.2",
            "-ppn",
            "1",
        ]
        # mpiexec itself is in one of the two
        return run_ranks(2, options, ["ip", "netns", "exec", names[0]], ["-localhost", "10.213.77.1", *hosts])
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


if __name__ == "__main__":
    main()
