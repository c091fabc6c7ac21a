"""The real Dask on three nodes: what every engine must do, and what people use Dask for."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.conformance import RESULT_S, EngineConformance
from tests.engines.conftest import EngineMesh
from tests.mesh.conftest import until

KIND = "dask"
WORDS = ("--memory", "600M")
FILES = 53
ROWS = 700_000  # of each file, 12 MB


def test_a_frame_larger_than_a_workers_memory_is_grouped(mesh: EngineMesh, engine: Any, short_folder: Path) -> None:
    import dask.dataframe as dd
    import pandas as pd

    first = short_folder / "0.parquet"
    values = np.arange(ROWS, dtype=float)
    pd.DataFrame({"key": np.arange(ROWS) % 7, "x": values, "y": -values}).to_parquet(first, compression=None)
    for number in range(1, FILES):
        shutil.copy(first, short_folder / f"{number}.parquet")
    assert sum(path.stat().st_size for path in short_folder.iterdir()) > engine.memory_bytes
    with mesh.cluster.engine("dask").as_current():
        found = dd.read_parquet(f"{short_folder}/*.parquet").groupby("key")[["x", "y"]].sum().compute()
    expected = [FILES * values[key::7].sum() for key in range(7)]
    assert found.x.sort_index().tolist() == expected
    assert (found.x == -found.y).all()


def test_singular_values(mesh: EngineMesh, engine: Any) -> None:
    import dask.array as da

    rows = np.random.default_rng(1).normal(size=(4000, 20))
    client = mesh.cluster.engine("dask")
    with client.as_current():
        _, values, _ = da.linalg.svd(da.from_array(rows, chunks=(500, 20)))
        found = values.compute()
    assert np.allclose(found, np.linalg.svd(rows, compute_uv=False))


def test_a_task_that_fails_raises_in_the_client(mesh: EngineMesh, engine: Any) -> None:
    client = mesh.cluster.engine("dask")
    with pytest.raises(ZeroDivisionError):
        client.submit(lambda x: 1 / x, 0).result(RESULT_S)


def test_a_killed_worker_comes_back_and_its_tasks_run_again(mesh: EngineMesh, engine: Any) -> None:
    client = mesh.cluster.engine("dask")
    pids = client.run(os.getpid)
    futures = client.map(_slow, range(6), pure=False)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert client.gather(futures) == list(range(6))
    until(lambda: len(set(client.run(os.getpid).values()) - set(pids.values())) == 1, "Dask's nanny has acted")


def _slow(item: int) -> int:
    time.sleep(0.1)
    return item


class TestDask(EngineConformance):
    """What every engine must do."""
