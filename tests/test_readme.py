"""README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[-1])
def test_python_in_readme_runs(code):
    if "torchvision" in code:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_readme_begins_with_the_two_commands():
    demo, tests = blocks("sh")[:2]
    assert "--demo" in demo and "-m pytest" in tests
    for block in (demo, tests):
        lines = block.splitlines()
        assert lines[0].startswith("git clone ") and lines[1].startswith("cd ")
        assert not any(line.startswith(("$", "#", ">")) or "&&" in line for line in lines)


def test_figures_in_readme_are_those_of_the_newest_page():
    text = README.read_text(encoding="utf-8")
    pages = sorted((README.parent / "benchmarks" / "results").glob("20??-??-??.md"))
    assert f"](benchmarks/results/{pages[-1].name})" in text
    rows = re.findall(r"^\| (?:A training step|Inference with) .*", text, flags=re.MULTILINE)
    page = pages[-1].read_text(encoding="utf-8").splitlines()
    assert len(rows) == 8 and [row for row in rows if row not in page] == []
