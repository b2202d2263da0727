"""Data-parallel training: many processes, each with a part of every batch, and one network.

``mpirun -n 4 scratchnet train --distributed`` starts four processes, *ranks*. Each computes the gradients of
its rows of the batch; the sums of all ranks' gradients are those of the whole batch; and so all ranks make
the same step. All gradients of a network lie in one array, and backward fills it from its end, the last
layer, to its beginning. So it is added up in slices, and each slice is on its way as soon as its layers are
done, while earlier layers still compute::

    time ->         backward                                        wait
    computes        classifier.6  classifier.3   conv 13  ...  conv 1 |
    slice 5 (end)               =======>                              |
    slice 4                                 =======>                  |
    slice 3                                            =======>       |
    slice 2                                                  =========|
    slice 1 (begins with conv 1)                                      |======> step

Only what is left when backward ends costs time: the last slice, and what the link is too slow for.

==================  ==================================================================================
``communicator``    what ranks tell each other: MPI, on host arrays
``nccl``            the same with gradients that stay on GPUs
``reduction``       the slices, and when each is sent
``data_parallel``   what a trainer does together: shards, losses, statistics, stopping, files
``agreement``       what has to be the same on all ranks, compared before the first step
==================  ==================================================================================

Examples
--------
>>> from scratchnet.training import Trainer
>>> def train(net, optimizer, schedule, images, validation):
...     with join() as ranks:
...         parallel = DataParallel(ranks)
...         Trainer(net, optimizer, schedule, images, validation, "runs/mine", parallel=parallel).fit(15)
"""

from scratchnet.distributed.communicator import Communicator, DistributedError, join, started_by_mpirun
from scratchnet.distributed.data_parallel import DataParallel
from scratchnet.distributed.scaling import ScaledRate

__all__ = ["Communicator", "DataParallel", "DistributedError", "ScaledRate", "join", "started_by_mpirun"]
