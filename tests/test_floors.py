"""The floors of the house: imports lead downward only, and no two modules import each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "scratchnet"
# From the top; what stands on one floor may use its neighbours.
FLOORS = [
    "cli",
    "report explain doctor",
    "distributed",
    "training",
    "interop",
    "models checkpoint rebuild tensorfile",
    "plans",
    "layers losses optim gradcheck inspection state",
    "functional",
    "backend workers parameters initialise checks tables pickles",
]
FLOOR = {name: len(FLOORS) - i for i, names in enumerate(FLOORS) for name in names.split()}
DATA_MAY_USE = {"data", "backend", "workers", "checks", "tables", "pickles"}
MAY_USE_DATA = FLOOR["training"]


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name):
    """Return the modules of the package that a module imports, but for what only type checkers see."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in PATHS)
        elif isinstance(node, ast.ImportFrom) and node.module in PATHS:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in PATHS else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(PATHS[name].read_text(encoding="utf-8")))
    return found - {name, "scratchnet"}


IMPORTS = {name: imported(name) for name in PATHS}


def part(name):
    return name.split(".")[1] if "." in name else ""


def test_every_part_of_the_package_has_its_floor():
    parts = {part(name) for name in PATHS} - {"", "__main__", "data"}
    assert parts - set(FLOOR) == set()


@pytest.mark.parametrize("name", [name for name in PATHS if part(name) not in ("", "__main__")])
def test_imports_lead_downward(name):
    own = "cli" if name.endswith(".__main__") else part(name)  # a program belongs to the top floor
    for other in IMPORTS[name]:
        used = part(other)
        if own == "data":
            assert used in DATA_MAY_USE, f"{name} imports {other}"
        elif used == "data":
            assert FLOOR[own] >= MAY_USE_DATA, f"{name} imports {other}"
        else:
            assert FLOOR[own] >= FLOOR[used], f"{name} imports {other}"


def test_no_two_modules_import_each_other():
    assert [(a, b) for a in IMPORTS for b in IMPORTS[a] if a < b and a in IMPORTS.get(b, ())] == []
