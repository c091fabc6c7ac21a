"""`kos bench memory`: it measures a real cluster, and says what was reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kos_cluster.cli.main import run
from kos_cluster.services.bench import memory
from kos_cluster.services.bench.memory import Figure, rendered
from kos_cluster.services.bench.reports import Report


def test_the_report_says_what_was_reached() -> None:
    report = Report(
        [
            Figure("copy", "a copy", 1 << 20, [2e9, 1e9, 4e9]),
            Figure("put", "a put", 1 << 20, [1.8e9], "the copy", [2e9, 1e9, 4e9], 0.8),
            Figure("result", "a result", 1 << 20, [1e9], "Dask with TLS", [2e9], 2.0),
            Figure("broadcast", "to many", 1 << 20, [1e9], "Dask's", [], 2.0),
        ],
        {"cores": 2},
        {"kos": "1"},
    )
    assert rendered(report).splitlines() == [
        "copy: a copy",
        "  median 2.00 GB/s (1.00 GB/s to 4.00 GB/s, 3 measurements)",
        "put: a put",
        "  median 1.80 GB/s (1.80 GB/s to 1.80 GB/s, 1 measurements)",
        "  0.90 times the copy; aim 0.8: reached",
        "result: a result",
        "  median 1.00 GB/s (1.00 GB/s to 1.00 GB/s, 1 measurements)",
        "  0.50 times Dask with TLS; aim 2: NOT reached",
        "broadcast: to many",
        "  median 1.00 GB/s (1.00 GB/s to 1.00 GB/s, 1 measurements)",
        "  Dask's is not installed",
        "Machine: cores 2",
        "Versions: kos 1",
    ]


def test_it_measures_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PUT_BYTES", "RESULT_BYTES", "BROADCAST_BYTES"):
        monkeypatch.setattr(memory, name, 4 << 20)
    monkeypatch.setattr(memory, "DASK", ("a_package_that_nobody_has",))
    assert (
        run(["bench", "memory", "--repeats", "1", "--json", str(tmp_path / "figures.json")], sys.stdout, sys.stderr)
        == 0
    )
    figures = json.loads((tmp_path / "figures.json").read_bytes())["figures"]
    assert [figure["name"] for figure in figures] == [
        "onto",
        "copy",
        "put",
        "result",
        "result_apart",
        "broadcast",
        "broadcast_apart",
    ]
    assert all(figure["repeats"][0] > 0 for figure in figures)
    assert "Dask with TLS is not installed" in capsys.readouterr().out
