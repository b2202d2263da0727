"""The plan of a GPU, one technique per file. In the order in which to read them:

====================  ====================================================================================
``kernels/*.cu``      what the GPU runs, each file with its mathematics, its tiling and its limit
``launch/*.py``       for each of them the Python functions that launch its kernels
``matmul.py``         matrix products by cuBLAS
``weights.py``        the parameters as products read them, in float32 or bfloat16
``kernel.py``         what all kernels of a plan have in common
``conv.py``           convolution as products, between im2col and what follows it
``linear.py``         fully connected layers, with ReLU and dropout
``norm.py``           batch normalisation
``misc_kernels.py``   layers with little arithmetic, and layers that have no kernel
``graphs.py``         launches that are recorded once and replayed
``plan.py``           all of it together
``training_step.py``  a whole training step as one graph, with the data on the GPU
``capability.py``     which GPUs run plans, and in which precision
``selfcheck.py``      whether a plan computes on this GPU what the layers compute in NumPy
====================  ====================================================================================

Maps lie as everywhere else in scratchnet, (N, H, W, C) in float32. Nothing adds up with atomics, so that the
same input gives the same bits, every time.

Layers that no group takes along are planned too: ReLU, Dropout, GlobalAvgPool2d, Flatten, BatchNorm2d, and
MaxPool2d with windows of 2 x 2 side by side. Other windows, other people's layers without a CUDA kernel, and
all layers of a float64 network run by their own forward and backward, and ``compile`` warns of it.

None of this has run on a GPU yet. The kernels are compiled for one by NVRTC, and run on an emulator; the rest
runs on a stand-in for CuPy (see ``tests/``).
"""
