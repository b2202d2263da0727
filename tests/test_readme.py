"""README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("code", PYTHON, ids=[f"block{i}" for i in range(len(PYTHON))])
def test_python_in_readme_runs(code, capsys):
    if "torchvision" in code:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_readme_begins_with_the_two_commands():
    blocks = re.findall(
        r"^```sh\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    assert "--demo" in blocks[0] and "-m pytest" in blocks[1]
    for block in blocks[:2]:
        lines = block.splitlines()
        assert lines[0].startswith("git clone ") and lines[1].startswith("cd ")
        assert not any(line.startswith(("$", "#", ">")) or "&&" in line for line in lines)
