"""The READMEs and CONTRIBUTING: code runs, links resolve, figures are those of the newest page."""

import re
from pathlib import Path

import pytest

from scratchnet.layers import GlobalAvgPool2d, Layer, Linear

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "scratchnet/README.md",
        "examples/README.md",
        "benchmarks/README.md",
        "tests/README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    )
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("20??-??-??.md"))[-1]


def blocks(page, language=r"\w*"):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


RUNNABLE = [(page, code) for page in TEXTS if "README" in page for code in blocks(page, "python")]


def anchor(heading):
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(("page", "code"), RUNNABLE)
def test_python_in_readmes_runs(page, code, tmp_path, monkeypatch):
    if "torchvision" in code:
        pytest.skip("tests/interop/test_torchvision.py runs it, on networks of every kind")
    if "distributed" in code:
        pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {"__name__": "readme"})


def test_the_loop_in_the_readme_trains_any_layer(tmp_path, monkeypatch):
    class Net(Layer):
        """A network of the user's own, with the two passes that every layer has and nothing else."""

        def __init__(self):
            super().__init__()
            self.pool, self.linear = GlobalAvgPool2d(), Linear(3, 10)

        def forward(self, x):
            return self.linear.forward(self.pool.forward(x))

        def backward(self, dy):
            return self.pool.backward(self.linear.backward(dy))

        def output_shape(self, shape):
            return (shape[0], 10)

    monkeypatch.chdir(tmp_path)
    code, found = re.subn(r"net = .*", "net = Net()", blocks("README.md", "python")[0])
    assert found == 1
    names = {"__name__": "readme", "Net": Net}
    with pytest.warns(UserWarning, match="Net"):
        exec(compile(code.replace("n_train=1000", "n_train=100"), "README.md", "exec"), names)
    assert names["net"].linear.weight.has_grad and (tmp_path / "shapes.safetensors").exists()


def test_readme_is_short_and_begins_with_an_image():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 130
    assert any(line.startswith("![") for line in lines[:10])


def test_readme_begins_with_two_commands():
    demo, tests = blocks("README.md")[:2]
    assert "train_cifar.py --demo" in demo and "evaluate.py" in demo and "-m pytest" in tests
    for block in (demo, tests):
        *joined, last = block.splitlines()
        assert joined[0] == "python3 -m venv .venv &&"
        assert all(line.endswith(" &&") for line in joined) and "&&" not in last
        assert not re.search(r"git clone|\bcd\b|[;#$]", block)


@pytest.mark.parametrize("page", TEXTS)
def test_links_resolve(page):
    prose = re.sub(r"^```.*?^```|`[^`\n]*`(?!\])", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"\w+:", target):
            continue
        file, _, place = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if place:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert place in map(anchor, headings), f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page in TEXTS if "README" in page])
def test_files_named_in_readmes_exist(page):
    for name in re.findall(r"`([\w./*-]+(?:/|\.(?:py|md|cu|ipynb)))`", TEXTS[page]):
        if name.startswith(("data/", "runs/")) and page == "examples/README.md":
            continue  # where a run reads and writes
        folders = (ROOT, (ROOT / page).parent)
        assert any(list(folder.glob(name.rstrip("/"))) for folder in folders), f"{page}: {name}"


def test_figures_are_those_of_the_newest_page():
    text = TEXTS["benchmarks/README.md"]
    assert f"](results/{RESULTS.name})" in text
    rows = re.findall(r"^\| (?:A training step|Inference with) .*", text, flags=re.MULTILINE)
    page = RESULTS.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 8 and [row for row in rows if row not in page] == []


def test_headline_figures_are_those_of_the_newest_page():
    text = TEXTS["README.md"]
    assert f"Measured on {RESULTS.stem}" in text and f"{RESULTS.stem}-headline.svg" in text
    page = RESULTS.read_text(encoding="utf-8").splitlines()
    rows = re.findall(r"^\| (?:A training step|Inference with) .*", text, flags=re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        task, speed, memory, command = (cell.strip() for cell in row.strip("|").split(" | "))
        assert any(line.startswith(f"| {task} |") and f"| {speed} | {memory} (" in line for line in page), row
        assert f"- {command}" in page, row
    accuracy = re.search(r"\*\*(\d\d\.\d\d %)\*\*", text)[1]
    assert f"by ten views **{accuracy}**" in TEXTS["benchmarks/README.md"]
