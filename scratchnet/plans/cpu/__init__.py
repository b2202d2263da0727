"""The algorithms for the CPU, one technique a file. In the order in which to read them:

==================  ======================================================================================
``layouts.py``         how feature maps lie in memory
``kernel.py``       what an algorithm has to offer
``epilogue.py``     what follows a convolution: ReLU, pooling, storing
``fold.py``         batch normalisation made part of the convolution before it, for inference
``im2col.py``       any convolution as one matrix product; the plainest
``blocks.py``       large matrix products as stacks of small ones
``winograd/``       3 x 3 convolutions with a quarter of the multiplications
``toeplitz.py``     the same at 2 x 2 pixels
``first_conv.py``          the first layer, with its three channels
``linear.py``       fully connected layers
``norm.py``         batch normalisation
``misc_kernels.py``       the rest, and layers that are not known here
==================  ======================================================================================
"""
