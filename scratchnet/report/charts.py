"""Curves as SVG in the page's own colours and font, readable on light and on dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scratchnet.report.page import escape

# Colours that matplotlib draws with, and the theme's colours that replace them.
INK, FAINT, TRAIN, VALIDATION = "#010101", "#020202", "#030303", "#040404"
THEME = {INK: "currentColor", FAINT: "var(--line)", TRAIN: "var(--train)", VALIDATION: "var(--validation)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: sharp, small, and in the page's font
    "svg.hashsalt": "scratchnet",  # the same run gives the same bytes
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def curves(name: str, epochs: Sequence[float], lines: Mapping[str, Sequence[float]], label: str) -> str:
    """Draw quantities epoch by epoch (``training`` dashed), as an ``<svg>`` in the colours of the page.

    Its ``name`` begins all ids within it, since a page has several figures; ``label`` is of the vertical
    axis, and for screen readers.

    >>> svg = curves("lr", [1, 2], {"learning rate": [0.1, 0.2]}, "learning rate")  # doctest: +SKIP
    >>> svg[:4]  # doctest: +SKIP
    '<svg'
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7, 2.5), layout="constrained")
        panel = figure.subplots()
        for title, values in lines.items():
            colour, dashes = (TRAIN, "--") if title == "training" else (VALIDATION, "-")
            panel.plot(epochs, values, dashes, color=colour, marker=".", label=title)
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(lines) > 1:
            panel.legend(frameon=False)
        return _fit_into_page(name, f"{label}, epoch by epoch", figure)


def _fit_into_page(name: str, description: str, figure: Any) -> str:
    """Return a figure as SVG without a size, in the theme's colours, with ids unique on the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue().partition("<svg")[2]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, themed in THEME.items():
        svg = svg.replace(colour, themed)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view, "matplotlib gives every figure a viewBox"
    return f'<svg {view[0]} role="img" aria-label="{escape(description)}">{svg.partition(">")[2].strip()}'
