"""A program that runs in many processes, and speaks as one: ``--distributed``."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

from scratchnet import backend
from scratchnet.cli import program
from scratchnet.distributed import Communicator, DataParallel, ScaledRate, join, started_by_mpirun
from scratchnet.distributed.agreement import require_agreement
from scratchnet.distributed.nccl import with_gpus
from scratchnet.training.alone import Alone

WARMUP_EPOCHS = 5  # Goyal et al. 2017, sec. 2.2
SECONDS_TO_SAY = 5.0
MAY_DIFFER = {"run_dir", "data_dir", "data_memory"}  # from one host to another

_ranks: Communicator | None = None


def options_of_all(
    distributed: bool, given: dict[str, Any], resolve: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what ``resolve`` returns: with ``--distributed`` what it returns on rank 0, for all ranks.

    The other ranks print nothing from then on, but their own failures. ValueError if a launcher has started
    processes that would not know of each other, or they were given different arguments.
    """
    global _ranks
    if not distributed:
        size, rank = started_by_mpirun()
        if size > 1:
            if rank:  # the first one says it; an earlier end of another might end it before it has
                time.sleep(SECONDS_TO_SAY)
                raise SystemExit(2)
            raise ValueError(f"{size} processes were started, and each would train alone: add --distributed")
        return resolve()
    _ranks = join()
    program.failing = fail_together
    if _ranks.rank:
        sys.stdout, program.quiet = open(os.devnull, "w"), True  # noqa: SIM115  (it stays open)
    arguments = {f"--{name.replace('_', '-')}": v for name, v in given.items() if name not in MAY_DIFFER}
    require_agreement(_ranks, arguments)
    options = _ranks.on_writer(resolve)
    if not options["resume"] and options["ranks"] is None:
        options["ranks"] = _ranks.size
    return options | {name: given[name] for name in MAY_DIFFER & given.keys()}


def parallel(options: SimpleNamespace) -> Alone:
    """Return what divides the training, as the options say."""
    if _ranks is None:
        return Alone()
    device = backend.get(options.backend)
    ranks = with_gpus(_ranks, device.xp) if device.name == "cupy" else _ranks
    return DataParallel(ranks, options.sync_batch_norm)


def images_per_rank(options: SimpleNamespace) -> int:
    """Return how many images of a batch one process computes, at most."""
    return -(-options.batch_size // (_ranks.size if _ranks else 1))


def scaled(
    rate: Callable[[int], float], options: SimpleNamespace, steps_per_epoch: int
) -> Callable[[int], float]:
    """Return the schedule, with ``--scale-lr`` times the number of ranks with which the run began."""
    if not options.scale_lr:
        return rate
    return ScaledRate(rate, options.ranks or 1, WARMUP_EPOCHS * steps_per_epoch)


def fail_together(error: BaseException, status: int, message: str) -> NoReturn:
    """End all ranks, with one message: rank 0's where all have met the error, else that of this one."""
    ranks = _ranks
    assert ranks is not None
    met_by_all = getattr(error, "met_by_all", False) or ranks.size == 1
    if message and (ranks.rank == 0 or not met_by_all):
        program.quiet = False
        program.complain(message if met_by_all else f"rank {ranks.rank} of {ranks.size}: {message}")
    if not message:
        traceback.print_exception(error)
    if not met_by_all:
        ranks.abort(status)
    sys.exit(status)
