"""The registry: which kernels compute which layers."""

from __future__ import annotations

from scratchnet.layers import Layer
from scratchnet.plans.kernel import ROLES, Group, Kernel, PlanContext, Registrable

DEVICES = "cpu", "cuda"

_registered: dict[str, dict[type[Layer], list[type[Registrable]]]] = {device: {} for device in DEVICES}
_roles: dict[tuple[str, str], type[Registrable]] = {}  # by device and role, the first kernel, the package's


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
        takes its place. For a layer with parameters only a ``Kernel`` counts: the others know
        the gradient of the input alone.

    Raises
    ------
    ValueError
        If these are no such classes, or a kernel has no name, or a role that only the package's own have.

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
    ...
    ...     def record_forward(self, calls, x):
    ...         calls(np.multiply, x, x, out=x)
    >>> plans.register(Square, cpu=SquareKernel)
    >>> [kernel.algorithm for kernel in kernels_for(Square(), "cpu")], kernels_for(SquareRoot(), "cpu")
    (['square'], ())
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, Layer)):
        raise ValueError(f"kernels are registered for a subclass of Layer, not for {layer_class!r}")
    for device, kernel in zip(DEVICES, (cpu, cuda), strict=True):
        if kernel is None:
            continue
        if not (isinstance(kernel, type) and issubclass(kernel, Registrable) and kernel.device == device):
            raise ValueError(f"{device}={kernel!r} is no class of kernels for that device")
        if kernel.algorithm in ("", "auto"):
            name = f"a name of its own, not {kernel.algorithm!r}"
            raise ValueError(f"{kernel.__name__} needs an `algorithm`, {name}")
        own = _roles.setdefault((device, kernel.role), kernel)
        if kernel.role != kernel.computes_role and own is not kernel:
            raise ValueError(
                f"{kernel.__name__} has the role {kernel.role!r}: groups that take its layer along would "
                f"compute it as {own.__name__} does, so leave the role out"
            )
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
    learns = bool(layer.parameters())
    return tuple(kernel for kernel in registered[kind] if issubclass(kernel, Kernel) or not learns)


def keeps_shape(layer: Layer) -> bool:
    """Tell whether kernels know, on any device, that the layer's output is shaped as its input."""
    kernels = [kernel for device in DEVICES for kernel in kernels_for(layer, device)]
    return any(kernel.role not in ("", "pool") for kernel in kernels)


def algorithms(device: str) -> list[str]:
    """Return the names of all registered kernels of a device."""
    kernels = [kernel for known in _registered[device].values() for kernel in known]
    return sorted({name for kernel in kernels for name in (kernel.algorithm, kernel.family) if name})


def kernel_for(groups: list[Group], i: int, context: PlanContext) -> type[Registrable] | None:
    """Return what computes group i: by the context's algorithm where it can, otherwise what suits best.

    None if it is a layer that has to run by its own passes. A group of several layers needs a kernel.
    """
    group = groups[i]
    if group.activation is group.main:
        return group.activation_kernel
    taken = {role for role in ROLES if getattr(group, role) not in (None, group.main)}
    able = [k for k in group.kernels if taken <= set(k.takes) and k.supports(groups, i, context)]
    named = [kernel for kernel in able if context.algorithm in (kernel.algorithm, kernel.family)]
    suited = [kernel for kernel in named or able if kernel.suits(groups, i, context)]
    chosen = next(iter(suited or named), None)
    if chosen is None and taken:
        names = ", ".join(kernel.__name__ for kernel in group.kernels)
        raise ValueError(f"{group.name} ({group.title}): none of {names} supports all of it")
    return chosen
