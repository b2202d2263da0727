"""CONTRIBUTING, followed word for word in a copy: its files are written, its commands run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))
# A block of code, and the file of which a line before it says that it belongs there.
BLOCK = re.compile(r"^(?:`([\w./]+)`[^\n]*:\n\n)?^```(\w+)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy") / "repository"
    names = ["scratchnet", "tests", "examples", "pyproject.toml"]
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def follow(folder, section):
    """Write the files of a section and run its commands, in order; return how many there were."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    commands = 0
    for file, language, code in BLOCK.findall(SECTIONS[section]):
        if file:
            with open(folder / file, "a", encoding="utf-8") as end:
                end.write(code)
            continue
        python = language == "python"
        for arguments in [["-c", code]] if python else [shlex.split(line)[1:] for line in code.splitlines()]:
            if arguments[:3] == ["-m", "pip", "install"]:
                continue
            command = [sys.executable, *arguments]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            commands += 1
    return commands


@pytest.mark.slow
def test_a_layer_its_kernel_and_its_cuda_kernel(copy):
    assert follow(copy, "Add a layer") == 1
    assert follow(copy, "Add a kernel") == 1
    assert follow(copy, "Add a CUDA kernel") == 2


@pytest.mark.slow
def test_a_lesson(copy):
    for needed in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(needed, reason=f'{needed} is not installed: pip install --editable ".[lessons]"')
    page = copy / "examples" / "README.md"
    row = re.search(r"^.*row, `(.*? \|)`, to the table", SECTIONS["Add a lesson"], flags=re.MULTILINE)[1]
    with_row = re.sub(r"(\| \[9\].*\n)", rf"\1{row}\n", page.read_text(encoding="utf-8"))
    page.write_text(with_row, encoding="utf-8")
    assert follow(copy, "Add a lesson") == 3


def test_the_layer_and_its_kernel_are_those_of_the_tests():
    finished = (ROOT / "tests" / "plans" / "leaky_relu.py").read_text(encoding="utf-8")
    for section in ("Add a layer", "Add a kernel"):
        (code,) = (code for file, _, code in BLOCK.findall(SECTIONS[section]) if file == "leaky_relu.py")
        assert code in finished
