"""README's image is drawn from the newest results, and the same results give the same image."""

import importlib
import shutil
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_newest_page_and_run_are_drawn(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason='matplotlib is not installed: pip install --editable ".[plot]"')
    monkeypatch.syspath_prepend(BENCHMARKS)
    headline = importlib.import_module("headline")
    results = sorted((BENCHMARKS / "results").glob("20??-??-??.json"))[-1]
    log = sorted((BENCHMARKS / "results").glob("*-runs/vgg16-bn/log.csv"))[-1]
    (tmp_path / "2026-01-31-runs/vgg16-bn").mkdir(parents=True)
    shutil.copy(log, tmp_path / "2026-01-31-runs/vgg16-bn")
    shutil.copy(results, tmp_path / "2026-01-31.json")
    (tmp_path / "2025-01-31.json").write_text("{}")
    monkeypatch.setattr(headline, "RESULTS", tmp_path)
    image = tmp_path / "2026-01-31-headline.svg"
    contents = []
    for _ in range(2):
        headline.main()
        contents.append(image.read_bytes())
    assert capsys.readouterr().out == f"{image}\n" * 2
    assert contents[0] == contents[1] and b"<svg" in contents[0]
