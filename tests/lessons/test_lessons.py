"""The lessons: clean files that run from top to bottom, exercises that help, solutions that are right.

Running them needs the extra ``lessons``; the rest needs nothing.
"""

import doctest
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet import lessons
from scratchnet.layers import Layer, Parameter
from scratchnet.lessons import answers

FOLDER = Path(__file__).parents[2] / "examples" / "lessons"
LESSONS = sorted(FOLDER.glob("*.ipynb"))
README = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def cells(path):
    """The cells, by id, each with its source as one text."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return {cell["id"]: cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]}


def solution(cell):
    """The code that is folded away in a Markdown cell; words may follow it."""
    folded = r"<details>\n<summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n(.*\n\n)?</details>"
    found = re.fullmatch(folded, cell["source"], re.DOTALL)
    assert found, f"{cell['id']} is not a solution that is folded away"
    return found[1]


# Takes the place of ``lessons.check``: hand in, for every mistake that an exercise knows, that mistake.
MAKE_EACH_MISTAKE = """
from scratchnet import lessons

def check(answer, *right, **options):
    for sentence, mistaken in (options.get("mistakes") or {}).items():
        print("MISTAKE", sentence)
        lessons.check(mistaken, *right, **options)
"""


def printed(outputs):
    return "".join(output.get("text", "") for output in outputs)


# As files


@every_lesson
def test_a_lesson_is_a_clean_file_with_the_outputs_of_one_run_from_top_to_bottom(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert path.stat().st_size < 400 * 1024
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/|C:\\\\", text), "a path of some machine"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z0-9-]{1,64}", name) for name in ids)
    assert not any(cell["metadata"] for cell in notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {(o["output_type"], o.get("name")) for cell in code for o in cell["outputs"]}
    assert not kinds & {("error", None), ("stream", "stderr")}


@every_lesson
def test_a_lesson_has_one_title_figures_exercises_and_an_end(path):
    number = path.stem.split("-")[0]
    found = cells(path)
    prose = "\n".join(cell["source"] for cell in found.values() if cell["cell_type"] == "markdown")
    assert re.findall(r"^# (.*)$", prose, re.MULTILINE)[0].startswith(f"Lesson {number}: ")
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    figures = [
        o for cell in found.values() for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(figures) >= 2
    assert "## Takeaway" in prose and "## Read next" in prose
    for file in re.findall(r"`((?:scratchnet|examples|benchmarks|tests)/[\w/.-]+\.\w+)`", prose):
        assert (FOLDER.parent.parent / file).is_file(), f"{file} is not there"
    exercises = [name for name in found if re.fullmatch(r"exercise-\d+", name)]
    assert 2 <= len(exercises) <= 4
    for name in exercises:
        n = name.removeprefix("exercise-")
        place = list(found).index(name)
        assert list(found)[place : place + 3] == [f"exercise-{n}", f"check-{n}", f"solution-{n}"]
        assert solution(found[f"solution-{n}"])


def test_every_lesson_has_a_number_of_its_own_and_a_line_in_the_readme_of_examples():
    numbers = [path.stem.split("-")[0] for path in LESSONS]
    assert len(set(numbers)) == len(LESSONS)
    for number, path in zip(numbers, LESSONS, strict=True):
        assert f"\n| [{number}]({path.relative_to(FOLDER.parent).as_posix()}) | " in README


# As programs


@pytest.mark.slow
@every_lesson
def test_a_lesson_runs_reports_what_is_not_solved_and_its_solutions_are_right(path):
    for needed in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(needed, reason=f'{needed} is not installed: pip install --editable ".[lessons]"')
    import nbformat

    program = SimpleNamespace(**runpy.run_path(str(FOLDER / "execute.py")))
    notebook = nbformat.read(path, as_version=4)
    # A student's afternoon: once through with nothing solved, then the exercises, in the same kernel. At last
    # each usual mistake is made on purpose.
    again, mistaken = [], [nbformat.v4.new_code_cell(MAKE_EACH_MISTAKE)]
    for name, cell in cells(path).items():
        if name.startswith("solution-"):
            n = name.removeprefix("solution-")
            again.append(nbformat.v4.new_code_cell(solution(cell), id=f"solved-{n}"))
            the_check = cells(path)[f"check-{n}"]["source"]
            again.append(nbformat.v4.new_code_cell(the_check, id=f"right-{n}"))
            mistaken.append(nbformat.v4.new_code_cell(the_check, id=f"mistaken-{n}"))
        elif name.startswith("after-"):
            again.append(nbformat.v4.new_code_cell(cell["source"], id=f"again-{name}"))
    notebook.cells += again + mistaken
    program.execute(notebook, small=True)

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    for name, found in outputs.items():
        warnings = [o for o in found if o.get("name") == "stderr" and not program.is_erased(o)]
        assert not warnings, f"{name} warns: {printed(found)}"
        if re.fullmatch(r"check-\d+", name):
            assert printed(found).startswith("Not solved yet: ")
        if name.startswith("right-"):
            assert printed(found).startswith("Right: "), printed(found)
        if name.startswith("mistaken-"):
            for block in printed(found).split("MISTAKE ")[1:]:
                sentence, _, said = block.partition("\n")
                assert said.startswith("Not right yet: ") and f"Hint: {sentence}\n" in said, block


def test_executing_a_lesson_that_is_not_there_is_refused_in_one_sentence():
    command = [sys.executable, str(FOLDER / "execute.py"), "10-nothing.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "execute.py: there is no lesson 10-nothing.ipynb\n"


# What an exercise says


def test_the_examples_in_the_lessons_own_module_are_true():
    assert doctest.testmod(lessons).failed == 0


def add(x, y):
    return x + y


CASES = [(np.ones((2, 3)), np.arange(3.0)), (np.zeros((2, 3)), np.arange(3.0))]


def said(capsys, answer, right=add, inputs=CASES, **more):
    solved = lessons.check(answer, right, inputs, **more)
    text = capsys.readouterr().out
    assert solved == text.startswith("Right: ")
    return text


def unwritten(x, y):
    raise NotImplementedError


@pytest.mark.parametrize(
    "answer", [lambda x, y: ..., lambda x, y: None, lambda x, y: (..., x), unwritten, ..., None]
)
def test_an_exercise_that_nobody_has_solved_is_reported(capsys, answer):
    assert said(capsys, answer).startswith("Not solved yet: ")


def test_a_right_answer_is_said_to_be_right(capsys):
    assert said(capsys, lambda x, y: y + x, name="sum") == (
        "Right: sum does what it should in all 2 cases.\n"
    )


def test_a_wrong_answer_is_told_the_case_how_many_where_and_by_how_much(capsys):
    def mine(x, y):
        return x + np.minimum(y, 1.5)

    assert said(capsys, mine) == (
        "Not right yet: mine, case 1 of 2: 2 of 6 numbers are wrong. "
        "The furthest off is at [0, 2]: yours is 2.5, right is 3.\n"
    )


def test_a_usual_mistake_is_named(capsys):
    mistakes = {"This subtracts.": lambda x, y: x - y, "This multiplies.": lambda x, y: x * y}
    assert said(capsys, lambda x, y: x * y, mistakes=mistakes).endswith("Hint: This multiplies.\n")


def test_nan_is_the_furthest_off_of_all(capsys):
    text = said(capsys, lambda x, y: np.where(y == 1, np.nan, x + y + 9))
    assert "6 of 6 numbers are wrong. The furthest off is at [0, 1]: yours is nan" in text


@pytest.mark.parametrize(
    "answer, sentence",
    [
        (lambda x, y: (x + y).sum(axis=0), "the shape is (3,), and should be (2, 3)."),
        (lambda x, y: "x + y", "numbers are wanted, and this is of type str."),
        (
            lambda x, y: x @ y.nothing,
            "raises AttributeError: 'numpy.ndarray' object has no attribute 'nothing'",
        ),
        (lambda x, y: np.add(x, y, out=x), "writes into x, which is not its own: make a copy first."),
        (lambda x: x, "raises TypeError"),
    ],
)
def test_other_mistakes_are_named_and_none_raises(capsys, answer, sentence):
    text = said(capsys, answer)
    assert text.startswith("Not right yet: ") and sentence in text


def test_an_error_comes_with_the_line_of_the_answer_that_it_stands_in(capsys):
    def mine(x, y):
        return np.concatenate([x, y])

    assert "return np.concatenate([x, y]))\n" in said(capsys, mine)


def test_the_inputs_are_as_before_for_every_case():
    before = [np.copy(a) for case in CASES for a in case]
    lessons.check(lambda x, y: np.add(x, y, out=x), add, CASES)
    assert all(np.array_equal(a, b) for a, b in zip(before, [a for case in CASES for a in case], strict=True))


def test_several_results_are_named(capsys):
    def right(x, y):
        return x, y

    text = said(capsys, lambda x, y: (x, 2 * y), right, results=("dx", "dy"))
    assert "dy: 2 of 3 numbers are wrong" in text
    text = said(capsys, lambda x, y: x, right, results=("dx", "dy"))
    assert "it should return 2 results (dx, dy), and returns one ndarray." in text


def test_a_number_is_checked_and_not_given_away(capsys):
    assert lessons.check(9216, 9216, name="bytes") and not lessons.check(..., 9216, name="bytes")
    assert not lessons.check(1024, 9216, name="bytes", mistakes={"A float32 has four bytes.": 1024})
    assert capsys.readouterr().out == (
        "Right: bytes is 9,216.\n"
        "Not solved yet: bytes. Fill in the dots in the cell above, run it, and run this cell again.\n"
        "Not right yet: bytes: 1,024 is too small.\n"
        "Hint: A float32 has four bytes.\n"
    )


# What it says about a layer


class Slope(Layer):
    """y = x where x > 0, w x elsewhere: the layer of lesson 9, and what students make of it."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(np.full(3, 0.25, "float32"))

    def forward(self, x):
        return self.save_for_backward(np.where(x > 0, x, self.weight.data * x), x)

    def backward(self, dy):
        x = self.saved(dy)
        self.weight.grad = self.weight_gradient(x, dy)
        return np.where(x > 0, dy, self.weight.data * dy)

    def weight_gradient(self, x, dy):
        return np.where(x > 0, 0, dy * x).sum(axis=(0, 1, 2))


