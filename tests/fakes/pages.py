"""Reports of runs: a page taken apart, and programs run in this process."""

import json
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from scratchnet.report import RunReport

EXAMPLES = Path(__file__).parents[2] / "examples"
SECTIONS = ["curves", "doctor", "confusions", "mistakes", "filters", "maps", "gradcam", "settings"]
TINY = (
    "--backend numpy --data shapes10 --subset 64 --validation 60 "
    "--arch vgg11 --width 0.0625 --classifier-width 16"
)
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes and their text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.source = [], [], text
        self.feed(text)
        assert not self.open, "elements that are not closed"

    def handle_starttag(self, tag, attributes):
        element = SimpleNamespace(
            tag=tag, attributes=dict(attributes), text="", inside=[e.tag for e in self.open]
        )
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(SimpleNamespace(tag=tag, attributes=dict(attributes), text="", inside=[]))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, text):
        for element in self.open:
            element.text += text

    def all(self, tag, **attributes):
        return [e for e in self.elements if e.tag == tag and attributes.items() <= e.attributes.items()]

    def section(self, name):
        """The text of a section of the page."""
        (element,) = self.all("section", id=name)
        return " ".join(element.text.split())


def program(text):
    """Run a program in this process; return its exit status."""
    name, *arguments = text.split() if isinstance(text, str) else text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return caught.value.code


def train(folder, options):
    assert program(f"train_cifar.py {TINY} --run-dir {folder} {options}") == 0
    return folder


def written(run, **options):
    report = RunReport(run, **options)
    report.write()
    return Page(report.output.read_text(encoding="utf-8"))


def report(capsys, *arguments):
    status = program(["report.py", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return SimpleNamespace(status=status, out=out, err=err, last=err.strip().splitlines()[-1] if err else "")


def refused(capsys, sentence, *arguments):
    """Run report.py, which must end with one sentence, before any work."""
    done = report(capsys, *arguments)
    assert done.status == 2 and done.err == f"report.py: {sentence}\n"


def change_config(run, **changes):
    config = json.loads((run / "config.json").read_text())
    config["options"] |= changes.pop("options", {})
    (run / "config.json").write_text(json.dumps(config | changes))
