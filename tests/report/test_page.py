"""The page of a run as a file: whole, self-contained, and readable by everybody."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image

from tests.fakes.pages import SECTIONS

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plot)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_page_has_every_section_and_links_to_each(shown):
    assert [e.attributes["id"] for e in shown.all("section")] == SECTIONS
    assert [e.attributes["href"] for e in shown.all("a")] == [f"#{name}" for name in SECTIONS]
    assert all(len(shown.section(name)) > 50 for name in SECTIONS)


def test_it_loads_nothing_from_anywhere(shown):
    for element in shown.elements:
        assert element.tag not in ("script", "iframe", "object", "video", "audio", "base", "form")
        for name, value in element.attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value.startswith(("data:", "#")), (element.tag, value[:80])
    style = shown.all("style")
    assert not any("@import" in e.text or "url(" in e.text and "url(#" not in e.text for e in style)
    assert "http" not in re.sub(r'base64,[^"]*', "", shown.source)


def test_names_are_unique_and_all_that_is_pointed_at_is_there(shown):
    names = [e.attributes["id"] for e in shown.elements if "id" in e.attributes]
    assert len(names) == len(set(names))
    pointed = re.findall(r'(?:href="|url\()#([^")]*)', shown.source)
    assert len(pointed) > len(SECTIONS)
    assert set(pointed) <= set(names)


def test_screen_readers_are_served(shown):
    assert shown.all("html", lang="en") and len(shown.all("title")) == len(shown.all("h1")) == 1
    assert len(shown.all("img")) > 20
    assert all(len(image.attributes["alt"]) > 3 for image in shown.all("img"))
    drawings = shown.all("svg")
    assert len(drawings) == 3
    assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in drawings)
    assert len(shown.all("figcaption")) == len(shown.all("figure")) > 20
    assert shown.all("table") and all(th.attributes["scope"] in ("col", "row") for th in shown.all("th"))


def test_every_image_is_one(shown):
    for image in shown.all("img"):
        pixels = Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].partition("base64,")[2])))
        assert pixels.size == (int(image.attributes["width"]), int(image.attributes["height"]))


def test_the_page_is_small(shown):
    assert len(shown.source) < 500_000


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_it_without_complaints_and_without_scrolling_sideways(shown, tmp_path, width):
    # In a frame, since no window of Chromium's is as narrow as a phone.
    measure = """<script>addEventListener("load", () => {
        const frame = document.querySelector("iframe"), page = frame.contentDocument;
        const svgs = [...page.querySelectorAll("svg")], images = [...page.images];
        const result = {
            images: images.length, broken: images.filter(i => !(i.complete && i.naturalWidth)).length,
            width: frame.contentWindow.innerWidth, needed: page.documentElement.scrollWidth,
            drawn: Math.min(...svgs.map(svg => svg.getBoundingClientRect().height)) };
        document.body.innerHTML = "<p id=result>" + JSON.stringify(result) + "</p>"; });</script>"""
    frame = f'<iframe style="width: {width}px; border: 0" srcdoc="{html.escape(shown.source)}"></iframe>'
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html>{measure}{frame}", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,900", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", "--v=0", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    result = json.loads(html.unescape(re.search(r"<p id=.result.>(.*?)</p>", done.stdout)[1]))
    assert result["images"] > 20 and result["broken"] == 0 and result["drawn"] > 100
    assert result["needed"] <= result["width"] == width
