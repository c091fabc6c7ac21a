"""The workers beneath an engine's process are made once."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kos_cluster.services.engines import hosting, rayenvironment
from kos_cluster.tasks.enginekeys import Credentials

THREADS = 4


def together(call: Any) -> list[Any]:
    """What each of several threads gets that begin at once."""
    barrier = threading.Barrier(THREADS)

    def begin(_: int) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def test_calls_that_begin_together_get_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self, *_: Any) -> None:
            time.sleep(0.05)  # as a fork server takes to start

    monkeypatch.setattr(hosting, "Host", Slow)
    hosting._host.cache_clear()
    try:
        assert len(set(together(hosting.host))) == 1
    finally:
        hosting._host.cache_clear()


def test_connections_that_begin_together_get_one_file_for_each_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    memfd_create = os.memfd_create

    def slow(name: str, flags: int) -> int:
        made.append(name)
        time.sleep(0.05)
        return memfd_create(name, flags)

    monkeypatch.setattr(os, "memfd_create", slow)
    rayenvironment._memory_file.cache_clear()
    told = together(lambda: rayenvironment.of_member(Credentials("authority", "certificate", "key", "secret")))
    assert all(each == told[0] for each in told) and len(made) == 3
    with open(told[0]["RAY_TLS_SERVER_CERT"]) as file:
        assert file.read() == "certificate"
