"""The registry: which kernels compute which layers."""

from __future__ import annotations

from scratchnet.layers import Layer
from scratchnet.plans.kernel import ROLES, Group, PlanContext, Registrable

DEVICES = "cpu", "cuda"

_registered: dict[str, dict[type[Layer], list[type[Registrable]]]] = {device: {} for device in DEVICES}


def register(
    layer_class: type[Layer], cpu: type[Registrable] | None = None, cuda: type[Registrable] | None = None
) -> None:
    """Teach plans to compute a class of layers.

    Objects of subclasses are computed by it, too, unless a subclass or the object itself has another
    ``forward``, ``backward`` or ``output_shape``.

    Parameters
    ----------
    layer_class : type
        A subclass of Layer.
    cpu, cuda : type, optional
        What computes it on either device: a subclass of ``Elementwise``, ``Windows`` or ``Kernel`` (a GPU has
        a ``Kernel`` of its own). There may be several for one class of layers; of those that suit, the one
        that was registered last is chosen. One whose ``algorithm`` has been registered for this class before
        takes its place.

    Examples
    --------
    >>> from scratchnet import plans
    >>> from scratchnet.layers import Layer
    >>> class Square(Layer):
    ...     def forward(self, x):
    ...         return self.save_for_backward(x * x, x)
    ...
    ...     def backward(self, dy):
    ...         return 2 * dy * self.saved(dy)
    >>> class SquareRoot(Square):
    ...     def forward(self, x):
    ...         return self.save_for_backward(x**0.5, x)
    >>> class SquareKernel(plans.Elementwise):
    ...     algorithm = "square"
    >>> plans.register(Square, cpu=SquareKernel)
    >>> [kernel.algorithm for kernel in kernels_for(Square(), "cpu")], kernels_for(SquareRoot(), "cpu")
    (['square'], ())
    """
    for device, kernel in zip(DEVICES, (cpu, cuda), strict=True):
        if kernel is None:
            continue
        if not kernel.algorithm:
            raise ValueError(f"{kernel.__name__} needs an `algorithm`, the name of what it does")
        known = _registered[device].setdefault(layer_class, [])
        known[:] = [kernel, *(other for other in known if other.algorithm != kernel.algorithm)]


def kernels_for(layer: Layer, device: str) -> tuple[type[Registrable], ...]:
    """Return what was registered for a layer's class, or else the nearest class that it derives from.

    None where a subclass or the object itself changes a pass, or where ``device`` is "".
    """
    registered = _registered.get(device, {})
    kind = next((kind for kind in type(layer).__mro__ if kind in registered), None)
    if kind is None or any(
        getattr(type(layer), name) is not getattr(kind, name) or name in vars(layer)
        for name in ("forward", "backward", "output_shape")
    ):
        return ()
    return tuple(registered[kind])


def is_known(layer: Layer) -> bool:
    """Tell whether there are kernels, on any device, for a class that the layer is of."""
    return any(kind in known for kind in type(layer).__mro__ for known in _registered.values())


def algorithms(device: str) -> list[str]:
    """Return the names of all registered kernels of a device."""
    return sorted({kernel.algorithm for known in _registered[device].values() for kernel in known})


def kernel_for(groups: list[Group], i: int, context: PlanContext) -> type[Registrable] | None:
    """Return what computes group i: by the context's algorithm where it can, otherwise what suits best.

    None if it is a layer that has to run by its own passes. A group of several layers needs a kernel.
    """
    group = groups[i]
    taken = {role for role in ROLES if getattr(group, role) not in (None, group.main)}
    able = [k for k in group.kernels if taken <= set(k.takes) and k.supports(groups, i, context)]
    named = (kernel for kernel in able if kernel.algorithm == context.algorithm)
    suited = (kernel for kernel in able if kernel.suits(groups, i, context))
    chosen = next(named, None) or next(suited, None)
    if chosen is None and taken:
        names = ", ".join(kernel.__name__ for kernel in group.kernels)
        raise ValueError(f"{group.name} ({group.title}): none of {names} supports all of it")
    return chosen
