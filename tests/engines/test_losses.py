"""What becomes of an engine when parts of it are lost, and what is refused before it is one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from kos_cluster.errors import EngineError, PlacementError, UsageError
from kos_cluster.services.engines import control, dask
from kos_cluster.services.engines.spec import Record, State
from tests.engines.conftest import NODES, SLOTS, EngineMesh
from tests.mesh.conftest import until

REPORT_S = 5.0  # in which the loss of a head is to be told
RESULT_S = 20.0

# Starts an engine, and is gone as soon as that serves.
STARTER = """
    import os, signal, sys
    from kos_cluster.cli.main import run
    words = "engine start dask --name night --workers 1 --restarts 1"
    code = run(words.split(), sys.stdout, sys.stderr)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["start", "spark"], 2, "spark"),
        (["start", "dask", "--name", "a.b"], 2, "'a.b' cannot be the name of an engine"),
        (["start", "dask", "--workers", "0"], 2, "'0' is not a whole number of at least 1"),
        (["start", "dask", "--memory", "lots"], 2, "'lots' is not an amount of memory"),
        (["start", "dask", "--memory", "10M"], 2, "too little for a worker of an engine"),
        (["start", "dask", "--restarts", "-1"], 2, "'-1'"),
        (["status", "dask"], 24, "There is no engine 'dask': none is started. Type 'kos engine start dask'"),
        (["scale", "dask", "2"], 24, "There is no engine 'dask'"),
        (["stop", "dask"], 24, "There is no engine 'dask'"),
        (["dashboard", "dask"], 24, "There is no engine 'dask'"),
    ],
)
def test_bad_input_is_a_sentence_and_a_code(mesh: EngineMesh, words: list[str], code: int, told: str) -> None:
    ended, _, err = mesh.kos("engine", *words)
    assert (ended, err.count("\n")) == (code, 1)
    assert told in err


def test_more_workers_than_ever_fit_are_refused_with_numbers(mesh: EngineMesh) -> None:
    code, _, err = mesh.kos("engine", "start", "dask", "--workers", "99")
    assert code == PlacementError.exit_code
    assert f"100 ranks of 1 slot each do not fit: the cluster holds {NODES * SLOTS} of them at most" in err
    assert not mesh.cluster.registers()


def test_a_package_that_nodes_lack_is_named_with_the_nodes(mesh: EngineMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask.Dask, "packages", ("distributed", "no_such_package"))
    jobs = len(mesh.cluster.jobs())
    code, _, err = mesh.kos("engine", "start", "dask")
    assert code == EngineError.exit_code
    assert "distributed and no_such_package are not installed on node1, node2, node3." in err
    assert "pip install 'kos-cluster[dask]'" in err
    assert len(mesh.cluster.jobs()) == jobs


def test_it_outlives_its_starter_its_head_and_ends_with_its_supervisor(mesh: EngineMesh) -> None:
    starter = mesh.program(STARTER)
    said, problem = starter.communicate(timeout=60)
    assert said.startswith("Engine night serves with 1 worker"), problem
    assert starter.returncode == -signal.SIGKILL
    release = mesh.folder / "release"
    others = mesh.cluster.submit(_held, str(release))  # KOS's own work, which all of this is nothing to

    client = mesh.cluster.engine("night")
    held = client.submit(bytes, 3 << 20)
    assert len(held.result(RESULT_S)) == 3 << 20
    until(lambda: night(mesh).held_bytes >= 3 << 20, "the supervisor has seen what is held")
    head = client.run_on_scheduler(os.getpid)
    told_s = timed(lambda: os.kill(head, signal.SIGKILL), lambda: "lost:" in night(mesh).why)
    assert told_s < REPORT_S
    record = night(mesh)
    assert "SIGKILL" in record.why
    assert "lost: 0 tasks that waited or ran, and 3.0 MiB of results" in record.why
    assert "3.0 MiB of results" in mesh.ok("engine", "status", "night")
    until(lambda: night(mesh).state is State.SERVING, "it has started anew")
    assert (night(mesh).life, night(mesh).restarts_left) == (2, 0)
    assert mesh.cluster.engine("night").submit(pow, 2, 5).result(RESULT_S) == 32
    until(lambda: len(mesh.supervisors(night(mesh))) == 1, "the supervisor looks at the new head")

    processes = mesh.engine_processes()
    os.kill(mesh.supervisors(night(mesh))[0], signal.SIGKILL)
    until(lambda: night(mesh).state is State.FAILED, "the loss of the supervisor is told")
    assert "its supervisor was lost" in night(mesh).why
    until(lambda: not any(process.is_running() for process in processes), "its ranks have ended with it")
    until(lambda: not mesh.engine_files(), "and their files")
    with pytest.raises(EngineError, match=r"is failed: .*its supervisor was lost"):
        control.open_engine(mesh.cluster, "night")
    code, _, err = mesh.kos("engine", "start", "dask", "--name", "night")
    assert code == UsageError.exit_code
    assert "There is an engine 'night' already (dask, failed)" in err
    assert mesh.ok("engine", "stop", "night") == "Engine night is stopped.\n"
    assert mesh.ok("engine", "list").count("\n") == 1
    release.touch()
    assert others.result(RESULT_S) == "held"
    assert len(mesh.cluster.stories(others.task)[0].attempts) == 1


def night(mesh: EngineMesh) -> Record:
    return control.find(mesh.cluster, "night")


def timed(act: Callable[[], None], seen: Callable[[], bool]) -> float:
    """Seconds from what is done until it is seen."""
    act()
    begun_s = time.monotonic()
    until(seen, "it is seen")
    return time.monotonic() - begun_s


def _held(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.05)
    return "held"
