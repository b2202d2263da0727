"""Plans: a network made fast for one input shape.

``plan = compile(net, input_shape, training=True)`` looks at the whole network once, and returns an object
whose ``forward`` and ``backward`` do what the network's own do, on the same parameters and gradients, several
times as fast. Four ideas, a file each:

==================  ======================================================================================
``grouping.py``     which layers are computed together
``choosing.py``     which algorithm for which layer
``memory.py``       one block of memory for everything, shared by what never lives at the same time
``steps.py``      lists of array calls on worker threads, with barriers
==================  ======================================================================================

``plan.py`` puts them together. ``cpu/`` has the algorithms for a CPU, and ``cuda/`` those for a GPU, where a
row of kernel launches that is recorded once takes the place of the lists of array calls. Begin with the
``__init__.py`` of either.
"""

from scratchnet.plans.plan import Plan, compile

__all__ = ["Plan", "compile"]
