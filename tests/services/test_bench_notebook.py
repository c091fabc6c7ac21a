"""`kos bench notebook`: it measures real kernels, and says what was reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kos_cluster.cli.main import run
from kos_cluster.services.bench import notebook
from kos_cluster.services.bench.notebook import Figure, rendered
from kos_cluster.services.bench.reports import Report


def test_the_report_says_what_was_reached() -> None:
    figures = [
        Figure("submit", "a no-op", [0.002, 0.001, 0.004]),
        Figure("cell", "a cell", [0.009], 0.01),
        Figure("kernel", "a kernel", [1.2], 1.0),
    ]
    assert rendered(Report(figures, {"cores": 2}, {"kos": "1"})).splitlines() == [
        "submit: a no-op",
        "  median 2.0 ms (1.0 ms to 4.0 ms, 3 measurements)",
        "cell: a cell",
        "  median 9.0 ms (9.0 ms to 9.0 ms, 1 measurements); aim 10.0 ms: reached",
        "kernel: a kernel",
        "  median 1.20 s (1.20 s to 1.20 s, 1 measurements); aim 1.00 s: NOT reached",
        "Machine: cores 2",
        "Versions: kos 1",
    ]


def test_it_measures_cells_completion_and_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, less in (("SETTLE_S", 0.0), ("WARM_UPS", 0), ("FEWEST", 1)):
        monkeypatch.setattr(notebook, name, less)
    words = ["bench", "notebook", "--repeats", "2", "--json", str(tmp_path / "figures.json")]
    assert run(words, sys.stdout, sys.stderr) == 0
    figures = json.loads((tmp_path / "figures.json").read_bytes())["figures"]
    counts = {figure["name"]: len(figure["repeats_s"]) for figure in figures}
    few = dict.fromkeys(("load", "plain kernel", "kernel", "kernel beyond plain"), 1)
    assert counts == few | dict.fromkeys(("submit", "cell", "cell beyond submit", "completion"), 2)
    assert all(figure["repeats_s"][0] > 0 for figure in figures if "beyond" not in figure["name"])
