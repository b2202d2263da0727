"""Layers: parameters, and what the backward pass needs to remember. The mathematics is in ``functional/``."""

from scratchnet.layers.activation import ReLU
from scratchnet.layers.base import Layer
from scratchnet.layers.container import Chain, Sequential
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.dropout import Dropout
from scratchnet.layers.linear import Flatten, Linear
from scratchnet.layers.norm import BatchNorm1d, BatchNorm2d
from scratchnet.layers.pool import GlobalAvgPool2d, MaxPool2d
from scratchnet.layers.tree import assemble, chain_of, leaves
from scratchnet.parameters import Parameter

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "Chain",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Parameter",
    "ReLU",
    "Sequential",
    "assemble",
    "chain_of",
    "leaves",
]
