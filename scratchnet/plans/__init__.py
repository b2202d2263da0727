"""Plans: a network made fast for one input shape.

``plan = compile(net, input_shape, training=True)`` looks at the whole network once, and returns an object
whose ``forward`` and ``backward`` do what the network's own do, on the same parameters and gradients, several
times as fast. A file each:

==================  ======================================================================================
``registry.py``     which kernels compute which layers
``grouping.py``     which layers are computed together
``kernel.py``       what kernels and maps are, wherever they compute
``memory.py``       one block of memory for everything, shared by what is never in use at the same time
``plan.py``         a plan: what it holds on to, when it is stale, how it runs
``compile.py``      the door
``describe.py``     tables of a plan, and the warning of layers without a kernel
==================  ======================================================================================

``cpu/`` has the kernels for a CPU, lists of array calls on worker threads, and ``cuda/`` those for a GPU,
where launches are recorded once as graphs. Begin with the ``__init__.py`` of either.
"""

from scratchnet.plans.compile import Sizes, compile, memory
from scratchnet.plans.cpu.elementwise import Elementwise
from scratchnet.plans.cpu.kernel import Kernel
from scratchnet.plans.cpu.plan import weight_memory_budget
from scratchnet.plans.cpu.windows import Windows
from scratchnet.plans.plan import Plan
from scratchnet.plans.registry import register

__all__ = [
    "Elementwise",
    "Kernel",
    "Plan",
    "Sizes",
    "Windows",
    "compile",
    "memory",
    "register",
    "weight_memory_budget",
]
