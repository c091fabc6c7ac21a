"""Jobs that a program has on an engine, as others see them: listed, cancelled, and refused with what is true of them.

Threads of this process play the engine's part; who types `kos` has a connection of their own.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from kos_cluster.cli import main as command
from kos_cluster.core.jobrows import STATES
from kos_cluster.core.records import TaskState
from kos_cluster.tasks.beat import Beat
from kos_kernel import output
from tests.engines.stand_in import StandIn
from tests.mesh.conftest import Mesh, until

RESULT_S = 30.0
NAMED = "engine stand-in"


def typed(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return command.run(words, out, err), out.getvalue(), err.getvalue()


def listed(job: str) -> str:
    """Its line of `kos ps`."""
    return next((line for line in typed("ps")[1].splitlines() if line.startswith(job)), "")


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """What a test leaves running, as it failed, does not keep the next one waiting."""
    yield tmp_path / "go"
    (tmp_path / "go").touch()


CANCELS = """
import time
import kos_cluster as kos
cluster = kos.connect()
while not any(known.job == "{job}" for known in cluster.jobs()):  # nodes hear of a job a moment after it has begun
    time.sleep(0.01)
print(cluster.cancel("{job}.0"))
"""


def test_nodes_hear_of_a_job_before_the_next_beat(
    mesh: Mesh, engine: StandIn, go: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[Beat] = []
    monkeypatch.setattr(Beat, "announce", lambda beat: announced.append(beat))
    future = mesh.cluster.on_engine("stand-in").map(_waits_for, [str(go)]).futures[0]
    until(lambda: announced, "it is to be told")
    go.touch()
    future.result(RESULT_S)


def test_they_are_listed_and_can_be_cancelled_by_others(mesh: Mesh, engine: StandIn, go: Path) -> None:
    futures = mesh.cluster.on_engine("stand-in").map(_waits_for, [str(go)] * 3).futures
    job = futures[0].task.partition(".")[0]
    until(lambda: listed(job).split()[3:8] == ["running", "0", "0", "2", "3"], "two of three run, as it has workers")
    assert listed(job).rstrip().endswith(NAMED)
    for words in (("logs", job), ("logs", f"{job}.1"), ("story", job)):
        code, out, err = typed(*words)
        assert (code, out) == (5, "")
        assert f"Job {words[1]} is on {NAMED}: " in err
        assert f"Type 'kos engine dashboard stand-in' to see its tasks, 'kos cancel {words[1]}' to end it" in err
    code, out, err = typed("why", job)
    assert (code, err) == (0, "")
    assert "it is on engine stand-in, which places its tasks itself" in out
    assert [line.split()[1:3] for line in out.splitlines()[1:]] == [["2", "running"], ["1", "waiting"]]

    assert [STATES[code] for code in mesh.cluster.states(job)] == [TaskState.SENT] * 3
    assert [story.state for story in mesh.cluster.own_stories(job, [0, 2])] == [TaskState.RUNNING, TaskState.SENT]

    program = mesh.program(CANCELS.format(job=job))
    assert program.communicate(timeout=RESULT_S)[0] == "True\n"
    with pytest.raises(CancelledError):
        futures[0].result(RESULT_S)
    assert typed("cancel", job)[0] == 0
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(RESULT_S)
    until(lambda: listed(job).split()[3:8] == ["done", "0", "3", "0", "3"], "its end is told")


def test_output_that_is_left_out_is_not_promised_elsewhere(
    mesh: Mesh, engine: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "OUTPUT_LIMIT_BYTES", 10)
    sink = output.CellSink(None)
    monkeypatch.setattr("kos_cluster.tasks.output.default_sink", lambda: sink)
    list(mesh.cluster.on_engine("stand-in").map(print, ["much too much"]))
    said = capsys.readouterr().err
    assert (
        "the rest is left out. Nobody keeps it, as the job is on engine stand-in: let its tasks write to files." in said
    )
    assert "kos logs" not in said


def _waits_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.05)
