"""Descriptions of networks in JSON, from which they can be built again.

A layer of this package is described by its class and its settings, a chain by the layers that it applies, by
their names::

    {"class": "Sequential", "layers": {"0": {"class": "Conv2d", "settings": {"in_channels": 3, ...}}, ...}}

Nothing else can be built from a description: no file that is read can run code. In a file's header stands

``model``
    for a VGG: its settings; and ``changes``, the descriptions of layers that were replaced since, by path.
``chain``
    for any other chain: its description.
``network``
    for a network with layers from outside this package: its class, which only its owner can build.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from scratchnet import layers
from scratchnet.layers import Chain, Layer, Parameter, Sequential, assemble, chain_of
from scratchnet.models import VGG

KINDS = {name: vars(layers)[name] for name in {*layers.__all__} - {"Layer", "Chain", "Sequential"}}
KINDS = {name: kind for name, kind in KINDS.items() if isinstance(kind, type) and issubclass(kind, Layer)}

ENTRIES = {"model", "changes", "chain", "network"}  # of a header, that say what the network is

NO_SETTINGS = {"dtype", "rng", "seed", "init", "output_scale"}  # arguments that say what weights begin as

Description = dict[str, Any]


class NamedChain(Chain):
    """A chain of layers with names: a network that was of a class of its own when it was saved.

    >>> from scratchnet.layers import Flatten, Linear
    >>> list(NamedChain({"flatten": Flatten(), "head": Linear(12, 2)}).parameters())
    ['head.weight', 'head.bias']
    """

    def __init__(self, named: Mapping[str, Layer], dtype: DTypeLike = "float32"):
        super().__init__(dtype=dtype)
        self.named = dict(named)
        assemble(self)

    def chain(self) -> Sequence[Layer]:
        """Return the layers, first to last."""
        return list(self.named.values())

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers with their names."""
        return iter(self.named.items())

    __repr__ = Sequential.__repr__


def describe(layer: Layer) -> Description | None:
    """Describe a network that consists of layers of this package; None if it has any other.

    >>> from scratchnet.layers import ReLU
    >>> describe(Sequential(ReLU()))
    {'class': 'Sequential', 'layers': {'0': {'class': 'ReLU', 'settings': {}}}}
    """
    chain = chain_of(layer)
    if chain is None:
        ours = KINDS.get(type(layer).__name__) is type(layer)
        changed = {"forward", "backward"} & vars(layer).keys()
        return {"class": type(layer).__name__, "settings": layer.settings()} if ours and not changed else None
    names = {id(child): name for name, child in layer.children()}
    described = {names.get(id(child), ""): describe(child) for child in chain}
    state_of_its_own = layer.buffer_names or any(isinstance(v, Parameter) for v in vars(layer).values())
    if state_of_its_own or not len(chain) == len(names) == len(described) or None in described.values():
        return None
    indexed = list(described) == [str(i) for i in range(len(described))]
    return {"class": "Sequential" if indexed else "Chain", "layers": described}


def build(description: Description, dtype: DTypeLike = "float32") -> Layer:
    """Build the network of a description; raise ValueError or TypeError if it describes none."""
    if not isinstance(description, dict) or not isinstance(description.get("class"), str):
        raise ValueError("a layer is described by its class")
    name, inner, settings = (description.get(key) for key in ("class", "layers", "settings"))
    if name in ("Sequential", "Chain"):
        if not isinstance(inner, dict):
            raise ValueError(f"a {name} is described by its layers")
        if strange := [key for key in inner if not key.isprintable()]:
            raise ValueError(f"{strange[0]!r} is no name of a layer")
        named = {key: build(each, dtype) for key, each in inner.items()}
        return Sequential(*named.values(), dtype=dtype) if name == "Sequential" else NamedChain(named, dtype)
    if name not in KINDS:
        raise ValueError(f"there is no layer {name!r}")
    if not isinstance(settings, dict) or NO_SETTINGS & settings.keys():
        raise ValueError(f"a {name} is described by its settings")
    return KINDS[name](**settings, dtype=dtype)


