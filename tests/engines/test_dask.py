"""The real Dask on three nodes: what every engine must do, and what people use Dask for."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

from kos_cluster.services.engines import control, daskcalls
from kos_cluster.services.engines.dask import memory_limit
from kos_cluster.services.engines.engine import Connection, Task
from kos_cluster.services.engines.spec import Record
from tests.engines.conformance import RESULT_S, EngineConformance
from tests.engines.conftest import WORKERS, EngineMesh
from tests.engines.crossing import References
from tests.mesh.conftest import until

KIND = "dask"
WORDS = ("--memory", "600M")
FILES = 40
ROWS = 700_000  # of each file, 12 MB


@pytest.mark.timeout(300)  # with the start of the engine; on a machine that has other work, too
def test_a_frame_larger_than_a_workers_memory_is_grouped(mesh: EngineMesh, engine: Record, short_folder: Path) -> None:
    import dask.dataframe as dd
    import pandas as pd

    first = short_folder / "0.parquet"
    values = np.arange(ROWS, dtype=float)
    pd.DataFrame({"key": np.arange(ROWS) % 7, "x": values, "y": -values}).to_parquet(first, compression=None)
    for number in range(1, FILES):
        shutil.copy(first, short_folder / f"{number}.parquet")
    limit_bytes = memory_limit(engine.memory_bytes)
    assert isinstance(limit_bytes, int)
    assert sum(path.stat().st_size for path in short_folder.iterdir()) > limit_bytes
    with mesh.cluster.engine("dask").as_current():
        found = dd.read_parquet(f"{short_folder}/*.parquet").groupby("key")[["x", "y"]].sum().compute()
    expected = [FILES * values[key::7].sum() for key in range(7)]
    assert found.x.sort_index().tolist() == expected
    assert (found.x == -found.y).all()


def test_singular_values(mesh: EngineMesh, engine: Record) -> None:
    import dask.array as da

    rows = np.random.default_rng(1).normal(size=(4000, 20))
    client = mesh.cluster.engine("dask")
    with client.as_current():
        _, values, _ = da.linalg.svd(da.from_array(rows, chunks=(500, 20)))
        found = values.compute()
    assert np.allclose(found, np.linalg.svd(rows, compute_uv=False))


def test_a_task_that_fails_raises_in_the_client(mesh: EngineMesh, engine: Record) -> None:
    client = mesh.cluster.engine("dask")
    with pytest.raises(ZeroDivisionError):
        client.submit(lambda x: 1 / x, 0).result(RESULT_S)


def test_a_killed_worker_comes_back_and_its_tasks_run_again(mesh: EngineMesh, engine: Record) -> None:
    client = mesh.cluster.engine("dask")
    pids = client.run(os.getpid)
    futures = client.map(_slow, range(6), pure=False)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert client.gather(futures) == list(range(6))
    until(lambda: len(set(client.run(os.getpid).values()) - set(pids.values())) == 1, "Dask's nanny has acted")


def test_no_port_of_it_takes_who_has_no_certificate(mesh: EngineMesh, engine: Record, connection: Connection) -> None:
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    ports = [int(address.rpartition(":")[2]) for address in (engine.address.head, *connection.standing().workers)]
    for port in ports:
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            stranger.wrap_socket(plain) as link,
        ):
            link.recv(1)
    with pytest.raises(OSError, match=r"reset by peer|Timed out"):
        distributed.Client(f"tcp://127.0.0.1:{ports[0]}", timeout=1)


def test_its_head_keeps_nothing_of_what_calls_say(mesh: EngineMesh, engine: Record) -> None:
    own = control.open_engine(mesh.cluster, engine.name)
    said: list[str] = []
    try:
        own.submit(_speaks, write=lambda _, text: said.append(text)).result(RESULT_S)
        assert said == ["word"] * 10
        assert own.client.run_on_scheduler(_kept_of, own.client.id) == 0
    finally:
        own.close()
    client = mesh.cluster.engine("dask")
    until(lambda: client.run_on_scheduler(_kept_of, own.client.id) is None, "nor its name, once it has gone")


def test_workers_that_go_pass_on_what_they_hold(mesh: EngineMesh, engine: Record, tmp_path: Path) -> None:
    client = mesh.cluster.engine("dask")
    futures = client.map(_noted, range(9), path=str(tmp_path / "ran"), pure=False)
    distributed.wait(futures)
    mesh.ok("engine", "scale", "dask", str(WORKERS - 1))
    assert client.gather(futures) == list(range(9))
    assert (tmp_path / "ran").read_text() == "x" * 9  # none of them has run again
    mesh.ok("engine", "scale", "dask", str(WORKERS))


def _speaks(task: Task) -> None:
    for _ in range(10):
        task.write("stdout", "word")


def _kept_of(client: str, dask_scheduler: Any) -> int | None:
    """How many events there are of a client's calls; None: not even a name for them."""
    topic = dask_scheduler._broker._topics.get(daskcalls.TOPIC + client)
    return None if topic is None else len(topic.events)


def _noted(item: int, path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    return item


def _slow(item: int) -> int:
    time.sleep(0.1)
    return item


class TestReferences(References):
    """Between blocks and Dask."""


class TestDask(EngineConformance):
    """What every engine must do."""
