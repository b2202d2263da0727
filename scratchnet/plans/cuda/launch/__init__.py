"""Launch wrappers: for each ``kernels/NAME.cu`` the Python functions that launch its kernels, in ``NAME.py``.

Each function checks its arrays, chooses a variant of its kernel, and launches it. The mathematics stands in
the ``.cu`` file; here is only what a launch needs. ``compiling.py`` compiles and caches kernels,
``common.py`` has the checks and the grids. Symbols:

    N  images in the batch      C  channels       OH OW  height and width of the output or the pooled map
    H  W   height and width     R  rows of a matrix, such as the N*H*W pixels of a map

All arrays are C-contiguous and on the GPU; kernels get their addresses as they are. Maps are float32,
channels last. What is said to have only a shape is float32, too. *Operands*, what a matrix
product reads, are float32 or bfloat16; not every version of CuPy knows bfloat16, so they are arrays of uint16
that hold its bits (see ``operands.operand_dtype``). A function that writes operands sees from the array which
of the two is wanted. A chunk of a batch is a slice of these arrays.

Nothing here allocates memory, reads from the GPU or waits for it, so every function may be called while a
CUDA graph is captured, once its kernel has run before (its first launch compiles and loads it).
"""