def differences(one: Description, other: Description, path: str = "") -> dict[str, Description]:
    """Return the parts in which a network differs from another, by path, as the first has them."""
    if one == other:
        return {}
    inner, others = one.get("layers", {}), other.get("layers", {})
    if not inner or one["class"] != other["class"] or list(inner) != list(others):
        return {path: one}
    found: dict[str, Description] = {}
    for name, part in inner.items():
        found |= differences(part, others[name], f"{path}.{name}".lstrip("."))
    return found


def replace(net: Layer, path: str, layer: Layer) -> None:
    """Put a layer in the place of another, such as ``classifier.6``."""
    where, _, name = path.rpartition(".")
    owner = dict(net.walk()).get(where)
    if owner is None or name not in dict(owner.children()):
        raise ValueError(f"there is no layer {path!r}")
    if isinstance(owner, Sequential):
        owner.layers[int(name)] = layer
    else:
        setattr(owner, name, layer)
    assemble(net)


# The entries of a file's header


def entries(net: Layer) -> dict[str, Any]:
    """Return the entries of a header that say what the network is.

    >>> from scratchnet.layers import Linear, ReLU
    >>> vgg = VGG("vgg11", num_classes=10, image_size=32, width=0.125, classifier_width=16)
    >>> replace(vgg, "classifier.6", Linear(16, 2))
    >>> entries(vgg)["changes"]
    {'classifier.6': {'class': 'Linear', 'settings': {'in_features': 16, 'out_features': 2, 'bias': True}}}
    >>> class Mine(ReLU):
    ...     pass
    >>> entries(Sequential(Mine()))
    {'network': 'Sequential'}
    """
    described = describe(net)
    if described is None or "layers" not in described:
        return {"network": type(net).__name__}
    original = describe(VGG(**net.settings())) if type(net) is VGG else None
    changes = {"": described} if original is None else differences(described, original)
    if "" in changes:
        return {"chain": described}
    return {"model": net.settings()} | ({"changes": changes} if changes else {})


def rebuilt(info: Mapping[str, Any], dtype: DTypeLike) -> Chain:
    """Return the network that a header describes, without its weights."""
    if "model" in info:
        if NO_SETTINGS & info["model"].keys():
            raise ValueError("a VGG is described by its settings")
        vgg = VGG(**info["model"], dtype=dtype)
        for path, description in info.get("changes", {}).items():
            replace(vgg, path, build(description, dtype))
        return vgg
    net = build(info["chain"], dtype)
    if not isinstance(net, Chain):
        raise ValueError("it is a single layer")
    return net


def check_that_it_rebuilds(net: Layer, info: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a header, as read back from JSON, describes this network and no other."""
    if "network" in info:
        return
    again = rebuilt(info, next((p.dtype for p in net.parameters().values()), net.dtype))
    wanted, built = shapes(net), shapes(again)
    unfit = f"{type(net).__name__} cannot be saved"
    for name in [*wanted, *built]:
        one, other = wanted.get(name, "absent"), built.get(name, "absent")
        if one != other:
            raise ValueError(f"{unfit}: {name} is {one}, where the settings of its layers make it {other}")
    if describe(again) != json.loads(json.dumps(describe(net), default=plain)):
        raise ValueError(f"{unfit}: its settings do not build the same network")


def shapes(net: Layer) -> dict[str, tuple[int, ...]]:
    """Return the shapes of everything that a file holds, parameters and running statistics."""
    shapes = {name: p.shape for name, p in net.parameters().items()}
    return shapes | {name: tuple(array.shape) for name, array in net.buffers().items()}


def plain(value: Any) -> Any:
    """Turn a number or array of NumPy's into what JSON can hold."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a file's header cannot hold {type(value).__name__}")
