"""VGG16 from first principles, in NumPy and CuPy: no framework underneath, every gradient written by hand."""

__version__ = "0.1.0"
