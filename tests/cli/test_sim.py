"""`kos sim`: what it prints, and the code with which it ends."""

from __future__ import annotations

import io
from typing import Any

import pytest

from kos_cluster.cli import simmembership, simworkload
from kos_cluster.cli.grammar import parse
from kos_cluster.cli.main import run
from kos_cluster.core.raft.elections import Elections
from kos_cluster.sim import membership, mutants, placing
from kos_cluster.sim.mutants import MUTANTS
from kos_cluster.sim.patching import patched
from kos_cluster.sim.report import replay
from kos_cluster.sim.run import Options


def kos(line: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = run(line.split(), out, err)
    return code, out.getvalue(), err.getvalue()


def defective() -> Any:
    return patched(MUTANTS["no-pre-vote"].patches)


def test_one_seed_tells_its_story():
    code, out, _ = kos("sim --seed 7 --minutes 0.1")
    assert code == 0
    for text in ("leader", "fault", "crashed", "healed", "seed 7:", "every invariant held", "sha256"):
        assert text in out
    assert "Heartbeat" not in out


def test_a_trace_shows_everything():
    assert "Heartbeat" in kos("sim --seed 7 --minutes 0.05 --faults none --trace")[1]


def test_a_trace_of_many_seeds_is_refused():
    code, out, err = kos("sim --seeds 2 --trace")
    assert (code, out) == (2, "") and "A trace is of one seed." in err


def test_a_fresh_seed_is_printed_and_replays():
    code, out, _ = kos("sim --minutes 0.05")
    seed = out.split("seed ", 1)[1].split(":", 1)[0]
    assert code == 0
    assert kos(f"sim --seed {seed} --minutes 0.05")[1] == out


def test_a_violation_ends_with_its_seed_and_the_line_that_replays_it():
    line = "kos sim --nodes 3 --seed 4 --faults crash,loss --minutes 0.1"
    with defective():
        code, out, _ = kos(line.removeprefix("kos "))
    assert code == 1
    assert "VIOLATED" in out and "elections" in out
    assert out.rstrip().endswith(f"to replay: {line}")


@pytest.mark.parametrize("options", [Options(), Options(3, 600.0, ()), Options(7, 20.04, ("crash", "loss"))])
def test_the_line_that_replays_means_the_same(options: Options):
    parsed = parse(replay(9, options).split()[1:])
    assert (parsed.nodes, parsed.seed, parsed.faults) == (options.nodes, 9, options.kinds)
    assert parsed.seconds == pytest.approx(options.seconds)


def test_many_seeds_are_summed_up():
    code, out, _ = kos("sim --seed 3 --seeds 4 --minutes 0.1")
    assert code == 0
    assert "seeds 3 to 6" in out and "4 seeds: 0 failed" in out and "at least 1 a seed" in out


def test_many_seeds_name_those_that_fail():
    with defective():
        code, out, _ = kos("sim --seed 3 --seeds 2 --minutes 0.05")
    assert code == 1
    assert "2 failed" in out and "kos sim --nodes 5 --seed 3 " in out


def test_mutants_are_a_table(monkeypatch: pytest.MonkeyPatch):
    few = {name: MUTANTS[name] for name in ("no-pre-vote", "ack-not-durable")}
    monkeypatch.setattr(mutants, "MUTANTS", few)
    code, out, _ = kos("sim --mutants")
    assert code == 0
    assert "no-pre-vote" in out and "2 of 2 defects were caught" in out
    monkeypatch.setattr(mutants, "SEEDS_LIMIT", 1)
    few["harmless"] = mutants.Mutant(
        "nothing at all", ((Elections, "persisted", Elections.persisted),), (), seconds=1.0
    )
    code, out, _ = kos("sim --mutants")
    assert code == 1 and "2 of 3 defects were caught" in out


def test_a_workload_is_measured_beside_its_aim_and_a_miss_ends_with_its_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placing, "SIZES", (2, 4, 8))
    for limit, code, said in ((1e9, 0, "the aim is at most"), (0.0, 1, "NOT reached: at most 0")):
        monkeypatch.setattr(simworkload, "RATIO_LIMIT", limit)
        ended, out, err = kos("sim --workload --seed 5 --tasks 300")
        assert ended == code and said in out.splitlines()[-1]
        assert out.splitlines()[-1].startswith("seed 5: on 8 nodes a task costs ")
        head, *rows = (line.split() for line in out.splitlines()[:-1])
        assert head[:5] == ["NODES", "TASKS", "COST", "A", "TASK"]
        assert [row[:2] for row in rows] == [["2", "300"], ["4", "300"], ["8", "300"]]
        assert "300 tasks are placed on each of 2, 4, 8 nodes" in err


def small(seed: int, stall_hours: float, measure: Any = membership.measure) -> membership.Report:
    """What is measured, of a few nodes."""
    return measure(seed, sizes=(10, 20), updates=1, crashes=2, stall_hours=stall_hours)


def test_membership_is_measured_beside_its_aims(monkeypatch: pytest.MonkeyPatch):
    measured = small(1, 0.01)
    monkeypatch.setattr(membership, "measure", small)
    code, out, _ = kos("sim --membership --seed 1 --hours 0.01")
    assert code == 0
    assert f"{measured.detection[0].p50_s:.2f} s" in out and f"{measured.spread[1].ratio:.2f}" in out
    assert out.endswith("seed 1: every aim was reached\n")
    assert kos("sim --membership --seed 1 --hours 0.01")[1] == out


def test_an_aim_of_membership_that_is_missed_is_told(monkeypatch: pytest.MonkeyPatch):
    found = small(1, 0.01)
    spread = [membership.Spread(30, 16.0, 10.0, 1.6, 900.0, 80.0), membership.Spread(100, 9.0, 9.0, 1.0, 900.0, 120.0)]
    slow = membership.Detection("lan", 8, 2, 5.5, 6.0, 6.0)
    stalls = membership.Stalls("fast", 4.0, 10, 2, 5, 1.0, 2.0)
    worse = membership.Report(1, spread, [slow], [stalls])
    assert not list(simmembership.failures(found))
    assert [text.split(" ")[0] for text in simmembership.failures(worse)] == ["an", "a", "a", "2"]
    monkeypatch.setattr(membership, "measure", lambda seed, stall_hours: worse)
    code, out, _ = kos("sim --membership")
    assert code == 1
    assert "NOT reached: 2 healthy nodes were declared dead, fast" in out and "4 aims missed" in out
