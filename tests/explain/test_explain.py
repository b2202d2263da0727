"""The walks: the numbers on the page are right, the page says where they are not, and it fits a terminal."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from scratchnet import functional as F
from scratchnet.explain import OPERATIONS, __main__, explain, write
from scratchnet.explain.page import WIDTH, Page

BACKWARD = {name: explain(name, backward=True) for name in OPERATIONS}


def matrices(page, title):
    """The numbers of every matrix with this title, read back; others may stand beside it."""
    lines, found = page.splitlines(), []
    for n, line in enumerate(lines):
        for match in re.finditer(rf"(?<!\S){re.escape(title)}(  \(.*?\))?(?=  |$)", line):
            if not line.startswith("  "):
                continue  # a sentence
            beside = re.search(r" {4,}\S", line[match.end() :])
            stop = match.end() + beside.end() - 1 if beside else None
            rows = []
            for below in lines[n + 1 : lines.index("", n)]:
                cells = re.sub(r"( ->| [-+*/@])? *$", "", below[match.start() : stop])
                rows.append([float(v) for v in re.findall(r"-?\d+(?:\.\d+)?", cells)])
            rows = [row for row in rows if row]
            width = min((len(row) for row in rows), default=0)
            found.append(np.array([row[len(row) - width :] for row in rows]))  # without labels on the left
    assert found, f"there is no {title!r} on this page"
    return found


def matrix(page, title):
    return matrices(page, title)[0]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_walk_confirms_itself_and_its_gradients(name):
    page = BACKWARD[name]
    assert "NO" not in page
    assert page.count("Equal to ") >= 2
    assert page.count("They agree: yes") >= 1
    assert "They agree" not in explain(name), "gradients are shown only if asked for"


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_give_other_numbers_which_are_as_right(name, seed):
    page = write(name, backward=True, seed=seed)
    assert page.right and str(page) != BACKWARD[name]


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "winograd"])
@pytest.mark.parametrize("size", [3, 7])
def test_other_sizes_are_as_right(name, size):
    assert write(name, size, backward=True).right


@pytest.mark.parametrize(
    "settings", [{"channels": 2}, {"padding": 1}, {"stride": 2, "size": 7, "padding": 2}]
)
def test_a_convolution_may_have_channels_stride_and_padding(settings):
    assert write("conv", backward=True, **settings).right


@pytest.mark.parametrize("stride", [1, 3])
def test_pooling_may_overlap_or_leave_gaps(stride):
    page = write("pool", size=5, backward=True, stride=stride)
    assert page.right
    assert ("Windows overlap" in str(page)) == (stride == 1)


# The numbers, read back from the page


def test_the_convolution_on_the_page_is_a_convolution():
    page = BACKWARD["conv"]
    x = matrix(page, "x, channel 0")
    for o in (0, 1):
        kernel, y = matrix(page, f"o = {o}"), matrix(page, f"y, channel {o}")
        expected = [[(x[i : i + 3, j : j + 3] * kernel).sum() for j in (0, 1)] for i in (0, 1)]
        assert (y == np.array(expected) + matrix(page, "bias")[0, o]).all()


def test_rows_of_the_column_matrix_are_the_patches():
    x = np.arange(1.0, 17).reshape(4, 4)
    page = BACKWARD["conv"]
    patches = [x[i : i + 3, j : j + 3].ravel() for i in (0, 1) for j in (0, 1)]
    columns = matrix(page, "columns")[2:]  # below the lines of i and j
    assert (columns == patches).all()
    for r, patch in enumerate(patches):
        assert (matrix(page, f"row {r}") == patch).all()


def test_the_gradient_of_a_pixel_is_the_sum_that_is_written_out():
    page = BACKWARD["conv"]
    terms = [float(v) for v in re.findall(r"^  row \d+, as tap \(\d,\d\): +(\S+)$", page, re.MULTILINE)]
    assert len(terms) == 4 and "copied pixel (1,1) into 4 rows" in page
    total = float(re.search(r"^  sum: +(\S+)$", page, re.MULTILINE)[1])
    assert sum(terms) == total == matrix(page, "dx, channel 0")[1, 1]


def test_the_number_of_copies_of_each_pixel_is_counted_right():
    assert (matrix(BACKWARD["conv"], "copies") == np.outer([1, 2, 2, 1], [1, 2, 2, 1])).all()
    padded = explain("conv", padding=1, backward=True)
    assert (matrix(padded, "copies") == np.outer([2, 3, 3, 2], [2, 3, 3, 2])).all()


def test_pooling_on_the_page_takes_the_largest_and_a_tie_goes_to_the_first():
    page = BACKWARD["pool"]
    x, y, dy = (matrix(page, title) for title in ("x", "y", "dy"))
    windows = x.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
    assert (y.ravel() == windows.max(axis=1)).all()
    assert x[0, 1] == x[1, 0] == y[0, 0]
    dx = matrix(page, "dx")
    assert dx[0, 1] == dy[0, 0] and dx[1, 0] == 0
    assert (
        matrix(page, "central difference")[0, 1] == matrix(page, "central difference")[1, 0] == dy[0, 0] / 2
    )


def test_the_kink_of_the_relu_is_marked_and_explained():
    page = BACKWARD["relu"]
    x, y, dx, dy = (matrix(page, title) for title in ("x", "y", "dx", "dy"))
    assert (y == np.maximum(x, 0)).all() and (dx == dy * (x > 0)).all() and (x == 0).any()
    numeric = matrix(page, "central difference")
    assert (numeric[x == 0] == dy[x == 0] / 2).all()
    assert "[-1.0000]" in page and "no derivative" in page


def test_the_linear_layer_on_the_page_is_one():
    page = BACKWARD["linear"]
    x, weight, bias, y, dy = (matrix(page, title) for title in ("x", "W", "b", "y", "dy"))
    assert (y == x @ weight + bias).all()
    assert (matrix(page, "dx") == dy @ weight.T).all() and (matrix(page, "dW") == x.T @ dy).all()
    assert (matrix(page, "db") == dy.sum(axis=0)).all()


def test_probabilities_and_loss_on_the_page_follow_from_its_logits():
    page = BACKWARD["softmax"]
    z = matrix(page, "z")
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    right = [int(np.argmax(row)) for row in matrix(page, "t")]
    assert matrix(page, "p") == pytest.approx(p, abs=6e-5)
    loss = float(re.search(r"mean over the batch: L = (\S+)", page)[1])
    assert loss == pytest.approx(-np.log(p[range(3), right]).mean(), abs=6e-5)
    expected = (p - np.eye(4)[right]) / 3
    assert matrix(page, "dz = (p - t) / 3") == pytest.approx(expected, abs=6e-5)
    assert "nan  nan" in page  # what happens without the shift


def test_batch_normalisation_on_the_page_normalises_and_its_three_paths_add_up():
    page = BACKWARD["batchnorm"]
    x = matrix(page, "x")
    assert matrix(page, "mean")[0] == pytest.approx(x.mean(axis=0))
    xhat = (x - x.mean(axis=0)) / x.std(axis=0)
    assert matrix(page, "xhat") == pytest.approx(xhat, abs=1e-4)
    paths = [matrices(page, title)[-1] for title in ("direct", "mean", "var")]
    assert sum(paths) == pytest.approx(matrix(page, "dx, their sum"), abs=2e-4)


def test_winograd_gives_the_convolution_with_36_multiplications():
    page = BACKWARD["winograd"]
    x, g = matrix(page, "x"), matrix(page, "g")
    expected = [[(x[i : i + 3, j : j + 3] * g).sum() for j in range(4)] for i in range(4)]
    assert (matrix(page, "y") == expected).all()
    assert matrix(page, "M") == pytest.approx(matrix(page, "U") * matrix(page, "V"), abs=3e-3)
    assert "144 multiplications" in page and "36, 4 times fewer" in page


# A wrong step shows


@pytest.mark.parametrize(
    "operation, function",
    [
        ("conv", "im2col"),
        ("conv", "col2im"),
        ("conv", "conv2d_forward"),
        ("pool", "max_pool2d_backward"),
        ("relu", "relu_backward"),
        ("linear", "linear_backward"),
        ("softmax", "softmax"),
        ("softmax", "softmax_cross_entropy_backward"),
        ("batchnorm", "batch_norm_backward"),
        ("winograd", "conv2d_forward"),
    ],
)
def test_a_wrong_step_shows(operation, function, monkeypatch):
    right = getattr(F, function)

    def wrong(*arguments, **settings):
        result = right(*arguments, **settings)
        return (result[0] + 1.0, *result[1:]) if isinstance(result, tuple) else result + 1.0

    monkeypatch.setattr(F, function, wrong)
    page = write(operation, backward=True)
    assert not page.right and "NO, " in str(page)


def test_a_gradient_that_is_wrong_in_the_fifth_digit_does_not_agree():
    page, x = Page(), np.array([1.0, 2.0])
    page.gradient("x", 2 * x * 1.00001, x, lambda: float((x * x).sum()))
    assert "They agree: NO" in str(page) and not page.right
    assert (x == [1.0, 2.0]).all()


# What a page looks like


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_page_of_the_usual_size_fits_80_columns_and_is_plain(name):
    page = BACKWARD[name]
    assert max(map(len, page.splitlines())) <= WIDTH == 80
    assert page.isascii() and "\x1b" not in page
    assert not re.search(r" $|\n\n\n", page, re.MULTILINE)


@pytest.mark.parametrize("settings", [{"padding": 1}, {"size": 6}, {"size": 5, "stride": 2}])
def test_somewhat_larger_convolutions_fit_too(settings):
    assert max(map(len, explain("conv", backward=True, **settings).splitlines())) <= WIDTH


def test_colour_marks_the_brackets_and_nothing_else():
    coloured = explain("conv", colour=True)
    assert "\x1b[" in coloured
    assert all(marked.startswith("[") for marked in re.findall(r"\x1b\[1;33m(.*?)\x1b\[0m", coloured))
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == explain("conv")


def test_a_long_matrix_is_shortened():
    page = explain("conv", size=10)
    assert "... and 44 more rows" in page and "The other 60 patches" in page


# The program


def program(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "scratchnet.explain", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_the_program_prints_the_page_and_piped_it_is_plain():
    result = program("linear", "--backward", FORCE_COLOR="1", TERM="xterm")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip() == BACKWARD["linear"]


@pytest.mark.parametrize(
    "environment, coloured", [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_that_want_it(environment, coloured, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["explain", "relu"])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert __main__.main() == 0
    assert ("\x1b[" in capsys.readouterr().out) == coloured


def test_a_walk_that_does_not_add_up_has_status_1(monkeypatch, capsys):
    monkeypatch.setattr(F, "relu_forward", lambda x: (x, x))
    monkeypatch.setattr(sys, "argv", ["explain", "relu"])
    assert __main__.main() == 1


def test_without_an_operation_it_lists_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["explain"])
    assert __main__.main() == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in OPERATIONS.items():
        assert f"  {name.ljust(10)} {text}" in lines
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["convolution"], "must be one of conv, pool"),
        (["conv", "--size", "0"], "above zero"),
        (["conv", "--size", "1"], "from 2 to 12, not 1"),
        (["conv", "--size", "13"], "from 2 to 12, not 13"),
        (["conv", "--size", "2"], "does not fit into 2 x 2 pixels"),
        (["conv", "--size", "four"], "must be a whole number"),
        (["conv", "--padding", "-1"], "at least zero"),
        (["relu", "--stride", "2"], "relu has no stride"),
        (["pool", "--padding", "1"], "pool has no padding"),
        (["winograd", "--size", "6"], "leave it out"),
    ],
)
def test_what_cannot_be_walked_through_is_one_sentence(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["explain", *arguments])
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.startswith("scratchnet.explain: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "operation, settings", [("dropout", {}), ("conv", {"size": 1}), ("pool", {"channels": 2})]
)
def test_the_function_raises_a_sentence(operation, settings):
    with pytest.raises(ValueError):
        explain(operation, **settings)
