"""Kernels for the CPU, one technique per file. In the order in which to read them:

===================  =====================================================================================
``calls.py``         lists of array calls, recorded once and run by several workers
``layouts.py``       how feature maps lie in memory
``kernel.py``        what a kernel has to offer
``padding.py``       who writes the zeros around an image
``masking.py``       who multiplies a gradient by the derivative of an activation
``elementwise.py``   activations: the base of their kernels, and ReLU
``windows.py``       pooling: the base of its kernels, and max pooling
``epilogue.py``      what follows a convolution: pooling, activation, storing
``convolution.py``   what the kernels of a convolution share
``fold.py``          batch normalisation made part of the convolution before it, for inference
``im2col.py``        any convolution as one matrix product; the plainest
``blocks.py``        large matrix products as stacks of small ones
``winograd/``        3 x 3 convolutions with a quarter of the multiplications
``toeplitz.py``      the same at 2 x 2 pixels
``first_conv.py``    the first convolution, with its three channels
``linear.py``        fully connected layers
``norm.py``          batch normalisation
``misc_kernels.py``  kernels with little arithmetic, and layers without a kernel
===================  =====================================================================================

Around them: ``planes.py`` spreads matrices over the cache, ``by_images.py`` is the base of kernels that take
some images at a time, ``choosing.py`` and ``measuring.py`` decide what goes where, ``plan.py`` puts all
together.
"""
