"""`kos bench`: its arithmetic, its refusals, its clearing away, and one small run against a real embedded cluster."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from kos_cluster.errors import KosError, UsageError
from kos_cluster.services.bench import conduct, main
from kos_cluster.services.bench.figures import (
    Figure,
    Part,
    Report,
    Sample,
    Work,
    figures_of,
    judged,
    number,
    ratios_of,
    rendered,
)
from kos_cluster.services.bench.picture import times_slower
from kos_cluster.services.bench.plan import QUICK, Plan
from kos_cluster.services.bench.systems import ENTRIES, Entry

TINY = Plan(
    sync_s=0.1,
    submits=50,
    map_items=500,
    warm_up=4,
    spins=40,
    leaves=4,
    argument_bytes=2 << 20,
    broadcast_bytes=2 << 20,
    result_bytes=2 << 20,
    sweep_values=1,
    nap_s=0.05,
    reduce_bytes=1 << 20,
    sleeps=10,
    daemons=(2,),
)
OVERHEAD = (Work.FIRST_RESULT, Work.SYNC, Work.FEW_SUBMITS, Work.SUBMITS, Work.MAP, Work.MAP_CHUNKED)


def figure(work: Work, system: str, median: float) -> Figure:
    return Figure(work, system, median, "", [median], 1)


WORKS = {
    Part.WORK: [Work.MILLISECONDS, Work.TREE, Work.ARGUMENT, Work.BROADCAST, Work.RESULT, Work.SWEEP, Work.RECOVERY],
    Part.GANGS: [Work.GANG, Work.ALLREDUCE],
    Part.SCALING: [Work.SLEEPS_2],
}
EXTRA: dict[str, object] = {"only": ("overhead",), "picture": None}


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**({"peers": (), "json": None, "repeats": 1, "quick": True, **EXTRA} | given))


@pytest.fixture(autouse=True)
def _temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One of this test's own, as others may measure meanwhile; its path is short, for the sockets in it.

    pytest has made its own folder (`tmp_path`) where that belongs before this.
    """
    with tempfile.TemporaryDirectory(prefix="kt-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


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


def test_an_aim_is_told_with_whether_it_was_reached() -> None:
    medians = {
        (Work.SYNC, "kos"): 10.0,
        (Work.SYNC, "ray"): 5.0,
        (Work.SYNC, "bare"): 15.0,
        (Work.FIRST_RESULT, "kos"): 4.0,
        (Work.ALLREDUCE, "kos"): 0.6,
        (Work.ALLREDUCE, "mpi"): 0.3,
        (Work.TREE, "kos"): 1.0,
        (Work.BROADCAST, "kos"): 0.5,
        (Work.BROADCAST, "dask"): 0.1,
        (Work.BROADCAST, "dask-tls"): 1.5,
    }
    figures = [figure(work, system, median) for (work, system), median in medians.items()]
    report = Report(figures, ratios_of(figures), {}, {}, [], {}, {}, TINY)
    assert judged(Work.SYNC, report) == [
        "Aim: 3 times as fast as the best peer: NOT reached.",
        "Aim: the bare path at most 2 times as fast: reached.",
    ]
    assert judged(Work.FIRST_RESULT, report) == ["Aim: at most 3 s: NOT reached."]
    assert judged(Work.ALLREDUCE, report) == ["Aim: 0.33 times as fast as the best peer: reached."]
    assert judged(Work.BROADCAST, report) == ["Aim: 2 times as fast as Dask with TLS (it is 3.00): reached."]
    assert judged(Work.TREE, report) == []
    assert times_slower(report) == {
        Work.SYNC: {"ray": 2.0, "bare": 10 / 15},
        Work.ALLREDUCE: {"mpi": 0.5},
        Work.BROADCAST: {"dask": 0.2, "dask-tls": 3.0},
    }


def test_a_number_has_three_digits_that_count() -> None:
    assert [number(value) for value in (85_044.4, 100.0, 92.41, 1.0, 0.0124)] == [
        "85,044",
        "100",
        "92.4",
        "1.00",
        "0.0124",
    ]


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


def test_a_picture_is_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="not a picture's name"):
        main.run(arguments(picture=str(tmp_path / "figures.txt")))
    assert capsys.readouterr().err == ""


# ---- one run of one system


@pytest.mark.parametrize("part", [Part.WORK, Part.GANGS, Part.SCALING])
def test_every_other_part_gives_its_figures_on_kos_and_leaves_nothing(part: Part) -> None:
    result = conduct.run_once("kos", part, TINY)
    assert (result.failure, result.left) == ("", ())
    assert [sample.work for sample in result.samples] == WORKS[part]
    assert all(sample.value > 0 for sample in result.samples)
    assert folders() == []


