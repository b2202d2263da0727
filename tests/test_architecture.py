"""The house keeps to its plan: imports go downward, no two modules import each other, no file is long."""

import ast
from pathlib import Path

import pytest

import scratchnet

PACKAGE = Path(scratchnet.__file__).parent
TESTS = Path(__file__).parent

# From the ground up. A module may import from its own floor and from those before it.
FLOORS = [
    [
        "cores",
        "backend",
        "cuda_errors",
        "pickles",
        "workers",
        "system",
        "parameters",
        "initialise",
        "checks",
        "tables",
        "untrusted",
        "locks",
        "digests",
    ],
    ["functional"],
    ["layers", "losses", "clipping", "optim", "gradcheck", "inspection", "state"],
    ["plans"],
    ["models", "checkpoint", "header", "rebuild", "recognise", "tensorfile"],
    ["interop"],
    ["training"],
    ["distributed"],
    ["report", "explain", "doctor", "lessons"],
    ["cli"],
]
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}
# What data/, which stands apart and hands out host arrays, may use.
BESIDE_DATA = {"backend", "checks", "locks", "pickles", "system", "tables", "untrusted", "workers"}
PROGRAM = "__main__"  # of a package: starts the command line, and may import cli


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_for_types_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def statements(node):
    """All nodes, those within functions too, but not what is imported only to name types."""
    for child in ast.iter_child_nodes(node):
        if not is_for_types_only(child):
            yield child
            yield from statements(child)


def imports(module):
    """The modules of the package that a module imports, at its top or anywhere within."""
    found = set()
    parts = module.split(".")
    package = parts if FILES[module].name == "__init__.py" else parts[:-1]
    for node in statements(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                found |= {inner if inner in FILES else origin} & FILES.keys()
    return found - {module}


IMPORTS = {module: imports(module) for module in FILES}


def floor_of(module):
    return module.split(".")[1] if "." in module else ""


def reaches(start, goal):
    """Tell whether a chain of imports leads from one module to another."""
    seen, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module == goal:
            return True
        if module not in seen:
            seen.add(module)
            waiting += IMPORTS[module]
    return False


def test_the_walk_finds_imports_of_every_kind():
    assert {"scratchnet.backend", "scratchnet.checks"} <= IMPORTS["scratchnet.losses"]
    assert "scratchnet.functional" in IMPORTS["scratchnet.losses"]  # from scratchnet import functional as F
    assert len(FILES) > 80 and sum(map(len, IMPORTS.values())) > 200


@pytest.mark.parametrize("module", [m for m in FILES if m != "scratchnet"])
def test_no_module_imports_one_that_imports_it(module):
    assert [other for other in sorted(IMPORTS[module]) if reaches(other, module)] == []


@pytest.mark.parametrize("module", [m for m in FILES if m != "scratchnet" and not m.endswith(PROGRAM)])
def test_imports_go_downward(module):
    here = floor_of(module)
    floors = {floor_of(other) for other in IMPORTS[module] if other != "scratchnet"} - {here}
    if here == "data":
        assert floors <= BESIDE_DATA
        return
    assert here in HEIGHT, f"{here} has no floor"
    height = HEIGHT | {"data": HEIGHT["training"]}
    assert [floor for floor in sorted(floors) if height[floor] > height[here]] == []


@pytest.mark.parametrize("module", FILES)
def test_no_file_of_the_package_is_long(module):
    assert len(FILES[module].read_text("utf-8").splitlines()) <= 450


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_file_of_the_tests_is_long(path):
    assert len(path.read_text("utf-8").splitlines()) <= 500
