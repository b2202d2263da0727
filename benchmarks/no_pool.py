"""A plugin, ``pytest -p no_pool``: every array has its own allocation, and a sanitizer sees where it ends."""

import cupy

cupy.cuda.set_allocator(None)
