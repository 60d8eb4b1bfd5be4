"""scripts/bench, in a hurry: it measures, prints a table and hands out its samples."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from bench import plot, report, stats

ROOT = Path(__file__).parents[2]
OURS = {"publish 1 into 1", "unpublish 1 into 1", "publish 1 into 1,000", "unpublish 1 into 1,000"}


def test_the_benchmark_measures(tmp_path: Path):
    """Two cases with few samples: every series has samples, and they are written as they were printed."""
    found = tmp_path / "found.json"
    result = subprocess.run(
        [ROOT / ".venv/bin/python", "-m", "bench", "--quick", "--json", found, "change"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/tests:{ROOT}"},
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(found.read_text())
    assert {one["what"] for one in document["series"] if one["who"] == stats.OURS} == OURS
    assert all(one["samples"] for one in document["series"])
    assert "publish 1 into 1,000" in result.stdout


def test_what_is_missing_is_said_and_never_counted():
    """A peer that could not run has a row that says why, and an aim beside it is not met."""
    results = stats.Results(
        series=[
            stats.Series(case="run", what="1 port", who=stats.OURS, samples=(150.0, 170.0, 160.0)),
            stats.Series(case="run", what="1 port", who="docker", samples=(320.0,)),
            stats.Series(case="run", what="1 port", who="podman", missing="no such program"),
        ]
    )
    assert report.table(results)[1:] == [
        ["run", "1 port", "ctrport", "3", "160 ms", "150 to 170", "", ""],
        ["run", "1 port", "docker", "1", "320 ms", "", "", "0.5 of it"],
        ["run", "1 port", "podman", "0", "missing: no such program", "", "", ""],
    ]
    aim = stats.Aim(case="run", what="of podman", value=None, limit=0.8)
    assert report.aims([aim])[1:] == [["run", "of podman", "≤ 0.8", "nothing", "**no**"]]


def test_a_page_keeps_what_is_not_generated(tmp_path: Path):
    """The generated part is replaced between its marks, however often."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for text in ("first", "second"):
        report.write(page, text)
    assert page.read_text() == f"before\n{report.BEGIN}\n\nsecond\n\n{report.END}\nafter\n"


def test_a_curve_is_drawn_for_each():
    """A picture has a line and a name for each program, also with one value alone."""
    picture = plot.curves(
        "Cost", "ports", "ms", {"ours": [(1, 0.5), (1000, 0.5)], "<theirs>": [(1, 0.4), (1000, 40)]}
    )
    assert picture.count("<polyline") == 2
    assert "&lt;theirs&gt;" in picture
