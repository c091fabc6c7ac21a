"""`kos bench engines`: it says what was reached."""

from __future__ import annotations

from kos_cluster.services.bench.engines import Figure, rendered
from kos_cluster.services.bench.reports import Report


def test_the_report_says_what_was_reached() -> None:
    figures = [
        Figure("start", [4.0, 4.5, 6.0], [], 5.0),
        Figure("task", [0.0022, 0.0024, 0.0024], [0.0020, 0.0021, 0.0020], 1.1),
    ]
    assert rendered(Report(figures, {"cores": 2}, {"kos": "1"})).splitlines() == [
        "start: from `kos engine start dask --workers 3` to serving",
        "  4.50 s; 4.00 to 6.00 s; aim 5 s: reached",
        "task: a task, of 1,000 that are submitted and gathered",
        "  2.40 ms; 1.20 times plain Dask over TLS (2.00 ms); aim 1.1 times: NOT reached",
        "Machine: cores 2",
        "Versions: kos 1",
    ]