def test_the_bare_path_gives_every_figure_and_leaves_nothing() -> None:
    result = conduct.run_once("bare", Part.OVERHEAD, TINY)
    assert (result.failure, result.left) == ("", ())
    assert {sample.work: sample.items for sample in result.samples if sample.work is not Work.SYNC} == {
        Work.FIRST_RESULT: 1,
        Work.FEW_SUBMITS: TINY.submits // 5,
        Work.SUBMITS: TINY.submits,
        Work.MAP: TINY.map_items,
        Work.MAP_CHUNKED: TINY.map_items,
    }
    assert all(sample.value > 0 for sample in result.samples)
    assert folders() == []


def test_a_run_that_takes_too_long_is_ended_and_says_so() -> None:
    result = conduct.run_once("bare", Part.OVERHEAD, msgspec.structs.replace(TINY, sync_s=600), timeout_s=2)
    assert "did not end within 2 s" in result.failure
    assert [sample.work for sample in result.samples] in ([], [Work.FIRST_RESULT])
    assert result.left, "the processes of the bare path were still there and had to be ended"
    assert not any(psutil.pid_exists(int(name.rpartition("(")[2].rstrip(")"))) for name in result.left)
    assert folders() == []


def test_a_system_that_breaks_is_reported_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    result = conduct.run_once("no-such-system", Part.OVERHEAD, TINY)
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
    monkeypatch.setattr(main, "QUICK", TINY)
    target = tmp_path / "figures.json"
    drawing = tmp_path / "figures.svg"
    assert main.run(arguments(peers=("loky",), json=str(target), picture=str(drawing))) == 0
    report = json.loads(target.read_bytes())
    assert set(report) == {
        "figures", "ratios", "setups", "skipped", "failures", "machine", "versions", "plan",
    }  # fmt: skip
    rows = {(row["work"], row["system"]): row for row in report["figures"]}
    assert {work for work, system in rows if system == "kos"} == {work.value for work in OVERHEAD}
    for row in rows.values():
        assert set(row) == {"work", "system", "median", "unit", "repeats", "items"}
        assert len(row["repeats"]) == 1
        assert row["repeats"][0] == row["median"] > 0
    assert report["ratios"]["sync"]["bare_over_kos"] == pytest.approx(
        rows["sync", "bare"]["median"] / rows["sync", "kos"]["median"]
    )
    assert report["ratios"]["map"] == {"best_peer": None, "ratio": None}, "loky is a reference, not a peer"
    assert report["skipped"] == {} and {work for work, system in rows if system == "loky"} == set(OVERHEAD)
    assert report["failures"] == []
    assert {"cores", "memory_bytes", "kernel", "cpu"} <= set(report["machine"])
    assert {"python", "kos-cluster", "pyzmq", "libzmq"} <= set(report["versions"])
    printed = capsys.readouterr()
    assert "The bare path is" in printed.out
    assert "repeat 1 of 1: overhead on kos" in printed.err
    assert "<svg" in drawing.read_text()
    assert folders() == []


def test_it_is_an_error_when_kos_itself_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "run_once", lambda system, part, plan: conduct.Run([], f"{system} broke"))
    with pytest.raises(KosError, match="What happened: overhead, repeat 1 kos broke"):
        main.run(arguments())
    assert "Skipped:" in capsys.readouterr().out


def test_repeats_are_interleaved_and_a_broken_system_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run_once(system: str, part: Part, plan: Plan) -> conduct.Run:
        order.append(f"{part} {system}")
        if system == "ray" and part is Part.OVERHEAD:
            return conduct.Run([], "broke")
        return conduct.Run([Sample(Work.SYNC if part is Part.OVERHEAD else Work.GANG, system, float(len(order)), 1)])

    monkeypatch.setattr(main, "run_once", run_once)
    parts = [Part.OVERHEAD, Part.GANGS]
    report = main.measured(["kos", "ray", "dask"], parts, 2, QUICK, {"loky": "not installed"})
    first = ["overhead kos", "overhead ray", "overhead dask", "gangs kos", "gangs ray"]
    assert order == [*first, "overhead kos", "overhead dask", "gangs kos", "gangs ray"]
    assert report.skipped == {"loky": "not installed"}
    assert report.failures == ["ray, overhead, repeat 1 broke"]
    assert {(f.work, f.system): f.repeats for f in report.figures} == {
        (Work.SYNC, "kos"): [1.0, 6.0],
        (Work.SYNC, "dask"): [3.0, 7.0],
        (Work.GANG, "kos"): [4.0, 8.0],
        (Work.GANG, "ray"): [5.0, 9.0],
    }
    text = rendered(report)
    assert "loky         not installed" in text
    assert "ray, overhead, repeat 1 broke" in text


def folders() -> list[str]:
    """The benchmark's temporary folders that exist."""
    return [path.name for path in Path(tempfile.gettempdir()).glob(f"{conduct._FOLDER_PREFIX}*")]
