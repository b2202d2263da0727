"""Words from outside: what a file, a server or a name of a file says is shown, and never obeyed."""

from __future__ import annotations

import unicodedata

# Controls (what moves the cursor, rings, or begins an escape sequence), formats that are not seen (those that
# turn the direction of writing, too), and separators of lines; but for the two that join letters and emoji.
UNPRINTABLE = {"Cc", "Cf", "Zl", "Zp"}
JOINERS = "\u200c\u200d"
LONGEST = 10_000  # characters of a message


def printable(text: str) -> str:
    r"""Spell out what a terminal would obey rather than show, on one line.

    >>> printable("cat\x1b[2J\n")
    'cat\\x1b[2J\\n'
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in UNPRINTABLE and character not in JOINERS


class FileError(Exception):
    r"""What is wrong with a file, a folder or an address, in one sentence that quotes it.

    Parameters
    ----------
    sentence : str
        What it quotes is spelt out when it is shown, and cut short where it is endless.
    advice : str
        More lines, which quote nothing.

    Examples
    --------
    >>> str(FileError("evil\x1b[2J.png is no image"))
    'evil\\x1b[2J.png is no image'
    """

    def __init__(self, sentence: str = "", advice: str = ""):
        super().__init__(sentence)
        self.advice = advice

    def __str__(self) -> str:
        shown = printable(str(self.args[0]))
        if len(shown) > LONGEST:
            shown = f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"
        return shown + self.advice
