"""The package as it is installed: every file comes along, and messages name it correctly."""

import configparser
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def test_every_file_that_is_not_python_comes_along():
    packaged = set()
    for package, patterns in SETUP["options.package_data"].items():
        for pattern in patterns.replace(",", " ").split():
            packaged |= set((ROOT / package.replace(".", "/")).glob(pattern))
    others = {
        path
        for path in (ROOT / "scratchnet").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert others - packaged == set()
    assert ROOT / "scratchnet/py.typed" in packaged


def test_the_console_script_is_there():
    name, _, function = SETUP["options.entry_points"]["console_scripts"].partition("=")
    module, _, attribute = function.strip().partition(":")
    assert name.strip() == "scratchnet" and callable(getattr(importlib.import_module(module), attribute))


def test_every_folder_with_python_is_a_package():
    folders = {path.parent for path in (ROOT / "scratchnet").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_message_advises_the_name_on_pypi_that_belongs_to_another_project():
    assert SETUP["metadata"]["name"] != "scratchnet"
    for folder in ("scratchnet", "examples", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".ipynb"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"scratchnet\[|pip install [\"']?scratchnet\b", text), path


@pytest.mark.slow
def test_the_sdist_holds_every_file_of_the_repository(tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no repository: this is an unpacked sdist")
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    copied = tmp_path / "copy"
    for name in listed.stdout.split("\n")[:-1]:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copied / name)
    code = "import setuptools.build_meta as build; print(build.build_sdist('dist'))"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=copied, capture_output=True, text=True, check=True
    )
    with tarfile.open(copied / "dist" / built.stdout.splitlines()[-1]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {*listed.stdout.split("\n")[:-1]} - packed == set()
