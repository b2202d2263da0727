"""Grouping: which layers of a network are computed together.

A convolution, the following activation and the pooling after it are one group: the result of the product is
pooled and activated while it is in the cache, and only the pooled map is ever stored. Batch normalisation
needs the statistics of the whole batch before the first number can be normalised, so in training it begins a
group of its own, with the activation and pooling after it; in evaluation, where its statistics are fixed, it
is part of the convolution before it. A linear layer takes along its activation and its dropout.

All of that follows from what the registered kernels say of themselves (``takes``, ``role``, ``may_follow``).
Nothing here knows a layer, how it is computed, or on what.
"""

from __future__ import annotations

from scratchnet.layers import Layer, leaves
from scratchnet.plans.kernel import ROLES, Group, PlanContext, Registrable
from scratchnet.plans.registry import keeps_shape, kernel_for, kernels_for


def group(net: Layer, input_shape: tuple[int, ...], device: str, context: PlanContext) -> list[Group]:
    """Divide a network into groups, for the kernels of a device ("cpu" or "cuda"; "" for none).

    Examples
    --------
    >>> from scratchnet.models import vgg11
    >>> from scratchnet.plans import compile
    >>> net = vgg11(num_classes=10, image_size=32, width=0.125, classifier_width=64)
    >>> for g in compile(net, (2, 32, 32, 3), training=True).groups[-5:]:
    ...     print(g.name, g.title)
    features.18-20 Conv2d+ReLU+MaxPool2d
    pool Flatten
    classifier.0-2 Linear+ReLU+Dropout
    classifier.3-5 Linear+ReLU+Dropout
    classifier.6 Linear
    """
    rest = [(path or type(layer).__name__, layer) for path, layer in leaves(net, net.path)]
    shapes = shapes_along(rest, input_shape)
    kernels: list[tuple[type[Registrable], ...]] = []
    for k, (path, layer) in enumerate(rest):
        lone = Group(layer, [layer], [path], shapes[k], shapes[k + 1], kernels_for(layer, device))
        if any(kernel.role == "activation" for kernel in lone.kernels):  # chosen now: groups take it along
            chosen = kernel_for([lone], 0, context) if shapes[k] == shapes[k + 1] else None
            lone.kernels = () if chosen is None else (chosen,)
        kernels.append(lone.kernels)
    groups: list[Group] = []
    i = 0
    while i < len(rest):
        path, layer = rest[i]
        last = i + 1 == len(rest)
        if any(kernel.does_nothing(layer) for kernel in kernels[i]) and (groups or not last):
            i += 1
            continue
        g = Group(layer, [layer], [path], shapes[i], shapes[i + 1], kernels[i])
        groups.append(g)
        if kernels[i] and kernels[i][0].role == "activation":
            g.activation, g.activation_kernel = layer, kernels[i][0]
        takes = {role for kernel in kernels[i] for role in kernel.takes}
        i += 1
        for role in ROLES:
            if role not in takes or i == len(rest) or not kernels[i]:
                continue
            (path, layer), kernel = rest[i], kernels[i][0]
            if kernel.role != role or not kernel.may_follow(g, layer):
                continue
            setattr(g, role, layer)
            if role == "activation":
                g.activation_kernel = kernel
            g.layers.append(layer)
            g.paths.append(path)
            g.output_shape = shapes[i + 1]
            i += 1
    return groups


def shapes_along(chain: list[tuple[str, Layer]], input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes before the first layer, between layers, and after the last one; or raise ValueError.

    Where a layer does not fit, and one before it has no ``output_shape`` of its own, that one is to blame:
    its output was taken to be shaped as its input.
    """
    shapes = [tuple(input_shape)]
    for k, (_, layer) in enumerate(chain):
        try:
            after = tuple(layer.output_shape(shapes[-1]))
        except (TypeError, ValueError) as error:
            # Those that do not say what becomes of a shape, and whose kernels do not, either.
            silent = [
                other
                for _, other in chain[:k]
                if type(other).output_shape is Layer.output_shape and not keeps_shape(other)
            ]
            if not silent and layer.label in str(error):
                raise
            if not silent:
                raise ValueError(f"{layer.label}: output_shape({shapes[-1]}) fails: {error}") from error
            name = type(silent[-1]).__name__
            raise ValueError(
                f"{silent[-1].label} has no output_shape, so that its output was taken to be shaped as its "
                f"input, which does not fit: {error}: define output_shape in {name}"
            ) from error
        if min(after) < 1:
            raise ValueError(
                f"{layer.label}: {shapes[-1]} is too small, nothing would be left of it: {after}"
            )
        shapes.append(after)
    return shapes
