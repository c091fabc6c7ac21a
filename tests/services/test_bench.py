"""`kos bench`: its arithmetic, its refusals, its clearing away, and one small run against a real embedded cluster."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kos_cluster.errors import KosError, UsageError
from kos_cluster.services.bench import conduct, main
from kos_cluster.services.bench.figures import Figure, Sample, Work, figures_of, ratios_of, rendered
from kos_cluster.services.bench.measure import QUICK, Plan
from kos_cluster.services.bench.systems import ENTRIES, Entry

TINY = Plan(sync_s=0.1, submits=50, map_items=500, warm_up=4)


def figure(work: Work, system: str, median: float) -> Figure:
    return Figure(work, system, median, "", [median], 1)


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**({"peers": (), "json": None, "repeats": 1, "quick": True} | given))


# ---- arithmetic


def test_a_figure_is_the_median_of_its_repeats_in_the_order_they_were_made() -> None:
    samples = [Sample(Work.SYNC, "kos", value, 7) for value in (30.0, 10.0, 20.0, 1000.0)]
    (result,) = figures_of(samples)
    assert (result.median, result.repeats, result.unit, result.items) == (25.0, [30.0, 10.0, 20.0, 1000.0], "1/s", 7)


def test_figures_are_grouped_by_work_in_a_fixed_order() -> None:
    samples = [
        Sample(Work.FIRST_RESULT, "kos", 1.0, 1),
        Sample(Work.SYNC, "ray", 1.0, 1),
        Sample(Work.SYNC, "kos", 1.0, 1),
        Sample(Work.FIRST_RESULT, "kos", 3.0, 1),
    ]
    assert [(f.work, f.system, f.median) for f in figures_of(samples)] == [
        (Work.SYNC, "ray", 1.0),
        (Work.SYNC, "kos", 1.0),
        (Work.FIRST_RESULT, "kos", 2.0),
    ]


def test_a_rate_is_compared_with_the_fastest_peer_and_with_the_bare_path() -> None:
    rates = {"kos": 1500.0, "dask": 80.0, "ray": 300.0, "ipyparallel": 100.0, "loky": 9000.0, "bare": 2400.0}
    ratio = ratios_of([figure(Work.SYNC, system, rate) for system, rate in rates.items()])["sync"]
    assert (ratio.best_peer, ratio.ratio, ratio.bare_over_kos) == ("ray", 5.0, 1.6)


def test_a_duration_is_compared_with_the_shortest_and_above_one_still_favours_kos() -> None:
    seconds = {"kos": 2.0, "dask": 1.0, "ray": 3.0, "loky": 0.1, "bare": 0.1}
    ratio = ratios_of([figure(Work.FIRST_RESULT, system, value) for system, value in seconds.items()])["first_result"]
    assert (ratio.best_peer, ratio.ratio, ratio.bare_over_kos) == ("dask", 0.5, None)


def test_without_peers_there_is_no_ratio_and_without_kos_no_entry() -> None:
    assert ratios_of([figure(Work.MAP, "kos", 5.0), figure(Work.MAP, "loky", 1.0)])["map"].ratio is None
    assert ratios_of([figure(Work.MAP, "ray", 5.0)]) == {}


# ---- refusals


@pytest.mark.parametrize("repeats", [0, -1])
def test_no_repeats_are_refused(repeats: int) -> None:
    with pytest.raises(UsageError, match="measure nothing"):
        main.run(arguments(repeats=repeats))


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="Cannot write"):
        main.run(arguments(json=str(tmp_path / "none" / "figures.json")))
    assert capsys.readouterr().err == ""


def test_a_peer_that_is_not_installed_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENTRIES, "absent", Entry("absent", "absent", ("no_such_module_at_all",), ""))
    assert main.missing_peers(["absent"]) == {
        "absent": "not installed: no_such_module_at_all (pip install 'kos-cluster[bench]')"
    }


# ---- one run of one system


def test_the_bare_path_gives_every_figure_and_leaves_nothing() -> None:
    before = folders()
    result = conduct.run_once("bare", TINY)
    assert (result.failure, result.left) == ("", ())
    assert {sample.work: sample.items for sample in result.samples if sample.work is not Work.SYNC} == {
        Work.FIRST_RESULT: 1,
        Work.SUBMITS: TINY.submits,
        Work.MAP: TINY.map_items,
        Work.MAP_CHUNKED: TINY.map_items,
    }
    assert all(sample.value > 0 for sample in result.samples)
    assert folders() == before


def test_a_run_that_takes_too_long_is_ended_and_says_so() -> None:
    before = folders()
    result = conduct.run_once("bare", Plan(sync_s=600, submits=1, map_items=1, warm_up=1), timeout_s=2)
    assert "did not end within 2 s" in result.failure
    assert [sample.work for sample in result.samples] in ([], [Work.FIRST_RESULT])
    assert result.left, "the processes of the bare path were still there and had to be ended"
    assert not any(psutil.pid_exists(int(name.rpartition("(")[2].rstrip(")"))) for name in result.left)
    assert folders() == before


def test_a_system_that_breaks_is_reported_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    result = conduct.run_once("no-such-system", TINY)
    assert result.samples == []
    assert "ended with status 1" in result.failure
    assert "no-such-system" in result.failure


def test_processes_that_left_the_session_are_ended_too() -> None:
    mark = "0123456789abcdef"
    code = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {conduct.MARK: mark}
    )
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    started.wait()
    started.stdout.close()
    assert len(conduct._cleared(mark, linger_s=0)) == 1
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# ---- the whole command


def test_a_quick_run_measures_kos_beside_the_bare_path_and_loky(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folders()
    monkeypatch.setattr(main, "QUICK", TINY)
    target = tmp_path / "figures.json"
    assert main.run(arguments(peers=("loky",), json=str(target))) == 0
    report = json.loads(target.read_bytes())
    assert set(report) == {
        "figures", "ratios", "setups", "skipped", "failures", "machine", "versions",
    }  # fmt: skip
    rows = {(row["work"], row["system"]): row for row in report["figures"]}
    assert {work for work, system in rows if system == "kos"} == {work.value for work in Work}
    for row in rows.values():
        assert set(row) == {"work", "system", "median", "unit", "repeats", "items"}
        assert len(row["repeats"]) == 1
        assert row["repeats"][0] == row["median"] > 0
    assert report["ratios"]["sync"]["bare_over_kos"] == pytest.approx(
        rows["sync", "bare"]["median"] / rows["sync", "kos"]["median"]
    )
    assert report["ratios"]["map"] == {"best_peer": None, "ratio": None}, "loky is a reference, not a peer"
    assert ("loky" in report["skipped"]) == (("sync", "loky") not in rows)
    assert report["failures"] == []
    assert {"cores", "memory_bytes", "kernel", "cpu"} <= set(report["machine"])
    assert {"python", "kos-cluster", "pyzmq", "libzmq"} <= set(report["versions"])
    printed = capsys.readouterr()
    assert "The bare path is" in printed.out
    assert "repeat 1 of 1: kos" in printed.err
    assert folders() == before


def test_it_is_an_error_when_kos_itself_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "run_once", lambda system, plan: conduct.Run([], f"{system} broke"))
    with pytest.raises(KosError, match="What happened: repeat 1 kos broke"):
        main.run(arguments())
    assert "Skipped:" in capsys.readouterr().out


def test_repeats_are_interleaved_and_a_broken_system_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run_once(system: str, plan: Plan) -> conduct.Run:
        order.append(system)
        if system == "ray":
            return conduct.Run([], "broke")
        return conduct.Run([Sample(Work.SYNC, system, float(len(order)), 1)])

    monkeypatch.setattr(main, "run_once", run_once)
    report = main.measured(["kos", "ray", "dask"], 2, QUICK, {"loky": "not installed"})
    assert order == ["kos", "ray", "dask", "kos", "dask"]
    assert report.skipped == {"loky": "not installed", "ray": "repeat 1 broke"}
    assert {f.system: f.repeats for f in report.figures} == {"kos": [1.0, 4.0], "dask": [3.0, 5.0]}
    text = rendered(report)
    assert "loky         not installed" in text
    assert "ray          repeat 1 broke" in text


def folders() -> set[str]:
    """The benchmark's temporary folders that exist."""
    return {path.name for path in Path(os.environ.get("TMPDIR", "/tmp")).glob(f"{conduct._FOLDER_PREFIX}*")}
