"""`kos bench control`: its arithmetic, what it reads, and small runs against real daemons."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from kos_cluster.errors import KosError, StateError, UsageError
from kos_cluster.services import sweeping
from kos_cluster.services.bench import fleet
from kos_cluster.services.bench.control import detection, failover, joining, main, rates, rest
from kos_cluster.services.bench.control.figures import (
    AIMS,
    MEANINGS,
    UNITS,
    Figure,
    Report,
    Work,
    figure,
    quantile,
    rendered,
    verdicts,
)

TINY_S = 0.2
WAIT_S = 60.0


def report(*figures: Figure) -> Report:
    return Report(list(figures), verdicts(figures), [], {"cores": 2}, {"python": "3"})


@pytest.fixture
def temporary(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made in this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    return short_folder


# ---- arithmetic


def test_a_quantile_is_a_value_that_was_measured():
    hundred = [float(value) for value in range(100, 0, -1)]
    assert [quantile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert quantile([7.0], 0.5) == quantile([7.0], 0.99) == 7.0


def test_a_figure_keeps_its_measurements_in_their_order():
    made = figure(Work.FAILOVER, [3.0, 1.0, 2.0], "5 nodes")
    assert (made.median, made.unit, made.repeats, made.system) == (2.0, "s", [3.0, 1.0, 2.0], "kos")


def test_every_work_has_a_unit_and_a_meaning():
    assert set(UNITS) == set(MEANINGS) == set(Work)


def test_an_aim_is_judged_by_its_quantile_and_its_direction():
    slow_once = figure(Work.FAILOVER, [0.8] * 50 + [2.5] * 2, "")
    assert [(v.share, v.value, v.reached) for v in verdicts([slow_once])] == [(0.5, 0.8, True), (0.99, 2.5, False)]
    assert [v.reached for v in verdicts([figure(Work.WRITES, [900.0, 1_000.0, 5_000.0], "")])] == [True]
    assert [v.reached for v in verdicts([figure(Work.READS, [900.0, 4_999.0, 9_000.0], "")])] == [False]
    assert [v.reached for v in verdicts([figure(Work.IDLE_CPU, [0.5, 0.5, 1.1], "")])] == [False], "each is to reach it"
    assert {aim.work for aim in AIMS} == set(Work) - {Work.SUSPICIONS}


def test_the_report_says_what_was_not_reached():
    text = rendered(report(figure(Work.READS, [4_000.0, 4_200.0], "64 clients"), figure(Work.DEATHS, [0], "50 nodes")))
    assert "median 4,100 1/s (4,000 to 4,200, 2 measurements)" in text
    assert "aim for the median: 5,000 1/s; NOT reached: 4,100 1/s" in text
    assert "aim for the worst: 0 in all; reached" in text
    assert "cores 2" in text and "64 clients" in text


# ---- what is read


def test_a_log_tells_what_happened():
    log = (
        "INFO kos_cluster.node.membership: node2 is suspect (was alive).\n"
        "INFO kos_cluster.node.membership: node2 is dead (was suspect).\n"
        "INFO kos_cluster.node.membership: node2 is alive (was dead).\n"
        "INFO kos_cluster.node.consensus: Term 3: this node is candidate, the coordinator is not known.\n"
        "INFO kos_cluster.node.consensus: Term 3: this node is leader, the coordinator is ab12.\n"
        "INFO kos_cluster.node.consensus: Term 4: this node is follower, the coordinator is cd34.\n"
    )
    assert rest.events_of(log) == rest.Events(suspicions=1, deaths=1, elections=1)
    assert fleet.elections(log) == [3]


def test_memory_and_processor_time_are_those_of_the_process():
    assert 1e6 < rest.pss_bytes(os.getpid()) < psutil.Process().memory_info().rss * 1.1
    times = psutil.Process().cpu_times()
    assert rest.cpu_s(os.getpid()) == pytest.approx(times.user + times.system, abs=1.0)


# ---- real daemons


def test_the_coordinator_is_killed_twice_and_the_next_proposal_committed(temporary: Path):
    (found,) = asyncio.run(failover.measure(nodes=3, kills=2))
    assert found.work is Work.FAILOVER
    assert len(found.repeats) == 2 and all(0 < value < failover.ANSWER_TIMEOUT_S for value in found.repeats)
    assert not list(temporary.iterdir())


def test_a_killed_node_is_held_dead_by_all_others():
    (found,) = asyncio.run(detection.measure("fast", nodes=3, kills=1))
    assert found.work is Work.DETECTION_FAST
    assert 0 < found.median < detection.DEAD_TIMEOUT_S


def test_a_node_joins_and_runs_its_first_task(temporary: Path):
    (found,) = joining.measure(repeats=1)
    assert found.work is Work.FIRST_TASK and found.median > 0
    assert not list(temporary.iterdir())


def test_writes_and_reads_are_counted():
    writes, reads = asyncio.run(rates.measure(round_s=TINY_S, repeats=1, clients=8))
    assert (writes.work, reads.work) == (Work.WRITES, Work.READS)
    assert writes.median > 1 / TINY_S and reads.median > 1 / TINY_S


def test_daemons_rest():
    found = {each.work: each for each in asyncio.run(rest.measure(nodes=2, rest_s=TINY_S, calm_s=0.0))}
    assert len(found[Work.MEMORY].repeats) == 2 and all(5 < value < 500 for value in found[Work.MEMORY].repeats)
    assert len(found[Work.IDLE_CPU].repeats) == len(found[Work.COORDINATOR_CPU].repeats) == 1
    assert found[Work.DEATHS].repeats == [0]


def test_a_fleet_that_breaks_leaves_nothing(temporary: Path):
    pids: list[int] = []

    def work() -> None:
        with fleet.fleet(2) as cluster:
            pids.extend(cluster.pid(node) for node in cluster.nodes)
            cluster.kill(cluster.nodes[0])
            raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        work()
    assert pids and not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert not list(temporary.iterdir())


# ---- the command


def test_an_end_by_sigterm_leaves_nothing(temporary: Path) -> None:
    words = ["-m", "kos_cluster.cli.main", "bench", "control", "--only", "rest", "--nodes", "2", "--minutes", "60"]
    bench = subprocess.Popen([sys.executable, *words], env=os.environ | {"TMPDIR": str(temporary)})
    deadline = time.monotonic() + WAIT_S
    while len(list(temporary.glob("kb-*/*/clusters/local/run/*/ready.json"))) < 2:
        assert time.monotonic() < deadline and bench.poll() is None
        time.sleep(0.05)
    bench.terminate()
    assert bench.wait(WAIT_S) == 130
    assert not list(temporary.iterdir())
    assert not sweeping.belonging([temporary])


def arguments(**given: object) -> argparse.Namespace:
    defaults = {"only": ("failover",), "kills": 1, "nodes": 2, "rest_s": TINY_S, "json": None}
    return argparse.Namespace(**(defaults | given))


def test_the_command_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measured(kills: int) -> list[Figure]:
        return [figure(Work.FAILOVER, [0.5] * kills, "5 nodes")]

    async def broken(nodes: int, rest_s: float) -> list[Figure]:
        raise StateError(f"{nodes} nodes did not rest.")

    monkeypatch.setattr(failover, "measure", measured)
    monkeypatch.setattr(rest, "measure", broken)
    target = tmp_path / "figures.json"
    assert main.run(arguments(only=("failover", "rest"), kills=3, json=str(target))) == 0
    written = json.loads(target.read_bytes())
    (row,) = written["figures"]
    assert {key: row[key] for key in ("work", "system", "median", "unit", "repeats")} == {
        "work": "failover", "system": "kos", "median": 0.5, "unit": "s", "repeats": [0.5, 0.5, 0.5],
    }  # fmt: skip
    assert [aim["reached"] for aim in written["aims"]] == [True, True]
    assert written["failures"] == ["rest: 2 nodes did not rest."]
    assert "load" in written["machine"] and "python" in written["versions"]
    told = capsys.readouterr()
    assert "2 nodes did not rest" in told.out and "measuring rest" in told.err


def test_it_is_an_error_when_nothing_could_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(kills: int) -> list[Figure]:
        raise StateError("No node started.")

    monkeypatch.setattr(failover, "measure", broken)
    with pytest.raises(KosError, match="No node started"):
        main.run(arguments())


def test_a_file_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot write"):
        main.run(arguments(json=str(tmp_path / "missing" / "figures.json")))