class NothingYet(Slope):
    def forward(self, x):
        return ...


class NoBackwardYet(Slope):
    def backward(self, dy):
        return ...


class ForgetsToSum(Slope):
    def weight_gradient(self, x, dy):
        return np.where(x > 0, 0, dy * x)


class TakesTheMean(Slope):
    def weight_gradient(self, x, dy):
        return np.where(x > 0, 0, dy * x).mean(axis=(0, 1, 2))


class Adds(Slope):
    def weight_gradient(self, x, dy):
        return super().weight_gradient(x, dy) + (self.weight.grad if self.weight.has_grad else 0)


class ForgetsToKeep(Slope):
    def forward(self, x):
        return np.where(x > 0, x, self.weight.data * x)


class WritesIntoItsInput(Slope):
    def forward(self, x):
        before = x.copy()
        x *= np.where(x > 0, 1, self.weight.data)
        return self.save_for_backward(x, before)


class WrongForward(Slope):
    def forward(self, x):
        return self.save_for_backward(np.where(x > 0, x, -self.weight.data * x), x)


class WrongShape(Slope):
    def backward(self, dy):
        return super().backward(dy).sum(axis=0)


class WrongInputGradient(Slope):
    def backward(self, dy):
        dx = super().backward(dy)
        dx[0, 0, 0, 0] *= 1.01
        return dx


