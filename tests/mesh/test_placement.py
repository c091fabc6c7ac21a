"""Where tasks go on real nodes, what they are given there, and what becomes of those that take more."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kos_cluster as kos
from kos_cluster.cli.main import run
from kos_cluster.core.records import AttemptEnd, TaskState
from kos_cluster.errors import PlacementError, TaskLostError, UsageError
from kos_cluster.node import machine
from kos_cluster.tasks import launching
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.why import WouldGo
from tests.mesh.conftest import Mesh, until
from tests.mesh.errands import hold, where, with_gpus
from tests.mesh.pretending import pretend


def jobs_of(mesh: Mesh) -> set[str]:
    """The ids of all jobs of this process."""
    return {job.job for job in mesh.cluster.own_jobs()}


def test_labels_and_nodes_lead_to_nodes_and_away_from_them(mesh: Mesh):
    cluster = mesh.cluster
    assert cluster.submit(where, away_from="node1", labels="site=here").result(60) == "node2"
    assert set(cluster.map(_stay_and_tell, range(2), spread=True)) == {"node1", "node2"}
    with pytest.raises(PlacementError, match="node1: its site is here, which the task is to be away from; node2: its"):
        cluster.submit(where, labels="site!=here")


def _stay_and_tell(_: int) -> str:
    """A call that is long enough for the other to be placed while it runs."""
    time.sleep(0.2)
    return where()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resources": {"licence": 2}}, "needs 2 of licence, the most are 1 on node1"),
        ({"resources": {"scanner": 1}}, "needs 1 of scanner, the most are 0 on node1"),
        ({"gpus": 10_000}, r"needs 10000 GPUs, the most are \d+ on node"),
        ({"memory": "900T"}, r"needs 921600 GiB, the largest is [\d.]+ GiB on node1"),
        ({"near": "nobody"}, "No job is called 'nobody', so nothing can be near to it"),
    ],
)
def test_what_can_never_run_is_refused_at_once_with_the_arithmetic(mesh: Mesh, options: dict, said: str):
    with pytest.raises(PlacementError, match=said):
        mesh.cluster.submit(where, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"near": "web", "apart": "web"}, "be near job web and apart from it"),
        ({"on": "node1", "away_from": ["node2", "node1"]}, "be on node1 and away from it"),
        ({"labels": ["site=here", "site=there"]}, "be where site is here and where it is there"),
    ],
)
def test_wishes_that_contradict_each_other_are_refused_and_no_job_appears(mesh: Mesh, options: dict, said: str):
    """Before anybody is asked: it is not said that no job is called web."""
    before = jobs_of(mesh)
    calls: list[Callable[[], object]] = [
        lambda: mesh.cluster.submit(where, **options),
        lambda: mesh.cluster.map(where, range(2), **options),
        lambda: mesh.cluster.would_go(**options),
    ]
    for call in calls:
        with pytest.raises(PlacementError) as refused:
            call()
        assert str(refused.value) == f"No task can {said}. Leave out one of the two."
    assert jobs_of(mesh) <= before


@pytest.mark.parametrize("more", [[], ["--distribute"], ["--detach"], ["--gang", "2"]], ids=" ".join)
def test_a_command_that_is_to_be_on_a_node_and_away_from_it_is_refused_and_runs_nowhere(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("open('ran', 'w')\n")
    before = jobs_of(mesh)
    out, err = io.StringIO(), io.StringIO()
    words = ["run", *more, "--on", "node1", "--away-from", "node1", "script.py"]
    assert run(words, out, err) == PlacementError.exit_code
    assert err.getvalue() == "kos: No task can be on node1 and away from it. Leave out one of the two.\n"
    assert out.getvalue() == "" and jobs_of(mesh) <= before
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


HOLDER = """
import kos_cluster as kos
from tests.mesh.errands import hold
kos.connect().submit(hold, {mark!r}, {go!r}, on="node1", cpus={slots}).result()
"""


@pytest.mark.parametrize(
    ("elsewhere", "why"),
    [
        (False, "it needs 1 slot, the node node1. node1: all {0} slots hold work of this owner; node2: "),
        (True, "it is queued until a slot is free ({0} of {0} busy, "),
    ],
    ids=["behind its own", "behind another program's"],
)
def test_a_program_that_has_not_begun_after_a_while_says_why(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool, why: str
):
    monkeypatch.setattr(launching, "TOLD_AFTER_S", 0.2)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    mark, go = str(tmp_path / "mark"), str(tmp_path / "go")
    slots = next(node["slots"] for node in mesh.cluster.nodes() if node["name"] == "node1")
    if elsewhere:
        mesh.program(HOLDER.format(mark=mark, go=go, slots=slots))
    else:
        mesh.cluster.submit(hold, mark, go, on="node1", cpus=slots)
    until(lambda: os.path.exists(mark), "the slots of node1 are taken")
    said: list[str] = []

    def report(sentence: str) -> None:
        said.append(sentence)
        Path(go).touch()

    assert launching.run_command(mesh.cluster, "exit 3", on="node1", report=report) == 3
    (sentence,) = said
    assert sentence.startswith(f"it has not begun: {why.format(slots)}")
    assert re.search(r"\. Type 'kos why \w+\.0' later to see more\.$", sentence)


def test_why_tells_what_spoke_for_the_node_of_a_task_that_runs(mesh: Mesh, tmp_path: Path):
    mark, go = str(tmp_path / "mark"), tmp_path / "go"
    slots = next(node["slots"] for node in mesh.cluster.nodes() if node["name"] == "node2")
    ref = mesh.cluster.submit(made, 2 << 20, on="node2").result()
    future = mesh.cluster.submit(hold_with, ref, mark, str(go))
    until(lambda: os.path.exists(mark), "it runs")
    (row,) = mesh.cluster.why(future.task)
    go.touch()
    assert future.result() == 2 << 20
    assert (row.node, row.state) == ("node2", TaskState.RUNNING)
    chosen = f"; the node was chosen with {slots} of {slots} slots free, 2 MiB of 2 MiB of its inputs are there"
    assert re.sub(r" for \d+ s", "", row.why) == f"it runs{chosen}"


def made(size_bytes: int) -> kos.BlockRef:
    return kos.stay(bytes(size_bytes))


def hold_with(content: bytes, mark: str, go: str) -> int:
    """As `hold`, with something to read."""
    hold(mark, go)
    return len(content)


class ThreeGpus(Mesh):
    """Two nodes of a machine that has three GPUs, as far as files in /dev tell."""

    def _up(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            pretend(patch, self.folder / "pretended", 3)
            super()._up()


def test_the_nodes_of_one_machine_divide_its_memory_and_gpus():
    total_bytes = machine.memory_bytes()
    two = ThreeGpus(2)
    try:
        cluster = two.cluster
        until(lambda: two.alive() == 2, "both are alive")
        members = {member.name: member for member in cluster.heard().members or ()}
        assert {name: member.memory_bytes for name, member in members.items()} == {
            "node1": total_bytes // 2,
            "node2": total_bytes // 2,
        }
        given = {
            node: cluster.submit(with_gpus, 0.0, on=node, gpus=members[node].gpus).result(60)[0] for node in members
        }
        assert given == {"node1": "0,2", "node2": "1"}
        with pytest.raises(PlacementError, match="needs 3 GPUs, the most are 2 on node1"):
            cluster.submit(where, gpus=3)
        with pytest.raises(PlacementError, match=r"needs [\d.]+ GiB, the largest is [\d.]+ GiB on node"):
            cluster.submit(where, memory=f"{total_bytes * 3 // 4 >> 20}M")
    finally:
        two.down()


def test_a_declared_resource_is_given_and_comes_back(mesh: Mesh):
    assert list(mesh.cluster.map(abs, range(-20, 0), resources={"licence": 1})) == list(range(20, 0, -1))


def test_a_worker_over_its_memory_is_stopped_and_its_story_says_so(mesh: Mesh):
    future = mesh.cluster.submit(_take, 400, memory="200M", retries=0)
    with pytest.raises(TaskLostError, match=r"took too much memory: it held [\d.]+ MiB, and had declared 200 MiB"):
        future.result(60)
    (attempt,) = future.story().attempts
    assert attempt.end is AttemptEnd.MEMORY_LIMIT and "had declared 200 MiB" in attempt.cause
    assert mesh.cluster.submit(_take, 50, memory="200M").result(60) == 50


def _take(mib: int) -> int:
    data = bytearray(os.urandom(1 << 20) * mib)
    if mib > 200:
        time.sleep(60)  # until it is stopped
    return len(data) >> 20


def test_it_is_told_where_a_task_would_go_and_nothing_is_run(mesh: Mesh):
    told = mesh.cluster.would_go(away_from="node1")
    assert told.node == "node2" and "slots free" in told.reasons[0]
    assert told.nodes["node1"] == "the task is to be away from it"
    assert all(job.name != "such a task" for job in mesh.cluster.jobs())


def test_a_dry_run_is_told_in_words_and_refused_as_a_run_is(mesh: Mesh):
    out, err = io.StringIO(), io.StringIO()
    assert run(["dry-run", "--away-from", "node1", "--label", "site=here", "ls"], out, err) == 0
    first, _, *rows = out.getvalue().splitlines()
    assert first.startswith("It would go to node2: ")
    assert [row.split(maxsplit=1)[0] for row in rows] == ["node1", "node2"]
    assert run(["dry-run", "--label", "site!=here"], out, err) == PlacementError.exit_code
    assert "its site is here, which the task is to be away from" in err.getvalue()


def test_a_dry_run_of_a_script_counts_what_it_imports_and_runs_nothing(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, ...]] = []
    would_go = Cluster.would_go

    def noted(cluster: Cluster, *, modules: tuple[str, ...], **options: Any) -> WouldGo:
        asked.append(modules)
        return would_go(cluster, modules=modules, **options)

    monkeypatch.setattr(Cluster, "would_go", noted)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("import json, numpy\nopen('ran', 'w')\n")
    out, err = io.StringIO(), io.StringIO()
    assert run(["dry-run", "--json", "--distribute", "--on", "node2", "script.py"], out, err) == 0
    told = json.loads(out.getvalue())
    assert (told["node"], told["nodes"].keys()) == ("node2", {"node1", "node2"})
    assert "slots free" in told["reasons"][0] and told["nodes"]["node1"] == "the task asks for node2"
    assert asked == [("numpy",)]
    assert run(["dry-run", "--distribute", "missing.py"], out, err) == UsageError.exit_code
    assert "There is no script missing.py" in err.getvalue()
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_job_of_another_process_is_known_to_those_that_are_to_be_near_or_apart(mesh: Mesh):
    program = mesh.program(
        """
        import time
        import kos_cluster as kos
        list(kos.connect().map(time.sleep, [600, 600], on="node2", name="web", retries=0, max_parallel=1))
        """
    )

    def runs() -> bool:
        """As this process has heard: where it is, and that it alone is busy."""
        heard = mesh.cluster.heard()
        busy = {m.name for m in heard.members or () if m.id in heard.loads and heard.loads[m.id][0].running}
        return busy == {"node2"} and any(job.name == "web" and job.nodes for job in mesh.cluster.jobs())

    until(runs, "the other process's job is known", 90)
    (web,) = [job.job for job in mesh.cluster.jobs() if job.name == "web"]
    out = io.StringIO()
    assert run(["why", "--json", web], out, io.StringIO()) == 0
    told = next(row["why"] for row in json.loads(out.getvalue()) if row["state"] == "waiting")
    assert f"knows why: {Path(program.args[1]).name}, process {program.pid} on {socket.gethostname()}, of " in told
    assert f"kos.connect().why({web!r}) tells it" in told
    assert mesh.cluster.would_go(apart="web").node == "node1"
    assert "the two are to be apart" in mesh.cluster.would_go(apart="web").nodes["node2"]
    assert mesh.cluster.submit(where, near="web", apart="nobody").result(60) == "node1"  # it has room
    assert kos.connect().cancel(web)
