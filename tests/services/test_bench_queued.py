"""`kos bench queued`: it measures a real program, and says what was reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kos_cluster.cli.main import run
from kos_cluster.services.bench.queued import AIM_BYTES, Figure, rendered
from kos_cluster.services.bench.reports import Report

TASKS = 1_000_000 >> 4  # so the tables, which double as they grow, are as full as those of the million that is promised


def test_the_report_says_what_was_reached() -> None:
    figures = [Figure("map", 1_000_000, 133_000_000), Figure("submit", 1_000, 301_000)]
    assert rendered(Report(figures, {"cores": 2}, {"kos": "1"})).splitlines() == [
        "map: 1,000,000 tasks queued by one map",
        "  133 MB, 133 bytes a task; aim 300: reached",
        "submit: 1,000 tasks queued by separate submits, their futures kept",
        "  0 MB, 301 bytes a task; aim 300: NOT reached",
        "Machine: cores 2",
        "Versions: kos 1",
    ]


def test_it_measures_programs_whose_tasks_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "queued", "--tasks", str(TASKS), "--json", str(tmp_path / "figures.json")]
    assert run(words, sys.stdout, sys.stderr) == 0
    figures = json.loads((tmp_path / "figures.json").read_bytes())["figures"]
    assert [figure["way"] for figure in figures] == ["map", "submit"]
    assert all(figure["grown_bytes"] / TASKS <= AIM_BYTES for figure in figures), figures
    assert f"{TASKS:,} tasks queued by one map" in capsys.readouterr().out
