"""Every public name says what it takes, and shows how it is used (the examples run as doctests)."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest

import scratchnet

# Modules that a user does not import: what a plan, a check, a page or a program is made of. Their names are
# read where they are used, and one sentence will do.
INTERNAL = re.compile(
    r"scratchnet\.(layers\.(checking|summary)|gradcheck\.(conduct|measure|report)|initialise|state|workers|checks|"
    r"tables|untrusted|pickles|header|rebuild|recognise|tensorfile|plans\..*|cli(\..*)?|explain\..*|report\..*|doctor\.(context|rules)|"
    r"interop\.((onnx|torch)_.*|imagenet|foreign)|distributed\.(agreement|nccl)|lessons\.answers(\..*)?|optim\.base|"
    r"training\.(arguments|config|console|device|engine|evaluation|finite|options|saving|snapshot|stopping)|data\.(download|web|_.*))"
)


def _defined_in(module, thing):
    return getattr(thing, "__module__", None) == module.__name__


def public_names():
    """Yield names and things: what ``__all__`` lists, or what a module defines without an underscore."""
    seen = set()
    modules = [m.name for m in pkgutil.walk_packages(scratchnet.__path__, "scratchnet.")]
    for module in (importlib.import_module(name) for name in modules if not INTERNAL.fullmatch(name)):
        own = [name for name, thing in vars(module).items() if _defined_in(module, thing)]
        for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
            thing = getattr(module, name)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing not in seen:
                seen.add(thing)
                yield f"{thing.__module__}.{thing.__qualname__}", thing


NAMES = dict(sorted(public_names()))


def is_error(thing):
    return inspect.isclass(thing) and issubclass(thing, BaseException)


def is_record(thing):
    """Tell whether it only holds what a function returns, whose own example shows it."""
    return inspect.isclass(thing) and (dataclasses.is_dataclass(thing) or hasattr(thing, "_fields"))


def undocumented(thing):
    """The parameters (of a record: the fields) that no section describes."""
    doc = inspect.getdoc(thing) or ""
    sections = re.findall(r"^(?:Parameters|Attributes)\n-+\n(.*?)(?=^\S[^\n]*\n---|\Z)", doc, re.M | re.S)
    described = {
        name.strip().lstrip("*")
        for heading in re.findall(r"^(\S.*?)(?: : .*)?$", "\n".join(sections), re.M)
        for name in heading.split(",")
    }
    if hasattr(thing, "__signature__") and "those of ``VGG``" in doc:
        return []  # vgg11 to vgg19 borrow their signature, and say so
    parameters = inspect.signature(thing).parameters.values()
    return [
        p.name
        for p in parameters
        if p.kind is not p.VAR_KEYWORD and not p.name.startswith("_") and p.name not in described
    ]


def test_there_are_names_from_every_floor():
    for name in ("functional.im2col", "layers.Conv2d", "models.VGG", "plans.compile", "checkpoint.save"):
        module, _, function = name.partition(".")
        assert getattr(importlib.import_module(f"scratchnet.{module}"), function) in NAMES.values()
    assert len(NAMES) > 100


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_sentence_and_describes_what_it_takes(name):
    doc = inspect.getdoc(NAMES[name])
    assert doc and doc.partition("\n\n")[0].rstrip().endswith((".", ":"))
    if not is_error(NAMES[name]):
        assert undocumented(NAMES[name]) == []


@pytest.mark.parametrize("name", [n for n, t in NAMES.items() if not (is_error(t) or is_record(t))])
def test_it_shows_how_it_is_used(name):
    doc = inspect.getdoc(NAMES[name])
    assert re.search(r"^Examples\n--------\n(.*\n)*>>> ", doc, re.M), "it has no Examples section"


def test_a_parameter_without_a_word_is_noticed():
    def f(a, b):
        """Do it.

        Parameters
        ----------
        a : int

        Returns
        -------
        b : int
        """

    assert undocumented(f) == ["b"]
