"""HTML of one self-contained file, for phones and wide screens, on light and on dark."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from scratchnet.untrusted import printable

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --card: #f5f6f8; --ink: #1b1c1f; --muted: #5b6068; --line: #d4d8de;
  --train: #b4500b; --validation: #0b5fa5; --right: 11, 95, 165; --wrong: 214, 92, 10;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1d2026; --ink: #e8eaed; --muted: #a3a9b2; --line: #3a3f47;
    --train: #f2a35c; --validation: #6db5f3; --right: 60, 140, 210; --wrong: 224, 116, 40;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 84rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; line-height: 1.2; margin: 0 0 .5rem; }
section { margin-top: 2rem; padding-top: 1rem; border-top: 1px solid var(--line); }
section > div { min-width: 0; }
.explanation { margin-bottom: .75rem; }
footer { margin-top: 2rem; }
p { max-width: 48rem; margin: 0 0 .75rem; }
p, figcaption, dt { color: var(--muted); }
a { color: var(--validation); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin-top: 1rem; }
nav a { padding: .25rem 0; }
figure { margin: 0; }
figcaption { font-size: .85rem; line-height: 1.4; margin-top: .25rem; }
figcaption b { color: var(--ink); }
svg { stroke-linejoin: round; }
svg, figure img { display: block; width: 100%; height: auto; }
img { image-rendering: pixelated; }
code, pre { font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { background: var(--card); padding: .75rem; margin: 0 0 .75rem; white-space: pre-wrap; overflow-x: auto; }
pre span { white-space: nowrap; }
dl {
  display: grid; gap: .5rem 1.5rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr));
  margin: .75rem 0;
}
dt { font-size: .8rem; }
dd { margin: 0; font-weight: 600; }
.missing, .explanation ul { color: var(--ink); }
.missing { border-left: 3px solid var(--train); padding: .25rem .75rem; }
.wide { overflow-x: auto; }
.tiles {
  display: grid; gap: 1.25rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--tile)), 1fr));
}
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th { font-weight: 400; text-align: left; }
thead th, .strong { font-weight: 600; }
.strong th { font-weight: inherit; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
td { text-align: right; }
td.text, #settings td { text-align: left; }
.narrow { max-width: 24rem; }
.tiny { max-width: 8rem; }
.confusion th, .confusion td { padding: .25rem .3rem; border: 0; }
.confusion thead th { vertical-align: bottom; white-space: normal; }
.confusion thead th span { white-space: nowrap; writing-mode: vertical-rl; transform: rotate(180deg); }
.confusion tbody th { position: sticky; left: 0; background: var(--paper); }
.confusion td { min-width: 1.8rem; background: rgba(var(--wrong), var(--share)); }
.confusion td.right { background: rgba(var(--right), var(--share)); }
.confusion td.total { background: none; padding-left: .4rem; }
@media (min-width: 64rem) {
  section { display: grid; grid-template-columns: 20rem 1fr; gap: 2.5rem; }
}
@media (max-width: 32rem) {
  table { font-size: .72rem; }
  th, td { padding: .2rem .3rem; }
  .confusion th, .confusion td { padding: .25rem .1rem; }
  .confusion td { min-width: 1.35rem; }
}
@media print { nav { display: none; } }
""".strip()


def escape(text: str) -> str:
    r"""Return text as HTML that shows it, whatever it holds; what a terminal would obey is spelt out.

    >>> escape("<b>\x1b")
    '&lt;b&gt;\\x1b'
    """
    return html.escape(printable(text))


def page(title: str, body: str, refresh: int | None = None) -> str:
    """Return a whole page: the title is text, the body HTML; ``refresh`` reloads it after so many seconds.

    >>> page("runs/demo", "<p>Hello</p>").splitlines()[0]
    '<!doctype html>'
    """
    reload = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'{reload}<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def without_refresh(text: str) -> str:
    """Return a page that browsers no longer reload.

    >>> without_refresh(page("runs/demo", "", refresh=5)) == page("runs/demo", "")
    True
    """
    return re.sub(r'<meta http-equiv="refresh".*\n', "", text, count=1)


def section(name: str, title: str, explanation: str, content: str) -> str:
    """Return a section: a heading that can be linked to, how to read it and its content, both HTML."""
    return (
        f'<section id="{name}">\n<div class="explanation"><h2>{escape(title)}</h2>\n{explanation}</div>\n'
        f"<div>{content}</div>\n</section>"
    )


def figure(content: str, caption: str) -> str:
    """Return an image with a caption below; both are HTML."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def wide(table: str) -> str:
    """Return a table in a box that scrolls where the page is narrower."""
    return f'<div class="wide" tabindex="0">{table}</div>'


def tiles(figures: Iterable[str], width: str) -> str:
    """Return figures side by side, as many as fit, none narrower than ``width`` (such as ``20rem``)."""
    return f'<div class="tiles" style="--tile: {width}">' + "\n".join(figures) + "</div>"


def missing(sentence: str) -> str:
    """Return a remark that something is missing, and why."""
    return f'<p class="missing">{escape(sentence)}</p>'


def pixels(array: np.ndarray, description: str) -> str:
    """Return an image, uint8 (H, W), (H, W, 3) or (H, W, 4), embedded in the page.

    >>> pixels(np.zeros((1, 1, 3), np.uint8), "black")[:42]
    '<img src="data:image/png;base64,iVBORw0KGg'
    """
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    height, width = array.shape[:2]
    size = f'width="{width}" height="{height}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="{escape(description)}">'


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], strong: Container[str] = ()) -> str:
    """Return a table whose rows begin with their names; cells are text, and bold in the ``strong`` rows.

    >>> table(["layer", "std"], [["a < b", "1.0"]])  # doctest: +ELLIPSIS
    '<table>...<tr><th scope="row">a &lt; b</th><td>1.0</td></tr></tbody></table>'
    """
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(
        f'<tr{" class=strong" * (first in strong)}><th scope="row">{escape(first)}</th>'
        + "".join(f"<td{'' if _is_number(cell) else ' class=text'}>{escape(cell)}</td>" for cell in others)
        + "</tr>"
        for first, *others in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts(pairs: Mapping[str, object]) -> str:
    """Return names and their values, side by side."""
    item = "<div><dt>{}</dt><dd>{}</dd></div>"
    items = (item.format(escape(name), escape(str(value))) for name, value in pairs.items())
    return f"<dl>{''.join(items)}</dl>"


def command(words: str) -> str:
    """Return a command as it is typed: one line, broken only between words if it is too long."""
    return "<pre>" + " ".join(f"<span>{escape(word)}</span>" for word in words.split()) + "</pre>"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Return a confusion matrix (K, K) as a table: the larger a cell's share of its row, the stronger."""
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in class_names)
    rows = []
    for k, (name, counts) in enumerate(zip(class_names, matrix, strict=True)):
        total = max(counts.sum(), 1)
        # The square root makes even the few mistakes of a good network visible.
        cells = "".join(
            f'<td{" class=right" * (j == k)} style="--share:{0.6 * np.sqrt(n / total):.2f}">{n or ""}</td>'
            for j, n in enumerate(counts)
        )
        accuracy = f"{100 * counts[k] / total:.1f}" if counts.sum() else "-"
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="total">{accuracy}</td></tr>')
    return (
        '<table class="confusion"><thead><tr><th scope="col">right \\ named</th>'
        f'{head}<th scope="col"><span>right, %</span></th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
