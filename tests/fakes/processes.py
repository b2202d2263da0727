"""Threads that stand in for processes which exchange sums."""

from __future__ import annotations

import threading

import numpy as np


class Meeting:
    """What threads, one for each rank, add up together."""

    def __init__(self, ranks):
        self.ranks, self.barrier, self.parts = ranks, threading.Barrier(ranks), [None] * ranks

    def sum(self, rank, x):
        self.parts[rank] = np.array(x)
        self.barrier.wait(timeout=10)
        total = sum(self.parts[1:], self.parts[0])
        self.barrier.wait(timeout=10)
        return total

    def run(self, function):
        """Call ``function(rank)`` in a thread for each rank, and return the results."""
        results, errors = [None] * self.ranks, []

        def call(rank):
            try:
                results[rank] = function(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results
