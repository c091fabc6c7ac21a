"""A profile of tasks: what is added up, and the graph that is drawn of it."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from kos_cluster.tasks import context, profiling
from kos_kernel import profiles
from kos_kernel.profiles import OTHER, Profile


def content(node: str, stacks: dict[tuple[str, ...], float]) -> dict[str, Any]:
    return {"kind": "profile", "node": node, "took_s": 1.0, "stacks": [[list(s), t] for s, t in stacks.items()]}


MAIN, FIT, LOAD = "main (/src/a.py:1)", "fit (/src/a.py:9)", "<lambda> (/src/b&c.py:2)"


@pytest.fixture
def profile() -> Profile:
    made = Profile()
    made.add(content("one", {(MAIN, FIT): 0.6, (MAIN, LOAD): 0.2}))
    made.add(content("two", {(MAIN, FIT): 0.1, (MAIN, FIT, LOAD): 0.1}))
    return made


def test_equal_stacks_of_all_tasks_are_added(profile: Profile) -> None:
    assert profile.functions() == pytest.approx({FIT: 0.7, LOAD: 0.3})
    assert repr(profile).splitlines() == [
        "2 tasks (1 on one, 1 on two) took 2.00 s together.",
        "    0.700 s   70.0 %  fit (a.py:9)",
        "    0.300 s   30.0 %  <lambda> (b&c.py:2)",
    ]


def test_the_widths_of_the_graph_are_the_shares_of_time(profile: Profile) -> None:
    markup = profile._repr_html_()
    boxes = re.findall(r'<title>([^<]*)</title><rect x="([\d.]+)" y="(\d+)" width="([\d.]+)"', markup)
    shown = [(tip.partition(" ")[0], float(x), int(y), float(width)) for tip, x, y, width in boxes]
    assert shown == [
        ("main", 0.0, 0, 1000.0),
        ("fit", 0.0, 18, 800.0),
        ("&lt;lambda&gt;", 0.0, 36, 100.0),
        ("&lt;lambda&gt;", 800.0, 18, 200.0),
    ]
    assert "b&amp;c.py" in markup and "<script" not in markup and "http" not in markup


def test_what_is_not_beneath_the_cell_is_one_entry() -> None:
    made = Profile(beneath="<kos cell>")
    cell = "<module> (<kos cell>:2)"
    made.add(content("one", {("run (shell.py:1)", cell, FIT): 0.5, ("load (travel.py:3)",): 0.2, ("x (y.py:1)",): 0.1}))
    assert made.stacks == pytest.approx({(cell, FIT): 0.5, (OTHER,): 0.3})


def test_stacks_over_the_limit_are_told_as_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "STACKS_LIMIT", 1)
    made = Profile()
    made.add(content("one", {(MAIN,): 0.5, (FIT,): 1.5}))
    assert len(made.stacks) == 1 and "stacks of 1.5 s are left out" in repr(made)


def spin(seconds: float) -> str:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(100))
    return "done"


def test_a_function_is_sampled_from_its_own_frame_inwards(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(context, "display", sent.append)
    monkeypatch.setattr(context, "current", lambda: context.TaskContext("one", "j.0", 1))
    with profiling.collecting():
        wrapped = profiling.applied(spin)
    assert profiling.applied(spin) is spin
    assert wrapped(0.1) == "done"
    (told,) = sent
    assert told["kind"] == "profile" and told["node"] == "one" and told["took_s"] >= 0.1
    assert {stack[0].partition(" ")[0] for stack, _ in told["stacks"]} == {"spin"}
    assert sum(seconds for _, seconds in told["stacks"]) > 0.05


def test_the_sampler_itself_is_not_counted() -> None:
    name, file = profiling.SAMPLED
    worker = "run\x00/src/worker.py\x0010"
    call = f"__call__\x00{file}\x0050"
    task = f"{name}\x00{file}\x0070"
    stop = "stop\x00/site/pyinstrument/profiler.py\x00180"
    spent = profiling.summed([([worker, call, task, "fit\x00/src/a.py\x009"], 0.5), ([worker, call, stop], 0.2)])
    assert spent == {("fit (/src/a.py:9)",): 0.5}


def test_what_a_sampled_function_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "current", lambda: None)
    with pytest.raises(ZeroDivisionError):
        profiling.Profiled(lambda: 1 / 0)()
