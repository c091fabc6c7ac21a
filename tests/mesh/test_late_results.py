"""Results of one batch that arrive in another order than they were made: no task is run again for it."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.tasks import returns
from tests.mesh.conftest import Mesh

TASKS = 600
LARGE_EVERY = 7


def test_large_results_that_come_late_are_waited_for(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    runs.touch()

    def work(number: int) -> tuple[int, bytes]:
        descriptor = os.open(runs, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, f"{number}\n".encode())
        os.close(descriptor)
        if number % LARGE_EVERY == 0:
            return number, bytes(BULK_BYTES)
        time.sleep(0.001)
        return number, b""

    def late(*args: Any) -> bytes:
        time.sleep(0.1)
        return fetch(*args)

    fetch = returns.get_result
    monkeypatch.setattr(returns, "get_result", late)
    results = list(mesh.cluster.map(work, range(TASKS), retries=0))
    assert [number for number, _ in results] == list(range(TASKS))
    assert Counter(runs.read_text().split()) == dict.fromkeys(map(str, range(TASKS)), 1)
