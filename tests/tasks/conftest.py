"""Workers of a real fork server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kos_cluster.net import local
from tests.tasks.fork_daemon import ForkDaemon, TestedWorker


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkDaemon]:
    folder = Path(tempfile.mkdtemp(prefix="kos-"))
    daemon = ForkDaemon(folder)
    yield daemon
    daemon.close()
    shutil.rmtree(folder)


@pytest.fixture
def worker(daemon: ForkDaemon) -> Iterator[TestedWorker]:
    worker = daemon.worker()
    yield worker
    worker.send(local.Stop())
    assert daemon.exited(worker).status == 0, worker.err
