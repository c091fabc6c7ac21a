"""The real Ray on three nodes: what people use Ray for, what every engine must do, and what is left of a lost one."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from kos_cluster.errors import AuthError, EngineError
from kos_cluster.services.engines import control, references
from kos_cluster.services.engines.kinds import engine_of
from kos_cluster.services.engines.spec import State
from tests.engines.conformance import RESULT_S, EngineConformance, shared_by, still_shared
from tests.engines.conftest import WORKERS, EngineMesh, connection, engine, mesh, notebook
from tests.mesh.conftest import until

__all__ = ["connection", "engine", "mesh", "notebook"]

pytestmark = [
    pytest.mark.whole,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]

KIND = "ray"
WORDS = ("--memory", "2500M", "--allow-plaintext")
REPORT_S = 5.0  # in which the loss of a head is to be told


def test_it_is_refused_without_leave_for_what_it_cannot_encrypt(mesh: EngineMesh) -> None:
    code, _, err = mesh.kos("engine", "start", "ray")
    assert code == EngineError.exit_code
    assert "ray cannot encrypt the HTTP of its runtime-environment agents" in err
    assert "--allow-plaintext" in err


def test_its_status_names_what_is_not_encrypted(mesh: EngineMesh, engine: Any) -> None:
    assert "runtime-environment agents" in mesh.ok("engine", "status", "ray")


def test_tasks(mesh: EngineMesh, engine: Any) -> None:
    ray = mesh.cluster.engine("ray")
    squares = [ray.remote(lambda x: x * x).remote(x) for x in range(20)]
    assert ray.get(squares, timeout=RESULT_S) == [x * x for x in range(20)]


def test_an_actor_keeps_its_state(mesh: EngineMesh, engine: Any) -> None:
    ray = mesh.cluster.engine("ray")

    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, more: int) -> int:
            self.count += more
            return self.count

    counter = ray.remote(Counter).remote()
    assert ray.get([counter.add.remote(each) for each in (1, 2, 3)], timeout=RESULT_S) == [1, 3, 6]
    ray.kill(counter)


def test_a_placement_group_is_spread_over_the_workers(mesh: EngineMesh, engine: Any) -> None:
    ray = mesh.cluster.engine("ray")
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 1}] * WORKERS, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=RESULT_S)

    def where() -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    places = [PlacementGroupSchedulingStrategy(group, bundle) for bundle in range(WORKERS)]
    tasks = [ray.remote(where).options(scheduling_strategy=place).remote() for place in places]
    assert len(set(ray.get(tasks, timeout=RESULT_S))) == WORKERS
    remove_placement_group(group)


def test_who_has_a_certificate_and_not_the_token_is_refused(mesh: EngineMesh, engine: Any) -> None:
    own = mesh.cluster.engine_keys(engine.id, "127.0.0.1")
    other = mesh.cluster.engine_keys("0" * 16, "127.0.0.1")
    with pytest.raises(AuthError, match="does not take this engine token"):
        engine_of("ray").connect(engine.address, msgspec.structs.replace(own, secret=other.secret))


def test_a_block_is_read_where_it_lies_and_a_result_becomes_one(mesh: EngineMesh, engine: Any) -> None:
    ray = mesh.cluster.engine("ray")
    values = np.arange(1_000_000, dtype=float)
    ref = mesh.cluster.put(values)
    assert ray.get(ray.remote(_reads).remote(ref), timeout=RESULT_S) == (True, False, values.sum())
    made, where = ray.remote(_made).options(num_returns=2).remote()
    back = references.block_of_object(made, mesh.cluster)
    assert back.node_name == ray.get(where)
    del made  # the block is KOS's now
    assert mesh.cluster.submit(np.sum, back).result(RESULT_S) == 3_000_000.0
    before = mesh.cluster.memory()[back.node_name].blocks
    del back
    until(lambda: mesh.cluster.memory()[ray.get(where)].blocks < before, "it is dropped with its last reference")


def _made() -> tuple[Any, str]:
    return np.full(1_000_000, 3.0), os.environ["KOS_NODE"]


def _reads(ref: Any) -> tuple[bool, bool, float]:
    """Whether a block's array lies in a node's memory, not in this process's, and whether it can be written to."""
    array = ref.get()
    address = array.__array_interface__["data"][0]
    spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    lies_in = next(span for span in spans if int(span[0].split("-")[0], 16) <= address < int(span[0].split("-")[1], 16))
    return "memfd:" in " ".join(lies_in), bool(array.flags.writeable), float(array.sum())


class TestRay(EngineConformance):
    """What every engine must do."""


def test_the_loss_of_its_head_is_told_and_nothing_is_left(mesh: EngineMesh) -> None:
    mesh.ok("engine", "start", "ray", "--name", "night", "--workers", "1", "--allow-plaintext")
    processes = mesh.engine_processes()
    shared = set().union(*(shared_by(process.pid) for process in processes))
    store = next(process for process in processes if process.name() == "gcs_server")
    begun_s = time.monotonic()
    os.kill(store.pid, signal.SIGKILL)
    until(lambda: control.find(mesh.cluster, "night").state is State.FAILED, "the loss is told")
    assert time.monotonic() - begun_s < REPORT_S
    assert "lost: 0 tasks that waited or ran" in control.find(mesh.cluster, "night").why
    assert "gcs_server" in control.find(mesh.cluster, "night").why
    until(lambda: not any(map(psutil.Process.is_running, processes)), "all of it has ended")
    assert mesh.ok("engine", "stop", "night") == "Engine night is stopped.\n"
    until(lambda: not mesh.engine_files(), "its files are removed")
    until(lambda: not still_shared(shared), "nothing of it is left in shared memory")


def test_what_a_killed_rank_has_started_ends_with_it(mesh: EngineMesh) -> None:
    mesh.ok("engine", "start", "ray", "--name", "day", "--workers", "1", "--allow-plaintext")
    ranks = [int(folder.name.rpartition("-")[2]) for folder in mesh.engine_files()]
    beneath = [child for rank in ranks for child in psutil.Process(rank).children(recursive=True)]
    assert {"gcs_server", "raylet"} <= {child.name() for child in beneath}
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    until(lambda: not any(map(psutil.Process.is_running, beneath)), "all of it has ended")
    until(lambda: not any(map(Path.exists, mesh.engine_files())), "its files are removed")
    mesh.ok("engine", "stop", "day")