class NoWeightGradient(Slope):
    def backward(self, dy):
        x = self.saved(dy)
        return np.where(x > 0, dy, self.weight.data * dy)


@pytest.mark.parametrize(
    "layer, begins, contains",
    [
        (Slope, "Right: Slope: all 99 gradients are what small steps measure.", ""),
        (NothingYet, "Not solved yet: NothingYet.forward.", ""),
        (NoBackwardYet, "Not solved yet: NoBackwardYet.backward", "forward is right"),
        (
            WrongForward,
            "Not right yet: WrongForward.forward: ",
            "numbers are wrong. The furthest off is at [",
        ),
        (
            ForgetsToSum,
            "Not right yet: ForgetsToSum.backward raises ValueError",
            "Hint: one number serves all images",
        ),
        (
            ForgetsToKeep,
            "Not right yet: ForgetsToKeep.backward raises RuntimeError",
            "Hint: forward must end with",
        ),
        (TakesTheMean, "Not right yet: TakesTheMean.backward", "Hint: It is a sum."),
        (Adds, "Not right yet: Adds.backward", "backward should set the gradient, not add to it"),
        (WritesIntoItsInput, "Not right yet: WritesIntoItsInput.backward", "forward writes into its input"),
        (WrongShape, "Not right yet: WrongShape.backward", "the gradient of input has the shape (4, 4, 3)"),
        (
            WrongInputGradient,
            "Not right yet: WrongInputGradient.backward",
            "is wrong in 1 of 96 elements: at (0, 0, 0, 0)",
        ),
        (NoWeightGradient, "Not right yet: NoWeightGradient.backward", "backward leaves weight.grad at None"),
        (lambda: 1 / 0, "Not right yet: the layer.__init__ raises ZeroDivisionError", ""),
    ],
)
def test_a_layer_is_told_what_is_wrong_with_it(capsys, layer, begins, contains):
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3))
    mistakes = {"It is a sum.": lambda x, dy, w: np.where(x > 0, 0, dy * x).mean(axis=(0, 1, 2))}
    right = lessons.check_layer(layer, lambda x, w: np.where(x > 0, x, w * x), x, mistakes=mistakes)
    text = capsys.readouterr().out
    assert text.startswith(begins) and contains in text
    assert right == begins.startswith("Right")


@pytest.mark.parametrize("n, exercise", [(1, "leaky_relu"), (2, "prelu"), (3, "avg_pool")])
def test_the_usual_mistakes_of_lesson_9_are_named(capsys, n, exercise):
    arguments = getattr(answers, exercise)
    scope = {"np": np, "Layer": Layer, "Parameter": Parameter}
    before = set(scope)
    exec(solution(cells(FOLDER / "9-your-own-layer.ipynb")[f"solution-{n}"]), scope)
    solved = scope[(set(scope) - before - {"__builtins__"}).pop()]

    for sentence, wrong in arguments["mistakes"].items():

        class Mistaken(solved):
            def forward(self, x):
                self.x = x.copy()
                return super().forward(x)

            def backward(self, dy, wrong=wrong):
                dx = super().backward(dy)
                parameters = list(self.parameters().values())
                gradient = np.asarray(wrong(self.x, dy, *(p.data for p in parameters)), dtype=dy.dtype)
                if gradient.shape == dx.shape:
                    return gradient
                parameters[0].grad = gradient
                return dx

        assert not lessons.check_layer(lambda: Mistaken(3) if n == 2 else Mistaken(), **arguments)  # noqa: B023
        assert f"Hint: {sentence}\n" in capsys.readouterr().out
